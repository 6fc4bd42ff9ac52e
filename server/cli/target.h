/* SPDX-License-Identifier: BSD-3-Clause */
/* The image to which a command writes a disk.  A new file is written under a temporary name
 * in the same folder, and renamed when it is complete; a file that had the name remains
 * until then.  What can't be made like this is written in place: a device, an export, an
 * image on Ceph RBD, or an existing image that is to be kept.  Layer: server. */
#ifndef CLI_TARGET_H
#define CLI_TARGET_H

#include <stdbool.h>

#include "block/create.h"
#include "image.h"

struct target {
    struct image image; /* open and activated */
    const char *filename;
    char *path, *temporary; /* NULL: it is written in place */
    char *data_file;        /* created with the image; NULL: none, or it existed */
    bool data_made;
    const struct storage_protocol *data_protocol;
    /* protocol of an image that isn't a file and was created in place; NULL otherwise */
    const struct storage_protocol *made;
    struct storage *replaced; /* the file that has the name now, locked; NULL: none */
    bool durable;             /* its name must be durable when it is finished */
    bool is_zero; /* new, and reads as zeroes where no backing file shows through */
    /* a new raw file without allocated blocks, except perhaps the first */
    bool has_no_blocks;
    /* set before target_finish: it existed, and nothing was written to it */
    bool untouched;
};

struct target_request {
    const char *filename;
    const struct driver *format;
    struct create_request *create; /* everything but the filename; NULL: the image exists */
    const struct cache_mode *cache;
    bool compress;
    /* Chains that are read, none of whose files may be overwritten; ends with NULL. */
    struct node *const *sources;
};

/* Creates the target, or opens an existing one.  Complains and returns an exit code; on
 * failure there is nothing to finish. */
int target_open(struct target *target, const struct target_request *request);

/* The same for an existing image, by name or --image-opts. */
int target_open_given(struct target *target, const struct cli_image *given,
                      const struct target_request *request);

/* Closes the target.  A complete new file gets its name, an incomplete one is removed.  If
 * it isn't complete, says what became of the target.  Returns `code`, or CLI_FAILED. */
int target_finish(struct target *target, bool complete, int code);

#endif
