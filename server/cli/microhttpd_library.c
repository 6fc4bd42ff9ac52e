/* SPDX-License-Identifier: BSD-3-Clause */
/* Loads libmicrohttpd. */
#include "microhttpd_library.h"

#include <errno.h>
#include <stddef.h>

#include "base/library.h"

/* The soname of the interface that the header describes. */
#define FILE_NAME "libmicrohttpd.so.12"

struct microhttpd microhttpd;

static const struct library_function functions[] = {
#define MICROHTTPD_ROW(name) {"MHD_" #name, offsetof(struct microhttpd, name)},
    MICROHTTPD_FUNCTIONS(MICROHTTPD_ROW)
#undef MICROHTTPD_ROW
};

int microhttpd_load(struct diag *diag)
{
    const char *why = library_load(FILE_NAME, functions, ARRAY_LEN(functions), &microhttpd);

    return why ? diag_set(diag, ENOPKG, "metrics need libmicrohttpd: %s", why) : 0;
}

const char *microhttpd_version(void)
{
    struct diag ignored;

    return microhttpd_load(&ignored) == 0 ? microhttpd.get_version() : NULL;
}
