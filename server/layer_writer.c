/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens a layer for writing. */
#include "layer_writer.h"

#include "block/chain.h"

int layer_writer_open(struct node *layer, const _Atomic bool *give_up, struct node **out,
                      struct diag *diag)
{
    struct chain_options options = {
        .format = node_format(layer),
        .protocol = node_protocol(layer),
        .no_backing = true,
        .give_up = give_up,
        .keys_of = layer,
        .node = layer->options,
    };

    /* Otherwise the first instance holds the lock for both. */
    options.node.lock_off |= !node_locks_apart(layer);
    int err = chain_open(layer->ctx, node_location(layer), &options, out, diag);
    if (err)
        return err;
    node_bitmaps_load(*out);
    err = node_activate(*out, diag);
    if (err)
        node_close(*out);
    return err;
}
