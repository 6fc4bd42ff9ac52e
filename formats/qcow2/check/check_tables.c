/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of L2 tables that a check found, and how many entries point to each. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2/check/check_tables.h"

static int by_place(const void *a, const void *b)
{
    const struct l2_table *x = a, *y = b;

    return x->cluster < y->cluster ? -1 : x->cluster > y->cluster;
}

static void add_up(struct l2_table *into, const struct l2_table *t)
{
    into->weight += t->weight;
    into->active += t->active;
}

void l2_tables_sort(struct l2_tables *tables)
{
    size_t n = 0;

    if (tables->sorted || tables->n == 0)
        return;
    qsort(tables->list, tables->n, sizeof *tables->list, by_place);
    for (size_t i = 1; i < tables->n; i++) {
        if (tables->list[n].cluster == tables->list[i].cluster)
            add_up(&tables->list[n], &tables->list[i]);
        else
            tables->list[++n] = tables->list[i];
    }
    tables->n = n + 1;
    tables->sorted = true;
}

/* Merges duplicates first, and allocates more memory only if less than half of it is free then. */
static int make_room(struct l2_tables *tables)
{
    l2_tables_sort(tables);
    if (tables->n < tables->capacity / 2)
        return 0;
    size_t capacity = tables->capacity ? tables->capacity * 2 : 256;
    struct l2_table *list = realloc(tables->list, capacity * sizeof *list);
    if (!list)
        return -ENOMEM;
    tables->list = list;
    tables->capacity = capacity;
    return 0;
}

int l2_tables_add(struct l2_tables *tables, uint64_t cluster, uint32_t index,
                  uint64_t weight, bool active)
{
    const struct l2_table t = {.cluster = (uint32_t)cluster,
                               .active = active ? 1 : 0,
                               .weight = weight,
                               .index = index};

    if (tables->n == tables->capacity) {
        int err = make_room(tables);
        if (err)
            return err;
    }
    struct l2_table *last = tables->n ? &tables->list[tables->n - 1] : NULL;
    if (last && last->cluster == t.cluster) {
        add_up(last, &t);
        return 0;
    }
    tables->sorted = !last || (tables->sorted && last->cluster < t.cluster);
    tables->list[tables->n++] = t;
    return 0;
}

const struct l2_table *l2_tables_find(const struct l2_tables *tables, uint64_t cluster)
{
    const struct l2_table wanted = {.cluster = (uint32_t)cluster};

    return bsearch(&wanted, tables->list, tables->n, sizeof *tables->list, by_place);
}

void l2_tables_free(struct l2_tables *tables)
{
    free(tables->list);
    *tables = (struct l2_tables){0};
}
