/* SPDX-License-Identifier: BSD-3-Clause */
/* Text from outside as JSON.  Layer: common. */
#ifndef COMMON_JSON_TEXT_H
#define COMMON_JSON_TEXT_H

#include <jansson.h>

/* JSON is UTF-8, and file names and what stands in images are bytes: where they aren't
 * UTF-8, each byte that isn't ASCII is shown as '?'.  NULL: no memory. */
json_t *json_from_text(const char *text);

/* A copy to be printed for people: control characters in its strings are written as \xHH, as
 * names could speak to a terminal with them.  NULL: no memory. */
json_t *json_plain_copy(const json_t *value);

#endif
