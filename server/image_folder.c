/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds, opens and lists the images in a folder. */
#include "image_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "block/driver.h"
#include "export.h"
#include "storage/folder.h"

/* Subfolders are listed to this depth, so that an endless tree ends. */
#define MAX_DEPTH 32
/* How much of a file the format is guessed from. */
#define HEAD_BYTES 512

struct image_folder {
    struct storage_folder folder;
    const struct plugin_config *config;
    const struct block_shared *shared;
};

int image_folder_open(const struct plugin_config *config, const struct block_shared *shared,
                      struct image_folder **out, struct diag *diag)
{
    CLEANUP_FREE struct image_folder *folder = calloc(1, sizeof *folder);

    if (!folder)
        return diag_errno(diag, ENOMEM, "dir=%s", config->dir);
    folder->config = config;
    folder->shared = shared;
    int err = storage_folder_open(&folder->folder, config->dir,
                                  config->references == REFERENCES_NONE, diag);
    if (!err)
        *out = TAKE(&folder);
    return err;
}

void image_folder_close(struct image_folder *folder)
{
    if (!folder)
        return;
    storage_folder_close(&folder->folder);
    free(folder);
}

const char *image_folder_path(const struct image_folder *folder)
{
    return folder->folder.path;
}

static bool means_nothing(int err)
{
    return err == -ENOENT || err == -ENOTDIR || err == -ENAMETOOLONG;
}

bool image_folder_has(const struct image_folder *folder, const char *name)
{
    struct stat sb;

    if (!storage_folder_takes(name))
        return false;
    CLEANUP_CLOSE int fd = storage_folder_openat(&folder->folder, name, O_PATH);
    /* A file that exists and can't be opened counts: opening the image will say why. */
    if (fd < 0)
        return !means_nothing(fd);
    return fstat(fd, &sb) == 0 && !S_ISDIR(sb.st_mode);
}

bool image_folder_has_other(const struct image_folder *folder, const char *name,
                            uint64_t device, uint64_t inode)
{
    struct stat sb;
    CLEANUP_CLOSE int fd = storage_folder_openat(&folder->folder, name, O_PATH);

    if (fd < 0) /* EXDEV, ELOOP: the name is now a link that leads out */
        return means_nothing(fd) || fd == -EXDEV || fd == -ELOOP;
    if (fstat(fd, &sb) != 0)
        return false;
    bool is_device = S_ISBLK(sb.st_mode);
    return device != (is_device ? sb.st_rdev : sb.st_dev) ||
           inode != (is_device ? 0 : sb.st_ino);
}

int image_folder_open_image(struct image_folder *folder, struct served_export *exp,
                            const _Atomic bool *give_up, struct diag *diag)
{
    CLEANUP_FREE char *path = storage_folder_path(&folder->folder, exp->name);

    if (!path)
        return diag_errno(diag, ENOMEM, "export '%.200s'", exp->name);
    const struct export_request request = {
        .file = path,
        .folder = &folder->folder,
        .give_up = give_up,
        .config = folder->config,
    };
    int err = export_open(exp, &request, folder->shared, diag);
    if (err)
        return err;
    err = export_start(exp);
    if (err) {
        diag_errno(diag, -err, "%s: starting its threads", path);
        (void)!export_close(exp);
    }
    return err;
}

/* ---- listing ---- */

struct listing {
    const struct image_folder *folder;
    image_folder_tell *tell;
    void *opaque;
};

/* Opens only regular files for reading: opening a device or FIFO may have an effect. */
static bool looks_like_image(const struct image_folder *folder, const char *name)
{
    const char *format = folder->config->format;
    uint8_t head[HEAD_BYTES];
    struct stat sb;

    CLEANUP_CLOSE int look = storage_folder_openat(&folder->folder, name, O_PATH);
    if (look < 0 || fstat(look, &sb) != 0 || !S_ISREG(sb.st_mode))
        return false;
    if (format && strcmp(format, "raw") == 0)
        return true;
    CLEANUP_CLOSE int fd =
        storage_folder_openat(&folder->folder, name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    ssize_t n = fd < 0 ? -1 : pread(fd, head, sizeof head, 0);
    return n > 0 && driver_probe(head, (size_t)n);
}

static int list_below(struct listing *l, const char *name, unsigned depth);

static int list_entry(struct listing *l, const char *name, unsigned depth)
{
    struct stat sb;
    CLEANUP_CLOSE int fd =
        storage_folder_openat(&l->folder->folder, name, O_PATH | O_NOFOLLOW);

    if (fd < 0 || fstat(fd, &sb) != 0)
        return 0;
    if (S_ISDIR(sb.st_mode))
        return depth < MAX_DEPTH ? list_below(l, name, depth + 1) : 0;
    return looks_like_image(l->folder, name) ? l->tell(l->opaque, name) : 0;
}

static int list_named(struct listing *l, const char *below, const char *entry,
                      unsigned depth)
{
    char *name;

    if (strcmp(entry, ".") == 0 || strcmp(entry, "..") == 0)
        return 0;
    if (asprintf(&name, "%s%s%s", below, *below ? "/" : "", entry) < 0)
        return -ENOMEM;
    int err = list_entry(l, name, depth);
    free(name);
    return err;
}

/* name: the subfolder's; "": the folder itself. */
static int list_below(struct listing *l, const char *name, unsigned depth)
{
    int err = 0;
    int fd = storage_folder_openat(&l->folder->folder, *name ? name : ".",
                                   O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);

    if (!dir && fd >= 0)
        close(fd);
    for (struct dirent *entry; !err && dir && (entry = readdir(dir));)
        err = list_named(l, name, entry->d_name, depth);
    if (dir)
        closedir(dir);
    return err;
}

int image_folder_list(const struct image_folder *folder, image_folder_tell *tell,
                      void *opaque)
{
    struct listing l = {.folder = folder, .tell = tell, .opaque = opaque};

    return list_below(&l, "", 0);
}
