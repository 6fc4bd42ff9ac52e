/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots: naming them, and opening one as a node. */
#include "block/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/engine.h"

int node_snapshots(struct node *node, struct snapshot_list *out)
{
    *out = (struct snapshot_list){0};
    if (!node_can(node, DRIVER_SNAPSHOTS))
        return 0;
    int err = node->driver->snapshots(node, out);
    if (err)
        snapshot_list_free(out);
    return err;
}

void snapshot_list_free(struct snapshot_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        snapshot_info_free(&list->list[i]);
    free(list->list);
    *list = (struct snapshot_list){0};
}

void snapshot_info_free(struct snapshot_info *info)
{
    free(info->id);
    free(info->name);
    info->id = info->name = NULL;
}

int node_check_no_snapshots(struct node *layer, struct diag *diag)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};

    int err = node_snapshots(layer, &list);
    if (err)
        return diag_errno(diag, -err, "%s", layer->filename);
    return list.n == 0
               ? 0
               : diag_set(diag, EBUSY,
                          "%s: has internal snapshots, which need what lies below it as it "
                          "is",
                          layer->filename);
}

/* ---- names ---- */

const struct snapshot_info *snapshot_find(const struct snapshot_list *list,
                                          const char *name)
{
    const struct snapshot_info *named = NULL, *with_id = NULL;

    for (size_t i = 0; i < list->n; i++) {
        const struct snapshot_info *s = &list->list[i];
        if (strcmp(s->name, name) == 0) {
            if (named)
                return NULL; /* ambiguous */
            named = s;
        }
        if (!with_id && strcmp(s->id, name) == 0)
            with_id = s;
    }
    return named ? named : with_id;
}

const char *snapshot_export_name(const struct snapshot_list *list, size_t i)
{
    const struct snapshot_info *s = &list->list[i];

    if (s->name[0] && snapshot_find(list, s->name) == s)
        return s->name;
    return snapshot_find(list, s->id) == s ? s->id : NULL;
}

/* ---- as a node ---- */

/* A name for messages: "disk.qcow2: snapshot 'first'". */
static char *full_name(const struct node *of, const char *name)
{
    char *text;

    return asprintf(&text, "%s: snapshot '%.200s'", of->filename, name) < 0 ? NULL : text;
}

/* A snapshot's node uses the file, geometry and cipher of its image. */
static void borrow(struct node *snapshot, struct node *of)
{
    snapshot->snapshot_of = of;
    snapshot->file = of->file;
    snapshot->data = of->data;
    snapshot->cluster_size = of->cluster_size;
    snapshot->subcluster_size = of->subcluster_size;
    snapshot->codec = of->codec;
    snapshot->cipher = of->cipher;
    snapshot->cipher_by_place = of->cipher_by_place;
    snapshot->encryption = of->encryption;
    snapshot->host_zeroes_show = of->host_zeroes_show;
    snapshot->cannot = "it is a snapshot";
}

static void give_back(struct node *snapshot)
{
    snapshot->file = snapshot->data = NULL;
    snapshot->cipher = NULL;
    snapshot->backing = NULL;
}

/* Adds it to the list, from which node_set_below updates its backing node. */
static void join(struct node *snapshot, struct node *of)
{
    LOCK_GUARD(&of->snapshots.lock);
    snapshot->openers = 1;
    snapshot->backing = of->backing;
    list_append(&of->snapshots.list, &snapshot->snapshot_link);
}

/* Was this the last close? */
static bool leave(struct node *snapshot)
{
    LOCK_GUARD(&snapshot->snapshot_of->snapshots.lock);
    if (--snapshot->openers > 0)
        return false;
    list_remove(&snapshot->snapshot_link);
    return true;
}

/* Returns the snapshot's node if it is open, and counts one more opener. */
static struct node *open_again(struct node *of, uint64_t key)
{
    LOCK_GUARD(&of->snapshots.lock);
    LIST_FOR_EACH (pos, &of->snapshots.list) {
        struct node *snapshot = CONTAINER_OF(pos, struct node, snapshot_link);
        if (snapshot->snapshot_key == key) {
            snapshot->openers++;
            return snapshot;
        }
    }
    return NULL;
}

void node_set_below(struct node *layer, struct node *below)
{
    LOCK_GUARD(&layer->snapshots.lock);
    layer->backing = below;
    LIST_FOR_EACH (pos, &layer->snapshots.list)
        CONTAINER_OF(pos, struct node, snapshot_link)->backing = below;
}

static int open_anew(struct node *of, const struct snapshot_info *info, const char *name,
                     struct node **out, struct diag *diag)
{
    CLEANUP_FREE char *filename = full_name(of, name);
    struct node *snapshot =
        filename ? node_new(of->ctx, of->driver, filename, &of->options) : NULL;

