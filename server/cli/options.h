/* SPDX-License-Identifier: BSD-3-Clause */
/* The lists of "-o key=value,key=value".  Layer: server. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

struct option_pair {
    char *key, *value;
};

/* In the order given; a zero-initialised list is empty. */
struct option_list {
    struct option_pair *pairs;
    size_t count;
    bool help; /* "help" or "?" was among them */
};

/* Adds the pairs of one "-o" argument.  A comma in a value is written twice; a key alone
 * stands for key=on, and nokey for key=off.  Complains and returns an exit code. */
int options_add(struct option_list *list, const char *text);

/* The same of a text that may be secret: complaints show the other one. */
int options_add_shown(struct option_list *list, const char *text, const char *shown);

/* Sets a key as if given after all others.  Returns an exit code. */
int options_set(struct option_list *list, const char *key, const char *value);

/* The last value given for a key, NULL: none. */
const char *options_get(const struct option_list *list, const char *key);

/* The parts of one pair, which is in no list any more. */
void options_free_pair(struct option_pair *pair);

void options_free(struct option_list *list);

#endif
