/* SPDX-License-Identifier: BSD-3-Clause */
/* Parses and validates NBD URIs. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/path.h"
#include "base/percent.h"
#include "storage/nbd_uri.h"

#define HOST_MAX   253
#define SOCKET_MAX (sizeof((struct sockaddr_un *)NULL)->sun_path - 1)

/* A part of the text; not terminated. */
struct span {
    const char *at;
    size_t len;
};

struct parse {
    char shown[200]; /* the text, cut to leave room for the reason in a message */
    enum nbd_uri_origin origin;
    struct nbd_uri *uri;
    struct diag *diag;
};

bool nbd_uri_is_one(const char *text)
{
    return strncmp(text, "nbd:", 4) == 0 || strncmp(text, "nbd+", 4) == 0 ||
           strncmp(text, "nbds:", 5) == 0 || strncmp(text, "nbds+", 5) == 0;
}

void nbd_uri_free(struct nbd_uri *uri)
{
    free(uri->socket);
    free(uri->host);
    free(uri->export_name);
    free(uri->keys.certificates);
    free(uri->keys.psk_file);
    free(uri->keys.username);
    free(uri->keys.hostname);
    free(uri->context);
    *uri = (struct nbd_uri){0};
}

/* ---- parsing ---- */

/* Checked first, because messages repeat the text, and it must be safe in a log. */
static int check_text(const char *text, bool legacy, struct diag *diag)
{
    if (strnlen(text, NBD_URI_MAX + 1) > NBD_URI_MAX)
        return diag_set(diag, ENAMETOOLONG, "an NBD URI is longer than %d bytes",
                        NBD_URI_MAX);
    for (const char *p = text; *p; p++)
        if (legacy && (*p < ' ' || *p > '~'))
            return diag_set(diag, EINVAL,
                            "an NBD name has byte 0x%02x in it, which only a URI (nbd://, "
                            "nbd+unix://) can have",
                            (unsigned char)*p);
        else if (!legacy && (*p <= ' ' || *p > '~'))
            return diag_set(diag, EINVAL,
                            "an NBD URI has byte 0x%02x in it, which must be written as "
                            "%%%02X",
                            (unsigned char)*p, (unsigned char)*p);
    return 0;
}

/* Decodes %XX.  Rejects control characters, above all the NUL. */
static int decode_percents(struct parse *p, const char *what, struct span in, char **out)
{
    CLEANUP_FREE char *plain = malloc(in.len + 1);
    size_t n = 0;

    if (!plain)
        return diag_errno(p->diag, ENOMEM, "%s", p->shown);
    for (size_t i = 0; i < in.len; i++) {
        char c = in.at[i];
        if (c == '%') {
            int byte = percent_byte(in.at + i, in.len - i);
            if (byte < 0)
                return diag_set(p->diag, EINVAL,
                                "%s: %s: %% without two hexadecimal digits", p->shown,
                                what);
            c = (char)byte;
            i += 2;
        }
        if ((unsigned char)c < ' ' || c == 0x7f)
            return diag_set(p->diag, EINVAL, "%s: %s: control character 0x%02x", p->shown,
                            what, (unsigned char)c);
        plain[n++] = c;
    }
    plain[n] = '\0';
    *out = TAKE(&plain);
    return 0;
}

static int parse_port(struct parse *p, struct span port)
{
    unsigned long value = 0;

    if (port.len == 0) {
        strcpy(p->uri->port, "10809");
        return 0;
    }
    for (size_t i = 0; i < port.len && value <= UINT16_MAX; i++)
        value = isdigit((unsigned char)port.at[i])
                    ? value * 10 + (unsigned long)(port.at[i] - '0')
                    : UINT32_MAX;
    if (value == 0 || value > UINT16_MAX)
        return diag_set(p->diag, EINVAL, "%s: the port must be a number from 1 to 65535",
                        p->shown);
    snprintf(p->uri->port, sizeof p->uri->port, "%lu", value);
    return 0;
}

static bool host_is_sound(struct span host, bool bracketed)
{
    if (host.len > HOST_MAX || (bracketed && host.len == 0))
        return false;
    for (size_t i = 0; i < host.len; i++) {
        unsigned char c = (unsigned char)host.at[i];
        bool good = bracketed ? isxdigit(c) || c == ':' || c == '.'
                              : isalnum(c) || c == '.' || c == '-' || c == '_';
        if (!good || (i == 0 && c == '-'))
            return false;
    }
    return true;
}

