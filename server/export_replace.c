/* SPDX-License-Identifier: BSD-3-Clause */
/* Replaces the node that is served.  Seats of jobs and bitmaps move to the new node, and the old
 * node is closed when nobody uses it any more.
 *
 *     replaced --drain ends--> closing --requests have left--> closed
 *                                 \--jobs may still use it--> retired --/
 */
#include "export.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "block/chain.h"
#include "block/dirty_bitmap.h"
#include "block/frozen_point.h"
#include "export_internal.h"

#define POLL_NS         200000u
#define LONGEST_WAIT_MS 30000u
#define LONGEST_TURN_NS (10 * UINT64_C(1000000000))

bool export_wait_for_users(struct served_export *exp, bool patient,
                           const _Atomic bool *given_up)
{
    uint64_t stamp = gate_stamp(&exp->gate);
    uint64_t end = clock_ms() + LONGEST_WAIT_MS;

    while (!gate_passed(&exp->gate, stamp)) {
        if ((!patient && clock_ms() > end) || (given_up && atomic_load(given_up)))
            return false;
        clock_nap_ns(POLL_NS);
    }
    return true;
}

/* Does `part` lie in the chain of `node`, which it may be itself? */
static bool chain_has(const struct node *node, const struct node *part)
{
    while (node && node != part)
        node = node->backing;
    return node;
}

/* A node that was replaced, with what lies below it, and that jobs may still use. */
struct retired_node {
    struct list link;
    struct node *node;
    uint64_t move; /* value of exp->moves after its replacement */
};

/* Under the lock: is `part` served, or does it lie in a chain that jobs may still use? */
static bool is_needed(const struct served_export *exp, const struct node *serving,
                      const struct node *part)
{
    if (chain_has(serving, part))
        return true;
    LIST_FOR_EACH (pos, &exp->retired)
        if (chain_has(CONTAINER_OF(pos, struct retired_node, link)->node, part))
            return true;
    return false;
}

/* Cuts off the part of `old`, a chain that isn't retired, that is still needed. */
static void cut_needed(struct served_export *exp, struct node *old,
                       const struct node *serving)
{
    LOCK_GUARD(&exp->lock);
    struct node *last = old;

    while (last->backing && !is_needed(exp, serving, last->backing))
        last = last->backing;
    last->backing = NULL;
}

int export_close_replaced(struct served_export *exp, struct node *old, struct node *serving)
{
    cut_needed(exp, old, serving);
    return node_close(old);
}

/* Under the lock: may a job still use the node that this move replaced? */
static bool is_in_use(const struct served_export *exp, uint64_t move)
{
    LIST_FOR_EACH (pos, &exp->seats) {
        const struct disk_seat *seat = CONTAINER_OF(pos, struct disk_seat, link);
        if (seat->since < move && seat->state != SEAT_IDLE)
            return true;
    }
    return false;
}

/* Has a client a view of a node that is to be closed?  These are `old` and what lies below it,
 * except for the part that `serving` has in its chain. */
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

/* Moves the bitmaps of `old`, and those of the other nodes that are to be closed. */
static int move_bitmaps(struct node *old, const struct node *serving, struct node *to,
                        struct diag *diag)
{
    const struct node *end = old->backing;

    while (end && !chain_has(serving, end))
        end = end->backing;
    return node_bitmaps_move(old, end, to, diag);
}

/* A job that reopened images of the old chain couldn't lock them, as the old node had the lock.
 * They are locked when that is closed. */
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

/* The user chose these options for the disk, whichever image serves it.  Exception: "no_flush" is
 * for an image that may be lost; a new image keeps being synced. */
static void inherit_options(const struct node *old, struct node *new_node)
{
    struct node_options *to = &new_node->options;

    /* Equal values aren't stored, because timers of the new node may read these fields just now. */
    if (!old->options.cache->no_flush && to->cache != old->options.cache)
        to->cache = old->options.cache;
    if (to->discard_ignore != old->options.discard_ignore)
        to->discard_ignore = old->options.discard_ignore;
    if (to->detect_zeroes != old->options.detect_zeroes)
        to->detect_zeroes = old->options.detect_zeroes;
    new_node->options.compress = old->options.compress && !node_why_not_compress(new_node);
    new_node->options.copy_on_read = old->options.copy_on_read;
}

