/* SPDX-License-Identifier: BSD-3-Clause */
/* Where drive-mirror copies to: opened, and made when that is asked for.
 * Threads: any: it may take long.  Layer: server. */
#ifndef SERVER_CONTROL_TARGET_H
#define SERVER_CONTROL_TARGET_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/diag.h"
#include "block/node.h"
#include "block/open_policy.h"

struct added_node;

struct target_request {
    struct added_node *added;   /* held; NULL: the rest says what it is */
    enum references references; /* what the target's image may name */
    char *target;               /* an NBD URI, an RBD name or a path */
    char *shown;                /* it, for messages; set when it is opened */
    const char *format;
    struct node *source;
    const _Atomic bool *give_up; /* see nbd_open; NULL: nobody will */
    bool existing;               /* never make a file */
    bool with_backing;           /* a file that is made lies on the source's backing file */
    /* It will never be served: its requests have a gate of their own, so that nobody who waits for
     * changes of the disk waits for a slow target.  Made when it is opened. */
    bool apart;
    /* Of a backup: the node name of the disk, on which a node may be said to lie; NULL: else. */
    const char *disk_name;
    struct block_context *own;
};

/* When the target, if any, is closed. */
void control_target_request_free(struct target_request *request);

/* On success *out, which can be written to, is the caller's; nothing that was made is
 * removed on failure. */
int control_open_target(struct target_request *request, struct node **out,
                        struct diag *diag) MUST_USE;

#endif
