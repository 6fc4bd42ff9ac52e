/* SPDX-License-Identifier: BSD-3-Clause */
/* What the commands of qimg share: option tables, messages, exit codes.  Threads: the main
 * one only.  Layer: server. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "secrets.h"

/* Exit codes, as in qemu-img. */
#define CLI_OK     0
#define CLI_FAILED 1

/* One option of a command; a table of them ends with an entry of zeros. */
struct cli_option {
    int value;            /* passed to cli_take; a letter is also the short option */
    const char *name;     /* long option; NULL: none */
    const char *argument; /* the name of its argument in the help; NULL: it takes none */
    const char *help;
};

struct cli_command {
    const char *name;
    const char *operands; /* for the help: "filename [size]" */
    const char *summary;
    const struct cli_option *options;
    int (*run)(const struct cli_command *self, int argc,
               char **argv); /* returns the exit code */
    int unwritten;           /* exit code when stdout can't be written; 0: CLI_FAILED */
};

extern const struct cli_command amend_command, backup_command, bench_command,
    bitmap_command, check_command, commit_command, compare_command, convert_command,
    create_command, dd_command, info_command, job_command, map_command, measure_command,
    metrics_command, rebase_command, resize_command, restore_command, serve_command,
    snapshot_command, stats_command, version_command;

/* Values of options without a letter.  A command's own ones begin at CLI_OWN_OPTIONS. */
enum {
    CLI_LONG_ONLY = 256,
    CLI_OUTPUT = CLI_LONG_ONLY,
    CLI_IMAGE_OPTS,
    CLI_OBJECT,
    CLI_OWN_OPTIONS
};

/* Stores one option, whose argument is optarg, in the command's `args`.  CLI_OK, or an exit
 * code after a complaint. */
typedef int cli_take(void *args, int option);

/* No exit code: the command continues. */
#define CLI_GO_ON (-1)

/* Prints the command's usage, and its options one per line. */
void cli_print_help(const struct cli_command *cmd);

/* Calls `take` for each option.  CLI_GO_ON: the operands start at argv[optind].  Otherwise
 * an exit code: the help or a complaint was printed. */
int cli_take_options(const struct cli_command *cmd, int argc, char **argv, cli_take *take,
                     void *args);

/* Begins a message on stderr with the name by which the program was called: "qimg: ", or
 * that of a link to it (such as qemu-img). */
void cli_print_name(void);

/* Prints "qimg: sentence" to stderr, and returns CLI_FAILED. */
int cli_error(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Sets the command whose help cli_usage_error points to; before the first call it is the
 * program's. */
void cli_set_command(const char *name);

/* As cli_error, for a wrong command line: also tells how to get help. */
int cli_usage_error(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Prints the diag's text, and returns CLI_FAILED. */
int cli_diag(const struct diag *diag);

/* As cli_diag, for a command with an option -U that failed because another process has a
 * lock: suggests -U. */
int cli_locked(const struct diag *diag);

enum cli_output { OUTPUT_HUMAN, OUTPUT_JSON };

/* Parses the argument of --output.  Complains and returns an exit code. */
int cli_parse_output(const char *word, enum cli_output *out);

struct cache_mode;

/* Parses the argument of -t (what: "cache") or -T ("source cache").  Complains and returns
 * an exit code. */
int cli_parse_cache(const char *what, const char *word, const struct cache_mode **out);

/* Parses the argument of -r: bytes per second; 0: no limit.  Complains and returns an exit
 * code. */
int cli_parse_rate(const char *text, uint64_t *speed);

/* ---- commands on one image ---- */

struct cli_image {
    const char *filename, *format; /* format NULL: not given */
    enum cli_output output;
    bool share;      /* -U: open it beside a writer, without a lock */
    bool image_opts; /* the filename is a list of options; image_open_given parses it */
    struct secrets secrets; /* given by --object, for use in options */
};

/* The row of --object; object_add takes its argument. */
#define CLI_OBJECT_OPTION                                            \
    {                                                                \
        CLI_OBJECT, "object", "OBJDEF",                              \
            "a key for options: secret,id=ID,data=TEXT or file=PATH" \
    }

/* Rows for a command's table; its `take` passes these options to cli_take_image_option. */
#define CLI_FORMAT_OPTIONS                                                          \
    {'f', "format", "FMT", "the image's format; by default told from its content"}, \
        {CLI_IMAGE_OPTS, "image-opts", NULL,                                        \
         "the filename is driver=...,file.filename=..."},                           \
        CLI_OBJECT_OPTION,                                                          \
    {                                                                               \
        'U', "force-share", NULL, "allow others to have the image open for writing" \
    }
#define CLI_IMAGE_OPTIONS \
    {CLI_OUTPUT, "output", "human|json", "how to print"}, CLI_FORMAT_OPTIONS

/* Frees what cli_take_image_option has stored. */
void cli_free_image(struct cli_image *image);

int cli_take_image_option(struct cli_image *image, int option);

/* As cli_take_options, for a command whose only operand is the image's name. */
int cli_take_image(const struct cli_command *cmd, int argc, char **argv, cli_take *take,
                   void *args, struct cli_image *image);

/* The name without a leading "file:", which doesn't change its meaning. */
const char *cli_local_name(const char *filename);

/* Flushes stdout.  If that fails, complains and returns `unwritten`, otherwise `code`. */
int cli_finish(int code, int unwritten);

#endif