/* ---- seats that move ---- */

static struct disk_seat *seat_at(struct list *pos)
{
    return CONTAINER_OF(pos, struct disk_seat, link);
}

/* Seats on a layer below the disk's node (`below`) don't count: replacing the node doesn't affect
 * them. */
static bool has_seat(const struct served_export *exp, enum disk_seat_state state)
{
    LIST_FOR_EACH (pos, &exp->seats)
        if (!seat_at(pos)->below && seat_at(pos)->state == state)
            return true;
    return false;
}

static bool follows(const struct disk_seat *seat)
{
    return !seat->below && seat->state == SEAT_FOLLOWS;
}

static int say_busy(const struct served_export *exp, struct diag *diag)
{
    return diag_set(diag, EBUSY,
                    "Node '%s' is busy: another job or command that is at its end "
                    "hasn't left it within %u s",
                    exp->node_name, (unsigned)(LONGEST_TURN_NS / 1000000000u));
}

/* Under the lock, which is released while waiting. */
static int wait_for_actions(struct served_export *exp, struct diag *diag)
{
    uint64_t end = clock_ns() + LONGEST_TURN_NS;

    while (exp->actions > 0) {
        if (clock_ns() >= end)
            return say_busy(exp, diag);
        lock_wait_until(&exp->lock, &exp->drain_ended, end);
    }
    return 0;
}

/* Under the lock, which is released while waiting for a seat that LEAVES or for an action.  These
 * end soon, unless they wait for a server that is gone; clients' requests are drained meanwhile,
 * so the wait is bounded. */
static int wait_for_turn(struct served_export *exp, struct diag *diag)
{
    uint64_t end = clock_ns() + LONGEST_TURN_NS;

    while (!has_seat(exp, SEAT_TAKEN)) {
        if (!has_seat(exp, SEAT_LEAVES) && exp->actions == 0)
            return 0;
        if (clock_ns() >= end)
            return say_busy(exp, diag);
        lock_wait_until(&exp->lock, &exp->drain_ended, end);
    }
    return diag_set(diag, EBUSY, "Node '%s' is busy: another job uses it", exp->node_name);
}

/* Undoes `prepare` for the seats before `end` in the list. */
static void let_stay(struct served_export *exp, const struct list *end, struct node *to)
{
    for (struct list *pos = exp->seats.next; pos != end; pos = pos->next)
        if (follows(seat_at(pos)))
            seat_at(pos)->stay(seat_at(pos), to);
}

static int prepare_seats(struct served_export *exp, struct node *to, struct diag *diag)
{
    LIST_FOR_EACH (pos, &exp->seats) {
        struct disk_seat *seat = seat_at(pos);
        int err = follows(seat) ? seat->prepare(seat, to, diag) : 0;
        if (err) {
            let_stay(exp, pos, to);
            return err;
        }
    }
    return 0;
}

static void move_seats(struct served_export *exp, struct node *old, struct node *to)
{
    LIST_FOR_EACH (pos, &exp->seats)
        if (follows(seat_at(pos)))
            seat_at(pos)->move(seat_at(pos), to);
    /* Frozen points of layers below are found by their name at the disk's node, so they are moved
     * too. */
    frozen_move_shown(old, to);
}

/* Under the lock.  Everything that can fail is done before anything changes. */
static int take_place(struct served_export *exp, struct node *old, struct node *new_node,
                      struct diag *diag)
{
    /* First, because a seat that LEAVES may itself wait for the holder of a view. */
    int err = check_unviewed(old, new_node, diag);
    if (!err)
        err = wait_for_turn(exp, diag);
    if (!err)
        err = check_replacement(exp, old, new_node, diag);
    if (!err)
        err = prepare_seats(exp, new_node, diag);
    if (err)
        return err;
    err = move_bitmaps(old, new_node, new_node, diag);
    if (err)
        let_stay(exp, &exp->seats, new_node);
    else
        move_seats(exp, old, new_node);
    return err;
}

