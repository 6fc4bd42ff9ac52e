/* SPDX-License-Identifier: BSD-3-Clause */
/* The callbacks of nbdkit: each converts types and calls one function. */
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "common/build_features.h"
#include "control.h"
#include "export_listing.h"
#include "image_folder.h"
#include "named_view.h"
#include "registry.h"
#include "server.h"
#include "shutdown.h"
#include "storage/rbd.h"
#include "view.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* nbdkit accepts no larger read or write. */
#define MAX_REQUEST (64u << 20)
/* Clients expect a preferred block size of at most this. */
#define MAX_PREFERRED (32u << 20)
/* One block status reply covers at most this many runs; the client asks again for the rest. */
#define MAX_RUNS (64u << 10)

/* Buffers up to this size come from the heap instead of mmap. */
#define HEAP_BUFFER (4 << 20)
/* Free memory at the end of a heap is kept up to this size. */
#define HEAP_SPARE (8 * HEAP_BUFFER)

/* nbdkit passes its callbacks nothing of ours except a connection's handle, and calls most of them
 * before there is a connection.  So the server is a static variable here; all other code gets it
 * as an argument. */
static struct server server;

struct connection {
    struct served_export *exp; /* the connection is one of its users */
    struct view *view;         /* what the client sees of it; NULL: the live disk */
    struct throttle_flow flow; /* its place in the queues, if the disk has limits */
    bool readonly;
};

static void to_nbdkit(enum log_level level, const char *fmt, va_list ap)
{
    if (level == LOG_DEBUG)
        nbdkit_vdebug(fmt, ap);
    else
        nbdkit_verror(fmt, ap);
}

static int report_failure(const struct diag *diag)
{
    nbdkit_error("%s", diag->text);
    nbdkit_set_error(diag->err);
    return -1;
}

/* Tunes malloc for buffers of requests.
 *
 * nbdkit allocates a buffer for each worker thread.  glibc would map a large one by itself; then
 * it starts 16 bytes into a page.  The source of a copy from the page cache starts at a page.  So
 * the copy would store to addresses whose low bits are just ahead of those that it loads from
 * next; the processor takes that for a dependency (4K aliasing), and the copy takes up to five
 * times as long.  In the heap, buffers start anywhere.
 *
 * Libraries allocate memory for each request, too (librbd copies what is written).  glibc would
 * return it to the kernel when it is freed, and the kernel would provide and clear new pages for
 * the next request.  On Ceph that cost more than everything else that is done for 1 MiB. */
static void place_buffers(void)
{
#ifdef __GLIBC__
    (void)mallopt(M_MMAP_THRESHOLD, HEAP_BUFFER);
    (void)mallopt(M_TRIM_THRESHOLD, HEAP_SPARE);
#endif
}

static void qimg_load(void)
{
    place_buffers();
    log_set_sink(to_nbdkit);
    registry_init();
    server_init(&server);
}

static void qimg_unload(void)
{
    server_free(&server);
}

static int qimg_config(const char *key, const char *value)
{
    return plugin_config_set(&server.config, key, value);
}

static int qimg_config_complete(void)
{
    return plugin_config_complete(&server.config);
}

static void qimg_dump_plugin(void)
{
    struct driver_names_text formats;

    printf("qimg_version=%s\n", QIMG_VERSION);
    printf("qimg_formats=%s\n", driver_names(&formats));
    printf("qimg_cache_modes=%s\n", cache_mode_names());
    for (const struct build_feature *f = build_features; f->name; f++)
        printf("qimg_%s=%s\n", f->name, *f->present ? "yes" : "no");
    printf("qimg_jobs=mirror, commit, backup, stream\n");
}

/* ---- start and end of the server ---- */

static int qimg_get_ready(void)
{
    const struct plugin_config *config = &server.config;
    struct diag diag = {0};

    if (server_open(&server, &diag))
        return report_failure(&diag);
    if (config->cache->no_flush)
        fprintf(
            stderr,
            "nbdkit: qimg: %s: warning: cache=%s ignores flushes: after a failure of the "
            "host the image may be unusable\n",
            plugin_config_subject(config), config->cache->name);
    server_rest(&server);
    return 0;
}

static int qimg_after_fork(void)
{
    int err = server_start(&server);

    if (err)
        nbdkit_error("starting the background threads: %s", strerror(-err));
    return err ? -1 : 0;
}

static void qimg_cleanup(void)
{
    shutdown_stop();
    /* First, as jobs may wait for these servers.  Clients' requests have been answered. */
    export_table_abandon_servers(&server.exports);
    server_close(&server);
}

