/* SPDX-License-Identifier: BSD-3-Clause */
/* The registered function that looks up Ceph keys. */
#include <stddef.h>

#include "storage/rbd_keys.h"

static rbd_key_finder *finder;
static void *finder_opaque;

void rbd_keys_set_finder(rbd_key_finder *find, void *opaque)
{
    finder = find;
    finder_opaque = opaque;
}

char *rbd_keys_find(const char *name)
{
    return finder ? finder(finder_opaque, name) : NULL;
}
