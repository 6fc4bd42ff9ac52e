/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates or opens the target of a command, and gives it its name. */
#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/path.h"
#include "storage/protocol.h"

#define LARGEST_BLOCK (64u << 10) /* bytes; of any filesystem */

/* ---- existing files ---- */

/* Refuses `file` if it belongs to one of the chains. */
static int check_not_read(struct node *const *sources, struct storage *file)
{
    for (; *sources; sources++)
        for (const struct node *node = *sources; node; node = node->backing)
            if (storage_is_same(file, node->file) ||
                (node->data_file && storage_is_same(file, node->data_file)))
                return cli_error("%s: the target is a file of the source", file->name);
    return CLI_OK;
}

/* *is_there: the file exists, so it must not be removed on failure. */
static int check_name_not_read(struct node *const *sources,
                               const struct storage_protocol *protocol, const char *name,
                               bool *is_there)
{
    const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *file = NULL;

    int err = protocol->open(name, &how, &file, NULL);
    *is_there = err != -ENOENT;
    return err ? CLI_OK : check_not_read(sources, file);
}

/* Locks the file that will be replaced: nobody else may use it. */
static int lock_replaced(struct target *target, struct node *const *sources)
{
    static const struct storage_open how = {0};
    struct diag diag = {0};

    if (storage_open_file(target->path, &how, &target->replaced, &diag) < 0)
        return cli_diag(&diag);
    int code = check_not_read(sources, target->replaced);
    if (code == CLI_OK && storage_lock(target->replaced, STORAGE_WRITER, &diag) < 0)
        code = cli_diag(&diag);
    return code;
}

/* ---- the temporary file ---- */

static bool has_owner(int fd, const struct stat *old)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_uid == old->st_uid && st.st_gid == old->st_gid;
}

/* Gives the new file the owner and mode of the old one (NULL: the default mode). */
static int set_owner(int fd, const struct stat *old)
{
    mode_t mask = umask(0);

    umask(mask);
    if (!old)
        return fchmod(fd, 0666 & ~mask);
    if (fchown(fd, old->st_uid, old->st_gid) < 0 && !has_owner(fd, old)) {
        errno = EPERM;
        return -1;
    }
    return fchmod(fd, old->st_mode & 07777);
}

static int refuse_temporary(struct target *target, const char *what, int err)
{
    free(TAKE(&target->temporary));
    return cli_error("%s: cannot %s: %s", target->filename, what, strerror(err));
}

/* The user may not create a file in the folder, or not with the old file's owner. */
static bool is_not_allowed(int err)
{
    return err == EACCES || err == EPERM;
}

/* If that isn't allowed, an old file is overwritten in place (target->temporary is NULL
 * then). */
static int make_temporary(struct target *target, const struct stat *old)
{
    CLEANUP_FREE char *folder = strdup(target->path), *base = strdup(target->path);
    CLEANUP_CLOSE int fd = -1;

    if (!folder || !base ||
        asprintf(&target->temporary, "%s/.%.200s.XXXXXX", dirname(folder), basename(base)) <
            0) {
        target->temporary = NULL;
        return cli_error("out of memory");
    }
    fd = mkostemp(target->temporary, O_CLOEXEC);
    const char *what = "be created";
    int err = fd < 0 ? errno : 0;
    if (!err && set_owner(fd, old) < 0) {
        err = errno;
        what = "get the owner and mode of the old file";
        unlink(target->temporary);
    }
    if (!err)
        return CLI_OK;
    if (!old || !is_not_allowed(err))
        return refuse_temporary(target, what, err);
    free(TAKE(&target->temporary));
    return CLI_OK;
}

