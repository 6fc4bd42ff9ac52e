/* SPDX-License-Identifier: BSD-3-Clause */
/* Replacing the open file behind a descriptor that its owner may close at any moment.  Without
 * a lock, the number could by then belong to a file that another thread has just opened, and
 * replacing it would close that file.  So opening and replacing exclude each other.
 *
 * DESCRIPTORS_GUARD is needed for opening files and descriptors that wake threads.  Connections
 * don't need it: they may be lost at any time, and are made again.  Threads: any.  Layer: base. */
#ifndef BASE_DESCRIPTORS_H
#define BASE_DESCRIPTORS_H

#include "base/compiler.h"

/* Called before and after opening, which may take long; any number of threads at once.  Keeps
 * errno. */
void descriptors_begin_opening(void);
void descriptors_end_opening(void);

static inline void descriptors_guard_leave(const int *unused)
{
    (void)unused;
    descriptors_end_opening();
}

/* Until the end of the enclosing scope, this thread opens descriptors. */
#define DESCRIPTORS_GUARD()                                                                \
    const int descriptors_guard CLEANUP(descriptors_guard_leave) __attribute__((unused)) = \
        (descriptors_begin_opening(), 0)

/* If `fd` still refers to the same file as `was`, makes it refer to the open file of `with`,
 * with close-on-exec set.  Never waits.  Returns 0; -ESTALE: fd refers to another file or is
 * closed; -EBUSY: another thread is opening something, so try again; or -errno. */
int descriptor_replace(int fd, int was, int with) MUST_USE;

/* The same for a descriptor that its owner keeps open until the process ends: doesn't exclude
 * openings, of which one may hang for ever.  Returns 0, -ESTALE or -errno. */
int descriptor_replace_kept(int fd, int was, int with) MUST_USE;

#endif
