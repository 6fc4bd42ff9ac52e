/* SPDX-License-Identifier: BSD-3-Clause */
/* A server's statistics in the text format of OpenMetrics 1.0.  Layer: server. */
#ifndef CLI_METRICS_TEXT_H
#define CLI_METRICS_TEXT_H

#include <stdio.h>

#include <jansson.h>

/* Prints the answers to query-blockstats and query-block-jobs; ends with "# EOF".  The
 * caller checks `out` for errors. */
void metrics_print(FILE *out, const json_t *disks, const json_t *jobs);

#endif
