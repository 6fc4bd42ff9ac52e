/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes foreign text safe to print: names of files and images, messages of servers.  A line
 * break or an escape sequence in it could forge lines of a log or control a terminal.  Only
 * control characters are changed.  Threads: any.  Layer: base. */
#ifndef BASE_PLAIN_TEXT_H
#define BASE_PLAIN_TEXT_H

#include "base/compiler.h"

/* Replaces each byte of a control character by '?', except the characters in `kept`. */
void plain_text_tame(char *text, const char *kept);

/* A copy, which the caller frees, with each byte of a control character written as \xHH.  NULL:
 * memory is short. */
char *plain_text_copy(const char *text) MUST_USE;

#endif
