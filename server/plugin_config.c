/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin's parameters: parses them by a table of keys. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/cleanup.h"
#include "base/compiler.h"
#include "base/size.h"
#include "base/words.h"
#include "block/node_name.h"
#include "nbdkit_args.h"
#include "plugin_config.h"
#include "plugin_passphrase.h"
#include "plugin_values.h"
#include "registry.h"
#include "storage/nbd_uri.h"
#include "storage/rbd_name.h"

#define DEFAULT_METADATA_CACHE ((size_t)64 << 20)
#define MIN_METADATA_CACHE     ((size_t)1 << 20)
#define DEFAULT_DELAY_NS       5000000000ull
#define DEFAULT_LINGER_MS      5000u

const char plugin_config_help[] =
    "[file=]<IMAGE>                  The image to serve; or, instead of it:\n"
    "dir=<FOLDER>                    Every image below FOLDER, by its name there.\n"
    "export=<NAME>:<IMAGE>           This image by this name; may be given again.\n"
    "exports=list|hide               Are names told to clients that ask?\n"
    "linger=<SECONDS>                How long an image of dir= stays open unused (default "
    "5).\n"
    "format=auto|qcow2|qed|luks|raw  Its format; raw is never guessed.\n"
    "cache=writeback|writethrough|none|directsync|volatile\n"
    "                                How writes are cached.  volatile ignores flushes: "
    "after a\n"
    "                                failure of the host the image may be unusable.\n"
    "volatile-final-sync=yes|no      Sync once at the end of a volatile session.\n"
    "need-check-delay=<SECONDS>      Idle time before the image is marked clean (default "
    "5).\n"
    "lazy-refcounts=on|off           Postpone refcounts (qcow2 v3; default as the image "
    "says).\n"
    "backing=<PATH>|none             Use this backing file instead of the image's.\n"
    "backing-format=qcow2|qed|luks|raw\n"
    "                                Its format.\n"
    "references=any|dir|none         Which files an image may name.\n"
    "data-file=<PATH>                Use this data file instead of the image's.\n"
    "snapshot=none|<NAME>            Serve this internal snapshot, read-only.\n"
    "passphrase=<TEXT>|+<FILE>|-<FD>|-\n"
    "                                Opens an encrypted image; TEXT can be seen by "
    "others.\n"
    "passphrase.<N>=...              The same for the N-th backing file below it.\n"
    "compress=off|on                 Store whole clusters compressed (qcow2).\n"
    "copy-on-read=off|on             Keep what is read from backing files in the image.\n"
    "tls-certificates=<FOLDER>       Certificates for NBD exports with TLS (nbds://).\n"
    "tls-psk=<FILE>                  Pre-shared keys for these, instead.\n"
    "tls-username=<NAME>             Whose of these keys is used.\n"
    "tls-verify=on|off               Verify the certificates of their servers.\n"
    "discard=unmap|ignore            What a trim does to the file.\n"
    "detect-zeroes=off|on|unmap      Turn writes of zeroes into zero requests.\n"
    "metadata-cache=<SIZE>           Memory for cached tables (default 64M).\n"
    "repair=auto|off                 What is done with an image that was not closed "
    "cleanly.\n"
    "writable=on-connect|now         When the image is prepared for writing.\n"
    "lock=on|off                     Lock the image against other processes.\n"
    "control=none|<PATH>             Listen for QMP on this Unix socket.\n"
    "node-name=<NAME>                The image's name there (default drive0).";

void plugin_config_init(struct plugin_config *config)
{
    *config = (struct plugin_config){
        .cache = cache_mode_find("writeback"),
        .metadata_cache = DEFAULT_METADATA_CACHE,
        .linger_ms = DEFAULT_LINGER_MS,
        .node = {.need_check_delay_ns = DEFAULT_DELAY_NS},
    };
}

