/* SPDX-License-Identifier: BSD-3-Clause */
/* The files of an opened chain: describing them, finding one among them, and what is done to all
 * of them around a fork and at the end. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/chain_internal.h"
#include "storage/protocol.h"
#include "storage/rbd.h"

static int describe_layer(const struct node *node, struct reference **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return -ENOMEM;
    **out = (struct reference){
        .path = strdup(node_location(node)),
        .protocol = node_protocol(node),
        .format = node_format(node),
        .given = true,
    };
    return (*out)->path ? 0 : -ENOMEM;
}

int chain_describe_below(const struct node *node, struct reference *out)
{
    struct reference *at = out;

    *out = (struct reference){.given = true};
    for (; node->backing; node = node->backing, at = at->below) {
        int err = describe_layer(node->backing, &at->below);
        if (err) {
            reference_free(out);
            return err;
        }
    }
    at->none_below = true;
    return 0;
}

static bool is_at(const struct storage *st, const char *place)
{
    return st && storage_is_rbd(st) && strcmp(st->name, place) == 0;
}

/* Does the chain have this RBD image?  Compares its place, without connecting to the cluster. */
static bool has_place(const struct node *node, const char *text)
{
    CLEANUP_RBD_NAME struct rbd_name name = {0};

    if (rbd_name_parse(text, RBD_NAME_USER, &name, NULL))
        return false;
    CLEANUP_FREE char *place = rbd_name_print_place(&name);
    while (place && node && !is_at(node->file, place) && !is_at(node->data_file, place))
        node = node->backing;
    return place && node;
}

bool chain_has_store(const struct node *top, struct storage *st)
{
    for (const struct node *node = top; node; node = node->backing)
        if (storage_is_same(st, node->file) ||
            (node->data_file && storage_is_same(st, node->data_file)))
            return true;
    return false;
}

bool chain_has_file(struct node *top, const char *path)
{
    const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *file = NULL;
    struct diag ignored;

    if (rbd_name_is_one(path))
        return has_place(top, path);
    return storage_open_file(path, &how, &file, &ignored) == 0 &&
           chain_has_store(top, file);
}

void chain_rest(struct node *top)
{
    for (struct node *node = top; node; node = node->backing) {
        storage_rest(node->file);
        if (node->data_file)
            storage_rest(node->data_file);
    }
}

int chain_start(struct node *top)
{
    int err = 0;

    for (struct node *node = top; node && !err; node = node->backing) {
        err = storage_start(node->file);
        if (!err && node->data_file)
            err = storage_start(node->data_file);
    }
    return err;
}

void chain_abandon_servers(struct node *node)
{
    for (; node; node = node->backing) {
        storage_abort(node->file);
        if (node->data_file)
            storage_abort(node->data_file);
    }
}
