/* SPDX-License-Identifier: BSD-3-Clause */
/* Text from outside as JSON. */
#include "common/json_text.h"

#include <string.h>

#include "base/cleanup.h"

json_t *json_from_text(const char *text)
{
    json_t *value = json_string(text);
    if (value)
        return value;
    CLEANUP_FREE char *copy = strdup(text);
    for (char *p = copy; p && *p; p++)
        if ((unsigned char)*p >= 0x80)
            *p = '?';
    return copy ? json_string(copy) : NULL;
}