void plugin_config_free(struct plugin_config *config)
{
    free(config->file);
    free(config->dir);
    for (size_t i = 0; i < config->n_exports; i++) {
        free(config->exports[i].name);
        free(config->exports[i].file);
    }
    free(config->exports);
    free(config->format);
    free(config->backing);
    free(config->backing_format);
    free(config->data_file);
    passphrases_free(&config->passphrases);
    free(config->control);
    free(config->node_name);
    free(config->snapshot);
    free(config->tls.certificates);
    free(config->tls.psk_file);
    free(config->tls.username);
}

/* ---- the keys ---- */

static int set_file(struct plugin_config *c, const char *key, const char *value)
{
    return value_set_image(&c->file, key, value);
}

static int set_dir(struct plugin_config *c, const char *key, const char *value)
{
    return value_set_key_path(&c->dir, key, value, true);
}

static int add_export(struct plugin_config *c, const char *key, const char *value)
{
    const char *colon = strchr(value, ':');

    if (!colon || !colon[1])
        return value_refuse(key, value, "NAME:IMAGE");
    struct named_image *more = realloc(c->exports, (c->n_exports + 1) * sizeof *more);
    if (!more) {
        nbdkit_error("%s: out of memory", key);
        return -1;
    }
    c->exports = more;
    more[c->n_exports] =
        (struct named_image){.name = strndup(value, (size_t)(colon - value))};
    struct named_image *new = &more[c->n_exports++];
    if (new->name)
        return value_set_image(&new->file, key, colon + 1);
    nbdkit_error("%s: out of memory", key);
    return -1;
}

static int set_exports(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"list", "hide", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "list or hide"))
        return -1;
    c->hide_exports = i == 1;
    return 0;
}

static int set_linger(struct plugin_config *c, const char *key, const char *value)
{
    uint64_t ns;

    if (value_parse_delay(&ns, key, value))
        return -1;
    c->linger_ms = ns / 1000000;
    return 0;
}

static int set_format(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"auto", "qcow2", "qed", "luks", "raw", NULL};
    unsigned i;

    return value_choose(&i, key, value, words, "auto, qcow2, qed, luks or raw")
               ? -1
               : value_set_text(&c->format, key, value);
}

static int set_cache(struct plugin_config *c, const char *key, const char *value)
{
    c->cache = cache_mode_find(value);
    return c->cache ? 0 : value_refuse(key, value, cache_mode_names());
}

static int set_delay(struct plugin_config *c, const char *key, const char *value)
{
    return value_parse_delay(&c->node.need_check_delay_ns, key, value);
}

static int set_lazy(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"on", "off", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "on or off"))
        return -1;
    c->node.lazy_refcounts = i == 0 ? 1 : -1;
    return 0;
}

static int set_backing(struct plugin_config *c, const char *key, const char *value)
{
    if (strcmp(value, "none") == 0) {
        c->no_backing = true;
        return 0;
    }
    return nbd_uri_is_one(value) ? value_set_uri(&c->backing, key, value)
                                 : value_set_image(&c->backing, key, value);
}

static int set_backing_format(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"qcow2", "qed", "luks", "raw", NULL};
    unsigned i;

    return value_choose(&i, key, value, words, "qcow2, qed, luks or raw")
               ? -1
               : value_set_text(&c->backing_format, key, value);
}

static int set_data_file(struct plugin_config *c, const char *key, const char *value)
{
    return value_set_image(&c->data_file, key, value);
}

static int set_snapshot(struct plugin_config *c, const char *key, const char *value)
{
    if (strcmp(value, "none") == 0)
        return 0;
    return value[0] ? value_set_text(&c->snapshot, key, value)
                    : value_refuse(key, value, "none, or a snapshot's name or id");
}

static int set_switch(bool *on, const char *key, const char *value)
{
    static const char *const words[] = {"off", "on", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "off or on"))
        return -1;
    *on = i == 1;
    return 0;
}

static int set_compress(struct plugin_config *c, const char *key, const char *value)
{
    return set_switch(&c->node.compress, key, value);
}

static int set_copy_on_read(struct plugin_config *c, const char *key, const char *value)
{
    return set_switch(&c->node.copy_on_read, key, value);
}

