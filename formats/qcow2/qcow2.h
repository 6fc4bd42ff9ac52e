/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 format, versions 2 and 3 (QEMU's docs/interop/qcow2.rst).  Layer: qcow2. */
#ifndef QCOW2_QCOW2_H
#define QCOW2_QCOW2_H

#include "block/driver.h"

extern const struct driver qcow2_driver;

#endif
