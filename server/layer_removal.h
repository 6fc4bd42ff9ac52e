/* SPDX-License-Identifier: BSD-3-Clause */
/* Removing a bitmap of a layer below the top of a disk, from memory and from its file.
 *
 * The layer is frozen: the disk reads it to the end.  Its file is written through a second
 * instance, which changes nothing of what the first one reads: the directory of bitmaps alone.  No
 * job runs on the disk meanwhile, and the layer is no other disk's.
 *
 * Threads: the control lane's.  Layer: server. */
#ifndef SERVER_LAYER_REMOVAL_H
#define SERVER_LAYER_REMOVAL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

struct layer_removal;
struct served_export;

/* Is that the name of a layer below the top?  One that is the disk's, too, means the layer when
 * that has such a bitmap, and the disk hasn't. */
bool layer_removal_is_one(struct served_export *exp, const char *node_name,
                          const char *bitmap);

/* What may take long or wait.  `earlier`: another on the same disk that isn't finished yet, and is
 * finished behind this one; NULL: none.  The name is borrowed.  0 or -errno with diag; then there
 * is nothing to finish. */
int layer_removal_open(struct served_export *exp, const char *node_name, const char *bitmap,
                       struct layer_removal *earlier, const _Atomic bool *give_up,
                       struct layer_removal **out, struct diag *diag) MUST_USE;

/* Nobody else has the bitmap from here on to commit or abort.  -errno with diag: nor has this. */
int layer_removal_prepare(struct layer_removal *r, struct diag *diag) MUST_USE;
void layer_removal_abort(struct layer_removal *r);

/* It is gone from memory; its file says so by the end of layer_removal_finish. */
void layer_removal_commit(struct layer_removal *r);

/* In any case, the last first.  What can't be written is logged: the file has the bitmap still. */
void layer_removal_finish(struct layer_removal *r);

#endif
