/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of nodes, with reference counts. */
#include "block/node_name.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool node_name_is_well_formed(const char *text)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char rest[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";

    return text[0] && strchr(letters, text[0]) && text[strspn(text, rest)] == 0 &&
           strlen(text) <= NODE_NAME_MAX;
}

struct node_name *node_name_new(const char *text)
{
    struct node_name *name = calloc(1, sizeof *name);

    if (!name)
        return NULL;
    atomic_init(&name->holders, 1);
    snprintf(name->text, sizeof name->text, "%s", text);
    return name;
}

struct node_name *node_name_get(struct node_name *name)
{
    if (name)
        atomic_fetch_add(&name->holders, 1);
    return name;
}

void node_name_put(struct node_name *name)
{
    if (name && atomic_fetch_sub(&name->holders, 1) == 1)
        free(name);
}

bool node_name_is_shared(const struct node_name *name)
{
    return atomic_load(&name->holders) > 1;
}
