/* SPDX-License-Identifier: BSD-3-Clause */
/* Builds nbdkit's command line. */
#include "serve_line.h"

#include <stddef.h>
#include <string.h>

#include "base/compiler.h"

/* A command line that is being built; the words are borrowed. */
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

int serve_count_settings(const struct serve_args *args)
{
    int n = 0;

    while (n < args->n_words && is_setting(args->words[n]))
        n++;
    return n;
}

const char *serve_setting(const struct serve_args *args, const char *key)
{
    size_t length = strlen(key);

    for (int i = 0; i < serve_count_settings(args); i++)
        if (strncmp(args->words[i], key, length) == 0 && args->words[i][length] == '=')
            return args->words[i] + length + 1;
    return NULL;
}

const char *serve_subject(const struct serve_args *args)
{
    static const char *const keys[] = {"file", "dir", "export"};

    if (args->image)
        return args->image;
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        const char *value = serve_setting(args, keys[i]);
        const char *colon = value && i == 2 ? strchr(value, ':') : NULL;
        if (value)
            return colon ? colon + 1 : value;
    }
    return NULL;
}

void serve_build_line(const struct serve_args *args, const char *plugin, const char *file,
                      const char *pidfile, const char **argv)
{
    struct command_line command = {.argv = argv}, *line = &command;
    int n_settings = serve_count_settings(args);

    add_word(line, "nbdkit");
    add_word(line, "-f");
    if (args->read_only)
        add_word(line, "-r");
    add_option(line, "-t", args->threads);
    add_option(line, "-P", pidfile);
    if (args->run || args->is_trial)
        add_option(line, "-U", "-");
    add_option(line, "--run", args->run);
    add_option(line, "-p", args->port);
    if (args->port)
        add_option(line, "-i", args->address);
    for (int i = n_settings; i < args->n_words; i++)
        add_word(line, args->words[i]);
    add_word(line, plugin);
    if (file)
        add_word(line, file);
    /* With writable=now an image that can't be written to fails at the start, not at a
     * client's connection. */
    if (!args->read_only && !serve_setting(args, "writable"))
        add_word(line, "writable=now");
    for (int i = 0; i < n_settings; i++)
        add_word(line, args->words[i]);
    line->argv[line->argc] = NULL;
}
