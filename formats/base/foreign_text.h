/* SPDX-License-Identifier: BSD-3-Clause */
/* Text from a file or a message that another program wrote.  It has a length there and no
 * terminator; here it ends with a NUL.  A NUL inside it would hide the rest from all later
 * code, and is therefore an error.  Layer: base. */
#ifndef BASE_FOREIGN_TEXT_H
#define BASE_FOREIGN_TEXT_H

#include <stddef.h>

#include "base/compiler.h"
#include "base/diag.h"

/* *out: a copy of the n bytes, which the caller frees.  Returns 0; -EINVAL if the bytes contain
 * a NUL, with the sentence "WHAT: its N bytes have a NUL byte at 3, after 'raw'"; or -ENOMEM.
 * *out is NULL on errors.  WHAT is the format `what` with its arguments. */
int foreign_text_copy(char **out, const void *bytes, size_t n, struct diag *diag,
                      const char *what, ...) PRINTF_LIKE(5, 6) MUST_USE;

#endif
