/* SPDX-License-Identifier: BSD-3-Clause */
/* The image that is served, and putting another in its place. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "block/chain.h"
#include "export.h"
#include "nbdkit_args.h"

static int open_chain(struct export *export, const struct plugin_config *config,
                      struct node **out, struct diag *diag)
{
    struct chain_options options = {
        .format = config->format,
        .fallback_read_only = true,
        .no_backing = config->no_backing,
        .backing = config->backing,
        .backing_format = config->backing_format,
        .references = config->references,
        .node = config->node,
    };

    options.node.cache = config->cache;
    return chain_open(&export->ctx, config->file, &options, out, diag);
}

int export_open(struct export *export, const struct plugin_config *config,
                struct diag *diag)
{
    struct node *node = NULL;

    *export = (struct export){0};
    int err = block_context_init(&export->ctx, config->metadata_cache, NULL, NULL);
    if (err)
        return diag_errno(diag, -err, "%s", config->file);
    err = open_chain(export, config, &node, diag);
    if (!err && config->writable_now)
        err = node_activate(node, diag);
    if (err) {
        node_close(node);
        block_context_destroy(&export->ctx);
        return err;
    }
    gate_init(&export->gate);
    gate_init(&export->changes);
    lock_init(&export->lock, RANK_OPEN);
    pthread_cond_init(&export->released, NULL);
    export->wanted_writable = config->writable_now;
    export->locks = !config->node.lock_off;
    export->is_open = true;
    atomic_store(&export->node, node);
    return 0;
}

int export_start(struct export *export)
{
    int err = housekeeper_start(export->ctx.housekeeper);

    return err ? err : chain_start(atomic_load(&export->node));
}

int export_make_writable(struct export *export, struct diag *diag)
{
    LOCK_GUARD(&export->lock);
    export->wanted_writable = true;
    return node_activate(atomic_load(&export->node), diag);
}

void export_note_read_only(struct export *export)
{
    atomic_store(&export->read_only, true);
}

int export_check_changes(struct export *export, struct diag *diag)
{
    const struct node *node = atomic_load(&export->node);

    if (atomic_load(&export->wanted_writable))
        return 0;
    if (atomic_load(&export->read_only))
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

void export_relock(struct export *export, struct node *node)
{
    struct diag ignored;
    LOCK_GUARD(&export->lock);

    if (!node->active && !node->options.lock_off)
        (void)!node_lock(node, STORAGE_READER, &ignored);
}

/* ---- requests ---- */

/* The process ends while nbdkit's threads are still about: none may touch what is closed.
 */
static void wait_for_the_end(struct export *export, gate_ticket ticket)
{
    gate_leave(&export->gate, ticket);
    for (;;)
        pause();
}

struct export_use export_enter(struct export *export)
{
    gate_ticket ticket = gate_enter(&export->gate);
    struct node *node = atomic_load(&export->node);

    if (UNLIKELY(!node))
        wait_for_the_end(export, ticket);
    return (struct export_use){.export = export, .node = node, .ticket = ticket};
}

static void wait_for_release(struct export *export)
{
    LOCK_GUARD(&export->lock);
    while (atomic_load(&export->held))
        lock_wait(&export->lock, &export->released);
}

struct export_use export_enter_change(struct export *export)
{
    for (;;) {
        gate_ticket changes = gate_enter(&export->changes);
        struct export_use use = export_enter(export);
        use.changes = true;
        use.changes_ticket = changes;
        /* After entering: who sees the flag off here is waited for by export_hold. */
        if (LIKELY(!atomic_load(&export->held)))
            return use;
        export_leave(&use);
        wait_for_release(export);
    }
}

void export_leave(struct export_use *use)
{
    if (use->changes)
        gate_leave(&use->export->changes, use->changes_ticket);
    gate_leave(&use->export->gate, use->ticket);
}

/* ---- jobs ---- */

struct node *export_claim(struct export *export)
{
    LOCK_GUARD(&export->lock);
    atomic_fetch_add(&export->claims, 1);
    return atomic_load(&export->node);
}

void export_unclaim(struct export *export)
{
    atomic_fetch_sub(&export->claims, 1);
}

#define POLL_NS         200000u
#define LONGEST_WAIT_MS 30000u

/* Waits until every request that was inside has left; false: it took too long. */
static bool wait_for_users(struct export *export, bool patient)
{
    uint64_t stamp = gate_stamp(&export->gate);
    uint64_t end = clock_ms() + LONGEST_WAIT_MS;

    while (!gate_passed(&export->gate, stamp)) {
        if (!patient && clock_ms() > end)
            return false;
        clock_nap_ns(POLL_NS);
    }
    return true;
}

