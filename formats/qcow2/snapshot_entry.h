/* SPDX-License-Identifier: BSD-3-Clause */
/* An entry of the snapshot table, from its bytes and back: fixed part, extra data, id, name,
 * and zeroes up to a multiple of 8.  Nothing is judged but whether the bytes are there; no
 * I/O, no memory of its own.  Private to this folder. */
#ifndef QCOW2_SNAPSHOT_ENTRY_H
#define QCOW2_SNAPSHOT_ENTRY_H

#include <stdint.h>

#include "base/checked.h"
#include "base/compiler.h"
#include "qcow2/qcow2_format.h"

#define SNAPSHOT_ENTRY_FIXED sizeof(struct qcow2_disk_snapshot)

#define SNAPSHOT_NO_ICOUNT UINT64_MAX /* as the table itself says it */

struct snapshot_entry {
    /* The fixed part. */
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    uint16_t id_bytes, name_bytes;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
    uint32_t vm_state_bytes_low; /* the fixed part's own field */
    uint32_t extra_bytes;

    /* From the extra data, as far as it has them: else the field above, 0 and
     * SNAPSHOT_NO_ICOUNT. */
    uint64_t vm_state_bytes, disk_size, icount;

    /* Neither ends with a NUL, and NULs may be inside.  After parsing they point into what
     * was parsed. */
    const uint8_t *extra, *id, *name;
};

/* Where the parts begin, counted from the entry. */
static inline uint64_t snapshot_entry_id_at(const struct snapshot_entry *e)
{
    return SNAPSHOT_ENTRY_FIXED + (uint64_t)e->extra_bytes;
}

/* Where the name ends. */
static inline uint64_t snapshot_entry_end(const struct snapshot_entry *e)
{
    return snapshot_entry_id_at(e) + e->id_bytes + e->name_bytes;
}

/* Where the next entry begins: at most 2^32 + 2^18. */
static inline uint64_t snapshot_entry_length(const struct snapshot_entry *e)
{
    return align_up(snapshot_entry_end(e), 8);
}

/* Parses the fixed part alone; the rest is as without extra data, with NULL pointers. */
void snapshot_entry_parse_fixed(const uint8_t raw[SNAPSHOT_ENTRY_FIXED],
                                struct snapshot_entry *out);

/* Takes the first n bytes of extra data, which may be more or less than extra_bytes says:
 * sets vm_state_bytes, disk_size and icount, and `extra` to them. */
void snapshot_entry_parse_extra(const uint8_t *extra, uint32_t n,
                                struct snapshot_entry *out);

/* Parses the entry that starts at raw, of which n bytes are there.  -EINVAL: it ends behind
 * them (its padding may). */
int snapshot_entry_parse(const uint8_t *raw, uint64_t n,
                         struct snapshot_entry *out) MUST_USE;

/* Writes the entry's snapshot_entry_length() bytes.  `extra` may be NULL, for zeroes, or
 * have extra_bytes bytes; the fields that the struct has by name take their place in it as
 * far as extra_bytes reaches.  id and name may be NULL where they have no bytes. */
void snapshot_entry_serialise(const struct snapshot_entry *e, uint8_t *out);

#endif
