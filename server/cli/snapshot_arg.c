/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds and opens the snapshot that the command line names. */
#include "snapshot_arg.h"

#include <string.h>

#include "block/snapshot.h"
#include "cli.h"
#include "options.h"

#define ID_KEY   "snapshot.id"
#define NAME_KEY "snapshot.name"

static bool matches(const struct snapshot_info *s, const char *id, const char *name)
{
    return (!id || strcmp(s->id, id) == 0) && (!name || strcmp(s->name, name) == 0);
}

/* The first snapshot with that id and name (NULL: any); NULL: none. */
static const struct snapshot_info *find_snapshot(const struct snapshot_list *list,
                                                 const char *id, const char *name)
{
    for (size_t i = 0; i < list->n; i++)
        if (matches(&list->list[i], id, name))
            return &list->list[i];
    return NULL;
}

static int open_named(struct node *image, const char *name, struct node **out)
{
    struct diag diag = {0};

    if (node_open_snapshot(image, name, out, &diag) == 0)
        return CLI_OK;
    return cli_error("Failed to load snapshot: %s", diag.text);
}

/* Of the list; NULL: there is none. */
static int open_found(struct node *image, const struct snapshot_list *list,
                      const struct snapshot_info *found, struct node **out)
{
    const char *unique =
        found ? snapshot_export_name(list, (size_t)(found - list->list)) : NULL;

    return unique ? open_named(image, unique, out)
                  : cli_error("Failed to load snapshot: Can't find snapshot");
}

/* An id goes before a name, as for qemu-img; what clients of a server ask for is a name before. */
static int open_by_word(struct node *image, const char *word, struct node **out)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};

    if (node_snapshots(image, &list))
        return cli_error("out of memory");
    const struct snapshot_info *with_id = find_snapshot(&list, word, NULL);
    return with_id ? open_found(image, &list, with_id, out) : open_named(image, word, out);
}

static int open_by_keys(struct node *image, const struct option_list *keys,
                        struct node **out)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};
    const char *id = options_get(keys, ID_KEY), *name = options_get(keys, NAME_KEY);

    for (size_t i = 0; i < keys->count; i++)
        if (strcmp(keys->pairs[i].key, ID_KEY) != 0 &&
            strcmp(keys->pairs[i].key, NAME_KEY) != 0)
            return cli_error("Invalid parameter '%s': there are " ID_KEY " and " NAME_KEY,
                             keys->pairs[i].key);
    if (node_snapshots(image, &list))
        return cli_error("out of memory");
    return open_found(image, &list, find_snapshot(&list, id, name), out);
}

int snapshot_arg_open(struct node *image, const char *text, struct node **out)
{
    struct option_list keys = {0};

    *out = image;
    if (!text)
        return CLI_OK;
    if (!node_can(image, DRIVER_SNAPSHOTS))
        return cli_error("Failed to load snapshot: %s: %s images have no snapshots",
                         image->filename, node_format(image));
    if (strncmp(text, "snapshot.", 9) != 0)
        return open_by_word(image, text, out);
    int code = options_add(&keys, text);
    if (code == CLI_OK)
        code = open_by_keys(image, &keys, out);
    options_free(&keys);
    return code;
}

void snapshot_arg_close(struct node *image, struct node *opened)
{
    if (opened != image)
        node_close_snapshot(opened);
}
