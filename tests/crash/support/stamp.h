/* SPDX-License-Identifier: BSD-3-Clause */
/* Stamped sectors: each sector that a test writes holds its own number and the version of its
 * contents.  So garbage, data of another sector and data that nobody wrote can be recognised. */
#ifndef CRASH_STAMP_H
#define CRASH_STAMP_H

#include <stdint.h>

#define SECTOR_BYTES 512u

/* The version is the number of the request that wrote the sector; 0: the sector is zeroes. */
enum stamp_kind { STAMP_ZEROES, STAMP_VERSION, STAMP_GARBAGE };

struct stamp {
    enum stamp_kind kind;
    uint64_t sector;
    uint32_t version;
};

/* Fills n sectors; version 0 gives zeroes. */
void stamp_fill(void *buf, uint64_t sector, uint64_t n, uint32_t version);

struct stamp stamp_read(const void *sector_bytes);

#endif
