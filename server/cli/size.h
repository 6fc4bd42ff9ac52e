/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes in the form people use: "1.5G", "64k", "452 KiB".  Layer: server. */
#ifndef CLI_SIZE_H
#define CLI_SIZE_H

#include <stddef.h>
#include <stdint.h>

/* Parses a size given for `what` ("image size").  Complains if it isn't one or exceeds
 * INT64_MAX; returns an exit code. */
int size_parse_argument(const char *what, const char *text, uint64_t *bytes);

/* "1.5 GiB", with three significant digits. */
void size_format(uint64_t bytes, char *text, size_t n);

#endif
