/* SPDX-License-Identifier: BSD-3-Clause */
/* Percent encoding, as URIs have it (RFC 3986).  Layer: base. */
#ifndef BASE_PERCENT_H
#define BASE_PERCENT_H

#include <stddef.h>
#include <stdio.h>

/* Prints the text with all bytes as %XX but ASCII letters, digits and those in `plain`. */
void percent_print(FILE *f, const char *text, const char *plain);

/* The byte that the first three of n bytes, '%' and two hexadecimal digits, stand for; -1:
 * they aren't that. */
int percent_byte(const char *text, size_t n);

#endif
