/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of images on Ceph RBD, as QEMU writes them:
 *
 *     rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][:KEY=VALUE]...
 *
 * A backslash escapes the character behind it.  The key `id` is the Ceph user, without "client.";
 * `conf` is the path of Ceph's configuration file; all other keys are options of that
 * configuration.
 *
 * A name inside an image may only have POOL, NAMESPACE, IMAGE and SNAPSHOT: an image must not
 * choose which of the host's keys are used, or which files Ceph's libraries read or write.
 *
 * Threads: any.  Layer: storage. */
#ifndef STORAGE_RBD_NAME_H
#define STORAGE_RBD_NAME_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

/* The longest name that is accepted, in bytes. */
#define RBD_NAME_MAX 4096

/* The most options of Ceph's configuration that a name can set. */
#define RBD_OPTIONS_MAX 64

/* Where a name comes from. */
enum rbd_name_origin { RBD_NAME_USER, RBD_NAME_IMAGE };

struct rbd_option {
    char *key, *value;
};

/* All strings are owned, and have no control characters. */
struct rbd_name {
    char *pool, *image; /* never empty in a name that was parsed */
    char *space;        /* the namespace; NULL: the pool's own */
    char *snapshot;     /* NULL: the image as it is now */
    char *id;           /* NULL: the user in CEPH_ARGS, or "admin" */
    char *conf;         /* absolute path; NULL: Ceph's default */
    struct rbd_option options[RBD_OPTIONS_MAX];
    unsigned n_options;
};

/* Does the text begin with "rbd:"? */
bool rbd_name_is_one(const char *text);

/* Parses a name.  A relative `conf` is made absolute here, before the server changes its current
 * folder.  0, or -EINVAL, -EACCES, -ENAMETOOLONG or -ENOMEM with diag and an empty *out.  To be
 * freed with rbd_name_free. */
int rbd_name_parse(const char *text, enum rbd_name_origin origin, struct rbd_name *out,
                   struct diag *diag) MUST_USE;

/* The canonical text, which parses to the same parts; the caller frees it.  NULL when memory is
 * short. If the parts weren't parsed and have arbitrary content, the text either means exactly
 * these parts, or is refused when it is parsed. */
char *rbd_name_print(const struct rbd_name *name) MUST_USE;

/* Appends a copy of the text to an option of Ceph's configuration whose value is a list.  0,
 * -ENOMEM, or -E2BIG when there are too many options. */
int rbd_name_append(struct rbd_name *name, const char *option, const char *text) MUST_USE;

/* Appends to the list of the cluster's monitors; port NULL: Ceph's default port. */
int rbd_name_add_monitor(struct rbd_name *name, const char *host,
                         const char *port) MUST_USE;

/* Like rbd_name_print, without id, conf and options: only where the image lies. */
char *rbd_name_print_place(const struct rbd_name *name) MUST_USE;

/* Like rbd_name_print, with *** in place of secrets.  For messages; not to be opened. */
char *rbd_name_print_shown(const struct rbd_name *name) MUST_USE;

/* Is the value of this option a secret? */
bool rbd_option_is_secret(const char *key) MUST_USE;

/* Frees the parts; an empty name is allowed. */
void rbd_name_free(struct rbd_name *name);

static inline void cleanup_rbd_name(struct rbd_name *name)
{
    rbd_name_free(name);
}
#define CLEANUP_RBD_NAME CLEANUP(cleanup_rbd_name)

#endif
