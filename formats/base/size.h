/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes as people write them: "1.5G", "64k".  Layer: base. */
#ifndef BASE_SIZE_H
#define BASE_SIZE_H

#include <stdint.h>

/* A number of bytes: decimal, with a fraction when a unit from k up follows, or
 * hexadecimal; units are k, M, G, T, P, E (of either case, powers of 1024) and b.  0,
 * -EINVAL for other words, -ERANGE for what exceeds 64 bits. */
int size_parse(const char *text, uint64_t *bytes);

#endif
