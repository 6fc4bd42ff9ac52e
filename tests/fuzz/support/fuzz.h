/* SPDX-License-Identifier: BSD-3-Clause */
/* What the fuzz targets share.  A target is a file of the folder above that defines
 * LLVMFuzzerTestOneInput: it gives bytes to a parser as a hostile image or peer would, and
 * checks what must be true whatever they are.  It is linked with libFuzzer (scripts/fuzz),
 * or with replay.c, which runs it on files.
 *
 * Threads: the main one. */
#ifndef SUPPORT_FUZZ_H
#define SUPPORT_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"

/* What libFuzzer calls: the first once (all targets share it). */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* QIMG_FUZZ_VERBOSE is set: what an input leads to is printed, for who looks at a finding.
 */
extern bool fuzz_verbose;

/* Ends the program as a finding when `good` is false. */
#define fuzz_check(good, ...) \
    ((good) ? (void)0 : fuzz_fail(__FILE__, __LINE__, __VA_ARGS__))
_Noreturn void fuzz_fail(const char *file, int line, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* What a function with a diag owes its caller: 0, or -errno and the sentence to it. */
void fuzz_check_diag(int err, const struct diag *diag);

/* The bytes as a string; those behind a NUL are cut off.  The caller frees it. */
char *fuzz_text(const uint8_t *data, size_t size);

#endif
