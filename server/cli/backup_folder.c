/* SPDX-License-Identifier: BSD-3-Clause */
/* The files of a folder of backups. */
#include "backup_folder.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli.h"

#define ID_FILE ".qimg-backup"

/* ---- names ---- */

/* Does the text match the pattern, in which '#' stands for a digit? */
static bool goes_by(const char *text, const char *pattern, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (pattern[i] == '#' ? !isdigit((unsigned char)text[i]) : text[i] != pattern[i])
            return false;
    return true;
}

/* Parses "NUMBER-TIME" and the suffix; false: the file is no point's. */
static bool parse_name(const char *file, const char *suffix, struct backup_point *out)
{
    static const char when[] = "-########T######Z";
    const char *dot = strchr(file, '.');
    size_t digits = strspn(file, "0123456789");
    size_t length = digits + sizeof when - 1;

    if (!dot || strcmp(dot, suffix) != 0 || (size_t)(dot - file) != length || digits < 6 ||
        length >= sizeof out->name || !goes_by(file + digits, when, sizeof when - 1))
        return false;
    *out = (struct backup_point){.number = strtoul(file, NULL, 10)};
    memcpy(out->name, file, length);
    return out->number > 0;
}

char *backup_folder_file(const struct backup_folder *folder, const char *name,
                         const char *suffix)
{
    char *path;

    return asprintf(&path, "%s/%s%s", folder->path, name, suffix) < 0 ? NULL : path;
}

void backup_folder_next(const struct backup_folder *folder, char name[POINT_NAME_MAX])
{
    const struct backup_point *last =
        folder->n_points ? &folder->points[folder->n_points - 1] : NULL;
    time_t now = time(NULL);
    char when[20] = "";
    struct tm tm;

    if (gmtime_r(&now, &tm))
        strftime(when, sizeof when, "%Y%m%dT%H%M%SZ", &tm);
    snprintf(name, POINT_NAME_MAX, "%06lu-%s", last ? last->number + 1 : 1, when);
}

const struct backup_point *backup_folder_find(const struct backup_folder *folder,
                                              const char *word)
{
    bool latest = strcmp(word, "latest") == 0;
    bool is_number = *word && word[strspn(word, "0123456789")] == '\0';

    for (size_t i = folder->n_points; i-- > 0;) {
        const struct backup_point *point = &folder->points[i];
        if (!point->folding && (latest || strcmp(point->name, word) == 0 ||
                                (is_number && strtoul(word, NULL, 10) == point->number)))
            return point;
    }
    return NULL;
}

/* ---- listing ---- */

static int compare_points(const void *a, const void *b)
{
    const struct backup_point *left = a, *right = b;

    return left->number < right->number ? -1 : left->number > right->number;
}

static int add_point(struct backup_folder *folder, const struct backup_point *point)
{
    void *bigger =
        realloc(folder->points, (folder->n_points + 1) * sizeof folder->points[0]);

    if (!bigger)
        return cli_error("out of memory");
    folder->points = bigger;
    folder->points[folder->n_points++] = *point;
    return CLI_OK;
}

static bool has_file(const struct backup_folder *folder, const struct backup_point *point,
                     const char *suffix)
{
    char file[POINT_NAME_MAX + 16];

    snprintf(file, sizeof file, "%s%s", point->name, suffix);
    return faccessat(folder->fd, file, F_OK, 0) == 0;
}

static void note_folding(struct backup_folder *folder)
{
    for (size_t i = 0; i < folder->n_points; i++)
        folder->points[i].folding = has_file(folder, &folder->points[i], ".folding");
}

/* A folding begins with the marker, and ends without the point's file. */
int backup_folder_confirm(const struct backup_folder *folder,
                          const struct backup_point *point)
{
    if (!has_file(folder, point, ".folding") && has_file(folder, point, ".qcow2"))
        return CLI_OK;
    return cli_error("%s: the point '%s' has just been folded into the next one",
                     folder->path, point->name);
}

