/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of commands. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/words.h"
#include "cli.h"
#include "registry.h"

static const struct cli_command *const commands[] = {
    &amend_command,  &backup_command,  &bench_command,   &bitmap_command,
    &check_command,  &commit_command,  &compare_command, &convert_command,
    &create_command, &dd_command,      &info_command,    &job_command,
    &map_command,    &measure_command, &metrics_command, &rebase_command,
    &resize_command, &restore_command, &serve_command,   &snapshot_command,
    &stats_command,
};

/* What the core has to say beside the results of its calls. */
static void log_as_command(enum log_level level, const char *fmt, va_list ap)
{
    if (level == LOG_DEBUG)
        return;
    fputs(level == LOG_WARNING ? "qimg: warning: " : "qimg: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

static int print_version(void)
{
    printf("qimg version %s\n", QIMG_VERSION);
    return cli_finish(CLI_OK);
}

static int print_help(void)
{
    struct driver_names_text formats;

    printf("usage: qimg command [options] operands\n"
           "Disk images in the formats %s: offline commands and an NBD server.\n\n"
           "  -h, --help     display this help and exit; as does 'qimg help [command]'\n"
           "  -V, --version  output version information and exit\n\n"
           "Commands; 'qimg command --help' tells their options:\n",
           driver_names(&formats));
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        printf("  %-8s %s\n", commands[i]->name, commands[i]->summary);
    return cli_finish(CLI_OK);
}

static const struct cli_command *find_command(const char *word)
{
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strcmp(commands[i]->name, word) == 0)
            return commands[i];
    return NULL;
}

static int run_command(const struct cli_command *command, int argc, char **argv)
{
    cli_set_command(command->name);
    return cli_finish(command->run(command, argc, argv));
}

static int unknown_command(const char *word)
{
    const char *names[ARRAY_LEN(commands)];
    struct words_hint hint;

    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        names[i] = commands[i]->name;
    return cli_usage_error("Command not found: %s: %s", word,
                           words_hint(&hint, word, names, ARRAY_LEN(names)));
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
    return cli_finish(CLI_OK);
}

int main(int argc, char **argv)
{
    registry_init();
    if (argc < 2)
        return cli_usage_error("Not enough arguments");
    const char *word = argv[1];
    if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0)
        return print_help();
    if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0)
        return print_version();
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
