/* SPDX-License-Identifier: BSD-3-Clause */
/* An image opened for an offline command.  Layer: server. */
#ifndef CLI_IMAGE_H
#define CLI_IMAGE_H

#include "block/chain.h"
#include "cli.h"

struct image {
    struct block_context ctx;
    struct node *node;
};

/* How a command opens an image without a given format. */
enum image_guess {
    IMAGE_NEVER_RAW, /* an unknown format is an error */
    /* as in qemu-img, an unknown format is raw; a warning if it is opened for writing */
    IMAGE_MAYBE_RAW,
};

/* Opens an image and its chain, and starts the threads that it needs.  Complains and returns
 * an exit code; on failure there is nothing to close. */
int image_open(struct image *image, const char *filename,
               const struct chain_options *options, enum image_guess guess);

/* As image_open with IMAGE_NEVER_RAW, for a local file that will be renamed to `said`;
 * messages name that. */
int image_open_temporary(struct image *image, const char *path, const char *said,
                         const struct chain_options *options);

/* Parses a name on the command line: a path, a URI, or "json:...".  If it contains a format,
 * that must match a given one.  Complains and returns an exit code; *out is freed with
 * reference_free. */
int image_name_resolve(const struct cli_image *given, struct reference *out);

/* As image_open for the image of the command line: a name, or options (--image-opts).  An
 * unknown format is raw. */
int image_open_given(struct image *image, const struct cli_image *given,
                     const struct chain_options *options);

/* Makes a message begin with "Could not open 'NAME'", as in qemu-img. */
void image_blame(const char *filename, const struct storage_protocol *protocol,
                 struct diag *diag);

/* Closes the image.  Complains and returns an exit code. */
int image_close(struct image *image);

#endif
