/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of an export share; private to them. */
#ifndef SERVER_EXPORT_INTERNAL_H
#define SERVER_EXPORT_INTERNAL_H

#include "export.h"

/* Waits until every request that was inside has left; false: it took too long, or *given_up
 * (NULL: nobody gives up) was set. */
bool export_wait_for_users(struct served_export *exp, bool patient,
                           const _Atomic bool *given_up);

/* Closes a chain that was replaced, but for the part of it that is (or lies below) what is served
 * now, or what jobs may still use. */
int export_close_replaced(struct served_export *exp, struct node *old,
                          struct node *serving);

/* Under the lock: reads of what is retired from servers that don't answer fail from here on. */
void export_abandon_retired(struct served_export *exp);

#endif
