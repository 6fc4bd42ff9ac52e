/* SPDX-License-Identifier: BSD-3-Clause */
/* An export's life, its requests, and commands that change more than its data. */
#include "export.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "block/chain.h"
#include "export_internal.h"
#include "nbdkit_args.h"
#include "storage/rbd_name.h"

/* In a folder every name is a file's, even one that looks like an RBD name. */
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

/* What the user chose for all images, and this one can't do: better told before anybody
 * connects. */
static int check_choices(const struct node *node, const struct node_options *choices,
                         struct diag *diag)
{
    const char *no_compress = choices->compress ? node_why_not_compress(node) : NULL;
    const char *no_lazy = choices->lazy_refcounts > 0 ? node_why_not_lazy(node) : NULL;

    if (!no_compress && !no_lazy)
        return 0;
    return diag_set(diag, ENOTSUP, "%s: %s=on: %s: %s", node->filename,
                    no_compress ? "compress" : "lazy-refcounts", node_format(node),
                    no_compress ? no_compress : no_lazy);
}

static int open_node(struct served_export *exp, const struct export_request *request,
                     struct node **out, struct diag *diag)
{
    struct node *node = NULL;

    int err = request->file ? open_chain(exp, request, &node, diag)
                            : request->open(request->opaque, &exp->ctx, &node, diag);
    if (!err && request->file)
        err = check_choices(node, &request->config->node, diag);
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

    /* The gates in it have fields aligned to cache lines, which malloc doesn't guarantee. */
    if (posix_memalign(&memory, _Alignof(struct served_export),
                       sizeof(struct served_export)) != 0)
        return NULL;
    struct served_export *exp = memory;
    *exp = (struct served_export){.name = strdup(name), .node_name = strdup(node_name)};
    throttle_member_init(&exp->throttle);
    list_init(&exp->seats);
    list_init(&exp->retired);
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
    list_init(&exp->seats);
    list_init(&exp->retired);
    lock_init(&exp->lock, RANK_OPEN);
    cond_init_timed(&exp->drain_ended);
    exp->wanted_writable = request->config->writable_now && !exp->never_writable;
    exp->locks = !request->config->node.lock_off;
    exp->is_open = true;
    atomic_store(&exp->node, node);
    return 0;
}

void export_rest(struct served_export *exp)
{
    struct node *node = atomic_load(&exp->node);

    int err = node_pause(node);
    if (err) /* no failure here: export_start meets and reports the cause */
        log_error("%s: ending its use for writing: %s", node->filename, strerror(-err));
    chain_rest(node);
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

int export_start(struct served_export *exp)
{
    struct node *node = atomic_load(&exp->node);
    struct diag diag = {0};

    int err = chain_start(node);
    if (err || !atomic_load(&exp->wanted_writable))
        return err;
    err = export_make_writable(exp, &diag);
    if (err)
        log_error("%s", diag.text);
    return err;
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

/* The export has no node.  Either export_resize has taken it away and holds the lock, then
 * this waits for the lock.  Or the export is sealed: the process ends while threads of nbdkit
 * still run, and this thread must not touch what is being closed, so it never returns. */
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

/* Gives the ticket back, and returns a use whose node is NULL, if the export has no node. */
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
        /* In this order: first enter, then look at `drains`, then load the node.  A request
         * that sees no drain has entered before, so export_begin_drain waits for it.  A node
         * that was loaded during a drain might be replaced at its end. */
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

/* ---- changes of more than the data ---- */

int export_claim(struct served_export *exp, unsigned own, struct node **node,
                 struct diag *diag)
{
    LOCK_GUARD(&exp->lock);
    *node = atomic_load(&exp->node);
    if (!*node)
        return diag_set(diag, ESHUTDOWN, "the server ends");
    if (exp->claimed || atomic_load(&exp->references) > own)
        return diag_set(diag, EBUSY, "Node '%s' is busy: a job uses it", exp->node_name);
    exp->claimed = true;
    atomic_fetch_add(&exp->references, 1);
    return 0;
}

void export_end_claim(struct served_export *exp)
{
    LOCK_GUARD(&exp->lock);
    exp->claimed = false;
    atomic_fetch_sub(&exp->references, 1);
    pthread_cond_broadcast(&exp->drain_ended);
}

void export_begin_drain(struct served_export *exp)
{
    atomic_fetch_add(&exp->drains, 1);
    gate_wait_for_changers(&exp->gate);
}

/* ---- actions on the node and its bitmaps ---- */

static void note_action(struct served_export *exp, bool begins)
{
    LOCK_GUARD(&exp->lock);
    exp->actions += begins ? 1 : -1u;
    pthread_cond_broadcast(&exp->drain_ended);
}

struct export_use export_enter_action(struct served_export *exp)
{
    note_action(exp, true);
    return export_enter(exp);
}

void export_leave_action(struct export_use *use)
{
    export_leave(use);
    note_action(use->exp, false);
}

/* Under the lock, on which requests that come meanwhile wait. */
static int grow_alone(struct served_export *exp, struct node *node, uint64_t size,
                      struct diag *diag)
{
    atomic_store(&exp->node, NULL);
    bool alone = export_wait_for_users(exp, false, &exp->ending);
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
        err = export_claim(exp, 0, &node, diag);
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

    int err = export_claim(exp, 0, &node, diag);
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
    /* The lock keeps all of these open. */
    LOCK_GUARD(&exp->lock);
    struct node *node = atomic_load(&exp->node);
    if (node)
        chain_abandon_servers(node->backing);
    chain_abandon_servers(exp->replaced);
    chain_abandon_servers(exp->closing);
    chain_abandon_servers(exp->left_open);
    export_abandon_retired(exp);
}

void export_seal(struct served_export *exp)
{
    atomic_store(&exp->ending, true);
    {
        /* The lock waits until export_resize has put the node back. */
        LOCK_GUARD(&exp->lock);
        exp->sealed = atomic_exchange(&exp->node, NULL);
    }
    export_wait_for_users(exp, true, NULL);
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
    int err = exp->left_open ? export_close_replaced(exp, exp->left_open, node) : 0;
    int last_err = node_close(node);
    block_context_destroy(&exp->ctx);
    pthread_cond_destroy(&exp->drain_ended);
    lock_destroy(&exp->lock);
    return err ? err : last_err;
}