static int parse_host_and_port(struct parse *p, struct span authority)
{
    struct span host = authority, port = {0};
    bool bracketed = authority.len > 0 && authority.at[0] == '[';
    const char *end = authority.at + authority.len;
    const char *after = bracketed ? memchr(host.at, ']', host.len) : NULL;

    if (bracketed && !after)
        return diag_set(p->diag, EINVAL, "%s: [ without ] in the host", p->shown);
    if (bracketed) {
        host = (struct span){.at = authority.at + 1,
                             .len = (size_t)(after - authority.at) - 1};
        after++;
    } else {
        const char *colon = memchr(host.at, ':', host.len);
        after = colon ? colon : end;
        host.len = (size_t)(after - authority.at);
    }
    if (after < end && *after == ':')
        port = (struct span){.at = after + 1, .len = (size_t)(end - after) - 1};
    if ((after < end && *after != ':') || !host_is_sound(host, bracketed))
        return diag_set(p->diag, EINVAL, "%s: the host is not a name or an address",
                        p->shown);
    p->uri->host = host.len ? strndup(host.at, host.len) : strdup("localhost");
    if (!p->uri->host)
        return diag_errno(p->diag, ENOMEM, "%s", p->shown);
    return parse_port(p, port);
}

/* Takes over `path`; makes it absolute if it comes from the user. */
static int set_path(struct parse *p, const char *key, char *path, char **out)
{
    CLEANUP_FREE char *given = path;

    if (given[0] == '\0')
        return diag_set(p->diag, EINVAL, "%s: %s= names no path", p->shown, key);
    if (given[0] == '/') {
        *out = TAKE(&given);
        return 0;
    }
    if (p->origin == NBD_URI_IMAGE)
        return diag_set(p->diag, EACCES,
                        "%s: an image may name a socket by its absolute path only",
                        p->shown);
    *out = path_absolute(given);
    return *out ? 0 : diag_errno(p->diag, errno, "%s", p->shown);
}

static int set_socket(struct parse *p, char *path)
{
    int err = set_path(p, "socket", path, &p->uri->socket);

    if (!err && strlen(p->uri->socket) > SOCKET_MAX)
        return diag_set(p->diag, ENAMETOOLONG,
                        "%s: the path of the socket is longer than %zu bytes", p->shown,
                        SOCKET_MAX);
    return err;
}

static int set_verify(struct parse *p, char *word)
{
    CLEANUP_FREE char *given = word;
    bool yes = strcmp(given, "true") == 0;

    if (!yes && strcmp(given, "false") != 0)
        return diag_set(p->diag, EINVAL, "%s: tls-verify-peer= must be true or false",
                        p->shown);
    p->uri->keys.verify = yes ? 1 : -1;
    return 0;
}

static int set_certificates(struct parse *p, char *path)
{
    return set_path(p, "tls-certificates", path, &p->uri->keys.certificates);
}

static int set_psk_file(struct parse *p, char *path)
{
    return set_path(p, "tls-psk-file", path, &p->uri->keys.psk_file);
}

static int set_hostname(struct parse *p, char *name)
{
    struct span host = {.at = name, .len = strlen(name)};

    p->uri->keys.hostname = name;
    if (host.len == 0 || !(host_is_sound(host, false) || host_is_sound(host, true)))
        return diag_set(p->diag, EINVAL, "%s: tls-hostname= is not a name or an address",
                        p->shown);
    return 0;
}

static int set_context(struct parse *p, char *name)
{
    p->uri->context = name;
    if (name[0] == '\0' || strlen(name) > NBD_EXPORT_NAME_MAX)
        return diag_set(
            p->diag, EINVAL,
            "%s: x-dirty-bitmap= must be the name of a meta context, of at most "
            "%d bytes",
            p->shown, NBD_EXPORT_NAME_MAX);
    return 0;
}

