/* SPDX-License-Identifier: BSD-3-Clause */
/* A folder whose files are opened by untrusted names: no name leads out of it, neither by "..",
 * nor by a symbolic link, nor because a folder is renamed meanwhile.
 *
 * The kernel guarantees that (openat2, Linux 5.6).  On older kernels a name is followed
 * component by component, and symbolic links are never followed.
 *
 * Threads: any, once it is open.  Layer: storage. */
#ifndef STORAGE_FOLDER_H
#define STORAGE_FOLDER_H

#include <stdbool.h>

#include "base/compiler.h"
#include "base/diag.h"

struct storage_folder {
    int fd;     /* -1: not open */
    char *path; /* absolute, without a slash at its end; owned */
    bool no_links;
    bool walks; /* the kernel has no openat2 */
};

/* no_links: symbolic links aren't followed even if they stay inside.  Returns 0 or -errno. */
int storage_folder_open(struct storage_folder *folder, const char *path, bool no_links,
                        struct diag *diag) MUST_USE;
/* Does nothing when called again, or after a failed open. */
void storage_folder_close(struct storage_folder *folder);

/* Is the name relative, with at least one component, and none of them empty, "." or ".."?  Then
 * no other acceptable spelling names the same path. */
bool storage_folder_takes(const char *name);

/* As open(2), without O_CREAT, for a name that storage_folder_takes.  Returns the descriptor
 * (with O_CLOEXEC) or -errno: -EXDEV if it leads out of the folder, -ELOOP for a link that
 * isn't followed. */
int storage_folder_openat(const struct storage_folder *folder, const char *name,
                          int flags) MUST_USE;

/* Returns "PATH/NAME", which the caller frees; NULL when memory is short. */
char *storage_folder_path(const struct storage_folder *folder, const char *name);

/* The name from which storage_folder_path made this path. */
const char *storage_folder_name(const struct storage_folder *folder, const char *path);

#endif
