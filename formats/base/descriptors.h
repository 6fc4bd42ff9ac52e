/* SPDX-License-Identifier: BSD-3-Clause */
/* Replacing what a descriptor means, whose owner may close it at any moment: its number could be
 * given to what another thread opens just then, which would be lost.  So opening and replacing
 * exclude each other.
 *
 * Opened under DESCRIPTORS_GUARD is what can't be had again: files, and what wakes threads.
 * Connections may be lost at any time, and are made anew.  Threads: any.  Layer: base. */
#ifndef BASE_DESCRIPTORS_H
#define BASE_DESCRIPTORS_H

#include "base/compiler.h"

/* Around what opens, which may take long; any number of threads at once.  Keeps errno. */
void descriptors_begin_opening(void);
void descriptors_end_opening(void);

static inline void descriptors_guard_leave(const int *unused)
{
    (void)unused;
    descriptors_end_opening();
}

/* Opening, until the end of the enclosing scope. */
#define DESCRIPTORS_GUARD()                                        \
    const int descriptors_guard CLEANUP(descriptors_guard_leave) = \
        (descriptors_begin_opening(), 0)

/* `fd`, until now the same open file as `was`, means what `with` does from here on, and is closed by
 * exec.  -ESTALE: it means something else by now, or nothing; -EBUSY: somebody is opening
 * something, and it is to be tried again. */
int descriptor_replace(int fd, int was, int with) MUST_USE;

#endif
