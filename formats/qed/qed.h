/* SPDX-License-Identifier: BSD-3-Clause */
/* The QED format driver.  Layer: qed. */
#ifndef QED_QED_H
#define QED_QED_H

#include "block/driver.h"

extern const struct driver qed_driver;

#endif
