/* SPDX-License-Identifier: BSD-3-Clause */
/* Tries to serve, and asks the other server. */
#include "serve_replace.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/compiler.h"
#include "cli.h"
#include "common/json_text.h"
#include "plugin_file.h"
#include "qmp_client.h"
#include "serve_passphrase.h"
#include "storage/rbd.h"

/* The lowest number for own descriptors, above those that are passed on. */
#define ASIDE_FD 64

/* ---- trying ---- */

int serve_replace_keep_passphrases(const struct serve_args *args)
{
    for (int i = 0; i < serve_count_settings(args); i++) {
        const char *value = serve_passphrase(args->words[i]);
        if (value && strcmp(value, "-") == 0)
            return cli_error("%s: can't be asked for with --replace: +FILE or -FD gives it",
                             args->words[i]);
        int code = serve_passphrase_keep(&args->words[i]);
        if (code != CLI_OK)
            return code;
    }
    return CLI_OK;
}

static bool is_for_later(const char *setting)
{
    static const char *const keys[] = {"control=", "writable=", "lock="};

    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (strncmp(setting, keys[i], strlen(keys[i])) == 0)
            return true;
    return false;
}

/* The same words, changed so that they can serve beside the other server. */
static void make_trial(const struct serve_args *args, char **words,
                       struct serve_args *trial)
{
    static char no_lock[] = "lock=off";
    int n_settings = serve_count_settings(args);

    *trial = *args;
    trial->read_only = true;
    trial->is_trial = true;
    trial->words = words;
    trial->n_words = 0;
    for (int i = 0; i < n_settings; i++)
        if (!is_for_later(args->words[i]))
            words[trial->n_words++] = args->words[i];
    words[trial->n_words++] = no_lock;
    for (int i = n_settings; i < args->n_words; i++)
        words[trial->n_words++] = args->words[i];
}

/* In the child: standard output is reserved for the URI. */
static void become(const char **argv)
{
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);

    if (nowhere >= 0 && dup2(nowhere, STDOUT_FILENO) >= 0)
        execvp("nbdkit", (char **)(uintptr_t)argv);
    cli_error("cannot run nbdkit: %s", strerror(errno));
    _exit(CLI_FAILED);
}

/* nbdkit writes its process id into the pipe when it is ready; then it is ended. */
static int watch_trial(pid_t child, int fd)
{
    char bytes[64];
    int status;
    ssize_t n;

    do {
        n = read(fd, bytes, sizeof bytes);
    } while (n < 0 && errno == EINTR);
    (void)kill(child, SIGTERM);
    if (waitpid(child, &status, 0) < 0)
        return cli_error("cannot wait for nbdkit: %s", strerror(errno));
    return n > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0
               ? CLI_OK
               : cli_error("nothing was replaced: it can't be served that way");
}

static int run_trial(const char **argv, const int pipe_fds[2])
{
    fflush(stdout);
    pid_t child = fork();

    if (child == 0)
        become(argv);
    close(pipe_fds[1]);
    return child < 0 ? cli_error("cannot start a process: %s", strerror(errno))
                     : watch_trial(child, pipe_fds[0]);
}

static int try_words(const struct serve_args *args, const char *file, char **words,
                     const char **argv)
{
    char path[PATH_MAX], pidfile[32];
    struct serve_args trial;
    int pipe_fds[2];

    if (pipe(pipe_fds) < 0)
        return cli_error("cannot make a pipe: %s", strerror(errno));
    snprintf(pidfile, sizeof pidfile, "/dev/fd/%d", pipe_fds[1]);
    make_trial(args, words, &trial);
    serve_build_line(&trial, plugin_file(path, sizeof path), file, pidfile, argv);
    int code = run_trial(argv, pipe_fds);
    close(pipe_fds[0]);
    return code;
}

int serve_replace_try(const struct serve_args *args)
{
    CLEANUP_FREE char *file = NULL;
    CLEANUP_FREE char **words = calloc((size_t)args->n_words + 2, sizeof *words);
    CLEANUP_FREE const char **argv =
        calloc((size_t)args->n_words + 1 + SERVE_OWN_WORDS, sizeof *argv);

    if (!words || !argv || (args->image && asprintf(&file, "file=%s", args->image) < 0)) {
        file = NULL;
        return cli_error("out of memory");
    }
    int code = try_words(args, file, words, argv);
    for (int i = 0; i < serve_count_settings(args); i++)
        serve_passphrase_rewind(args->words[i]);
    return code;
}

/* ---- asking ---- */

