/* SPDX-License-Identifier: BSD-3-Clause */
/* The user in CEPH_ARGS.  librados only reads options of Ceph's configuration from CEPH_ARGS; the
 * user is left to the program. */
#include "storage/rbd_user.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define CLIENT "client."

static const struct {
    const char *word;
    bool has_type; /* its value begins with the type of the entity, such as "client." */
} options[] = {
    {"--id", false}, {"-i", false}, {"--user", false}, {"--name", true}, {"-n", true}};

/* If the word is this option: its value, after a "=" or in the next word.  Otherwise NULL. */
static const char *value_of(const char *word, const char *option, char **rest)
{
    size_t n = strlen(option);

    if (strcmp(word, option) == 0)
        return strtok_r(NULL, " ", rest);
    return strncmp(word, option, n) == 0 && word[n] == '=' ? word + n + 1 : NULL;
}

/* The user if the word is an option that gives one; otherwise NULL. */
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
