/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds things by their names, however many there are: lists, and which of them a name's is.
 *
 * The number of lists is fixed.  Beyond some thousands of things, or when somebody chooses
 * names that all fall into one list, it is as slow as one list of all, and no worse.
 *
 * Threads: whoever has the lock of what is found.  Layer: server. */
#ifndef SERVER_NAME_INDEX_H
#define SERVER_NAME_INDEX_H

#include <stdint.h>

#include "base/list.h"

#define NAME_INDEX_LISTS 1024u

struct name_index {
    struct list lists[NAME_INDEX_LISTS];
};

static inline void name_index_init(struct name_index *index)
{
    for (unsigned i = 0; i < NAME_INDEX_LISTS; i++)
        list_init(&index->lists[i]);
}

/* The list of that name, and of others: entries are compared. */
static inline struct list *name_index_list(struct name_index *index, const char *name)
{
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */

    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3;
    return &index->lists[(hash ^ hash >> 32) % NAME_INDEX_LISTS];
}

#endif
