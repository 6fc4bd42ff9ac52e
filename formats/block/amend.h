/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing what an image is like, once it is made.  Layer: block. */
#ifndef BLOCK_AMEND_H
#define BLOCK_AMEND_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "block/create.h"

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

#endif
