/* SPDX-License-Identifier: BSD-3-Clause */
/* The LUKS format.  Layer: luks. */
#ifndef LUKS_LUKS_H
#define LUKS_LUKS_H

#include "block/driver.h"

extern const struct driver luks_driver;

#endif
