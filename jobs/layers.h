/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds layers of a chain by name, in the forms that users and images use.  Layer: jobs. */
#ifndef JOBS_LAYERS_H
#define JOBS_LAYERS_H

#include <stdbool.h>

#include "base/compiler.h"
#include "block/node.h"

/* Does the name mean that layer?  The name may be the backing name in the image `above` (NULL:
 * there is none).  A relative name is relative to the folder of that image, as in its backing
 * name, and not to the server's working directory. */
bool layer_is_called(const char *name, const struct node *above, const struct node *layer);

/* The layer of that name at or below `top`.  *above: the layer above it; NULL for `top`.  NULL:
 * none. */
struct node *layer_find(struct node *top, const char *name, struct node **above);

/* The name that is to be written into `image` for a base that lies below `top`: the backing name
 * that the chain uses for the base, if it means the same file when read from `image`; else the
 * base's file name.  The caller frees it; NULL: no memory. */
char *layer_name_for(const struct node *image, const struct node *top,
                     const struct node *base) MUST_USE;

/* Copies a name (NULL stays NULL), which the caller frees.  False: no memory. */
bool layer_keep_name(char **copy, const char *name) MUST_USE;

#endif
