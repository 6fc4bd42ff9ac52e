/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of format drivers; the only code that knows all of them. */
#ifndef FORMATS_REGISTRY_H
#define FORMATS_REGISTRY_H

#include "block/driver.h"

/* Tells the block layer which formats there are; once, before the first image is opened. */
void registry_init(void);

#endif
