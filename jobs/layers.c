/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of layers. */
#include "jobs/layers.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/open_policy.h"

bool layer_is_called(const char *name, const struct node *above, const struct node *layer)
{
    const char *image = above ? above->filename : layer->filename;

    if (strcmp(name, layer->filename) == 0 ||
        (above && above->backing_name && strcmp(name, above->backing_name) == 0))
        return true;
    CLEANUP_FREE char *joined = reference_join(image, name);
    return joined && node_is_called(layer, joined);
}

struct node *layer_find(struct node *top, const char *name, struct node **above)
{
    *above = NULL;
    for (struct node *node = top; node; *above = node, node = node->backing)
        if (layer_is_called(name, *above, node))
            return node;
    return NULL;
}

bool layer_keep_name(char **copy, const char *name)
{
    *copy = name ? strdup(name) : NULL;
    return *copy || !name;
}

char *layer_name_for(const struct node *image, const struct node *top,
                     const struct node *base)
{
    const struct node *last = top;

    while (last->backing != base)
        last = last->backing;
    CLEANUP_FREE char *joined =
        last->backing_name ? reference_join(image->filename, last->backing_name) : NULL;
    bool same = joined && node_is_called(base, joined);
    return strdup(same ? last->backing_name : base->filename);
}
