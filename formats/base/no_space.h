/* SPDX-License-Identifier: BSD-3-Clause */
/* Errors that tell of no place.  Layer: base. */
#ifndef BASE_NO_SPACE_H
#define BASE_NO_SPACE_H

#include <errno.h>
#include <stdbool.h>

/* Is it for want of space that -errno came?  The device is full, or whose the file is may have no
 * more of it (a quota), or the file may become no larger: what lies in it already can be used, and
 * when somebody makes room, all goes on. */
static inline bool means_no_space(int err)
{
    return err == -ENOSPC || err == -EDQUOT || err == -EFBIG;
}

#endif
