/* SPDX-License-Identifier: BSD-3-Clause */
/* An image by options instead of by name: --image-opts.  Layer: server. */
#ifndef CLI_IMAGE_OPTS_H
#define CLI_IMAGE_OPTS_H

#include "block/open_policy.h"
#include "common/passphrases.h"
#include "cli.h"
#include "options.h"
#include "secrets.h"

/* Names the secret that opens an encrypted qcow2 image. */
#define IMAGE_OPTS_KEY "encrypt.key-secret"

/* What was said; a zero-initialised one says nothing. */
struct image_opts {
    struct reference image;
    struct option_list encryption; /* "encrypt.format", "backing.encrypt.key-secret", ... */
};

/* Takes the name that was given apart, "driver=qcow2,file.filename=disk": the keys are those
 * of backing names in
 * JSON (block/json_name.h), of which file.driver and driver may be left out for a file; and
 * encrypt.format, encrypt.key-secret, of a backing file with "backing." before them.  A
 * format beside it is refused.
 * Complains and returns an exit code; *out is the caller's to free. */
int image_opts_parse(const struct cli_image *given, struct image_opts *out);

/* The keys that it names, found among the secrets.  Complains and returns an exit code. */
int image_opts_find_keys(const struct image_opts *opts, const struct secrets *secrets,
                         struct passphrases *out);

/* Are the images encrypted as encrypt.format says?  Complains and returns an exit code. */
int image_opts_check_encryption(const struct image_opts *opts, const struct node *top);

void image_opts_free(struct image_opts *opts);
#define CLEANUP_IMAGE_OPTS CLEANUP(image_opts_free)

#endif
