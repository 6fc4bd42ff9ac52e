/* SPDX-License-Identifier: BSD-3-Clause */
/* Option parsing, messages and exit codes for all commands. */
#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/checked.h"
#include "base/plain_text.h"
#include "base/size.h"
#include "base/words.h"
#include "block/cache_mode.h"
#include "cli.h"
#include "object.h"

/* Enough for every command's table. */
#define MAX_OPTIONS 40

/* For usage lines: their length, the separator of alternatives, and the indentation of
 * continued lines. */
#define MAX_COLUMNS  100
#define BAR          " | "
#define USAGE_INDENT 8

/* How wide the options' column of the help is at least, and how long one of them may be. */
#define MIN_SPELLING 27
#define MAX_SPELLING 64

void cli_print_name(void)
{
    fprintf(stderr, "%s: ", program_invocation_short_name);
}

static void print_message(const char *fmt, va_list ap)
{
    CLEANUP_FREE char *text = NULL;

    fflush(stdout);
    cli_print_name();
    if (vasprintf(&text, fmt, ap) < 0)
        text = NULL;
    if (text)
        plain_text_tame(text, "\n"); /* some of qemu-img's messages have line ends */
    fprintf(stderr, "%s\n", text ? text : "out of memory");
}

int cli_error(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    print_message(fmt, ap);
    va_end(ap);
    return CLI_FAILED;
}

static const char *command_name = "";

void cli_set_command(const char *name)
{
    command_name = name;
}

int cli_usage_error(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    print_message(fmt, ap);
    va_end(ap);
    fprintf(stderr, "Try '%s %s%s--help' for more information\n",
            program_invocation_short_name, command_name, command_name[0] ? " " : "");
    return CLI_FAILED;
}

int cli_diag(const struct diag *diag)
{
    return cli_error("%s", diag->text);
}

int cli_locked(const struct diag *diag)
{
    return cli_error("%s; with -U it is looked at all the same, and may be seen changing",
                     diag->text);
}

/* The spellings of an option, and its argument; returns how long that is. */
static int spell_option(const struct cli_option *o, char *left, size_t size)
{
    size_t n = 0;

    left[0] = '\0';
    if (o->value < CLI_LONG_ONLY)
        n += (size_t)snprintf(left, size, "-%c", (char)o->value);
    if (o->name)
        n += (size_t)snprintf(left + n, size - n, "%s--%s", n ? ", " : "", o->name);
    if (o->argument)
        n += (size_t)snprintf(left + n, size - n, "%s%s", o->name ? "=" : " ", o->argument);
    return (int)n;
}

/* Two blanks at least stand before the help, by which completion finds where it begins. */
static void print_options(const struct cli_option *table)
{
    static const struct cli_option help = {'h', "help", NULL, "display this help and exit"};
    char left[MAX_SPELLING];
    int width = MIN_SPELLING;

    for (const struct cli_option *o = table; o->value; o++)
        width = MAX(width, spell_option(o, left, sizeof left));
    for (const struct cli_option *o = table; o->value; o++) {
        spell_option(o, left, sizeof left);
        printf("  %-*s  %s\n", width, left, o->help);
    }
    spell_option(&help, left, sizeof left);
    printf("  %-*s  %s\n", width, left, help.help);
}

/* Breaks the line between alternatives, so that it fits into a terminal. */
static void print_usage(const struct cli_command *cmd)
{
    size_t column = (size_t)printf("usage: qimg %s [options] ", cmd->name);

    for (const char *at = cmd->operands, *bar; at; at = bar ? bar + strlen(BAR) : NULL) {
        bar = strstr(at, BAR);
        size_t n = bar ? (size_t)(bar - at) + strlen(BAR) : strlen(at);
        if (column + n > MAX_COLUMNS)
            column = (size_t)printf("\n%*s", USAGE_INDENT, "") - 1;
        column += (size_t)printf("%.*s", (int)n, at);
    }
    putchar('\n');
}

void cli_print_help(const struct cli_command *cmd)
{
    print_usage(cmd);
    printf("%s\n\n", cmd->summary);
    print_options(cmd->options);
}

/* getopt_long's tables, made from ours. */
struct getopt_tables {
    char letters[2 * MAX_OPTIONS + 4];
    struct option names[MAX_OPTIONS + 2];
};

