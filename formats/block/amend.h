/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing the options of an existing image.  Layer: block. */
#ifndef BLOCK_AMEND_H
#define BLOCK_AMEND_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "block/create.h"

struct node;

struct amend_secret {
    const void *bytes; /* NULL: not given */
    size_t len;
};

struct amend_request {
    const struct create_option *options; /* from driver->amend_options; each key once */
    size_t n_options;
    struct amend_secret old_secret, new_secret; /* passphrases of key slots */
    bool force; /* For key slots: allows overwriting a used one, and erasing the last. */
};

/* The value of an option; NULL: not given. */
static inline const char *amend_value(const struct amend_request *req, const char *key)
{
    for (size_t i = 0; i < req->n_options; i++)
        if (strcmp(req->options[i].key, key) == 0)
            return req->options[i].value;
    return NULL;
}

/* Changes the options of the request, under one writer's lock from the first step to the last,
 * so that no other process can open the image for writing in between.  The caller has the node
 * to itself.  Afterwards the node isn't active; after a failure only node_close may be called.
 * Returns 0, or -errno with a sentence. */
int node_amend(struct node *node, const struct amend_request *req,
               struct diag *diag) MUST_USE;

#endif
