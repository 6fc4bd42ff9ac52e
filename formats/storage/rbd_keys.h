/* SPDX-License-Identifier: BSD-3-Clause */
/* Ceph's keys that the process was given under names, by which descriptions of images take them
 * (key-secret, json_name.h).  Who has them keeps them; they are asked for one by one.
 *
 * Threads: set before the first image is opened.  Layer: storage. */
#ifndef STORAGE_RBD_KEYS_H
#define STORAGE_RBD_KEYS_H

/* The key of that name as Ceph writes it, in base64; to be freed.  NULL: there is none. */
typedef char *rbd_key_finder(void *opaque, const char *name);

void rbd_keys_set_finder(rbd_key_finder *find, void *opaque);

/* As the finder, without which there are none. */
char *rbd_keys_find(const char *name);

#endif
