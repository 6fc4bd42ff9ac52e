/* SPDX-License-Identifier: BSD-3-Clause */
/* --object: objects that options of images refer to by id.  Layer: server. */
#ifndef CLI_OBJECT_H
#define CLI_OBJECT_H

#include "secrets.h"

/* Adds the object that one --object describes, as options or as a JSON object:
 *
 *    secret,id=ID,data=TEXT             a passphrase, see secrets.h
 *    tls-creds-x509,id=ID,dir=FOLDER    keys for NBD with TLS, see tls_creds.h
 *    tls-creds-psk,id=ID,dir=FOLDER
 *
 * Complains and returns an exit code. */
int object_add(struct secrets *secrets, const char *text);

#endif
