/* SPDX-License-Identifier: BSD-3-Clause */
/* What a server does, in the text of OpenMetrics 1.0.  Layer: server. */
#ifndef CLI_METRICS_TEXT_H
#define CLI_METRICS_TEXT_H

#include <stdio.h>

#include <jansson.h>

/* From the answers to query-blockstats and query-block-jobs; ends with "# EOF".  Whether
 * `out` took it is for the caller to see. */
void metrics_print(FILE *out, const json_t *disks, const json_t *jobs);

#endif
