/* SPDX-License-Identifier: BSD-3-Clause */
/* Functions for the fuzz targets.  A target is a file in the folder above that defines
 * LLVMFuzzerTestOneInput: it gives bytes to a parser as a hostile image or peer would, and
 * checks what must be true for any bytes.  It is linked with libFuzzer (scripts/fuzz), or with
 * replay.c, which runs it on files.
 *
 * Threads: the main one. */
#ifndef SUPPORT_FUZZ_H
#define SUPPORT_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

/* Called by libFuzzer: the first once at the start (all targets share it), the second, which the
 * target defines, for each input. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Set by the environment variable QIMG_FUZZ_VERBOSE: prints what happens with an input, to help
 * with a finding. */
extern bool fuzz_verbose;

/* Unless `good` is true, prints the message and aborts, which the fuzzer reports as a finding. */
#define fuzz_check(good, ...) \
    ((good) ? (void)0 : fuzz_fail(__FILE__, __LINE__, __VA_ARGS__))
_Noreturn void fuzz_fail(const char *file, int line, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* Checks the contract of functions with a diag: they return 0, or -errno with the same errno and a
 * message in the diag. */
void fuzz_check_diag(int err, const struct diag *diag);

/* The bytes as a string, which ends at the first NUL among them.  The caller frees it. */
char *fuzz_text(const uint8_t *data, size_t size);

#endif
