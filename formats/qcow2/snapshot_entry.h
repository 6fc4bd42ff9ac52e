/* SPDX-License-Identifier: BSD-3-Clause */
/* Parsing and writing of an entry of the snapshot table (qcow2.rst, "Snapshots"): fixed part,
 * extra data, id, name, and zeroes up to a multiple of 8.  Parsing checks only that all bytes are
 * there.  No I/O, no allocation.  Private to this folder. */
#ifndef QCOW2_SNAPSHOT_ENTRY_H
#define QCOW2_SNAPSHOT_ENTRY_H

#include <stdint.h>

#include "base/checked.h"
#include "base/compiler.h"
#include "qcow2/qcow2_format.h"

#define SNAPSHOT_ENTRY_FIXED sizeof(struct qcow2_disk_snapshot)

#define SNAPSHOT_NO_ICOUNT UINT64_MAX /* the value that the format uses for "none" */

struct snapshot_entry {
    /* The fixed part. */
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    uint16_t id_bytes, name_bytes;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
    uint32_t vm_state_bytes_low; /* as the fixed part has it */
    uint32_t extra_bytes;

    /* From the extra data.  If that is too short: vm_state_bytes_low, 0 and
     * SNAPSHOT_NO_ICOUNT. */
    uint64_t vm_state_bytes, disk_size, icount;

    /* After parsing these point into the parsed bytes.  They aren't NUL-terminated, and may
     * contain NULs. */
    const uint8_t *extra, *id, *name;
};

/* Where the id and the name begin, from the start of the entry. */
static inline uint64_t snapshot_entry_id_at(const struct snapshot_entry *e)
{
    return SNAPSHOT_ENTRY_FIXED + (uint64_t)e->extra_bytes;
}

/* Where the name ends. */
static inline uint64_t snapshot_entry_end(const struct snapshot_entry *e)
{
    return snapshot_entry_id_at(e) + e->id_bytes + e->name_bytes;
}

/* Where the next entry begins, from the start of this one; at most 2^32 + 2^18. */
static inline uint64_t snapshot_entry_length(const struct snapshot_entry *e)
{
    return align_up(snapshot_entry_end(e), 8);
}

/* Parses the fixed part only.  The other fields are set as if there were no extra data, the
 * pointers to NULL. */
void snapshot_entry_parse_fixed(const uint8_t raw[SNAPSHOT_ENTRY_FIXED],
                                struct snapshot_entry *out);

/* Parses n bytes of extra data, which may be fewer or more than extra_bytes: sets vm_state_bytes,
 * disk_size, icount and `extra`. */
void snapshot_entry_parse_extra(const uint8_t *extra, uint32_t n,
                                struct snapshot_entry *out);

/* Parses the entry at `raw`, of which n bytes are there.  -EINVAL: the entry is longer (its
 * padding may be). */
int snapshot_entry_parse(const uint8_t *raw, uint64_t n,
                         struct snapshot_entry *out) MUST_USE;

/* Writes the entry, snapshot_entry_length() bytes.  `extra` has extra_bytes bytes, or is NULL for
 * zeroes; vm_state_bytes, disk_size and icount are written over it as far as extra_bytes
 * reaches.  id and name may be NULL if they are empty. */
void snapshot_entry_serialise(const struct snapshot_entry *e, uint8_t *out);

#endif
