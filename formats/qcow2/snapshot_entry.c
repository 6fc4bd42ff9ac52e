/* SPDX-License-Identifier: BSD-3-Clause */
/* The layout of the snapshot table's entries. */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/bytes.h"
#include "qcow2/snapshot_entry.h"

#define FIXED(raw, field) ((raw) + offsetof(struct qcow2_disk_snapshot, field))
#define EXTRA(raw, field) ((raw) + offsetof(struct qcow2_disk_snapshot_extra, field))

/* Is the whole field among the first n bytes of extra data? */
#define EXTRA_HAS(n, field) \
    ((n) >= offsetof(struct qcow2_disk_snapshot_extra, field) + sizeof(uint64_t))

void snapshot_entry_parse_fixed(const uint8_t raw[SNAPSHOT_ENTRY_FIXED],
                                struct snapshot_entry *out)
{
    uint32_t vm_state_bytes = load_be32(FIXED(raw, vm_state_bytes));

    *out = (struct snapshot_entry){
        .l1_offset = load_be64(FIXED(raw, l1_table_offset)),
        .l1_size = load_be32(FIXED(raw, l1_size)),
        .id_bytes = load_be16(FIXED(raw, id_bytes)),
        .name_bytes = load_be16(FIXED(raw, name_bytes)),
        .date_sec = load_be32(FIXED(raw, date_sec)),
        .date_nsec = load_be32(FIXED(raw, date_nsec)),
        .vm_clock_ns = load_be64(FIXED(raw, vm_clock_ns)),
        .vm_state_bytes_low = vm_state_bytes,
        .extra_bytes = load_be32(FIXED(raw, extra_bytes)),
        .vm_state_bytes = vm_state_bytes,
        .icount = SNAPSHOT_NO_ICOUNT,
    };
}

void snapshot_entry_parse_extra(const uint8_t *extra, uint32_t n,
                                struct snapshot_entry *out)
{
    out->extra = extra;
    if (EXTRA_HAS(n, vm_state_bytes))
        out->vm_state_bytes = load_be64(EXTRA(extra, vm_state_bytes));
    if (EXTRA_HAS(n, disk_size))
        out->disk_size = load_be64(EXTRA(extra, disk_size));
    if (EXTRA_HAS(n, icount))
        out->icount = load_be64(EXTRA(extra, icount));
}

int snapshot_entry_parse(const uint8_t *raw, uint64_t n, struct snapshot_entry *out)
{
    if (n < SNAPSHOT_ENTRY_FIXED)
        return -EINVAL;
    snapshot_entry_parse_fixed(raw, out);
    if (snapshot_entry_end(out) > n)
        return -EINVAL;
    snapshot_entry_parse_extra(raw + SNAPSHOT_ENTRY_FIXED, out->extra_bytes, out);
    out->id = raw + snapshot_entry_id_at(out);
    out->name = out->id + out->id_bytes;
    return 0;
}

static void serialise_extra(const struct snapshot_entry *e, uint8_t *out)
{
    uint32_t n = e->extra_bytes;

    if (e->extra)
        memcpy(out, e->extra, n);
    else
        memset(out, 0, n);
    if (EXTRA_HAS(n, vm_state_bytes))
        store_be64(EXTRA(out, vm_state_bytes), e->vm_state_bytes);
    if (EXTRA_HAS(n, disk_size))
        store_be64(EXTRA(out, disk_size), e->disk_size);
    if (EXTRA_HAS(n, icount))
        store_be64(EXTRA(out, icount), e->icount);
}

void snapshot_entry_serialise(const struct snapshot_entry *e, uint8_t *out)
{
    uint64_t id_at = snapshot_entry_id_at(e), end = snapshot_entry_end(e);

    store_be64(FIXED(out, l1_table_offset), e->l1_offset);
    store_be32(FIXED(out, l1_size), e->l1_size);
    store_be16(FIXED(out, id_bytes), e->id_bytes);
    store_be16(FIXED(out, name_bytes), e->name_bytes);
    store_be32(FIXED(out, date_sec), e->date_sec);
    store_be32(FIXED(out, date_nsec), e->date_nsec);
    store_be64(FIXED(out, vm_clock_ns), e->vm_clock_ns);
    store_be32(FIXED(out, vm_state_bytes), e->vm_state_bytes_low);
    store_be32(FIXED(out, extra_bytes), e->extra_bytes);
    serialise_extra(e, out + SNAPSHOT_ENTRY_FIXED);
    if (e->id_bytes)
        memcpy(out + id_at, e->id, e->id_bytes);
    if (e->name_bytes)
        memcpy(out + id_at + e->id_bytes, e->name, e->name_bytes);
    memset(out + end, 0, snapshot_entry_length(e) - end);
}