/* ---- connections ---- */

static int qimg_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    (void)readonly;
    (void)is_tls;
    return server.config.hide_exports ? 0 : export_listing_add(&server, exports);
}

static const char *qimg_default_export(int readonly, int is_tls)
{
    (void)readonly;
    (void)is_tls;
    return export_table_default(&server.exports);
}

static bool can_write_now(struct served_export *exp)
{
    EXPORT_USE(use, export_enter(exp));

    return use.node->can_write;
}

/* Logged once for each export.  To the client the disk only looks read-only, without a reason. */
static void say_read_only(struct served_export *exp)
{
    EXPORT_USE(use, export_enter(exp));

    if (!atomic_exchange(&exp->read_only_told, true))
        nbdkit_error("%s: warning: is served read-only: %s", use.node->filename,
                     node_why_read_only(use.node));
}

/* Sets *writable: may this client write?  It can't write to a view. */
static int prepare_export(struct served_export *exp, bool readonly, const struct view *view,
                          bool *writable, struct diag *diag)
{
    if (readonly)
        export_note_read_only(exp);
    if (view)
        return 0;
    *writable = !readonly && !exp->never_writable && can_write_now(exp);
    if (!readonly && !*writable)
        say_read_only(exp);
    return *writable ? export_make_writable(exp, diag) : 0;
}

static int open_connection(struct connection *c, const char *name, bool readonly,
                           struct diag *diag)
{
    bool writable = false;

    int err = view_find(&server.exports, name, &c->exp, &c->view, diag);
    if (!err)
        err = prepare_export(c->exp, readonly, c->view, &writable, diag);
    if (!err)
        throttle_flow_init(&c->flow, &c->exp->throttle);
    c->readonly = !writable;
    return err;
}

static void close_connection(struct connection *c)
{
    view_close(c->view);
    export_put(c->exp);
    free(c);
}

/* From 1.42 on nbdkit sends the last error message to the client.  The names of the host's files
 * and of other exports, and whether a file exists that an image refers to, go to the log only. */
static void refuse_client(const char *name, const struct diag *diag)
{
    struct diag told = {0};

    report_failure(diag);
    diag_set(&told, diag->err, "export '%.200s': %s", name, strerror(diag->err));
    report_failure(&told);
}

static void *qimg_open(int readonly)
{
    const char *name = nbdkit_export_name();
    struct diag diag = {0};

    if (!name)
        return NULL; /* nbdkit has logged the reason */
    struct connection *connection = calloc(1, sizeof *connection);
    if (!connection) {
        nbdkit_error("out of memory");
        return NULL;
    }
    if (open_connection(connection, name, readonly, &diag)) {
        close_connection(connection);
        refuse_client(name, &diag);
        return NULL;
    }
    return connection;
}

static void qimg_close(void *handle)
{
    close_connection(handle);
}

/* ---- what a client is told about an export ---- */

static struct served_export *exp_of(void *handle)
{
    return ((struct connection *)handle)->exp;
}

static struct view *view_of(void *handle)
{
    return ((struct connection *)handle)->view;
}

static const char *qimg_export_description(void *handle)
{
    const struct view *view = view_of(handle);

    if (view)
        return view->description ? nbdkit_strdup_intern(view->description) : NULL;
    if (exp_of(handle)->description)
        return nbdkit_strdup_intern(exp_of(handle)->description);
    EXPORT_USE(use, export_enter(exp_of(handle)));

    return nbdkit_printf_intern("%s image, %" PRIu64 " bytes", node_format(use.node),
                                use.node->size);
}

static int64_t qimg_get_size(void *handle)
{
    const struct view *view = view_of(handle);

    if (view)
        return (int64_t)view->size;
    EXPORT_USE(use, export_enter(exp_of(handle)));

    return (int64_t)use.node->size;
}

static int qimg_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                           uint32_t *maximum)
{
    EXPORT_USE(use, export_enter(exp_of(handle)));
    const struct node *node = use.node;

    /* Any alignment works; these values are the cheapest. */
    *minimum = 1;
    *preferred = node->cluster_size == 1
                     ? 4096
                     : MIN(MAX(node->subcluster_size, 512), MAX_PREFERRED);
    *maximum = MAX_REQUEST;
    return 0;
}

static int qimg_can_write(void *handle)
{
    const struct connection *connection = handle;

    return !connection->readonly;
}

static int qimg_yes(void *handle)
{
    (void)handle;
    return 1;
}

