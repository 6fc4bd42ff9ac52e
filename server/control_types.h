/* SPDX-License-Identifier: BSD-3-Clause */
/* The types of what is said on the control socket: of arguments, results and events.
 *
 * They are tables.  What a client sends is judged by them, query-qmp-schema tells them
 * (control_schema.h), and debug builds hold the server's own results and events against them:
 * so none of the three can differ.  The kinds are QAPI's.
 *
 * Threads: any.  Layer: server. */
#ifndef SERVER_CONTROL_TYPES_H
#define SERVER_CONTROL_TYPES_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

struct control_error;

enum control_kind {
    TYPE_STRING = 1,
    TYPE_BOOL,
    TYPE_SIZE, /* an integer, not negative */
    TYPE_NULL,
    TYPE_ANY,       /* any value at all */
    TYPE_WORD,      /* one of `words` */
    TYPE_LIST,      /* an array of `element`s */
    TYPE_OBJECT,    /* with `members`, and those of the variant that its tag names */
    TYPE_TAG,       /* of a member of an object: one of its variants' names */
    TYPE_ALTERNATE, /* one of `choices`, no two of which look alike in JSON */
};

struct control_type {
    enum control_kind kind;
    const char *const *words;           /* NULL at the end */
    const struct control_type *element; /* of a list */
    const struct control_arg *members;  /* NULL: none */
    /* The member that is the tag, and what its values bring along; NULL at the end. */
    const char *tag;
    const struct control_variant *const *variants;
    const struct control_type *const *choices; /* NULL at the end */
};

/* A member of an object. */
struct control_arg {
    const char *name; /* NULL: the end of the table */
    const struct control_type *type;
    bool mandatory; /* of results and events: always there */
};

struct control_variant {
    const char *name;
    const struct control_type *type; /* an object without variants; NULL: no more members */
};

/* ---- for tables ---- */

extern const struct control_type control_string, control_bool, control_size, control_null,
    control_any, control_tag, control_strings;

#define STRING  &control_string
#define BOOL    &control_bool
#define SIZE    &control_size
#define ANY     &control_any
#define TAG     &control_tag
#define STRINGS &control_strings /* a list of them */

#define WORDS(list)                         \
    &(const struct control_type)            \
    {                                       \
        .kind = TYPE_WORD, .words = (list), \
    }
#define LIST_OF(type)                         \
    &(const struct control_type)              \
    {                                         \
        .kind = TYPE_LIST, .element = (type), \
    }
#define OBJECT(table)                            \
    &(const struct control_type)                 \
    {                                            \
        .kind = TYPE_OBJECT, .members = (table), \
    }
#define UNION(table, by, list)                                                    \
    &(const struct control_type)                                                  \
    {                                                                             \
        .kind = TYPE_OBJECT, .members = (table), .tag = (by), .variants = (list), \
    }

/* ---- judging ---- */

/* Does the value fit the type (NULL: an empty object)?  False with the error said.  what: what it
 * is said to be in messages, the command for its arguments. */
bool control_fits(const char *what, const struct control_type *type, const json_t *value,
                  struct control_error *error);

/* What the server itself says has to fit: debug builds see to it. */
void control_must_fit(const char *what, const struct control_type *type,
                      const json_t *value);

/* ---- arguments that were judged ---- */

bool arg_is_given(const json_t *args, const char *name);
const char *arg_text(const json_t *args, const char *name); /* NULL when it is not there */
bool arg_bool(const json_t *args, const char *name, bool otherwise);
uint64_t arg_size(const json_t *args, const char *name, uint64_t otherwise);
/* The word's place in the list. */
unsigned arg_word(const json_t *args, const char *name, const char *const *words,
                  unsigned otherwise);

#endif
