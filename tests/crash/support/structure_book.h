/* SPDX-License-Identifier: BSD-3-Clause */
/* Fields of qcow2 as the specification defines them, for structure_qcow2.c and
 * structure_snapshot.c.  Uses nothing of the code under test. */
#ifndef CRASH_STRUCTURE_BOOK_H
#define CRASH_STRUCTURE_BOOK_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define COPIED      (UINT64_C(1) << 63)
#define COMPRESSED  (UINT64_C(1) << 62)

/* Incompatible features. */
#define DATA_FILE   (UINT64_C(1) << 2)
#define COMPRESSION (UINT64_C(1) << 3) /* another compression than zlib: zstd */
#define EXTENDED    (UINT64_C(1) << 4)

static inline uint64_t u64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return be64toh(v);
}

static inline uint32_t u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return be32toh(v);
}

/* The file offset of a compressed cluster; *end is the end of its last 512-byte sector. */
static inline uint64_t packed_place(uint64_t cluster, uint64_t entry, uint64_t *end)
{
    unsigned shift = 62 - ((unsigned)__builtin_ctzll(cluster) - 8);
    uint64_t host = entry & ((UINT64_C(1) << shift) - 1);

    *end = host / 512 * 512 + ((((entry & ~COMPRESSED) >> shift) + 1) * 512);
    return host;
}

/* The L1 table of the snapshot table's entry at e; returns the length of the entry in bytes. */
static inline uint64_t snapshot_entry(const uint8_t *e, uint64_t *l1, uint64_t *l1_size)
{
    uint64_t id = (uint64_t)e[12] << 8 | e[13], name = (uint64_t)e[14] << 8 | e[15];

    *l1 = u64(e);
    *l1_size = u32(e + 8);
    return (40 + u32(e + 36) + id + name + 7) / 8 * 8;
}

#endif
