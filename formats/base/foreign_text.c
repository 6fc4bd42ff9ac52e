/* SPDX-License-Identifier: BSD-3-Clause */
/* Validates text from images before it is used. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/foreign_text.h"

int foreign_text_copy(char **out, const void *bytes, size_t n, struct diag *diag,
                      const char *what, ...)
{
    char name[512];
    va_list ap;

    *out = NULL;
    va_start(ap, what);
    vsnprintf(name, sizeof name, what, ap);
    va_end(ap);
    size_t length = strnlen(bytes, n);
    if (length < n)
        return diag_set(diag, EINVAL,
                        "%s: its %zu bytes have a NUL byte at %zu, after '%.*s'", name, n,
                        length, (int)(length < 64 ? length : 64), (const char *)bytes);
    *out = strndup(bytes, n);
    return *out ? 0 : diag_errno(diag, ENOMEM, "%s", name);
}
