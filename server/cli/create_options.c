/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of create, in the form of qemu-img's -o. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/plain_text.h"
#include "base/size.h"
#include "base/words.h"
#include "cli.h"
#include "create_options.h"
#include "size.h"

/* More than any format has, and more formats than there are. */
#define MAX_FORMAT_OPTIONS 32
#define MAX_FORMATS        16

int create_format_unknown(const char *what, const char *name)
{
    const char *names[MAX_FORMATS];
    struct words_hint hint;
    size_t n = 0;

    for (const struct driver *driver; n < MAX_FORMATS && (driver = driver_at(n)); n++)
        names[n] = driver->name;
    return cli_error("%s '%s': %s", what, name, words_hint(&hint, name, names, n));
}

static const struct create_option_info *find_option(const struct create_option_info *table,
                                                    const char *name)
{
    for (const struct create_option_info *o = table; o->name; o++)
        if (strcmp(o->name, name) == 0)
            return o;
    return NULL;
}

static const char *kind_name(enum create_option_kind kind)
{
    static const char *const names[] = {
        [CREATE_TEXT] = "str",
        [CREATE_SWITCH] = "bool (on/off)",
        [CREATE_NUMBER] = "num",
        [CREATE_SIZE] = "size",
    };
    return names[kind];
}

static int compare_names(const void *a, const void *b)
{
    const struct create_option_info *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

void create_options_print(const struct create_option_info *table)
{
    const struct create_option_info *sorted[MAX_FORMAT_OPTIONS];
    size_t n = 0;

    for (const struct create_option_info *o = table; o->name; o++)
        if (o->help)
            sorted[n++] = o;
    qsort(sorted, n, sizeof sorted[0], compare_names);
    for (size_t i = 0; i < n; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s=<%s>", sorted[i]->name, kind_name(sorted[i]->kind));
        printf("  %-22s - %s\n", left, sorted[i]->help);
    }
}

void create_format_help(const struct driver *format)
{
    printf("Supported %s options:\n", format->name);
    create_options_print(format->create_options);
}

/* "on" or "off" for a word that means it; NULL for other words. */
static const char *parse_switch(const char *word)
{
    static const char *const words[] = {"on",  "yes", "true",  "y",
                                        "off", "no",  "false", "n"};

    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (strcmp(words[i], word) == 0)
            return i < ARRAY_LEN(words) / 2 ? "on" : "off";
    return NULL;
}

static bool parse_number(const char *word, uint64_t *out)
{
    return word[0] != '\0' && word[strspn(word, "0123456789")] == '\0' &&
           size_parse(word, out) == 0;
}

/* The value in normal form, which the caller frees; NULL if it isn't of the kind. */
static char *normalise_value(enum create_option_kind kind, const char *value)
{
    uint64_t number;
    char text[32];

    if (kind == CREATE_TEXT)
        return strdup(value);
    if (kind == CREATE_SWITCH) {
        const char *word = parse_switch(value);
        return word ? strdup(word) : NULL;
    }
    if (kind == CREATE_NUMBER ? !parse_number(value, &number)
                              : size_parse(value, &number) < 0)
        return NULL;
    snprintf(text, sizeof text, "%" PRIu64, number);
    return strdup(text);
}

static int refuse_value(const char *filename, const struct create_option_info *o,
                        const char *value)
{
    static const char *const wants[] = {
        [CREATE_TEXT] = "a word",
        [CREATE_SWITCH] = "'on' or 'off'",
        [CREATE_NUMBER] = "a number",
        [CREATE_SIZE] = "a number of bytes, or one followed by k, M, G, T, P or E",
    };
    return cli_error("%s: Parameter '%s' expects %s, not '%s'", filename, o->name,
                     wants[o->kind], value);
}

static int refuse_key(const struct driver *format, const char *filename, const char *key)
{
    const char *names[MAX_FORMAT_OPTIONS];
    struct words_hint hint;
    size_t n = 0;

    for (const struct create_option_info *o = format->create_options; o->name; o++)
        if (o->help)
            names[n++] = o->name;
    return cli_error("%s: Invalid parameter '%s' of %s: %s", filename, key, format->name,
                     words_hint(&hint, key, names, n));
}

int create_options_normalise(const struct create_option_info *table,
                             struct option_list *list, const char *filename)
{
    for (size_t i = 0; i < list->count; i++) {
        struct option_pair *pair = &list->pairs[i];
        const struct create_option_info *o = find_option(table, pair->key);
        char *value = normalise_value(o->kind, pair->value);
        if (!value)
            return refuse_value(filename, o, pair->value);
        free(pair->value);
        pair->value = value;
    }
    return CLI_OK;
}

int create_options_check(const struct driver *format, struct option_list *list,
                         const char *filename)
{
    for (size_t i = 0; i < list->count; i++)
        if (!find_option(format->create_options, list->pairs[i].key))
            return refuse_key(format, filename, list->pairs[i].key);
    return create_options_normalise(format->create_options, list, filename);
}

/* A comma in a value is doubled, as it would be on the command line. */
static void print_value(const char *value)
{
    for (; *value; value++) {
        if (*value == ',')
            putchar(',');
        putchar(*value);
    }
}

static void print_plain_value(const char *value)
{
    CLEANUP_FREE char *plain = plain_text_copy(value);

    print_value(plain ? plain : "");
}

void create_options_announce(const struct driver *format, const struct option_list *list,
                             const char *filename)
{
    CLEANUP_FREE char *name = plain_text_copy(filename);

    printf("Formatting '%s', fmt=%s", name ? name : "", format->name);
    for (const struct create_option_info *o = format->create_options; o->name; o++) {
        const char *value = options_get(list, o->name);
        if (!value)
            value = o->initial;
        if (!value)
            continue;
        printf(" %s=", o->name);
        print_plain_value(value);
    }
    putchar('\n');
    fflush(stdout);
}

/* Does the driver read this option itself? */
static bool is_for_driver(const struct create_option_info *table, const char *key)
{
    return !table || !find_option(table, key)->in_request;
}

int create_options_list(const struct create_option_info *table,
                        const struct option_list *list, struct create_option **options,
                        size_t *count)
{
    struct create_option *out = calloc(list->count + 1, sizeof *out);
    size_t n = 0;

    if (!out)
        return cli_error("out of memory");
    for (size_t i = 0; i < list->count; i++) {
        const struct option_pair *pair = &list->pairs[i];
        /* Only the last value of a key counts. */
        if (is_for_driver(table, pair->key) && options_get(list, pair->key) == pair->value)
            out[n++] = (struct create_option){.key = pair->key, .value = pair->value};
    }
    *options = out;
    *count = n;
    return CLI_OK;
}

/* Options for the filesystem. */
static int take_hints(const struct option_list *list, const char *filename,
                      struct storage_hints *hints)
{
    const char *nocow = options_get(list, "nocow");
    const char *extent = options_get(list, "extent_size_hint");
    uint64_t bytes = 0;

    if (extent && (size_parse(extent, &bytes) < 0 || bytes > UINT32_MAX))
        return cli_error("%s: extent_size_hint: %s bytes are over 4 GiB", filename, extent);
    hints->nocow = nocow && strcmp(nocow, "on") == 0;
    hints->extent_size_hint = (uint32_t)bytes;
    return CLI_OK;
}

/* Whether a secret is needed is for the driver to judge; here it is only looked up. */
static int take_secret(const struct option_list *list, const struct secrets *secrets,
                       struct create_request *req)
{
    const char *id = options_get(list, "encrypt.key-secret");
    if (!id)
        id = options_get(list, "key-secret");
    if (!id)
        return CLI_OK;
    const struct secret_item *secret = secrets_find_passphrase(secrets, id);
    if (!secret)
        return CLI_FAILED;
    req->passphrase = secret->bytes;
    req->passphrase_len = secret->len;
    return CLI_OK;
}

int create_options_request(const struct driver *format, const struct option_list *list,
                           const char *filename, const struct secrets *secrets,
                           struct create_request *req, struct create_option **options)
{
    if (take_hints(list, filename, &req->hints) != CLI_OK ||
        create_options_list(format->create_options, list, options, &req->n_options) !=
            CLI_OK)
        return CLI_FAILED;
    req->filename = filename;
    req->options = *options;
    req->backing_file = options_get(list, "backing_file");
    req->backing_format = options_get(list, "backing_fmt");
    req->data_file = options_get(list, "data_file");
    if (req->data_file)
        req->data_file = cli_local_name(req->data_file);
    return take_secret(list, secrets, req);
}
