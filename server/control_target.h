/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens the target of a mirror or backup job, and creates it if asked to.  Threads: any; may take
 * long.  Layer: server. */
#ifndef SERVER_CONTROL_TARGET_H
#define SERVER_CONTROL_TARGET_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/diag.h"
#include "block/node.h"
#include "block/open_policy.h"

struct added_node;

struct target_request {
    struct added_node *added;   /* held; NULL: the other fields describe the target */
    enum references references; /* which files the target's image may refer to */
    char *target;               /* an NBD URI, an RBD name or a path */
    char *shown; /* the same without secrets, for messages; set when it is opened */
    /* NULL: that of the source for a new file, and probed (raw never guessed) otherwise */
    const char *format;
    struct node *source;
    const _Atomic bool *give_up; /* as in nbd_open; NULL: never given up */
    bool existing;               /* must exist; never create a file */
    bool with_backing;           /* a new file gets the source's backing file */
    /* For a target that will never be served: its requests get a gate of their own (`own`, made
     * when it is opened), so that nobody who waits for changes of the disk waits for a slow
     * target. */
    bool apart;
    /* For a backup: the node name of its disk, which the target may have as its backing file.
     * NULL otherwise. */
    const char *disk_name;
    struct block_context *own;
};

/* Frees the request, from malloc.  The target must be closed. */
void control_target_request_free(struct target_request *request);

/* On success the caller owns *out, which can be written to.  A file that was created isn't removed
 * on failure.  0 or -errno with diag. */
int control_open_target(struct target_request *request, struct node **out,
                        struct diag *diag) MUST_USE;

#endif
