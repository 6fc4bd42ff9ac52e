/* SPDX-License-Identifier: BSD-3-Clause */
/* Introspection as in QEMU (SchemaInfo): an array with an object for each command, event and
 * type.  Commands and events appear under their names.  Built-in types have QAPI's names, an
 * array of NAME is "[NAME]", and all other types are numbered.
 *
 * A reference to a type asks for its name (name_type), which also describes the type the first
 * time.  The name is assigned before the description, since a type may refer to itself. */
#include "control_schema.h"

#include <stdio.h>
#include <string.h>

#include "control_events.h"

struct schema {
    json_t *list;
    /* names of types, by the addresses of their tables; of arrays and builtins, by their names */
    json_t *names;
};

static const struct control_type nothing = {.kind = TYPE_OBJECT};

static json_t *name_type(struct schema *schema, const struct control_type *type);

static void append_entity(struct schema *schema, json_t *name, const char *meta_type,
                          json_t *rest)
{
    json_t *entity = json_pack("{s:o,s:s}", "name", name, "meta-type", meta_type);

    json_object_update(entity, rest);
    json_decref(rest);
    json_array_append_new(schema->list, entity);
}

/* ---- members ---- */

static json_t *describe_member(const char *name, json_t *type_name, bool mandatory)
{
    json_t *member = json_pack("{s:s,s:o}", "name", name, "type", type_name);

    if (!mandatory)
        json_object_set_new(member, "default", json_null());
    return member;
}

static json_t *describe_words(json_t *values)
{
    json_t *members = json_array(), *value;
    size_t i;

    json_array_foreach (values, i, value)
        json_array_append_new(members, json_pack("{s:O}", "name", value));
    return json_pack("{s:o,s:o}", "members", members, "values", values);
}

/* The enum of a union's tag has no table of its own: its words are the variants' names. */
static json_t *name_tag(struct schema *schema, const struct control_type *owner)
{
    char name[32];
    json_t *values = json_array();

    for (const struct control_variant *const *v = owner->variants; *v; v++)
        json_array_append_new(values, json_string((*v)->name));
    snprintf(name, sizeof name, "%zu", json_object_size(schema->names));
    json_object_set_new(schema->names, name, json_true());
    append_entity(schema, json_string(name), "enum", describe_words(values));
    return json_string(name);
}

static json_t *describe_object(struct schema *schema, const struct control_type *type)
{
    json_t *members = json_array(), *variants = json_array();

    for (const struct control_arg *arg = type->members; arg && arg->name; arg++) {
        json_t *name = arg->type->kind == TYPE_TAG ? name_tag(schema, type)
                                                   : name_type(schema, arg->type);
        json_array_append_new(members, describe_member(arg->name, name, arg->mandatory));
    }
    json_t *object = json_pack("{s:o}", "members", members);
    for (const struct control_variant *const *v = type->variants; v && *v; v++)
        json_array_append_new(
            variants, json_pack("{s:s,s:o}", "case", (*v)->name, "type",
                                name_type(schema, (*v)->type ? (*v)->type : &nothing)));
    if (type->variants) {
        json_object_set_new(object, "tag", json_string(type->tag));
        json_object_set(object, "variants", variants);
    }
    json_decref(variants);
    return object;
}

static json_t *describe_alternate(struct schema *schema, const struct control_type *type)
{
    json_t *members = json_array();

    for (const struct control_type *const *choice = type->choices; *choice; choice++)
        json_array_append_new(members,
                              json_pack("{s:o}", "type", name_type(schema, *choice)));
    return json_pack("{s:o}", "members", members);
}

/* ---- types ---- */

/* NULL: not a built-in type. */
static const char *builtin_name(const struct control_type *type, const char **json_type)
{
    static const struct {
        const char *name, *json_type;
    } builtins[] = {
        [TYPE_STRING] = {"str", "string"}, [TYPE_BOOL] = {"bool", "boolean"},
        [TYPE_SIZE] = {"int", "int"},      [TYPE_NULL] = {"null", "null"},
        [TYPE_ANY] = {"any", "value"},
    };

    if (type->kind > TYPE_ANY)
        return NULL;
    *json_type = builtins[type->kind].json_type;
    return builtins[type->kind].name;
}

/* The tables that define a type.  Two types with the same tables are the same type. */
struct tables {
    const void *first, *second;
};

static struct tables tables_of(const struct control_type *type)
{
    switch (type->kind) {
    case TYPE_WORD:
        return (struct tables){type->words, NULL};
    case TYPE_ALTERNATE:
        return (struct tables){type->choices, NULL};
    default:
        return (struct tables){type->members, type->variants};
    }
}

static void describe_type(struct schema *schema, const struct control_type *type,
                          const char *name)
{
    json_t *values = json_array();

    switch (type->kind) {
    case TYPE_WORD:
        for (const char *const *word = type->words; *word; word++)
            json_array_append_new(values, json_string(*word));
        append_entity(schema, json_string(name), "enum", describe_words(values));
        return;
    case TYPE_ALTERNATE:
        append_entity(schema, json_string(name), "alternate",
                      describe_alternate(schema, type));
        break;
    default:
        append_entity(schema, json_string(name), "object", describe_object(schema, type));
        break;
    }
    json_decref(values);
}

