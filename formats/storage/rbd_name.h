/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of images on Ceph RBD, as QEMU writes them:
 *
 *     rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][:KEY=VALUE]...
 *
 * A backslash takes its meaning from the character behind it.  The key `id` is who asks
 * Ceph, without "client."; `conf` is the path of Ceph's configuration; all others are
 * options of that configuration.
 *
 * An image may name POOL, NAMESPACE, IMAGE and SNAPSHOT, and nothing else: it has no say in
 * which of the host's keys are used, nor which files Ceph's library reads or writes.
 *
 * Threads: any.  Layer: storage. */
#ifndef STORAGE_RBD_NAME_H
#define STORAGE_RBD_NAME_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

/* The longest name that is looked at, in bytes. */
#define RBD_NAME_MAX 4096

/* So many options of Ceph's configuration can be set by a name. */
#define RBD_OPTIONS_MAX 64

/* Who wrote it. */
enum rbd_name_origin { RBD_NAME_USER, RBD_NAME_IMAGE };

struct rbd_option {
    char *key, *value;
};

/* All owned; free of control characters. */
struct rbd_name {
    char *pool, *image; /* never empty in a name that was parsed */
    char *space;        /* the namespace; NULL: the pool's own */
    char *snapshot;     /* NULL: the image as it is now */
    char *id;           /* NULL: as CEPH_ARGS says, or "admin" */
    char *conf;         /* absolute path; NULL: where Ceph looks for it */
    struct rbd_option options[RBD_OPTIONS_MAX];
    unsigned n_options;
};

/* Does the text start as such a name does? */
bool rbd_name_is_one(const char *text);

/* Takes the text apart; a user's relative `conf` is made absolute here, before a server
 * changes its folder.  0, or -EINVAL, -EACCES, -ENAMETOOLONG, -ENOMEM with diag; *out is then
 * empty.  To be freed with rbd_name_free. */
int rbd_name_parse(const char *text, enum rbd_name_origin origin, struct rbd_name *out,
                   struct diag *diag) MUST_USE;

/* The canonical text, which parses to the same parts; the caller frees it.  NULL when memory
 * is short.  Of parts that were not parsed, and may be anything, it makes a text that means
 * just them, or is refused when it is parsed. */
char *rbd_name_print(const struct rbd_name *name) MUST_USE;

/* Adds to a list that is an option of Ceph's configuration; copied.  0, -ENOMEM, or -E2BIG: there
 * are too many options. */
int rbd_name_append(struct rbd_name *name, const char *option, const char *text) MUST_USE;

/* The same of the cluster's monitors; port NULL: Ceph's own. */
int rbd_name_add_monitor(struct rbd_name *name, const char *host,
                         const char *port) MUST_USE;

/* As rbd_name_print, without who asks and how: where the image lies. */
char *rbd_name_print_place(const struct rbd_name *name) MUST_USE;

/* As rbd_name_print, with *** in the place of a key of Ceph's: to be shown, and no name to be
 * opened by then. */
char *rbd_name_print_shown(const struct rbd_name *name) MUST_USE;

/* Is what the option says a secret? */
bool rbd_option_is_secret(const char *key) MUST_USE;

/* Harmless on one that is empty. */
void rbd_name_free(struct rbd_name *name);

static inline void cleanup_rbd_name(struct rbd_name *name)
{
    rbd_name_free(name);
}
#define CLEANUP_RBD_NAME CLEANUP(cleanup_rbd_name)

#endif
