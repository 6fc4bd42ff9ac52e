/* SPDX-License-Identifier: BSD-3-Clause */
/* Libraries that are loaded when they are first needed, and never unloaded.
 *
 * A library's functions stand in a struct of pointers, which has the types of the library's
 * own header.  Private to this folder.  Threads: the caller sees to it that one library is
 * loaded once (pthread_once).  Layer: storage. */
#ifndef STORAGE_LIBRARY_H
#define STORAGE_LIBRARY_H

#include <stddef.h>

#include "base/compiler.h"

struct library_function {
    const char *name;
    size_t member; /* its pointer's offset in the struct */
};

/* Loads the file and fills the struct in.  NULL, or why it can't be: a text that stays. */
const char *library_load(const char *file, const struct library_function *functions,
                         size_t count, void *table) MUST_USE;

#endif
