/* SPDX-License-Identifier: BSD-3-Clause */
/* NBD URIs: what they may say, and their parts.
 *
 *     nbd://HOST[:PORT][/EXPORT]            TCP; no HOST means localhost, no PORT 10809
 *     nbds://[USER@]HOST[:PORT][/EXPORT]    the same with TLS, which is then required
 *     nbd+unix:///[EXPORT]?socket=PATH      a Unix socket
 *     nbds+unix://[USER@]/[EXPORT]?socket=PATH
 *
 * and, as older programs wrote them into images, where nothing is encoded and EXPORT may
 * have any character:
 *
 *     nbd:HOST:PORT[:exportname=EXPORT]
 *     nbd:unix:PATH[:exportname=EXPORT]
 *
 * With TLS, a user may add the parameters tls-certificates=FOLDER, tls-psk-file=FILE,
 * tls-verify-peer=true|false and tls-hostname=NAME, which count more than what nbd_tls.h has for
 * the process.  An image may not, nor name a USER: it has no say in which of the host's keys are
 * used.  Nor may it say x-dirty-bitmap=CONTEXT, by which users see a meta context of the server in
 * the place of base:allocation (storage_marks).
 *
 * Everything else is refused: other schemes, fragments, other parameters.  The parts are
 * handed to libnbd one by one and never as text again, so that there is no second parser
 * that could understand a name in another way.
 *
 * Threads: any.  Layer: storage. */
#ifndef STORAGE_NBD_URI_H
#define STORAGE_NBD_URI_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

/* The longest URI that is looked at, in bytes: room for a name of which each byte is
 * encoded. */
#define NBD_URI_MAX 16384

/* The protocol's limit on strings, in bytes. */
#define NBD_EXPORT_NAME_MAX 4096

/* What a connection with TLS uses.  A member that is NULL or 0 wasn't chosen. */
struct nbd_tls_choice {
    char *certificates; /* folder, absolute */
    char *psk_file;     /* absolute */
    char *username;     /* for the pre-shared key */
    char *hostname; /* that the server's certificate has to have, if it isn't the host's */
    int verify;     /* 1: the server's certificate is verified, -1: it isn't */
};

/* Who wrote it. */
enum nbd_uri_origin {
    NBD_URI_USER,
    NBD_URI_IMAGE, /* a name found inside an image: a socket's path must be absolute */
};

struct nbd_uri {
    char *socket;      /* absolute path, or NULL: TCP */
    char *host;        /* NULL with a socket; an IPv6 address has no brackets */
    char port[6];      /* decimal, 1..65535 */
    char *export_name; /* never NULL; free of control characters */
    bool tls;
    struct nbd_tls_choice keys; /* owned; only with tls */
    char *context; /* the meta context that is asked for; NULL: base:allocation */
};

/* Does the text start as an NBD URI does, of any scheme that speaks NBD? */
bool nbd_uri_is_one(const char *text);

/* Takes the text apart; a user's relative socket path is made absolute here, before a
 * server changes its folder.  0, or -EINVAL, -ENOTSUP, -EACCES, -ENAMETOOLONG, -ENOMEM with
 * diag; *out is then empty.  To be freed with nbd_uri_free. */
int nbd_uri_parse(const char *text, enum nbd_uri_origin origin, struct nbd_uri *out,
                  struct diag *diag) MUST_USE;

/* The canonical text, which parses to the same parts; the caller frees it.  NULL when
 * memory is short.  Of parts that were not parsed, and may be anything, it makes a text
 * that means just them, or is refused when it is parsed. */
char *nbd_uri_print(const struct nbd_uri *uri) MUST_USE;

/* Harmless on one that is empty. */
void nbd_uri_free(struct nbd_uri *uri);

static inline void cleanup_nbd_uri(struct nbd_uri *uri)
{
    nbd_uri_free(uri);
}
#define CLEANUP_NBD_URI CLEANUP(cleanup_nbd_uri)

#endif
