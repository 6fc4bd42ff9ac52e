/* SPDX-License-Identifier: BSD-3-Clause */
/* The secrets that --object gives a command: passphrases, by name.  They lie in memory of
 * crypto/secret.h, and no message has a byte of them.  Layer: server. */
#ifndef CLI_SECRETS_H
#define CLI_SECRETS_H

#include <stddef.h>

#include "options.h"

struct secret_item {
    char *id;
    void *bytes;
    size_t len; /* may be 0 */
};

/* In the order given, each id once; a zero-initialised list is empty. */
struct secrets {
    struct secret_item *items;
    size_t count;
};

/* Adds what an --object says that is one: "data=TEXT" or "file=PATH", with "format=base64" when
 * these are encoded; its "id" is one that is free.  A file is read to its end, and may be a pipe; a
 * newline at its end belongs to the secret, as for QEMU.  Complains and returns an exit
 * code. */
int secrets_add(struct secrets *secrets, const struct option_list *list);

/* NULL: there is none of that id. */
const struct secret_item *secrets_find(const struct secrets *secrets, const char *id);

/* The secret of that id, to be used as a passphrase, or NULL after a complaint: there is
 * none, or its bytes are no text (UTF-8), which a passphrase has to be for QEMU. */
const struct secret_item *secrets_find_passphrase(const struct secrets *secrets,
                                                  const char *id);

/* The secret of that id in base64, as a key of Ceph's is written; to be freed.  NULL: there is
 * none, or no memory. */
char *secrets_find_key(void *secrets, const char *id);

/* Wipes and frees all. */
void secrets_free(struct secrets *secrets);

#endif
