/* SPDX-License-Identifier: BSD-3-Clause */
/* LUKS containers, version 1, as images: a header with its key material, followed by the disk,
 * encrypted sector by sector.  There are no tables: everything is allocated, and written in
 * place.  Private to this folder. */
#ifndef LUKS_LUKS_IMAGE_H
#define LUKS_LUKS_IMAGE_H

#include "block/driver.h"

/* luks_create.c: members of the driver table, see struct driver. */
extern const struct create_option_info luks_create_options[];
int luks_check_create(const struct create_request *req, struct diag *diag);
int luks_create(struct storage *st, struct storage *data, const struct create_request *req,
                struct diag *diag);
int luks_measure(const struct create_request *req, struct node *source,
                 struct image_measure *out, struct diag *diag);

#endif
