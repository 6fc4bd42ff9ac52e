/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes as users write them: "1.5G", "64k".  Layer: base. */
#ifndef BASE_SIZE_H
#define BASE_SIZE_H

#include <stdint.h>

/* Parses a number of bytes: hexadecimal (0x...) or decimal, with a fraction if a unit from k on
 * follows.  Units: b, k, M, G, T, P, E, in either case; powers of 1024.  Returns 0; -EINVAL:
 * not a size; -ERANGE: more than 64 bits. */
int size_parse(const char *text, uint64_t *bytes);

#endif
