/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening and closing an NBD store, and waiting for its requests. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/descriptors.h"
#include "base/thread.h"
#include "storage/nbd_internal.h"
#include "storage/nbd_tls.h"

/* A request on the stack of the caller that waits for it. */
struct sync_call {
    struct nbd_storage *nbd;
    struct list link; /* nbd_storage.callers */
    pthread_cond_t wake;
    bool done;
    int err;
};

/* Is this thread the driver now?  Then its callbacks must not wait for requests. */
static _Thread_local bool driving;

/* ---- opening ---- */

static int check_how(const char *uri, const struct nbd_open *how, struct diag *diag)
{
    if (how->connections > NBD_MAX_CONNECTIONS)
        return diag_set(diag, EINVAL, "%s: %u connections asked for: 1 to %u are possible",
                        uri, how->connections, NBD_MAX_CONNECTIONS);
    return 0;
}

static struct nbd_storage *new_storage(const struct nbd_open *how)
{
    struct nbd_storage *nbd = calloc(1, sizeof *nbd);

    if (!nbd)
        return NULL;
    nbd->st.ops = &nbd_ops;
    nbd->st.fixed_size = true;
    nbd->how = *how;
    atomic_init(&nbd->give_up, how->give_up);
    if (nbd->how.timeout_ms == 0)
        nbd->how.timeout_ms = NBD_DEFAULT_TIMEOUT;
    if (nbd->how.connect_ms == 0)
        nbd->how.connect_ms = nbd->how.timeout_ms;
    nbd->how.connect_ms = MIN(nbd->how.connect_ms, nbd->how.timeout_ms);
    nbd->how.reconnect_ms = MIN(nbd->how.reconnect_ms, nbd->how.timeout_ms);
    atomic_init(&nbd->reconnect_ms, nbd->how.reconnect_ms);
    lock_init(&nbd->lock, RANK_LEAF);
    range_lock_init(&nbd->blocks, RANK_LEAF);
    pthread_cond_init(&nbd->driver_left, NULL);
    list_init(&nbd->incoming);
    list_init(&nbd->callers);
    list_init(&nbd->waiting);
    list_init(&nbd->finished);
    for (unsigned i = 0; i < NBD_MAX_CONNECTIONS; i++) {
        nbd->links[i] = (struct nbd_link){.owner = nbd, .backoff_ms = NBD_BACKOFF_MIN};
        list_init(&nbd->links[i].in_flight);
    }
    nbd->n_links = 1;
    DESCRIPTORS_GUARD();
    nbd->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return nbd;
}

static int prepare_storage(struct nbd_storage *nbd, const char *text, struct diag *diag)
{
    if (nbd->wake_fd < 0)
        return diag_errno(diag, errno, "eventfd");
    int err = nbd_uri_parse(text, nbd->how.origin, &nbd->uri, diag);
    if (err)
        return err;
    nbd->st.name = nbd_uri_print(&nbd->uri);
    return nbd->st.name ? 0 : diag_errno(diag, ENOMEM, "an NBD URI");
}

/* Makes the first connection, on this thread. */
static int negotiate_link(struct nbd_link *link, struct diag *diag)
{
    int err = nbd_link_begin(link, diag);

    /* A server on the same machine may have sent everything already; then poll would wait in
     * vain. */
    if (!err)
        err = nbd_link_event(link, 0, diag);
    while (!err && link->state == LINK_CONNECTING) {
        struct pollfd p;
        p.events = nbd_link_wants(link, &p.fd);
        uint64_t now = clock_ms();
        if (now >= link->deadline_ms)
            return diag_errno(diag, ETIMEDOUT, "%s: connecting", link->owner->st.name);
        if (nbd_given_up(link->owner))
            return diag_errno(diag, ECANCELED, "%s: connecting", link->owner->st.name);
        int n = poll(&p, 1, (int)MIN(link->deadline_ms - now, NBD_LOOK_MS));
        if (n < 0 && errno != EINTR)
            return diag_errno(diag, errno, "%s: poll", link->owner->st.name);
        err = nbd_link_event(link, n > 0 ? p.revents : 0, diag);
    }
    return err;
}

/* Notes the server's address for later connections: looking up the name again would hold up the
 * driver, and could give another address.  With TLS libnbd needs the name, for the certificate. */
static void note_peer(struct nbd_storage *nbd)
{
    int fd;

    if (nbd->uri.socket || nbd->uri.tls)
        return;
    (void)nbd_link_wants(&nbd->links[0], &fd);
    socklen_t len = sizeof nbd->peer;
    if (getpeername(fd, (struct sockaddr *)&nbd->peer, &len) == 0)
        nbd->peer_len = len;
}

