/* SPDX-License-Identifier: BSD-3-Clause */
/* What a layer of a chain needs besides its own file: an external data file, a key. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/chain_internal.h"
#include "crypto/cipher.h"
#include "storage/protocol.h"

/* Resolves the name of the data file that the user gives, or that the image records. */
static int resolve_data_file(const struct node *node, const char *named, bool is_top,
                             const struct chain_options *options, struct reference *ref,
                             struct diag *diag)
{
    if (is_top && options->data_file) {
        int err = reference_resolve_given("data-file=", options->data_file, ref, diag);
        if (!err && ref->format && strcmp(ref->format, "raw") != 0)
            return diag_set(diag, EINVAL,
                            "data-file=%s: driver '%s': a data file has no format",
                            options->data_file, ref->format);
        return err || !ref->below
                   ? err
                   : diag_set(diag, EINVAL,
                              "data-file=%s: backing: nothing lies below a data file",
                              options->data_file);
    }
    if (!named)
        return diag_set(
            diag, EINVAL, "%s: its data lies in another file, which it doesn't name: %s",
            node->filename, is_top ? "say data-file=" : "it can't be a backing file so");
    return reference_resolve(node->filename, named, options->references, ref, diag);
}

static int open_data_file(struct node *node, const char *named,
                          const struct layer_files *how,
                          const struct chain_options *options, struct visited *visited,
                          struct diag *diag)
{
    const struct node_options *wishes = &node->options;
    CLEANUP_REFERENCE struct reference ref = {0};
    CLEANUP_STORAGE struct storage *file = NULL;
    struct storage_open open = {
        .read_only = how->read_only,
        .fallback_read_only = how->fallback_read_only,
        .direct = wishes->cache->direct,
        .no_flush = wishes->cache->no_flush,
        .named_by_image = how->depth > 0 || !options->data_file,
        .give_up = options->give_up,
    };

    int err = resolve_data_file(node, named, how->depth == 0, options, &ref, diag);
    if (err)
        return err;
    err = ref.protocol->open(ref.path, &open, &file, diag);
    if (err)
        return err;
    err = chain_note_visit(visited, file, "it can't be a data file, too", diag);
    if (err)
        return err;
    err = wishes->lock_off ? 0 : storage_lock(file, STORAGE_READER, diag);
    if (err)
        return err;
    node_set_data_file(node, TAKE(&file));
    return 0;
}

/* Adds to the message whose data file could not be opened, unless the message names the image
 * already. */
static int blame_data_file(const struct node *node, int err, struct diag *diag)
{
    if (!diag || strstr(diag->text, node->filename))
        return err;
    struct diag cause = *diag;
    return diag_set(diag, cause.err, "%s: data file: %s", node->filename, cause.text);
}

static const struct chain_passphrase *find_passphrase(const struct chain_options *options,
                                                      unsigned depth)
{
    for (size_t i = 0; i < options->n_passphrases; i++)
        if (options->passphrases[i].depth == depth)
            return &options->passphrases[i];
    return NULL;
}

/* Takes the key from a node that uses the same file. */
static bool share_key(struct node *node, const struct node *other)
{
    for (; other; other = other->backing)
        if (other->cipher && storage_is_same(other->file, node->file)) {
            node->cipher = cipher_share(other->cipher);
            node->cipher_by_place = other->cipher_by_place;
            return true;
        }
    return false;
}

static int refuse_passphrase(const struct node *node, unsigned depth, struct diag *diag)
{
    if (depth == 0)
        return diag_set(diag, EINVAL, "%s: passphrase: the image isn't encrypted",
                        node->filename);
    return diag_set(diag, EINVAL, "%s: passphrase.%u: the image isn't encrypted",
                    node->filename, depth);
}

static int unlock_layer(struct node *node, unsigned depth,
                        const struct chain_options *options, struct diag *diag)
{
    const struct chain_passphrase *p = find_passphrase(options, depth);

    if (!node->encryption)
        return p && !p->optional ? refuse_passphrase(node, depth, diag) : 0;
    if (p)
        return node->driver->unlock(node, p->bytes, p->len, diag);
    if (options->keep_locked || share_key(node, options->keys_of))
        return 0;
    if (depth == 0)
        return diag_set(diag, EKEYREJECTED, "%s: is encrypted (%s): a passphrase is needed",
                        node->filename, node->encryption);
    return diag_set(diag, EKEYREJECTED,
                    "%s: is encrypted (%s): a passphrase is needed (passphrase.%u)",
                    node->filename, node->encryption, depth);
}

int chain_complete_layer(struct node *node, const struct layer_files *how,
                         const struct chain_options *options, struct visited *visited,
                         struct diag *diag)
{
    const char *named = NULL;

    if (node->options.describe)
        return 0;
    bool has_data_file = node->driver->data_file && node->driver->data_file(node, &named);
    if (how->depth == 0 && options->data_file && !has_data_file)
        return diag_set(diag, EINVAL, "data-file=%s: %s keeps its data in itself",
                        options->data_file, node->filename);
    if (has_data_file) {
        int err = open_data_file(node, named, how, options, visited, diag);
        if (err)
            return blame_data_file(node, err, diag);
    }
    return unlock_layer(node, how->depth, options, diag);
}
