/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the parsing of NBD URIs, which come from users and from images. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "storage/nbd_uri.h"

static bool same(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static void check_parts(const struct nbd_uri *uri)
{
    fuzz_check(!uri->socket != !uri->host, "a socket or a host, and not both");
    fuzz_check(!uri->socket || uri->socket[0] == '/', "socket '%s'", uri->socket);
    fuzz_check(uri->export_name && strlen(uri->export_name) <= NBD_EXPORT_NAME_MAX, "name");
    for (const char *p = uri->export_name; *p; p++)
        fuzz_check((unsigned char)*p >= ' ' && *p != 0x7f, "control character in the name");
    if (uri->host)
        fuzz_check(atoi(uri->port) >= 1 && atoi(uri->port) <= 65535, "port '%s'",
                   uri->port);
}

/* A printed URI must parse to the same parts again. */
static void check_canonical(const struct nbd_uri *uri)
{
    CLEANUP_FREE char *text = nbd_uri_print(uri);
    CLEANUP_NBD_URI struct nbd_uri again = {0};
    struct diag diag = {0};

    fuzz_check(text, "no text");
    fuzz_check(nbd_uri_is_one(text), "'%s' is no URI", text);
    if (strlen(text) > NBD_URI_MAX)
        return;
    int err = nbd_uri_parse(text, NBD_URI_USER, &again, &diag);
    fuzz_check(err == 0, "'%s': %s", text, diag.text);
    fuzz_check(uri->tls == again.tls && same(uri->socket, again.socket) &&
                   same(uri->host, again.host) &&
                   same(uri->export_name, again.export_name) &&
                   same(uri->keys.certificates, again.keys.certificates) &&
                   same(uri->keys.psk_file, again.keys.psk_file) &&
                   same(uri->keys.username, again.keys.username) &&
                   uri->keys.verify == again.keys.verify &&
                   (!uri->host || same(uri->port, again.port)),
               "'%s' parses to something else", text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *text = fuzz_text(data, size);

    for (int origin = NBD_URI_USER; origin <= NBD_URI_IMAGE; origin++) {
        CLEANUP_NBD_URI struct nbd_uri uri = {0};
        struct diag diag = {0};
        int err = nbd_uri_parse(text, (enum nbd_uri_origin)origin, &uri, &diag);
        fuzz_check_diag(err, &diag);
        if (err) {
            fuzz_check(!uri.socket && !uri.host && !uri.export_name, "not empty");
            continue;
        }
        fuzz_check(nbd_uri_is_one(text), "'%s' is no URI", text);
        check_parts(&uri);
        fuzz_check(origin == NBD_URI_USER ||
                       (!uri.keys.certificates && !uri.keys.psk_file &&
                        !uri.keys.username && !uri.keys.verify),
                   "an image chooses keys");
        check_canonical(&uri);
    }
    return 0;
}
