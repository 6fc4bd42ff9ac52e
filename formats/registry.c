/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of formats. */
#include "block/driver.h"
#include "codec/codec.h"
#include "crypto/hash.h"
#include "luks/luks.h"
#include "qcow2/qcow2.h"
#include "qed/qed.h"
#include "raw/raw.h"
#include "registry.h"
#include "storage/protocol.h"

static const struct driver *const drivers[] = {&qcow2_driver, &qed_driver, &luks_driver,
                                               &raw_driver, NULL};

void registry_init(void)
{
    drivers_set(drivers);
    storage_survive_size_limit();
}

void registry_tell_libraries(library_sink *sink, void *opaque)
{
    storage_tell_libraries(sink, opaque);
    codec_tell_libraries(sink, opaque);
    crypto_tell_libraries(sink, opaque);
}
