/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens names below a folder, by openat2 or component by component. */
#include "storage/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/descriptors.h"

/* openat2 returns -EAGAIN if a folder is being renamed at that moment. */
#define TRIES 64

static int open_beneath(const struct storage_folder *folder, const char *name, int flags)
{
    const struct open_how how = {
        .flags = (unsigned)(flags | O_CLOEXEC),
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS |
                   (folder->no_links ? RESOLVE_NO_SYMLINKS : 0u),
    };

    for (unsigned i = 0; i < TRIES; i++) {
        long fd = syscall(SYS_openat2, folder->fd, name, &how, sizeof how);
        if (fd >= 0)
            return (int)fd;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
    }
    return -EAGAIN;
}

/* Opens each component by itself, so that no link is followed. */
static int open_step_by_step(const struct storage_folder *folder, const char *name,
                             int flags)
{
    CLEANUP_FREE char *copy = strdup(name);
    CLEANUP_CLOSE int last = -1;
    int at = folder->fd;

    if (!copy)
        return -ENOMEM;
    for (char *part = copy, *slash; (slash = strchr(part, '/')); part = slash + 1) {
        *slash = '\0';
        int next = openat(at, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0)
            return -errno;
        cleanup_close(&last);
        at = last = next;
    }
    int fd = openat(at, strrchr(name, '/') ? strrchr(name, '/') + 1 : name,
                    flags | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int storage_folder_openat(const struct storage_folder *folder, const char *name, int flags)
{
    DESCRIPTORS_GUARD();

    return folder->walks ? open_step_by_step(folder, name, flags)
                         : open_beneath(folder, name, flags);
}

/* False also if a system call filter rejects it, as old filters do with unknown calls. */
static bool is_openat2_known(const struct storage_folder *folder)
{
    int fd = open_beneath(folder, ".", O_PATH);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

int storage_folder_open(struct storage_folder *folder, const char *path, bool no_links,
                        struct diag *diag)
{
    size_t length = strlen(path);

    while (length > 0 && path[length - 1] == '/')
        length--;
    *folder = (struct storage_folder){
        .fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
        .no_links = no_links,
    };
    if (folder->fd < 0)
        return diag_errno(diag, errno, "%s: cannot be opened as a folder", path);
    folder->path = strndup(path, length);
    if (!folder->path) {
        storage_folder_close(folder);
        return diag_errno(diag, ENOMEM, "%s", path);
    }
    folder->walks = !is_openat2_known(folder);
    return 0;
}

void storage_folder_close(struct storage_folder *folder)
{
    if (folder->fd >= 0)
        close(folder->fd);
    free(folder->path);
    *folder = (struct storage_folder){.fd = -1};
}

bool storage_folder_takes(const char *name)
{
    for (const char *part = name;; part++) {
        size_t n = strcspn(part, "/");
        if (n == 0 || (part[0] == '.' && (n == 1 || (n == 2 && part[1] == '.'))))
            return false;
        part += n;
        if (!*part)
            return true;
    }
}

char *storage_folder_path(const struct storage_folder *folder, const char *name)
{
    char *path;

    return asprintf(&path, "%s/%s", folder->path, name) < 0 ? NULL : path;
}

const char *storage_folder_name(const struct storage_folder *folder, const char *path)
{
    return path + strlen(folder->path) + 1;
}
