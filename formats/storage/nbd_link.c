/* SPDX-License-Identifier: BSD-3-Clause */
/* One connection: sends requests to libnbd and handles its answers. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

#include "base/checked.h"
#include "base/clock.h"
#include "storage/nbd_internal.h"
#include "storage/nbd_tls.h"

/* The largest amount of data in one request: every server accepts this unless it says less. */
#define DATA_MAX (32u << 20)
/* The protocol's limit for the minimum block size. */
#define MIN_BLOCK_MAX 65536u
/* The largest part of a zero or trim request.  The protocol allows 32 bits, but a server that
 * writes zeroes has to finish within the timeout. */
#define ZERO_MAX (128u << 20)
/* The largest part of a status request. */
#define STATUS_MAX (1u << 30)
/* How long disconnecting may take, in ms. */
#define CLOSE_MAX 200

/* Sets diag from libnbd's last error; returns -errno.  libnbd's messages often, but not always,
 * end with the text of errno. */
static int report_libnbd_error(struct nbd_link *link, struct diag *diag, int otherwise,
                               const char *what)
{
    const char *text = libnbd.get_error();
    int err = libnbd.get_errno() ? libnbd.get_errno() : otherwise;
    char reason[128];

    text = text ? text : what;
    const char *known = strerror_r(err, reason, sizeof reason);
    if (strstr(text, known))
        return diag_set(diag, err, "%s: %s", link->owner->st.name, text);
    return diag_errno(diag, err, "%s: %s", link->owner->st.name, text);
}

/* ---- connecting ---- */

/* Sets only what was chosen: libnbd has defaults for the rest. */
static int configure_tls(struct nbd_handle *h, const struct nbd_uri *uri)
{
    const struct nbd_tls_choice keys = nbd_tls_choose(uri);

    if (!uri->tls)
        return libnbd.set_tls(h, LIBNBD_TLS_DISABLE);
    if ((keys.certificates && libnbd.set_tls_certificates(h, keys.certificates) != 0) ||
        (keys.psk_file && libnbd.set_tls_psk_file(h, keys.psk_file) != 0) ||
        (keys.username && libnbd.set_tls_username(h, keys.username) != 0) ||
        (nbd_needs_hostname(uri) && libnbd.set_tls_hostname &&
         libnbd.set_tls_hostname(h, keys.hostname) != 0) ||
        (keys.verify && libnbd.set_tls_verify_peer(h, keys.verify > 0) != 0))
        return -1;
    return libnbd.set_tls(h, LIBNBD_TLS_REQUIRE);
}

static int configure_handle(struct nbd_handle *h, const struct nbd_uri *uri)
{
    if (libnbd.set_export_name(h, uri->export_name) != 0 || configure_tls(h, uri) != 0)
        return -1;
    return libnbd.add_meta_context(h, nbd_context(uri));
}

static int start_connecting(struct nbd_storage *nbd, struct nbd_handle *h)
{
    const struct nbd_uri *uri = &nbd->uri;

    if (configure_handle(h, uri) != 0)
        return -1;
    if (uri->socket)
        return libnbd.aio_connect_unix(h, uri->socket);
    if (nbd->peer_len)
        return libnbd.aio_connect(h, (struct sockaddr *)&nbd->peer, nbd->peer_len);
    return libnbd.aio_connect_tcp(h, uri->host, uri->port);
}

/* Is the connection still open?  Updates link->state. */
static int check_connection(struct nbd_link *link, struct diag *diag)
{
    if (libnbd.aio_is_dead(link->handle) || libnbd.aio_is_closed(link->handle))
        return diag_errno(diag, ENOTCONN, "%s: the server closed the connection",
                          link->owner->st.name);
    if (link->state == LINK_CONNECTING && libnbd.aio_is_ready(link->handle))
        link->state = LINK_READY;
    return 0;
}

