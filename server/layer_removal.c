/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the bitmap of a layer, and writes to the layer's file. */
#include "layer_removal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "block/dirty_bitmap.h"
#include "control_chain.h"
#include "export.h"
#include "layer_writer.h"

/* Several removals from one layer share its second instance: the first one opens and closes it. */
struct layer_removal {
    struct served_export *exp;
    const char *name;
    struct layer_removal *earlier; /* on the same disk; the first one holds the claim */
    bool claimed;
    struct node *layer, *writer; /* writer NULL: the bitmap isn't in a file */
    bool owns_writer;
    struct dirty_bitmap *shown, *stored; /* set from prepare on: one of them, or both */
    bool removed; /* of the one that owns the writer: its file must be written */
};

/* ---- which ---- */

/* The layer of that name below `top`; NULL: none. */
static struct node *find_below(struct served_export *exp, struct node *top,
                               const char *node_name)
{
    struct node *layer = control_find_in_chain(exp, top, node_name);

    return layer == top ? NULL : layer;
}

bool layer_removal_is_one(struct served_export *exp, const char *node_name,
                          const char *bitmap)
{
    CHAIN_USE(chain, exp);
    struct node *top = chain.use.node, *layer = find_below(exp, top, node_name);
    bool is_disks = strcmp(exp->node_name, node_name) == 0;

    if (!layer || !is_disks)
        return layer;
    return !node_bitmap_find(top, bitmap) && node_bitmap_find(layer, bitmap);
}

/* ---- writing to the layer ---- */

static struct layer_removal *find_same_layer(struct layer_removal *r)
{
    struct layer_removal *other = r->earlier;

    while (other && !(other->layer == r->layer && other->owns_writer))
        other = other->earlier;
    return other;
}

static int open_writer(struct layer_removal *r, const _Atomic bool *give_up,
                       struct diag *diag)
{
    struct node *layer = r->layer;

    int err = export_check_changes(r->exp, diag);
    if (!err)
        err = node_end_writing(layer, diag);
    if (!err)
        err = node_lock_for_writing(layer, diag);
    if (err)
        return err;
    err = layer_writer_open(layer, give_up, &r->writer, diag);
    if (err)
        node_unlock_for_writing(layer);
    r->owns_writer = !err;
    return err;
}

static bool is_in_memory_alone(struct node *layer, const char *name)
{
    const struct dirty_bitmap *bitmap = node_bitmap_find(layer, name);

    return bitmap && !dirty_bitmap_persistent(bitmap);
}

static int reach_file(struct layer_removal *r, const _Atomic bool *give_up,
                      struct diag *diag)
{
    struct layer_removal *same = find_same_layer(r);

    if (!node_can(r->layer, DRIVER_BITMAPS) || is_in_memory_alone(r->layer, r->name))
        return 0;
    if (node_is_remote(r->layer))
        return diag_set(diag, ENOTSUP,
                        "%s: is an NBD export: only local files are opened for writing",
                        r->layer->filename);
    if (!same)
        return open_writer(r, give_up, diag);
    r->writer = same->writer;
    return 0;
}

/* ---- the steps ---- */

static int claim(struct layer_removal *r, const char *node_name, struct diag *diag)
{
    struct node *top;
    int err = r->earlier ? 0 : export_claim(r->exp, 0, &top, diag);

    if (err)
        return err;
    r->claimed = !r->earlier;
    CHAIN_USE(chain, r->exp);
    r->layer = find_below(r->exp, chain.use.node, node_name);
    return r->layer
               ? 0
               : diag_set(diag, ENOENT, "Node '%.200s' is no layer any more", node_name);
}

int layer_removal_open(struct served_export *exp, const char *node_name, const char *bitmap,
                       struct layer_removal *earlier, const _Atomic bool *give_up,
                       struct layer_removal **out, struct diag *diag)
{
    struct layer_removal *r = calloc(1, sizeof *r);

    if (!r)
        return diag_errno(diag, ENOMEM, "bitmap '%.200s'", bitmap);
    *r = (struct layer_removal){.exp = exp, .name = bitmap, .earlier = earlier};
    int err = claim(r, node_name, diag);
    if (!err)
        err = reach_file(r, give_up, diag);
    if (err)
        layer_removal_finish(r);
    else
        *out = r;
    return err;
}

/* Holds the node's bitmap for removal.  *out NULL: the node has none of that name. */
static int acquire(struct node *node, const char *name, struct dirty_bitmap **out,
                   struct diag *diag)
{
    struct dirty_bitmap *bitmap = node ? node_bitmap_find(node, name) : NULL;
    int err = bitmap ? dirty_bitmap_acquire_to_remove(bitmap, diag) : 0;

    *out = err ? NULL : bitmap;
    return err;
}

int layer_removal_prepare(struct layer_removal *r, struct diag *diag)
{
    int err = acquire(r->layer, r->name, &r->shown, diag);

    if (!err)
        err = acquire(r->writer, r->name, &r->stored, diag);
    if (!err && !r->shown && !r->stored)
        err = diag_set(diag, ENOENT, "Dirty bitmap '%.200s' not found", r->name);
    if (err)
        layer_removal_abort(r);
    return err;
}

void layer_removal_abort(struct layer_removal *r)
{
    if (r->shown)
        dirty_bitmap_release(r->shown);
    if (r->stored)
        dirty_bitmap_release(r->stored);
    r->shown = r->stored = NULL;
}

void layer_removal_commit(struct layer_removal *r)
{
    struct layer_removal *owner = r->owns_writer ? r : find_same_layer(r);

    if (r->shown)
        node_bitmap_drop(r->layer, r->shown);
    if (!r->stored || !owner)
        return;
    node_bitmap_drop(r->writer, r->stored);
    owner->removed = true;
}

static void close_writer(struct layer_removal *r)
{
    struct diag diag = {0};

    int err = r->removed ? node_bitmaps_keep(r->writer, &diag) : 0;
    int close_err = node_close(r->writer);
    if (!err && close_err)
        err = diag_errno(&diag, -close_err, "%s: closing it", r->layer->filename);
    if (err)
        log_error("%s: a bitmap that was removed may still be there", diag.text);
    node_unlock_for_writing(r->layer);
}

void layer_removal_finish(struct layer_removal *r)
{
    if (r->owns_writer)
        close_writer(r);
    if (r->claimed)
        export_end_claim(r->exp);
    free(r);
}
