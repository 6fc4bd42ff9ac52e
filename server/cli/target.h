/* SPDX-License-Identifier: BSD-3-Clause */
/* The image that a command writes a disk to.  A new file is written under another name in
 * its folder, and takes its own when it is complete: what was there under it stays until
 * then.  What can't be made so (a device, an export, an image on Ceph RBD, an image that is
 * there and shall be written to) is written where it is.  Layer: server. */
#ifndef CLI_TARGET_H
#define CLI_TARGET_H

#include <stdbool.h>

#include "block/create.h"
#include "image.h"

struct target {
    struct image image; /* activated */
    const char *filename;
    char *path, *temporary; /* NULL: it is written in place */
    char *data_file;        /* to be made with it; NULL: none, or it was there */
    bool data_made;
    const struct storage_protocol *data_protocol;
    const struct storage_protocol
        *made;                /* no file, but made where it is; NULL: it wasn't */
    struct storage *replaced; /* what has the name until then, locked; NULL: nothing */
    bool durable;             /* its name is to be, too, when it is finished */
    bool is_zero;             /* new, and reads as zeroes where no backing file shows */
    bool has_no_blocks; /* a new raw file, of which at most the first block is allocated */
    bool untouched;     /* set before target_finish: it was there, nothing was written */
};

struct target_request {
    const char *filename;
    const struct driver *format;
    struct create_request *create; /* all but the filename; NULL: it is there */
    const struct cache_mode *cache;
    bool compress;
    /* None of what is read may be written over: chains, NULL at the end. */
    struct node *const *sources;
};

/* Makes it, or opens what is there; complains and returns an exit code, and then there is
 * nothing to finish. */
int target_open(struct target *target, const struct target_request *request);

/* The same for one that is there, by --image-opts or by name. */
int target_open_given(struct target *target, const struct cli_image *given,
                      const struct target_request *request);

/* Closes it; of a complete one the file gets its name, another is removed.  What became of
 * it is said when `complete` isn't true.  Returns `code`, or CLI_FAILED. */
int target_finish(struct target *target, bool complete, int code);

#endif
