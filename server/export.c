/* SPDX-License-Identifier: BSD-3-Clause */
/* An image that is served, and putting another in its place. */
#include "export.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "block/chain.h"
#include "nbdkit_args.h"
#include "storage/rbd_name.h"

/* What lies in a folder is a file, whatever it is called. */
static const struct storage_protocol *protocol_of(const struct export_request *request)
{
    bool is_rbd = !request->folder && rbd_name_is_one(request->file);

    return is_rbd ? &storage_protocol_rbd : &storage_protocol_file;
}

static int open_chain(struct served_export *exp, const struct export_request *request,
                      struct node **out, struct diag *diag)
{
    const struct plugin_config *config = request->config;
    struct chain_options options = {
        .format = config->format,
        .protocol = protocol_of(request),
        .folder = request->folder,
        .give_up = request->give_up,
        .fallback_read_only = true,
        .no_backing = config->no_backing,
        .backing = config->backing,
        .backing_format = config->backing_format,
        .references = config->references,
        .data_file = config->data_file,
        .passphrases = config->passphrases.list,
        .n_passphrases = config->passphrases.count,
        .node = config->node,
    };

    options.node.cache = config->cache;
    return chain_open(&exp->ctx, request->file, &options, out, diag);
}

static int check_compress(const struct node *node, const struct plugin_config *config,
                          struct diag *diag)
{
    const char *why_not = config->node.compress ? node_why_not_compress(node) : NULL;

    return why_not ? diag_set(diag, ENOTSUP, "%s: compress=on: %s: %s", node->filename,
                              node_format(node), why_not)
                   : 0;
}

static int open_node(struct served_export *exp, const struct export_request *request,
                     struct node **out, struct diag *diag)
{
    struct node *node = NULL;

    int err = request->file ? open_chain(exp, request, &node, diag)
                            : request->open(request->opaque, &exp->ctx, &node, diag);
    if (!err)
        err = check_compress(node, request->config, diag);
    if (!err && request->config->writable_now && !exp->never_writable)
        err = node_activate(node, diag);
    if (!err)
        node_bitmaps_load(node);
    if (err) {
        node_close(node);
        return err;
    }
    *out = node;
    return 0;
}

void export_free(struct served_export *exp)
{
    free(exp->name);
    free(exp->node_name);
    free(exp->default_view);
    free(exp->id);
    free(exp->description);
    free(exp->failure);
    free(exp);
}

struct served_export *export_new(const char *name, const char *node_name)
{
    void *memory;

    /* The gates in it want their own cache lines, of which malloc knows nothing. */
    if (posix_memalign(&memory, _Alignof(struct served_export),
                       sizeof(struct served_export)) != 0)
        return NULL;
    struct served_export *exp = memory;
    *exp = (struct served_export){.name = strdup(name), .node_name = strdup(node_name)};
    throttle_member_init(&exp->throttle);
    if (exp->name && exp->node_name)
        return exp;
    export_free(exp);
    return NULL;
}

int export_open(struct served_export *exp, const struct export_request *request,
                const struct block_shared *shared, struct diag *diag)
{
    struct node *node;

    block_context_init_shared(&exp->ctx, shared);
    int err = open_node(exp, request, &node, diag);
    if (err) {
        block_context_destroy(&exp->ctx);
        return err;
    }
    if (!node->name && exp->node_name && node_name_is_well_formed(exp->node_name))
        node->name = node_name_new(exp->node_name);
    gate_init(&exp->gate);
    lock_init(&exp->lock, RANK_OPEN);
    pthread_cond_init(&exp->drain_ended, NULL);
    exp->wanted_writable = request->config->writable_now && !exp->never_writable;
    exp->locks = !request->config->node.lock_off;
    exp->is_open = true;
    atomic_store(&exp->node, node);
    return 0;
}

void export_rest(struct served_export *exp)
{
    chain_rest(atomic_load(&exp->node));
}

int export_start(struct served_export *exp)
{
    return chain_start(atomic_load(&exp->node));
}

int export_make_writable(struct served_export *exp, struct diag *diag)
{
    LOCK_GUARD(&exp->lock);
    struct node *node = atomic_load(&exp->node);

    if (!node)
        return diag_set(diag, ESHUTDOWN, "the server ends");
    exp->wanted_writable = true;
    return node_activate(node, diag);
}

int export_flush(struct served_export *exp, struct diag *diag)
{
    EXPORT_USE(use, export_enter(exp));
    int err = block_flush(use.node);

    return err ? diag_errno(diag, -err, "%s: flushing", use.node->filename) : 0;
}

void export_note_read_only(struct served_export *exp)
{
    atomic_store(&exp->read_only, true);
}

