/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists of "-o key=value,key=value".  Layer: server. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

struct option_pair {
    char *key, *value;
};

/* In the order given.  Zero-initialised: empty. */
struct option_list {
    struct option_pair *pairs;
    size_t count;
    bool help; /* "help" or "?" was among them */
};

/* Adds the pairs of one "-o" argument.  A comma in a value is doubled; "key" alone means
 * key=on, and "nokey" key=off.  Complains and returns an exit code. */
int options_add(struct option_list *list, const char *text);

/* The same for a text that may be secret: messages show `shown` instead. */
int options_add_shown(struct option_list *list, const char *text, const char *shown);

/* Adds a pair at the end, so that it overrides earlier ones.  Returns an exit code. */
int options_set(struct option_list *list, const char *key, const char *value);

/* The last value given for a key; NULL: none. */
const char *options_get(const struct option_list *list, const char *key);

/* Frees the strings of a pair that was taken out of its list. */
void options_free_pair(struct option_pair *pair);

void options_free(struct option_list *list);

#endif