/* A file's identity; NULL after a complaint. */
static json_t *describe_file(const char *path)
{
    struct stat st;

    if (stat(path, &st) == 0)
        return json_pack("{s:I,s:I}", "device", (json_int_t)(st.st_dev & INT64_MAX),
                         "inode", (json_int_t)(st.st_ino & INT64_MAX));
    cli_error("%s: %s", path, strerror(errno));
    return NULL;
}

/* An RBD image's name and identity: another cluster may have an image of the same name. */
static json_t *describe_rbd(const char *text)
{
    static const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *st = NULL;
    uint64_t device, inode;
    struct diag diag = {0};

    int err = storage_open_rbd(text, &how, &st, &diag);
    if (!err && storage_identity(st, &device, &inode) != 0)
        err = diag_set(&diag, EIO, "%s: it can't be told which image that is", st->name);
    if (err) {
        cli_diag(&diag);
        return NULL;
    }
    return json_pack("{s:o,s:I,s:I}", "place", json_from_text(st->name), "device",
                     (json_int_t)(device & INT64_MAX), "inode",
                     (json_int_t)(inode & INT64_MAX));
}

static int add_export(json_t *exports, const char *name, const char *path)
{
    json_t *export = rbd_name_is_one(path) ? describe_rbd(path) : describe_file(path);

    if (!export)
        return CLI_FAILED;
    json_object_set_new(export, "name", json_from_text(name));
    json_array_append_new(exports, export);
    return CLI_OK;
}

/* "NAME:IMAGE" */
static int add_named(json_t *exports, const char *setting)
{
    const char *colon = strchr(setting, ':');
    CLEANUP_FREE char *name = colon ? strndup(setting, (size_t)(colon - setting)) : NULL;

    if (!name)
        return cli_error("export=%s: must be NAME:IMAGE", setting);
    return add_export(exports, name, colon + 1);
}

static int describe_exports(const struct serve_args *args, json_t *exports)
{
    const char *file = args->image ? args->image : serve_setting(args, "file");
    int code = file ? add_export(exports, "", file) : CLI_OK;

    for (int i = 0; i < serve_count_settings(args) && code == CLI_OK; i++)
        if (strncmp(args->words[i], "export=", 7) == 0)
            code = add_named(exports, args->words[i] + 7);
    return code;
}

/* Everything that this server will serve, so that the other one can check that nothing is
 * missing.  NULL after a complaint. */
static json_t *describe_all(const struct serve_args *args)
{
    json_t *exports = json_array(), *all = json_pack("{s:o}", "exports", exports);
    const char *dir = serve_setting(args, "dir");
    json_t *folder = dir ? describe_file(dir) : NULL;

    if (folder)
        json_object_set_new(all, "folder", folder);
    if ((!dir || folder) && describe_exports(args, exports) == CLI_OK)
        return all;
    json_decref(all);
    return NULL;
}

/* Moves the sockets to PASSED_FD and above, where the next program inherits them. */
static int place_sockets(struct qmp *qmp)
{
    for (unsigned i = 0; i < qmp->n_fds; i++)
        if (dup2(qmp->fds[i], PASSED_FD + (int)i) < 0)
            return cli_error("cannot pass on the sockets: %s", strerror(errno));
    return CLI_OK;
}

static int ask(const struct serve_args *args, struct qmp *qmp, struct replaced *out)
{
    json_t *nothing, *all = describe_all(args);

    if (!all)
        return CLI_FAILED;
    int code = qmp_command(qmp, "x-qimg-handover", all, &nothing);
    json_decref(nothing);
    if (code != CLI_OK)
        return code;
    if (qmp->n_fds == 0)
        return cli_error("the server has handed no socket over");
    code = place_sockets(qmp);
    out->n_sockets = qmp->n_fds;
    out->fd = fcntl(qmp->fd, F_DUPFD_CLOEXEC, ASIDE_FD);
    if (code == CLI_OK && out->fd < 0)
        code = cli_error("cannot keep the connection: %s", strerror(errno));
    return code;
}

/* Moves the connection, whose number is needed for a socket. */
static int move_aside(struct qmp *qmp)
{
    int fd = fcntl(qmp->fd, F_DUPFD_CLOEXEC, ASIDE_FD);

    if (fd < 0)
        return cli_error("cannot keep the connection: %s", strerror(errno));
    close(qmp->fd);
    qmp->fd = fd;
    qmp->fds_from = ASIDE_FD;
    return CLI_OK;
}

int serve_replace_ask(const struct serve_args *args, struct replaced *out)
{
    struct qmp qmp;
    int code = qmp_open(&qmp, serve_setting(args, "control"));

    if (code != CLI_OK)
        return code;
    code = move_aside(&qmp);
    if (code == CLI_OK)
        code = ask(args, &qmp, out);
    qmp_close(&qmp);
    return code;
}
