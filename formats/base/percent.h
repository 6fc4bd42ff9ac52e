/* SPDX-License-Identifier: BSD-3-Clause */
/* Percent encoding, as in URIs (RFC 3986).  Layer: base. */
#ifndef BASE_PERCENT_H
#define BASE_PERCENT_H

#include <stddef.h>
#include <stdio.h>

/* Prints the text; ASCII letters, digits and the characters in `plain` as they are, all other
 * bytes as %XX. */
void percent_print(FILE *f, const char *text, const char *plain);

/* Decodes the first three of n bytes: '%' and two hexadecimal digits.  Returns the byte, or -1
 * if they are something else. */
int percent_byte(const char *text, size_t n);

#endif
