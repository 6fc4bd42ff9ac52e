/* SPDX-License-Identifier: BSD-3-Clause */
/* The compression libraries. */
#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>

#include "codec/codec.h"

void codec_tell_libraries(library_sink *sink, void *opaque)
{
    /* It has no function for its version: this is the version at build time. */
    sink(opaque, "libdeflate", LIBDEFLATE_VERSION_STRING);
    sink(opaque, "zlib", zlibVersion());
    sink(opaque, "zstd", ZSTD_versionString());
}
