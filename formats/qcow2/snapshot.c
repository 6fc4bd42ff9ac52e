/* The snapshot table, as far as it is shown to users. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/internal.h"

/* An entry: fixed part, extra data, id, name; padded to 8 bytes. */
#define ENTRY_FIXED 40

static json_t *text_of(const uint8_t *p, size_t n)
{
    json_t *s = json_stringn((const char *)p, n);

    return s ? s : json_string("?"); /* not UTF-8 */
}

static json_t *describe(const uint8_t *e, uint32_t extra, uint16_t id_len, uint16_t name_len)
{
    const uint8_t *id = e + ENTRY_FIXED + extra;
    uint64_t vm_clock = load_be64(e + 24), state_size = load_be32(e + 32);
    json_t *object = json_object();

    if (extra >= 8)
        state_size = load_be64(e + ENTRY_FIXED);
    json_object_set_new(object, "id", text_of(id, id_len));
    json_object_set_new(object, "name", text_of(id + id_len, name_len));
    json_object_set_new(object, "vm-state-size", json_integer((json_int_t)state_size));
    json_object_set_new(object, "date-sec", json_integer(load_be32(e + 16)));
    json_object_set_new(object, "date-nsec", json_integer(load_be32(e + 20)));
    json_object_set_new(object, "vm-clock-sec",
                        json_integer((json_int_t)(vm_clock / 1000000000u)));
    json_object_set_new(object, "vm-clock-nsec",
                        json_integer((json_int_t)(vm_clock % 1000000000u)));
    if (extra >= 24 && load_be64(e + ENTRY_FIXED + 16) != UINT64_MAX)
        json_object_set_new(object, "icount",
                            json_integer((json_int_t)load_be64(e + ENTRY_FIXED + 16)));
    return object;
}

/* The length of the entry at `e`, of which n bytes are there; 0 when it reaches past them. */
static size_t entry_length(const uint8_t *e, size_t n, uint32_t *extra, uint16_t *id_len,
                           uint16_t *name_len)
{
    if (n < ENTRY_FIXED)
        return 0;
    *id_len = load_be16(e + 12);
    *name_len = load_be16(e + 14);
    *extra = load_be32(e + 36);
    uint64_t len = ENTRY_FIXED + (uint64_t)*extra + *id_len + *name_len;
    return len <= n ? (size_t)len : 0;
}

void qcow2_list_snapshots(struct qcow2 *q, json_t *object)
{
    uint64_t file_size, offset = q->header.snapshots_offset;
    json_t *list = json_array();
    json_object_set_new(object, "snapshots", list);

    if (storage_size(q->node->file, &file_size) || offset > file_size)
        return;
    size_t n = (size_t)MIN(file_size - offset, MAX_SNAPSHOT_BYTES), at = 0;
    CLEANUP_FREE uint8_t *table = malloc(n + 1);
    if (!table || storage_read(q->node->file, table, n, offset)) {
        log_error("%s: the snapshot table can't be read", q->node->filename);
        return;
    }
    for (uint32_t i = 0; i < q->header.nb_snapshots; i++) {
        uint32_t extra;
        uint16_t id_len, name_len;
        size_t len = entry_length(table + at, n - at, &extra, &id_len, &name_len);
        if (len == 0) {
            log_error("%s: snapshot table entry %" PRIu32 " reaches past its end",
                      q->node->filename, i);
            return;
        }
        json_array_append_new(list, describe(table + at, extra, id_len, name_len));
        at = MIN(n, (size_t)align_up(at + len, 8));
    }
}
