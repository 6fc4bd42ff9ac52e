/* SPDX-License-Identifier: BSD-3-Clause */
/* Fills sectors with their number and version, and reads these back; see stamp.h. */
#include "stamp.h"

#include <string.h>

#define WORDS (SECTOR_BYTES / 8)

static uint64_t scramble(uint64_t head)
{
    head = (head ^ (head >> 29)) * 0xbf58476d1ce4e5b9u;
    return head ^ (head >> 32);
}

/* The difference between neighbouring words of a sector.  With a small one the sector can be
 * compressed; with the large odd one it can't. */
static uint64_t step_of(uint32_t version)
{
    if (version % 5 == 4)
        return 0x9e3779b97f4a7c15u;
    return version ? 1 : 0;
}

void stamp_fill(void *buf, uint64_t sector, uint64_t n, uint32_t version)
{
    uint64_t *words = buf;

    for (uint64_t s = 0; s < n; s++, words += WORDS) {
        uint64_t head = (sector + s) << 32 | version;
        uint64_t step = step_of(version);
        words[0] = version ? head : 0;
        for (uint64_t i = 1; i < WORDS; i++)
            words[i] = version ? scramble(head) + i * step : 0;
    }
}

struct stamp stamp_read(const void *sector_bytes)
{
    uint64_t words[WORDS], differs = 0;
    memcpy(words, sector_bytes, sizeof words);
    uint32_t version = (uint32_t)words[0];
    uint64_t first = version ? scramble(words[0]) : 0, step = step_of(version);

    for (uint64_t i = 1; i < WORDS; i++)
        differs |= words[i] ^ (first + i * step);
    struct stamp stamp = {
        .kind = STAMP_VERSION, .sector = words[0] >> 32, .version = version};
    if (differs || (version == 0 && words[0] != 0))
        stamp.kind = STAMP_GARBAGE;
    else if (version == 0)
        stamp.kind = STAMP_ZEROES;
    return stamp;
}
