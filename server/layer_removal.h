/* SPDX-License-Identifier: BSD-3-Clause */
/* Removes a dirty bitmap of a layer below the top of a disk, from memory and from the layer's
 * file.
 *
 * The layer is frozen, and the disk goes on reading it.  Its file is written through a second
 * instance, which changes nothing that the first one reads: only the directory of bitmaps.
 * Meanwhile no job runs on the disk, and no other disk uses the layer.
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

/* Does node_name mean a layer below the top?  A name that is also the disk's means the layer only
 * if the layer has such a bitmap and the disk doesn't. */
bool layer_removal_is_one(struct served_export *exp, const char *node_name,
                          const char *bitmap);

/* The step that may take long or wait.  `earlier`: the previous removal on the same disk, which
 * isn't finished and will be finished after this one; NULL: none.  `bitmap` is borrowed.  On
 * failure, -errno with diag, there is nothing to finish. */
int layer_removal_open(struct served_export *exp, const char *node_name, const char *bitmap,
                       struct layer_removal *earlier, const _Atomic bool *give_up,
                       struct layer_removal **out, struct diag *diag) MUST_USE;

/* From here to commit or abort nobody else can use the bitmap.  On -errno, with diag, nothing is
 * held. */
int layer_removal_prepare(struct layer_removal *r, struct diag *diag) MUST_USE;
void layer_removal_abort(struct layer_removal *r);

/* Removes the bitmap from memory; the file changes in layer_removal_finish. */
void layer_removal_commit(struct layer_removal *r);

/* Must be called in any case, in reverse order of opening.  A write that fails is logged; then the
 * file still has the bitmap. */
void layer_removal_finish(struct layer_removal *r);

#endif
