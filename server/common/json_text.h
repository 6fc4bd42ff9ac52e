/* SPDX-License-Identifier: BSD-3-Clause */
/* Text from outside (file names, image contents) as JSON.  Layer: common. */
#ifndef COMMON_JSON_TEXT_H
#define COMMON_JSON_TEXT_H

#include <jansson.h>

/* JSON is UTF-8, but file names and texts in images can be any bytes.  If the text isn't
 * UTF-8, each byte that isn't ASCII becomes '?'.  NULL: no memory. */
json_t *json_from_text(const char *text);

/* A copy for printing: control characters in strings become \xHH, as they could give
 * commands to a terminal.  NULL: no memory. */
json_t *json_plain_copy(const json_t *value);

#endif
