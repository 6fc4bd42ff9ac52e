/* SPDX-License-Identifier: BSD-3-Clause */
/* Preallocates the new end of a disk. */
#include "resize_prealloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli.h"

#define STEP (1u << 20)

static const char *const names[] = {[PREALLOCATION_OFF] = "off",
                                    [PREALLOCATION_METADATA] = "metadata",
                                    [PREALLOCATION_FALLOC] = "falloc",
                                    [PREALLOCATION_FULL] = "full"};

int preallocation_parse(const char *word, enum preallocation *out)
{
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(names[i], word) == 0) {
            *out = (enum preallocation)i;
            return CLI_OK;
        }
    return cli_error("Invalid preallocation mode '%s': it is off, metadata, falloc or full",
                     word);
}

const char *preallocation_name(enum preallocation mode)
{
    return names[mode];
}

bool preallocation_is_known(const struct node *node, enum preallocation mode)
{
    const struct create_option_info *o = node->driver->create_options;

    if (mode == PREALLOCATION_OFF)
        return true;
    while (o->name && strcmp(o->name, "preallocation") != 0)
        o++;
    return o->name && (mode != PREALLOCATION_METADATA || node_can(node, DRIVER_CLUSTERS));
}

static int write_zeroes(struct node *node, uint64_t off)
{
    CLEANUP_FREE void *zeroes = calloc(1, STEP);
    int err = zeroes ? 0 : -ENOMEM;

    for (uint64_t n; !err && off < node->size; off += n) {
        n = MIN(STEP, node->size - off);
        err = block_write(node, zeroes, off, n, 0);
    }
    return err;
}

/* Allocates blocks of the filesystem where the range is mapped. */
static int reserve_blocks(struct node *node, uint64_t off)
{
    struct block_status st;
    int err = 0;

    for (; !err && off < node->size; off += st.length) {
        err = block_status(node, off, node->size - off, &st);
        if (!err && st.file && st.depth == 0)
            err = storage_preallocate(st.file, st.host_offset, st.length);
    }
    return err;
}

/* Zeroes must be written if allocating clusters without writing isn't enough: if a backing
 * file would show through, or if zeroes in the file aren't zeroes of the guest
 * (encryption). */
static int allocate(struct node *node, uint64_t off, enum preallocation mode)
{
    bool clusters = node_can(node, DRIVER_CLUSTERS);

    if (mode == PREALLOCATION_FULL || node_holes_may_show(node) || node->encryption)
        return write_zeroes(node, off);
    int err = clusters ? block_preallocate(node, off, node->size - off) : 0;
    if (err || mode == PREALLOCATION_METADATA)
        return err;
    err = reserve_blocks(node, off);
    return err == -ENOTSUP ? write_zeroes(node, off) : err;
}

int preallocate_growth(struct node *node, uint64_t old, enum preallocation mode,
                       struct diag *diag)
{
    struct diag ignored;

    if (mode == PREALLOCATION_OFF)
        return 0;
    int err = allocate(node, old, mode);
    if (!err)
        err = block_flush(node);
    if (!err)
        return 0;
    (void)!node_shrink(node, old, &ignored);
    return diag_errno(diag, -err, "%s: preallocating", node->filename);
}
