/* SPDX-License-Identifier: BSD-3-Clause */
/* Decodes and encodes data between the file and the request's buffer, on the caller's thread.
 *
 * A compressed cluster is decompressed as a whole.  A request for all of it decompresses into
 * its own buffer, so that sequential reads copy nothing and use all processors; a request for a
 * part goes through the cache of decompressed clusters.
 *
 * Ciphertext is never put into the caller's buffer, which may be visible to others: it goes
 * through a buffer of ours, in pieces that fit the processor's caches. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/coded.h"
#include "block/cluster_cache.h"
#include "block/shared_layer.h"
#include "codec/codec.h"
#include "crypto/cipher.h"

_Static_assert(CRYPT_SECTOR == CIPHER_SECTOR, "one size");

/* Bytes of ciphertext that are processed at once. */
#define CRYPT_PIECE (128u << 10)

/* ---- compressed ---- */

struct decoding {
    struct node *node;
    const struct extent *ext;
};

/* Reads and decodes the whole cluster. */
static int decode_cluster(void *opaque, void *out)
{
    const struct decoding *d = opaque;
    const struct extent *ext = d->ext;
    /* The size comes from the L2 entry, whose bits limit it to a cluster and the rest of a
     * sector. */
    CLEANUP_FREE void *stored = malloc(ext->stored_bytes);

    if (!stored)
        return -ENOMEM;
    int err = storage_read(ext->file, stored, ext->host_offset, ext->stored_bytes);
    if (err)
        return err;
    err = codec_decompress(d->node->codec, out, d->node->cluster_size, stored,
                           ext->stored_bytes);
    if (err)
        log_error("%s: the compressed cluster at %" PRIu64
                  ", of %u bytes, can't be decoded: %s",
                  d->node->filename, ext->host_offset, ext->stored_bytes, strerror(-err));
    return err;
}

/* Without the cache, for a file to which another node writes: a place may hold another cluster
 * by now. */
static int read_uncached(struct decoding *d, void *buf, uint64_t len)
{
    CLEANUP_FREE unsigned char *all = malloc(d->node->cluster_size);

    int err = all ? decode_cluster(d, all) : -ENOMEM;
    if (!err)
        memcpy(buf, all + d->ext->skip, len);
    return err;
}

static int read_compressed(struct node *node, const struct extent *ext, void *buf,
                           uint64_t len)
{
    struct decoding d = {.node = node, .ext = ext};
    const struct cluster_key key = {
        .owner = node_opened(node), .place = ext->host_offset, .bytes = node->cluster_size};
    struct cluster_cache *cache = node->ctx->clusters;
    struct cached_cluster *c = NULL;
    bool whole = len == node->cluster_size;

    assert(ext->skip + len <= node->cluster_size);
    if (atomic_load(&node->written_elsewhere))
        return read_uncached(&d, buf, len);
    if (whole) {
        c = cluster_cache_peek(cache, &key);
        if (!c)
            return decode_cluster(&d, buf);
    } else {
        int err = cluster_cache_get(cache, &key, decode_cluster, &d, &c);
        if (err)
            return err;
    }
    memcpy(buf, (const char *)cached_cluster_bytes(c) + ext->skip, len);
    cluster_cache_put(cache, c);
    return 0;
}

/* ---- encrypted ---- */

/* The sector number from which the initial vector is made. */
static uint64_t sector_number(const struct node *node, uint64_t host, uint64_t off)
{
    return (node->cipher_by_place ? host : off) / CRYPT_SECTOR;
}

/* Whole sectors. */
static int read_sectors(struct node *node, struct storage *file, unsigned char *piece,
                        void *buf, uint64_t host, uint64_t off, uint64_t len)
{
    int err = storage_read(file, piece, host, len);

    return err ? err
               : cipher_decrypt(node->cipher, buf, piece, len,
                                sector_number(node, host, off));
}

