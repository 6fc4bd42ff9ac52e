/* SPDX-License-Identifier: BSD-3-Clause */
/* Backups as actions of a transaction: several disks at one point, together with bitmaps
 * that begin there.  Threads: the lane's.  Layer: server. */
#ifndef SERVER_CONTROL_BACKUP_H
#define SERVER_CONTROL_BACKUP_H

struct transaction_kind;

extern const struct transaction_kind blockdev_backup_kind, drive_backup_kind;

#endif
