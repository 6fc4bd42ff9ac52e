/* SPDX-License-Identifier: BSD-3-Clause */
/* What the commands of qimg share: option tables, messages, exit codes.
 * Threads: none but the main one.  Layer: server. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "secrets.h"

/* Exit codes, as qemu-img's. */
#define CLI_OK     0
#define CLI_FAILED 1

/* One option of a command; a table of them ends with a zero name and value. */
struct cli_option {
    int value;            /* what cli_take is given; a letter is the short option, too */
    const char *name;     /* long option, NULL: none */
    const char *argument; /* its argument's name in the help, NULL: takes none */
    const char *help;
};

struct cli_command {
    const char *name;
    const char *operands; /* for the help: "filename [size]" */
    const char *summary;
    const struct cli_option *options;
    int (*run)(const struct cli_command *self, int argc,
               char **argv); /* returns the exit code */
    int unwritten;           /* the exit code when stdout takes no more; 0: CLI_FAILED */
};

extern const struct cli_command amend_command, backup_command, bench_command,
    bitmap_command, check_command, commit_command, compare_command, convert_command,
    create_command, dd_command, info_command, job_command, map_command, measure_command,
    metrics_command, rebase_command, resize_command, restore_command, serve_command,
    snapshot_command, stats_command, version_command;

/* The values of options that have no letter start here; a command's own come after. */
enum {
    CLI_LONG_ONLY = 256,
    CLI_OUTPUT = CLI_LONG_ONLY,
    CLI_IMAGE_OPTS,
    CLI_OBJECT,
    CLI_OWN_OPTIONS
};

/* Notes one option of a command's table, whose argument is in optarg, in the command's
 * arguments.  CLI_OK, or the exit code after a complaint. */
typedef int cli_take(void *args, int option);

/* Not an exit code: the command goes on. */
#define CLI_GO_ON (-1)

/* Its usage, and its options one to a line. */
void cli_print_help(const struct cli_command *cmd);

/* Has `take` note all options.  CLI_GO_ON, and operands start at argv[optind]; or the exit
 * code to leave with: the help or a complaint was printed. */
int cli_take_options(const struct cli_command *cmd, int argc, char **argv, cli_take *take,
                     void *args);

/* Begins a message on stderr: "qimg: ", or the name of a link to it by which it was called
 * (qemu-img, in whose place it stands). */
void cli_print_name(void);

/* Prints "qimg: sentence" and returns CLI_FAILED. */
int cli_error(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* The command that runs, for where help is; none yet: of the program. */
void cli_set_command(const char *name);

/* As cli_error, for a command line that makes no sense: adds where help is. */
int cli_usage_error(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Prints what a diag says and returns CLI_FAILED. */
int cli_diag(const struct diag *diag);

/* As cli_diag, for a command with -U that met another's lock. */
int cli_locked(const struct diag *diag);

enum cli_output { OUTPUT_HUMAN, OUTPUT_JSON };

/* The word of --output; complains when it is another one. */
int cli_parse_output(const char *word, enum cli_output *out);

struct cache_mode;

/* The word of -t ("cache") or -T ("source cache"); complains when it is another one. */
int cli_parse_cache(const char *what, const char *word, const struct cache_mode **out);

/* Bytes per second, of -r. */
int cli_parse_rate(const char *text, uint64_t *speed);

/* ---- commands that look at one image ---- */

struct cli_image {
    const char *filename, *format; /* format NULL: not given */
    enum cli_output output;
    bool share;      /* with a writer */
    bool image_opts; /* the filename is a list of options, which image_open takes apart */
    struct secrets secrets; /* that these can name */
};

/* Keys for options that name them; object_add takes it. */
#define CLI_OBJECT_OPTION                                            \
    {                                                                \
        CLI_OBJECT, "object", "OBJDEF",                              \
            "a key for options: secret,id=ID,data=TEXT or file=PATH" \
    }

/* Their rows in a command's table; `take` leaves these options to cli_take_image_option. */
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

/* Releases what cli_take_image_option has taken. */
void cli_free_image(struct cli_image *image);

int cli_take_image_option(struct cli_image *image, int option);

/* As cli_take_options, and the only operand is the image's name. */
int cli_take_image(const struct cli_command *cmd, int argc, char **argv, cli_take *take,
                   void *args, struct cli_image *image);

/* The name without a leading "file:", which means the same as without it. */
const char *cli_local_name(const char *filename);

/* Flushes stdout; when that fails, says so and returns `unwritten` instead of `code`. */
int cli_finish(int code, int unwritten);

#endif