static int accept_export(struct nbd_storage *nbd, struct diag *diag)
{
    int err = nbd_link_describe(&nbd->links[0], &nbd->info, diag);

    if (err)
        return err;
    if (nbd->info.size > INT64_MAX)
        return diag_errno(diag, EFBIG, "%s", nbd->st.name);
    if (nbd->info.read_only && !nbd->how.read_only)
        return diag_errno(diag, EROFS, "%s: the server exports it read-only", nbd->st.name);
    nbd->st.read_only = nbd->how.read_only;
    nbd->st.align = nbd->info.min_block;
    if (nbd->info.multi_conn)
        nbd->n_links = MAX(nbd->how.connections, 1);
    nbd->links[0].was_up = true;
    atomic_store(&nbd->connected, true);
    note_peer(nbd);
    int fd;
    (void)nbd_link_wants(&nbd->links[0], &fd);
    nbd->info.is_self = nbd_peer_is_self(fd);
    return 0;
}

/* Refuses a server whose certificate should be verified but can't be.  libnbd verifies by the
 * host's name, which a Unix socket doesn't have.  If verification is only the default for all
 * servers, whatever libnbd can do is enough. */
static int check_verification(const struct nbd_storage *nbd, struct diag *diag)
{
    const struct nbd_uri *uri = &nbd->uri;

    if (uri->keys.verify > 0 && uri->socket && !uri->keys.hostname)
        return diag_set(diag, EINVAL,
                        "%s: there is no host's name that the server's certificate could "
                        "have: tls-hostname can say one, or nothing is verified "
                        "(verify-peer=off)",
                        nbd->st.name);
    if (!nbd_needs_hostname(uri) || libnbd.set_tls_hostname ||
        nbd_tls_choose(uri).verify < 0)
        return 0;
    return diag_set(
        diag, ENOTSUP,
        "%s: tls-hostname: the server's certificate can't be compared with it by "
        "libnbd %s, but from 1.22 on",
        nbd->st.name, libnbd_version());
}

static int connect_storage(struct nbd_storage *nbd, const char *uri, struct diag *diag)
{
    int err = prepare_storage(nbd, uri, diag);
    if (!err)
        err = check_verification(nbd, diag);
    if (err)
        return err;
    err = negotiate_link(&nbd->links[0], diag);
    return err ? err : accept_export(nbd, diag);
}

int storage_open_nbd(const char *uri, const struct nbd_open *how, struct storage **out,
                     struct diag *diag)
{
    int err = check_how(uri, how, diag);
    if (err)
        return err;
    err = libnbd_load(diag);
    if (err)
        return err;
    struct nbd_storage *nbd = new_storage(how);
    if (!nbd)
        return diag_errno(diag, ENOMEM, "an NBD export");
    err = connect_storage(nbd, uri, diag);
    if (err)
        storage_close(&nbd->st);
    else
        *out = &nbd->st;
    return err;
}

/* ---- the thread ---- */

static void *driver_main(void *opaque)
{
    struct nbd_storage *nbd = opaque;
    LOCK_GUARD(&nbd->lock);

    driving = true;
    while (!nbd->stop) {
        /* A caller is still the driver, since before the thread started. */
        if (nbd->driven) {
            lock_wait(&nbd->lock, &nbd->driver_left);
            continue;
        }
        nbd->driven = true;
        {
            LOCK_GAP(&nbd->lock);
            nbd_loop_turn(nbd);
        }
        nbd->driven = false;
    }
    return NULL;
}

/* Under the lock. */
static int start_thread(struct nbd_storage *nbd)
{
    if (nbd->has_thread)
        return 0;
    int err = thread_start(&nbd->thread, driver_main, nbd);
    nbd->has_thread = err == 0;
    return err;
}

int storage_nbd_start(struct storage *st)
{
    LOCK_GUARD(&nbd_of(st)->lock);

    atomic_store(&nbd_of(st)->give_up, NULL);
    return start_thread(nbd_of(st));
}

static void stop_thread(struct nbd_storage *nbd)
{
    lock_acquire(&nbd->lock);
    bool has_thread = nbd->has_thread;
    nbd->stop = true;
    pthread_cond_signal(&nbd->driver_left);
    nbd_loop_wake(nbd);
    lock_release(&nbd->lock);
    if (has_thread)
        pthread_join(nbd->thread, NULL);
}

void nbd_close_storage(struct storage *st)
{
    struct nbd_storage *nbd = nbd_of(st);

    stop_thread(nbd);
    driving = true;
    nbd_loop_end(nbd);
    driving = false;
    if (nbd->wake_fd >= 0)
        close(nbd->wake_fd);
    pthread_cond_destroy(&nbd->driver_left);
    range_lock_destroy(&nbd->blocks);
    lock_destroy(&nbd->lock);
    nbd_uri_free(&nbd->uri);
    free(nbd);
}

/* ---- requests ---- */

static bool changes_export(enum nbd_op op)
{
    return op == NBD_WRITE || op == NBD_ZERO || op == NBD_TRIM;
}

static unsigned flags_allowed(enum nbd_op op)
{
    if (op == NBD_ZERO)
        return STORAGE_FUA | STORAGE_MAY_UNMAP | STORAGE_FAST;
    return changes_export(op) ? STORAGE_FUA : 0;
}

/* A fast zero must not be split, and the protocol's lengths have 32 bits. */
static bool can_be_fast(const struct nbd_info *info, const struct nbd_request *req)
{
    return info->can_fast_zero && req->len <= align_down(UINT32_MAX, info->min_block);
}

