/* SPDX-License-Identifier: BSD-3-Clause */
/* Decoding L1 and L2 entries, and checking that their places lie inside the file. */
#include <inttypes.h>
#include <stdio.h>

#include "base/checked.h"
#include "qcow2/check/check.h"

bool qcheck_past_end(const struct check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes; /* both are below 2^62 */

    return end > c->in.file_size && end - c->in.file_size >= c->in.cluster_size;
}

static unsigned past_end_fault(const struct check *c, uint64_t offset, uint64_t bytes)
{
    return qcheck_past_end(c, offset, bytes) ? FAULT_PAST_END : 0;
}

unsigned qcheck_l1_faults(const struct check *c, uint64_t entry)
{
    return l1_entry_faults(&c->in.geo, entry) |
           past_end_fault(c, entry & L1_OFFSET, c->in.cluster_size);
}

unsigned qcheck_decode(const struct check *c, struct l2_words words, struct cluster *out)
{
    unsigned faults = l2_any_decode(&c->in.geo, words.entry, words.bitmap, out);

    /* A compressed cluster that can't be there isn't reported for its subclusters as well. */
    if (faults & FAULT_COMPRESSED_EXTERNAL)
        return faults & ~FAULT_SUBCLUSTERS;
    if (c->in.geo.external)
        return faults;
    if (out->kind == CL_COMPRESSED)
        return faults | past_end_fault(c, out->host, out->compressed_bytes);
    return faults | (out->host ? past_end_fault(c, out->host, c->in.cluster_size) : 0);
}

unsigned qcheck_decode_at(const struct check *c, struct l2_words words, uint64_t guest,
                          struct cluster *out)
{
    unsigned faults = qcheck_decode(c, words, out);
    bool elsewhere = c->in.geo.external && guest != UNKNOWN_GUEST &&
                     cluster_has_place(out) && out->host != guest;

    return elsewhere && !(faults & FAULT_MISALIGNED) ? faults | FAULT_PLACE : faults;
}

const char *qcheck_words_text(const struct check *c, struct l2_words words, char *text)
{
    if (c->in.geo.word_bits)
        snprintf(text, WORDS_TEXT, "0x%" PRIx64 " with subclusters 0x%" PRIx64, words.entry,
                 words.bitmap);
    else
        snprintf(text, WORDS_TEXT, "0x%" PRIx64, words.entry);
    return text;
}