/* The set functions take over the decoded value. */
static const struct parameter {
    const char *key;
    int (*set)(struct parse *, char *value);
    /* What the parameter does, for the error; NULL: images may use it. */
    const char *image_may_not;
} parameters[] = {
    {"socket", set_socket, NULL},
    {"tls-certificates", set_certificates, "choose keys"},
    {"tls-psk-file", set_psk_file, "choose keys"},
    {"tls-verify-peer", set_verify, "choose keys"},
    {"tls-hostname", set_hostname, "choose keys"},
    {"x-dirty-bitmap", set_context, "choose marks"},
};

static int find_parameter(struct parse *p, struct span text, size_t *index)
{
    for (size_t i = 0; i < ARRAY_LEN(parameters); i++) {
        const struct parameter *one = &parameters[i];
        size_t n = strlen(one->key);
        if (text.len <= n || memcmp(text.at, one->key, n) != 0 || text.at[n] != '=')
            continue;
        if (one->image_may_not && p->origin == NBD_URI_IMAGE)
            return diag_set(p->diag, EACCES, "%s: an image may not %s (%s=)", p->shown,
                            one->image_may_not, one->key);
        *index = i;
        return 0;
    }
    return diag_set(p->diag, ENOTSUP,
                    "%s: the parameters there are: socket=, tls-certificates=, "
                    "tls-psk-file=, tls-verify-peer=, tls-hostname=, x-dirty-bitmap=",
                    p->shown);
}

static int parse_query(struct parse *p, struct span query)
{
    unsigned seen = 0;

    while (query.len > 0) {
        const char *amp = memchr(query.at, '&', query.len);
        size_t len = amp ? (size_t)(amp - query.at) : query.len, index = 0;
        int err = find_parameter(p, (struct span){query.at, len}, &index);
        if (err)
            return err;
        const struct parameter *parameter = &parameters[index];
        if (seen & 1u << index)
            return diag_set(p->diag, EINVAL, "%s: %s= is there twice", p->shown,
                            parameter->key);
        seen |= 1u << index;
        size_t key_len = strlen(parameter->key) + 1;
        struct span value = {.at = query.at + key_len, .len = len - key_len};
        char *plain = NULL;
        err = decode_percents(p, parameter->key, value, &plain);
        if (!err)
            err = parameter->set(p, plain);
        if (err)
            return err;
        query.at += len + (amp != NULL);
        query.len -= len + (amp != NULL);
    }
    return 0;
}

/* Parses the user before the @ of an authority and removes it from *authority. */
static int parse_user(struct parse *p, struct span *authority)
{
    const char *at = memchr(authority->at, '@', authority->len);

    if (!at)
        return 0;
    if (p->origin == NBD_URI_IMAGE)
        return diag_set(p->diag, EACCES, "%s: an image may not choose a user", p->shown);
    struct span user = {.at = authority->at, .len = (size_t)(at - authority->at)};
    authority->len -= user.len + 1;
    authority->at = at + 1;
    if (user.len == 0 || memchr(user.at, ':', user.len))
        return diag_set(p->diag, EINVAL,
                        "%s: before the @ must be a user's name, without a password",
                        p->shown);
    return decode_percents(p, "user", user, &p->uri->keys.username);
}

static int parse_scheme(struct parse *p, const char *text, bool *unix_socket,
                        const char **rest)
{
    static const struct {
        const char *prefix;
        bool tls, unix_socket;
    } schemes[] = {
        {"nbd://", false, false},
        {"nbds://", true, false},
        {"nbd+unix://", false, true},
        {"nbds+unix://", true, true},
    };

    for (unsigned i = 0; i < ARRAY_LEN(schemes); i++) {
        size_t n = strlen(schemes[i].prefix);
        if (strncmp(text, schemes[i].prefix, n) != 0)
            continue;
        p->uri->tls = schemes[i].tls;
        *unix_socket = schemes[i].unix_socket;
        *rest = text + n;
        return 0;
    }
    return diag_set(p->diag, ENOTSUP,
                    "%s: the protocol is not supported: nbd://, nbds://, nbd+unix:// and "
                    "nbds+unix:// are",
                    p->shown);
}

