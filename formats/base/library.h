/* SPDX-License-Identifier: BSD-3-Clause */
/* Shared libraries.  Each layer can list those that it uses, for a program's version output.
 * Some libraries are loaded only when they are first needed (library_load), and never unloaded:
 * their functions are called through a struct of pointers, whose types come from the library's
 * own header.
 *
 * Threads: callers of library_load make sure that a library is loaded once (pthread_once).
 * Layer: base. */
#ifndef BASE_LIBRARY_H
#define BASE_LIBRARY_H

#include <stddef.h>

#include "base/compiler.h"

/* Called for each library.  version: as the library that is loaded reports it, valid during the
 * call; NULL: the library isn't installed on this machine. */
typedef void library_sink(void *opaque, const char *name, const char *version);

struct library_function {
    const char *name;
    size_t member; /* its pointer's offset in the struct */
};

/* Loads the file and fills in the struct `table`. Returns NULL, or the reason why it can't, a
 * text that stays valid. */
const char *library_load(const char *file, const struct library_function *functions,
                         size_t count, void *table) MUST_USE;

/* A function of a library that is already loaded; NULL if its version is too old to have it. */
void *library_newer_function(const char *file, const char *name);

#endif
