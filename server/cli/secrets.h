/* SPDX-License-Identifier: BSD-3-Clause */
/* Secrets given by --object: passphrases, by id.  They lie in memory of crypto/secret.h, and no
 * message shows them.  Layer: server. */
#ifndef CLI_SECRETS_H
#define CLI_SECRETS_H

#include <stddef.h>

#include "options.h"

struct secret_item {
    char *id;
    void *bytes;
    size_t len; /* may be 0 */
};

/* In the order given, with unique ids.  Zero-initialised: empty. */
struct secrets {
    struct secret_item *items;
    size_t count;
};

/* Adds the secret that an --object describes: "data=TEXT" or "file=PATH", with "format=base64" if
 * that is encoded.  Its "id" must be unused.  A file is read to its end and may be a pipe; as in
 * QEMU, a newline at its end belongs to the secret.  Complains and returns an exit code. */
int secrets_add(struct secrets *secrets, const struct option_list *list);

/* NULL: no secret has that id. */
const struct secret_item *secrets_find(const struct secrets *secrets, const char *id);

/* The secret with that id, for use as a passphrase.  NULL after a complaint: there is none, or it
 * isn't UTF-8, which QEMU requires of passphrases. */
const struct secret_item *secrets_find_passphrase(const struct secrets *secrets,
                                                  const char *id);

/* The secret with that id in base64, the form of Ceph's keys; the caller frees it.  NULL: there is
 * none, or no memory.  `secrets` is a struct secrets. */
char *secrets_find_key(void *secrets, const char *id);

/* Wipes and frees all; leaves the list empty. */
void secrets_free(struct secrets *secrets);

#endif