int nbd_link_begin(struct nbd_link *link, struct diag *diag)
{
    struct nbd_storage *nbd = link->owner;
    uint64_t now = clock_ms();

    link->retry_ms = now + link->backoff_ms;
    link->backoff_ms = MIN(2 * link->backoff_ms, NBD_BACKOFF_MAX);
    link->handle = libnbd.create();
    if (!link->handle)
        return report_libnbd_error(link, diag, ENOMEM, "out of memory");
    link->state = LINK_CONNECTING;
    link->deadline_ms = now + nbd->how.connect_ms;
    if (start_connecting(nbd, link->handle) != 0)
        return report_libnbd_error(link, diag, EIO, "cannot connect");
    return 0;
}

/* ---- events ---- */

short nbd_link_wants(struct nbd_link *link, int *fd)
{
    *fd = link->handle ? libnbd.aio_get_fd(link->handle) : -1;
    if (*fd < 0)
        return 0;
    unsigned direction = libnbd.aio_get_direction(link->handle);
    short events = 0;
    if (direction & LIBNBD_AIO_DIRECTION_READ)
        events |= POLLIN;
    if (direction & LIBNBD_AIO_DIRECTION_WRITE)
        events |= POLLOUT;
    return events;
}

int nbd_link_event(struct nbd_link *link, short revents, struct diag *diag)
{
    const short trouble = POLLERR | POLLHUP | POLLNVAL;
    bool acted = false;
    int rc = 0;

    if ((revents & (POLLIN | trouble)) &&
        (libnbd.aio_get_direction(link->handle) & LIBNBD_AIO_DIRECTION_READ)) {
        acted = true;
        rc = libnbd.aio_notify_read(link->handle);
    }
    /* The first call may have changed which direction libnbd waits for. */
    if (rc == 0 && (revents & (POLLOUT | trouble)) &&
        (libnbd.aio_get_direction(link->handle) & LIBNBD_AIO_DIRECTION_WRITE)) {
        acted = true;
        rc = libnbd.aio_notify_write(link->handle);
    }
    if (rc != 0)
        return report_libnbd_error(link, diag, EIO, "the connection failed");
    if (!acted && (revents & trouble))
        return diag_errno(diag, ENOTCONN, "%s: the connection broke", link->owner->st.name);
    return check_connection(link, diag);
}

/* ---- what the server offers ---- */

/* -1 (libnbd doesn't know) counts as no. */
static bool is_yes(int answer)
{
    return answer > 0;
}

/* A user who asks for another meta context needs exactly that one. */
static int describe_status(struct nbd_link *link, struct nbd_info *info, struct diag *diag)
{
    const struct nbd_uri *uri = &link->owner->uri;

    info->has_status = is_yes(libnbd.can_meta_context(link->handle, nbd_context(uri)));
    if (!uri->context || info->has_status)
        return 0;
    return diag_set(diag, ENOENT, "%s: x-dirty-bitmap: the server has no meta context '%s'",
                    link->owner->st.name, uri->context);
}

static int describe_blocks(struct nbd_link *link, struct nbd_info *info, struct diag *diag)
{
    int64_t min = libnbd.get_block_size(link->handle, LIBNBD_SIZE_MINIMUM);
    int64_t preferred = libnbd.get_block_size(link->handle, LIBNBD_SIZE_PREFERRED);
    int64_t max = libnbd.get_block_size(link->handle, LIBNBD_SIZE_MAXIMUM);
    const char *name = link->owner->st.name;

    min = MAX(min, 1);
    if (!is_power_of_two((uint64_t)min) || min > MIN_BLOCK_MAX)
        return diag_set(diag, EINVAL,
                        "%s: the export's minimum block size %" PRId64
                        " is not a power of two up to %u",
                        name, min, MIN_BLOCK_MAX);
    if (!is_aligned(info->size, (uint64_t)min))
        return diag_set(diag, EINVAL,
                        "%s: the export's size %" PRIu64
                        " is not a multiple of its minimum block size %" PRId64
                        ", so that its end can't be written",
                        name, info->size, min);
    info->min_block = (uint32_t)min;
    if (preferred >= 512 && preferred <= UINT32_MAX && is_power_of_two((uint64_t)preferred))
        info->preferred_block = (uint32_t)preferred;
    max = max <= 0 ? DATA_MAX : MIN(max, DATA_MAX);
    info->max_block =
        (uint32_t)MAX(align_down((uint64_t)max, (uint64_t)min), (uint64_t)min);
    return 0;
}

