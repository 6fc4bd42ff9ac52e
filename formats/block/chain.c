/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens an image and what lies below it, layer by layer. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/chain_internal.h"
#include "block/json_name.h"
#include "block/shared_layer.h"
#include "storage/nbd.h"
#include "storage/protocol.h"

/* How one layer is to be opened. */
struct layer {
    const char *path;
    const struct storage_protocol *protocol;
    const struct storage_folder *folder; /* where the file has to lie; NULL: anywhere */
    const char *format;                  /* NULL or "auto": by magic */
    const char *image;                   /* the image above it; NULL: it is the top */
    unsigned depth;
    bool named_by_image;
    const _Atomic bool *give_up;
    bool read_only, fallback_read_only;
};

/* As chain_find_driver, for a layer.  The message for an unknown format says what to add, and
 * depends on whether the image above it or the user named the file. */
static int find_layer_driver(struct storage *file, const struct layer *layer,
                             const struct driver **out, struct diag *diag)
{
    CLEANUP_FREE char *remedy = NULL;

    if (!layer->image || !chain_is_auto(layer->format))
        return chain_find_driver(file, layer->format, out, diag);
    if (asprintf(
            &remedy,
            "%s doesn't record its format and it is not recognised; raw is never guessed, "
            "say backing-format=raw if it is that",
            layer->image) < 0) {
        remedy = NULL;
        return diag_errno(diag, ENOMEM, "%s", file->name);
    }
    return chain_find_by_magic(file, remedy, out, diag);
}

int chain_note_visit(struct visited *visited, struct storage *file, const char *what,
                     struct diag *diag)
{
    uint64_t device, inode;
    int rc = storage_identity(file, &device, &inode);
    if (rc == -ENOTSUP)
        return 0;
    if (rc < 0)
        return diag_errno(diag, -rc, "%s", file->name);

    for (unsigned i = 0; i < visited->count; i++)
        if (visited->file[i].device == device && visited->file[i].inode == inode)
            return diag_set(diag, ELOOP, "%s: %s", file->name, what);
    assert(visited->count < ARRAY_LEN(visited->file));
    visited->file[visited->count].device = device;
    visited->file[visited->count].inode = inode;
    visited->count++;
    return 0;
}

static int open_store(const struct layer *layer, const struct node_options *options,
                      struct storage **out, struct diag *diag)
{
    const struct storage_open how = {
        .read_only = layer->read_only,
        .fallback_read_only = layer->fallback_read_only,
        .direct = options->cache && options->cache->direct,
        .no_flush = options->cache && options->cache->no_flush,
        .folder = layer->folder,
        .named_by_image = layer->named_by_image,
        .give_up = layer->give_up,
    };

    return layer->protocol->open(layer->path, &how, out, diag);
}

/* Opens a node under the name that users see. */
static int open_node(struct block_context *ctx, const struct driver *driver,
                     struct storage *file, const struct layer *layer,
                     const struct chain_options *options, struct node **out,
                     struct diag *diag)
{
    CLEANUP_STORAGE struct storage *owned = file;
    CLEANUP_FREE char *shown = storage_shown_name(layer->protocol, layer->path);

    if (!shown)
        return diag_errno(diag, ENOMEM, "%s", file->name);
    return node_open(ctx, driver, TAKE(&owned), shown, &options->node, out, diag);
}

static int open_layer(struct block_context *ctx, const struct layer *layer,
                      const struct chain_options *options, struct visited *visited,
                      struct node **out, struct diag *diag)
{
    const struct layer_files files = {.depth = layer->depth,
                                      .read_only = layer->read_only,
                                      .fallback_read_only = layer->fallback_read_only};
    CLEANUP_STORAGE struct storage *file = NULL;
    int rc = open_store(layer, &options->node, &file, diag);
    if (rc < 0)
        return rc;
    rc = chain_note_visit(visited, file, "the backing chain comes back to this file", diag);
    if (rc == 0 && !options->node.lock_off)
        rc = storage_lock(file, STORAGE_READER, diag);
    if (rc < 0)
        return rc;

