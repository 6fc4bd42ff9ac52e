/* SPDX-License-Identifier: BSD-3-Clause */
/* CEPH_ARGS, of which librados takes the options of its configuration, and leaves out who asks:
 * that is for the program to look at. */
#include "storage/rbd_user.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define CLIENT "client."

static const struct {
    const char *word;
    bool has_type; /* its value begins with what kind of entity it is */
} options[] = {
    {"--id", false}, {"-i", false}, {"--user", false}, {"--name", true}, {"-n", true}};

/* The value behind the word or, after a =, in it; NULL: the word isn't the option. */
static const char *value_of(const char *word, const char *option, char **rest)
{
    size_t n = strlen(option);

    if (strcmp(word, option) == 0)
        return strtok_r(NULL, " ", rest);
    return strncmp(word, option, n) == 0 && word[n] == '=' ? word + n + 1 : NULL;
}

/* NULL: the word says nothing of it. */
static const char *user_in(const char *word, char **rest)
{
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        const char *value = value_of(word, options[i].word, rest);
        if (!value)
            continue;
        if (!options[i].has_type)
            return value;
        return strncmp(value, CLIENT, strlen(CLIENT)) == 0 ? value + strlen(CLIENT) : NULL;
    }
    return NULL;
}

char *rbd_user_of_environment(void)
{
    const char *args = getenv("CEPH_ARGS"), *found = NULL;
    CLEANUP_FREE char *copy = args ? strdup(args) : NULL;
    char *rest = NULL;

    for (char *word = copy ? strtok_r(copy, " ", &rest) : NULL; word;
         word = strtok_r(NULL, " ", &rest)) {
        const char *user = user_in(word, &rest);
        if (user && *user)
            found = user; /* the last counts */
    }
    return found ? strdup(found) : NULL;
}
