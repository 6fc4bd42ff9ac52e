/* SPDX-License-Identifier: BSD-3-Clause */
/* Judges what a crash left: structure, contents, and what QEMU's tools say. */
#ifndef CRASH_JUDGE_H
#define CRASH_JUDGE_H

#include "history.h"
#include "subject.h"

struct verdict {
    bool failed;
    bool marked;
    unsigned leaks;
    int64_t sector; /* whose contents are wrong; -1: none */
    char why[320];
};

enum judge_depth {
    JUDGE_QUICK, /* our own structural check, and the contents through a read-only node */
    JUDGE_REUSE, /* also opened for writing, which repairs what is marked, and looked at
                    again; then written to, closed, and checked */
    JUDGE_TOOLS, /* also our check and repair next to qemu-img check, its repair when
                    marked, convert, and a node on what it repaired */
};

/* The state isn't changed. */
void judge_state(const struct subject *s, const struct oracle *oracle, struct files state,
                 enum judge_depth depth, struct verdict *out);

/* What each sector of the state reads as, for a recording that starts there; versions as in
 * struct subject. */
void judge_read_versions(const struct subject *s, struct files state, uint32_t *versions);
/* The same of what a raw data file holds. */
void judge_read_raw(const struct subject *s, struct files state, uint32_t *versions);

#endif