int export_check_changes(struct served_export *exp, struct diag *diag)
{
    const struct node *node = atomic_load(&exp->node);

    if (atomic_load(&exp->wanted_writable))
        return 0;
    if (atomic_load(&exp->read_only))
        return diag_set(diag, EROFS, "%s: is served read-only: nbdkit -r changes no image",
                        node->filename);
    if (nbdkit_args_may_be_read_only())
        return diag_set(
            diag, EROFS,
            "%s: nbdkit seems to have -r, which changes no image, and no client "
            "has connected yet that could write",
            node->filename);
    return 0;
}

int export_open_for_changes(struct served_export *exp, struct diag *diag)
{
    int err = export_check_changes(exp, diag);

    return err ? err : export_make_writable(exp, diag);
}

bool export_is_called(struct served_export *exp, const char *node_name)
{
    EXPORT_USE(use, export_enter(exp));

    return use.node->name && strcmp(use.node->name->text, node_name) == 0;
}

void export_downgrade_lock(struct served_export *exp, struct node *node)
{
    struct diag ignored;
    LOCK_GUARD(&exp->lock);

    if (!node->active && !node->options.lock_off)
        (void)!node_lock_for_reading(node, &ignored);
}

/* ---- requests ---- */

/* There is no node for a while (export_resize, which has the lock), or ever again: the process
 * ends while nbdkit's threads are still about, and none may touch what is closed. */
static void wait_for_node(struct served_export *exp, gate_ticket ticket)
{
    bool is_the_end;

    gate_leave(&exp->gate, ticket);
    {
        LOCK_GUARD(&exp->lock);
        is_the_end = !atomic_load(&exp->node);
    }
    while (is_the_end)
        pause();
}

/* The use's node is NULL when it isn't one: the ticket was given back. */
static inline struct export_use use_node(struct served_export *exp, gate_ticket ticket)
{
    struct node *node = atomic_load(&exp->node);

    if (UNLIKELY(!node))
        wait_for_node(exp, ticket);
    return (struct export_use){.exp = exp, .node = node, .ticket = ticket};
}

struct export_use export_enter(struct served_export *exp)
{
    for (;;) {
        struct export_use use = use_node(exp, gate_enter(&exp->gate));
        if (LIKELY(use.node))
            return use;
    }
}

static void wait_for_drain_end(struct served_export *exp)
{
    LOCK_GUARD(&exp->lock);
    while (atomic_load(&exp->drains))
        lock_wait(&exp->lock, &exp->drain_ended);
}

struct export_use export_enter_change(struct served_export *exp)
{
    for (;;) {
        gate_ticket ticket = gate_enter_to_change(&exp->gate);
        /* After entering: who sees no drain here is waited for by export_begin_drain.  And
         * the node only then: one that was seen in a drain may be replaced at its end. */
        if (LIKELY(!atomic_load(&exp->drains))) {
            struct export_use use = use_node(exp, ticket);
            if (LIKELY(use.node))
                return use;
            continue;
        }
        gate_leave(&exp->gate, ticket);
        wait_for_drain_end(exp);
    }
}

void export_leave(struct export_use *use)
{
    gate_leave(&use->exp->gate, use->ticket);
}

/* ---- jobs ---- */

struct node *export_take_reference(struct served_export *exp)
{
    LOCK_GUARD(&exp->lock);
    while (exp->claimed)
        lock_wait(&exp->lock, &exp->drain_ended);
    atomic_fetch_add(&exp->references, 1);
    return atomic_load(&exp->node);
}

void export_drop_reference(struct served_export *exp)
{
    atomic_fetch_sub(&exp->references, 1);
}

int export_claim(struct served_export *exp, struct node **node, struct diag *diag)
{
    LOCK_GUARD(&exp->lock);
    *node = atomic_load(&exp->node);
    if (!*node)
        return diag_set(diag, ESHUTDOWN, "the server ends");
    if (exp->claimed || atomic_load(&exp->references) > 0)
        return diag_set(diag, EBUSY, "Node '%s' is busy: a job uses it", exp->node_name);
    exp->claimed = true;
    atomic_fetch_add(&exp->references, 1);
    return 0;
}

bool export_is_claimed(struct served_export *exp)
{
    LOCK_GUARD(&exp->lock);
    return exp->claimed;
}

void export_end_claim(struct served_export *exp)
{
    LOCK_GUARD(&exp->lock);
    exp->claimed = false;
    atomic_fetch_sub(&exp->references, 1);
    pthread_cond_broadcast(&exp->drain_ended);
}

#define POLL_NS         200000u
#define LONGEST_WAIT_MS 30000u

