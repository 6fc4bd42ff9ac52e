/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg serve`: runs nbdkit with the plugin and suitable defaults. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "announce.h"
#include "base/cleanup.h"
#include "base/path.h"
#include "cli.h"
#include "listen.h"
#include "plugin_file.h"
#include "serve_line.h"
#include "serve_passphrase.h"
#include "serve_replace.h"
#include "storage/rbd_name.h"

/* nbdkit creates this many threads for each connection, and has no limit of its own. */
#define MAX_THREADS 1024

enum { OPT_RUN = CLI_LONG_ONLY, OPT_REPLACE };

static const struct cli_option options[] = {
    {'r', "read-only", NULL, "serve read-only; no byte of the image changes"},
    {'s', "socket", "PATH", "listen on this Unix socket (default IMAGE.sock)"},
    {'p', "port", "PORT", "listen on this TCP port instead"},
    {'a', "address", "ADDRESS", "with -p: listen there (default localhost)"},
    {'t', "threads", "N", "requests of one client that run at once"},
    {OPT_REPLACE, "replace", NULL, "take over from the server on the socket of control="},
    {OPT_RUN, "run", "COMMAND", "serve while COMMAND runs; it finds the URI in $uri"},
    {0},
};

/* Sets the environment that tells nbdkit of n sockets, from PASSED_FD on. */
static int pass_on_sockets(unsigned n)
{
    char pid[24], number[16];

    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    snprintf(number, sizeof number, "%u", n);
    return setenv("LISTEN_FDS", number, 1) == 0 && setenv("LISTEN_PID", pid, 1) == 0
               ? CLI_OK
               : cli_error("cannot pass on the socket: %s", strerror(errno));
}

static int pass_on(int fd)
{
    int rc = fd == PASSED_FD ? fcntl(fd, F_SETFD, 0) : dup2(fd, PASSED_FD);

    return rc < 0 ? cli_error("cannot pass on the socket: %s", strerror(errno))
                  : pass_on_sockets(1);
}

/* Where nbdkit will listen. */
struct place {
    char *uri, *path;   /* owned; path NULL: no socket file of ours */
    unsigned n_sockets; /* open sockets, from PASSED_FD on */
    int replaced_fd;    /* control connection of the server that is replaced; -1: none */
};

static void free_place(struct place *place)
{
    free(place->uri);
    free(place->path);
}

/* IMAGE.sock: beside a file or a folder; for an image on Ceph RBD in the working directory. */
static char *default_socket(const char *image)
{
    CLEANUP_RBD_NAME struct rbd_name name = {0};
    struct diag diag = {0};
    char *path;

    if (rbd_name_is_one(image)) {
        if (rbd_name_parse(image, RBD_NAME_USER, &name, &diag) < 0) {
            cli_diag(&diag);
            return NULL;
        }
        const char *slash = strrchr(name.image, '/');
        image = slash ? slash + 1 : name.image;
    }
    size_t n = strlen(image);
    while (n > 1 && image[n - 1] == '/')
        n--;
    if (asprintf(&path, "%.*s.sock", (int)n, image) >= 0)
        return path;
    cli_error("out of memory");
    return NULL;
}

static int offer_unix_socket(const struct serve_args *args, struct place *place)
{
    CLEANUP_FREE char *chosen = args->socket ? NULL : default_socket(serve_subject(args));
    const char *path = args->socket ? args->socket : chosen;
    if (!path)
        return CLI_FAILED;
    place->path = path_absolute(path);
    if (!place->path)
        return cli_error("%s: %s", path, strerror(errno));

    /* An absolute path if it fits into the address, for a server that takes the socket over; else
     * the given one, which may be shorter. */
    int fd;
    if (strlen(place->path) < LISTEN_MAX_PATH)
        path = place->path;
    if (listen_unix(path, &fd) != CLI_OK || pass_on(fd) != CLI_OK)
        return CLI_FAILED;
    place->n_sockets = 1;
    place->uri = uri_of_unix_socket(place->path);
    return place->uri ? CLI_OK : cli_error("out of memory");
}

static int take_over(const struct serve_args *args, struct place *place)
{
    struct replaced replaced;
    int code = serve_replace_ask(args, &replaced);

    if (code != CLI_OK)
        return code;
    place->n_sockets = replaced.n_sockets;
    place->replaced_fd = replaced.fd;
    place->uri = uri_of_socket(PASSED_FD);
    if (!place->uri)
        return cli_error("what was handed over is no socket");
    place->path = path_of_socket(PASSED_FD);
    return pass_on_sockets(replaced.n_sockets);
}

static int choose_place(const struct serve_args *args, struct place *place)
{
    if (args->replaces)
        return take_over(args, place);
    if (args->activated) {
        place->n_sockets = 1;
        place->uri = uri_of_socket(PASSED_FD);
        return place->uri ? CLI_OK
                          : cli_error("LISTEN_FDS: descriptor %d is no listening socket",
                                      PASSED_FD);
    }
    if (!args->port)
        return offer_unix_socket(args, place);
    place->uri = uri_of_tcp(args->address, args->port);
    return place->uri ? CLI_OK : cli_error("out of memory");
}

/* If the user passes -P to nbdkit, its pid file can't tell us when nbdkit is ready. */
static bool wants_own_pidfile(const struct serve_args *args)
{
    for (int i = serve_count_settings(args); i < args->n_words; i++)
        if (strncmp(args->words[i], "-P", 2) == 0 ||
            strncmp(args->words[i], "--pidfile", 9) == 0)
            return true;
    return false;
}

/* Does nbdkit accept clients with TLS only? */
static bool requires_tls(const struct serve_args *args)
{
    bool required = false;

    for (int i = serve_count_settings(args); i < args->n_words; i++) {
        const char *word = args->words[i];
        if (strcmp(word, "--tls") == 0 && i + 1 < args->n_words)
            required = strcmp(args->words[i + 1], "require") == 0;
        else if (strncmp(word, "--tls=", 6) == 0)
            required = strcmp(word + 6, "require") == 0;
    }
    return required;
}

/* Replaces the scheme "nbd" of the URI by "nbds". */
static int demand_tls(struct place *place)
{
    char *uri;

    if (asprintf(&uri, "nbds%s", place->uri + strlen("nbd")) < 0)
        return cli_error("out of memory");
    free(place->uri);
    place->uri = uri;
    return CLI_OK;
}

static int start_announcing(const struct serve_args *args, char **pidfile)
{
    CLEANUP(free_place) struct place place = {.replaced_fd = -1};

    *pidfile = NULL;
    int code = choose_place(args, &place);
    if (code == CLI_OK && requires_tls(args))
        code = demand_tls(&place);
    if (code != CLI_OK)
        return code;
    if (wants_own_pidfile(args)) {
        puts(place.uri);
        return cli_finish(CLI_OK, CLI_FAILED);
    }
    const struct announcement announcement = {
        .uri = place.uri,
        .socket_path = place.path,
        .first_socket = PASSED_FD,
        .n_sockets = place.n_sockets,
        .replaced_fd = place.replaced_fd,
    };
    code = announce_when_ready(&announcement, pidfile);
    if (code != CLI_OK && place.path && !args->replaces)
        unlink(place.path);
    return code;
}

/* Both steps come first: passphrases must not be visible to others, and a trial must precede the
 * request to the server that is replaced. */
static int prepare(const struct serve_args *args)
{
    int code = CLI_OK;

    if (args->replaces) {
        code = serve_replace_keep_passphrases(args);
        return code == CLI_OK ? serve_replace_try(args) : code;
    }
    for (int i = 0; i < serve_count_settings(args) && code == CLI_OK; i++)
        code = serve_passphrase_hide(&args->words[i]);
    return code;
}

static int serve_image(const struct serve_args *args)
{
    char path[PATH_MAX];
    CLEANUP_FREE char *file = NULL;
    CLEANUP_FREE char *pidfile = NULL;
    CLEANUP_FREE const char **argv =
        calloc((size_t)args->n_words + SERVE_OWN_WORDS, sizeof *argv);
    if (!argv || (args->image && asprintf(&file, "file=%s", args->image) < 0)) {
        file = NULL;
        return cli_error("out of memory");
    }
    int code = prepare(args);
    if (code == CLI_OK && !args->run)
        code = start_announcing(args, &pidfile);
    if (code != CLI_OK)
        return code;

    serve_build_line(args, plugin_file(path, sizeof path), file, pidfile, argv);
    execvp("nbdkit", (char **)(uintptr_t)argv);
    return cli_error("cannot run nbdkit: %s", strerror(errno));
}

/* Does LISTEN_PID say that the sockets are for this process? */
static bool is_activated(void)
{
    const char *fds = getenv("LISTEN_FDS"), *pid = getenv("LISTEN_PID");

    return fds && pid && atol(fds) > 0 && atol(pid) == (long)getpid();
}

static int take_option(void *opaque, int option)
{
    struct serve_args *args = opaque;

    switch (option) {
    case 'r':
        args->read_only = true;
        break;
    case 's':
        args->socket = optarg;
        break;
    case 'p':
        args->port = optarg;
        break;
    case 'a':
        args->address = optarg;
        break;
    case 't':
        args->threads = optarg;
        break;
    case OPT_REPLACE:
        args->replaces = true;
        break;
    case OPT_RUN:
        args->run = optarg;
        break;
    }
    return CLI_OK;
}

/* nbdkit would truncate a port that is too large. */
static int check_number(const char *option, const char *text, long max)
{
    char *end;

    if (!text)
        return CLI_OK;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || text[0] == '+' || value < 1 || value > max)
        return cli_usage_error("%s %s: must be a number from 1 to %ld", option, text, max);
    return CLI_OK;
}

/* A passphrase read from descriptor PASSED_FD ("passphrase.1=-3") would be read from the socket. */
static int check_passphrases(const struct serve_args *args)
{
    for (int i = 0; i < serve_count_settings(args); i++) {
        const char *value = serve_passphrase(args->words[i]);
        if (value && value[0] == '-' && atol(value + 1) == PASSED_FD && !args->port &&
            !args->run && !args->replaces)
            return cli_usage_error(
                "%s: descriptor %d is the socket's: use another for the passphrase",
                args->words[i], PASSED_FD);
    }
    return CLI_OK;
}

static int check_replacement(const struct serve_args *args)
{
    if (!args->replaces)
        return CLI_OK;
    if (args->socket || args->port || args->run)
        return cli_usage_error("--replace listens where the other server does: -s, -p and "
                               "--run can't be used with it");
    if (args->activated)
        return cli_usage_error("--replace can't be used with a socket that is passed on "
                               "(LISTEN_FDS): its clients wait there anyway");
    if (!serve_setting(args, "control"))
        return cli_usage_error(
            "--replace needs control=PATH, the socket of the server that "
            "is replaced");
    if (wants_own_pidfile(args))
        return cli_usage_error("--replace needs nbdkit's option -P itself");
    return CLI_OK;
}

static int check_usage(const struct serve_args *args)
{
    if (!serve_subject(args))
        return cli_usage_error(
            "Expecting image file name, dir=FOLDER or export=NAME:IMAGE");
    if (check_replacement(args) != CLI_OK)
        return CLI_FAILED;
    if ((args->socket != NULL) + (args->port != NULL) + (args->run != NULL) > 1)
        return cli_usage_error("-s, -p and --run exclude each other");
    if (args->address && !args->port)
        return cli_usage_error("-a %s: goes with -p", args->address);
    if (args->activated && (args->socket || args->port || args->run))
        return cli_usage_error(
            "-s, -p and --run can't be used with a socket that is passed on (LISTEN_FDS)");
    if (check_number("-p", args->port, UINT16_MAX) != CLI_OK ||
        check_number("-t", args->threads, MAX_THREADS) != CLI_OK)
        return CLI_FAILED;
    int n = serve_count_settings(args);
    if (n < args->n_words && args->words[n][0] != '-')
        return cli_usage_error("Unexpected argument: %s (settings are key=value)",
                               args->words[n]);
    return check_passphrases(args);
}

/* Is it a setting that replaces the image's name? */
static bool says_what(const char *word)
{
    return strncmp(word, "file=", 5) == 0 || strncmp(word, "dir=", 4) == 0 ||
           strncmp(word, "export=", 7) == 0;
}

static int run_serve_command(const struct cli_command *self, int argc, char **argv)
{
    struct serve_args args = {0};
    int code = cli_take_options(self, argc, argv, take_option, &args);

    if (code != CLI_GO_ON)
        return code;
    args.activated = is_activated();
    if (optind < argc && !says_what(argv[optind]))
        args.image = cli_local_name(argv[optind++]);
    args.words = argv + optind;
    args.n_words = argc - optind;
    if (check_usage(&args) != CLI_OK)
        return CLI_FAILED;
    if (!args.address)
        args.address = "localhost";
    return serve_image(&args);
}

const struct cli_command serve_command = {
    .name = "serve",
    .operands = "[image] [key=value ...] [-- nbdkit options]",
    .summary = "Serve an image with nbdkit.",
    .options = options,
    .run = run_serve_command,
};