/* Decides whether a temporary file is used. */
static int plan_file(struct target *target, struct node *const *sources)
{
    struct stat st;

    target->path = realpath(target->filename, NULL);
    if (!target->path && lstat(target->filename, &st) == 0)
        return CLI_OK; /* a dangling link */
    if (!target->path) {
        target->path = strdup(target->filename);
        return target->path ? make_temporary(target, NULL) : cli_error("out of memory");
    }
    if (stat(target->path, &st) < 0)
        return cli_error("%s: %s", target->filename, strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return cli_error("%s: is neither a file nor a block device", target->filename);
    int code = lock_replaced(target, sources);
    if (code != CLI_OK)
        return code;
    if (S_ISREG(st.st_mode) && st.st_nlink == 1)
        code = make_temporary(target, &st);
    if (!target->temporary) /* it is opened again for writing */
        storage_close(TAKE(&target->replaced));
    return code;
}

/* ---- the data file of a new image ---- */

static int plan_data_file(struct target *target, const struct target_request *request)
{
    const char *name = request->create->data_file;
    CLEANUP_REFERENCE struct reference ref = {0};
    bool is_there;

    /* An invalid name is reported when the file is created. */
    if (!name || reference_resolve(target->filename, name, REFERENCES_ANY, &ref, NULL) < 0)
        return CLI_OK;
    if (strcmp(ref.path, target->filename) == 0 ||
        (target->path && strcmp(ref.path, target->path) == 0))
        return cli_error("%s: data_file: is the image itself", name);
    int code = check_name_not_read(request->sources, ref.protocol, ref.path, &is_there);
    if (code != CLI_OK || is_there)
        return code;
    target->data_file = TAKE(&ref.path);
    target->data_protocol = ref.protocol;
    return CLI_OK;
}

/* ---- opening ---- */

static void remove_files(struct target *target)
{
    if (target->temporary)
        unlink(target->temporary);
    if (target->data_file && target->data_made)
        target->data_protocol->remove(target->data_file);
    if (target->made)
        target->made->remove(target->filename);
}

static void release_target(struct target *target)
{
    storage_close(target->replaced);
    free(target->path);
    free(target->temporary);
    free(target->data_file);
}

static struct chain_options chain_options_for(const struct target_request *request)
{
    return (struct chain_options){
        .format = request->format ? request->format->name : NULL,
        .keep_locked = true,
        .node = {.cache = request->cache,
                 .compress = request->compress,
                 .no_final_sync = request->cache && request->cache->no_flush},
    };
}

/* By the name that the user knows: not the one that the file has until it is complete. */
static int complain(const struct target *target, const struct diag *diag)
{
    const char *other = target->temporary;
    size_t n = other ? strlen(other) : 0;

    return n && strncmp(diag->text, other, n) == 0
               ? cli_error("%s%s", target->filename, diag->text + n)
               : cli_diag(diag);
}

static int activate(struct target *target, const struct target_request *request)
{
    struct node *node = target->image.node;
    struct diag diag = {0};

    int code = check_not_read(request->sources, node->file);
    if (code == CLI_OK && request->compress && node_why_not_compress(node))
        code = cli_error("%s: Compression not supported for this file format: %s",
                         target->filename, node_why_not_compress(node));
    if (code == CLI_OK && node_activate(node, &diag) < 0)
        code = complain(target, &diag);
    if (code != CLI_OK)
        (void)image_close(&target->image);
    return code;
}

/* Except for the first block, which every new raw file has. */
static bool has_no_blocks(const struct node *node)
{
    uint64_t bytes;

    return storage_allocated(node->file, &bytes) == 0 && bytes <= LARGEST_BLOCK;
}

static int make_and_open(struct target *target, const struct target_request *request,
                         const struct storage_protocol *protocol)
{
    struct create_request *create = request->create;
    struct chain_options options = chain_options_for(request);
    const struct chain_passphrase key = {.bytes = create->passphrase,
                                         .len = create->passphrase_len};
    struct diag diag = {0};

    create->filename = target->temporary ? target->temporary : target->filename;
    create->protocol = protocol;
    if (create_image(request->format, create, &diag) < 0)
        return complain(target, &diag);
    target->data_made = true;
    target->made =
        protocol == &storage_protocol_file || !protocol->remove ? NULL : protocol;
    options.protocol = protocol;
    if (create->passphrase) {
        options.passphrases = &key;
        options.n_passphrases = 1;
    }
    int code = target->temporary ? image_open_temporary(&target->image, target->temporary,
                                                        target->filename, &options)
                                 : image_open(&target->image, create->filename, &options,
                                              IMAGE_NEVER_RAW);
    if (code != CLI_OK)
        return code;
    const struct node *node = target->image.node;
    target->is_zero = driver_can(request->format, DRIVER_CLUSTERS) ||
                      (node->host_zeroes_show && !node->file->fixed_size);
    target->has_no_blocks = has_no_blocks(node);
    if (driver_can(request->format, DRIVER_CLUSTERS))
        storage_expect_filling(node->file);
    return activate(target, request);
}

static int make_target(struct target *target, const struct target_request *request,
                       const struct storage_protocol *protocol)
{
    bool is_file = protocol == &storage_protocol_file;
    int code = is_file ? plan_file(target, request->sources) : CLI_OK;

    if (code == CLI_OK)
        code = plan_data_file(target, request);
    if (code == CLI_OK)
        code = make_and_open(target, request, protocol);
    if (code != CLI_OK) {
        remove_files(target);
        release_target(target);
    }
    return code;
}

int target_open_given(struct target *target, const struct cli_image *given,
                      const struct target_request *request)
{
    const struct chain_options options = chain_options_for(request);

    *target = (struct target){.filename = given->filename};
    int code = image_open_given(&target->image, given, &options);
    return code == CLI_OK ? activate(target, request) : code;
}

int target_open(struct target *target, const struct target_request *request)
{
    struct cli_image given = {.filename = request->filename,
                              .format = request->format->name};

    *target = (struct target){.filename = cli_local_name(request->filename),
                              .durable = !request->cache || !request->cache->no_flush};
    const struct storage_protocol *protocol = storage_protocol_of(request->filename);
    /* An export can't be created by us; but a raw disk can be written to an existing one. */
    bool is_made =
        protocol != &storage_protocol_nbd || driver_can(request->format, DRIVER_CLUSTERS);
    if (!request->create || !protocol->create || !is_made)
        return target_open_given(target, &given, request);
    return make_target(target, request, protocol);
}

/* ---- finishing ---- */

static void say_what_is_left(const struct target *target)
{
    if (target->temporary || target->made)
        cli_error(target->replaced ? "%s: is as it was before" : "%s: was not made",
                  target->filename);
    else if (!target->untouched)
        cli_error("%s: is incomplete", target->filename);
}

static int give_its_name(const struct target *target)
{
    if (rename(target->temporary, target->path) < 0)
        return cli_error("%s: cannot be given its name: %s", target->filename,
                         strerror(errno));
    int err = target->durable ? path_sync_folder(target->path) : 0;
    if (err) /* the file is there nevertheless */
        cli_error("%s: making its name durable: %s", target->filename, strerror(-err));
    return CLI_OK;
}

int target_finish(struct target *target, bool complete, int code)
{
    if (image_close(&target->image) != CLI_OK) {
        complete = false;
        code = CLI_FAILED;
    }
    if (complete && target->temporary && give_its_name(target) != CLI_OK) {
        complete = false;
        code = CLI_FAILED;
    }
    if (!complete) {
        remove_files(target);
        say_what_is_left(target);
    }
    release_target(target);
    return code;
}
