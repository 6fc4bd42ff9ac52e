/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg version`: the versions and features of this program, and of nbdkit and the plugin
 * that `qimg serve` would use. */
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "cli.h"
#include "command_output.h"
#include "common/build_features.h"
#include "common/json_text.h"
#include "microhttpd_library.h"
#include "plugin_file.h"
#include "registry.h"

static const struct cli_option options[] = {
    {CLI_OUTPUT, "output", "human|json", "how to print"},
    {0},
};

static int take_option(void *opaque, int option)
{
    (void)option; /* the only one is --output */
    return cli_parse_output(optarg, opaque);
}

/* ---- as JSON ---- */

static json_t *describe_formats(void)
{
    json_t *formats = json_array();

    for (size_t i = 0; driver_at(i); i++)
        json_array_append_new(formats, json_string(driver_at(i)->name));
    return formats;
}

static json_t *describe_features(void)
{
    json_t *features = json_object();

    for (const struct build_feature *f = build_features; f->name; f++)
        json_object_set_new(features, f->name, json_boolean(*f->present));
    return features;
}

static void note_library(void *opaque, const char *name, const char *version)
{
    json_object_set_new(opaque, name, version ? json_string(version) : json_null());
}

static json_t *describe_libraries(void)
{
    json_t *libraries = json_object();

    registry_tell_libraries(note_library, libraries);
    note_library(libraries, "jansson", jansson_version_str());
    note_library(libraries, "libmicrohttpd", microhttpd_version());
    return libraries;
}

/* The rest of the line that begins with `key`; NULL: there is none. */
static json_t *value_of(const char *text, const char *key)
{
    size_t length = strlen(key);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) == 0) {
            CLEANUP_FREE char *value = strndup(line + length, strcspn(line + length, "\n"));
            return value ? json_from_text(value) : NULL;
        }
    }
    return NULL;
}

/* Asks nbdkit about the plugin that `qimg serve` would use. */
static json_t *describe_plugin(void)
{
    char path[PATH_MAX];
    const char *argv[] = {"nbdkit", plugin_file(path, sizeof path), "--dump-plugin", NULL};
    CLEANUP_FREE char *text = command_output(argv);
    json_t *version = text ? value_of(text, "qimg_version=") : NULL;

    return version ? json_pack("{s:o, s:o}", "version", version, "path",
                               value_of(text, "path="))
                   : json_null();
}

static json_t *describe_nbdkit(void)
{
    static const char *const argv[] = {"nbdkit", "--version", NULL};
    CLEANUP_FREE char *text = command_output(argv);
    json_t *version = text ? value_of(text, "nbdkit ") : NULL;

    return version
               ? json_pack("{s:o, s:o}", "version", version, "plugin", describe_plugin())
               : json_null();
}

static json_t *describe(void)
{
    return json_pack("{s:s, s:o, s:o, s:o, s:o}", "version", QIMG_VERSION, "formats",
                     describe_formats(), "features", describe_features(), "libraries",
                     describe_libraries(), "nbdkit", describe_nbdkit());
}

/* ---- as text ---- */

static void print_formats(const json_t *formats)
{
    size_t i;
    json_t *name;

    printf("formats:");
    json_array_foreach (formats, i, name)
        printf(" %s", json_string_value(name));
    putchar('\n');
}

static void print_features(json_t *features)
{
    const char *name;
    json_t *present;

    printf("features:");
    json_object_foreach (features, name, present)
        printf(" %c%s", json_is_true(present) ? '+' : '-', name);
    putchar('\n');
}

static void print_libraries(json_t *libraries)
{
    const char *name, *separator = " ";
    json_t *version;

    printf("libraries:");
    json_object_foreach (libraries, name, version) {
        printf("%s%s %s", separator, name,
               json_is_null(version) ? "(not found)" : json_string_value(version));
        separator = ", ";
    }
    putchar('\n');
}

static void print_nbdkit(const json_t *nbdkit)
{
    const char *version, *of_plugin, *path;

    if (json_unpack((json_t *)nbdkit, "{s:s}", "version", &version) != 0)
        printf("nbdkit: not found: qimg serve needs it\n");
    else if (json_unpack((json_t *)nbdkit, "{s:{s:s, s:s}}", "plugin", "version",
                         &of_plugin, "path", &path) != 0)
        printf("nbdkit: %s, which doesn't find the plugin\n", version);
    else
        printf("nbdkit: %s, with plugin %s: %s\n", version, of_plugin, path);
}

static void print_human(const json_t *about)
{
    printf("qimg version %s\n", QIMG_VERSION);
    print_formats(json_object_get(about, "formats"));
    print_features(json_object_get(about, "features"));
    print_libraries(json_object_get(about, "libraries"));
    print_nbdkit(json_object_get(about, "nbdkit"));
}

static int run_version(const struct cli_command *self, int argc, char **argv)
{
    enum cli_output output = OUTPUT_HUMAN;

    int code = cli_take_options(self, argc, argv, take_option, &output);
    if (code != CLI_GO_ON)
        return code;
    if (optind != argc)
        return cli_usage_error("version takes no operands: %s", argv[optind]);
    json_t *about = describe();
    if (!about)
        return cli_error("out of memory");
    if (output == OUTPUT_HUMAN)
        print_human(about);
    else if (json_dumpf(about, stdout, JSON_INDENT(4)) == 0)
        putchar('\n');
    json_decref(about);
    return CLI_OK;
}

const struct cli_command version_command = {
    .name = "version",
    .operands = "",
    .summary = "Tell what qimg is made of: formats, features, libraries, nbdkit.",
    .options = options,
    .run = run_version,
};
