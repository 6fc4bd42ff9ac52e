/* SPDX-License-Identifier: BSD-3-Clause */
/* Loading a library and finding its functions. */
#include <dlfcn.h>
#include <string.h>

#include "base/library.h"

/* The reason of the last failure, copied because the loader's own text doesn't stay. */
static const char *reason(void)
{
    const char *text = dlerror();
    const char *kept = text ? strdup(text) : NULL;

    return kept ? kept : "unknown";
}

const char *library_load(const char *file, const struct library_function *functions,
                         size_t count, void *table)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);

    if (!library)
        return reason();
    for (size_t i = 0; i < count; i++) {
        void *function = dlsym(library, functions[i].name);
        if (!function)
            return reason();
        *(void **)((char *)table + functions[i].member) = function;
    }
    return NULL;
}

void *library_newer_function(const char *file, const char *name)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    void *function = library ? dlsym(library, name) : NULL;

    if (library)
        dlclose(library); /* undoes this dlopen only: the library stays loaded */
    return function;
}