/* Calls `each` with the name of every file. */
static int each_file(struct backup_folder *folder,
                     int (*each)(struct backup_folder *folder, const char *file))
{
    int code = CLI_OK, fd = openat(folder->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;

    if (!dir) {
        if (fd >= 0)
            close(fd);
        return cli_error("%s: cannot be read: %s", folder->path, strerror(errno));
    }
    while (code == CLI_OK && (entry = readdir(dir)))
        code = each(folder, entry->d_name);
    closedir(dir);
    return code;
}

static int list_file(struct backup_folder *folder, const char *file)
{
    struct backup_point point;

    return parse_name(file, ".qcow2", &point) ? add_point(folder, &point) : CLI_OK;
}

int backup_folder_list(struct backup_folder *folder)
{
    free(folder->points);
    folder->points = NULL;
    folder->n_points = 0;
    int code = each_file(folder, list_file);
    if (folder->n_points)
        qsort(folder->points, folder->n_points, sizeof folder->points[0], compare_points);
    note_folding(folder);
    return code;
}

static int remove_leftover(struct backup_folder *folder, const char *file)
{
    struct backup_point point;

    /* A marker without its point's file is left from a folding that was completed: the file
     * has the next point's name. */
    if (parse_name(file, ".folding", &point)) {
        char folded[POINT_NAME_MAX + 16];
        snprintf(folded, sizeof folded, "%s.qcow2", point.name);
        if (faccessat(folder->fd, folded, F_OK, 0) != 0)
            unlinkat(folder->fd, file, 0);
    }
    if (parse_name(file, ".qcow2.part", &point) && unlinkat(folder->fd, file, 0) != 0 &&
        errno != ENOENT)
        return cli_error("%s/%s: was never completed, and can't be removed: %s",
                         folder->path, file, strerror(errno));
    return CLI_OK;
}

/* ---- the id and the lock ---- */

static void make_id(char id[17])
{
    uint64_t random = 0;

    if (getrandom(&random, sizeof random, 0) != sizeof random)
        random = (uint64_t)time(NULL) << 20 ^ (uint64_t)getpid();
    snprintf(id, 17, "%016llx", (unsigned long long)random);
}

static bool id_is_good(const char *id)
{
    return strlen(id) == 16 && strspn(id, "0123456789abcdef") == 16;
}

/* After a crash while it was being written, the id may be short, or contain zeroes. */
static bool id_was_never_made(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (text[i] && !strchr("0123456789abcdef", text[i]))
            return false;
    return true;
}

/* Reads the folder's id, or makes one.  Other programs may use the folder: a file that
 * doesn't look like an id, or the beginning of one, isn't overwritten. */
static int read_id(struct backup_folder *folder)
{
    struct stat sb;

    if (fstat(folder->lock_fd, &sb) != 0)
        return cli_error("%s/" ID_FILE ": %s", folder->path, strerror(errno));
    ssize_t n = pread(folder->lock_fd, folder->id, 16, 0);
    folder->id[n > 0 ? n : 0] = '\0';
    if (id_is_good(folder->id) && sb.st_size == 16)
        return CLI_OK;
    if (!S_ISREG(sb.st_mode) || sb.st_nlink > 1 || sb.st_size > 16 || n != sb.st_size ||
        !id_was_never_made(folder->id, (size_t)n))
        return cli_error("%s/" ID_FILE ": is no id of a folder of backups: 16 hexadecimal "
                         "digits",
                         folder->path);
    make_id(folder->id);
    if (ftruncate(folder->lock_fd, 0) == 0 &&
        pwrite(folder->lock_fd, folder->id, 16, 0) == 16 && fsync(folder->lock_fd) == 0)
        return backup_folder_sync(folder);
    return cli_error("%s/" ID_FILE ": %s", folder->path, strerror(errno));
}

static int lock_folder(struct backup_folder *folder)
{
    folder->lock_fd =
        openat(folder->fd, ID_FILE, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (folder->lock_fd < 0)
        return cli_error("%s/" ID_FILE ": %s", folder->path, strerror(errno));
    if (flock(folder->lock_fd, LOCK_EX | LOCK_NB) != 0)
        return cli_error("%s: another backup works on it", folder->path);
    return read_id(folder);
}

/* ---- opening ---- */

static int open_folder(struct backup_folder *folder, bool make)
{
    if (make && mkdir(folder->path, 0777) != 0 && errno != EEXIST)
        return cli_error("%s: cannot be made: %s", folder->path, strerror(errno));
    folder->fd = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->fd < 0)
        return cli_error("%s: %s", folder->path, strerror(errno));
    int code = make ? lock_folder(folder) : CLI_OK;
    if (code == CLI_OK && make)
        code = each_file(folder, remove_leftover);
    return code == CLI_OK ? backup_folder_list(folder) : code;
}

int backup_folder_open(struct backup_folder *folder, const char *path, bool make)
{
    *folder = (struct backup_folder){.path = path, .fd = -1, .lock_fd = -1};
    int code = open_folder(folder, make);
    if (code != CLI_OK)
        backup_folder_close(folder);
    return code;
}

void backup_folder_close(struct backup_folder *folder)
{
    if (folder->lock_fd >= 0)
        close(folder->lock_fd);
    if (folder->fd >= 0)
        close(folder->fd);
    free(folder->points);
}

/* ---- durability ---- */

int backup_folder_sync(const struct backup_folder *folder)
{
    return fsync(folder->fd) == 0
               ? CLI_OK
               : cli_error("%s: cannot be synced: %s", folder->path, strerror(errno));
}

int backup_folder_rename(const struct backup_folder *folder, const char *from,
                         const char *to)
{
    CLEANUP_CLOSE int fd = openat(folder->fd, from, O_RDWR | O_CLOEXEC);

    if (fd < 0 || fsync(fd) != 0)
        return cli_error("%s/%s: cannot be synced: %s", folder->path, from,
                         strerror(errno));
    if (renameat(folder->fd, from, folder->fd, to) != 0)
        return cli_error("%s/%s: cannot become %s: %s", folder->path, from, to,
                         strerror(errno));
    return backup_folder_sync(folder);
}
