/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates and opens the files of overlays.  Threads: any.  Layer: server. */
#ifndef SERVER_OVERLAY_FILE_H
#define SERVER_OVERLAY_FILE_H

#include "block/node.h"
#include "block/open_policy.h"

/* Creates an empty image of old's size with old as its backing file; its name is durable on
 * return.  0 or -errno with diag; on failure the file was removed, or couldn't be created. */
int overlay_make_file(const struct node *old, const char *file, const char *format,
                      struct diag *diag) MUST_USE;
void overlay_remove_file(const char *file);

/* Opens it in order to be put on top of `old`; nothing lies below it yet. */
int overlay_open_file(const struct node *old, const char *file, const char *format,
                      enum references policy, struct node **out,
                      struct diag *diag) MUST_USE;

#endif
