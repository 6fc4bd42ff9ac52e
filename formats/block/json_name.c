/* SPDX-License-Identifier: BSD-3-Clause */
/* Parses backing names in JSON: flattens them to dotted keys, then removes the keys that it
 * understands.  Remaining keys are errors. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "block/driver.h"
#include "block/json_name.h"
#include "storage/nbd_tls.h"
#include "storage/null.h"
#include "storage/rbd_keys.h"
#include "storage/rbd_name.h"

#define PREFIX    "json:"
#define BACKING   "backing" /* and "backing.driver", ... for its members */
#define BELOW     BACKING "."
#define MAX_DEPTH 8
#define KEY_BYTES 128
#define SHOWN     160 /* longest part of the name in messages, bytes */

/* The members that aren't used yet, with dotted keys for nested ones.  Each value is a string,
 * or null where nothing lies below. */
struct members {
    json_t *flat;
    const char *image, *name;
    unsigned where; /* JSON_NAME_... */
    struct diag *diag;
};

static void free_members(struct members *m)
{
    json_decref(m->flat);
}

static int refuse_member(const struct members *m, int err, const char *key,
                         const char *reason)
{
    const char *begin = !(m->where & JSON_NAME_GIVEN) ? ": backing name"
                        : m->image[0]                 ? ": name"
                                                      : "name";

    return diag_set(m->diag, err, "%s%s '%.*s%s': %.*s: %s", m->image, begin, SHOWN,
                    m->name, strlen(m->name) > SHOWN ? "..." : "", KEY_BYTES, key, reason);
}

/* ---- flattening ---- */

static json_t *value_as_text(const json_t *value)
{
    char number[32];

    if (json_is_string(value))
        return json_string(json_string_value(value));
    if (json_is_boolean(value))
        return json_string(json_is_true(value) ? "on" : "off");
    if (!json_is_integer(value))
        return NULL;
    snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    return json_string(number);
}

/* Does a member say that there is no backing file?  The key is "backing", "backing.backing",
 * ...; the value is null or, as in options that can't express null, an empty string. */
static bool says_nothing_below(const char *path, const json_t *value)
{
    while (strncmp(path, BELOW, strlen(BELOW)) == 0)
        path += strlen(BELOW);
    if (strcmp(path, BACKING) != 0)
        return false;
    return json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0);
}

static int flatten_nested(struct members *m, json_t *value, const char *path,
                          unsigned depth);

static int add_member(struct members *m, const char *path, const json_t *value)
{
    if (json_object_get(m->flat, path))
        return refuse_member(m, EINVAL, path, "is there twice");
    json_t *text = says_nothing_below(path, value) ? json_null() : value_as_text(value);
    if (!text)
        return refuse_member(m, EINVAL, path,
                             "must be a string, a whole number or a truth value");
    return json_object_set_new(m->flat, path, text)
               ? refuse_member(m, ENOMEM, path, "out of memory")
               : 0;
}

static int flatten_member(struct members *m, const char *prefix, const char *key,
                          json_t *value, unsigned depth)
{
    char path[KEY_BYTES];

    int n = snprintf(path, sizeof path, "%s%s%s", prefix, prefix[0] ? "." : "", key);
    if (n >= (int)sizeof path)
        return refuse_member(m, EINVAL, key, "the key is too long");
    return json_is_object(value) || json_array_size(value) > 0
               ? flatten_nested(m, value, path, depth + 1)
               : add_member(m, path, value);
}

/* Elements of a list have their index as key. */
static int flatten_list(struct members *m, json_t *list, const char *path, unsigned depth)
{
    json_t *value;
    size_t i;

    json_array_foreach (list, i, value) {
        char key[24];
        snprintf(key, sizeof key, "%zu", i);
        int err = flatten_member(m, path, key, value, depth);
        if (err)
            return err;
    }
    return 0;
}

static int flatten_nested(struct members *m, json_t *value, const char *path,
                          unsigned depth)
{
    const char *key;
    json_t *member;

    if (depth > MAX_DEPTH)
        return refuse_member(m, EINVAL, path, "is nested too deeply");
    if (json_is_array(value))
        return flatten_list(m, value, path, depth);
    json_object_foreach (value, key, member) {
        int err = flatten_member(m, path, key, member, depth);
        if (err)
            return err;
    }
    return 0;
}

