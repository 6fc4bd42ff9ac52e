/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of exports that NBD clients can ask for.  Threads: any. */
#ifndef SERVER_EXPORT_LISTING_H
#define SERVER_EXPORT_LISTING_H

struct nbdkit_exports;
struct server;

/* Adds the names of all exports to nbdkit's list; names that are too long for NBD, and those beyond
 * nbdkit's limit, are left out.  0, or -1 after nbdkit_error. */
int export_listing_add(struct server *server, struct nbdkit_exports *exports);

#endif
