/* SPDX-License-Identifier: BSD-3-Clause */
/* Header extensions (qcow2.rst, "Header extensions").  Known ones are read into struct
 * qcow2_header; unknown ones are kept when the header is written.  Private to this folder. */
#ifndef QCOW2_HEADER_EXT_H
#define QCOW2_HEADER_EXT_H

#include "qcow2/header.h"

/* Reads the extensions, which end at offset `end` at the latest, into *h.  Refuses incompatible
 * features that are not in `supported`; the message has the names that the image gives them. */
int qcow2_header_ext_read(struct storage *st, struct qcow2_header *h, uint64_t end,
                          uint64_t supported, struct diag *diag) MUST_USE;

/* Appends an extension at buf + *at, and advances *at; `capacity` is the size of buf.  0 or
 * -ENOSPC. */
int qcow2_header_ext_append(uint8_t *buf, size_t capacity, size_t *at, uint32_t type,
                            const void *data, size_t len) MUST_USE;

/* Replaces the data of the extension of that type, or appends it; data NULL removes it.  The
 * extensions fill the n bytes of `area`, or end earlier with an end marker.  *used becomes their
 * length with the end marker.  0, -EINVAL when they are malformed, or -ENOSPC. */
int qcow2_header_ext_replace(uint8_t *area, size_t n, uint32_t type, const void *data,
                             size_t len, size_t *used) MUST_USE;

/* Finds the last extension of the type.  *place: offset of its data in `area`, 0 if there is none;
 * *end: where the extensions end.  -EINVAL when they are malformed, or its data isn't `len` bytes
 * long. */
int qcow2_header_ext_find(const uint8_t *area, size_t n, uint32_t type, uint32_t len,
                          size_t *place, size_t *end) MUST_USE;

/* Copies the extensions for which `keep` returns true, without an end marker, to to + *at, and
 * advances *at.  0, -EINVAL or -ENOSPC as above. */
int qcow2_header_ext_copy(const uint8_t *area, size_t n, bool (*keep)(uint32_t type),
                          uint8_t *to, size_t capacity, size_t *at) MUST_USE;

/* Finds an extension that is the last of all and the only one of its type: writing EXT_END at
 * *place removes it.  0 or -ENOENT. */
int qcow2_header_ext_find_last(const uint8_t *area, size_t n, uint32_t type,
                               size_t *place) MUST_USE;

#endif
