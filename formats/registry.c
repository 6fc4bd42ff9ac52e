/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of formats. */
#include "block/driver.h"
#include "luks/luks.h"
#include "qcow2/qcow2.h"
#include "qed/qed.h"
#include "raw/raw.h"
#include "registry.h"

static const struct driver *const drivers[] = {&qcow2_driver, &qed_driver, &luks_driver,
                                               &raw_driver, NULL};

void registry_init(void)
{
    drivers_set(drivers);
}
