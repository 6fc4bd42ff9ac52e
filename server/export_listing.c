/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists exports: the served disks, their views, named views, and the files of a folder. */
#include "export_listing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "image_folder.h"
#include "named_view.h"
#include "server.h"
#include "view.h"

/* nbdkit's limits: the number of listed exports, and the bytes of a name. */
#define MAX_LISTED 10000
#define MAX_NAME   4096

struct export_listing {
    struct nbdkit_exports *exports;
    const struct served_export *exp;
    unsigned n;
};

static int list_name(struct export_listing *l, const char *name, const char *description)
{
    if (strlen(name) > MAX_NAME || l->n == MAX_LISTED) {
        nbdkit_debug("not listed: %s", name);
        return 0;
    }
    l->n++;
    return nbdkit_add_export(l->exports, name, description);
}

static int list_named_bitmap(struct export_listing *l, const struct named_view *named,
                             const json_t *bitmap)
{
    char *full;

    if (asprintf(&full, "%s/bitmap/%s", named->name, json_string_value(bitmap)) < 0)
        return -1;
    int rc = list_name(l, full, named->description);
    free(full);
    return rc;
}

static int list_view(void *opaque, const char *name, const char *description)
{
    struct export_listing *l = opaque;
    char *full;

    if (l->exp->name[0] == '\0')
        return list_name(l, name, description);
    if (asprintf(&full, "%s/%s", l->exp->name, name) < 0)
        return -1;
    int rc = list_name(l, full, description);
    free(full);
    return rc;
}

/* Lists the named views, each with its bitmaps. */
static int list_named(struct export_listing *l, struct export_table *table)
{
    NAMED_VIEW_EACH (named, table) {
        int rc = list_name(l, named->name, named->description);
        for (size_t i = 0; rc == 0 && i < json_array_size(named->bitmaps); i++)
            rc = list_named_bitmap(l, named, json_array_get(named->bitmaps, i));
        if (rc) {
            named_view_put(named);
            return -1;
        }
    }
    return 0;
}

/* Images of the folder aren't listed here: export_listing_add lists the files of the folder,
 * whether they are open or not.  Their views are. */
static int list_open_exports(struct export_listing *l, struct export_table *table)
{
    EXPORT_TABLE_EACH (exp, table) {
        l->exp = exp;
        if ((!exp->of_folder && list_name(l, exp->name, exp->description)) ||
            view_list(exp, list_view, l)) {
            export_put(exp);
            return -1;
        }
    }
    return 0;
}

static int list_file(void *opaque, const char *name)
{
    return list_name(opaque, name, NULL);
}

int export_listing_add(struct server *server, struct nbdkit_exports *exports)
{
    struct export_listing l = {.exports = exports};

    if (list_open_exports(&l, &server->exports) || list_named(&l, &server->exports))
        return -1;
    return server->folder && image_folder_list(server->folder, list_file, &l) ? -1 : 0;
}
