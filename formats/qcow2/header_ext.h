/* SPDX-License-Identifier: BSD-3-Clause */
/* Header extensions: what we understand is taken over, the rest stays where it is. */
#ifndef QCOW2_HEADER_EXT_H
#define QCOW2_HEADER_EXT_H

#include "qcow2/header.h"

/* Reads the extensions, which end before `end`, into h and refuses incompatible features
 * that are not in `supported`, by the names that the image gives them. */
int qcow2_header_ext_read(struct storage *st, struct qcow2_header *h, uint64_t end,
                          uint64_t supported, struct diag *diag) MUST_USE;

/* Appends one extension at buf+*at (capacity bytes in all); -ENOSPC when there is no room.
 */
int qcow2_header_ext_append(uint8_t *buf, size_t capacity, size_t *at, uint32_t type,
                            const void *data, size_t len) MUST_USE;

/* In the extensions that fill area (n bytes, or up to an end marker): the one of that type
 * gets other data, or is appended; data NULL: it is taken out.  *used: bytes that count, with
 * the end marker.  -EINVAL:
 * they aren't well-formed; -ENOSPC. */
int qcow2_header_ext_replace(uint8_t *area, size_t n, uint32_t type, const void *data,
                             size_t len, size_t *used) MUST_USE;

/* Where the data of the last extension of the type stands (0: there is none), and where the
 * extensions end.  -EINVAL: they aren't well-formed, or it isn't `len` bytes. */
int qcow2_header_ext_find(const uint8_t *area, size_t n, uint32_t type, uint32_t len,
                          size_t *place, size_t *end) MUST_USE;

/* Copies the extensions that `keep` wants, and no end marker, to `to` at *at, which moves on.
 * -EINVAL and -ENOSPC as above. */
int qcow2_header_ext_copy(const uint8_t *area, size_t n, bool (*keep)(uint32_t type),
                          uint8_t *to, size_t capacity, size_t *at) MUST_USE;

/* Where the extension of the type stands in the n bytes of the extensions, when it is the
 * last of them and there is no other of it; -ENOENT.  It is gone when EXT_END is written
 * there. */
int qcow2_header_ext_find_last(const uint8_t *area, size_t n, uint32_t type,
                               size_t *place) MUST_USE;

#endif
