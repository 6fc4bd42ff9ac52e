/* SPDX-License-Identifier: BSD-3-Clause */
/* Names that others chose, in what people read.  A line break or an escape sequence among their
 * bytes would forge lines of a log, or speak to a terminal.  Any other text stays as it is.
 * Threads: any.  Layer: base. */
#ifndef BASE_PLAIN_TEXT_H
#define BASE_PLAIN_TEXT_H

#include "base/compiler.h"

/* Control characters become question marks, but for those in `kept`. */
void plain_text_tame(char *text, const char *kept);

/* A copy, the caller's to free, in which control characters are written as \xHH; NULL: no
 * memory. */
char *plain_text_copy(const char *text) MUST_USE;

#endif
