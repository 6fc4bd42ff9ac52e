/* SPDX-License-Identifier: BSD-3-Clause */
/* Certificates and keys for connections to NBD servers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/nbd_tls.h"

static struct nbd_tls_choice defaults;

static struct named_keys {
    char *name;
    struct nbd_tls_choice keys;
} * named;
static size_t n_named;

void nbd_tls_set_default(const struct nbd_tls_choice *keys)
{
    defaults = *keys;
}

int nbd_tls_add_named(const char *name, struct nbd_tls_choice *keys)
{
    struct named_keys *longer = reallocarray(named, n_named + 1, sizeof *named);

    if (!longer)
        return -ENOMEM;
    named = longer;
    named[n_named] = (struct named_keys){.name = strdup(name)};
    if (!named[n_named].name)
        return -ENOMEM;
    named[n_named++].keys = *keys;
    *keys = (struct nbd_tls_choice){0};
    return 0;
}

const struct nbd_tls_choice *nbd_tls_find_named(const char *name)
{
    for (size_t i = 0; i < n_named; i++)
        if (strcmp(named[i].name, name) == 0)
            return &named[i].keys;
    return NULL;
}

struct nbd_tls_choice nbd_tls_choose(const struct nbd_uri *uri)
{
    struct nbd_tls_choice choice = uri->keys;

    if (!choice.certificates && !choice.psk_file) {
        choice.certificates = defaults.certificates;
        choice.psk_file = defaults.psk_file;
    }
    if (!choice.username)
        choice.username = defaults.username;
    if (!choice.verify)
        choice.verify = defaults.verify;
    return choice;
}
