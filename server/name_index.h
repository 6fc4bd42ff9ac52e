/* SPDX-License-Identifier: BSD-3-Clause */
/* A hash table of names: a fixed number of lists.
 *
 * With more than some thousands of entries, or with names chosen to fall into one list, a
 * look-up is slow, but never slower than in a single list.
 *
 * Threads: under the lock of the entries.  Layer: server. */
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

/* The list in which the name is, if anywhere.  Other names may be in it: compare entries. */
static inline struct list *name_index_list(struct name_index *index, const char *name)
{
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */

    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3;
    return &index->lists[(hash ^ hash >> 32) % NAME_INDEX_LISTS];
}

#endif
