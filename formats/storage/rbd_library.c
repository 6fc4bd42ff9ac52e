/* SPDX-License-Identifier: BSD-3-Clause */
/* Loads librbd and librados when the first RBD image is opened. */
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>

#include "base/library.h"
#include "storage/rbd.h"
#include "storage/rbd_library.h"

struct librbd librbd;
struct librados librados;

static const struct library_function rbd_functions[] = {
#define ROW(name) {"rbd_" #name, offsetof(struct librbd, name)},
    LIBRBD_FUNCTIONS(ROW)
#undef ROW
};

static const struct library_function rados_functions[] = {
#define ROW(name) {"rados_" #name, offsetof(struct librados, name)},
    LIBRADOS_FUNCTIONS(ROW)
#undef ROW
};

static const char *why; /* they could not be loaded; NULL: they were */

static void load_libraries(void)
{
    why = library_load("librados.so.2", rados_functions, ARRAY_LEN(rados_functions),
                       &librados);
    if (!why)
        why = library_load("librbd.so.1", rbd_functions, ARRAY_LEN(rbd_functions), &librbd);
}

int librbd_load(struct diag *diag)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, load_libraries);
    return why ? diag_set(diag, ENOPKG, "Ceph RBD needs librbd (Debian: librbd1): %s", why)
               : 0;
}

const char *librbd_version(void)
{
    static char version[48];
    int major, minor, extra;
    struct diag ignored;

    if (librbd_load(&ignored))
        return NULL;
    librbd.version(&major, &minor, &extra);
    snprintf(version, sizeof version, "%d.%d.%d", major, minor, extra);
    return version;
}
