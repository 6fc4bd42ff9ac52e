/* SPDX-License-Identifier: BSD-3-Clause */
/* The error object of control paths (open, create, check): an errno and one sentence.
 *
 * The sentence is lower case and names the object, the field, the value and the reason
 * ("disk.qcow2: L1 table at offset 1000: not cluster aligned").  It is printed once, by the
 * code that started the operation.  Control characters in it, which can only come from a name,
 * become '?'.  The data path returns -errno alone.  Layer: base. */
#ifndef BASE_DIAG_H
#define BASE_DIAG_H

#include "base/compiler.h"

struct diag {
    int err; /* positive errno; 0 while nothing went wrong */
    char text[1024];
};

/* Records err (positive errno) and the sentence, in place of an earlier record.  A NULL diag is
 * allowed.  Returns -err. */
int diag_set(struct diag *diag, int err, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* As diag_set, with ": <strerror(err)>" added. */
int diag_errno(struct diag *diag, int err, const char *fmt, ...) PRINTF_LIKE(3, 4);

#endif