/* ---- removing the keys that are understood ---- */

static const char *peek_text(const struct members *m, const char *prefix, const char *key)
{
    char path[KEY_BYTES];

    snprintf(path, sizeof path, "%s%s", prefix, key);
    return json_string_value(json_object_get(m->flat, path));
}

/* *out: a copy, which the caller frees; NULL if there is no such key. */
static int take_text(struct members *m, const char *prefix, const char *key, char **out)
{
    const char *value = peek_text(m, prefix, key);
    char path[KEY_BYTES];

    if (!value)
        return 0;
    *out = strdup(value);
    if (!*out)
        return refuse_member(m, ENOMEM, key, "out of memory");
    snprintf(path, sizeof path, "%s%s", prefix, key);
    json_object_del(m->flat, path);
    return 0;
}

/* Removes keys that have no effect here: for a layer that is only read they are decided
 * elsewhere, or they are names for other programs. */
static void drop_harmless(struct members *m, const char *prefix)
{
    static const char *const keys[] = {
        "node-name", "read-only", "auto-read-only", "force-share", "discard",
        "detect-zeroes", "cache.direct", "cache.no-flush", "aio", "locking",
        /* For qcow2: sizes of caches, and which overlap checks are made. */
        "cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size",
        "cache-clean-interval", "overlap-check", "overlap-check.template"};
    char path[KEY_BYTES];

    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        snprintf(path, sizeof path, "%s%s", prefix, keys[i]);
        json_object_del(m->flat, path);
    }
}

static int refuse_rest(struct members *m)
{
    const char *key;
    json_t *value;

    json_object_foreach (m->flat, key, value) {
        return refuse_member(m, ENOTSUP, key, "is not supported");
    }
    return 0;
}

/* ---- protocols ---- */

static int parse_file(struct members *m, const char *prefix, bool is_file,
                      struct json_name *out)
{
    int err = take_text(m, prefix, "filename", &out->target);

    out->protocol =
        is_file || !out->target ? &storage_protocol_file : storage_protocol_of(out->target);
    if (err || out->target)
        return err;
    return refuse_member(m, EINVAL, "filename", "is missing");
}

/* The server's address.  QEMU has two sets of keys for it, an older one without "server.". */
static int parse_server(struct members *m, const char *prefix, struct nbd_uri *uri,
                        char **port)
{
    CLEANUP_FREE char *type = NULL;
    char server[sizeof "file.server."]; /* the longest prefix */

    int err = take_text(m, prefix, "server.type", &type);
    if (err)
        return err;
    if (type && strcmp(type, "inet") != 0 && strcmp(type, "unix") != 0)
        return refuse_member(m, ENOTSUP, "server.type", "is neither inet nor unix");
    snprintf(server, sizeof server, "%s%s", prefix, type ? "server." : "");
    bool inet = type ? strcmp(type, "inet") == 0 : !peek_text(m, prefix, "path");
    if (!inet) {
        err = take_text(m, server, "path", &uri->socket);
        return err || uri->socket ? err
                                  : refuse_member(m, EINVAL, "server.path", "is missing");
    }
    err = take_text(m, server, "host", &uri->host);
    if (!err)
        err = take_text(m, server, "port", port);
    return err || uri->host ? err : refuse_member(m, EINVAL, "server.host", "is missing");
}

/* Copies an optional text; *out stays NULL for NULL. */
static int copy_choice(struct members *m, const char *text, char **out)
{
    if (!text)
        return 0;
    *out = strdup(text);
    return *out ? 0 : refuse_member(m, ENOMEM, "tls-creds", "out of memory");
}

/* Uses the TLS credentials with this id. */
static int use_keys(struct members *m, const char *name, struct nbd_tls_choice *out)
{
    const struct nbd_tls_choice *keys = nbd_tls_find_named(name);

    if (!keys)
        return refuse_member(m, ENOENT, "tls-creds",
                             "there are no TLS credentials of that id");
    out->verify = keys->verify;
    int err = copy_choice(m, keys->certificates, &out->certificates);
    if (!err)
        err = copy_choice(m, keys->psk_file, &out->psk_file);
    return err ? err : copy_choice(m, keys->username, &out->username);
}

