/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the disk of an internal snapshot in a qcow2 file, after the specification alone. */
#include <stdlib.h>
#include <string.h>

#include <zlib.h>
#include <zstd.h>

#include "base/compiler.h"
#include "structure.h"
#include "structure_book.h"

static bool inflate_raw(void *out, uint64_t bytes, void *in, uint64_t n)
{
    z_stream z = {
        .next_in = in, .avail_in = (uInt)n, .next_out = out, .avail_out = (uInt)bytes};

    if (inflateInit2(&z, -15) != Z_OK)
        return false;
    (void)inflate(&z, Z_FINISH); /* bytes behind the stream are ignored */
    inflateEnd(&z);
    return z.avail_out == 0;
}

/* The stream ends somewhere in its last sector. */
static bool inflate_zstd(void *out, uint64_t bytes, const void *in, uint64_t n)
{
    size_t used = ZSTD_findFrameCompressedSize(in, n);

    return !ZSTD_isError(used) && ZSTD_decompress(out, bytes, in, used) == bytes;
}

/* Decompresses a cluster and copies a part of it. */
static int read_packed(struct storage *st, const uint8_t *header, uint64_t entry, void *buf,
                       uint64_t in_cluster, uint64_t len)
{
    uint64_t cluster = UINT64_C(1) << u32(header + 20), end, size;
    uint64_t host = packed_place(cluster, entry, &end);
    bool zstd = u32(header + 4) >= 3 && (u64(header + 72) & COMPRESSION) && header[104];
    uint8_t *in = malloc(end - host), *out = malloc(cluster);

    if (!in || !out || storage_size(st, &size))
        abort();
    end = MIN(end, MAX(size, host));
    bool ok = storage_read(st, in, host, end - host) == 0 &&
              (zstd ? inflate_zstd(out, cluster, in, end - host)
                    : inflate_raw(out, cluster, in, end - host));
    if (ok)
        memcpy(buf, out + in_cluster, len);
    free(in);
    free(out);
    return ok ? 0 : -1;
}

/* What an L2 entry says about the requested part of its cluster. */
enum part { PART_NONE, PART_ZERO, PART_DATA };

static enum part part_of(const uint8_t *entry, bool extended, uint64_t in_cluster,
                         uint64_t cluster)
{
    if (extended) {
        uint64_t bitmap = u64(entry + 8), n = in_cluster / (cluster / 32);
        return bitmap >> (32 + n) & 1 ? PART_ZERO : bitmap >> n & 1 ? PART_DATA : PART_NONE;
    }
    if (u64(entry) & 1)
        return PART_ZERO;
    return u64(entry) & OFFSET_MASK ? PART_DATA : PART_NONE;
}

int structure_read_snapshot(struct storage *st, void *buf, uint64_t off, uint64_t len,
                            bool *found)
{
    uint8_t header[112], snapshot[65], entry[16];
    uint64_t l1, l1_size, cluster;

    *found = false;
    if (storage_read(st, header, 0, sizeof header) || u32(header + 60) == 0 ||
        storage_read(st, snapshot, u64(header + 64), sizeof snapshot))
        return -1;
    snapshot_entry(snapshot, &l1, &l1_size);
    cluster = UINT64_C(1) << u32(header + 20);
    bool extended = u32(header + 4) >= 3 && (u64(header + 72) & EXTENDED);
    uint64_t entry_bytes = extended ? 16 : 8;
    uint64_t index = off / cluster, per_table = cluster / entry_bytes;
    if (index / per_table >= l1_size ||
        storage_read(st, entry, l1 + index / per_table * 8, 8))
        return -1;
    uint64_t l2 = u64(entry) & OFFSET_MASK;
    if (l2 == 0)
        return 0;
    if (storage_read(st, entry, l2 + index % per_table * entry_bytes, entry_bytes))
        return -1;
    bool packed = u64(entry) & COMPRESSED;
    enum part part = packed ? PART_DATA : part_of(entry, extended, off % cluster, cluster);
    *found = part != PART_NONE;
    if (part == PART_ZERO)
        memset(buf, 0, len);
    if (packed)
        return read_packed(st, header, u64(entry), buf, off % cluster, len);
    if (part != PART_DATA)
        return 0;
    uint64_t host = u64(entry) & OFFSET_MASK;
    return storage_read(st, buf, host + off % cluster, len) ? -1 : 0;
}
