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

/* How a command opens the image it was given. */
enum image_guess {
    IMAGE_NEVER_RAW, /* an unknown format is refused */
    IMAGE_MAYBE_RAW, /* as qemu-img: of an unknown format is raw; only for commands that
                        look */
};

/* Opens an image and its chain, with the threads that it needs.  Complains and returns an exit
 * code; on failure there is
 * nothing to close. */
int image_open(struct image *image, const char *filename,
               const struct chain_options *options, enum image_guess guess);

/* As image_open of a local file with IMAGE_NEVER_RAW, which is going to have the name `said`:
 * messages have that. */
int image_open_temporary(struct image *image, const char *path, const char *said,
                         const struct chain_options *options);

/* The name on the command line taken apart: a path, a URI, or JSON, whose format has to be the
 * one that was given, if both say one.  Complains and returns an exit code; *out is to be
 * freed. */
int image_name_resolve(const struct cli_image *given, struct reference *out);

/* As image_open, what the command line names: a file, or by --image-opts a file or an NBD
 * export.  Of an unknown format it is raw. */
int image_open_given(struct image *image, const struct cli_image *given,
                     const struct chain_options *options);

/* Has a message begin with what couldn't be opened, in qemu-img's words. */
void image_blame(const char *filename, const struct storage_protocol *protocol,
                 struct diag *diag);

/* Complains and returns an exit code. */
int image_close(struct image *image);

#endif