static int qimg_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int qimg_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_NATIVE;
}

/* ---- requests ---- */

/* An errno that NBD doesn't have (ETIMEDOUT of an NBD server below, for example) would reach the
 * client as EINVAL, as if its request were wrong. */
static int errno_for_client(int err)
{
    switch (err) {
    case EPERM:
    case EROFS:
    case ENOMEM:
    case EINVAL:
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EOVERFLOW:
    case EOPNOTSUPP:
    case ESHUTDOWN:
        return err;
    default:
        return EIO;
    }
}

/* Ends every request: converts -errno into nbdkit's way to fail. */
static int end_request(int err, const struct export_use *use, const char *what,
                       uint64_t offset, uint64_t count)
{
    if (LIKELY(err == 0))
        return 0;
    if (err == -EIO && server.control)
        control_request_failed(server.control);
    nbdkit_error("%s: %s of %" PRIu64 " bytes at %" PRIu64 ": %s", use->node->filename,
                 what, count, offset, strerror(-err));
    nbdkit_set_error(errno_for_client(-err));
    return -1;
}

enum { READS, WRITES };

/* nbdkit_nanosleep fails when the client is gone; with a length of zero it only asks that.  It
 * also fails when the server ends; then the request isn't abandoned but answered. */
static bool client_is_gone(void)
{
    return !shutdown_has_begun() && nbdkit_nanosleep(0, 0) != 0 && !shutdown_has_begun();
}

static ASIDE bool wait_for_limits(struct connection *c, int direction, uint32_t count)
{
    if (throttle_wait(&c->exp->throttle, &c->flow, direction == WRITES, count,
                      client_is_gone))
        return true;
    nbdkit_set_error(ESHUTDOWN);
    return false;
}

/* Waits until the limits of the disk allow the request.  Views have no limits: a backup isn't the
 * disk's user.  False: the client is gone, and the request must not be done. */
static inline bool limit(void *handle, int direction, uint32_t count)
{
    struct connection *c = handle;

    return !throttle_is_limited(&c->exp->throttle) || c->view ||
           wait_for_limits(c, direction, count);
}

static inline struct export_op_timer begin_op(const struct export_use *use,
                                              enum export_op op)
{
    return export_op_begin(&use->exp->stats, use->ticket, op);
}

/* A copy-on-read changes the image.  So it waits for drains, as a write does. */
static inline struct export_use enter_to_read(void *handle)
{
    struct export_use use = export_enter(exp_of(handle));

    if (LIKELY(!use.node->options.copy_on_read) || view_of(handle))
        return use;
    export_leave(&use);
    return export_enter_change(exp_of(handle));
}

static int qimg_pread(void *handle, void *buf, uint32_t count, uint64_t offset,
                      uint32_t flags)
{
    if (!limit(handle, READS, count))
        return -1;
    EXPORT_USE(use, enter_to_read(handle));
    struct export_op_timer timer = begin_op(&use, EXPORT_READ);
    struct view *view = view_of(handle);
    int err = LIKELY(!view) ? block_read_for_user(use.node, buf, offset, count)
                            : view_read(view, buf, offset, count);

    (void)flags;
    export_op_end(&timer, count, err);
    return end_request(err, &use, "read", offset, count);
}

static int qimg_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
                       uint32_t flags)
{
    if (!limit(handle, WRITES, count))
        return -1;
    EXPORT_USE(use, export_enter_change(exp_of(handle)));
    struct export_op_timer timer = begin_op(&use, EXPORT_WRITE);
    unsigned how = flags & NBDKIT_FLAG_FUA ? BLOCK_FUA : 0;
    int err = block_write(use.node, buf, offset, count, how);

    export_op_end(&timer, count, err);
    export_note_write_end(&use.exp->stats, use.ticket, offset + count);
    return end_request(err, &use, "write", offset, count);
}

static int qimg_flush(void *handle, uint32_t flags)
{
    (void)flags;
    if (view_of(handle))
        return 0; /* nothing was written through a view */
    EXPORT_USE(use, export_enter(exp_of(handle)));
    struct export_op_timer timer = begin_op(&use, EXPORT_FLUSH);
    int err = block_flush(use.node);
    export_op_end(&timer, 0, err);
    return end_request(err, &use, "flush", 0, use.node->size);
}

static int qimg_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    if (!limit(handle, WRITES, count))
        return -1;
    EXPORT_USE(use, export_enter_change(exp_of(handle)));
    struct export_op_timer timer = begin_op(&use, EXPORT_TRIM);
    unsigned how = flags & NBDKIT_FLAG_FUA ? BLOCK_FUA : 0;
    int err = block_discard(use.node, offset, count, how);

    export_op_end(&timer, count, err);
    return end_request(err, &use, "trim", offset, count);
}

