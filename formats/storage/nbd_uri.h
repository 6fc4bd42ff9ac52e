/* SPDX-License-Identifier: BSD-3-Clause */
/* NBD URIs: their syntax and their parts.
 *
 *     nbd://HOST[:PORT][/EXPORT]            TCP; no HOST means localhost, no PORT 10809
 *     nbds://[USER@]HOST[:PORT][/EXPORT]    the same with TLS, which is then required
 *     nbd+unix:///[EXPORT]?socket=PATH      a Unix socket
 *     nbds+unix://[USER@]/[EXPORT]?socket=PATH
 *
 * and the older form that images may contain, where nothing is encoded and EXPORT may have any
 * character:
 *
 *     nbd:HOST:PORT[:exportname=EXPORT]
 *     nbd:unix:PATH[:exportname=EXPORT]
 *
 * With TLS, a user may add the parameters tls-certificates=FOLDER, tls-psk-file=FILE,
 * tls-verify-peer=true|false and tls-hostname=NAME, which override those of nbd_tls.h.  An
 * image may use neither them nor a USER: it must not choose which keys of the host are used.
 * Nor may it use x-dirty-bitmap=CONTEXT, with which users see another meta context of the
 * server instead of base:allocation (storage_marks).
 *
 * Everything else is rejected: other schemes, fragments, other parameters.  The parts are
 * passed to libnbd one by one and never as text again, so that no second parser can interpret a
 * name differently.
 *
 * Threads: any.  Layer: storage. */
#ifndef STORAGE_NBD_URI_H
#define STORAGE_NBD_URI_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

/* The longest accepted URI, in bytes: enough for an export name of which each byte is encoded. */
#define NBD_URI_MAX 16384

/* The protocol's limit for strings, in bytes. */
#define NBD_EXPORT_NAME_MAX 4096

/* Choices for a connection with TLS.  NULL or 0: not chosen. */
struct nbd_tls_choice {
    char *certificates; /* folder, absolute */
    char *psk_file;     /* absolute */
    char *username;     /* for the pre-shared key */
    char *hostname;     /* expected in the server's certificate, if not the host's name */
    int verify;         /* 1: the server's certificate is verified, -1: it isn't */
};

/* The author of a URI. */
enum nbd_uri_origin {
    NBD_URI_USER,
    NBD_URI_IMAGE, /* found inside an image: the path of a socket must be absolute */
};

struct nbd_uri {
    char *socket;      /* absolute path, or NULL: TCP */
    char *host;        /* NULL with a socket; an IPv6 address has no brackets */
    char port[6];      /* decimal, 1..65535 */
    char *export_name; /* never NULL; free of control characters */
    bool tls;
    struct nbd_tls_choice keys; /* owned; only with tls */
    char *context;              /* the requested meta context; NULL: base:allocation */
};

/* Does the text begin like an NBD URI, of any scheme for NBD? */
bool nbd_uri_is_one(const char *text);

/* Parses the text.  A user's relative socket path is made absolute here, before a server
 * changes its current directory.  Returns 0, or -EINVAL, -ENOTSUP, -EACCES, -ENAMETOOLONG,
 * -ENOMEM with diag and *out empty.  To be freed with nbd_uri_free. */
int nbd_uri_parse(const char *text, enum nbd_uri_origin origin, struct nbd_uri *out,
                  struct diag *diag) MUST_USE;

/* The canonical text, which parses to the same parts; the caller frees it.  NULL when memory is
 * short.  Parts that weren't parsed may have any content: the text then means exactly them, or
 * is rejected when it is parsed. */
char *nbd_uri_print(const struct nbd_uri *uri) MUST_USE;

/* May be called for an empty one. */
void nbd_uri_free(struct nbd_uri *uri);

static inline void cleanup_nbd_uri(struct nbd_uri *uri)
{
    nbd_uri_free(uri);
}
#define CLEANUP_NBD_URI CLEANUP(cleanup_nbd_uri)

#endif
