/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening what a disk is mirrored to. */
#include "control_target.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "storage/nbd.h"

/* A mirror has 16 operations in flight at most; more connections bring nothing. */
#define NBD_CONNECTIONS 4
#define SECTOR          512u
/* Who started the job waits for the first. */
#define CONNECT_MS 5000

static int open_nbd(const struct target_request *request, struct node **out,
                    struct diag *diag)
{
    const struct nbd_open how = {.connections = NBD_CONNECTIONS,
                                 .connect_ms = CONNECT_MS,
                                 .give_up = request->give_up};
    const struct node_options options = {.lock_off = true};
    struct storage *st;
    const struct driver *driver;

    int err = storage_open_nbd(request->target, &how, &st, diag);
    if (err)
        return err;
    if (storage_nbd_info(st)->is_self)
        err =
            diag_set(diag, EINVAL,
                     "target: %s: is an export of this server: a disk can't be mirrored to "
                     "itself",
                     request->target);
    if (!err)
        err = chain_find_driver(st, request->format, &driver, diag);
    if (err) {
        storage_close(st);
        return err;
    }
    return node_open(request->source->ctx, driver, st, request->target, &options, out,
                     diag);
}

/* Making a file over one of the chain would destroy what is to be copied. */
static int check_not_in_chain(const struct target_request *request, struct diag *diag)
{
    const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *file = NULL;
    uint64_t device, inode, other_device, other_inode;
    struct diag ignored;

    if (storage_open_file(request->target, &how, &file, &ignored) ||
        storage_identity(file, &device, &inode))
        return 0;
    for (struct node *node = request->source; node; node = node->backing)
        if (storage_identity(node->file, &other_device, &other_inode) == 0 &&
            device == other_device && inode == other_inode)
            return diag_set(diag, EBUSY, "%s: is part of the disk that is to be mirrored",
                            request->target);
    return 0;
}

/* Other formats have whole sectors. */
static int check_size(const struct target_request *request, const struct driver *driver,
                      struct diag *diag)
{
    if (!driver_can(driver, DRIVER_CLUSTERS) || request->source->size % SECTOR == 0)
        return 0;
    return diag_set(diag, EINVAL,
                    "%s: the disk's %" PRIu64 " bytes are no multiple of %u, as %s images "
                    "have them: say format=raw",
                    request->target, request->source->size, SECTOR, driver->name);
}

/* A raw file that was made may be rounded up to whole sectors. */
static int cut_to_size(const struct target_request *request, struct diag *diag)
{
    const struct storage_open how = {0};
    CLEANUP_STORAGE struct storage *file = NULL;

    int err = storage_open_file(request->target, &how, &file, diag);
    if (err)
        return err;
    err = storage_truncate(file, request->source->size);
    return err ? diag_errno(diag, -err, "%s", request->target) : 0;
}

static int make_file(const struct target_request *request, struct diag *diag)
{
    const struct driver *driver = driver_find(request->format);
    const struct node *below = request->with_backing ? request->source->backing : NULL;
    struct create_request create = {
        .filename = request->target,
        .size = request->source->size,
        .backing_file = below ? below->filename : NULL,
        .backing_format = below ? below->driver->name : NULL,
    };

    if (!driver)
        return diag_set(diag, ENOTSUP, "%s: unknown format '%s'", request->target,
                        request->format);
    if (below && !driver_can(driver, DRIVER_BACKING))
        return diag_set(diag, EINVAL, "%s: %s images have no backing file", request->target,
                        driver->name);
    int err = check_size(request, driver, diag);
    if (!err)
        err = driver->create(&create, diag);
    if (!err && request->source->size % SECTOR != 0)
        err = cut_to_size(request, diag);
    return err;
}

/* "json:..." and the like are no names of files to be made. */
static int check_name(const struct target_request *request, struct diag *diag)
{
    const char *target = request->target;

    if (target[strcspn(target, ":/")] != ':')
        return 0;
    return diag_set(
        diag, ENOTSUP,
        "target: %s: only NBD URIs and local files can be targets; a file of that "
        "name would be ./%s",
        target, target);
}

static int open_file(const struct target_request *request, struct node **out,
                     struct diag *diag)
{
    const struct cache_mode *how = request->source->options.cache;
    /* What can't be changed once the file is open is as the source's; the rest is when the
     * target takes its place: a copy needn't be durable chunk by chunk. */
    const struct chain_options options = {
        .format = request->format,
        .give_up = request->give_up,
        .node = {.cache = cache_mode_find(how->direct ? "none" : "writeback"),
                 .need_check_delay_ns = request->source->options.need_check_delay_ns},
    };

    int err = check_name(request, diag);
    if (!err)
        err = check_not_in_chain(request, diag);
    if (!err && !request->existing)
        err = make_file(request, diag);
    return err ? err
               : chain_open(request->source->ctx, request->target, &options, out, diag);
}

int control_open_target(const struct target_request *request, struct node **out,
                        struct diag *diag)
{
    struct node *node = NULL;

    int err = nbd_uri_is_one(request->target) ? open_nbd(request, &node, diag)
                                              : open_file(request, &node, diag);
    if (!err)
        err = node_activate(node, diag);
    if (!err && (err = chain_start(node)) != 0)
        diag_errno(diag, -err, "%s: starting its threads", request->target);
    if (err)
        node_close(node);
    else
        *out = node;
    return err;
}
