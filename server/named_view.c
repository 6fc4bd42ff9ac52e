/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of named views. */
#include "named_view.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "export_table_internal.h"

#define BITMAP "/bitmap/"

static struct named_view *named_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct named_view, link);
}

/* ---- making and freeing ---- */

static void free_named(struct named_view *named)
{
    json_decref(named->bitmaps);
    free(named->view_name);
    free(named->exp_name);
    free(named->description);
    free(named->node_name);
    free(named->name);
    free(named->id);
    free(named);
}

static struct named_view *new_named(const struct named_view_params *params)
{
    struct named_view *named = calloc(1, sizeof *named);

    if (!named)
        return NULL;
    named->users = 1;
    named->id = strdup(params->id);
    named->name = strdup(params->name);
    named->node_name = strdup(params->node_name);
    named->description = params->description ? strdup(params->description) : NULL;
    named->exp_name = strdup(params->exp_name);
    named->view_name = strdup(params->view_name);
    named->bitmaps = json_deep_copy(params->bitmaps);
    if (named->id && named->name && named->node_name && named->exp_name &&
        named->view_name && named->bitmaps && !named->description == !params->description)
        return named;
    free_named(named);
    return NULL;
}

/* ---- users; under the table's lock ---- */

static struct named_view *become_user(struct named_view *named)
{
    if (named)
        named->users++;
    return named;
}

/* The last user frees it, and the table's callback is told. */
static void leave(struct export_table *table, struct named_view *named)
{
    if (--named->users > 0)
        return;
    list_remove(&named->link);
    {
        LOCK_GAP(&table->lock);
        if (table->closed)
            table->closed(table->closed_opaque, named->id);
        free_named(named);
    }
}

void named_view_put(struct named_view *named)
{
    if (!named)
        return;
    struct export_table *table = named->table;
    LOCK_GUARD(&table->lock);
    leave(table, named);
}

/* ---- adding and removing ---- */

bool named_view_has_name(struct export_table *table, const char *name)
{
    LIST_FOR_EACH (pos, &table->named)
        if (named_at(pos)->listed && strcmp(named_at(pos)->name, name) == 0)
            return true;
    return false;
}

static bool add_unless_taken(struct export_table *table, struct named_view *named)
{
    LOCK_GUARD(&table->lock);
    if (export_table_look_up(table, named->name) || named_view_has_name(table, named->name))
        return false;
    named->table = table;
    named->listed = true;
    list_append(&table->named, &named->link);
    return true;
}

int named_view_add(struct export_table *table, const struct named_view_params *params,
                   struct diag *diag)
{
    struct named_view *named = new_named(params);

    if (!named)
        return diag_errno(diag, ENOMEM, "export '%.200s'", params->name);
    if (add_unless_taken(table, named))
        return 0;
    free_named(named);
    return diag_set(diag, EEXIST, "export '%.200s': there is one of that name already",
                    params->name);
}

int named_view_withdraw(struct named_view *named, bool used_too, struct diag *diag)
{
    LOCK_GUARD(&named->table->lock);
    if (!used_too)
        export_wait_for_lookers(named->table, &named->users);
    if (!named->listed)
        return diag_set(diag, ENOENT, "export '%.200s' is on its way out", named->id);
    /* The table and the caller. */
    if (!used_too && named->users > 2)
        return diag_set(diag, EBUSY, "export '%.200s' still in use", named->id);
    named->listed = false;
    named->users--;
    return 0;
}

/* ---- finding ---- */

static bool has_bitmap(const struct named_view *named, const char *name)
{
    for (size_t i = 0; i < json_array_size(named->bitmaps); i++)
        if (strcmp(json_string_value(json_array_get(named->bitmaps, i)), name) == 0)
            return true;
    return false;
}

/* The part of `name` behind the view's own name: empty, or "/bitmap/" and a listed bitmap.
 * NULL: `name` isn't one of this view's. */
static const char *rest_of(const struct named_view *named, const char *name)
{
    size_t n = strlen(named->name);
    const char *rest = name + n;

    if (!named->listed || strncmp(name, named->name, n) != 0)
        return NULL;
    bool of_bitmap = strncmp(rest, BITMAP, strlen(BITMAP)) == 0 &&
                     has_bitmap(named, rest + strlen(BITMAP));
    return *rest == '\0' || of_bitmap ? rest : NULL;
}

struct named_view *named_view_find(struct export_table *table, const char *name,
                                   char **view_name)
{
    LOCK_GUARD(&table->lock);
    LIST_FOR_EACH (pos, &table->named) {
        struct named_view *named = named_at(pos);
        const char *rest = rest_of(named, name);
        if (!rest)
            continue;
        if (asprintf(view_name, "%s%s", named->view_name, rest) < 0)
            *view_name = NULL;
        return become_user(named);
    }
    return NULL;
}

struct named_view *named_view_find_id(struct export_table *table, const char *id)
{
    LOCK_GUARD(&table->lock);
    LIST_FOR_EACH (pos, &table->named)
        if (named_at(pos)->listed && strcmp(named_at(pos)->id, id) == 0)
            return become_user(named_at(pos));
    return NULL;
}

/* Under the lock: the first listed one after `named` (NULL: of all). */
static struct named_view *look_up_next(struct export_table *table, struct named_view *named)
{
    struct list *pos = named ? named->link.next : table->named.next;

    for (; pos != &table->named; pos = pos->next)
        if (named_at(pos)->listed)
            return named_at(pos);
    return NULL;
}

struct named_view *named_view_next(struct export_table *table, struct named_view *named)
{
    LOCK_GUARD(&table->lock);
    struct named_view *next = become_user(look_up_next(table, named));
    if (named)
        leave(table, named);
    return next;
}

void named_views_destroy(struct export_table *table)
{
    LIST_FOR_EACH_SAFE (pos, &table->named) {
        list_remove(pos);
        free_named(named_at(pos));
    }
}
