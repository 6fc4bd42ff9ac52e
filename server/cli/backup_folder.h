/* SPDX-License-Identifier: BSD-3-Clause */
/* A folder of backups: a chain of qcow2 files, one for each point.
 *
 *   000001-20260131T120000Z.qcow2   a point: its number, and when it was (UTC); each is an
 *                                   overlay of the one before, or stands by itself
 *   NAME.qcow2.part                 a point that is being made, or never was completed
 *   NAME.folding                    the point is being folded into the next: it is none any
 *                                   more, and the folding is to be gone on with
 *   .qimg-backup                    the folder's id; locked while somebody works on it
 *
 * A file gets its name when it is complete and durable.  Layer: server. */
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
    int fd;                      /* of the folder */
    int lock_fd;                 /* -1: it isn't locked */
    char id[17];                 /* hexadecimal; "": it has none */
    struct backup_point *points; /* oldest first */
    size_t n_points;
};

/* Opens it and lists its points; `make`: makes it, if it isn't there, locks it against others
 * who would work on it, and removes what was never completed.  Complains and returns an exit
 * code; then there is nothing to close. */
int backup_folder_open(struct backup_folder *folder, const char *path, bool make);
void backup_folder_close(struct backup_folder *folder);

/* Lists its points anew. */
int backup_folder_list(struct backup_folder *folder);

/* The next point's name, of now. */
void backup_folder_next(const struct backup_folder *folder, char name[POINT_NAME_MAX]);

/* A point by its name or number, or "latest"; NULL: there is none that could be restored. */
const struct backup_point *backup_folder_find(const struct backup_folder *folder,
                                              const char *word);

/* "FOLDER/NAME.SUFFIX", the caller's to free; NULL: no memory. */
char *backup_folder_file(const struct backup_folder *folder, const char *name,
                         const char *suffix);

/* Durable: the file of `from` has the name `to`, the folder's names are as they are now.
 * Complain and return an exit code. */
int backup_folder_rename(const struct backup_folder *folder, const char *from,
                         const char *to);
int backup_folder_sync(const struct backup_folder *folder);

/* ---- backup_fold.c ---- */

/* Folds the oldest points, each into the next, until there are `keep`; and goes on with what was
 * interrupted.  Complains and returns an exit code. */
int backup_fold(struct backup_folder *folder, size_t keep, bool quiet);
/* Only what was interrupted. */
int backup_fold_rest(struct backup_folder *folder, bool quiet);

/* ---- backup_list.c ---- */

struct backup_point_info {
    uint64_t size, bytes; /* of the disk; on the backups' filesystem */
    char *below;          /* the file that it is an overlay of; owned; NULL: none */
};

/* Looks at one point alone; complains and returns an exit code. */
int backup_point_look(const struct backup_folder *folder, const struct backup_point *point,
                      struct backup_point_info *info);

int backup_list(const struct backup_folder *folder, bool json);

/* Checks every file, and whether the chain is whole and can be read. */
int backup_verify(const struct backup_folder *folder, bool quiet);

#endif
