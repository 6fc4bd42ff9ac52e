/* SPDX-License-Identifier: BSD-3-Clause */
/* A full memory barrier, for protocols of the form "I write mine, then look at yours" on
 * both sides, where what is written lies in a file.  Layer: base. */
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
