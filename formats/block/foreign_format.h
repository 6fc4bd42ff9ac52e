/* SPDX-License-Identifier: BSD-3-Clause */
/* Image formats of others, which are told by name instead of being taken for raw disks.
 * Layer: block. */
#ifndef BLOCK_FOREIGN_FORMAT_H
#define BLOCK_FOREIGN_FORMAT_H

#include <stddef.h>
#include <stdint.h>

/* The name ("a VMDK image") of the format whose magic is among the first n bytes of a file;
 * NULL: it is none of those known.  FOREIGN_FORMAT_BYTES are enough for all. */
const char *foreign_format(const uint8_t *head, size_t n);

#define FOREIGN_FORMAT_BYTES 128

#endif
