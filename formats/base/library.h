/* SPDX-License-Identifier: BSD-3-Clause */
/* Libraries: which ones a layer uses, for whoever wants to know what a program is made of;
 * and those that are loaded when they are first needed, and never unloaded.
 *
 * A loaded library's functions stand in a struct of pointers, which has the types of the
 * library's own header.
 *
 * Threads: the caller of library_load sees to it that one library is loaded once
 * (pthread_once).  Layer: base. */
#ifndef BASE_LIBRARY_H
#define BASE_LIBRARY_H

#include <stddef.h>

#include "base/compiler.h"

/* Called for each library.  version: of the one that runs, as it says itself, valid during
 * the call; NULL: it isn't on this machine. */
typedef void library_sink(void *opaque, const char *name, const char *version);

struct library_function {
    const char *name;
    size_t member; /* its pointer's offset in the struct */
};

/* Loads the file and fills the struct in.  NULL, or why it can't be: a text that stays. */
const char *library_load(const char *file, const struct library_function *functions,
                         size_t count, void *table) MUST_USE;

/* A function of a loaded library that older versions of it haven't got: NULL then. */
void *library_newer_function(const char *file, const char *name);

#endif
