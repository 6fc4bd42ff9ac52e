/* SPDX-License-Identifier: BSD-3-Clause */
/* Judges the state of an image after a crash: its metadata, its contents, and what QEMU's tools
 * say about it. */
#ifndef CRASH_JUDGE_H
#define CRASH_JUDGE_H

#include "history.h"
#include "subject.h"

struct verdict {
    bool failed;
    bool marked;
    unsigned leaks;
    int64_t sector; /* the sector whose contents are wrong; -1: none */
    char why[320];
};

enum judge_depth {
    JUDGE_QUICK, /* checks the metadata (structure.h), and the contents by a read-only node */
    JUDGE_REUSE, /* also opens it for writing, which repairs a marked image, and checks the
                    result; then writes to it, closes it and checks again */
    JUDGE_TOOLS, /* also compares our check and repair with qemu-img check; reads it with
                    qemu-img convert; lets qemu-img repair a marked image, and checks that */
};

/* Judges a state, which isn't changed. */
void judge_state(const struct subject *s, const struct oracle *oracle, struct files state,
                 enum judge_depth depth, struct verdict *out);

/* Reads which version each sector of the state has, for a recording that starts from it.
 * versions: as `initial` in struct subject. */
void judge_read_versions(const struct subject *s, struct files state, uint32_t *versions);
/* The same for the sectors of a raw data file. */
void judge_read_raw(const struct subject *s, struct files state, uint32_t *versions);

#endif
