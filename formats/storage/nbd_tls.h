/* SPDX-License-Identifier: BSD-3-Clause */
/* The keys that this process has for NBD connections with TLS whose URI doesn't name its
 * own: backing files' (whose URI may be an image's) and those of mirrors.
 *
 * Without any, libnbd looks where GnuTLS programs of the user and the system have their
 * certificates.  Threads: set once, before the first connection.  Layer: storage. */
#ifndef STORAGE_NBD_TLS_H
#define STORAGE_NBD_TLS_H

#include "storage/nbd_uri.h"

/* Copies nothing: what it points to stays as it is until the end. */
void nbd_tls_set_default(const struct nbd_tls_choice *keys);

/* Keys that have a name, by which descriptions of exports take them (tls-creds, json_name.h).
 * Takes over what *keys owns, which stays until the end.  0 or -ENOMEM. */
int nbd_tls_add_named(const char *name, struct nbd_tls_choice *keys) MUST_USE;

/* NULL: there are none of that name. */
const struct nbd_tls_choice *nbd_tls_find_named(const char *name);

/* What a connection to the URI uses: its own choice, and the default where it has none.  A
 * key file or folder of the URI replaces both of the default. */
struct nbd_tls_choice nbd_tls_choose(const struct nbd_uri *uri);

#endif
