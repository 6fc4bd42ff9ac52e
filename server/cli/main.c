/* SPDX-License-Identifier: BSD-3-Clause */
/* The program `qimg`: finds the command and runs it. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/words.h"
#include "block/driver.h"
#include "cli.h"
#include "registry.h"
#include "storage/protocol.h"

/* In the order of the help. */
#define GROUP_MAX 8
static const struct command_group {
    const char *title;
    bool offline;                                  /* qemu-img has these commands */
    const struct cli_command *commands[GROUP_MAX]; /* the unused rest is NULL */
} groups[] = {
    {"Images",
     true,
     {&create_command, &info_command, &check_command, &map_command, &measure_command}},
    {"Changing",
     true,
     {&resize_command, &commit_command, &rebase_command, &amend_command, &snapshot_command,
      &bitmap_command}},
    {"Copying", true, {&convert_command, &compare_command, &dd_command, &bench_command}},
    {"Live",
     false,
     {&serve_command, &job_command, &backup_command, &restore_command, &stats_command,
      &metrics_command, &version_command}},
};

#define COMMANDS_MAX (GROUP_MAX * ARRAY_LEN(groups))

/* Prints warnings and errors that library code logs. */
static void log_as_command(enum log_level level, const char *fmt, va_list ap)
{
    if (level == LOG_DEBUG)
        return;
    cli_print_name();
    if (level == LOG_WARNING)
        fputs("warning: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

static void print_group(const struct command_group *group)
{
    printf("\n%s:\n", group->title);
    for (size_t i = 0; i < GROUP_MAX && group->commands[i]; i++)
        printf("  %-8s %s\n", group->commands[i]->name, group->commands[i]->summary);
}

/* Scripts look for this line: the formats for -f, and the protocols. */
static void print_supported(void)
{
    fputs("\nSupported formats:", stdout);
    for (size_t i = 0; driver_at(i); i++)
        printf(" %s", driver_at(i)->name);
    for (size_t i = 0; storage_protocol_at(i); i++)
        printf(" %s", storage_protocol_at(i)->name);
    putchar('\n');
}

static int print_help(void)
{
    struct driver_names_text formats;

    printf("usage: qimg command [options] operands\n"
           "Disk images in the formats %s: offline commands and an NBD server.\n\n"
           "  -h, --help     display this help and exit; as does 'qimg help [command]'\n"
           "  -V, --version  the same as the command version\n\n"
           "Commands; 'qimg command --help' tells their options:\n",
           driver_names(&formats));
    for (size_t g = 0; g < ARRAY_LEN(groups); g++)
        print_group(&groups[g]);
    print_supported();
    return cli_finish(CLI_OK, CLI_FAILED);
}

/* Lists the commands of all groups; returns their number. */
static size_t list_commands(const struct cli_command **out)
{
    size_t n = 0;

    for (size_t g = 0; g < ARRAY_LEN(groups); g++)
        for (size_t i = 0; i < GROUP_MAX && groups[g].commands[i]; i++)
            out[n++] = groups[g].commands[i];
    return n;
}

static const struct cli_command *find_command(const char *word)
{
    const struct cli_command *commands[COMMANDS_MAX];
    size_t n = list_commands(commands);

    for (size_t i = 0; i < n; i++)
        if (strcmp(commands[i]->name, word) == 0)
            return commands[i];
    return NULL;
}

/* Like qemu-img, offline commands finish their work when nobody reads their output any more, as in
 * `qimg convert -p ... | head -1`. */
static void ignore_closed_pipes(const struct cli_command *command)
{
    for (size_t g = 0; g < ARRAY_LEN(groups); g++)
        for (size_t i = 0; i < GROUP_MAX; i++)
            if (groups[g].offline && groups[g].commands[i] == command)
                (void)signal(SIGPIPE, SIG_IGN);
}

static int run_command(const struct cli_command *command, int argc, char **argv)
{
    cli_set_command(command->name);
    ignore_closed_pipes(command);
    int code = command->run(command, argc, argv);
    return cli_finish(code, MAX(command->unwritten, CLI_FAILED));
}

static int unknown_command(const char *word)
{
    const struct cli_command *commands[COMMANDS_MAX];
    const char *names[COMMANDS_MAX];
    size_t n = list_commands(commands);
    struct words_hint hint;

    for (size_t i = 0; i < n; i++)
        names[i] = commands[i]->name;
    return cli_usage_error("Command not found: %s: %s", word,
                           words_hint(&hint, word, names, n));
}

/* `qimg help [COMMAND]`. */
static int help_with(int argc, char **argv)
{
    if (argc < 3)
        return print_help();
    const struct cli_command *command = find_command(argv[2]);
    if (!command)
        return unknown_command(argv[2]);
    cli_print_help(command);
    return cli_finish(CLI_OK, CLI_FAILED);
}

/* If a standard descriptor is closed, the next file that is opened gets its number: an image, over
 * whose header the program's output would be written.  So closed ones are opened first, in a way
 * that makes reads (or writes) fail, as with a closed descriptor. */
static bool hold_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        int how = fd == STDIN_FILENO ? O_WRONLY : O_RDONLY;
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", how) != fd)
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    if (!hold_standard_descriptors())
        return CLI_FAILED;
    registry_init();
    if (argc < 2)
        return cli_usage_error("Not enough arguments");
    const char *word = argv[1];
    if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0)
        return print_help();
    if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0)
        return run_command(&version_command, argc - 1, argv + 1);
    if (word[0] == '-')
        return cli_usage_error("unrecognized option '%s'", word);

    log_set_sink(log_as_command);
    if (strcmp(word, "help") == 0)
        return help_with(argc, argv);
    const struct cli_command *command = find_command(word);
    if (command)
        return run_command(command, argc - 1, argv + 1);
    return unknown_command(word);
}
