/* SPDX-License-Identifier: BSD-3-Clause */
/* This process's TLS keys for NBD connections whose URI names none: backing files (whose URI
 * may come from an image) and targets of mirrors.
 *
 * Without any, libnbd looks in the default places for certificates of the user and the system.
 * Threads: set once, before the first connection.  Layer: storage. */
#ifndef STORAGE_NBD_TLS_H
#define STORAGE_NBD_TLS_H

#include "storage/nbd_uri.h"

/* Copies nothing: what *keys points to has to stay valid until the process ends. */
void nbd_tls_set_default(const struct nbd_tls_choice *keys);

/* Adds keys with a name, by which descriptions of exports choose them (tls-creds, json_name.h).
 * Takes over what *keys owns, until the process ends.  Returns 0 or -ENOMEM. */
int nbd_tls_add_named(const char *name, struct nbd_tls_choice *keys) MUST_USE;

/* NULL: there are none of that name. */
const struct nbd_tls_choice *nbd_tls_find_named(const char *name);

/* The keys for a connection to the URI: its own, and the default where it has none.  A key file
 * or folder of the URI replaces both of the default. */
struct nbd_tls_choice nbd_tls_choose(const struct nbd_uri *uri);

#endif
