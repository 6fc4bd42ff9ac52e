/* SPDX-License-Identifier: BSD-3-Clause */
/* Types of the values on the control socket: arguments, results and events.
 *
 * Types are tables.  Clients' values are checked by them, query-qmp-schema reports them
 * (control_schema.h), and debug builds check the server's own results and events: so these three
 * can't differ.  The kinds of types are QAPI's.
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
    TYPE_SIZE, /* a non-negative integer */
    TYPE_NULL,
    TYPE_ANY,       /* any value */
    TYPE_WORD,      /* one of `words` */
    TYPE_LIST,      /* an array of `element`s */
    TYPE_OBJECT,    /* with `members`, and those of the variant that the tag selects */
    TYPE_TAG,       /* of a member of an object: the name of one of its variants */
    TYPE_ALTERNATE, /* one of `choices`, which must differ in their JSON type */
};

struct control_type {
    enum control_kind kind;
    const char *const *words;           /* ends with NULL */
    const struct control_type *element; /* of lists */
    const struct control_arg *members;  /* NULL: none */
    /* Name of the member that selects the variant, and the variants; the list ends with NULL. */
    const char *tag;
    const struct control_variant *const *variants;
    const struct control_type *const *choices; /* ends with NULL */
};

/* A member of an object. */
struct control_arg {
    const char *name; /* NULL ends the table */
    const struct control_type *type;
    bool mandatory; /* for results and events: always present */
};

struct control_variant {
    const char *name;
    /* an object without variants; NULL: no further members */
    const struct control_type *type;
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

/* ---- checking ---- */

/* Does the value fit the type (NULL: an empty object)?  On false the error is set.  what: the
 * name of the value in messages; for arguments, the command's. */
bool control_fits(const char *what, const struct control_type *type, const json_t *value,
                  struct control_error *error);

/* For the server's own values: debug builds abort if the value doesn't fit. */
void control_must_fit(const char *what, const struct control_type *type,
                      const json_t *value);

/* ---- arguments that were checked ---- */

bool arg_is_given(const json_t *args, const char *name);
const char *arg_text(const json_t *args, const char *name); /* NULL if not given */
bool arg_bool(const json_t *args, const char *name, bool otherwise);
uint64_t arg_size(const json_t *args, const char *name, uint64_t otherwise);
/* Index of the word in the list. */
unsigned arg_word(const json_t *args, const char *name, const char *const *words,
                  unsigned otherwise);

#endif
