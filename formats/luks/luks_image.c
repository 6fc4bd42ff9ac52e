/* SPDX-License-Identifier: BSD-3-Clause */
/* The LUKS driver.  The engine does reads and writes (block/coded.c); this tells it where the
 * sectors are and which cipher they use. */
#include "luks/luks_image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/luks_store.h"
#include "block/node.h"
#include "luks/luks.h"

struct luks_image {
    uint64_t file_bytes; /* size at open: the container's limit */
    uint64_t payload;    /* host offset of the disk, bytes */
};

static struct luks_image *luks_of(const struct node *node)
{
    return node->state;
}

static struct luks_place whole_file(const struct node *node, uint64_t bytes)
{
    return (struct luks_place){.file = node->file, .limit = bytes, .name = node->filename};
}

static bool luks_probe(const uint8_t *head, size_t n)
{
    return luks_header_probe(head, n);
}

/* Validates the header.  image->payload: where the disk begins. */
static int judge_header(const struct node *node, struct luks_image *image,
                        struct diag *diag)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    struct luks_header header;

    if (image->file_bytes < sizeof bytes)
        return diag_set(diag, EINVAL, "%s: %" PRIu64 " bytes are too few for a LUKS header",
                        node->filename, image->file_bytes);
    int err = storage_read(node->file, bytes, 0, sizeof bytes);
    if (err)
        return diag_errno(diag, -err, "%s: reading its LUKS header", node->filename);
    err = luks_header_parse(&header, bytes, sizeof bytes, image->file_bytes, node->filename,
                            diag);
    image->payload = (uint64_t)header.payload_sector * CIPHER_SECTOR;
    return err;
}

static int open_container(struct node *node, struct luks_image *image, struct diag *diag)
{
    int err = storage_size(node->file, &image->file_bytes);

    if (err)
        return diag_errno(diag, -err, "%s: cannot get its size", node->filename);
    err = judge_header(node, image, diag);
    if (err)
        return node->options.describe && err == -ENOTSUP ? 0 : err;
    node->size = align_down(image->file_bytes - image->payload, CIPHER_SECTOR);
    return 0;
}

static int luks_open_image(struct node *node, struct diag *diag)
{
    CLEANUP_FREE struct luks_image *image = calloc(1, sizeof *image);

    if (!image)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    int err = open_container(node, image, diag);
    if (err)
        return err;
    /* There are no tables; the cache is for commits, so that concurrent flushes share one sync. */
    node->mc = mcache_new(node->ctx->pool, &node->ctx->gate, node->file, NULL, NULL);
    if (!node->mc)
        return diag_errno(diag, ENOMEM, "%s", node->filename);
    node->cluster_size = 1;
    node->encryption = "luks";
    node->host_zeroes_show = false;
    node->state = TAKE(&image);
    return 0;
}

static int luks_unlock_image(struct node *node, const void *passphrase, size_t len,
                             struct diag *diag)
{
    struct luks_place place = whole_file(node, luks_of(node)->file_bytes);

    return luks_take_cipher(&place, passphrase, len, &node->cipher, diag);
}

static int luks_activate(struct node *node, struct diag *diag)
{
    (void)node;
    (void)diag;
    return 0;
}

static int luks_close_image(struct node *node)
{
    int err = node->active ? block_settle(node) : 0;

    free(node->state);
    node->state = NULL;
    return err;
}

static int luks_map(struct node *node, uint64_t off, uint64_t len, struct extent *out)
{
    *out = (struct extent){
        .kind = EXTENT_ENCRYPTED,
        .writable = true,
        .allocated = true,
        .length = len,
        .file = node->file,
        .host_offset = luks_of(node)->payload + off,
    };
    return 0;
}

/* Zeroes are encrypted like any data, so that they can't be recognised; trimmed data stays. */
static int luks_zero(struct node *node, uint64_t off, uint64_t len, enum zero_how how,
                     uint64_t *done)
{
    (void)node;
    (void)off;
    (void)len;
    (void)how;
    *done = 0;
    return -ENOTSUP;
}

static bool luks_zero_is_fast(struct node *node, uint64_t off, uint64_t len)
{
    (void)node;
    (void)off;
    (void)len;
    return false;
}

static int luks_info(struct node *node, struct image_info *info)
{
    const struct luks_place place = whole_file(node, luks_of(node)->file_bytes);

    info->kind = IMAGE_INFO_LUKS;
    info->encrypted = true;
    if (luks_info_read(&place, &info->luks))
        log_warning("%s: its LUKS header can't be read", node->filename);
    return 0;
}

const struct driver luks_driver = {
    .name = "luks",
    /* It doesn't grow: the new part would read as random bytes, where users expect zeroes. */
    .features = 0,
    .create_options = luks_create_options,
    .probe = luks_probe,
    .open = luks_open_image,
    .unlock = luks_unlock_image,
    .activate = luks_activate,
    .close = luks_close_image,
    .settle = block_settle,
    .map = luks_map,
    .zero = luks_zero,
    .zero_is_fast = luks_zero_is_fast,
    .info = luks_info,
    .check_create = luks_check_create,
    .create = luks_create,
    .measure = luks_measure,
};
