/* SPDX-License-Identifier: BSD-3-Clause */
/* A store that keeps nothing: zeroes of some size, for measuring the cost of copies without a
 * disk.  Names and options are QEMU's:
 *
 *     null-co://[?size=SIZE][&read-zeroes=on|off]
 *
 * SIZE is a number of bytes, 1 GiB by default.  The store reads as zeroes; with read-zeroes=on
 * its status says so as well, so that it needn't be read.  Writes are forgotten.  Threads: any.
 * Layer: storage. */
#ifndef STORAGE_NULL_H
#define STORAGE_NULL_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "storage/storage.h"

#define NULL_PREFIX "null-co://"

/* Does the name begin with the prefix?  It may still be invalid. */
bool null_name_is_one(const char *name);

/* As storage_open_file. */
int storage_open_null(const char *name, const struct storage_open *how,
                      struct storage **out, struct diag *diag) MUST_USE;

bool storage_is_null(const struct storage *st);

#endif
