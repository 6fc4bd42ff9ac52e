/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks values against their types. */
#include "control_types.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "control_cmds.h"

const struct control_type control_string = {.kind = TYPE_STRING},
                          control_bool = {.kind = TYPE_BOOL},
                          control_size = {.kind = TYPE_SIZE},
                          control_null = {.kind = TYPE_NULL},
                          control_any = {.kind = TYPE_ANY},
                          control_tag = {.kind = TYPE_TAG},
                          control_strings = {.kind = TYPE_LIST, .element = &control_string};

static const struct control_type nothing = {.kind = TYPE_OBJECT};

/* ---- place within a value ---- */

/* A member or, if it has no name, an element of the outer value. */
struct place {
    const struct place *outer; /* NULL: the whole value, called `name` */
    const char *name;
    size_t index;
};

struct place_text {
    char text[256];
};

/* In QEMU's form: "actions[1].data.node". */
static void append_place(struct place_text *out, const struct place *place)
{
    if (!place->outer)
        return;
    append_place(out, place->outer);
    size_t used = strlen(out->text), left = sizeof out->text - used;
    if (place->name)
        snprintf(out->text + used, left, "%s%.100s", used ? "." : "", place->name);
    else
        snprintf(out->text + used, left, "[%zu]", place->index);
}

static struct place_text describe_place(const struct place *place)
{
    struct place_text out = {""};

    append_place(&out, place);
    if (!out.text[0])
        snprintf(out.text, sizeof out.text, "%s", place->name);
    return out;
}

/* ---- the values of a type, in words ---- */

struct sentence {
    char text[512];
};

static void append_words(struct sentence *out, const char *between, const char *words)
{
    size_t used = strlen(out->text);

    snprintf(out->text + used, sizeof out->text - used, "%s%s", used ? between : "", words);
}

static void say_type(struct sentence *out, const struct control_type *type)
{
    static const char *const names[] = {
        [TYPE_STRING] = "a string", [TYPE_BOOL] = "a boolean",
        [TYPE_NULL] = "null",       [TYPE_SIZE] = "an integer from 0 on",
        [TYPE_LIST] = "an array",   [TYPE_OBJECT] = "an object",
        [TYPE_TAG] = "a string",
    };

    if (type->kind == TYPE_WORD)
        for (const char *const *word = type->words; *word; word++)
            append_words(out, ", ", *word);
    else if (type->kind == TYPE_ALTERNATE)
        for (const struct control_type *const *choice = type->choices; *choice; choice++)
            append_words(out, " or ", names[(*choice)->kind]);
    else
        append_words(out, ", ", names[type->kind]);
}

static void say_variants(struct sentence *out, const struct control_type *owner)
{
    for (const struct control_variant *const *v = owner->variants; *v; v++)
        append_words(out, ", ", (*v)->name);
}

static void say_members(struct sentence *out, const struct control_type *type)
{
    for (const struct control_arg *arg = type->members; arg && arg->name; arg++)
        append_words(out, ", ", arg->name);
}

/* ---- checking ---- */

static bool fits(const struct control_type *type, const json_t *value,
                 const struct place *place, struct control_error *error);

static bool fail_type(const struct control_type *type, const struct place *place,
                      struct control_error *error)
{
    struct sentence expected = {""};

    say_type(&expected, type);
    control_fail(error, CLASS_GENERIC, "Invalid parameter '%s', expected: %s",
                 describe_place(place).text, expected.text);
    return false;
}

static bool fail_word(const struct sentence *expected, const json_t *value,
                      const struct place *place, struct control_error *error)
{
    control_fail(error, CLASS_GENERIC,
                 "Parameter '%s' does not accept value '%.200s', expected: %s",
                 describe_place(place).text, json_string_value(value), expected->text);
    return false;
}

static bool word_fits(const struct control_type *type, const json_t *value,
                      const struct place *place, struct control_error *error)
{
    struct sentence expected = {""};

    if (!json_is_string(value))
        return fail_type(type, place, error);
    for (const char *const *word = type->words; *word; word++)
        if (strcmp(*word, json_string_value(value)) == 0)
            return true;
    say_type(&expected, type);
    return fail_word(&expected, value, place, error);
}

static bool list_fits(const struct control_type *type, const json_t *value,
                      const struct place *place, struct control_error *error)
{
    if (!json_is_array(value))
        return fail_type(type, place, error);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const struct place item = {.outer = place, .index = i};
        if (!fits(type->element, json_array_get(value, i), &item, error))
            return false;
    }
    return true;
}

static bool looks_like(const struct control_type *type, const json_t *value)
{
    switch (type->kind) {
    case TYPE_BOOL:
        return json_is_boolean(value);
    case TYPE_SIZE:
        return json_is_integer(value) && json_integer_value(value) >= 0;
    case TYPE_NULL:
        return json_is_null(value);
    case TYPE_ANY:
        return true;
    case TYPE_LIST:
        return json_is_array(value);
    case TYPE_OBJECT:
        return json_is_object(value);
    default:
        return json_is_string(value);
    }
}

static bool alternate_fits(const struct control_type *type, const json_t *value,
                           const struct place *place, struct control_error *error)
{
    for (const struct control_type *const *choice = type->choices; *choice; choice++)
        if (looks_like(*choice, value))
            return fits(*choice, value, place, error);
    return fail_type(type, place, error);
}

