/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of create, as qemu-img's -o has them. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "base/words.h"
#include "cli.h"
#include "create_options.h"
#include "size.h"

/* More than any format has. */
#define MAX_FORMAT_OPTIONS 16

enum kind { KIND_TEXT, KIND_SWITCH, KIND_NUMBER, KIND_SIZE };

struct option_info {
    const char *name;
    enum kind kind;
    const char *initial; /* announced when none is given; NULL: then not announced */
    const char *help;    /* NULL: there is no choice but the initial value; not listed */
};

struct create_format {
    const char *name;
    const struct option_info *options; /* in the order of announcing */
};

/* Those of the file, which every format has. */
#define NOCOW_OPTION                                                             \
    {                                                                            \
        "nocow", KIND_SWITCH, NULL, "Turn off copy-on-write of the file (btrfs)" \
    }
#define EXTENT_OPTION                                                              \
    {                                                                              \
        "extent_size_hint", KIND_SIZE, NULL, "Bytes for the file to grow by (XFS)" \
    }

static const struct option_info qcow2_options[] = {
    {"encryption", KIND_SWITCH, NULL, NULL},
    {"cluster_size", KIND_SIZE, "65536", "Size of a cluster, 512 bytes to 2 MiB"},
    {"extended_l2", KIND_SWITCH, "off", NULL},
    {"preallocation", KIND_TEXT, NULL,
     "What to allocate now: off, metadata, falloc or full"},
    {"compression_type", KIND_TEXT, "zlib", NULL},
    {"size", KIND_SIZE, NULL, "Virtual disk size"},
    {"compat", KIND_TEXT, NULL, "Version of the format: 0.10 (v2) or 1.1 (v3)"},
    {"backing_file", KIND_TEXT, NULL, "File name of a base image"},
    {"backing_fmt", KIND_TEXT, NULL, "Image format of the base image"},
    {"lazy_refcounts", KIND_SWITCH, "off", "Postpone the updates of reference counts"},
    {"refcount_bits", KIND_NUMBER, "16", "Width of a reference count, 1 to 64 bits"},
    NOCOW_OPTION,
    EXTENT_OPTION,
    {0},
};

static const struct option_info qed_options[] = {
    {"size", KIND_SIZE, NULL, "Virtual disk size"},
    {"backing_file", KIND_TEXT, NULL, "File name of a base image"},
    {"backing_fmt", KIND_TEXT, NULL, "Image format of the base image"},
    {"cluster_size", KIND_SIZE, "65536", "Size of a cluster, 4 KiB to 64 MiB"},
    {"table_size", KIND_SIZE, NULL, "Clusters that an L1 or L2 table takes, 1 to 16"},
    NOCOW_OPTION,
    EXTENT_OPTION,
    {0},
};

static const struct option_info raw_options[] = {
    {"size", KIND_SIZE, NULL, "Virtual disk size"},
    NOCOW_OPTION,
    {"preallocation", KIND_TEXT, NULL, "What to allocate now: off, falloc or full"},
    EXTENT_OPTION,
    {0},
};

static const struct create_format formats[] = {
    {"qcow2", qcow2_options},
    {"qed", qed_options},
    {"raw", raw_options},
};

const struct create_format *create_format_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++)
        if (strcmp(formats[i].name, name) == 0)
            return &formats[i];
    return NULL;
}

int create_format_unknown(const char *what, const char *name)
{
    const char *names[ARRAY_LEN(formats)];
    struct words_hint hint;

    for (size_t i = 0; i < ARRAY_LEN(formats); i++)
        names[i] = formats[i].name;
    return cli_error("%s '%s': %s", what, name,
                     words_hint(&hint, name, names, ARRAY_LEN(names)));
}

const char *create_format_name(const struct create_format *format)
{
    return format->name;
}

static const struct option_info *find_option(const struct create_format *format,
                                             const char *name)
{
    for (const struct option_info *o = format->options; o->name; o++)
        if (strcmp(o->name, name) == 0)
            return o;
    return NULL;
}

bool create_format_has_backing(const struct create_format *format)
{
    return find_option(format, "backing_file") != NULL;
}

static const char *kind_name(enum kind kind)
{
    static const char *const names[] = {
        [KIND_TEXT] = "str",
        [KIND_SWITCH] = "bool (on/off)",
        [KIND_NUMBER] = "num",
        [KIND_SIZE] = "size",
    };
    return names[kind];
}

