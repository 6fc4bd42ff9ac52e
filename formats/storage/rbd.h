/* SPDX-License-Identifier: BSD-3-Clause */
/* A store that is an image on Ceph RBD.
 *
 * Requests.  They are asynchronous in librbd, and each caller waits for its own, so that as many
 * requests are in flight as there are callers.  Writes that needn't be durable (no STORAGE_FUA, not
 * opened `direct`) may be answered early: as soon as librbd has them.  Their bytes are kept until
 * the cluster has them, and failed ones are tried again (rbd_early.c).  A flush waits for all of
 * them, and fails as long as one of them does.  librbd's own cache is always off, because it may
 * not report that a write has failed.
 *
 * Time.  librados repeats requests until the cluster answers, so an OSD that dies and is restarted
 * or replaced causes a delay and no error.  A caller waits for one request no longer than
 * `rados_osd_op_timeout` of Ceph's configuration (seconds), or RBD_DEFAULT_TIMEOUT where that is 0,
 * Ceph's default; then it gets -ETIMEDOUT.  The request stays with librbd, with its own buffer.  A
 * change may still be made after that, but always before any later change.
 *
 * Space.  Requests that need space in a pool that is full or over its quota fail with -ENOSPC or
 * -EDQUOT; they succeed again when there is space.
 *
 * Locks.  A writer takes Ceph's exclusive lock, and doesn't hand it over to clients that ask for
 * it.  A reader only checks whether another client has the lock: others can write to the image
 * until it becomes a writer (lets_writers_in in storage.h).
 *
 * Other clients.  An open image is watched, even for reading if that is permitted.  Therefore Ceph
 * doesn't remove it, reads of a removed snapshot fail, and changes of the size by other clients are
 * noticed: behind a smaller end the image reads as zeroes, and writes there grow it again.  After
 * the cluster has blocklisted this client, all requests fail with -ESHUTDOWN.
 *
 * Forks.  librados starts threads at once, and a fork doesn't copy them: before a fork storage_rest
 * closes the connection, and storage_start opens it again.
 *
 * Threads: any function from any thread at the same time, except storage_close, storage_rest and
 * storage_start.  Layer: storage. */
#ifndef STORAGE_RBD_H
#define STORAGE_RBD_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "storage/rbd_name.h"
#include "storage/storage.h"

#define RBD_DEFAULT_TIMEOUT 60000u /* ms */

/* Was it built in? */
extern const bool rbd_is_there;
/* The version of the installed library, which is loaded for this; NULL: it isn't installed. */
const char *librbd_version(void);

/* Like storage_open_file.  -ENOPKG: librbd isn't installed; -ENOTSUP: RBD wasn't built in. */
int storage_open_rbd(const char *name, const struct storage_open *how, struct storage **out,
                     struct diag *diag) MUST_USE;

/* Creates an image of 0 bytes, with the defaults of Ceph's configuration for new images, and
 * opens it read/write.  -EEXIST: it exists already. */
int storage_create_rbd(const char *name, struct storage **out, struct diag *diag) MUST_USE;

/* Opens an existing image read/write, takes its lock, and truncates it to 0 bytes. */
int storage_empty_rbd(const char *name, struct storage **out, struct diag *diag) MUST_USE;

bool storage_is_rbd(const struct storage *st);

/* Removes an image that isn't open.  An error is only logged. */
void storage_remove_rbd(const char *name);

#endif
