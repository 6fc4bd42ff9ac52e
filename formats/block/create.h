/* SPDX-License-Identifier: BSD-3-Clause */
/* Creating images: the request, and creating and removing the stores.  Layer: block. */
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

/* An option as described by the format.  Parsing, help and the list of options after creation
 * come from these tables. */
enum create_option_kind { CREATE_TEXT, CREATE_SWITCH, CREATE_NUMBER, CREATE_SIZE };

struct create_option_info {
    const char *name; /* NULL: the end of the table */
    enum create_option_kind kind;
    const char *initial; /* shown when the user gives none; NULL: then not shown */
    const char *help;    /* NULL: only the initial value is allowed; not listed */
    bool in_request; /* it is a field of struct create_request instead of in `options` */
};

/* Options with the same meaning in every format that has them. */
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
    bool exact_size; /* don't round up to whole sectors: -EINVAL if the format has to */
    const char *backing_file, *backing_format; /* NULL: none */
    /* The name of the external data file, as the image will record it (a relative name is
     * relative to the image's folder); NULL: none. */
    const char *data_file;
    /* For an image that is to be encrypted: any bytes, any length; NULL: none. */
    const void *passphrase;
    size_t passphrase_len;
    struct storage_hints hints;
    /* The store exists already and isn't ours: none is created, and after a failure it is
     * emptied instead of removed. */
    bool existing;
    /* Set by another thread when the image isn't wanted any more: long operations then end with
     * -ECANCELED.  NULL: never. */
    const _Atomic bool *give_up;
    const struct create_option *options; /* each key once */
    size_t n_options;
};

/* Creates the requested image.  Everything that the format rejects is rejected before anything
 * is touched.  A regular file of that name is overwritten; a block device is written to as it
 * is (see storage_create_file).  After a failure the file is removed; a device stays, with
 * undefined content.  The same holds for a data file, but one that existed before is emptied
 * instead of removed.  -ENOTSUP: the protocol can't create stores, or the format has no data
 * files; -ENOENT: `existing`, and the store doesn't exist. */
int create_image(const struct driver *driver, const struct create_request *req,
                 struct diag *diag) MUST_USE;

/* For drivers: is the image no longer wanted? */
static inline bool create_is_given_up(const _Atomic bool *give_up)
{
    return give_up && atomic_load_explicit(give_up, memory_order_relaxed);
}

#endif
