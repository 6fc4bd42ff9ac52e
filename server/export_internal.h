/* SPDX-License-Identifier: BSD-3-Clause */
/* Private to the files of an export. */
#ifndef SERVER_EXPORT_INTERNAL_H
#define SERVER_EXPORT_INTERNAL_H

#include "export.h"

/* Waits until every request that was inside has left.  Returns false after 30 seconds unless
 * `patient`, or when *given_up (may be NULL) becomes true. */
bool export_wait_for_users(struct served_export *exp, bool patient,
                           const _Atomic bool *given_up);

/* Closes a chain that was replaced, except for the part that `serving` or a retired node has in
 * its chain.  0 or -errno. */
int export_close_replaced(struct served_export *exp, struct node *old,
                          struct node *serving);

/* Under the lock: reads of retired nodes from servers that don't answer fail from now on. */
void export_abandon_retired(struct served_export *exp);

#endif
