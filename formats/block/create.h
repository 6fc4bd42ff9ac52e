/* SPDX-License-Identifier: BSD-3-Clause */
/* Making images: what is asked for, and who makes and removes the store.  Layer: block. */
#ifndef BLOCK_CREATE_H
#define BLOCK_CREATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "storage/storage.h"

struct driver;
struct storage_protocol;

/* An option of a format, as text. */
struct create_option {
    const char *key, *value;
};

/* An option as the format describes it: parsing, help and what is announced come from
 * these. */
enum create_option_kind { CREATE_TEXT, CREATE_SWITCH, CREATE_NUMBER, CREATE_SIZE };

struct create_option_info {
    const char *name; /* NULL: the end of the table */
    enum create_option_kind kind;
    const char *initial; /* announced when none is given; NULL: then not announced */
    const char *help;    /* NULL: there is no choice but the initial value; not listed */
    bool in_request; /* has a field in struct create_request, and is none of `options` */
};

/* Those that mean the same in every format that has them. */
#define CREATE_OPTION_SIZE                                                   \
    {                                                                        \
        "size", CREATE_SIZE, .help = "Virtual disk size", .in_request = true \
    }
#define CREATE_OPTION_BACKING_FILE                                        \
    {                                                                     \
        "backing_file", CREATE_TEXT, .help = "File name of a base image", \
                                     .in_request = true                   \
    }
#define CREATE_OPTION_BACKING_FORMAT                                          \
    {                                                                         \
        "backing_fmt", CREATE_TEXT, .help = "Image format of the base image", \
                                    .in_request = true                        \
    }
#define CREATE_OPTION_NOCOW                                                           \
    {                                                                                 \
        "nocow", CREATE_SWITCH, .help = "Turn off copy-on-write of the file (btrfs)", \
                                .in_request = true                                    \
    }
#define CREATE_OPTION_EXTENT                                                            \
    {                                                                                   \
        "extent_size_hint", CREATE_SIZE, .help = "Bytes for the file to grow by (XFS)", \
                                         .in_request = true                             \
    }

struct create_request {
    const char *filename;
    const struct storage_protocol *protocol; /* NULL: a file */
    uint64_t size;                           /* bytes, of any alignment */
    bool exact_size; /* not rounded up to whole sectors: -EINVAL where they have to be */
    const char *backing_file, *backing_format; /* NULL: none */
    /* Where guest data is to lie, as the image will name it (a relative name lies in the
     * image's folder); NULL: in the image. */
    const char *data_file;
    /* Of an image that is to be encrypted; any bytes, any number; NULL: none is given. */
    const void *passphrase;
    size_t passphrase_len;
    struct storage_hints hints;
    /* The store is another's already: none is made, and where it fails it stays, but empty. */
    bool existing;
    /* Becomes true, on another thread, when nobody wants the image any more: what takes long ends
     * with -ECANCELED.  NULL: that won't be. */
    const _Atomic bool *give_up;
    const struct create_option *options; /* each key once */
    size_t n_options;
};

/* Makes the image that is asked for.  What the format refuses is refused before anything is
 * touched; a regular file of that name is overwritten, a block device written to as it is
 * (see storage_create_file).  Where that fails on the way the file is removed; a device
 * stays, whatever is on it.  The same of a data file, but that one which was there before is
 * emptied, and not removed.  -ENOTSUP: the protocol can't make stores, or the format has no
 * data files; -ENOENT: it isn't there, and should be. */
int create_image(const struct driver *driver, const struct create_request *req,
                 struct diag *diag) MUST_USE;

/* For drivers: does somebody still want it? */
static inline bool create_is_given_up(const _Atomic bool *give_up)
{
    return give_up && atomic_load_explicit(give_up, memory_order_relaxed);
}

#endif
