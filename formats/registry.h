/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of format drivers; the only code that knows all of them. */
#ifndef FORMATS_REGISTRY_H
#define FORMATS_REGISTRY_H

#include "base/library.h"
#include "block/driver.h"

/* Tells the block layer which formats there are, and prepares the process (see
 * storage_survive_size_limit); once, before the first image is opened. */
void registry_init(void);

/* Names the libraries that everything below here uses.  Not from two threads. */
void registry_tell_libraries(library_sink *sink, void *opaque);

#endif