int nbd_link_describe(struct nbd_link *link, struct nbd_info *info, struct diag *diag)
{
    struct nbd_handle *h = link->handle;

    *info = (struct nbd_info){0};
    int64_t size = libnbd.get_size(h);
    if (size < 0)
        return report_libnbd_error(link, diag, EIO,
                                   "the server didn't tell the export's size");
    info->size = (uint64_t)size;
    info->read_only = is_yes(libnbd.is_read_only(h));
    info->can_flush = is_yes(libnbd.can_flush(h));
    info->can_fua = is_yes(libnbd.can_fua(h));
    info->can_zero = is_yes(libnbd.can_zero(h));
    info->can_fast_zero = info->can_zero && is_yes(libnbd.can_fast_zero(h));
    info->can_trim = is_yes(libnbd.can_trim(h));
    info->can_cache = is_yes(libnbd.can_cache(h));
    info->multi_conn = is_yes(libnbd.can_multi_conn(h));
    int err = describe_status(link, info, diag);
    return err ? err : describe_blocks(link, info, diag);
}

/* ---- requests ---- */

/* Adds it to the requests in flight, sorted by deadline; usually it belongs at the end. */
static void note_in_flight(struct nbd_link *link, struct nbd_request *req)
{
    struct list *before = link->in_flight.prev;

    while (before != &link->in_flight &&
           CONTAINER_OF(before, struct nbd_request, link)->deadline_ms > req->deadline_ms)
        before = before->prev;
    list_append(before->next, &req->link);
    link->n_in_flight++;
}

static void move_to_finished(struct nbd_link *link, struct nbd_request *req, int err)
{
    req->err = err;
    list_remove(&req->link);
    link->n_in_flight--;
    list_append(&link->owner->finished, &req->link);
}

/* libnbd calls this with its handle locked: no function of the handle may be called. */
static int on_completed(void *opaque, int *error)
{
    struct nbd_request *req = opaque;

    if (req->on->drop_err) {
        req->lost = true;
        move_to_finished(req->on, req, req->on->drop_err);
        return 1;
    }
    /* A server never answers ENOTCONN: the connection was lost, and the request may have been
     * done. */
    req->lost = *error == ENOTCONN;
    move_to_finished(req->on, req, *error == ENOTCONN ? -EIO : -*error);
    return 1; /* libnbd forgets the command */
}

/* How QEMU interprets the flags of other meta contexts: as those of base:allocation, with
 * depths above 2 as 2. */
static uint32_t shown_flags(const char *context, uint32_t flags)
{
    return strcmp(context, "qemu:allocation-depth") == 0 ? MIN(flags, 2) : flags;
}

static int got_status(void *opaque, const char *context, uint64_t off, uint32_t *entries,
                      size_t n, int *error)
{
    struct nbd_request *req = opaque;
    uint64_t left = req->off + req->len - off;

    (void)error;
    if (strcmp(context, nbd_context(&req->on->owner->uri)) != 0 || off != req->off)
        return 0;
    req->n_runs = 0;
    for (size_t i = 0; i + 1 < n && left > 0 && req->n_runs < req->max_runs; i += 2) {
        uint64_t length = MIN(left, entries[i]);
        if (length == 0) /* a protocol error */
            break;
        req->runs[req->n_runs++] = (struct nbd_run){
            .length = length,
            .hole = shown_flags(context, entries[i + 1]) & LIBNBD_STATE_HOLE,
            .zero = shown_flags(context, entries[i + 1]) & LIBNBD_STATE_ZERO,
        };
        left -= length;
    }
    return 0;
}

static uint64_t longest_part(const struct nbd_storage *nbd, const struct nbd_request *req)
{
    switch (req->op) {
    case NBD_ZERO: /* a fast one isn't split: all or nothing */
        return req->flags & STORAGE_FAST ? UINT64_MAX : ZERO_MAX;
    case NBD_TRIM:
        return ZERO_MAX;
    case NBD_STATUS:
        return STATUS_MAX;
    default:
        return nbd->info.max_block;
    }
}

