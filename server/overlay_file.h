/* SPDX-License-Identifier: BSD-3-Clause */
/* The files of overlays.  Threads: any.  Layer: server. */
#ifndef SERVER_OVERLAY_FILE_H
#define SERVER_OVERLAY_FILE_H

#include "block/node.h"
#include "block/open_policy.h"

/* Makes an empty image of old's size that names old as its backing file; its name is durable. 0
 * or -errno with diag: then it is removed, or nothing was there that could be. */
int overlay_make_file(const struct node *old, const char *file, const char *format,
                      struct diag *diag) MUST_USE;
void overlay_remove_file(const char *file);

/* Opens it to be put on top of old, with nothing below it yet. */
int overlay_open_file(const struct node *old, const char *file, const char *format,
                      enum references policy, struct node **out,
                      struct diag *diag) MUST_USE;

#endif
