/* SPDX-License-Identifier: BSD-3-Clause */
/* --image-opts: a name and a format in one text. */
#include <jansson.h>

#include "base/cleanup.h"
#include "cli.h"
#include "image_opts.h"
#include "options.h"

static void set_default(struct option_list *list, const char *key, const char *needs,
                        const char *value, int *code)
{
    if (*code == CLI_OK && options_get(list, needs) && !options_get(list, key))
        *code = options_set(list, key, value);
}

static char *as_json_name(const struct option_list *list)
{
    json_t *object = json_object();
    char *name = NULL;

    for (size_t i = 0; i < list->count; i++)
        json_object_set_new(object, list->pairs[i].key, json_string(list->pairs[i].value));
    CLEANUP_FREE char *json = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    if (!json || asprintf(&name, "json:%s", json) < 0)
        return NULL;
    return name;
}

static int resolve_options(const struct option_list *list, struct reference *out)
{
    CLEANUP_FREE char *name = as_json_name(list);
    struct diag diag = {0};

    if (!name)
        return cli_error("--image-opts: out of memory, or text that is not UTF-8");
    if (reference_resolve("--image-opts", name, REFERENCES_ANY, out, &diag) < 0)
        return cli_diag(&diag);
    return CLI_OK;
}

int image_opts_parse(const char *text, struct reference *out)
{
    struct option_list list = {0};

    *out = (struct reference){0};
    int code = options_add(&list, text);
    set_default(&list, "file.driver", "file.filename", "file", &code);
    set_default(&list, "driver", "filename", "file", &code);
    if (code == CLI_OK)
        code = resolve_options(&list, out);
    options_free(&list);
    return code;
}
