/* SPDX-License-Identifier: BSD-3-Clause */
/* Parsing, checking and printing names of RBD images. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/path.h"
#include "storage/rbd_name.h"

#define PREFIX "rbd:"

struct parse {
    char shown
        [200]; /* the text without its options, cut so that a message has room for its reason */
    enum rbd_name_origin origin;
    struct rbd_name *name;
    struct diag *diag;
};

bool rbd_name_is_one(const char *text)
{
    return strncmp(text, PREFIX, strlen(PREFIX)) == 0;
}

void rbd_name_free(struct rbd_name *name)
{
    free(name->pool);
    free(name->image);
    free(name->space);
    free(name->snapshot);
    free(name->id);
    free(name->conf);
    for (unsigned i = 0; i < name->n_options; i++) {
        free(name->options[i].key);
        free(name->options[i].value);
    }
    *name = (struct rbd_name){0};
}

/* ---- parsing ---- */

/* Messages contain the text, so it is checked first that it is harmless in a log. */
static int check_text(const char *text, struct diag *diag)
{
    if (strnlen(text, RBD_NAME_MAX + 1) > RBD_NAME_MAX)
        return diag_set(diag, ENAMETOOLONG, "an RBD name is longer than %d bytes",
                        RBD_NAME_MAX);
    for (const char *p = text; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            return diag_set(diag, EINVAL, "an RBD name has the control character 0x%02x",
                            (unsigned char)*p);
    return 0;
}

/* The first character before `end` that is in `stops` and isn't escaped; otherwise `end`. */
static const char *find_plain(const char *at, const char *end, const char *stops)
{
    for (; at < end; at++) {
        if (*at == '\\' && at + 1 < end)
            at++;
        else if (strchr(stops, *at))
            return at;
    }
    return end;
}

/* Copies a part of the text without its escapes. */
static int take_piece(struct parse *p, const char *what, const char *at, const char *end,
                      char **out)
{
    CLEANUP_FREE char *plain = malloc((size_t)(end - at) + 1);
    size_t n = 0;

    if (!plain)
        return diag_errno(p->diag, ENOMEM, "%s", p->shown);
    for (; at < end; at++) {
        if (*at == '\\' && at + 1 == end)
            return diag_set(p->diag, EINVAL, "%s: %s: a backslash at its end", p->shown,
                            what);
        at += *at == '\\';
        plain[n++] = *at;
    }
    plain[n] = '\0';
    if (n == 0)
        return diag_set(p->diag, EINVAL, "%s: %s is empty", p->shown, what);
    *out = TAKE(&plain);
    return 0;
}

/* Takes ownership of the path. */
static int set_conf(struct parse *p, char *path)
{
    CLEANUP_FREE char *given = path;

    p->name->conf = given[0] == '/' ? TAKE(&given) : path_absolute(given);
    return p->name->conf ? 0 : diag_errno(p->diag, errno, "%s", p->shown);
}

/* Takes ownership of both. */
static int add_option(struct parse *p, char *key, char *value)
{
    CLEANUP_FREE char *owned_key = key, *owned_value = value;
    struct rbd_name *name = p->name;
    bool is_id = strcmp(key, "id") == 0, is_conf = strcmp(key, "conf") == 0;

    if ((is_id && name->id) || (is_conf && name->conf))
        return diag_set(p->diag, EINVAL, "%s: %s= is there twice", p->shown, key);
    if (is_conf)
        return set_conf(p, TAKE(&owned_value));
    if (is_id) {
        name->id = TAKE(&owned_value);
        return 0;
    }
    if (name->n_options == RBD_OPTIONS_MAX)
        return diag_set(p->diag, EINVAL, "%s: has more than %d options", p->shown,
                        RBD_OPTIONS_MAX);
    name->options[name->n_options++] =
        (struct rbd_option){.key = TAKE(&owned_key), .value = TAKE(&owned_value)};
    return 0;
}

static int parse_option(struct parse *p, const char *at, const char *end)
{
    CLEANUP_FREE char *key = NULL, *value = NULL;
    const char *equals = find_plain(at, end, "=");

    if (equals == end)
        return diag_set(p->diag, EINVAL, "%s: an option must be KEY=VALUE", p->shown);
    int err = take_piece(p, "the key of an option", at, equals, &key);
    if (!err)
        err = take_piece(p, key, equals + 1, end, &value);
    return err ? err : add_option(p, TAKE(&key), TAKE(&value));
}

static int parse_options(struct parse *p, const char *at, const char *end)
{
    if (at < end && p->origin == RBD_NAME_IMAGE)
        return diag_set(p->diag, EACCES,
                        "%s: an image may not choose how Ceph is asked (id=, conf= and "
                        "other options): say that in Ceph's configuration or in CEPH_ARGS",
                        p->shown);
    while (at < end) {
        const char *stop = find_plain(at + 1, end, ":");
        int err = parse_option(p, at + 1, stop);
        if (err)
            return err;
        at = stop;
    }
    return 0;
}

/* [NAMESPACE/]IMAGE[@SNAPSHOT] */
static int parse_image(struct parse *p, const char *at, const char *end)
{
    const char *snapshot = find_plain(at, end, "@");
    const char *slash = find_plain(at, snapshot, "/");
    int err = 0;

    if (slash < snapshot) {
        err = take_piece(p, "the namespace", at, slash, &p->name->space);
        at = slash + 1;
    }
    if (!err && find_plain(at, snapshot, "/") < snapshot)
        return diag_set(p->diag, EINVAL,
                        "%s: must be rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE", p->shown);
    if (!err)
        err = take_piece(p, "the name of the image", at, snapshot, &p->name->image);
    if (!err && snapshot < end)
        err = take_piece(p, "the name of the snapshot", snapshot + 1, end,
                         &p->name->snapshot);
    return err;
}

static int parse_parts(struct parse *p, const char *text)
{
    const char *at = text + strlen(PREFIX), *end = text + strlen(text);
    const char *options = find_plain(at, end, ":");
    const char *slash = find_plain(at, options, "/");

    if (slash == options)
        return diag_set(p->diag, EINVAL, "%s: names no pool: must be rbd:POOL/IMAGE",
                        p->shown);
    /* QEMU would take the first @ of the whole text for the one before a snapshot. */
    if (find_plain(at, options, "@") == options && find_plain(options, end, "@") < end)
        return diag_set(p->diag, EINVAL,
                        "%s: an @ in an option must be written as \\@, as it would stand "
                        "before a snapshot",
                        p->shown);
    int err = take_piece(p, "the pool", at, slash, &p->name->pool);
    if (!err)
        err = parse_image(p, slash + 1, options);
    return err ? err : parse_options(p, options, end);
}

/* Leaves out the options, which may have secrets. */
static void show_place(struct parse *p, const char *text)
{
    const char *options = find_plain(text + strlen(PREFIX), text + strlen(text), ":");
    size_t n = (size_t)(options - text);

    snprintf(p->shown, sizeof p->shown, "%.*s", (int)n, text);
    if (n >= sizeof p->shown)
        strcpy(p->shown + sizeof p->shown - 4, "...");
}

int rbd_name_parse(const char *text, enum rbd_name_origin origin, struct rbd_name *out,
                   struct diag *diag)
{
    struct parse p = {.origin = origin, .name = out, .diag = diag};

    *out = (struct rbd_name){0};
    int err = check_text(text, diag);
    if (err)
        return err;
    show_place(&p, text);
    err = parse_parts(&p, text);
    if (err)
        rbd_name_free(out);
    return err;
}

/* ---- adding to a name ---- */

static struct rbd_option *find_option(struct rbd_name *name, const char *key)
{
    for (unsigned i = 0; i < name->n_options; i++)
        if (strcmp(name->options[i].key, key) == 0)
            return &name->options[i];
    return NULL;
}

static int new_option(struct rbd_name *name, const char *key, char *value)
{
    if (name->n_options == RBD_OPTIONS_MAX)
        return -E2BIG;
    char *copy = strdup(key);
    if (!copy)
        return -ENOMEM;
    name->options[name->n_options++] = (struct rbd_option){.key = copy, .value = value};
    return 0;
}

int rbd_name_append(struct rbd_name *name, const char *key, const char *text)
{
    struct rbd_option *there = find_option(name, key);
    char *value;

    if (asprintf(&value, "%s%s%s", there ? there->value : "", there ? ";" : "", text) < 0)
        return -ENOMEM;
    if (there) {
        free(there->value);
        there->value = value;
        return 0;
    }
    int err = new_option(name, key, value);
    if (err)
        free(value);
    return err;
}

int rbd_name_add_monitor(struct rbd_name *name, const char *host, const char *port)
{
    bool v6 = strchr(host, ':');
    CLEANUP_FREE char *text = NULL;

    if (asprintf(&text, "%s%s%s%s%s", v6 ? "[" : "", host, v6 ? "]" : "", port ? ":" : "",
                 port ? port : "") < 0) {
        text = NULL;
        return -ENOMEM;
    }
    return rbd_name_append(name, "mon_host", text);
}

/* ---- printing ---- */

static void print_piece(FILE *f, const char *before, const char *text)
{
    if (!text)
        return;
    fputs(before, f);
    for (const char *c = text; *c; c++) {
        if (strchr("\\/@:=", *c))
            fputc('\\', f);
        fputc(*c, f);
    }
}

static void print_place(FILE *f, const struct rbd_name *name)
{
    print_piece(f, PREFIX, name->pool);
    print_piece(f, "/", name->space);
    print_piece(f, "/", name->image);
    print_piece(f, "@", name->snapshot);
}

/* Doesn't escape slashes, so that paths stay readable. */
static void print_option(FILE *f, const char *key, const char *value)
{
    if (!value)
        return;
    print_piece(f, ":", key);
    fputc('=', f);
    for (const char *c = value; *c; c++) {
        if (strchr("\\@:", *c))
            fputc('\\', f);
        fputc(*c, f);
    }
}

enum printing { PRINT_PLACE, PRINT_ALL, PRINT_SHOWN };

static void print_options(FILE *f, const struct rbd_name *name, enum printing how)
{
    print_option(f, "id", name->id);
    print_option(f, "conf", name->conf);
    for (unsigned i = 0; i < name->n_options; i++) {
        const struct rbd_option *o = &name->options[i];
        bool hidden = how == PRINT_SHOWN && rbd_option_is_secret(o->key);
        print_option(f, o->key, hidden ? "***" : o->value);
    }
}

static char *print_parts(const struct rbd_name *name, enum printing how)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    if (!f)
        return NULL;
    print_place(f, name);
    if (how != PRINT_PLACE)
        print_options(f, name, how);
    if (fclose(f) == 0)
        return text;
    free(text);
    return NULL;
}

/* Ceph ignores blanks around an option's name. */
bool rbd_option_is_secret(const char *key)
{
    key += strspn(key, " ");
    return strncmp(key, "key", 3) == 0 && key[3 + strspn(key + 3, " ")] == '\0';
}

char *rbd_name_print(const struct rbd_name *name)
{
    return print_parts(name, PRINT_ALL);
}

char *rbd_name_print_shown(const struct rbd_name *name)
{
    return print_parts(name, PRINT_SHOWN);
}

char *rbd_name_print_place(const struct rbd_name *name)
{
    return print_parts(name, PRINT_PLACE);
}
