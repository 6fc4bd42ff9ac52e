/* SPDX-License-Identifier: BSD-3-Clause */
/* Layers of a chain by the names that users and images have for them.  Layer: jobs. */
#ifndef JOBS_LAYERS_H
#define JOBS_LAYERS_H

#include <stdbool.h>

#include "base/compiler.h"
#include "block/node.h"

/* Does the name mean that layer?  It may be what the image above calls it, if there is one,
 * and a relative name lies in the folder of that image, as it does there; not in the
 * server's. */
bool layer_is_called(const char *name, const struct node *above, const struct node *layer);

/* The layer of that name at or below `top`, and the one above it, which is NULL for the top.  NULL:
 * it isn't there. */
struct node *layer_find(struct node *top, const char *name, struct node **above);

/* The name by which `image` is to call a base that lies below `top`: as the layer that named it
 * did, where that means the same file.  The caller's to free; NULL: no memory. */
char *layer_name_for(const struct node *image, const struct node *top,
                     const struct node *base) MUST_USE;

/* A copy of a name, to be freed, or NULL of none; false: no memory. */
bool layer_keep_name(char **copy, const char *name) MUST_USE;

#endif
