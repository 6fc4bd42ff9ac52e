/* SPDX-License-Identifier: BSD-3-Clause */
/* Which files may be opened because an image names them.  Names in images are hostile: they are
 * resolved relative to the image's folder, may only refer to local files, NBD exports and RBD
 * images, and the user's `references` restricts them further.  Layer: block. */
#ifndef BLOCK_OPEN_POLICY_H
#define BLOCK_OPEN_POLICY_H

#include <stdbool.h>
#include <stdlib.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "storage/protocol.h"

enum references {
    REFERENCES_ANY,  /* any local file, any NBD export, any RBD image */
    REFERENCES_DIR,  /* only below the image's folder, symbolic links resolved */
    REFERENCES_NONE, /* none: an image with a reference is refused */
};

/* "any", "dir", "none"; returns 0 or -EINVAL. */
int references_parse(const char *word, enum references *out);

/* The meaning of a name. */
struct reference {
    char *path; /* a local path, an NBD URI or an RBD name; NULL: not given */
    /* Needed because the path alone is ambiguous: a file may be called "nbd:x". */
    const struct storage_protocol *protocol;
    const char *format; /* static: the format that the name itself requires; NULL: none */
    bool given;         /* by the user, not by an image */
    bool plain;         /* the name has a protocol's driver and no format */

    /* What the name says of the layer below, or that there is none.  `below` has no path if it
     * leaves that to the image. */
    struct reference *below; /* owned */
    bool none_below;

    /* The external data file that the user's name gives, as in chain_options; NULL: as the
     * image says. */
    char *data_file; /* owned */
};

void reference_free(struct reference *ref);
#define CLEANUP_REFERENCE CLEANUP(reference_free)

/* Resolves `name`, found in `image`. Relative names lie in the image's folder; "file:" is
 * removed; NBD URIs and RBD names stay as they are, but RBD names must not contain options for
 * Ceph.  "json:" names may describe files, NBD exports and RBD images (json_name.h), but
 * nothing beyond the place of one file.  Other protocols ("ssh:", ...) are rejected: as for
 * qemu-img, a name with a colon before its first slash has one.  The caller frees *out, which
 * is empty on failure.  Returns 0 or -errno. */
int reference_resolve(const char *image, const char *name, enum references policy,
                      struct reference *out, struct diag *diag) MUST_USE;

/* As reference_resolve, for a layer of a chain: the name may also describe the layers below it. */
int reference_resolve_layer(const char *image, const char *name, enum references policy,
                            struct reference *out, struct diag *diag) MUST_USE;

/* As reference_resolve_layer with REFERENCES_ANY, for a name that the user gives; an RBD name
 * may contain options for Ceph.  `what` begins the messages. */
int reference_resolve_given(const char *what, const char *name, struct reference *out,
                            struct diag *diag) MUST_USE;

/* May `image` record the name?  Not if the name would be rejected under any policy when it is
 * followed: because of what it contains (keys to use), or because it is relative and the image
 * lies on a server.  Unknown protocols, and unknown drivers in JSON, are allowed: the user may
 * have another program for them.  So is an empty name, which means no backing file.  Returns 0
 * or -errno. */
int reference_check_recorded(const char *image, const char *name,
                             struct diag *diag) MUST_USE;

/* Joins the image's folder and a name, without any policy or validation, for showing and
 * comparing.  The caller frees the result; NULL when memory is short. */
char *reference_join(const char *image, const char *name);

#endif