    const struct driver *driver = NULL;
    rc = find_layer_driver(file, layer, &driver, diag);
    if (rc == -EINVAL && chain_is_auto(layer->format) && !layer->image &&
        options->unknown_is_raw)
        rc = chain_find_driver(file, "raw", &driver, diag);
    if (rc < 0)
        return rc;
    rc = open_node(ctx, driver, TAKE(&file), layer, options, out, diag);
    if (rc < 0)
        return rc;
    rc = chain_complete_layer(*out, &files, options, visited, diag);
    if (rc < 0)
        node_close(*out);
    return rc;
}

/* Resolves a backing file that the user has chosen.  It may lie anywhere, but must be a local
 * file, an NBD export or an RBD image. */
static int resolve_chosen(const struct node *top, const char *name, struct reference *out,
                          struct diag *diag)
{
    bool known = strncmp(name, "file:", 5) == 0 ||
                 storage_protocol_of(name) != &storage_protocol_file ||
                 json_name_is_one(name);
    if (!known && name[strcspn(name, ":/")] == ':')
        return diag_set(diag, ENOTSUP,
                        "backing=%s: only local files, NBD exports and RBD images can be "
                        "backing files",
                        name);
    if (!node_can(top, DRIVER_BACKING))
        return diag_set(diag, EINVAL, "%s: %s images have no backing file", top->filename,
                        top->driver->name);
    return reference_resolve_given("backing=", name, out, diag);
}

/* The format of the layer below the node.  If the user names only a protocol's driver, the
 * format is raw: its content, which could imitate another format, isn't probed.  If an image
 * does so, its recorded format counts, if it has one (QED can't record it). */
static const char *format_below(const struct node *node, const struct reference *ref)
{
    const char *recorded = node->backing_format;

    if (ref->format)
        return ref->format;
    return ref->plain && ref->given ? "raw" : recorded;
}

static bool are_same_format(const char *a, const char *b)
{
    const struct driver *driver = driver_find_recorded(a);

    return strcmp(a, b) == 0 || (driver && driver == driver_find_recorded(b));
}

/* *format: the format of the layer that the node names, from what is recorded and what the name
 * says.  The two must agree. */
static int choose_format(const struct node *node, const struct reference *ref,
                         const char **format, struct diag *diag)
{
    const char *recorded = node->backing_format;

    if (ref->format && !chain_is_auto(recorded) && !are_same_format(recorded, ref->format))
        return diag_set(diag, EINVAL,
                        "%s: records the backing format '%s', but the name says '%s'; "
                        "backing-format= can decide",
                        node->filename, recorded, ref->format);
    *format = format_below(node, ref);
    return 0;
}

/* The layer below `node`, *ref without a path if there is none, and its format. */
static int next_layer(const struct node *node, bool is_top,
                      const struct chain_options *options, struct reference *ref,
                      const char **format, struct diag *diag)
{
    bool chosen = is_top && options->backing;

    *ref = (struct reference){0};
    if (!chosen && !node->backing_name)
        return 0;
    int rc = chosen ? resolve_chosen(node, options->backing, ref, diag)
                    : reference_resolve_layer(node->filename, node->backing_name,
                                              options->references, ref, diag);
    if (rc < 0)
        return rc;
    if (is_top && options->backing_format) {
        *format = options->backing_format;
        return 0;
    }
    return choose_format(node, ref, format, diag);
}

/* The references by which a chain is being opened. */
struct names {
    const struct reference *said; /* for the layer opened last; NULL: just a path */
    struct reference kept;        /* owns `said`, unless the caller does */
    struct reference found;       /* read from the layer, if `said` has no file name */
};

static void free_names(struct names *names)
{
    reference_free(&names->kept);
    reference_free(&names->found);
}

/* The next layer is where the image above it says.  The layers below that one are as
 * `described` says, or else as the name found in the image says.  Returns the reference with
 * its path, if it has one. */
