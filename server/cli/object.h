/* SPDX-License-Identifier: BSD-3-Clause */
/* --object: what options of images name by its id.  Layer: server. */
#ifndef CLI_OBJECT_H
#define CLI_OBJECT_H

#include "secrets.h"

/* Adds what one --object says, as options or, in JSON, as an object:
 *
 *     secret,id=ID,data=TEXT             a passphrase, see secrets.h
 *     tls-creds-x509,id=ID,dir=FOLDER    keys for NBD with TLS, see tls_creds.h
 *     tls-creds-psk,id=ID,dir=FOLDER
 *
 * Complains and returns an exit code. */
int object_add(struct secrets *secrets, const char *text);

#endif