int nbd_check_request(struct nbd_storage *nbd, const struct nbd_request *req)
{
    const struct nbd_info *info = &nbd->info;

    if (atomic_load(&nbd->aborted))
        return -ECANCELED;
    if (req->flags & ~flags_allowed(req->op))
        return -EINVAL;
    if (req->op == NBD_FLUSH)
        return 0;
    if (req->len == 0 || !range_inside(req->off, req->len, info->size) ||
        !is_aligned(req->off | req->len, info->min_block) ||
        (req->op == NBD_STATUS && req->max_runs == 0))
        return -EINVAL;
    if (changes_export(req->op) && nbd->st.read_only)
        return -EROFS;
    if ((req->op == NBD_ZERO && !info->can_zero) ||
        (req->op == NBD_TRIM && !info->can_trim) ||
        (req->op == NBD_CACHE && !info->can_cache) ||
        (req->op == NBD_ZERO && (req->flags & STORAGE_FAST) && !can_be_fast(info, req)))
        return -ENOTSUP;
    return 0;
}

int storage_nbd_submit(struct storage *st, struct nbd_request *req)
{
    struct nbd_storage *nbd = nbd_of(st);

    int err = nbd_check_request(nbd, req);
    if (err)
        return err;
    LOCK_GUARD(&nbd->lock);
    err = start_thread(nbd);
    if (!err)
        nbd_loop_enqueue(nbd, req);
    return err;
}

/* The last use of the request by the driver: afterwards the caller's stack may be gone. */
static void call_done(struct nbd_request *req, int err)
{
    struct sync_call *call = req->opaque;
    LOCK_GUARD(&call->nbd->lock);

    call->err = err;
    call->done = true;
    pthread_cond_signal(&call->wake);
}

/* Under the lock, which is released meanwhile. */
static void drive_one_turn_locked(struct nbd_storage *nbd)
{
    nbd->driven = true;
    {
        LOCK_GAP(&nbd->lock);
        driving = true;
        nbd_loop_turn(nbd);
        driving = false;
    }
    nbd->driven = false;
    if (nbd->has_thread) /* started meanwhile */
        pthread_cond_signal(&nbd->driver_left);
}

/* Under the lock: if there is no driver, wakes one of the waiting callers to become it. */
static void hand_over(struct nbd_storage *nbd)
{
    if (nbd->has_thread || nbd->driven || list_empty(&nbd->callers))
        return;
    struct sync_call *next = CONTAINER_OF(nbd->callers.next, struct sync_call, link);
    pthread_cond_signal(&next->wake);
}

int nbd_call(struct nbd_storage *nbd, struct nbd_request *req)
{
    struct sync_call call = {.nbd = nbd};

    assert(!driving && "waiting in a completion callback");
    int err = nbd_check_request(nbd, req);
    if (err)
        return err;
    pthread_cond_init(&call.wake, NULL);
    req->done = call_done;
    req->opaque = &call;
    lock_acquire(&nbd->lock);
    nbd_loop_enqueue(nbd, req);
    list_append(&nbd->callers, &call.link);
    while (!call.done) {
        if (nbd->has_thread || nbd->driven)
            lock_wait(&nbd->lock, &call.wake);
        else
            drive_one_turn_locked(nbd);
    }
    list_remove(&call.link);
    hand_over(nbd);
    lock_release(&nbd->lock);
    pthread_cond_destroy(&call.wake);
    return call.err;
}

int storage_nbd_prove(struct storage *st, bool by_reading, unsigned timeout_ms)
{
    struct nbd_storage *nbd = nbd_of(st);
    CLEANUP_FREE void *block = malloc(nbd->info.min_block);
    struct nbd_run run;
    struct nbd_request req = {
        .op = by_reading || !nbd->info.has_status ? NBD_READ : NBD_STATUS,
        .len = nbd->info.min_block,
        .buf = block,
        .runs = &run,
        .max_runs = 1,
        .timeout_ms = timeout_ms,
    };

    if (nbd->info.size == 0) { /* no other request is possible */
        req.op = NBD_FLUSH;
        req.len = 0;
    }

    return block ? nbd_call(nbd, &req) : -ENOMEM;
}

/* ---- information ---- */

bool storage_is_nbd(const struct storage *st)
{
    return st->ops == &nbd_ops;
}

const struct nbd_info *storage_nbd_info(const struct storage *st)
{
    return &CONTAINER_OF(st, const struct nbd_storage, st)->info;
}

uint64_t storage_nbd_losses(const struct storage *st)
{
    return atomic_load(&CONTAINER_OF(st, struct nbd_storage, st)->losses);
}

void storage_nbd_persist(struct storage *st, unsigned patience_ms)
{
    struct nbd_storage *nbd = nbd_of(st);

    atomic_store(&nbd->reconnect_ms, MIN(patience_ms, nbd->how.timeout_ms));
    atomic_store(&nbd->persists, true);
}

void storage_nbd_abort(struct storage *st)
{
    atomic_store(&nbd_of(st)->aborted, true);
    nbd_loop_wake(nbd_of(st));
}