/* Part of one sector. */
static int read_part(struct node *node, struct storage *file, unsigned char *piece,
                     void *buf, uint64_t host, uint64_t off, uint64_t len)
{
    unsigned char sector[CRYPT_SECTOR];
    uint64_t skip = off % CRYPT_SECTOR;

    int err =
        read_sectors(node, file, piece, sector, host - skip, off - skip, CRYPT_SECTOR);
    if (!err)
        memcpy(buf, sector + skip, len);
    return err;
}

static int read_encrypted(struct node *node, const struct extent *ext, void *buf,
                          uint64_t off, uint64_t len)
{
    CLEANUP_FREE unsigned char *piece = malloc(MAX(CRYPT_SECTOR, MIN(len, CRYPT_PIECE)));
    uint64_t host = ext->host_offset;

    if (!piece)
        return -ENOMEM;
    while (len > 0) {
        uint64_t in_sector = off % CRYPT_SECTOR, n;
        int err;
        if (in_sector || len < CRYPT_SECTOR) {
            n = MIN(len, CRYPT_SECTOR - in_sector);
            err = read_part(node, ext->file, piece, buf, host, off, n);
        } else {
            n = MIN(align_down(len, CRYPT_SECTOR), CRYPT_PIECE);
            err = read_sectors(node, ext->file, piece, buf, host, off, n);
        }
        if (err)
            return err;
        buf = (char *)buf + n;
        host += n;
        off += n;
        len -= n;
    }
    return 0;
}

int encrypted_write(struct node *node, struct storage *file, const void *buf, uint64_t host,
                    uint64_t off, uint64_t len, unsigned flags)
{
    CLEANUP_FREE unsigned char *piece = malloc(MIN(len, CRYPT_PIECE));

    assert(is_aligned(off, CRYPT_SECTOR) && is_aligned(len, CRYPT_SECTOR));
    if (!piece)
        return -ENOMEM;
    while (len > 0) {
        uint64_t n = MIN(len, CRYPT_PIECE);
        int err =
            cipher_encrypt(node->cipher, piece, buf, n, sector_number(node, host, off));
        if (!err)
            err = storage_write(file, piece, host, n, flags);
        if (err)
            return err;
        buf = (const char *)buf + n;
        host += n;
        off += n;
        len -= n;
    }
    return 0;
}

/* Part of one sector. */
static int update_part(struct node *node, struct storage *file, const void *buf,
                       uint64_t host, uint64_t off, uint64_t len, unsigned flags)
{
    unsigned char stored[CRYPT_SECTOR], sector[CRYPT_SECTOR];
    uint64_t skip = off % CRYPT_SECTOR;

    int err =
        read_sectors(node, file, stored, sector, host - skip, off - skip, CRYPT_SECTOR);
    if (err)
        return err;
    memcpy(sector + skip, buf, len);
    return encrypted_write(node, file, sector, host - skip, off - skip, CRYPT_SECTOR,
                           flags);
}

ASIDE int encrypted_update(struct node *node, const struct extent *ext, const void *buf,
                           uint64_t off, unsigned flags)
{
    uint64_t end = off + ext->length;

    for (uint64_t at = off, n; at < end; at += n) {
        const char *from = (const char *)buf + (at - off);
        uint64_t host = ext->host_offset + (at - off), in_sector = at % CRYPT_SECTOR;
        int err;
        if (in_sector || end - at < CRYPT_SECTOR) {
            n = MIN(end - at, CRYPT_SECTOR - in_sector);
            err = update_part(node, ext->file, from, host, at, n, flags);
        } else {
            n = align_down(end - at, CRYPT_SECTOR);
            err = encrypted_write(node, ext->file, from, host, at, n, flags);
        }
        if (err)
            return err;
    }
    return 0;
}

ASIDE int coded_read(struct node *node, const struct extent *ext, void *buf, uint64_t off,
                     uint64_t len)
{
    switch (ext->kind) {
    case EXTENT_COMPRESSED:
        return read_compressed(node, ext, buf, len);
    case EXTENT_ENCRYPTED:
        return read_encrypted(node, ext, buf, off, len);
    default:
        assert(ext->kind == EXTENT_ELSEWHERE);
        return node->driver->read(node, buf, off, len);
    }
}
