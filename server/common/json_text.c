/* SPDX-License-Identifier: BSD-3-Clause */
/* Converts text from outside to JSON. */
#include "common/json_text.h"

#include <stdint.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/plain_text.h"

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

static json_t *plain_array(const json_t *value)
{
    json_t *copy = json_array();

    for (size_t i = 0; i < json_array_size(value); i++)
        json_array_append_new(copy, json_plain_copy(json_array_get(value, i)));
    return copy;
}

static json_t *plain_object(const json_t *value)
{
    json_t *copy = json_object(), *member;
    const char *key;

    json_object_foreach ((json_t *)(uintptr_t)value, key, member)
        json_object_set_new(copy, key, json_plain_copy(member));
    return copy;
}

json_t *json_plain_copy(const json_t *value)
{
    if (json_is_array(value))
        return plain_array(value);
    if (json_is_object(value))
        return plain_object(value);
    if (!json_is_string(value))
        return json_incref((json_t *)(uintptr_t)value);
    CLEANUP_FREE char *text = plain_text_copy(json_string_value(value));
    return text ? json_string(text) : NULL;
}