static int parse_tls(struct members *m, const char *prefix, struct nbd_uri *uri)
{
    CLEANUP_FREE char *name = NULL;

    int err = take_text(m, prefix, "tls-creds", &name);
    if (err || !name)
        return err;
    uri->tls = true;
    err = use_keys(m, name, &uri->keys);
    return err ? err : take_text(m, prefix, "tls-hostname", &uri->keys.hostname);
}

/* Keys that only users may give, not images. */
static int parse_wishes(struct members *m, const char *prefix, struct nbd_uri *uri)
{
    static const char *const keys[] = {"tls-creds", "x-dirty-bitmap"};

    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (!(m->where & JSON_NAME_GIVEN) && peek_text(m, prefix, keys[i]))
            return refuse_member(m, EACCES, keys[i], "is not an image's to say");
    int err = parse_tls(m, prefix, uri);
    return err ? err : take_text(m, prefix, "x-dirty-bitmap", &uri->context);
}

static int parse_nbd(struct members *m, const char *prefix, struct json_name *out)
{
    CLEANUP_NBD_URI struct nbd_uri uri = {0};
    CLEANUP_FREE char *port = NULL;

    int err = parse_server(m, prefix, &uri, &port);
    if (!err)
        err = parse_wishes(m, prefix, &uri);
    if (!err)
        err = take_text(m, prefix, "export", &uri.export_name);
    if (!err && !uri.export_name && !(uri.export_name = strdup("")))
        err = refuse_member(m, ENOMEM, "export", "out of memory");
    if (err)
        return err;
    if (port && strlen(port) >= sizeof uri.port)
        return refuse_member(m, EINVAL, "server.port", "must be a number from 1 to 65535");
    strcpy(uri.port, port ? port : "10809");
    out->protocol = &storage_protocol_nbd;
    out->target = nbd_uri_print(&uri);
    return out->target ? 0 : refuse_member(m, ENOMEM, "server", "out of memory");
}

static int parse_null(struct members *m, const char *prefix, struct json_name *out)
{
    CLEANUP_FREE char *size = NULL, *zeroes = NULL;

    int err = take_text(m, prefix, "size", &size);
    if (!err)
        err = take_text(m, prefix, "read-zeroes", &zeroes);
    if (err)
        return err;
    out->protocol = &storage_protocol_null;
    if (asprintf(&out->target, NULL_PREFIX "?size=%s&read-zeroes=%s", size ? size : "1G",
                 zeroes ? zeroes : "off") >= 0)
        return 0;
    out->target = NULL;
    return refuse_member(m, ENOMEM, "size", "out of memory");
}

/* Turns the error of an rbd_name function into a message about the key. */
static int note_option(const struct members *m, const char *key, int err)
{
    return err == 0 ? 0
                    : refuse_member(m, -err, key,
                                    err == -E2BIG ? "has too many" : "out of memory");
}

static int take_monitors(struct members *m, const char *prefix, struct rbd_name *name)
{
    for (unsigned i = 0;; i++) {
        CLEANUP_FREE char *host = NULL, *port = NULL;
        char host_key[32], port_key[32];
        snprintf(host_key, sizeof host_key, "server.%u.host", i);
        snprintf(port_key, sizeof port_key, "server.%u.port", i);
        int err = take_text(m, prefix, host_key, &host);
        if (err || !host)
            return err;
        err = take_text(m, prefix, port_key, &port);
        if (!err)
            err = note_option(m, "server", rbd_name_add_monitor(name, host, port));
        if (err)
            return err;
    }
}

static int take_auth_modes(struct members *m, const char *prefix, struct rbd_name *name)
{
    for (unsigned i = 0;; i++) {
        CLEANUP_FREE char *mode = NULL;
        char key[40];
        snprintf(key, sizeof key, "auth-client-required.%u", i);
        int err = take_text(m, prefix, key, &mode);
        if (err || !mode)
            return err;
        if (strcmp(mode, "cephx") != 0 && strcmp(mode, "none") != 0)
            return refuse_member(m, EINVAL, key, "must be cephx or none");
        err = note_option(m, key, rbd_name_append(name, "auth_client_required", mode));
        if (err)
            return err;
    }
}

