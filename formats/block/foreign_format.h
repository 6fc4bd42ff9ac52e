/* SPDX-License-Identifier: BSD-3-Clause */
/* Recognises image formats that qimg doesn't support, so that they aren't taken for raw disks.
 * Layer: block. */
#ifndef BLOCK_FOREIGN_FORMAT_H
#define BLOCK_FOREIGN_FORMAT_H

#include <stddef.h>
#include <stdint.h>

/* The name ("a VMDK image") of the unsupported format whose magic is in the first n bytes of a
 * file; NULL: none.  FOREIGN_FORMAT_BYTES bytes are enough for all formats. */
const char *foreign_format(const uint8_t *head, size_t n);

#define FOREIGN_FORMAT_BYTES 128

#endif
