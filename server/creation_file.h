/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates the file that blockdev-create asks for.  Threads: any: it may take long.  Layer:
 * server. */
#ifndef SERVER_CREATION_FILE_H
#define SERVER_CREATION_FILE_H

#include "base/compiler.h"
#include "base/diag.h"
#include "block/create.h"

struct driver;
struct export_table;

/* As create_image, and the file's name is durable on return.  -EBUSY, with nothing changed: an
 * export of the table uses the file, with or without a lock. */
int creation_make_file(struct export_table *exports, const struct driver *driver,
                       const struct create_request *request, struct diag *diag) MUST_USE;

#endif