static int compare_names(const void *a, const void *b)
{
    const struct option_info *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

void create_format_help(const struct create_format *format)
{
    const struct option_info *sorted[MAX_FORMAT_OPTIONS];
    size_t n = 0;

    for (const struct option_info *o = format->options; o->name; o++)
        if (o->help)
            sorted[n++] = o;
    qsort(sorted, n, sizeof sorted[0], compare_names);
    printf("Supported %s options:\n", format->name);
    for (size_t i = 0; i < n; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s=<%s>", sorted[i]->name, kind_name(sorted[i]->kind));
        printf("  %-22s - %s\n", left, sorted[i]->help);
    }
}

/* The word's switch as "on" or "off", NULL for other words. */
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

/* The value's plain form, to be freed; NULL when it isn't of the kind. */
static char *normalise(enum kind kind, const char *value)
{
    uint64_t number;
    char text[32];

    if (kind == KIND_TEXT)
        return strdup(value);
    if (kind == KIND_SWITCH) {
        const char *word = parse_switch(value);
        return word ? strdup(word) : NULL;
    }
    if (kind == KIND_NUMBER ? !parse_number(value, &number)
                            : size_parse(value, &number) < 0)
        return NULL;
    snprintf(text, sizeof text, "%" PRIu64, number);
    return strdup(text);
}

static int refuse_value(const char *filename, const struct option_info *o,
                        const char *value)
{
    static const char *const wants[] = {
        [KIND_TEXT] = "a word",
        [KIND_SWITCH] = "'on' or 'off'",
        [KIND_NUMBER] = "a number",
        [KIND_SIZE] = "a number of bytes, or one followed by k, M, G, T, P or E",
    };
    return cli_error("%s: Parameter '%s' expects %s, not '%s'", filename, o->name,
                     wants[o->kind], value);
}

static int refuse_key(const struct create_format *format, const char *filename,
                      const char *key)
{
    const char *names[MAX_FORMAT_OPTIONS];
    struct words_hint hint;
    size_t n = 0;

    for (const struct option_info *o = format->options; o->name; o++)
        if (o->help)
            names[n++] = o->name;
    return cli_error("%s: Invalid parameter '%s' of %s: %s", filename, key, format->name,
                     words_hint(&hint, key, names, n));
}

int create_options_check(const struct create_format *format, struct option_list *list,
                         const char *filename)
{
    for (size_t i = 0; i < list->count; i++) {
        struct option_pair *pair = &list->pairs[i];
        const struct option_info *o = find_option(format, pair->key);
        if (!o)
            return refuse_key(format, filename, pair->key);
        char *value = normalise(o->kind, pair->value);
        if (!value)
            return refuse_value(filename, o, pair->value);
        free(pair->value);
        pair->value = value;
    }
    const char *encryption = options_get(list, "encryption");
    if (encryption && strcmp(encryption, "on") == 0)
        return cli_error("%s: encryption=on: encrypted images are not supported", filename);
    return CLI_OK;
}

/* A comma in a value is shown as it has to be written. */
static void print_value(const char *value)
{
    for (; *value; value++) {
        if (*value == ',')
            putchar(',');
        putchar(*value);
    }
}

void create_options_announce(const struct create_format *format,
                             const struct option_list *list, const char *filename)
{
    printf("Formatting '%s', fmt=%s", filename, format->name);
    for (const struct option_info *o = format->options; o->name; o++) {
        const char *value = options_get(list, o->name);
        if (!value)
            value = o->initial;
        if (!value)
            continue;
        printf(" %s=", o->name);
        print_value(value);
    }
    putchar('\n');
    fflush(stdout);
}

/* These reach the driver in struct create_request's own fields. */
static bool is_common(const char *key)
{
    return strcmp(key, "size") == 0 || strcmp(key, "backing_file") == 0 ||
           strcmp(key, "backing_fmt") == 0 || strcmp(key, "encryption") == 0 ||
           strcmp(key, "nocow") == 0 || strcmp(key, "extent_size_hint") == 0;
}

int create_options_for_driver(const struct option_list *list,
                              struct create_option **options, size_t *count)
{
    struct create_option *out = calloc(list->count + 1, sizeof *out);
    size_t n = 0;

    if (!out)
        return cli_error("out of memory");
    for (size_t i = 0; i < list->count; i++) {
        const struct option_pair *pair = &list->pairs[i];
        /* Of a key that is given again, the last value counts. */
        if (!is_common(pair->key) && options_get(list, pair->key) == pair->value)
            out[n++] = (struct create_option){.key = pair->key, .value = pair->value};
    }
    *options = out;
    *count = n;
    return CLI_OK;
}

int create_options_hints(const struct option_list *list, const char *filename,
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