static int take_key(struct members *m, const char *prefix, struct rbd_name *name)
{
    CLEANUP_FREE char *id = NULL, *key = NULL;

    if (!(m->where & JSON_NAME_GIVEN) && peek_text(m, prefix, "key-secret"))
        return refuse_member(m, EACCES, "key-secret", "is not an image's to say");
    int err = take_text(m, prefix, "key-secret", &id);
    if (err || !id)
        return err;
    key = rbd_keys_find(id);
    return key ? note_option(m, "key-secret", rbd_name_append(name, "key", key))
               : refuse_member(m, ENOENT, "key-secret", "there is no secret of that id");
}

static int take_rbd_options(struct members *m, const char *prefix, struct rbd_name *name)
{
    int err = take_monitors(m, prefix, name);

    if (!err)
        err = take_auth_modes(m, prefix, name);
    return err ? err : take_key(m, prefix, name);
}

static int parse_rbd(struct members *m, const char *prefix, struct json_name *out)
{
    CLEANUP_RBD_NAME struct rbd_name name = {0};
    const struct {
        const char *key;
        char **part;
        bool needed;
    } parts[] = {
        {"pool", &name.pool, true},   {"namespace", &name.space, false},
        {"image", &name.image, true}, {"snapshot", &name.snapshot, false},
        {"user", &name.id, false},    {"conf", &name.conf, false},
    };

    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        int err = take_text(m, prefix, parts[i].key, parts[i].part);
        if (err)
            return err;
        if (parts[i].needed && !*parts[i].part)
            return refuse_member(m, EINVAL, parts[i].key, "is missing");
    }
    int err = take_rbd_options(m, prefix, &name);
    if (err)
        return err;
    out->protocol = &storage_protocol_rbd;
    out->target = rbd_name_print(&name);
    return out->target ? 0 : refuse_member(m, ENOMEM, "image", "out of memory");
}

static int parse_protocol(struct members *m, const char *prefix, struct json_name *out)
{
    CLEANUP_FREE char *protocol = NULL;

    int err = take_text(m, prefix, "driver", &protocol);
    if (err)
        return err;
    drop_harmless(m, prefix);
    if (protocol && strcmp(protocol, "nbd") == 0)
        return parse_nbd(m, prefix, out);
    if (protocol && strcmp(protocol, "rbd") == 0)
        return parse_rbd(m, prefix, out);
    if (protocol && strcmp(protocol, storage_protocol_null.name) == 0)
        return parse_null(m, prefix, out);
    bool is_file =
        protocol && (strcmp(protocol, "file") == 0 ||
                     strcmp(protocol, "host_device") == 0); /* a block device of the host */
    if (is_file || (!protocol && peek_text(m, prefix, "filename")))
        return parse_file(m, prefix, protocol, out);
    if (protocol)
        return refuse_member(m, ENOTSUP, "driver",
                             "is neither file nor nbd nor rbd, nor a format over these");
    return refuse_member(m, EINVAL, prefix[0] ? "file.driver" : "driver", "is missing");
}

static bool has_file(const struct members *m)
{
    const char *key;
    json_t *value;

    json_object_foreach (m->flat, key, value) {
        if (strncmp(key, "file.", 5) == 0 || strcmp(key, "file") == 0)
            return true;
    }
    return false;
}

/* ---- the layer below ---- */

/* Moves the members with this prefix to `to`, without the prefix. */
static int move_members(struct members *m, const char *prefix, json_t *to)
{
    const char *key;
    json_t *value;
    void *next;

    json_object_foreach_safe (m->flat, next, key, value) {
        if (strncmp(key, prefix, strlen(prefix)) != 0)
            continue;
        if (json_object_set(to, key + strlen(prefix), value) ||
            json_object_del(m->flat, key))
            return refuse_member(m, ENOMEM, prefix, "out of memory");
    }
    return 0;
}

