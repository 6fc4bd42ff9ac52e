/* SPDX-License-Identifier: BSD-3-Clause */
/* block_set_io_throttle; and limits in other commands. */
#include "control_throttle.h"

#include <errno.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "common/json_text.h"
#include "export_table.h"

/* A parameter's name: that of the limit's average, or with a suffix. */
struct name {
    char text[32];
};

static struct name name_of(const char *begin, const char *end)
{
    struct name name;

    snprintf(name.text, sizeof name.text, "%s%s", begin, end);
    return name;
}

/* The names that a command uses. */
struct spelling {
    const char *limit[THROTTLE_KINDS], *burst, *length, *op_size;
};

static const struct spelling of_command = {
    {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"},
    "_max",
    "_max_length",
    "iops_size",
};

static const struct spelling of_options = {
    {"bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write"},
    "-max",
    "-max-length",
    "iops-size",
};

/* ---- reading and setting them ---- */

static bool read_choice(const json_t *args, const struct spelling *spelling,
                        struct throttle_choice *out, struct control_error *error)
{
    throttle_config_init(&out->config);
    for (unsigned kind = 0; kind < THROTTLE_KINDS; kind++) {
        struct throttle_limit *limit = &out->config.limit[kind];
        const char *name = spelling->limit[kind];
        limit->average = arg_size(args, name, 0);
        limit->burst = arg_size(args, name_of(name, spelling->burst).text, 0);
        limit->burst_seconds = arg_size(args, name_of(name, spelling->length).text, 1);
    }
    out->config.op_size = arg_size(args, spelling->op_size, 0);
    out->group = arg_text(args, "group");
    const char *fault = throttle_config_fault(&out->config);
    if (fault)
        control_fail(error, CLASS_GENERIC, "%s", fault);
    return !fault;
}

bool control_set_limits(struct control_context *ctx, struct served_export *exp,
                        const struct throttle_choice *choice, const char *name,
                        struct control_error *error)
{
    if (!throttle_config_is_any(&choice->config)) {
        throttle_leave(&exp->throttle);
        return true;
    }
    int err =
        throttle_join(ctx->throttles, &exp->throttle, choice->group, name, &choice->config);
    if (!err)
        return true;
    diag_errno(&error->diag, -err, "%s: limits", name);
    control_fail_diag(error, CLASS_GENERIC);
    return false;
}

static json_t *set_io_throttle(struct control_context *ctx, const json_t *args,
                               struct control_error *error)
{
    const char *device = arg_text(args, "device"), *id = arg_text(args, "id");
    struct throttle_choice choice;

    if (!device == !id)
        return control_fail(error, CLASS_GENERIC, "Need exactly one of 'device' and 'id'");
    const char *name = device ? device : id;
    CLEANUP_EXPORT struct served_export *exp = control_find_device(ctx, name, error);
    if (!exp || !read_choice(args, &of_command, &choice, error) ||
        !control_set_limits(ctx, exp, &choice, name, error))
        return NULL;
    return json_object();
}

/* ---- reporting them ---- */

static void add_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void add_limit(const char *name, const struct throttle_limit *limit, json_t *device)
{
    add_number(device, name, limit->average);
    if (!limit->burst)
        return;
    add_number(device, name_of(name, of_command.burst).text, limit->burst);
    add_number(device, name_of(name, of_command.length).text, limit->burst_seconds);
}

void control_add_limits(struct served_export *exp, json_t *device)
{
    struct throttle_config config;
    CLEANUP_FREE char *group = NULL;

    if (!throttle_look(&exp->throttle, &config, &group))
        return;
    for (unsigned kind = 0; kind < THROTTLE_KINDS; kind++)
        add_limit(of_command.limit[kind], &config.limit[kind], device);
    if (config.op_size)
        add_number(device, of_command.op_size, config.op_size);
    if (group)
        json_object_set_new(device, "group", json_from_text(group));
}

/* ---- the tables ---- */

#define LIMIT_ARGS(name, burst, length, mandatory)      \
    {name, SIZE, mandatory}, {name burst, SIZE, false}, \
    {                                                   \
        name length, SIZE, false                        \
    }

#define COMMAND_ARGS(name) LIMIT_ARGS(name, "_max", "_max_length", true)
#define OPTION_ARGS(name)  LIMIT_ARGS(name, "-max", "-max-length", false)

static const struct control_arg throttle_args[] = {
    {"device", STRING, false},
    {"id", STRING, false},
    COMMAND_ARGS("bps"),
    COMMAND_ARGS("bps_rd"),
    COMMAND_ARGS("bps_wr"),
    COMMAND_ARGS("iops"),
    COMMAND_ARGS("iops_rd"),
    COMMAND_ARGS("iops_wr"),
    {"iops_size", SIZE, false},
    {"group", STRING, false},
    {0},
};

static const struct control_arg option_args[] = {
    OPTION_ARGS("bps-total"),   OPTION_ARGS("bps-read"),  OPTION_ARGS("bps-write"),
    OPTION_ARGS("iops-total"),  OPTION_ARGS("iops-read"), OPTION_ARGS("iops-write"),
    {"iops-size", SIZE, false}, {"group", STRING, false}, {0},
};

const struct control_type control_throttling = {.kind = TYPE_OBJECT,
                                                .members = option_args};

bool control_read_throttling(const json_t *throttling, struct throttle_choice *out,
                             struct control_error *error)
{
    return read_choice(throttling, &of_options, out, error);
}

const struct control_command control_throttle_commands[] = {
    {"block_set_io_throttle", OBJECT(throttle_args), NULL, set_io_throttle},
    {0},
};