/* Waits until every request that was inside has left; false: it took too long. */
static bool wait_for_users(struct served_export *exp, bool patient)
{
    uint64_t stamp = gate_stamp(&exp->gate);
    uint64_t end = clock_ms() + LONGEST_WAIT_MS;

    while (!gate_passed(&exp->gate, stamp)) {
        if (!patient && clock_ms() > end)
            return false;
        clock_nap_ns(POLL_NS);
    }
    return true;
}

void export_begin_drain(struct served_export *exp)
{
    atomic_fetch_add(&exp->drains, 1);
    gate_wait_for_changers(&exp->gate);
}

/* Does `part` lie in the chain of `node`, which it may be itself? */
static bool chain_has(const struct node *node, const struct node *part)
{
    while (node && node != part)
        node = node->backing;
    return node;
}

/* Closes a chain, but for the part of it that is (or lies below) what is served now. */
static int close_replaced(struct node *old, struct node *serving)
{
    struct node *last = old;

    while (last->backing && !chain_has(serving, last->backing))
        last = last->backing;
    last->backing = NULL;
    return node_close(old);
}

/* Of what is to be closed, which is `old` with what lies below it, but for the part that is
 * still served then. */
static int check_unviewed(const struct node *old, const struct node *serving,
                          struct diag *diag)
{
    for (const struct node *node = old; node && !chain_has(serving, node);
         node = node->backing)
        if (atomic_load(&node->viewers))
            return diag_set(diag, EBUSY,
                            "%s: a client reads a snapshot or another view of it",
                            node->filename);
    return 0;
}

static int check_replacement(struct served_export *exp, const struct node *old,
                             struct node *new_node, struct diag *diag)
{
    if (atomic_load(&exp->references) > 1)
        return diag_set(diag, EBUSY, "%s: another job uses the disk, too", old->filename);
    if (exp->left_open || exp->replaced)
        return diag_set(diag, EBUSY,
                        "%s: a request on the image served before hasn't ended",
                        old->filename);
    if (new_node->size < old->size)
        return diag_set(diag, EINVAL,
                        "%s: its %" PRIu64 " bytes can't replace the %" PRIu64
                        " bytes of %s",
                        new_node->filename, new_node->size, old->size, old->filename);
    int err = check_unviewed(old, new_node, diag);
    if (err)
        return err;
    return exp->wanted_writable ? node_activate(new_node, diag) : 0;
}

/* Images of the old chain that were opened once more couldn't be locked beside it. */
static void lock_reopened_images(struct served_export *exp, struct node *top)
{
    struct diag diag = {0};

    if (!exp->locks)
        return;
    for (struct node *node = top; node; node = node->backing) {
        if (!node->options.lock_off)
            continue;
        if (node_lock_now(node, &diag))
            log_warning("%s: is served without a lock", diag.text);
        else
            node->options.lock_off = false;
    }
}

/* The user's choices are for the disk, whichever image that is.  But "volatile" is one for
 * an image that may be lost: another goes on being synced. */
static void inherit_options(const struct node *old, struct node *new_node)
{
    if (!old->options.cache->no_flush)
        new_node->options.cache = old->options.cache;
    new_node->options.discard_ignore = old->options.discard_ignore;
    new_node->options.detect_zeroes = old->options.detect_zeroes;
    new_node->options.compress = old->options.compress && !node_why_not_compress(new_node);
    new_node->options.copy_on_read = old->options.copy_on_read;
}

int export_replace(struct served_export *exp, struct node *new_node, struct diag *diag)
{
    struct node *old = atomic_load(&exp->node);

    if (old == new_node)
        return 0;
    {
        LOCK_GUARD(&exp->lock);
        int err = check_replacement(exp, old, new_node, diag);
        if (err)
            return err;
        inherit_options(old, new_node);
        atomic_store(&exp->node, new_node);
        atomic_store(&exp->moved, true);
        exp->replaced = chain_has(new_node, old) ? NULL : old;
    }
    return 0;
}

void export_put_on_top(struct served_export *exp, struct node *overlay)
{
    LOCK_GUARD(&exp->lock);
    struct node *old = atomic_load(&exp->node);

    inherit_options(old, overlay);
    node_set_below(overlay, old);
    atomic_store(&exp->node, overlay);
    atomic_store(&exp->moved, true);
}

/* Nobody uses what was replaced: it is about to be closed. */
static void note_users_left(struct served_export *exp)
{
    LOCK_GUARD(&exp->lock);
    exp->closing = NULL;
}

