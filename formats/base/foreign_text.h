/* SPDX-License-Identifier: BSD-3-Clause */
/* Text that stands in a file or a message which others wrote.  It has a length and no
 * terminator there; here it ends with a NUL, so one inside would hide what comes after it
 * from everyone who looks at it later.  Layer: base. */
#ifndef BASE_FOREIGN_TEXT_H
#define BASE_FOREIGN_TEXT_H

#include <stddef.h>

#include "base/compiler.h"
#include "base/diag.h"

/* A copy of the n bytes, the caller's to free.  -EINVAL when a NUL is among them, with the
 * sentence "WHAT: its N bytes have a NUL byte at 3, after 'raw'"; -ENOMEM. */
int foreign_text_copy(char **out, const void *bytes, size_t n, struct diag *diag,
                      const char *what, ...) PRINTF_LIKE(5, 6) MUST_USE;

#endif
