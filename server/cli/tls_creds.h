/* SPDX-License-Identifier: BSD-3-Clause */
/* --object tls-creds-x509,... and tls-creds-psk,...: keys for NBD exports with TLS, by the name
 * that "tls-creds" of an export has for them (storage/nbd_tls.h).  Layer: server. */
#ifndef CLI_TLS_CREDS_H
#define CLI_TLS_CREDS_H

#include "options.h"

/* Both: "id", one that is free; "dir", the folder; "endpoint", which can only be "client".
 * Complain and return an exit code. */

/* The folder has ca-cert.pem and, where servers want to know who comes, client-cert.pem and
 * client-key.pem.  "verify-peer" off: any server's certificate will do. */
int tls_creds_add_x509(const struct option_list *list);

/* The folder has keys.psk; "username" is who of it comes, else "qemu". */
int tls_creds_add_psk(const struct option_list *list);

#endif