int export_replace(struct served_export *exp, struct node *new_node, struct diag *diag)
{
    struct node *old = atomic_load(&exp->node);

    if (old == new_node)
        return 0;
    LOCK_GUARD(&exp->lock);
    int err = take_place(exp, old, new_node, diag);
    if (err)
        return err;
    inherit_options(old, new_node);
    atomic_store(&exp->node, new_node);
    atomic_store(&exp->moved, true);
    exp->bitmaps_moved = true;
    exp->moves++;
    exp->replaced = chain_has(new_node, old) ? NULL : old;
    return 0;
}

void export_put_on_top(struct served_export *exp, struct node *overlay)
{
    LOCK_GUARD(&exp->lock);
    struct node *old = atomic_load(&exp->node);

    inherit_options(old, overlay);
    node_set_below(overlay, old);
    LIST_FOR_EACH (pos, &exp->seats)
        seat_at(pos)->below = true;
    atomic_store(&exp->node, overlay);
    atomic_store(&exp->moved, true);
}

/* Requests have left: the caller is about to close the node. */
static void note_users_left(struct served_export *exp)
{
    LOCK_GUARD(&exp->lock);
    exp->closing = NULL;
}

static void close_now(struct served_export *exp, struct node *old)
{
    struct node *serving = atomic_load(&exp->node);

    int err = export_close_replaced(exp, old, serving);
    if (err)
        log_error("closing the image that was replaced: %s: it must be checked",
                  strerror(-err));
    lock_reopened_images(exp, serving);
}

/* Keeps the node open for the jobs that may use it.  False: no job does.  Without memory for the
 * list entry this waits until no job does. */
static bool retire(struct served_export *exp, struct node *old)
{
    struct retired_node *retired = malloc(sizeof *retired);
    LOCK_GUARD(&exp->lock);

    while (!retired && is_in_use(exp, exp->moves))
        lock_wait(&exp->lock, &exp->drain_ended);
    if (!retired || !is_in_use(exp, exp->moves)) {
        free(retired);
        return false;
    }
    *retired = (struct retired_node){.node = old, .move = exp->moves};
    list_append(&exp->retired, &retired->link);
    return true;
}

/* Closes a replaced node when its requests have left.  A read that hangs on a backing file's
 * server may keep it open. */
static void close_when_unused(struct served_export *exp, struct node *old)
{
    if (!export_wait_for_users(exp, false, NULL)) {
        log_warning("%s: a request doesn't end: the image stays open", old->filename);
        LOCK_GUARD(&exp->lock);
        exp->left_open = old;
        exp->closing = NULL;
        return;
    }
    note_users_left(exp);
    if (!retire(exp, old))
        close_now(exp, old);
}

static struct node *take_unused(struct served_export *exp)
{
    LOCK_GUARD(&exp->lock);
    LIST_FOR_EACH (pos, &exp->retired) {
        struct retired_node *retired = CONTAINER_OF(pos, struct retired_node, link);
        if (is_in_use(exp, retired->move))
            continue;
        struct node *node = retired->node;
        list_remove(pos);
        free(retired);
        return node;
    }
    return NULL;
}

void export_abandon_retired(struct served_export *exp)
{
    LIST_FOR_EACH (pos, &exp->retired)
        chain_abandon_servers(CONTAINER_OF(pos, struct retired_node, link)->node);
}

static void close_retired(struct served_export *exp)
{
    struct node *node;

    while ((node = take_unused(exp)))
        close_now(exp, node);
}

struct node *export_take_seat(struct served_export *exp, struct disk_seat *seat)
{
    LOCK_GUARD(&exp->lock);
    while (exp->claimed)
        lock_wait(&exp->lock, &exp->drain_ended);
    atomic_fetch_add(&exp->references, 1);
    seat->state = SEAT_TAKEN;
    seat->below = false;
    seat->since = exp->moves;
    list_append(&exp->seats, &seat->link);
    return atomic_load(&exp->node);
}

void export_set_seat(struct served_export *exp, struct disk_seat *seat,
                     enum disk_seat_state state)
{
    LOCK_GUARD(&exp->lock);
    seat->state = state;
    pthread_cond_broadcast(&exp->drain_ended);
}

