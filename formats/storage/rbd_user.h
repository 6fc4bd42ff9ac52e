/* SPDX-License-Identifier: BSD-3-Clause */
/* The Ceph user for images whose name doesn't give one.  Threads: any.  Layer: storage. */
#ifndef STORAGE_RBD_USER_H
#define STORAGE_RBD_USER_H

/* The user in the environment variable CEPH_ARGS (--id, --user, --name client.ID), as Ceph's own
 * programs take it; without "client."; to be freed.  NULL: it has none, or memory is short. */
char *rbd_user_of_environment(void);

#endif