static const struct reference *follow_found(struct names *names,
                                            const struct reference *described)
{
    if (described && (described->below || described->none_below)) {
        names->said = described;
        return &names->found;
    }
    reference_free(&names->kept);
    names->kept = names->found;
    names->found = (struct reference){0};
    return names->said = &names->kept;
}

/* As next_layer, but what the reference of this layer says of the layer below overrides what
 * the image records.  *out: NULL if there is no layer below. */
static int next_name(const struct node *node, bool is_top,
                     const struct chain_options *options, struct names *names,
                     const struct reference **out, const char **format, struct diag *diag)
{
    const struct reference *said = is_top && options->backing ? NULL : names->said;
    const struct reference *below = said ? said->below : NULL;

    *out = NULL;
    if (below && !node_can(node, DRIVER_BACKING))
        return diag_set(diag, EINVAL, "%s: %s images have no backing file", node->filename,
                        node->driver->name);
    if (options->no_backing || (said && said->none_below))
        return 0;
    if (below && below->path) {
        *out = names->said = below;
        *format = format_below(node, below);
        return 0;
    }
    reference_free(&names->found);
    int err = next_layer(node, is_top, options, &names->found, format, diag);
    if (err)
        return err;
    if (below && below->format)
        *format = below->format;
    const struct reference *place = follow_found(names, below);
    *out = place->path ? place : NULL;
    return 0;
}

/* Adds to the message whose backing file could not be opened, unless the message names the
 * image already. */
static int blame_image(const char *image, int rc, struct diag *diag)
{
    if (!diag || strstr(diag->text, image))
        return rc;
    struct diag cause = *diag;
    return diag_set(diag, cause.err, "%s: backing file: %s", image, cause.text);
}

/* Finds out which layer lies below `node`, which is at depth - 1, and how to open it.
 * layer->path: NULL if there is none; it stays valid until the next call with these *names. */
static int find_below(const struct node *node, const struct node *top, unsigned depth,
                      const struct chain_options *options, struct names *names,
                      struct layer *layer, struct diag *diag)
{
    const struct reference *ref;
    const char *format = NULL;

    *layer = (struct layer){.path = NULL};
    int rc = next_name(node, node == top, options, names, &ref, &format, diag);
    if (rc < 0 || !ref)
        return rc;
    if (depth == CHAIN_MAX_DEPTH)
        return diag_set(diag, ELOOP, "%s: the backing chain is deeper than %d images",
                        top->filename, CHAIN_MAX_DEPTH);
    *layer = (struct layer){
        .path = ref->path,
        .protocol = ref->protocol,
        .format = format,
        .image = node->filename,
        .depth = depth,
        .named_by_image = !ref->given,
        .give_up = options->give_up,
        .read_only = true,
    };
    return 0;
}

static int open_below(struct block_context *ctx, struct node *top,
                      const struct chain_options *options, struct visited *visited,
                      struct diag *diag)
{
    CLEANUP(free_names) struct names names = {.said = options->named};
    unsigned depth = 1;
    for (struct node *node = top;; node = node->backing, depth++) {
        struct layer layer;
        int rc = find_below(node, top, depth, options, &names, &layer, diag);
        if (rc < 0 || !layer.path)
            return rc;

        struct node *below;
        rc = open_layer(ctx, &layer, options, visited, &below, diag);
        if (rc < 0)
            return blame_image(node->filename, rc, diag);
        node->backing = below;
    }
}

/* ---- layers that other chains have open ---- */

/* Not with passphrases, which have to be checked against the file, nor without locks, as the
 * file may have changed. */
static bool may_attach(const struct node *top, const struct chain_options *options)
{
    return top->ctx->layers && options->n_passphrases == 0 && !options->node.describe &&
           !options->node.lock_off;
}

/* Returns a node for this chain that borrows the shared layer which has this file open and lies
 * below `above` (NULL: below anything).  NULL: there is none. */
static struct node *attach_layer(const struct node *top, const struct layer *layer,
                                 const struct shared_layer *above,
                                 const struct chain_options *options,
                                 struct visited *visited)
{
    const struct driver *driver =
        chain_is_auto(layer->format) ? NULL : driver_find_recorded(layer->format);
    CLEANUP_STORAGE struct storage *file = NULL;
    struct diag ignored;

