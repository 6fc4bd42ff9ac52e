/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates and opens the files of overlays. */
#include "overlay_file.h"

#include "base/path.h"
#include "block/chain.h"
#include "storage/protocol.h"

int overlay_make_file(const struct node *old, const char *file, const char *format,
                      struct diag *diag)
{
    const struct create_request create = {
        .filename = file,
        .size = old->size,
        .exact_size = true,
        .backing_file = old->filename,
        .backing_format = node_format(old),
    };

    int err = create_image(driver_find(format), &create, diag);
    if (err)
        return err;
    err = path_sync_folder(file);
    if (err) {
        overlay_remove_file(file);
        return diag_errno(diag, -err, "%s: making its name durable", file);
    }
    return 0;
}

void overlay_remove_file(const char *file)
{
    storage_protocol_file.remove(file);
}

int overlay_open_file(const struct node *old, const char *file, const char *format,
                      enum references policy, struct node **out, struct diag *diag)
{
    const struct chain_options options = {
        .format = format,
        .no_backing = true,
        .references = policy,
        .node = old->options,
    };

    return chain_open(old->ctx, file, &options, out, diag);
}
