/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists of key=value pairs. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli.h"
#include "options.h"

/* Takes over both strings, even on failure. */
static int append_take(struct option_list *list, char *key, char *value)
{
    struct option_pair *pairs =
        key && value ? reallocarray(list->pairs, list->count + 1, sizeof *pairs) : NULL;
    if (!pairs) {
        free(key);
        free(value);
        return cli_error("out of memory");
    }
    list->pairs = pairs;
    list->pairs[list->count++] = (struct option_pair){key, value};
    return CLI_OK;
}

int options_set(struct option_list *list, const char *key, const char *value)
{
    return append_take(list, strdup(key), strdup(value));
}

/* The text up to the next single comma, where doubled commas become single ones.  *p ends
 * at the comma or at the end of the text.  NULL: no memory. */
static char *next_element(const char **p)
{
    char *element = malloc(strlen(*p) + 1), *out = element;
    if (!element)
        return NULL;
    for (; **p; (*p)++) {
        if (**p == ',' && *++*p != ',') {
            (*p)--;
            break;
        }
        *out++ = **p;
    }
    *out = '\0';
    return element;
}

static int add_element(struct option_list *list, const char *element)
{
    const char *equals = strchr(element, '=');
    if (equals)
        return append_take(list, strndup(element, (size_t)(equals - element)),
                           strdup(equals + 1));
    if (strcmp(element, "help") == 0 || strcmp(element, "?") == 0) {
        list->help = true;
        return CLI_OK;
    }
    if (strncmp(element, "no", 2) == 0)
        return options_set(list, element + 2, "off");
    return options_set(list, element, "on");
}

int options_add_shown(struct option_list *list, const char *text, const char *shown)
{
    const char *p = text;

    for (;;) {
        CLEANUP_FREE char *element = next_element(&p);
        if (!element)
            return cli_error("out of memory");
        if (element[0] == '\0')
            return cli_error("Invalid option list: %s", shown);
        int code = add_element(list, element);
        if (code != CLI_OK || *p == '\0')
            return code;
        p++;
    }
}

int options_add(struct option_list *list, const char *text)
{
    return options_add_shown(list, text, text);
}

const char *options_get(const struct option_list *list, const char *key)
{
    for (size_t i = list->count; i > 0; i--)
        if (strcmp(list->pairs[i - 1].key, key) == 0)
            return list->pairs[i - 1].value;
    return NULL;
}

void options_free_pair(struct option_pair *pair)
{
    free(pair->key);
    free(pair->value);
}

void options_free(struct option_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        options_free_pair(&list->pairs[i]);
    free(list->pairs);
}
