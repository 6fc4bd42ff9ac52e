/* SPDX-License-Identifier: BSD-3-Clause */
/* An image by options instead of by name: --image-opts.  Layer: server. */
#ifndef CLI_IMAGE_OPTS_H
#define CLI_IMAGE_OPTS_H

#include "block/open_policy.h"

/* Takes "driver=qcow2,file.filename=disk" apart: the keys are those of backing names in
 * JSON (block/json_name.h), of which file.driver and driver may be left out for a file.
 * Complains and returns an exit code; *out is the caller's to free. */
int image_opts_parse(const char *text, struct reference *out);

#endif
