/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of added nodes, and of all node names. */
#include "node_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct given_name {
    struct list link;
    struct node_name *name;
};

void node_table_init(struct node_table *table)
{
    lock_init(&table->lock, RANK_LEAF);
    list_init(&table->nodes);
    list_init(&table->names);
}

static struct added_node *node_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct added_node, link);
}

static struct given_name *name_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct given_name, link);
}

static void forget_name(struct given_name *given)
{
    list_remove(&given->link);
    node_name_put(given->name);
    free(given);
}

void node_table_destroy(struct node_table *table)
{
    LIST_FOR_EACH_SAFE (pos, &table->nodes) {
        list_remove(pos);
        added_node_put(node_at(pos));
    }
    LIST_FOR_EACH_SAFE (pos, &table->names)
        forget_name(name_at(pos));
    lock_destroy(&table->lock);
}

/* ---- names ---- */

/* Under the lock.  Also drops names that nobody else holds any more: these are free again. */
static bool is_given(struct node_table *table, const char *text)
{
    bool found = false;

    LIST_FOR_EACH_SAFE (pos, &table->names) {
        struct given_name *given = name_at(pos);
        if (!node_name_is_shared(given->name))
            forget_name(given);
        else
            found |= strcmp(given->name->text, text) == 0;
    }
    return found;
}

struct node_name *node_table_give_name(struct node_table *table, const char *text,
                                       struct diag *diag)
{
    if (!node_name_is_well_formed(text)) {
        diag_set(diag, EINVAL, "Invalid node-name: '%.200s'", text);
        return NULL;
    }
    LOCK_GUARD(&table->lock);
    if (is_given(table, text)) {
        diag_set(diag, EEXIST, "Duplicate nodes with node-name='%s'", text);
        return NULL;
    }
    struct given_name *given = malloc(sizeof *given);
    struct node_name *name = node_name_new(text);
    if (!given || !name) {
        free(given);
        node_name_put(name);
        diag_errno(diag, ENOMEM, "node-name '%s'", text);
        return NULL;
    }
    given->name = node_name_get(name);
    list_append(&table->names, &given->link);
    return name;
}

/* ---- holders ---- */

struct added_node *added_node_get(struct added_node *node)
{
    atomic_fetch_add(&node->holders, 1);
    return node;
}

void added_node_leave(struct added_node *child)
{
    if (child)
        atomic_fetch_sub(&child->parents, 1);
    added_node_put(child);
}

void added_node_put(struct added_node *node)
{
    if (!node || atomic_fetch_sub(&node->holders, 1) > 1)
        return;
    added_node_leave(node->filtered);
    added_node_leave(node->file);
    added_node_leave(node->below);
    node_name_put(node->name);
    json_decref(node->image);
    free(node->target);
    free(node->disk);
    free(node);
}

/* Two holders when unused: the added node, and the table's list of names. */
bool added_node_is_used(const struct added_node *node)
{
    return node->name && atomic_load(&node->name->holders) > 2;
}

void added_node_add_parent(struct added_node *node)
{
    atomic_fetch_add(&node->parents, 1);
}

int added_node_check_idle(const struct added_node *node, struct diag *diag)
{
    const char *name = node->name ? node->name->text : "";

    if (added_node_is_used(node))
        return diag_set(diag, EBUSY, "Node '%s' is busy: node is in use", name);
    if (atomic_load(&node->parents) > 0)
        return diag_set(diag, EBUSY, "Node '%s' is busy: node is part of another", name);
    const struct added_node *file = added_node_meant(node)->file;
    if (file && added_node_is_used(file))
        return diag_set(diag, EBUSY, "Node '%s' is busy: node is in use", file->name->text);
    return 0;
}

const char *added_node_target(const struct added_node *node)
{
    const struct added_node *meant = added_node_meant(node);

    return meant->file ? meant->file->target : meant->target;
}

/* ---- the list ---- */

void node_table_add(struct node_table *table, struct added_node *node)
{
    LOCK_GUARD(&table->lock);
    node->listed = true;
    list_append(&table->nodes, &node->link);
}

/* Under the lock. */
static struct added_node *look_up(struct node_table *table, const char *name)
{
    LIST_FOR_EACH (pos, &table->nodes)
        if (strcmp(node_at(pos)->name->text, name) == 0)
            return node_at(pos);
    return NULL;
}

int node_table_remove(struct node_table *table, const char *name, struct diag *diag)
{
    LOCK_GUARD(&table->lock);
    struct added_node *node = look_up(table, name);
    if (!node)
        return diag_set(diag, ENOENT, "Failed to find node with node-name='%.200s'", name);
    if (added_node_is_used(node) || atomic_load(&node->parents) > 0)
        return diag_set(diag, EBUSY, "Node %s is in use", name);
    node->listed = false;
    list_remove(&node->link);
    added_node_put(node);
    return 0;
}

struct added_node *node_table_find(struct node_table *table, const char *name)
{
    LOCK_GUARD(&table->lock);
    struct added_node *node = look_up(table, name);
    return node ? added_node_get(node) : NULL;
}

struct added_node *node_table_next(struct node_table *table, struct added_node *node)
{
    LOCK_GUARD(&table->lock);
    struct list *pos = node && node->listed ? node->link.next : table->nodes.next;
    bool at_end = pos == &table->nodes || (node && !node->listed);
    struct added_node *next = at_end ? NULL : added_node_get(node_at(pos));

    added_node_put(node);
    return next;
}
