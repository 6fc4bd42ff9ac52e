/* SPDX-License-Identifier: BSD-3-Clause */
/* Errors that mean a lack of space.  Layer: base. */
#ifndef BASE_NO_SPACE_H
#define BASE_NO_SPACE_H

#include <errno.h>
#include <stdbool.h>

/* Does -errno mean that there is no space?  The device is full, the file's owner is over his quota,
 * or the file can't become any larger.  What is allocated already can still be written to, and
 * everything goes on when somebody makes room. */
static inline bool means_no_space(int err)
{
    return err == -ENOSPC || err == -EDQUOT || err == -EFBIG;
}

#endif