static void make_tables(const struct cli_command *cmd, struct getopt_tables *t)
{
    size_t letter = 0, name = 0;

    /* With a leading colon getopt_long tells a missing argument from an unknown option. */
    t->letters[letter++] = ':';
    t->letters[letter++] = 'h';
    t->names[name++] = (struct option){"help", no_argument, NULL, 'h'};
    for (const struct cli_option *o = cmd->options; o->value; o++) {
        assert(o - cmd->options < MAX_OPTIONS);
        if (o->value < CLI_LONG_ONLY) {
            t->letters[letter++] = (char)o->value;
            if (o->argument)
                t->letters[letter++] = ':';
        }
        if (o->name)
            t->names[name++] = (struct option){
                o->name, o->argument ? required_argument : no_argument, NULL, o->value};
    }
    t->letters[letter] = '\0';
    t->names[name] = (struct option){0};
}

static int unknown_long_option(const struct getopt_tables *t, const char *word)
{
    CLEANUP_FREE char *name = strdup(word);
    const char *names[MAX_OPTIONS + 2], *nearest = NULL;
    size_t n = 0;

    while (t->names[n].name) {
        names[n] = t->names[n].name;
        n++;
    }
    if (name && strncmp(name, "--", 2) == 0) {
        name[strcspn(name, "=")] = '\0';
        nearest = words_nearest(name + 2, names, n);
    }
    return nearest ? cli_usage_error("unrecognized option '%s': did you mean --%s?", word,
                                     nearest)
                   : cli_usage_error("unrecognized option '%s'", word);
}

/* For an unknown letter in a group like "-xyz", argv[optind - 1] isn't the group's argument. */
static int refuse_option(const struct getopt_tables *t, char **argv)
{
    if (optopt && optopt < CLI_LONG_ONLY && !strchr(t->letters, optopt))
        return cli_usage_error("unrecognized option '-%c'", optopt);
    return unknown_long_option(t, argv[optind - 1]);
}

int cli_take_options(const struct cli_command *cmd, int argc, char **argv, cli_take *take,
                     void *args)
{
    struct getopt_tables tables;
    int option;

    make_tables(cmd, &tables);
    opterr = 0;
    while ((option = getopt_long(argc, argv, tables.letters, tables.names, NULL)) != -1) {
        if (option == 'h') {
            cli_print_help(cmd);
            return CLI_OK;
        }
        if (option == ':')
            return cli_usage_error("missing argument for option '%s'", argv[optind - 1]);
        if (option == '?')
            return refuse_option(&tables, argv);
        int code = take(args, option);
        if (code != CLI_OK)
            return code;
    }
    return CLI_GO_ON;
}

int cli_parse_output(const char *word, enum cli_output *out)
{
    if (strcmp(word, "json") == 0)
        *out = OUTPUT_JSON;
    else if (strcmp(word, "human") == 0)
        *out = OUTPUT_HUMAN;
    else
        return cli_error("--output must be used with human or json as argument.");
    return CLI_OK;
}

int cli_take_image_option(struct cli_image *image, int option)
{
    switch (option) {
    case 'f':
        image->format = optarg;
        break;
    case CLI_OUTPUT:
        return cli_parse_output(optarg, &image->output);
    case 'U':
        image->share = true;
        break;
    case CLI_OBJECT:
        return object_add(&image->secrets, optarg);
    case CLI_IMAGE_OPTS:
        image->image_opts = true;
        break;
    }
    return CLI_OK;
}

void cli_free_image(struct cli_image *image)
{
    secrets_free(&image->secrets);
}

int cli_take_image(const struct cli_command *cmd, int argc, char **argv, cli_take *take,
                   void *args, struct cli_image *image)
{
    int code = cli_take_options(cmd, argc, argv, take, args);

    if (code != CLI_GO_ON)
        return code;
    if (argc - optind != 1)
        return cli_usage_error("Expecting one image file name");
    image->filename = argv[optind];
    return CLI_GO_ON;
}

int cli_parse_cache(const char *what, const char *word, const struct cache_mode **out)
{
    *out = cache_mode_find(word);
    return *out ? CLI_OK
                : cli_error("Invalid %s option: %s: must be %s", what, word,
                            cache_mode_names());
}

int cli_parse_rate(const char *text, uint64_t *speed)
{
    if (size_parse(text, speed) == 0 && *speed <= INT64_MAX)
        return CLI_OK;
    return cli_error("Invalid rate limit specified: '%s': it is a number of bytes per "
                     "second, or one followed by k, M, G, T, P or E",
                     text);
}

const char *cli_local_name(const char *filename)
{
    return strncmp(filename, "file:", 5) == 0 ? filename + 5 : filename;
}

static bool is_closed_pipe(int fd)
{
    struct pollfd output = {.fd = fd, .events = POLLOUT};

    return poll(&output, 1, 0) == 1 && output.revents & (POLLERR | POLLHUP);
}

int cli_finish(int code, int unwritten)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    if (is_closed_pipe(STDOUT_FILENO)) /* its reader has seen enough */
        return code;
    cli_error("cannot write to standard output: %s", strerror(errno ? errno : EIO));
    return unwritten;
}
