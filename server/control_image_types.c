/* SPDX-License-Identifier: BSD-3-Clause */
/* ImageInfo and SnapshotInfo as tables. */
#include "control_image_types.h"

#include <stddef.h>

static const struct control_arg snapshot_members[] = {
    {"id", STRING, true},          {"name", STRING, true},    {"vm-state-size", SIZE, true},
    {"date-sec", SIZE, true},      {"date-nsec", SIZE, true}, {"vm-clock-sec", SIZE, true},
    {"vm-clock-nsec", SIZE, true}, {"icount", SIZE, false},   {0},
};

const struct control_type control_snapshot_info = {.kind = TYPE_OBJECT,
                                                   .members = snapshot_members};

/* ---- LUKS ---- */

static const struct control_arg slot_members[] = {
    {"active", BOOL, true},
    {"iters", SIZE, false},
    {"key-offset", SIZE, true},
    {"stripes", SIZE, false},
    {0},
};

/* The members exist if the LUKS header could be read. */
static const struct control_arg luks_members[] = {
    {"ivgen-alg", STRING, false},
    {"hash-alg", STRING, false},
    {"cipher-alg", STRING, false},
    {"uuid", STRING, false},
    {"ivgen-hash-alg", STRING, false},
    {"cipher-mode", STRING, false},
    {"slots", LIST_OF(OBJECT(slot_members)), false},
    {"payload-offset", SIZE, false},
    {"master-key-iters", SIZE, false},
    {0},
};

static const struct control_variant inner_aes = {"aes", NULL},
                                    inner_luks = {"luks", OBJECT(luks_members)};
static const struct control_variant *const encryptions[] = {&inner_aes, &inner_luks, NULL};
static const struct control_arg encryption_members[] = {{"format", TAG, true}, {0}};

/* ---- qcow2 ---- */

static const char *const bitmap_flags[] = {"in-use", "auto", NULL};

static const struct control_arg bitmap_members[] = {
    {"flags", LIST_OF(WORDS(bitmap_flags)), true},
    {"name", STRING, true},
    {"granularity", SIZE, true},
    {0},
};

static const struct control_arg qcow2_members[] = {
    {"compat", STRING, true},
    {"compression-type", STRING, true},
    {"lazy-refcounts", BOOL, false},
    {"bitmaps", LIST_OF(OBJECT(bitmap_members)), false},
    {"refcount-bits", SIZE, true},
    {"data-file", STRING, false},
    {"data-file-raw", BOOL, false},
    {"encrypt", UNION(encryption_members, "format", encryptions), false},
    {"corrupt", BOOL, false},
    {"extended-l2", BOOL, false},
    {0},
};

/* ---- any image ---- */

static const struct control_arg luks_data[] = {{"data", OBJECT(luks_members), true}, {0}};
static const struct control_arg qcow2_data[] = {{"data", OBJECT(qcow2_members), true}, {0}};

static const struct control_variant luks = {"luks", OBJECT(luks_data)};
static const struct control_variant qcow2 = {"qcow2", OBJECT(qcow2_data)};
static const struct control_variant *const formats[] = {&qcow2, &luks, NULL};

static const struct control_arg specific[] = {{"type", TAG, true}, {0}};

static const struct control_arg image_members[] = {
    {"filename", STRING, true},
    {"format", STRING, true},
    {"virtual-size", SIZE, true},
    {"actual-size", SIZE, false},
    {"cluster-size", SIZE, false},
    {"backing-filename", STRING, false},
    {"full-backing-filename", STRING, false},
    {"backing-filename-format", STRING, false},
    {"dirty-flag", BOOL, true},
    {"snapshots", LIST_OF(&control_snapshot_info), false},
    {"encrypted", BOOL, false},
    {"format-specific", UNION(specific, "type", formats), false},
    {"backing-image", &control_image_info, false},
    {0},
};

const struct control_type control_image_info = {.kind = TYPE_OBJECT,
                                                .members = image_members};
