/* SPDX-License-Identifier: BSD-3-Clause */
/* What an image may cause to be opened.  Names found inside images are hostile: they are
 * resolved against the image's folder, only local files, NBD exports and RBD images
 * are meant by them, and the user's `references` says which.  Layer: block. */
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

/* What a name stands for. */
struct reference {
    char *path; /* of a local file; or an NBD URI, or an RBD name; NULL: see `below` */
    /* The path alone can't tell: a file may be called "nbd:x". */
    const struct storage_protocol *protocol;
    const char *format; /* static: the format that the name itself demands; NULL: none */
    bool given;         /* by the user, not by an image */
    bool plain;         /* the name demands that there is no format over a protocol */

    /* What the name says of the layer below, or that there is none.  Where that lies it may leave
     * to the image, and then has no path. */
    struct reference *below; /* owned */
    bool none_below;

    /* The external data file that the user names beside the image, as chain_options has it; NULL:
     * as the image says. */
    char *data_file; /* owned */
};

void reference_free(struct reference *ref);
#define CLEANUP_REFERENCE CLEANUP(reference_free)

/* What `name`, found in `image`, stands for: relative names lie in the image's folder;
 * "file:" is stripped; NBD URIs stay as they are, and so do RBD names, which may not say how Ceph
 * is asked; of "json:", files, NBD exports
 * and RBD images are understood (json_name.h); other protocols ("ssh:", ...) are refused, as
 * qemu-img would
 * read them (a name with a colon before its first slash); and so is what says more than where
 * one file is.  *out is to be freed; empty on
 * failure. */
int reference_resolve(const char *image, const char *name, enum references policy,
                      struct reference *out, struct diag *diag) MUST_USE;

/* As reference_resolve, for who opens an image there: the name may say what lies below it. */
int reference_resolve_layer(const char *image, const char *name, enum references policy,
                            struct reference *out, struct diag *diag) MUST_USE;

/* As reference_resolve_layer with REFERENCES_ANY, of a name that the user gives beside any
 * image: an RBD name may say how Ceph is asked.  `what` begins the messages. */
int reference_resolve_given(const char *what, const char *name, struct reference *out,
                            struct diag *diag) MUST_USE;

/* May `image` record the name?  Not one that would be refused when it is followed, whatever the
 * policy: for what it says (whose keys are used), or as it is relative and the image lies on a
 * server.  Of protocols, and of drivers in JSON, that aren't known here nothing is judged: who
 * wants to record those knows why; and an empty name is none.  0 or -errno. */
int reference_check_recorded(const char *image, const char *name,
                             struct diag *diag) MUST_USE;

/* Only the joining of names: no policy and nothing refused, for what is shown or compared.
 * The caller's to free; NULL when memory is short. */
char *reference_join(const char *image, const char *name);

#endif
