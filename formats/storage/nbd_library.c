/* SPDX-License-Identifier: BSD-3-Clause */
/* Loads libnbd when the first export is opened. */
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>

#include "base/library.h"
#include "storage/nbd_library.h"

/* The name with the version of its binary interface. */
#define FILE_NAME "libnbd.so.0"

struct libnbd libnbd;

static const struct library_function functions[] = {
#define LIBNBD_ROW(name) {"nbd_" #name, offsetof(struct libnbd, name)},
    LIBNBD_FUNCTIONS(LIBNBD_ROW)
#undef LIBNBD_ROW
};

static const char *why; /* why it could not be loaded; NULL: it was */

static void load_library(void)
{
    why = library_load(FILE_NAME, functions, ARRAY_LEN(functions), &libnbd);
    if (!why)
        *(void **)&libnbd.set_tls_hostname =
            library_newer_function(FILE_NAME, "nbd_set_tls_hostname");
}

int libnbd_load(struct diag *diag)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, load_library);
    return why ? diag_set(diag, ENOPKG, "NBD needs libnbd: %s", why) : 0;
}

const char *libnbd_version(void)
{
    static char version[32];
    struct diag diag;

    if (libnbd_load(&diag))
        return NULL;
    struct nbd_handle *nbd = libnbd.create();
    const char *text = nbd ? libnbd.get_version(nbd) : NULL;
    snprintf(version, sizeof version, "%s", text ? text : "");
    libnbd.close(nbd);
    return text ? version : NULL;
}
