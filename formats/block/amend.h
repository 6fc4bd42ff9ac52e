/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing what an image is like, once it is made.  Layer: block. */
#ifndef BLOCK_AMEND_H
#define BLOCK_AMEND_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "block/create.h"

struct node;

struct amend_secret {
    const void *bytes; /* NULL: none was given */
    size_t len;
};

struct amend_request {
    const struct create_option *options; /* of driver->amend_options; each key once */
    size_t n_options;
    struct amend_secret old_secret, new_secret; /* of key slots */
    bool force; /* key slots: overwrite one, erase the last */
};

/* NULL: not given. */
static inline const char *amend_value(const struct amend_request *req, const char *key)
{
    for (size_t i = 0; i < req->n_options; i++)
        if (strcmp(req->options[i].key, key) == 0)
            return req->options[i].value;
    return NULL;
}

/* Changes what is asked for of the driver's amend_options, under one writer's lock from the
 * first step to the last: nobody else comes to the image in between.  The caller has the node to
 * himself; it isn't active afterwards, and is good for node_close alone after a failure.  0, or
 * -errno with a sentence. */
int node_amend(struct node *node, const struct amend_request *req,
               struct diag *diag) MUST_USE;

#endif
