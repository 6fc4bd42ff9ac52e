/* SPDX-License-Identifier: BSD-3-Clause */
/* `qimg snapshot`. */
#include <errno.h>
#include <getopt.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "cli.h"
#include "common/image_info_json.h"
#include "image.h"
#include "info_print.h"

static const struct cli_option options[] = {
    {'l', "list", NULL, "list all snapshots (the default)"},
    {'c', "create", "SNAPSHOT", "create one"},
    {'a', "apply", "SNAPSHOT", "give the disk the contents of one"},
    {'d', "delete", "SNAPSHOT", "delete one"},
    {'q', "quiet", NULL, "print nothing but errors"},
    CLI_FORMAT_OPTIONS,
    {0},
};

/* The actions, by option letter. */
static const struct action {
    char letter;
    enum snapshot_kind kind;
    const char *verb; /* in messages, as in qemu-img */
} actions[] = {
    {'c', SNAPSHOT_CREATE, "create"},
    {'a', SNAPSHOT_APPLY, "apply"},
    {'d', SNAPSHOT_DELETE, "delete"},
};

struct snapshot_args {
    struct cli_image image;
    bool list, quiet;            /* list: -l was given */
    const struct action *action; /* NULL: list the snapshots */
    const char *name;
};

/* ---- listing ---- */

static int print_list(struct node *node)
{
    CLEANUP_IMAGE_INFO struct image_info info = {0};

    if (image_info_read(node, IMAGE_INFO_RECORDED, &info))
        return cli_error("%s: out of memory", node->filename);
    json_t *object = image_info_json(&info);
    info_print_snapshots(object, stdout);
    json_decref(object);
    return CLI_OK;
}

static int list_snapshots(const struct snapshot_args *args)
{
    const struct chain_options chain = {
        .read_only = true,
        .no_backing = true,
        .node = {.lock_off = args->image.share, .describe = true},
    };
    struct image image;
    int code = image_open_given(&image, &args->image, &chain);

    if (code != CLI_OK)
        return code;
    code = print_list(image.node);
    int close_code = image_close(&image);
    return code != CLI_OK ? code : close_code;
}

/* ---- changing ---- */

static int fail(const struct snapshot_args *args, const struct diag *diag)
{
    return cli_error("Could not %s snapshot '%s': %s", args->action->verb, args->name,
                     diag->err == ENOENT ? "snapshot not found" : diag->text);
}

/* Apply accepts an id or a name, the id first; delete a name only. */
static int change(struct node *node, const struct snapshot_args *args, struct diag *diag)
{
    struct snapshot_request request = {.kind = args->action->kind, .name = args->name};
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    request.date_sec = (uint32_t)now.tv_sec;
    request.date_nsec = (uint32_t)now.tv_nsec;
    if (request.kind == SNAPSHOT_APPLY) {
        struct snapshot_request by_id = {.kind = request.kind, .id = args->name};
        int err = node_change_snapshot(node, &by_id, NULL, diag);
        if (err != -ENOENT)
            return err;
    }
    return node_change_snapshot(node, &request, NULL, diag);
}

static int change_snapshots(const struct snapshot_args *args)
{
    const struct chain_options chain = {.no_backing = true, .keep_locked = true};
    struct diag diag = {0};
    struct image image;

    if (args->image.share)
        return cli_error("%s: --force-share/-U can only be used to list snapshots",
                         args->image.filename);
    int code = image_open_given(&image, &args->image, &chain);
    if (code != CLI_OK)
        return code;
    if (node_activate(image.node, &diag) || change(image.node, args, &diag))
        code = fail(args, &diag);
    int close_code = image_close(&image);
    return code != CLI_OK ? code : close_code;
}

/* ---- the command line ---- */

static const struct action *find_action(int letter)
{
    for (size_t i = 0; i < ARRAY_LEN(actions); i++)
        if (actions[i].letter == letter)
            return &actions[i];
    return NULL;
}

static int take_option(void *opaque, int option)
{
    struct snapshot_args *args = opaque;
    const struct action *action = find_action(option);

    if (action || option == 'l') {
        if (args->list || args->action)
            return cli_usage_error("Cannot mix '-l', '-a', '-c', '-d'");
        args->list = !action;
        args->action = action;
        args->name = optarg;
        return CLI_OK;
    }
    if (option == 'q') {
        args->quiet = true;
        return CLI_OK;
    }
    return cli_take_image_option(&args->image, option);
}

static int run_snapshot_command(const struct cli_command *self, int argc, char **argv)
{
    struct snapshot_args args = {0};
    int code = cli_take_image(self, argc, argv, take_option, &args, &args.image);

    if (code == CLI_GO_ON)
        code = args.action ? change_snapshots(&args) : list_snapshots(&args);
    cli_free_image(&args.image);
    return code;
}

const struct cli_command snapshot_command = {
    .name = "snapshot",
    .operands = "filename",
    .summary = "List, create, apply and delete internal snapshots.",
    .options = options,
    .run = run_snapshot_command,
};
