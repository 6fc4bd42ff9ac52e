/* SPDX-License-Identifier: BSD-3-Clause */
/* The functions that all fuzz targets share; see fuzz.h. */
#include "fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "registry.h"

bool fuzz_verbose;

/* Formats the message, as formatting is part of what hostile bytes reach, but prints it only when
 * fuzz_verbose is set. */
static void log_quietly(enum log_level level, const char *fmt, va_list ap)
{
    char text[2048];

    (void)level;
    vsnprintf(text, sizeof text, fmt, ap);
    if (fuzz_verbose)
        fprintf(stderr, "  %s\n", text);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_verbose = getenv("QIMG_FUZZ_VERBOSE");
    log_set_sink(log_quietly);
    registry_init();
    return 0;
}

void fuzz_fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "%s:%d: ", file, line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    abort();
}

void fuzz_check_diag(int err, const struct diag *diag)
{
    if (err == 0)
        return;
    fuzz_check(err < 0 && err == -diag->err, "error %d, but the diag has %d", err,
               diag->err);
    fuzz_check(diag->text[0], "error %d without a sentence", err);
}

char *fuzz_text(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);

    if (!text)
        abort();
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    return text;
}
