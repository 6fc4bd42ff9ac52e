/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds, opens and lists views by name. */
#include "view.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "named_view.h"

static const struct view_kind *const kinds[] = {
    &view_of_snapshot,
    &view_of_bitmap,
    &view_of_backup,
};

/* The kind of "KIND/NAME", with *rest = NAME; NULL: none. */
static const struct view_kind *kind_of(const char *name, const char **rest)
{
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        size_t n = strlen(kinds[i]->name);
        if (strncmp(name, kinds[i]->name, n) == 0 && name[n] == '/') {
            *rest = name + n + 1;
            return kinds[i];
        }
    }
    return NULL;
}

/* ---- opening and closing ---- */

static int open_on_node(struct view *view, const char *name, struct diag *diag)
{
    LOCK_GUARD(&view->exp->lock);
    view->node = atomic_load(&view->exp->node);
    if (!view->node)
        return diag_set(diag, ESHUTDOWN, "the server ends");
    int err = view->kind->open(view, name, diag);
    if (!err)
        atomic_fetch_add(&view->node->viewers, 1);
    return err;
}

int view_open(struct served_export *exp, const char *name, struct view **out,
              struct diag *diag)
{
    const char *rest = NULL;
    const struct view_kind *kind = kind_of(name, &rest);

    if (!kind)
        return diag_set(diag, ENOENT, "there is no export '%.200s'", name);
    CLEANUP_FREE struct view *view = calloc(1, sizeof *view);
    if (!view)
        return diag_errno(diag, ENOMEM, "export '%.200s'", name);
    *view = (struct view){.kind = kind, .exp = exp};
    int err = open_on_node(view, rest, diag);
    if (err)
        return err;
    *out = TAKE(&view);
    return 0;
}

void view_close(struct view *view)
{
    if (!view)
        return;
    {
        /* At the server's end export_enter doesn't return. */
        EXPORT_USE(use, export_enter(view->exp));
        view->kind->close(view);
        atomic_fetch_sub(&view->node->viewers, 1);
    }
    named_view_put(view->named);
    free(view->description);
    free(view);
}

/* ---- finding ---- */

/* The export whose name is the first n bytes of `name`; NULL: none. */
static struct served_export *find_base(struct export_table *table, const char *name,
                                       size_t n)
{
    struct diag ignored;
    CLEANUP_FREE char *base = strndup(name, n);

    return base ? export_table_find(table, base, &ignored) : NULL;
}

/* Splits "EXPORT/KIND/NAME" at the first place where EXPORT is an export.  Returns that, with
 * *view_name = "KIND/NAME".  NULL: the name isn't a view's. */
static struct served_export *split_name(struct export_table *table, const char *name,
                                        const char **view_name)
{
    const char *rest;

    for (const char *at = name;; at++) {
        size_t before = at > name ? (size_t)(at - name) - 1 : 0;
        struct served_export *base = (at == name || before > 0) && kind_of(at, &rest)
                                         ? find_base(table, name, before)
                                         : NULL;
        *view_name = at;
        if (base)
            return base;
        at = strchr(at, '/');
        if (!at)
            return NULL;
    }
}

/* Opens a view by a name that a command gave it.  *found: is there such a name? */
static int find_named(struct export_table *table, const char *name,
                      struct served_export **exp, struct view **view, bool *found,
                      struct diag *diag)
{
    CLEANUP_FREE char *view_name = NULL;
    CLEANUP_NAMED_VIEW struct named_view *named = named_view_find(table, name, &view_name);

    *found = named;
    if (!named)
        return 0;
    if (!view_name)
        return diag_errno(diag, ENOMEM, "export '%.200s'", name);
    *exp = export_table_find(table, named->exp_name, diag);
    int err = *exp ? view_open(*exp, view_name, view, diag) : -diag->err;
    if (!err)
        (*view)->named = TAKE(&named);
    return err;
}

static int find_by_export(struct export_table *table, const char *name,
                          struct served_export **exp, struct view **view, struct diag *diag)
{
    const char *view_name;

    *exp = export_table_find(table, name, diag);
    if (*exp && !(*exp)->default_view)
        return 0;
    if (*exp) {
        view_name = (*exp)->default_view;
    } else {
        *exp = split_name(table, name, &view_name);
        if (!*exp)
            return -diag->err;
    }
    return view_open(*exp, view_name, view, diag);
}

int view_find(struct export_table *table, const char *name, struct served_export **exp,
              struct view **view, struct diag *diag)
{
    bool is_named;

    *exp = NULL;
    *view = NULL;
    int err = find_named(table, name, exp, view, &is_named, diag);
    if (!is_named)
        err = find_by_export(table, name, exp, view, diag);
    if (err)
        export_put(TAKE(exp));
    return err;
}

/* ---- listing ---- */

struct listing {
    const struct view_kind *kind;
    view_tell *tell;
    void *opaque;
};

static int tell_full_name(void *opaque, const char *name, const char *description)
{
    const struct listing *l = opaque;
    char *full;

    if (asprintf(&full, "%s/%s", l->kind->name, name) < 0)
        return -ENOMEM;
    int err = l->tell(l->opaque, full, description);
    free(full);
    return err;
}

int view_list(struct served_export *exp, view_tell *tell, void *opaque)
{
    EXPORT_USE(use, export_enter(exp));
    int err = 0;

    for (size_t i = 0; !err && i < ARRAY_LEN(kinds); i++) {
        struct listing l = {.kind = kinds[i], .tell = tell, .opaque = opaque};
        err = kinds[i]->list(use.node, tell_full_name, &l);
    }
    return err;
}

/* ---- requests ---- */

static int check_range(const struct view *view, uint64_t off, uint64_t len)
{
    return off <= view->size && len <= view->size - off ? 0 : -EINVAL;
}

int view_read(struct view *view, void *buf, uint64_t off, uint64_t len)
{
    int err = check_range(view, off, len);

    return err ? err : view->kind->read(view, buf, off, len);
}

int view_status(struct view *view, uint64_t off, uint64_t len, struct view_status *out)
{
    int err = check_range(view, off, len);

    return err ? err : view->kind->status(view, off, len, out);
}

int view_cache(struct view *view, uint64_t off, uint64_t len)
{
    int err = check_range(view, off, len);

    return err || !view->kind->cache ? err : view->kind->cache(view, off, len);
}