void export_catch_up(struct served_export *exp, struct disk_seat *seat)
{
    {
        LOCK_GUARD(&exp->lock);
        seat->since = exp->moves;
    }
    close_retired(exp);
}

void export_leave_seat(struct served_export *exp, struct disk_seat *seat)
{
    {
        LOCK_GUARD(&exp->lock);
        list_remove(&seat->link);
        seat->state = SEAT_NONE;
        atomic_fetch_sub(&exp->references, 1);
        pthread_cond_broadcast(&exp->drain_ended);
    }
    close_retired(exp);
}

static void look_for_kept(struct dirty_bitmap *bitmap, void *opaque)
{
    *(bool *)opaque |= dirty_bitmap_persistent(bitmap);
}

/* Stores bitmaps that came from another image in the new one at once: otherwise a crash would lose
 * them.  The drain is over, so clients go on writing. */
static void keep_moved_bitmaps(struct served_export *exp)
{
    EXPORT_USE(use, export_enter(exp));
    struct diag diag = {0};
    bool kept = false;

    node_bitmap_each(use.node, look_for_kept, &kept);
    if (kept && use.node->active && node_bitmaps_keep(use.node, &diag))
        log_error("%s: bitmaps that came from another image are in memory only", diag.text);
}

void export_end_drain(struct served_export *exp)
{
    lock_acquire(&exp->lock);
    atomic_fetch_sub(&exp->drains, 1);
    pthread_cond_broadcast(&exp->drain_ended);
    struct node *old = exp->replaced;
    bool bitmaps_moved = exp->bitmaps_moved;
    exp->replaced = NULL;
    exp->bitmaps_moved = false;
    if (old)
        exp->closing = old;
    lock_release(&exp->lock);
    if (bitmaps_moved)
        keep_moved_bitmaps(exp);
    if (old)
        close_when_unused(exp, old);
}

/* Under the lock.  A seat that is IDLE doesn't count: it uses no node. */
static bool has_seat_below(const struct served_export *exp)
{
    LIST_FOR_EACH (pos, &exp->seats)
        if (seat_at(pos)->below && seat_at(pos)->state != SEAT_IDLE)
            return true;
    return false;
}

/* Under the lock. */
static int check_layers(const struct served_export *exp, struct diag *diag)
{
    if (has_seat_below(exp))
        return diag_set(diag, EBUSY,
                        "Node '%s' is busy: another job reads an image below its top",
                        exp->node_name);
    if (!list_empty(&exp->retired))
        return diag_set(diag, EBUSY,
                        "Node '%s' is busy: another job may use the image that was served "
                        "before",
                        exp->node_name);
    return 0;
}

int export_check_layers(struct served_export *exp, struct diag *diag)
{
    LOCK_GUARD(&exp->lock);
    return check_layers(exp, diag);
}

int export_replace_backing(struct served_export *exp, struct node *layer,
                           struct node *below, struct diag *diag)
{
    struct node *old = layer->backing;
    int err;

    {
        LOCK_GUARD(&exp->lock);
        err = wait_for_actions(exp, diag);
        if (!err)
            err = check_layers(exp, diag);
        if (!err)
            err = check_unviewed(old, below, diag);
        /* If `below` is part of the old chain, its own bitmaps stay, and those of the layers above
         * it are dropped. */
        if (!err && below && !chain_has(old, below))
            err = move_bitmaps(old, below, below, diag);
        if (err)
            return err;
        node_set_below(layer, below);
        exp->closing = old;
    }
    /* The change is done.  This job alone waits until no request uses what was taken out.  Each
     * request ends when its disk or server answers, or when its server is abandoned at the
     * server's end (export_abandon_servers). */
    export_wait_for_users(exp, true, NULL);
    gate_wait(&exp->ctx.gate);
    node_forget_merged(atomic_load(&exp->node));
    note_users_left(exp);
    err = export_close_replaced(exp, old, below);
    if (err)
        log_error("closing the images that were folded: %s", strerror(-err));
    return 0;
}