static uint32_t protocol_flags(const struct nbd_storage *nbd, const struct nbd_request *req)
{
    uint32_t flags = 0;

    if ((req->flags & STORAGE_FUA) && nbd->info.can_fua)
        flags |= LIBNBD_CMD_FLAG_FUA;
    if (req->op == NBD_ZERO && !(req->flags & STORAGE_MAY_UNMAP))
        flags |= LIBNBD_CMD_FLAG_NO_HOLE;
    if (req->op == NBD_ZERO && (req->flags & STORAGE_FAST))
        flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
    if (req->op == NBD_STATUS && req->max_runs == 1)
        flags |= LIBNBD_CMD_FLAG_REQ_ONE;
    return flags;
}

/* Returns libnbd's cookie, or -1. */
static int64_t send_part(struct nbd_link *link, struct nbd_request *req)
{
    const nbd_completion_callback done = {.callback = on_completed, .user_data = req};
    const nbd_extent_callback status = {.callback = got_status, .user_data = req};
    uint32_t flags = protocol_flags(link->owner, req);
    struct nbd_handle *h = link->handle;

    if (req->flushing || req->op == NBD_FLUSH)
        return libnbd.aio_flush(h, done, 0);
    switch (req->op) {
    case NBD_READ:
        return libnbd.aio_pread(h, (char *)req->buf + (req->next - req->off), req->piece,
                                req->next, done, 0);
    case NBD_WRITE:
        return libnbd.aio_pwrite(h, (char *)req->buf + (req->next - req->off), req->piece,
                                 req->next, done, flags);
    case NBD_ZERO:
        return libnbd.aio_zero(h, req->piece, req->next, done, flags);
    case NBD_TRIM:
        return libnbd.aio_trim(h, req->piece, req->next, done, flags);
    case NBD_CACHE:
        return libnbd.aio_cache(h, req->piece, req->next, done, 0);
    default:
        return libnbd.aio_block_status(h, req->piece, req->next, status, done, flags);
    }
}

void nbd_link_issue(struct nbd_link *link, struct nbd_request *req)
{
    struct nbd_storage *nbd = link->owner;

    req->on = link;
    req->covers = nbd->changes;
    req->piece = req->op == NBD_FLUSH || req->flushing
                     ? 0
                     : MIN(req->off + req->len - req->next, longest_part(nbd, req));
    note_in_flight(link, req);
    /* If the connection dies in this call, the callback has been called already and the result
     * isn't -1. */
    if (send_part(link, req) == -1) {
        int err = libnbd.get_errno();
        move_to_finished(link, req, err ? -err : -EIO);
    }
}

/* ---- closing ---- */

void nbd_link_drop(struct nbd_link *link, int err)
{
    /* Close first, so that libnbd uses no buffer after its owner was told.  From version 1.16
     * on, libnbd completes the requests in flight here, with an error of its own; older
     * versions forget them. */
    link->drop_err = err;
    if (link->handle)
        libnbd.close(link->handle);
    link->drop_err = 0;
    link->handle = NULL;
    link->state = LINK_DOWN;
    LIST_FOR_EACH_SAFE (pos, &link->in_flight) {
        struct nbd_request *req = CONTAINER_OF(pos, struct nbd_request, link);
        req->lost = true;
        move_to_finished(link, req, err);
    }
}

void nbd_link_close(struct nbd_link *link)
{
    uint64_t until = clock_ms() + CLOSE_MAX;

    if (link->state == LINK_READY && link->n_in_flight == 0 &&
        libnbd.aio_disconnect(link->handle, 0) == 0) {
        for (uint64_t now = clock_ms(); now < until; now = clock_ms()) {
            if (libnbd.aio_is_dead(link->handle) || libnbd.aio_is_closed(link->handle) ||
                libnbd.poll(link->handle, (int)(until - now)) != 1)
                break;
        }
    }
    nbd_link_drop(link, -ECANCELED);
}
