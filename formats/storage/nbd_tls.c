/* SPDX-License-Identifier: BSD-3-Clause */
/* Certificates and keys for connections to NBD servers. */
#include "storage/nbd_tls.h"

static struct nbd_tls_choice defaults;

void nbd_tls_set_default(const struct nbd_tls_choice *keys)
{
    defaults = *keys;
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
