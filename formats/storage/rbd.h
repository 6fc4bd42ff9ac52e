/* SPDX-License-Identifier: BSD-3-Clause */
/* A store that is an image on Ceph RBD.
 *
 * Requests are asynchronous in librbd; a caller waits for his own, so that as many are in
 * flight as there are callers.  But writes that needn't be durable (no STORAGE_FUA, not opened
 * `direct`) are answered when they are under way; their bytes are kept until the cluster has
 * them, and what fails is tried again (rbd_early.c): a flush waits for all, and fails as long as
 * one does.  librbd's own cache is off, whatever Ceph's configuration says: it can forget to
 * tell that a write failed.
 *
 * Time.  Ceph asks again until a cluster answers: an OSD that dies and comes back, or whose
 * place another takes, costs time and no error.  A caller waits no longer for one answer than
 * `rados_osd_op_timeout` of Ceph's configuration says (seconds), or, where that is 0, as
 * Ceph has it, for RBD_DEFAULT_TIMEOUT: -ETIMEDOUT.  What he asked for stays with librbd, with
 * buffers of its own; a change may still be made then, but before any that is asked for
 * later.
 *
 * Space.  A pool that is full, or over its quota, is -ENOSPC or -EDQUOT for what needs more
 * of it, and can be written again when that was mended.
 *
 * Locks are Ceph's exclusive lock, which a writer takes and doesn't give to who asks for it.
 * A reader only looks whether somebody has it: others can write to the image before he becomes a
 * writer (lets_writers_in in storage.h).
 *
 * Others.  Who has an image open watches it, also to read it where he may: so that Ceph doesn't
 * remove it, reads of a snapshot that was removed fail, and a size that another client has
 * changed is known; what lies past the end reads as zeroes, and is made again by who writes
 * there.  Of a client that is blocklisted all fails with -ESHUTDOWN.
 *
 * Forks.  librados has threads from the first moment on, which a fork doesn't copy: before
 * one storage_rest closes the connection, and storage_start makes it anew.
 *
 * Threads: every function from any thread at once, but not storage_close, storage_rest and
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
/* Of the library that runs, which is loaded for that; NULL: it isn't installed. */
const char *librbd_version(void);

/* As storage_open_file.  -ENOPKG: librbd isn't installed; -ENOTSUP: it wasn't built in. */
int storage_open_rbd(const char *name, const struct storage_open *how, struct storage **out,
                     struct diag *diag) MUST_USE;

/* Makes an image of no bytes, as Ceph's configuration has it for new ones, and opens it
 * read/write.  -EEXIST: there is one already. */
int storage_create_rbd(const char *name, struct storage **out, struct diag *diag) MUST_USE;

/* Opens an image that is there read/write, takes its lock and then all its bytes away. */
int storage_empty_rbd(const char *name, struct storage **out, struct diag *diag) MUST_USE;

bool storage_is_rbd(const struct storage *st);

/* Removes an image that is closed; one that can't be removed stays. */
void storage_remove_rbd(const char *name);

#endif