    if (layer->protocol != &storage_protocol_file ||
        (!driver && !chain_is_auto(layer->format)) ||
        open_store(layer, &options->node, &file, &ignored) < 0 ||
        chain_note_visit(visited, file, "", &ignored) < 0)
        return NULL;
    CLEANUP_FREE char *shown = storage_shown_name(layer->protocol, layer->path);
    return shown ? shared_layer_attach(top->ctx, above, file, driver, shown, &options->node)
                 : NULL;
}

/* Builds the chain from shared layers only.  False: not all of them are open already; then
 * nothing lies below top. */
static bool attach_below(struct node *top, const struct chain_options *options,
                         struct visited visited)
{
    const struct shared_layer *above = NULL;
    struct node *node = top;
    CLEANUP(free_names) struct names names = {.said = options->named};
    struct diag ignored;

    for (unsigned depth = 1;; depth++) {
        struct layer layer;
        int rc = find_below(node, top, depth, options, &names, &layer, &ignored);
        if (rc == 0 && !layer.path && (!above || !above->below))
            return true;
        struct node *below = rc < 0 || !layer.path
                                 ? NULL
                                 : attach_layer(top, &layer, above, options, &visited);
        if (!below)
            break;
        node->backing = below;
        node = below;
        above = below->shared;
    }
    (void)node_close(top->backing);
    top->backing = NULL;
    return false;
}

/* Every passphrase that isn't optional must have a layer.  Opening the layers has checked the
 * passphrases themselves. */
static int check_passphrases(const struct node *top, const struct chain_options *options,
                             struct diag *diag)
{
    unsigned depth = 0;

    for (const struct node *node = top; node->backing; node = node->backing)
        depth++;
    for (size_t i = 0; i < options->n_passphrases; i++)
        if (options->passphrases[i].depth > depth && !options->passphrases[i].optional)
            return diag_set(diag, EINVAL,
                            "%s: passphrase.%u: the image has %u files below it",
                            top->filename, options->passphrases[i].depth, depth);
    return 0;
}

int chain_open(struct block_context *ctx, const char *filename,
               const struct chain_options *options, struct node **out, struct diag *diag)
{
    struct visited visited = {.count = 0};
    const struct layer layer = {
        .path = filename,
        .protocol = options->protocol ? options->protocol : &storage_protocol_file,
        .folder = options->folder,
        .format = options->format,
        .give_up = options->give_up,
        .read_only = options->read_only,
        .fallback_read_only = options->fallback_read_only,
    };
    struct node *top = NULL;

    *out = NULL;
    int rc = open_layer(ctx, &layer, options, &visited, &top, diag);
    if (rc < 0)
        return rc;
    bool complete = may_attach(top, options) && attach_below(top, options, visited);
    if (!complete)
        rc = open_below(ctx, top, options, &visited, diag);
    if (rc == 0)
        rc = check_passphrases(top, options, diag);
    if (rc < 0) {
        node_close(top);
        return rc;
    }
    if (!complete)
        shared_layers_join(top);
    *out = top;
    return 0;
}

int chain_open_nbd(struct block_context *ctx, const char *uri, const struct nbd_open *how,
                   const struct chain_options *options, struct node **out,
                   struct diag *diag)
{
    CLEANUP_STORAGE struct storage *st = NULL;
    struct visited visited = {.count = 0};
    const struct driver *driver;

    int err = storage_open_nbd(uri, how, &st, diag);
    if (err)
        return err;
    if (storage_nbd_info(st)->is_self)
        return diag_set(diag, ELOOP, "%s: is an export of this server", uri);
    err = chain_find_driver(st, options->format, &driver, diag);
    if (err)
        return err;
    err = node_open(ctx, driver, TAKE(&st), uri, &options->node, out, diag);
    if (err)
        return err;
    err = chain_complete_layer(*out, &(struct layer_files){0}, options, &visited, diag);
    if (err)
        node_close(*out);
    return err;
}
