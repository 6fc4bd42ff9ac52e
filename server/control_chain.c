/* SPDX-License-Identifier: BSD-3-Clause */
/* Layers and their names. */
#include "control_chain.h"

#include <stdio.h>
#include <string.h>

#include "export_table.h"

struct chain_use control_look_at_chain(struct served_export *exp)
{
    struct export_use use = export_enter(exp);

    return (struct chain_use){use, gate_enter(&use.node->ctx->gate)};
}

void control_stop_looking(struct chain_use *chain)
{
    gate_leave(&chain->use.node->ctx->gate, chain->ticket);
    export_leave(&chain->use);
}

static bool bears_name(const struct node *node, const char *text)
{
    return node->name && strcmp(node->name->text, text) == 0;
}

static bool chain_bears_name(const struct node *top, const char *text)
{
    for (const struct node *node = top; node; node = node->backing)
        if (bears_name(node, text))
            return true;
    return false;
}

/* Is it the uppermost node without a name? */
static bool is_first_unnamed(const struct node *top, const struct node *node)
{
    while (top && top->name)
        top = top->backing;
    return top == node;
}

struct node_name_text control_name_node(const struct served_export *exp,
                                        const struct node *top, const struct node *node)
{
    struct node_name_text name;
    unsigned depth = 0;

    for (const struct node *above = top; above && above != node; above = above->backing)
        depth++;
    if (node->name)
        snprintf(name.text, sizeof name.text, "%s", node->name->text);
    else if (is_first_unnamed(top, node) && !chain_bears_name(top, exp->node_name))
        snprintf(name.text, sizeof name.text, "%s", exp->node_name);
    else
        snprintf(name.text, sizeof name.text, "%.255s#%u", exp->node_name, depth);
    return name;
}

struct node *control_find_in_chain(const struct served_export *exp, struct node *top,
                                   const char *node_name)
{
    for (struct node *node = top; node; node = node->backing)
        if (strcmp(control_name_node(exp, top, node).text, node_name) == 0)
            return node;
    return strcmp(exp->node_name, node_name) == 0 ? top : NULL;
}

static bool has_layer(struct served_export *exp, const char *node_name)
{
    CHAIN_USE(chain, exp);

    return control_find_in_chain(exp, chain.use.node, node_name);
}

static struct served_export *look_for_layer(struct control_context *ctx, const char *name)
{
    EXPORT_TABLE_EACH (exp, ctx->exports)
        if (has_layer(exp, name))
            return exp;
    return NULL;
}

struct served_export *control_find_layer(struct control_context *ctx, const char *name,
                                         struct control_error *error)
{
    struct served_export *exp = look_for_layer(ctx, name);

    return exp ? exp : control_find_device(ctx, name, error);
}

struct served_export *control_find_node_of_chain(struct control_context *ctx,
                                                 const char *name,
                                                 struct control_error *error)
{
    struct served_export *exp = control_look_for_disk(ctx, name);

    if (!exp)
        exp = look_for_layer(ctx, name);
    return exp ? exp : control_find_node(ctx, name, error);
}

char *control_layer_file(struct served_export *exp, const char *node_name,
                         struct control_error *error)
{
    CHAIN_USE(chain, exp);

    const struct node *node = control_find_in_chain(exp, chain.use.node, node_name);
    char *file = node ? strdup(node->filename) : NULL;
    if (!node)
        control_fail(error, CLASS_GENERIC, "Cannot find device='' nor node-name='%.200s'",
                     node_name);
    else if (!file)
        control_fail(error, CLASS_GENERIC, "out of memory");
    return file;
}
