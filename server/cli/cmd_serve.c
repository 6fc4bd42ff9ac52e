/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg serve`: nbdkit with the plugin and sensible defaults. */
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
#include "serve_passphrase.h"

/* The first descriptor of those that are passed on as listening sockets. */
#define PASSED_FD 3

/* nbdkit, its options and an end, beside the words taken from our command line. */
#define OWN_WORDS 24

/* nbdkit makes as many threads for each connection, without a limit of its own. */
#define MAX_THREADS 1024

enum { OPT_RUN = CLI_LONG_ONLY };

static const struct cli_option options[] = {
    {'r', "read-only", NULL, "serve read-only; no byte of the image changes"},
    {'s', "socket", "PATH", "listen on this Unix socket (default IMAGE.sock)"},
    {'p', "port", "PORT", "listen on this TCP port instead"},
    {'a', "address", "ADDRESS", "with -p: listen there (default localhost)"},
    {'t', "threads", "N", "requests of one client that run at once"},
    {OPT_RUN, "run", "COMMAND", "serve while COMMAND runs; it finds the URI in $uri"},
    {0},
};

struct serve_args {
    bool read_only;
    const char *socket, *port, *address, *threads, *run;
    bool activated; /* by systemd, or who does as it: the socket is there already */
    const char *image;
    char **words; /* key=value ... [nbdkit options] */
    int n_words;
};

/* A command line that is being put together; the words are borrowed. */
struct command_line {
    const char **argv;
    int argc;
};

static void add_word(struct command_line *line, const char *word)
{
    line->argv[line->argc++] = word;
}

static void add_option(struct command_line *line, const char *option, const char *value)
{
    if (value) {
        add_word(line, option);
        add_word(line, value);
    }
}

static bool is_setting(const char *word)
{
    return word[0] != '-' && strchr(word, '=');
}

static int count_settings(const struct serve_args *args)
{
    int n = 0;
    while (n < args->n_words && is_setting(args->words[n]))
        n++;
    return n;
}

static bool has_setting(const struct serve_args *args, const char *prefix)
{
    for (int i = 0; i < count_settings(args); i++)
        if (strncmp(args->words[i], prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

static void build_line(const struct serve_args *args, const char *plugin, const char *file,
                       const char *pidfile, struct command_line *line)
{
    int n_settings = count_settings(args);

    add_word(line, "nbdkit");
    add_word(line, "-f");
    if (args->read_only)
        add_word(line, "-r");
    add_option(line, "-t", args->threads);
    add_option(line, "-P", pidfile);
    if (args->run)
        add_option(line, "-U", "-");
    add_option(line, "--run", args->run);
    add_option(line, "-p", args->port);
    if (args->port)
        add_option(line, "-i", args->address);
    for (int i = n_settings; i < args->n_words; i++)
        add_word(line, args->words[i]);
    add_word(line, plugin);
    add_word(line, file);
    /* What would refuse a client at its first write refuses to start instead. */
    if (!args->read_only && !has_setting(args, "writable="))
        add_word(line, "writable=now");
    for (int i = 0; i < n_settings; i++)
        add_word(line, args->words[i]);
    line->argv[line->argc] = NULL;
}

/* Hands the socket to the program this process is about to become. */
static int pass_on(int fd)
{
    char pid[24];

    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    int rc = fd == PASSED_FD ? fcntl(fd, F_SETFD, 0) : dup2(fd, PASSED_FD);
    if (rc < 0 || setenv("LISTEN_FDS", "1", 1) < 0 || setenv("LISTEN_PID", pid, 1) < 0)
        return cli_error("cannot pass on the socket: %s", strerror(errno));
    return CLI_OK;
}

/* What nbdkit will listen on, when it isn't a private socket. */
struct place {
    char *uri, *path; /* owned; path NULL: no socket of ours */
    int fd;           /* -1: none that is open */
};

static void free_place(struct place *place)
{
    free(place->uri);
    free(place->path);
}

static int offer_unix_socket(const struct serve_args *args, struct place *place)
{
    CLEANUP_FREE char *beside_image = NULL;
    const char *path = args->socket;
    if (!path) {
        if (asprintf(&beside_image, "%s.sock", args->image) < 0) {
            beside_image = NULL;
            return cli_error("out of memory");
        }
        path = beside_image;
    }
    place->path = path_absolute(path);
    if (!place->path)
        return cli_error("%s: %s", path, strerror(errno));

    int fd;
    if (listen_unix(path, &fd) != CLI_OK || pass_on(fd) != CLI_OK)
        return CLI_FAILED;
    place->fd = PASSED_FD;
    place->uri = uri_of_unix_socket(place->path);
    return place->uri ? CLI_OK : cli_error("out of memory");
}

static int choose_place(const struct serve_args *args, struct place *place)
{
    if (args->activated) {
        place->fd = PASSED_FD;
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

/* Who gives a file for the process id to nbdkit itself wants to see from there when it is
 * ready, and so can't we. */
static bool wants_own_pidfile(const struct serve_args *args)
{
    for (int i = count_settings(args); i < args->n_words; i++)
        if (strncmp(args->words[i], "-P", 2) == 0 ||
            strncmp(args->words[i], "--pidfile", 9) == 0)
            return true;
    return false;
}

static int start_announcing(const struct serve_args *args, char **pidfile)
{
    CLEANUP(free_place) struct place place = {.fd = -1};

    *pidfile = NULL;
    int code = choose_place(args, &place);
    if (code != CLI_OK)
        return code;
    if (wants_own_pidfile(args)) {
        puts(place.uri);
        return cli_finish(CLI_OK, CLI_FAILED);
    }
    const struct announcement announcement = {
        .uri = place.uri, .socket_path = place.path, .socket_fd = place.fd};
    code = announce_when_ready(&announcement, pidfile);
    if (code != CLI_OK && place.path)
        unlink(place.path);
    return code;
}

static int serve_image(const struct serve_args *args)
{
    char path[PATH_MAX];
    CLEANUP_FREE char *file = NULL;
    CLEANUP_FREE char *pidfile = NULL;
    CLEANUP_FREE const char **argv =
        calloc((size_t)args->n_words + OWN_WORDS, sizeof *argv);
    if (!argv || asprintf(&file, "file=%s", args->image) < 0) {
        file = NULL;
        return cli_error("out of memory");
    }
    int code = CLI_OK;
    for (int i = 0; i < count_settings(args) && code == CLI_OK; i++)
        code = serve_passphrase_hide(&args->words[i]);
    if (code == CLI_OK && !args->run)
        code = start_announcing(args, &pidfile);
    if (code != CLI_OK)
        return code;

    struct command_line line = {.argv = argv};
    build_line(args, plugin_file(path, sizeof path), file, pidfile, &line);
    execvp("nbdkit", (char **)(uintptr_t)argv);
    return cli_error("cannot run nbdkit: %s", strerror(errno));
}

/* Are the sockets of the environment meant for this process? */
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
    case OPT_RUN:
        args->run = optarg;
        break;
    }
    return CLI_OK;
}

/* nbdkit would take the lower bits of a port that is too large. */
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

/* "passphrase.1=-3" and the like would be read from the socket. */
static int check_passphrases(const struct serve_args *args)
{
    for (int i = 0; i < count_settings(args); i++) {
        const char *value = serve_passphrase(args->words[i]);
        if (value && value[0] == '-' && atol(value + 1) == PASSED_FD && !args->port &&
            !args->run)
            return cli_usage_error(
                "%s: descriptor %d is the socket's: use another for the passphrase",
                args->words[i], PASSED_FD);
    }
    return CLI_OK;
}

static int check_usage(const struct serve_args *args)
{
    if ((args->socket != NULL) + (args->port != NULL) + (args->run != NULL) > 1)
        return cli_usage_error("-s, -p and --run exclude each other");
    if (args->activated && (args->socket || args->port || args->run))
        return cli_usage_error(
            "-s, -p and --run can't be used with a socket that is passed on (LISTEN_FDS)");
    if (check_number("-p", args->port, UINT16_MAX) != CLI_OK ||
        check_number("-t", args->threads, MAX_THREADS) != CLI_OK)
        return CLI_FAILED;
    int n = count_settings(args);
    if (n < args->n_words && args->words[n][0] != '-')
        return cli_usage_error("Unexpected argument: %s (settings are key=value)",
                               args->words[n]);
    return check_passphrases(args);
}

static int run_serve_command(const struct cli_command *self, int argc, char **argv)
{
    struct serve_args args = {.address = "localhost"};
    int code = cli_take_options(self, argc, argv, take_option, &args);

    if (code != CLI_GO_ON)
        return code;
    if (optind == argc)
        return cli_usage_error("Expecting image file name");
    args.activated = is_activated();
    args.image = cli_local_name(argv[optind]);
    args.words = argv + optind + 1;
    args.n_words = argc - optind - 1;
    return check_usage(&args) == CLI_OK ? serve_image(&args) : CLI_FAILED;
}

const struct cli_command serve_command = {
    .name = "serve",
    .operands = "image [key=value ...] [-- nbdkit options]",
    .summary = "Serve an image with nbdkit.",
    .options = options,
    .run = run_serve_command,
};