/* ---- objects ---- */

static const struct control_arg *find_member(const struct control_type *type,
                                             const char *name)
{
    for (const struct control_arg *arg = type ? type->members : NULL; arg && arg->name;
         arg++)
        if (strcmp(arg->name, name) == 0)
            return arg;
    return NULL;
}

/* The variant that the tag selects; NULL for objects without variants.  False with the
 * error set. */
static bool find_variant(const struct control_type *type, const json_t *object,
                         const struct place *place, const struct control_variant **out,
                         struct control_error *error)
{
    const struct place at = {.outer = place, .name = type->tag};
    struct sentence expected = {""};

    *out = NULL;
    if (!type->variants)
        return true;
    const json_t *tag = json_object_get(object, type->tag);
    if (!tag) {
        control_fail(error, CLASS_GENERIC, "Parameter '%s' is missing",
                     describe_place(&at).text);
        return false;
    }
    if (!json_is_string(tag))
        return fail_type(&control_tag, &at, error);
    for (const struct control_variant *const *v = type->variants; !*out && *v; v++)
        if (strcmp((*v)->name, json_string_value(tag)) == 0)
            *out = *v;
    if (*out)
        return true;
    say_variants(&expected, type);
    return fail_word(&expected, tag, &at, error);
}

static bool fail_unexpected(const struct control_type *type,
                            const struct control_variant *variant,
                            const struct place *place, struct control_error *error)
{
    struct sentence taken = {""};

    say_members(&taken, type);
    if (variant && variant->type)
        say_members(&taken, variant->type);
    control_fail(error, CLASS_GENERIC, "Parameter '%s' is unexpected; %s takes %s",
                 describe_place(place).text,
                 variant ? variant->name : describe_place(place->outer).text,
                 taken.text[0] ? taken.text : "no parameters");
    return false;
}

static bool has_mandatory(const struct control_type *type, const json_t *object,
                          const struct place *place, struct control_error *error)
{
    for (const struct control_arg *arg = type ? type->members : NULL; arg && arg->name;
         arg++) {
        const struct place at = {.outer = place, .name = arg->name};
        if (!arg->mandatory || json_object_get(object, arg->name))
            continue;
        control_fail(error, CLASS_GENERIC, "Parameter '%s' is missing",
                     describe_place(&at).text);
        return false;
    }
    return true;
}

static bool object_fits(const struct control_type *type, const json_t *object,
                        const struct place *place, struct control_error *error)
{
    const struct control_variant *variant;
    const char *name;
    json_t *value;

    if (!json_is_object(object))
        return fail_type(type, place, error);
    if (!find_variant(type, object, place, &variant, error))
        return false;
    const struct control_type *more = variant ? variant->type : NULL;
    json_object_foreach ((json_t *)(uintptr_t)object, name, value) {
        const struct place at = {.outer = place, .name = name};
        const struct control_arg *arg = find_member(type, name);
        if (!arg)
            arg = find_member(more, name);
        if (!arg)
            return fail_unexpected(type, variant, &at, error);
        if (!fits(arg->type, value, &at, error))
            return false;
    }
    return has_mandatory(type, object, place, error) &&
           has_mandatory(more, object, place, error);
}

static bool fits(const struct control_type *type, const json_t *value,
                 const struct place *place, struct control_error *error)
{
    switch (type->kind) {
    case TYPE_WORD:
        return word_fits(type, value, place, error);
    case TYPE_LIST:
        return list_fits(type, value, place, error);
    case TYPE_OBJECT:
        return object_fits(type, value, place, error);
    case TYPE_ALTERNATE:
        return alternate_fits(type, value, place, error);
    default:
        return looks_like(type, value) || fail_type(type, place, error);
    }
}

bool control_fits(const char *what, const struct control_type *type, const json_t *value,
                  struct control_error *error)
{
    const struct place all = {.name = what};

    return fits(type ? type : &nothing, value, &all, error);
}

void control_must_fit(const char *what, const struct control_type *type,
                      const json_t *value)
{
#ifdef NDEBUG
    (void)what;
    (void)type;
    (void)value;
#else
    struct control_error error;

    if (control_fits(what, type, value, &error))
        return;
    log_error("%s: the table of its members isn't right: %s", what, error.diag.text);
    abort();
#endif
}

/* ---- arguments that were checked ---- */

bool arg_is_given(const json_t *args, const char *name)
{
    return json_object_get(args, name);
}

const char *arg_text(const json_t *args, const char *name)
{
    return json_string_value(json_object_get(args, name));
}

bool arg_bool(const json_t *args, const char *name, bool otherwise)
{
    return arg_is_given(args, name) ? json_is_true(json_object_get(args, name)) : otherwise;
}

uint64_t arg_size(const json_t *args, const char *name, uint64_t otherwise)
{
    return arg_is_given(args, name)
               ? (uint64_t)json_integer_value(json_object_get(args, name))
               : otherwise;
}

unsigned arg_word(const json_t *args, const char *name, const char *const *words,
                  unsigned otherwise)
{
    const char *text = arg_text(args, name);

    for (unsigned i = 0; text && words[i]; i++)
        if (strcmp(words[i], text) == 0)
            return i;
    return otherwise;
}
