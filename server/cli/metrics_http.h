/* SPDX-License-Identifier: BSD-3-Clause */
/* Metrics over HTTP: GET /metrics.  Threads: the main one.  Layer: server. */
#ifndef CLI_METRICS_HTTP_H
#define CLI_METRICS_HTTP_H

#include <stddef.h>

#define METRICS_PAGE "/metrics"

/* Makes the text of one scrape, which then is freed by free(); an exit code, of which the
 * client hears as 503. */
typedef int metrics_ask(void *opaque, char **text, size_t *length);

/* Answers on a listening socket, which is taken over, until a signal of interrupt_catch
 * came.  Complains and returns an exit code. */
int metrics_http_serve(int fd, metrics_ask *ask, void *opaque);

#endif
