/* SPDX-License-Identifier: BSD-3-Clause */
/* The libraries that compress. */
#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>

#include "codec/codec.h"

void codec_tell_libraries(library_sink *sink, void *opaque)
{
    /* It can't be asked: this is what it was built with. */
    sink(opaque, "libdeflate", LIBDEFLATE_VERSION_STRING);
    sink(opaque, "zlib", zlibVersion());
    sink(opaque, "zstd", ZSTD_versionString());
}