static int set_references(struct plugin_config *c, const char *key, const char *value)
{
    return references_parse(value, &c->references)
               ? value_refuse(key, value, "any, dir or none")
               : 0;
}

static int set_tls_certificates(struct plugin_config *c, const char *key, const char *value)
{
    return value_set_key_path(&c->tls.certificates, key, value, true);
}

static int set_tls_psk(struct plugin_config *c, const char *key, const char *value)
{
    return value_set_key_path(&c->tls.psk_file, key, value, false);
}

static int set_tls_username(struct plugin_config *c, const char *key, const char *value)
{
    return value[0] ? value_set_text(&c->tls.username, key, value)
                    : value_refuse(key, value, "the name of a user");
}

static int set_tls_verify(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"on", "off", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "on or off"))
        return -1;
    c->tls.verify = i == 0 ? 1 : -1;
    return 0;
}

static int set_discard(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"unmap", "ignore", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "unmap or ignore"))
        return -1;
    c->node.discard_ignore = i == 1;
    return 0;
}

static int set_detect_zeroes(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {
        [DETECT_OFF] = "off", [DETECT_ON] = "on", [DETECT_UNMAP] = "unmap", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "off, on or unmap"))
        return -1;
    c->node.detect_zeroes = (enum detect_zeroes)i;
    return 0;
}

static int set_metadata_cache(struct plugin_config *c, const char *key, const char *value)
{
    uint64_t bytes;

    if (size_parse(value, &bytes) || bytes < MIN_METADATA_CACHE || bytes > SIZE_MAX / 2)
        return value_refuse(key, value, "a size such as 64M, at least 1M");
    c->metadata_cache = (size_t)bytes;
    return 0;
}

static int set_repair(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"auto", "off", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "auto or off"))
        return -1;
    c->node.repair_off = i == 1;
    return 0;
}

static int set_writable(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"on-connect", "now", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "on-connect or now"))
        return -1;
    c->writable_now = i == 1;
    return 0;
}

static int set_final_sync(struct plugin_config *c, const char *key, const char *value)
{
    /* nbdkit_parse_bool isn't used, as its message doesn't name the key. */
    static const char *const words[] = {"yes",   "no", "on", "off", "true",
                                        "false", "1",  "0",  NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "yes or no"))
        return -1;
    c->node.keep_marks = i % 2 == 1;
    return 0;
}

static int set_lock(struct plugin_config *c, const char *key, const char *value)
{
    static const char *const words[] = {"on", "off", NULL};
    unsigned i;

    if (value_choose(&i, key, value, words, "on or off"))
        return -1;
    c->node.lock_off = i == 1;
    return 0;
}

static int set_control(struct plugin_config *c, const char *key, const char *value)
{
    if (c->control) {
        nbdkit_error("%s=%s: %s was given twice", key, value, key);
        return -1;
    }
    if (strcmp(value, "none") == 0)
        return 0;
    if (!value[0])
        return value_refuse(key, value, "none or the name of a socket");
    c->control = nbdkit_absolute_path(value);
    return c->control ? 0 : -1;
}

/* QEMU's rules for node names, so that tools for QEMU can use the name. */
static int set_node_name(struct plugin_config *c, const char *key, const char *value)
{
    if (!node_name_is_well_formed(value))
        return value_refuse(
            key, value,
            "a letter, then letters, digits, '-', '.' and '_', 31 in all at most");
    return value_set_text(&c->node_name, key, value);
}

static const struct {
    const char *key;
    int (*set)(struct plugin_config *, const char *key, const char *value);
} keys[] = {
    {"file", set_file},
    {"dir", set_dir},
    {"export", add_export},
    {"exports", set_exports},
    {"linger", set_linger},
    {"format", set_format},
    {"cache", set_cache},
    {"need-check-delay", set_delay},
    {"lazy-refcounts", set_lazy},
    {"backing", set_backing},
    {"backing-format", set_backing_format},
    {"data-file", set_data_file},
    {"snapshot", set_snapshot},
    {"compress", set_compress},
    {"copy-on-read", set_copy_on_read},
    {"references", set_references},
    {"tls-certificates", set_tls_certificates},
    {"tls-psk", set_tls_psk},
    {"tls-username", set_tls_username},
    {"tls-verify", set_tls_verify},
    {"discard", set_discard},
    {"detect-zeroes", set_detect_zeroes},
    {"metadata-cache", set_metadata_cache},
    {"repair", set_repair},
    {"writable", set_writable},
    {"lock", set_lock},
    {"volatile-final-sync", set_final_sync},
    {"control", set_control},
    {"node-name", set_node_name},
};

