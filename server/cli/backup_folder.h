/* SPDX-License-Identifier: BSD-3-Clause */
/* A folder of backups: a chain of qcow2 files, one for each point in time.
 *
 *    000001-20260131T120000Z.qcow2   a point: its number and time (UTC); an overlay of the
 *                                    point before it, or a full backup
 *    NAME.qcow2.part                 a point that is being made, or wasn't completed
 *    NAME.folding                    the point is being folded into the next one: it can't
 *                                    be restored any more, and folding must be continued
 *    .qimg-backup                    the folder's id; locked while a command changes the folder
 *
 * A file gets its final name when it is complete and durable.  Layer: server. */
#ifndef CLI_BACKUP_FOLDER_H
#define CLI_BACKUP_FOLDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "000001-20260131T120000Z" */
#define POINT_NAME_MAX 32

struct backup_point {
    char name[POINT_NAME_MAX];
    unsigned long number;
    bool folding;
};

struct backup_folder {
    const char *path;
    int fd;                      /* of the directory */
    int lock_fd;                 /* -1: not locked */
    char id[17];                 /* 16 hexadecimal digits; "": none */
    struct backup_point *points; /* oldest first */
    size_t n_points;
};

/* Opens the folder and lists its points.  make: creates it if necessary, locks it, and removes
 * files that weren't completed.  Complains and returns an exit code; on failure there is nothing
 * to close. */
int backup_folder_open(struct backup_folder *folder, const char *path, bool make);
void backup_folder_close(struct backup_folder *folder);

/* Lists the points again. */
int backup_folder_list(struct backup_folder *folder);

/* The name of a new point, with the next number and the present time. */
void backup_folder_next(const struct backup_folder *folder, char name[POINT_NAME_MAX]);

/* Finds a point by its name or number, or "latest".  NULL: there is none that could be restored. */
const struct backup_point *backup_folder_find(const struct backup_folder *folder,
                                              const char *word);

/* To be called with the point's file open, which keeps it from being folded from now on: checks
 * that it wasn't folded between being found and being opened.  Complains and returns an exit
 * code. */
int backup_folder_confirm(const struct backup_folder *folder,
                          const struct backup_point *point);

/* "FOLDER/NAMESUFFIX", which the caller frees; NULL: no memory. */
char *backup_folder_file(const struct backup_folder *folder, const char *name,
                         const char *suffix);

/* rename: syncs the file `from`, renames it to `to`, and syncs the folder.  sync: makes the
 * folder's present names durable.  Complain and return an exit code. */
int backup_folder_rename(const struct backup_folder *folder, const char *from,
                         const char *to);
int backup_folder_sync(const struct backup_folder *folder);

/* ---- backup_fold.c ---- */

/* Folds the oldest point into the next one until `keep` are left; continues an interrupted
 * folding first.  Complains and returns an exit code. */
int backup_fold(struct backup_folder *folder, size_t keep, bool quiet);
/* Only continues an interrupted folding. */
int backup_fold_rest(struct backup_folder *folder, bool quiet);

/* ---- backup_list.c ---- */

struct backup_point_info {
    uint64_t size, bytes; /* bytes: of the disk; allocated by the file */
    char *below; /* name of the file that it is an overlay of; owned; NULL: a full backup */
};

/* Opens one point's file, without its backing files.  Complains and returns an exit code. */
int backup_point_look(const struct backup_folder *folder, const struct backup_point *point,
                      struct backup_point_info *info);

int backup_list(const struct backup_folder *folder, bool json);

/* Checks every file, that each is an overlay of the point before it, and that all data can be
 * read.  Complains and returns an exit code. */
int backup_verify(const struct backup_folder *folder, bool quiet);

#endif
