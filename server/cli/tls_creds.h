/* SPDX-License-Identifier: BSD-3-Clause */
/* --object tls-creds-x509,... and tls-creds-psk,...: keys for NBD exports with TLS.  An
 * export's option "tls-creds" refers to them by id (storage/nbd_tls.h).  Layer: server. */
#ifndef CLI_TLS_CREDS_H
#define CLI_TLS_CREDS_H

#include "options.h"

/* Options of both: "id", which must be unused; "dir", the folder; "endpoint", which must be
 * "client".  Complain and return an exit code. */

/* The folder contains ca-cert.pem and, for servers that ask for a client's certificate,
 * client-cert.pem and client-key.pem.  "verify-peer=off" accepts any server certificate. */
int tls_creds_add_x509(const struct option_list *list);

/* The folder contains keys.psk; "username" selects the key (default: "qemu"). */
int tls_creds_add_psk(const struct option_list *list);

#endif
