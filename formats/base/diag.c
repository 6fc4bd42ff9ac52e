/* SPDX-License-Identifier: BSD-3-Clause */
/* Filling in the error object of control paths. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/diag.h"
#include "base/plain_text.h"

int diag_set(struct diag *diag, int err, const char *fmt, ...)
{
    if (diag) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(diag->text, sizeof diag->text, fmt, ap);
        va_end(ap);
        plain_text_tame(diag->text, "");
        diag->err = err;
    }
    return -err;
}

int diag_errno(struct diag *diag, int err, const char *fmt, ...)
{
    if (diag) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(diag->text, sizeof diag->text, fmt, ap);
        va_end(ap);
        size_t used = strlen(diag->text);
        char reason[128];
        snprintf(diag->text + used, sizeof diag->text - used, ": %s",
                 strerror_r(err, reason, sizeof reason));
        plain_text_tame(diag->text, "");
        diag->err = err;
    }
    return -err;
}
