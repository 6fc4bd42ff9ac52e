/* SPDX-License-Identifier: BSD-3-Clause */
/* Serves metrics over HTTP: GET /metrics.  Threads: the main one.  Layer: server. */
#ifndef CLI_METRICS_HTTP_H
#define CLI_METRICS_HTTP_H

#include <stddef.h>

#define METRICS_PAGE "/metrics"

/* Makes the text for one request, from malloc.  Returns an exit code; on failure the client
 * gets status 503. */
typedef int metrics_ask(void *opaque, char **text, size_t *length);

/* Answers requests on a listening socket, which it closes at the end, until a signal of
 * interrupt_catch comes.  Complains and returns an exit code. */
int metrics_http_serve(int fd, metrics_ask *ask, void *opaque);

#endif
