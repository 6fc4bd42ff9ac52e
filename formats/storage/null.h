/* SPDX-License-Identifier: BSD-3-Clause */
/* A store that keeps nothing: zeroes of some size, for measuring what copies take without a disk,
 * under the names that QEMU has for it and for its options:
 *
 *     null-co://[?size=SIZE][&read-zeroes=on|off]
 *
 * SIZE is a number of bytes, 1 GiB if there is none.  It reads as zeroes; with read-zeroes=on it
 * says so, too, and nobody needs to read.  What is written is forgotten.
 * Threads: any.  Layer: storage. */
#ifndef STORAGE_NULL_H
#define STORAGE_NULL_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "storage/storage.h"

#define NULL_PREFIX "null-co://"

/* Is this the name of one, sound or not? */
bool null_name_is_one(const char *name);

/* As storage_open_file. */
int storage_open_null(const char *name, const struct storage_open *how,
                      struct storage **out, struct diag *diag) MUST_USE;

bool storage_is_null(const struct storage *st);

#endif
