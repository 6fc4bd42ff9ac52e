/* SPDX-License-Identifier: BSD-3-Clause */
/* --image-opts: an image given by options instead of a name.  Layer: server. */
#ifndef CLI_IMAGE_OPTS_H
#define CLI_IMAGE_OPTS_H

#include "block/open_policy.h"
#include "common/passphrases.h"
#include "cli.h"
#include "options.h"
#include "secrets.h"

/* The option that names the secret of an encrypted qcow2 image. */
#define IMAGE_OPTS_KEY "encrypt.key-secret"

/* The parsed options.  Zero-initialised: none. */
struct image_opts {
    struct reference image;
    struct option_list encryption; /* "encrypt.format", "backing.encrypt.key-secret", ... */
};

/* Parses given->filename, for example "driver=qcow2,file.filename=disk".  The keys are those
 * of backing names in JSON (block/json_name.h), where file.driver and driver may be omitted
 * for a file; and encrypt.format, encrypt.key-secret, with "backing." before them for a
 * backing file.  A format given with -f is refused.  Complains and returns an exit code;
 * *out is freed with image_opts_free. */
int image_opts_parse(const struct cli_image *given, struct image_opts *out);

/* Looks up the secrets that the options name.  Complains and returns an exit code. */
int image_opts_find_keys(const struct image_opts *opts, const struct secrets *secrets,
                         struct passphrases *out);

/* Are the opened images encrypted as encrypt.format says?  Complains and returns an exit
 * code. */
int image_opts_check_encryption(const struct image_opts *opts, const struct node *top);

void image_opts_free(struct image_opts *opts);
#define CLEANUP_IMAGE_OPTS CLEANUP(image_opts_free)

#endif