/* Closes what was replaced; readers may hang on a backing file of it. */
static void close_when_unused(struct served_export *exp, struct node *old)
{
    struct node *serving = atomic_load(&exp->node);

    if (!wait_for_users(exp, false)) {
        log_warning("%s: a request doesn't end: the image stays open", old->filename);
        LOCK_GUARD(&exp->lock);
        exp->left_open = old;
        exp->closing = NULL;
        return;
    }
    note_users_left(exp);
    int err = close_replaced(old, serving);
    if (err)
        log_error("closing the image that was replaced: %s: it must be checked",
                  strerror(-err));
    lock_reopened_images(exp, serving);
}

void export_end_drain(struct served_export *exp)
{
    lock_acquire(&exp->lock);
    atomic_fetch_sub(&exp->drains, 1);
    pthread_cond_broadcast(&exp->drain_ended);
    struct node *old = exp->replaced;
    exp->replaced = NULL;
    if (old)
        exp->closing = old;
    lock_release(&exp->lock);
    if (old)
        close_when_unused(exp, old);
}

int export_replace_backing(struct served_export *exp, struct node *layer,
                           struct node *below, struct diag *diag)
{
    struct node *old = layer->backing;
    int err;

    {
        LOCK_GUARD(&exp->lock);
        if (atomic_load(&exp->references) > 1)
            return diag_set(diag, EBUSY, "%s: another job uses the disk, too",
                            layer->filename);
        err = check_unviewed(old, below, diag);
        if (err)
            return err;
        node_set_below(layer, below);
        exp->closing = old;
    }
    wait_for_users(exp, true);
    gate_wait(&exp->ctx.gate);
    node_forget_merged(atomic_load(&exp->node));
    note_users_left(exp);
    err = close_replaced(old, below);
    if (err)
        log_error("closing the images that were folded: %s", strerror(-err));
    return 0;
}

/* Under the lock, by which those who come meanwhile wait. */
static int grow_alone(struct served_export *exp, struct node *node, uint64_t size,
                      struct diag *diag)
{
    atomic_store(&exp->node, NULL);
    bool alone = wait_for_users(exp, false);
    int err = alone ? node_grow(node, size, diag)
                    : diag_set(diag, EBUSY, "%s: a request doesn't end", node->filename);
    atomic_store(&exp->node, node);
    return err;
}

int export_resize(struct served_export *exp, uint64_t size, struct diag *diag)
{
    struct node *node;

    int err = export_open_for_changes(exp, diag);
    if (!err)
        err = export_claim(exp, &node, diag);
    if (err)
        return err;
    if (size < node->size)
        err = diag_set(diag, ENOTSUP,
                       "%s: its %" PRIu64 " bytes can't shrink while they are served",
                       node->filename, node->size);
    if (!err) {
        LOCK_GUARD(&exp->lock);
        err = grow_alone(exp, node, size, diag);
    }
    export_end_claim(exp);
    return err;
}

int export_set_choices(struct served_export *exp, const struct export_choices *choices,
                       struct diag *diag)
{
    struct node *node;

    int err = export_claim(exp, &node, diag);
    if (err)
        return err;
    export_begin_drain(exp);
    err = node_set_cache(node, choices->cache, diag);
    if (!err) {
        node->options.discard_ignore = choices->discard_ignore;
        node->options.detect_zeroes = choices->detect_zeroes;
    }
    export_end_drain(exp);
    export_end_claim(exp);
    return err;
}

bool export_is_idle(struct served_export *exp)
{
    return gate_empty(&exp->gate);
}

void export_abandon_servers(struct served_export *exp)
{
    if (!exp->is_open)
        return;
    /* None of them is closed meanwhile. */
    LOCK_GUARD(&exp->lock);
    struct node *node = atomic_load(&exp->node);
    if (node)
        chain_abandon_servers(node->backing);
    chain_abandon_servers(exp->replaced);
    chain_abandon_servers(exp->closing);
    chain_abandon_servers(exp->left_open);
}

void export_seal(struct served_export *exp)
{
    exp->sealed = atomic_exchange(&exp->node, NULL);
    wait_for_users(exp, true);
}

char *export_filename(struct served_export *exp)
{
    const struct node *node = exp->is_open ? atomic_load(&exp->node) : NULL;

    if (exp->is_open && !node)
        node = exp->sealed;
    return node ? strdup(node->filename) : NULL;
}

int export_close(struct served_export *exp)
{
    if (!exp->is_open)
        return 0;
    throttle_leave(&exp->throttle);
    exp->is_open = false;
    struct node *node = atomic_exchange(&exp->node, NULL);
    if (exp->sealed)
        node = exp->sealed;
    int err = exp->left_open ? close_replaced(exp->left_open, node) : 0;
    int last_err = node_close(node);
    block_context_destroy(&exp->ctx);
    pthread_cond_destroy(&exp->drain_ended);
    lock_destroy(&exp->lock);
    return err ? err : last_err;
}