static json_t *name_array(struct schema *schema, const struct control_type *type)
{
    json_t *element = name_type(schema, type->element);
    json_t *name = json_sprintf("[%s]", json_string_value(element));

    if (json_object_get(schema->names, json_string_value(name))) {
        json_decref(element);
        return name;
    }
    json_object_set_new(schema->names, json_string_value(name), json_true());
    append_entity(schema, json_incref(name), "array",
                  json_pack("{s:o}", "element-type", element));
    return name;
}

static json_t *name_builtin(struct schema *schema, const char *name, const char *json_type)
{
    if (!json_object_get(schema->names, name)) {
        json_object_set_new(schema->names, name, json_true());
        append_entity(schema, json_string(name), "builtin",
                      json_pack("{s:s}", "json-type", json_type));
    }
    return json_string(name);
}

/* Returns a new reference to the type's name. */
static json_t *name_type(struct schema *schema, const struct control_type *type)
{
    char key[64], name[32];
    const char *json_type, *builtin = builtin_name(type, &json_type);

    if (builtin)
        return name_builtin(schema, builtin, json_type);
    if (type->kind == TYPE_LIST)
        return name_array(schema, type);
    const struct tables tables = tables_of(type);
    snprintf(key, sizeof key, "%p %p", tables.first, tables.second);
    json_t *known = json_object_get(schema->names, key);
    if (known)
        return json_incref(known);
    snprintf(name, sizeof name, "%zu", json_object_size(schema->names));
    json_object_set_new(schema->names, key, json_string(name));
    describe_type(schema, type, name);
    return json_string(name);
}

/* ---- the command ---- */

static void add_command(struct schema *schema, const struct control_command *command)
{
    json_t *args = name_type(schema, command->args ? command->args : &nothing);
    json_t *result = name_type(schema, command->returns ? command->returns : &nothing);

    append_entity(schema, json_string(command->name), "command",
                  json_pack("{s:o,s:o}", "arg-type", args, "ret-type", result));
}

static json_t *query_schema(struct control_context *ctx, const json_t *args,
                            struct control_error *error)
{
    struct schema schema = {.list = json_array(), .names = json_object()};
    const struct control_command *command = NULL;

    (void)ctx;
    (void)args;
    (void)error;
    while ((command = control_next_command(command)))
        add_command(&schema, command);
    for (const struct control_event_kind *event = control_events; event->name; event++)
        append_entity(&schema, json_string(event->name), "event",
                      json_pack("{s:o}", "arg-type", name_type(&schema, event->data)));
    json_decref(schema.names);
    return schema.list;
}

/* ---- the type of its own result ---- */

static const char *const json_types[] = {"string", "number", "int",   "boolean", "null",
                                         "object", "array",  "value", NULL};

static const struct control_arg word_info[] = {{"name", STRING, true}, {0}};
static const struct control_arg member_info[] = {
    {"name", STRING, true}, {"type", STRING, true}, {"default", ANY, false}, {0}};
static const struct control_arg variant_info[] = {
    {"case", STRING, true}, {"type", STRING, true}, {0}};
static const struct control_arg choice_info[] = {{"type", STRING, true}, {0}};

static const struct control_arg builtin_info[] = {{"json-type", WORDS(json_types), true},
                                                  {0}};
static const struct control_arg enum_info[] = {
    {"members", LIST_OF(OBJECT(word_info)), true}, {"values", STRINGS, true}, {0}};
static const struct control_arg array_info[] = {{"element-type", STRING, true}, {0}};
static const struct control_arg object_info[] = {
    {"members", LIST_OF(OBJECT(member_info)), true},
    {"tag", STRING, false},
    {"variants", LIST_OF(OBJECT(variant_info)), false},
    {0},
};
static const struct control_arg alternate_info[] = {
    {"members", LIST_OF(OBJECT(choice_info)), true}, {0}};
static const struct control_arg command_info[] = {
    {"arg-type", STRING, true}, {"ret-type", STRING, true}, {0}};
static const struct control_arg event_info[] = {{"arg-type", STRING, true}, {0}};

static const struct control_variant builtin = {"builtin", OBJECT(builtin_info)},
                                    words = {"enum", OBJECT(enum_info)},
                                    array = {"array", OBJECT(array_info)},
                                    object = {"object", OBJECT(object_info)},
                                    alternate = {"alternate", OBJECT(alternate_info)},
                                    command = {"command", OBJECT(command_info)},
                                    event = {"event", OBJECT(event_info)};

static const struct control_variant *const meta_types[] = {
    &builtin, &words, &array, &object, &alternate, &command, &event, NULL};

static const struct control_arg entity_info[] = {
    {"name", STRING, true}, {"meta-type", TAG, true}, {0}};

const struct control_command control_schema_commands[] = {
    {"query-qmp-schema", NULL, LIST_OF(UNION(entity_info, "meta-type", meta_types)),
     query_schema},
    {0},
};