/* *out: the members with this prefix as a JSON name of their own; NULL: there are none. */
static int take_name(struct members *m, const char *prefix, char **out)
{
    json_auto_t *members = json_object();
    CLEANUP_FREE char *text = NULL;

    int err = members ? move_members(m, prefix, members)
                      : refuse_member(m, ENOMEM, prefix, "out of memory");
    if (err || json_object_size(members) == 0)
        return err;
    text = json_dumps(members, JSON_COMPACT);
    if (text && asprintf(out, PREFIX "%s", text) >= 0)
        return 0;
    *out = NULL;
    return refuse_member(m, ENOMEM, prefix, "out of memory");
}

static int take_below(struct members *m, struct json_name *out)
{
    int err = take_name(m, BELOW, &out->below);

    out->none_below = json_is_null(json_object_get(m->flat, BACKING));
    if (out->none_below)
        json_object_del(m->flat, BACKING);
    return !err && out->below && out->none_below
               ? refuse_member(m, EINVAL, BACKING, "is there twice")
               : err;
}

/* Elsewhere its keys remain, and are rejected. */
static int take_data_file(struct members *m, struct json_name *out)
{
    return m->where == JSON_NAME_GIVEN ? take_name(m, "data-file.", &out->data_file) : 0;
}

/* ---- the whole name ---- */

/* Does the name leave the place of the file to the image above?  It may still say the format,
 * and what lies further below. */
static bool says_no_place(const struct members *m, const char *driver)
{
    return !has_file(m) && (driver ? !!driver_find(driver) : !peek_text(m, "", "filename"));
}

static int interpret_members(struct members *m, struct json_name *out)
{
    const char *top = peek_text(m, "", "driver");
    const struct driver *format = top ? driver_find(top) : NULL;
    bool over_file = format || (!top && has_file(m)), no_place = says_no_place(m, top);

    if (format) {
        out->format = format->name;
        json_object_del(m->flat, "driver");
    }
    out->plain = top && !format;
    drop_harmless(m, "");
    int err = take_below(m, out);
    if (!err && format && format->data_file)
        err = take_data_file(m, out);
    if (!err && !((m->where & JSON_NAME_BELOW) && no_place))
        err = parse_protocol(m, over_file ? "file." : "", out);
    return err ? err : refuse_rest(m);
}

/* QEMU's JSON also allows strings in single quotes; returns a copy with double quotes, as
 * jansson requires.  The caller frees it; NULL: memory is short. */
static char *with_double_quotes(const char *json)
{
    char *out = malloc(2 * strlen(json) + 1), *to = out, quote = 0;

    if (!out)
        return NULL;
    for (; *json; json++) {
        if (*json == '\\' && json[1] == '\'') {
            *to++ = *++json;
        } else if (quote && *json == '\\' && json[1]) {
            *to++ = *json++;
            *to++ = *json;
        } else if (quote == '\'' && *json == '"') {
            *to++ = '\\';
            *to++ = '"';
        } else if (*json == quote || (!quote && (*json == '"' || *json == '\''))) {
            quote = quote ? 0 : *json;
            *to++ = '"';
        } else {
            *to++ = *json;
        }
    }
    *to = '\0';
    return out;
}

bool json_name_is_one(const char *name)
{
    return strncmp(name, PREFIX, strlen(PREFIX)) == 0;
}

int json_name_parse(const char *image, const char *name, unsigned where,
                    struct json_name *out, struct diag *diag)
{
    CLEANUP(free_members)
    struct members m = {
        .flat = json_object(), .image = image, .name = name, .where = where, .diag = diag};
    json_error_t error;

    *out = (struct json_name){0};
    CLEANUP_FREE char *json = with_double_quotes(name + strlen(PREFIX));
    if (!m.flat || !json)
        return diag_errno(diag, ENOMEM, "%s", image);
    json_t *object = json_loads(json, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(object)) {
        json_decref(object);
        return refuse_member(&m, EINVAL, "JSON", object ? "must be an object" : error.text);
    }
    int err = flatten_nested(&m, object, "", 0);
    json_decref(object);
    if (!err)
        err = interpret_members(&m, out);
    if (err)
        json_name_free(out);
    return err;
}
