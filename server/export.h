/* The image that is served, from before the server forks to its end.
 *
 * Threads: open, start and close on the main thread; make_writable from any. */
#ifndef SERVER_EXPORT_H
#define SERVER_EXPORT_H

#include "block/node.h"
#include "plugin_config.h"

struct export {
    struct block_context ctx;
    struct node *node;       /* NULL: not open */
    struct lock writable_lock; /* who prepares it for writing */
};

/* Opens and validates the image and its chain without changing a byte; writable_now: and makes it
 * writable.  0 or -errno with diag. */
int export_open(struct export *export, const struct plugin_config *config, struct diag *diag)
    MUST_USE;

/* After the fork: background work may start. */
int export_start(struct export *export) MUST_USE;

/* On the first writable connection. */
int export_make_writable(struct export *export, struct diag *diag) MUST_USE;

/* Everything flushed, closed and freed; again, or after a failed open: nothing. */
int export_close(struct export *export);

#endif
