/* SPDX-License-Identifier: BSD-3-Clause */
/* A list of passphrases, one for each layer. */
#include "common/passphrases.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "crypto/secret.h"

int passphrases_add(struct passphrases *all, unsigned depth, const void *bytes, size_t len)
{
    for (size_t i = 0; i < all->count; i++)
        if (all->list[i].depth == depth)
            return -EEXIST;
    struct chain_passphrase *list =
        reallocarray(all->list, all->count + 1, sizeof *all->list);
    if (!list)
        return -ENOMEM;
    all->list = list;
    void *copy = secret_copy(bytes, len);
    if (!copy)
        return -ENOMEM;
    list[all->count++] =
        (struct chain_passphrase){.depth = depth, .bytes = copy, .len = len};
    return 0;
}

void passphrases_free(struct passphrases *all)
{
    for (size_t i = 0; i < all->count; i++)
        secret_free((void *)(uintptr_t)all->list[i].bytes);
    free(all->list);
    *all = (struct passphrases){0};
}
