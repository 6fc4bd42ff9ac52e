/* SPDX-License-Identifier: BSD-3-Clause */
/* Who asks Ceph when an image's name doesn't say it.  Threads: any.  Layer: storage. */
#ifndef STORAGE_RBD_USER_H
#define STORAGE_RBD_USER_H

/* Without "client.", as CEPH_ARGS has it for Ceph's own programs (--id, --user, --name client.ID);
 * to be freed.  NULL: it doesn't say, or memory is short. */
char *rbd_user_of_environment(void);

#endif