static int qimg_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    if (!limit(handle, WRITES, count))
        return -1;
    EXPORT_USE(use, export_enter_change(exp_of(handle)));
    struct export_op_timer timer = begin_op(&use, EXPORT_ZERO);
    bool fast = flags & NBDKIT_FLAG_FAST_ZERO;
    unsigned how = (flags & NBDKIT_FLAG_FUA ? BLOCK_FUA : 0) |
                   (flags & NBDKIT_FLAG_MAY_TRIM ? BLOCK_MAY_UNMAP : 0) |
                   (fast ? BLOCK_FAST : 0);
    int err = block_zero(use.node, offset, count, how);

    export_op_end(&timer, count, err);
    if (err == -ENOTSUP && fast) {
        /* an answer that the client asked for, not a failure */
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    /* nbdkit's fallback for ENOTSUP, which writes zeroes, isn't reliable above 64 MiB. */
    return end_request(err == -ENOTSUP ? -EIO : err, &use, "zero", offset, count);
}

static int qimg_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    if (!limit(handle, READS, count))
        return -1;
    EXPORT_USE(use, enter_to_read(handle));

    struct view *view = view_of(handle);
    int err = view ? view_cache(view, offset, count)
                   : block_cache_for_user(use.node, offset, count);

    (void)flags;
    return end_request(err, &use, "cache", offset, count);
}

/* The next run of data, hole or zeroes that the connection sees. */
static int next_run(struct view *view, struct node *node, uint64_t offset, uint64_t len,
                    struct view_status *out)
{
    struct block_status st;

    if (view)
        return view_status(view, offset, len, out);
    int err = block_status(node, offset, len, &st);
    if (!err)
        *out = (struct view_status){.length = st.length, .data = st.data, .zero = st.zero};
    return err;
}

static uint32_t extent_type(const struct view_status *st)
{
    return (st->data ? 0 : NBDKIT_EXTENT_HOLE) | (st->zero ? NBDKIT_EXTENT_ZERO : 0);
}

static int qimg_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                        struct nbdkit_extents *extents)
{
    EXPORT_USE(use, export_enter(exp_of(handle)));
    uint64_t end = offset + count;
    uint32_t first_type = 0;

    for (unsigned runs = 0; offset < end && runs < MAX_RUNS; runs++) {
        struct view_status st;
        int err = next_run(view_of(handle), use.node, offset, end - offset, &st);
        if (err)
            return end_request(err, &use, "block status", offset, end - offset);
        uint32_t type = extent_type(&st);
        if (runs == 0)
            first_type = type;
        if ((flags & NBDKIT_FLAG_REQ_ONE) && type != first_type)
            return 0;
        if (nbdkit_add_extent(extents, offset, st.length, type))
            return -1;
        offset += st.length;
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "qimg",
    .longname = "qimg: QED, qcow2 and raw disk images",
    .version = QIMG_VERSION,
    .description = "Serves QED, qcow2 and raw disk images, read and write.",
    .magic_config_key = "file",
    .config_help = plugin_config_help,
    .errno_is_preserved = 1,
    .load = qimg_load,
    .unload = qimg_unload,
    .config = qimg_config,
    .config_complete = qimg_config_complete,
    .dump_plugin = qimg_dump_plugin,
    .get_ready = qimg_get_ready,
    .after_fork = qimg_after_fork,
    .cleanup = qimg_cleanup,
    .list_exports = qimg_list_exports,
    .default_export = qimg_default_export,
    .open = qimg_open,
    .close = qimg_close,
    .export_description = qimg_export_description,
    .get_size = qimg_get_size,
    .block_size = qimg_block_size,
    .can_write = qimg_can_write,
    .can_flush = qimg_yes,
    .can_trim = qimg_yes,
    .can_zero = qimg_yes,
    .can_fast_zero = qimg_yes,
    .can_extents = qimg_yes,
    .can_multi_conn = qimg_yes,
    .can_fua = qimg_can_fua,
    .can_cache = qimg_can_cache,
    .pread = qimg_pread,
    .pwrite = qimg_pwrite,
    .flush = qimg_flush,
    .trim = qimg_trim,
    .zero = qimg_zero,
    .cache = qimg_cache,
    .extents = qimg_extents,
};

/* Defined by the macro, and looked up by nbdkit. */
struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
