/* SPDX-License-Identifier: BSD-3-Clause */
/* Making connections, losing them, and checking that an export that came back is the same. */
#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "storage/nbd_internal.h"

unsigned nbd_count_links(const struct nbd_storage *nbd, enum nbd_link_state state)
{
    unsigned n = 0;

    for (unsigned i = 0; i < nbd->n_links; i++)
        n += nbd->links[i].state == state;
    return n;
}

/* The next flush reports that the server may have lost writes. */
static void note_loss(struct nbd_storage *nbd)
{
    if (nbd->changes == nbd->flushed)
        return;
    nbd->flushed = nbd->changes;
    nbd->unreported_loss = true;
    atomic_fetch_add(&nbd->losses, 1);
}

/* After a failed attempt, with no other in progress: fails the requests that have waited long
 * enough. */
static void give_up(struct nbd_storage *nbd)
{
    uint64_t now = clock_ms();

    if (nbd_count_links(nbd, LINK_DOWN) < nbd->n_links)
        return;
    LIST_FOR_EACH_SAFE (pos, &nbd->waiting) {
        struct nbd_request *req = CONTAINER_OF(pos, struct nbd_request, link);
        if (req->give_up_ms <= now)
            nbd_finish(nbd, req, -ENOTCONN);
    }
}

/* err: what becomes of the requests in flight. */
void nbd_link_lost(struct nbd_link *link, int err, const struct diag *diag)
{
    struct nbd_storage *nbd = link->owner;
    bool was_ready = link->state == LINK_READY;

    if (link->handle)
        nbd_link_drop(link, err);
    if (was_ready) {
        note_loss(nbd);
        log_warning("%s: connection lost", diag->text);
    } else {
        log_debug("%s: no connection", diag->text);
        give_up(nbd);
    }
}

/* Does the export that came back have all properties of the old one?  NULL: yes; otherwise the
 * property that it lost. */
static const char *find_difference(const struct nbd_storage *nbd,
                                   const struct nbd_info *now)
{
    const struct nbd_info *was = &nbd->info;

    if (now->size != was->size)
        return "its size";
    if (now->read_only && !nbd->st.read_only)
        return "that it can be written";
    if (now->min_block > was->min_block || now->max_block < was->max_block)
        return "its block sizes";
    if (now->multi_conn < (nbd->n_links > 1))
        return "that it takes several connections";
    bool less = now->can_flush < was->can_flush || now->can_fua < was->can_fua ||
                now->can_zero < was->can_zero || now->can_fast_zero < was->can_fast_zero ||
                now->can_trim < was->can_trim || now->can_cache < was->can_cache ||
                now->has_status < was->has_status;
    return less ? "what it can do" : NULL;
}

/* Checks a connection that has just become ready. */
static int accept_new_link(struct nbd_link *link, struct diag *diag)
{
    struct nbd_storage *nbd = link->owner;
    struct nbd_info info;

    int err = nbd_link_describe(link, &info, diag);
    const char *what = err ? NULL : find_difference(nbd, &info);
    if (what)
        err = diag_set(diag, ESTALE, "%s: the export came back and lost %s", nbd->st.name,
                       what);
    if (err && !nbd->mismatch_reported)
        log_error("%s", diag->text);
    nbd->mismatch_reported = err != 0;
    if (err)
        link->state = LINK_CONNECTING; /* it doesn't count as ready */
    else
        link->was_up = true;
    return err;
}

void nbd_link_act(struct nbd_link *link, short revents)
{
    bool was_connecting = link->state == LINK_CONNECTING;
    struct diag diag = {0};

    int err = nbd_link_event(link, revents, &diag);
    if (!err && was_connecting && link->state == LINK_READY)
        err = accept_new_link(link, &diag);
    if (err)
        nbd_link_lost(link, -EIO, &diag);
}

bool nbd_link_may_start(const struct nbd_link *link)
{
    return link->state == LINK_DOWN && !(link->owner->how.no_reconnect && link->was_up);
}

/* One attempt at a time. */
void nbd_connect_one(struct nbd_storage *nbd)
{
    uint64_t now = clock_ms();
    bool possible = false;

    if (nbd_count_links(nbd, LINK_CONNECTING) > 0)
        return;
    for (unsigned i = 0; i < nbd->n_links; i++) {
        struct nbd_link *link = &nbd->links[i];
        possible |= nbd_link_may_start(link) || link->state == LINK_READY;
        if (!nbd_link_may_start(link) || link->retry_ms > now)
            continue;
        struct diag diag = {0};
        int err = nbd_link_begin(link, &diag);
        if (err)
            nbd_link_lost(link, -EIO, &diag);
        else
            nbd_link_act(link, 0);
        return;
    }
    if (!possible)
        nbd_fail_waiting(nbd, -ENOTCONN);
}
