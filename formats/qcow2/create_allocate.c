/* SPDX-License-Identifier: BSD-3-Clause */
/* Preallocation: allocates clusters for the whole disk of a new image. */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "crypto/cipher.h"
#include "qcow2/create.h"
#include "qcow2/internal.h"
#include "qcow2/qcow2.h"

#define STEP (1u << 20)

static int write_all_zeroes(struct node *node, const _Atomic bool *give_up)
{
    CLEANUP_FREE uint8_t *zeroes = calloc(1, STEP);
    if (!zeroes)
        return -ENOMEM;

    for (uint64_t off = 0; off < node->size; off += STEP) {
        if (create_is_given_up(give_up))
            return -ECANCELED;
        int err = block_write(node, zeroes, off, MIN(STEP, node->size - off), 0);
        if (err)
            return err;
    }
    return 0;
}

static int write_zeroes(struct storage *st, const void *zeroes, uint64_t off, uint64_t end,
                        const _Atomic bool *give_up)
{
    for (; off < end; off += STEP) {
        if (create_is_given_up(give_up))
            return -ECANCELED;
        int err = storage_write(st, zeroes, off, MIN(STEP, end - off), 0);
        if (err)
            return err;
    }
    return 0;
}

/* For an image with a backing file, whose disk can't be filled by writing zeroes to it: writes
 * zeroes to the holes and unwritten blocks of the file instead.  They read as zeroes already, and
 * all tables have been written to the file before. */
static int write_holes(struct node *node, const _Atomic bool *give_up)
{
    CLEANUP_FREE uint8_t *zeroes = calloc(1, STEP);
    uint64_t size, run;
    bool data;

    if (!zeroes)
        return -ENOMEM;
    int err = block_flush(node);
    if (!err)
        err = storage_size(node->data, &size);
    if (err)
        return err;
    for (uint64_t off = 0; off < size; off += run) {
        err = storage_extent(node->data, off, size - off, &data, &run);
        if (!err && !data)
            err = write_zeroes(node->data, zeroes, off, off + run, give_up);
        if (err)
            return err;
    }
    return 0;
}

/* Reserves blocks for the whole file; nothing to do for a device. */
static int reserve_blocks(struct storage *file)
{
    uint64_t bytes;

    if (file->fixed_size)
        return 0;
    int err = storage_size(file, &bytes);
    return err ? err : storage_preallocate(file, 0, bytes);
}

static int allocate_disk(struct node *node, const struct qcow2_params *p)
{
    enum qcow2_preallocation how = p->preallocation;
    int err = block_preallocate(node, 0, node->size);

    if (!err && how != PREALLOC_METADATA)
        err = reserve_blocks(node->data);
    /* Where the filesystem can't reserve blocks, writing allocates them. */
    if ((how == PREALLOC_FULL && !err) || err == -ENOTSUP)
        err = node->backing_name ? write_holes(node, p->give_up)
                                 : write_all_zeroes(node, p->give_up);
    return err;
}

static int activate_and_allocate(const struct qcow2_params *p, struct node *node,
                                 struct diag *diag)
{
    int err = node_activate(node, diag);
    if (err)
        return err;
    err = allocate_disk(node, p);
    return err ? diag_errno(diag, -err, "%s: preallocating", p->filename) : 0;
}

/* Takes ownership of the stores and the cipher. */
static int open_and_allocate(const struct qcow2_params *p, struct block_context *ctx,
                             struct storage *file, struct storage *data,
                             struct cipher *cipher, struct diag *diag)
{
    static const struct node_options options;
    struct node *node;

    int err = node_open(ctx, &qcow2_driver, file, p->filename, &options, &node, diag);
    if (err) {
        storage_close(data);
        cipher_free(cipher);
        return err;
    }
    if (data)
        node_set_data_file(node, data);
    node->cipher = cipher;
    node->cipher_by_place = p->encryption.method == CRYPT_LUKS;
    err = activate_and_allocate(p, node, diag);
    int close_err = node_close(node);
    if (!err && close_err)
        err = diag_errno(diag, -close_err, "%s: closing", p->filename);
    return err;
}

int qcow2_allocate_all(const struct qcow2_params *p, struct storage *file,
                       struct storage *data, struct cipher *cipher, struct diag *diag)
{
    struct block_context ctx;

    int err = block_context_init(&ctx, 16u << 20, NULL, NULL);
    if (err) {
        storage_close(file);
        storage_close(data);
        cipher_free(cipher);
        return diag_errno(diag, -err, "%s", p->filename);
    }
    err = open_and_allocate(p, &ctx, file, data, cipher, diag);
    block_context_destroy(&ctx);
    return err;
}
