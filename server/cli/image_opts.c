/* SPDX-License-Identifier: BSD-3-Clause */
/* --image-opts: parses the options, and looks up the keys that they name. */
#include <string.h>
#include <strings.h>

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
    if (reference_resolve_given("--image-opts", name, out, &diag) < 0)
        return cli_diag(&diag);
    return CLI_OK;
}

/* ---- encryption ---- */

#define BACKING    "backing."
#define FORMAT     "encrypt.format"
#define KEY_SECRET IMAGE_OPTS_KEY
#define LUKS_KEY   "key-secret" /* for a LUKS container */

/* The key without its "backing." prefixes, which are counted in *depth. */
static const char *key_of_layer(const char *key, unsigned *depth)
{
    for (*depth = 0; strncmp(key, BACKING, strlen(BACKING)) == 0; key += strlen(BACKING))
        ++*depth;
    return key;
}

static bool is_key_secret(const char *key)
{
    unsigned depth;
    const char *name = key_of_layer(key, &depth);

    return strcmp(name, KEY_SECRET) == 0 || strcmp(name, LUKS_KEY) == 0;
}

/* Is it a key-secret for Ceph's login instead of an image's? */
static bool is_of_ceph(const struct option_list *list, const char *key)
{
    unsigned depth;
    const char *name = key_of_layer(key, &depth);
    CLEANUP_FREE char *driver_key = NULL;

    if (strcmp(name, LUKS_KEY) != 0)
        return false;
    if (asprintf(&driver_key, "%.*sdriver", (int)(name - key), key) < 0) {
        driver_key = NULL;
        return false;
    }
    const char *driver = options_get(list, driver_key);
    return driver && strcmp(driver, "rbd") == 0;
}

static bool is_encryption(const struct option_list *list, const char *key)
{
    unsigned depth;

    return strcmp(key_of_layer(key, &depth), FORMAT) == 0 ||
           (is_key_secret(key) && !is_of_ceph(list, key));
}

/* Moves the encryption options from one list to the other. */
static void take_encryption(struct option_list *list, struct option_list *out, int *code)
{
    size_t kept = 0;

    for (size_t i = 0; i < list->count && *code == CLI_OK; i++)
        if (is_encryption(list, list->pairs[i].key))
            *code = options_set(out, list->pairs[i].key, list->pairs[i].value);
    for (size_t i = 0; i < list->count; i++) {
        struct option_pair *pair = &list->pairs[i];
        if (options_get(out, pair->key))
            options_free_pair(pair);
        else
            list->pairs[kept++] = *pair;
    }
    list->count = kept;
}

/* Refuses an encryption option for a format that can't be encrypted. */
static int check_driver(const struct image_opts *opts)
{
    const struct driver *driver =
        opts->image.format ? driver_find(opts->image.format) : NULL;
    unsigned depth;

    for (size_t i = 0; driver && !driver->unlock && i < opts->encryption.count; i++) {
        const char *key = opts->encryption.pairs[i].key;
        key_of_layer(key, &depth);
        if (depth == 0)
            return cli_error("--image-opts: %s: %s images are not encrypted", key,
                             driver->name);
    }
    return CLI_OK;
}

int image_opts_find_keys(const struct image_opts *opts, const struct secrets *secrets,
                         struct passphrases *out)
{
    for (size_t i = 0; i < opts->encryption.count; i++) {
        const struct option_pair *pair = &opts->encryption.pairs[i];
        unsigned depth;
        if (!is_key_secret(pair->key))
            continue;
        key_of_layer(pair->key, &depth);
        const struct secret_item *secret = secrets_find_passphrase(secrets, pair->value);
        if (!secret)
            return CLI_FAILED;
        int err = passphrases_add(out, depth, secret->bytes, secret->len);
        if (err)
            return cli_error("--image-opts: %s: %s", pair->key, strerror(-err));
        /* As in qemu-img, a key for an image that isn't encrypted is ignored. */
        out->list[out->count - 1].optional = true;
    }
    return CLI_OK;
}

int image_opts_check_encryption(const struct image_opts *opts, const struct node *top)
{
    for (size_t i = 0; i < opts->encryption.count; i++) {
        const struct option_pair *pair = &opts->encryption.pairs[i];
        const struct node *node = top;
        unsigned depth;
        if (strcmp(key_of_layer(pair->key, &depth), FORMAT) != 0)
            continue;
        for (; node && depth > 0; depth--)
            node = node->backing;
        if (!node)
            continue;
        if (!node->encryption)
            return cli_error("%s: No encryption in image header, but options specified "
                             "format '%s'",
                             node->filename, pair->value);
        if (strcasecmp(node->encryption, pair->value) != 0)
            return cli_error("%s: is encrypted by %s, but options specified format '%s'",
                             node->filename, node->encryption, pair->value);
    }
    return CLI_OK;
}

/* ---- parsing ---- */

void image_opts_free(struct image_opts *opts)
{
    reference_free(&opts->image);
    options_free(&opts->encryption);
    *opts = (struct image_opts){0};
}

int image_opts_parse(const struct cli_image *given, struct image_opts *out)
{
    struct option_list list = {0};

    *out = (struct image_opts){0};
    if (given->format)
        return cli_error("--image-opts and --format are mutually exclusive");
    int code = options_add(&list, given->filename);
    take_encryption(&list, &out->encryption, &code);
    set_default(&list, "file.driver", "file.filename", "file", &code);
    if (code == CLI_OK)
        code = resolve_options(&list, &out->image);
    if (code == CLI_OK && out->image.plain)
        out->image.format = "raw";
    if (code == CLI_OK)
        code = check_driver(out);
    options_free(&list);
    return code;
}
