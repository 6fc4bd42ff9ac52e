/* SPDX-License-Identifier: BSD-3-Clause */
/* The arguments of `qimg convert`, and the conversion.  Layer: server. */
#ifndef CLI_CONVERT_H
#define CLI_CONVERT_H

#include "cli.h"
#include "create_options.h"

#define CONVERT_MAX_SPARSE (16u << 20)

/* With one backing file the target can't be thin over several sources. */
#define CONVERT_ONE_SOURCE                                      \
    "Having a backing file for the target makes no sense when " \
    "concatenating multiple input images"

struct convert_args {
    struct cli_image source; /* how all sources are opened */
    char **sources;
    size_t n_sources;

    const char *target, *format;
    const struct driver *driver; /* NULL: target_image_opts determines it */
    struct option_list list;     /* options for the new image */
    bool options_given;
    const char *backing_file, *backing_format;

    const char *snapshot; /* NULL: none */
    uint32_t sparse;      /* -S: bytes; 0: write no holes */
    bool sparse_given;
    unsigned threads; /* 0: not given */
    uint64_t speed;
    const struct cache_mode *cache, *source_cache;
    bool compress, existing, target_is_zero, target_image_opts, offload, salvage;
    bool bitmaps, skip_broken_bitmaps, progress, quiet;

    /* When the sources are open, and locked: may they be read?  Complains and returns an exit code.
     * NULL: they may. */
    int (*opened)(void *opaque);
    void *opaque;
};

/* Complains and returns an exit code. */
int convert(struct convert_args *args);

#endif
