/* SPDX-License-Identifier: BSD-3-Clause */
/* A full memory barrier.  For two threads each of which first writes its own datum and then
 * reads the other's, so that at least one of them sees the other's.  Needed where one datum is
 * the content of a file (pread, pwrite), which atomics don't order.  Layer: base. */
#ifndef BASE_FENCE_H
#define BASE_FENCE_H

#include <stdatomic.h>

static inline void full_fence(void)
{
#ifdef __SANITIZE_THREAD__
    /* GCC's thread sanitizer doesn't know fences. */
    static _Atomic unsigned any;
    atomic_fetch_add(&any, 0);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

#endif
