/* SPDX-License-Identifier: BSD-3-Clause */
/* Ceph keys that the user has given to the process under names (qimg's --object secret), to which
 * descriptions of images refer (key-secret, json_name.h).  The keys stay with their owner, which
 * registers a function that looks one up.
 *
 * Threads: set before the first image is opened.  Layer: storage. */
#ifndef STORAGE_RBD_KEYS_H
#define STORAGE_RBD_KEYS_H

/* Returns the key of this name in base64, as Ceph writes it; to be freed.  NULL: there is none. */
typedef char *rbd_key_finder(void *opaque, const char *name);

void rbd_keys_set_finder(rbd_key_finder *find, void *opaque);

/* Calls the registered function; NULL if there is none. */
char *rbd_keys_find(const char *name);

#endif
