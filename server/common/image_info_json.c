/* SPDX-License-Identifier: BSD-3-Clause */
/* ImageInfo, with QEMU's member names and in QEMU's order. */
#include "common/image_info_json.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/json_text.h"

#define NS_PER_SEC 1000000000u

static void add_text(json_t *object, const char *key, const char *text)
{
    json_object_set_new(object, key, json_from_text(text));
}

static void add_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void add_flag(json_t *object, const char *key, bool on)
{
    json_object_set_new(object, key, json_boolean(on));
}

/* ---- members of any format ---- */

static void add_backing(json_t *object, const struct image_info *info)
{
    if (!info->backing_name)
        return;
    add_text(object, "backing-filename", info->backing_name);
    add_text(object, "full-backing-filename", info->full_backing_name);
    if (info->backing_format)
        add_text(object, "backing-filename-format", info->backing_format);
}

json_t *snapshot_info_json(const struct snapshot_info *s)
{
    json_t *object = json_object();

    add_text(object, "id", s->id);
    add_text(object, "name", s->name);
    add_number(object, "vm-state-size", s->vm_state_bytes);
    add_number(object, "date-sec", s->date_sec);
    add_number(object, "date-nsec", s->date_nsec);
    add_number(object, "vm-clock-sec", s->vm_clock_ns / NS_PER_SEC);
    add_number(object, "vm-clock-nsec", s->vm_clock_ns % NS_PER_SEC);
    if (s->has_icount)
        add_number(object, "icount", s->icount);
    return object;
}

static void add_snapshots(json_t *object, const struct image_info *info)
{
    if (info->snapshots.n == 0)
        return;
    json_t *list = json_array();
    for (size_t i = 0; i < info->snapshots.n; i++)
        json_array_append_new(list, snapshot_info_json(&info->snapshots.list[i]));
    json_object_set_new(object, "snapshots", list);
}

/* ---- LUKS ---- */

static json_t *luks_slot_json(const struct luks_slot_info *slot)
{
    json_t *object = json_object();

    add_flag(object, "active", slot->active);
    if (slot->active)
        add_number(object, "iters", slot->iterations);
    add_number(object, "key-offset", slot->key_offset);
    if (slot->active)
        add_number(object, "stripes", slot->stripes);
    return object;
}

/* inside: the LUKS header is part of another format, whose object then contains "format":
 * "luks". */
static void add_luks(json_t *object, const struct luks_info *luks, bool inside)
{
    char cipher[64];

    snprintf(cipher, sizeof cipher, "%s-%" PRIu32, luks->cipher, luks->key_bits);
    add_text(object, "ivgen-alg", luks->ivgen);
    add_text(object, "hash-alg", luks->hash);
    add_text(object, "cipher-alg", cipher);
    add_text(object, "uuid", luks->uuid);
    if (luks->ivgen_hash[0])
        add_text(object, "ivgen-hash-alg", luks->ivgen_hash);
    if (inside)
        add_text(object, "format", "luks");
    add_text(object, "cipher-mode", luks->chaining);
    json_t *slots = json_array();
    for (unsigned i = 0; i < LUKS_KEY_SLOTS; i++)
        json_array_append_new(slots, luks_slot_json(&luks->slots[i]));
    json_object_set_new(object, "slots", slots);
    add_number(object, "payload-offset", luks->payload_offset);
    add_number(object, "master-key-iters", luks->master_key_iterations);
}

/* ---- qcow2 ---- */

static void add_encryption(json_t *data, const struct qcow2_info *part)
{
    json_t *object;

    if (part->encryption == ENCRYPTION_NONE)
        return;
    object = json_object();
    if (part->encryption == ENCRYPTION_LUKS && part->luks.known)
        add_luks(object, &part->luks, true);
    else
        add_text(object, "format", part->encryption == ENCRYPTION_LUKS ? "luks" : "aes");
    json_object_set_new(data, "encrypt", object);
}

static json_t *bitmap_json(const struct stored_bitmap_info *bitmap)
{
    json_t *object = json_object(), *flags = json_array();

    if (bitmap->in_use)
        json_array_append_new(flags, json_string("in-use"));
    if (bitmap->enabled)
        json_array_append_new(flags, json_string("auto"));
    json_object_set_new(object, "flags", flags);
    add_text(object, "name", bitmap->name);
    add_number(object, "granularity", bitmap->granularity);
    return object;
}

static void add_bitmaps(json_t *data, const struct qcow2_info *part)
{
    if (part->n_bitmaps == 0)
        return;
    json_t *list = json_array();
    for (size_t i = 0; i < part->n_bitmaps; i++)
        json_array_append_new(list, bitmap_json(&part->bitmaps[i]));
    json_object_set_new(data, "bitmaps", list);
}

static json_t *qcow2_json(const struct qcow2_info *part)
{
    json_t *data = json_object();
    bool v3 = part->version >= 3;

    add_text(data, "compat", v3 ? "1.1" : "0.10");
    add_text(data, "compression-type", part->compression_type);
    if (v3)
        add_flag(data, "lazy-refcounts", part->lazy_refcounts);
    add_bitmaps(data, part);
    add_number(data, "refcount-bits", part->refcount_bits);
    if (part->data_file)
        add_text(data, "data-file", part->data_file);
    if (part->has_data_file)
        add_flag(data, "data-file-raw", part->data_file_raw);
    add_encryption(data, part);
    if (v3) {
        add_flag(data, "corrupt", part->corrupt);
        add_flag(data, "extended-l2", part->extended_l2);
    }
    return data;
}

static json_t *luks_json(const struct luks_info *luks)
{
    json_t *data = json_object();

    if (luks->known)
        add_luks(data, luks, false);
    return data;
}

static void add_format_specific(json_t *object, const struct image_info *info)
{
    if (info->kind == IMAGE_INFO_PLAIN)
        return;
    json_t *specific = json_object();
    add_text(specific, "type", info->format);
    json_object_set_new(specific, "data",
                        info->kind == IMAGE_INFO_LUKS ? luks_json(&info->luks)
                                                      : qcow2_json(&info->qcow2));
    json_object_set_new(object, "format-specific", specific);
}

json_t *image_info_json(const struct image_info *info)
{
    json_t *object = json_object();

    add_text(object, "filename", info->filename);
    add_text(object, "format", info->format);
    add_number(object, "virtual-size", info->virtual_size);
    if (info->has_actual_size)
        add_number(object, "actual-size", info->actual_size);
    if (info->cluster_size > 1)
        add_number(object, "cluster-size", info->cluster_size);
    add_backing(object, info);
    add_flag(object, "dirty-flag", info->dirty);
    add_snapshots(object, info);
    if (info->encrypted)
        add_flag(object, "encrypted", true);
    add_format_specific(object, info);
    return object;
}