    if (!snapshot)
        return diag_errno(diag, ENOMEM, "%s", of->filename);
    borrow(snapshot, of);
    snapshot->snapshot_key = info->key;
    int err = of->driver->open_snapshot(snapshot, diag);
    if (err) {
        give_back(snapshot);
        node_free(snapshot);
        return err;
    }
    join(snapshot, of);
    *out = snapshot;
    return 0;
}

int node_open_snapshot(struct node *of, const char *name, struct node **out,
                       struct diag *diag)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};

    if (node_snapshots(of, &list))
        return diag_errno(diag, ENOMEM, "%s", of->filename);
    const struct snapshot_info *info = snapshot_find(&list, name);
    if (!info)
        return diag_set(diag, ENOENT, "%s: there is no snapshot '%.200s'%s", of->filename,
                        name, list.n ? ", or more than one" : "");
    *out = open_again(of, info->key);
    return *out ? 0 : open_anew(of, info, name, out, diag);
}

void node_close_snapshot(struct node *snapshot)
{
    if (!leave(snapshot))
        return;
    snapshot->snapshot_of->driver->close_snapshot(snapshot);
    give_back(snapshot);
    node_free(snapshot);
}

/* ---- changing snapshots ---- */

static int check_request(const struct node *node, const struct snapshot_request *request,
                         struct diag *diag)
{
    if (!node_can(node, DRIVER_SNAPSHOTS))
        return diag_set(diag, ENOTSUP, "%s: %s images have no snapshots", node->filename,
                        node_format(node));
    if (!node->active)
        return diag_set(diag, EROFS, "%s: is open for reading only", node->filename);
    if (mcache_health(node->mc))
        return diag_set(diag, EIO, "%s: writes to it have failed", node->filename);
    if (request->kind == SNAPSHOT_CREATE && strlen(request->name) > SNAPSHOT_NAME_MAX)
        return diag_set(diag, EINVAL, "%s: snapshot '%.60s...': a name of over %d bytes",
                        node->filename, request->name, SNAPSHOT_NAME_MAX);
    return 0;
}

static void free_change(struct snapshot_change *change)
{
    snapshot_info_free(&change->info);
    free(change);
}

int node_begin_snapshot(struct node *node, const struct snapshot_request *request,
                        struct snapshot_change **out, struct diag *diag)
{
    int err = check_request(node, request, diag);
    if (err)
        return err;
    struct snapshot_change *change = calloc(1, sizeof *change);
    if (!change)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    *change = (struct snapshot_change){.node = node, .kind = request->kind};
    err = node->driver->begin_snapshot(change, request, diag);
    if (err)
        free_change(change);
    else
        *out = change;
    return err;
}

int node_prepare_snapshot(struct snapshot_change *change, struct diag *diag)
{
    return change->node->driver->prepare_snapshot(change, diag);
}

void node_commit_snapshot(struct snapshot_change *change)
{
    change->node->driver->commit_snapshot(change);
}

void node_abort_snapshot(struct snapshot_change *change)
{
    change->node->driver->abort_snapshot(change);
}

int node_finish_snapshot(struct snapshot_change *change, bool committed, struct diag *diag)
{
    int err = change->node->driver->finish_snapshot(change, committed, diag);

    free_change(change);
    return err;
}

struct snapshot_info snapshot_change_take_info(struct snapshot_change *change)
{
    struct snapshot_info info = change->info;

    change->info = (struct snapshot_info){0};
    return info;
}

static int change_once(struct node *node, const struct snapshot_request *request,
                       struct snapshot_info *info, struct diag *diag)
{
    struct snapshot_change *change;
    struct diag ignored;

    int err = node_begin_snapshot(node, request, &change, diag);
    if (err)
        return err;
    err = node_prepare_snapshot(change, diag);
    if (err) {
        (void)node_finish_snapshot(change, false, &ignored);
        return err;
    }
    struct snapshot_info told = snapshot_change_take_info(change);
    node_commit_snapshot(change);
    err = node_finish_snapshot(change, true, diag);
    if (err || !info)
        snapshot_info_free(&told);
    else
        *info = told;
    return err;
}

int node_change_snapshot(struct node *node, const struct snapshot_request *request,
                         struct snapshot_info *info, struct diag *diag)
{
    const struct snapshot_request tidy = {.kind = SNAPSHOT_TIDY};
    struct diag ignored;

    int err = change_once(node, request, info, diag);
    /* If this fails, the next change or the closing of the image does it. */
    if (!err && request->kind == SNAPSHOT_DELETE)
        (void)!change_once(node, &tidy, NULL, &ignored);
    return err;
}