int plugin_config_set(struct plugin_config *config, const char *key, const char *value)
{
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (strcmp(keys[i].key, key) == 0)
            return keys[i].set(config, key, value);
    if (plugin_passphrase_is_key(key))
        return plugin_passphrase_set(&config->passphrases, key, value);
    const char *names[ARRAY_LEN(keys) + 1];
    struct words_hint hint;
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        names[i] = keys[i].key;
    names[ARRAY_LEN(keys)] = PLUGIN_PASSPHRASE_KEY;
    nbdkit_error("%s=%s: unknown parameter: %s", key, value,
                 words_hint(&hint, key, names, ARRAY_LEN(names)));
    return -1;
}

const char *plugin_config_subject(const struct plugin_config *config)
{
    if (config->dir)
        return config->dir;
    return config->n_exports ? config->exports[0].file : config->file;
}

/* Refuses parameters for a single image together with dir= or export=. */
static int refuse_keys_of_one(const struct plugin_config *config)
{
    const char *instead = config->dir ? "dir" : "export";
    const struct {
        const char *key;
        bool given;
    } of_one[] = {
        {"backing", config->backing},
        {"data-file", config->data_file},
        {"snapshot", config->snapshot},
        {"node-name", config->node_name},
    };

    for (size_t i = 0; i < ARRAY_LEN(of_one); i++)
        if (of_one[i].given) {
            nbdkit_error("%s: is about one image: can't be used together with %s=",
                         of_one[i].key, instead);
            return -1;
        }
    return 0;
}

/* Of several images, some may not be encrypted. */
static void make_passphrases_optional(struct plugin_config *config)
{
    for (size_t i = 0; i < config->passphrases.count; i++)
        config->passphrases.list[i].optional = true;
}

static int check_what_is_served(struct plugin_config *config)
{
    int ways = (config->file != NULL) + (config->dir != NULL) + (config->n_exports > 0);

    if (ways == 0) {
        nbdkit_error("file: no image was given: nbdkit qimg [file=]IMAGE");
        return -1;
    }
    if (ways > 1) {
        nbdkit_error("file, dir and export: only one of them can be used");
        return -1;
    }
    if (config->file)
        return 0;
    make_passphrases_optional(config);
    return refuse_keys_of_one(config);
}

int plugin_config_complete(struct plugin_config *config)
{
    if (check_what_is_served(config))
        return -1;
    if (config->no_backing && (config->backing || config->backing_format)) {
        nbdkit_error("backing=none: can't be used together with another backing or "
                     "backing-format");
        return -1;
    }
    if (config->tls.certificates && config->tls.psk_file) {
        nbdkit_error("tls-psk=%s: can't be used together with tls-certificates",
                     config->tls.psk_file);
        return -1;
    }
    nbd_tls_set_default(&config->tls);
    if (config->node.detect_zeroes == DETECT_UNMAP && config->node.discard_ignore) {
        nbdkit_error("detect-zeroes=unmap: can't be used together with discard=ignore");
        return -1;
    }
    if (config->node.keep_marks && !config->cache->no_flush) {
        nbdkit_error("volatile-final-sync=no: needs cache=volatile");
        return -1;
    }
    /* No client will write; with -r none may, and nbdkit doesn't say whether it has it. */
    if (config->snapshot || (config->writable_now && nbdkit_args_may_be_read_only()))
        config->writable_now = false;
    return config->node_name ? 0
                             : value_set_text(&config->node_name, "node-name", "drive0");
}