void export_hold(struct export *export)
{
    atomic_fetch_add(&export->held, 1);
    gate_wait(&export->changes);
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

static int check_swing(struct export *export, const struct node *old, struct node *new_node,
                       struct diag *diag)
{
    if (atomic_load(&export->claims) > 1)
        return diag_set(diag, EBUSY, "%s: another job uses the disk, too", old->filename);
    if (export->stuck || export->replaced)
        return diag_set(diag, EBUSY,
                        "%s: a request on the image served before hasn't ended",
                        old->filename);
    if (new_node->size < old->size)
        return diag_set(diag, EINVAL,
                        "%s: its %" PRIu64 " bytes can't replace the %" PRIu64
                        " bytes of %s",
                        new_node->filename, new_node->size, old->size, old->filename);
    return export->wanted_writable ? node_activate(new_node, diag) : 0;
}

/* Images of the old chain that were opened once more couldn't be locked beside it. */
static void take_locks(struct export *export, struct node *top)
{
    struct diag diag = {0};

    if (!export->locks)
        return;
    for (struct node *node = top; node; node = node->backing)
        if (node->options.lock_off &&
            storage_lock(node->file, node->active ? STORAGE_WRITER : STORAGE_READER, &diag))
            log_warning("%s: is served without a lock", diag.text);
}

/* The user's choices are for the disk, whichever image that is.  But "volatile" is one for
 * an image that may be lost: another goes on being synced. */
static void inherit_options(const struct node *old, struct node *new_node)
{
    if (!old->options.cache->no_flush)
        new_node->options.cache = old->options.cache;
    new_node->options.discard_ignore = old->options.discard_ignore;
    new_node->options.detect_zeroes = old->options.detect_zeroes;
}

int export_swing(struct export *export, struct node *new_node, struct diag *diag)
{
    struct node *old = atomic_load(&export->node);

    if (old == new_node)
        return 0;
    {
        LOCK_GUARD(&export->lock);
        int err = check_swing(export, old, new_node, diag);
        if (err)
            return err;
        inherit_options(old, new_node);
        atomic_store(&export->node, new_node);
        export->replaced = chain_has(new_node, old) ? NULL : old;
    }
    return 0;
}

/* What was replaced is about to be closed. */
static void have_left(struct export *export)
{
    LOCK_GUARD(&export->lock);
    export->leaving = NULL;
}

/* Closes what was replaced; readers may be stuck on a backing file of it. */
static void retire(struct export *export, struct node *old)
{
    struct node *serving = atomic_load(&export->node);

    if (!wait_for_users(export, false)) {
        log_warning("%s: a request doesn't end: the image stays open", old->filename);
        LOCK_GUARD(&export->lock);
        export->stuck = old;
        export->leaving = NULL;
        return;
    }
    have_left(export);
    int err = close_replaced(old, serving);
    if (err)
        log_error("closing the image that was replaced: %s: it must be checked",
                  strerror(-err));
    take_locks(export, serving);
}

void export_release(struct export *export)
{
    lock_acquire(&export->lock);
    atomic_fetch_sub(&export->held, 1);
    pthread_cond_broadcast(&export->released);
    struct node *old = export->replaced;
    export->replaced = NULL;
    if (old)
        export->leaving = old;
    lock_release(&export->lock);
    if (old)
        retire(export, old);
}

int export_relink(struct export *export, struct node *layer, struct node *below,
                  struct diag *diag)
{
    struct node *old = layer->backing;

    {
        LOCK_GUARD(&export->lock);
        if (atomic_load(&export->claims) > 1)
            return diag_set(diag, EBUSY, "%s: another job uses the disk, too",
                            layer->filename);
        layer->backing = below;
        export->leaving = old;
    }
    wait_for_users(export, true);
    gate_wait(&export->ctx.gate);
    have_left(export);
    int err = node_close(old);
    if (err)
        log_error("closing the images that were folded: %s", strerror(-err));
    return 0;
}

bool export_is_idle(struct export *export)
{
    return gate_empty(&export->gate);
}

void export_abandon_servers(struct export *export)
{
    if (!export->is_open)
        return;
    /* None of them is closed meanwhile. */
    LOCK_GUARD(&export->lock);
    struct node *node = atomic_load(&export->node);
    if (node)
        chain_abandon_servers(node->backing);
    chain_abandon_servers(export->replaced);
    chain_abandon_servers(export->leaving);
    chain_abandon_servers(export->stuck);
}

void export_seal(struct export *export)
{
    export->sealed = atomic_exchange(&export->node, NULL);
    wait_for_users(export, true);
}

char *export_name(struct export *export)
{
    const struct node *node = export->is_open ? atomic_load(&export->node) : NULL;

    if (export->is_open && !node)
        node = export->sealed;
    return node ? strdup(node->filename) : NULL;
}

int export_close(struct export *export)
{
    if (!export->is_open)
        return 0;
    export->is_open = false;
    housekeeper_stop(export->ctx.housekeeper);
    struct node *node = atomic_exchange(&export->node, NULL);
    if (export->sealed)
        node = export->sealed;
    int err = export->stuck ? close_replaced(export->stuck, node) : 0;
    int last_err = node_close(node);
    block_context_destroy(&export->ctx);
    pthread_cond_destroy(&export->released);
    lock_destroy(&export->lock);
    return err ? err : last_err;
}