/* Checks that need all parts. */
static int check_whole(struct parse *p, bool unix_socket)
{
    const struct nbd_tls_choice *keys = &p->uri->keys;

    if (unix_socket && !p->uri->socket)
        return diag_set(p->diag, EINVAL, "%s: nbd+unix:// needs ?socket=PATH", p->shown);
    if (!unix_socket && p->uri->socket)
        return diag_set(p->diag, EINVAL, "%s: socket= is for nbd+unix:// only", p->shown);
    if (!p->uri->tls && (keys->certificates || keys->psk_file || keys->username ||
                         keys->hostname || keys->verify))
        return diag_set(
            p->diag, EINVAL,
            "%s: keys, certificates and users need TLS: nbds:// or nbds+unix://", p->shown);
    if (strlen(p->uri->export_name) > NBD_EXPORT_NAME_MAX)
        return diag_set(p->diag, ENAMETOOLONG,
                        "%s: the export name is longer than %d bytes", p->shown,
                        NBD_EXPORT_NAME_MAX);
    return 0;
}

static int parse_parts(struct parse *p, const char *text)
{
    const char *rest = text;
    bool unix_socket = false;

    int err = parse_scheme(p, text, &unix_socket, &rest);
    if (err)
        return err;
    struct span authority = {.at = rest, .len = strcspn(rest, "/?#")};
    rest += authority.len;
    struct span path = {.at = rest, .len = strcspn(rest, "?#")};
    rest += path.len;
    struct span query = {.at = rest + (*rest == '?'), .len = 0};
    query.len = *rest == '?' ? strcspn(query.at, "#") : 0;
    if (query.at[query.len] == '#')
        return diag_set(p->diag, EINVAL, "%s: a fragment means nothing here", p->shown);
    err = parse_user(p, &authority);
    if (err)
        return err;
    if (unix_socket && authority.len > 0)
        return diag_set(p->diag, EINVAL, "%s: nbd+unix:// has no host", p->shown);

    if (path.len > 0) { /* the slash isn't part of the name */
        path.at++;
        path.len--;
    }
    err = decode_percents(p, "export name", path, &p->uri->export_name);
    if (!err)
        err = parse_query(p, query);
    if (!err && !unix_socket)
        err = parse_host_and_port(p, authority);
    return err ? err : check_whole(p, unix_socket);
}

/* The old syntax: "nbd:" without "//".  The export's name is everything after the first
 * ":exportname=". */
static bool is_legacy(const char *text)
{
    return strncmp(text, "nbd:", 4) == 0 && strncmp(text + 4, "//", 2) != 0;
}

static int parse_legacy(struct parse *p, const char *text)
{
    static const char key[] = ":exportname=";
    const char *at = text + strlen("nbd:");
    const char *name = strstr(at, key);
    struct span address = {.at = at, .len = name ? (size_t)(name - at) : strlen(at)};
    bool unix_socket = strncmp(at, "unix:", 5) == 0;

    p->uri->export_name = strdup(name ? name + sizeof key - 1 : "");
    if (!p->uri->export_name)
        return diag_errno(p->diag, ENOMEM, "%s", p->shown);
    if (unix_socket) {
        char *path = strndup(address.at + 5, address.len - 5);
        int err = path ? set_socket(p, path) : diag_errno(p->diag, ENOMEM, "%s", p->shown);
        return err ? err : check_whole(p, true);
    }
    const char *host_end = address.len && *at == '[' ? memchr(at, ']', address.len) : at;
    const char *end = at + address.len;
    const char *colon = host_end ? memchr(host_end, ':', (size_t)(end - host_end)) : NULL;
    if (!colon || colon + 1 == end)
        return diag_set(p->diag, EINVAL, "%s: must be nbd:HOST:PORT or nbd:unix:PATH",
                        p->shown);
    int err = parse_host_and_port(p, address);
    return err ? err : check_whole(p, false);
}

int nbd_uri_parse(const char *text, enum nbd_uri_origin origin, struct nbd_uri *out,
                  struct diag *diag)
{
    struct parse p = {.origin = origin, .uri = out, .diag = diag};

    *out = (struct nbd_uri){0};
    int err = check_text(text, is_legacy(text), diag);
    if (err)
        return err;
    snprintf(p.shown, sizeof p.shown, "%s", text);
    if (strlen(text) >= sizeof p.shown)
        strcpy(p.shown + sizeof p.shown - 4, "...");
    err = is_legacy(text) ? parse_legacy(&p, text) : parse_parts(&p, text);
    if (err)
        nbd_uri_free(out);
    return err;
}
