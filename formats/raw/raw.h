/* SPDX-License-Identifier: BSD-3-Clause */
/* The raw format: the guest's bytes are the file's.  Layer: raw. */
#ifndef RAW_RAW_H
#define RAW_RAW_H

#include "block/driver.h"

extern const struct driver raw_driver;

/* create.c: members of the driver table, see struct driver. */
extern const struct create_option_info raw_create_options[];
int raw_check_create(const struct create_request *req, struct diag *diag);
int raw_create(struct storage *st, struct storage *data, const struct create_request *req,
               struct diag *diag);

#endif
