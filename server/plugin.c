/* SPDX-License-Identifier: BSD-3-Clause */
/* The nbdkit callbacks: each converts types and calls one function. */
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

#include "base/log.h"
#include "control.h"
#include "export.h"
#include "plugin_config.h"
#include "registry.h"
#include "shutdown.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* What nbdkit takes in one read or write. */
#define MAX_REQUEST (64u << 20)
/* The largest preferred block size that the protocol's users expect. */
#define MAX_PREFERRED (32u << 20)
/* An answer about extents looks at this many runs at most; the client asks again for the
 * rest. */
#define MAX_RUNS (64u << 10)

/* Buffers of requests up to this size come from the heap. */
#define HEAP_BUFFER (4 << 20)

static struct plugin_config config;
static struct served_export the_export;
static struct control *control; /* NULL: none */

struct connection {
    bool readonly;
};

static void to_nbdkit(enum log_level level, const char *fmt, va_list ap)
{
    if (level == LOG_DEBUG)
        nbdkit_vdebug(fmt, ap);
    else
        nbdkit_verror(fmt, ap);
}

static int fail(const struct diag *diag)
{
    nbdkit_error("%s", diag->text);
    nbdkit_set_error(diag->err);
    return -1;
}

/* nbdkit allocates a buffer for each worker thread.  glibc would map a large one by itself
 * and return it 16 bytes into its first page.  A copy from the page cache, which begins a
 * page, to there stores just ahead of where it will load, in the low bits of the addresses:
 * processors take the one for the other, and the copy takes up to five times as long.  In
 * the heap, buffers lie anywhere. */
static void place_buffers(void)
{
#ifdef __GLIBC__
    (void)mallopt(M_MMAP_THRESHOLD, HEAP_BUFFER);
#endif
}

static void qimg_load(void)
{
    place_buffers();
    log_set_sink(to_nbdkit);
    registry_init();
    plugin_config_init(&config);
}

static void qimg_unload(void)
{
    control_close(control);
    export_close(&the_export);
    plugin_config_free(&config);
}

static int qimg_config(const char *key, const char *value)
{
    return plugin_config_set(&config, key, value);
}

static int qimg_config_complete(void)
{
    return plugin_config_complete(&config);
}

static void qimg_dump_plugin(void)
{
    struct driver_names_text formats;

    printf("qimg_version=%s\n", QIMG_VERSION);
    printf("qimg_formats=%s\n", driver_names(&formats));
    printf("qimg_cache_modes=%s\n", cache_mode_names());
    printf("qimg_zstd=no\n");
    printf("qimg_luks=no\n");
    printf("qimg_io_uring=no\n");
    printf("qimg_jobs=mirror, commit\n");
}

/* ---- the end ---- */

static void end_by_command(void)
{
    nbdkit_shutdown();
    shutdown_begin();
}

static void begin_end(void)
{
    if (control)
        control_begin_close(control);
}

static bool is_idle(void)
{
    return export_is_idle(&the_export);
}

static void abandon_servers(void)
{
    export_abandon_servers(&the_export);
}

static void close_all(void)
{
    control_close(control);
    control = NULL;
    char *name = export_name(&the_export); /* which isn't config.file after a pivot */
    int err = export_close(&the_export);

    if (err)
        nbdkit_error("%s: closing: %s: the image must be checked",
                     name ? name : config.file, strerror(-err));
    free(name);
}

static void close_with_clients(void)
{
    abandon_servers();
    control_stop(control); /* the jobs look at what is served */
    export_seal(&the_export);
    close_all();
}

static int start_shutdown(void)
{
    const struct shutdown_steps steps = {
        .begin = begin_end,
        .is_idle = is_idle,
        .hurry = abandon_servers,
        .close = close_with_clients,
        .own_socket = config.control,
    };

    return shutdown_start(&steps);
}

static int open_control(struct diag *diag)
{
    const struct control_setup setup = {
        .path = config.control,
        .node_name = config.node_name,
        .exp = &the_export,
        .shutdown = end_by_command,
    };

    return config.control ? control_open(&setup, &control, diag) : 0;
}

static int qimg_get_ready(void)
{
    struct diag diag = {0};

    if (export_open(&the_export, &config, &diag))
        return fail(&diag);
    if (open_control(&diag)) {
        export_close(&the_export);
        return fail(&diag);
    }
    if (config.cache->no_flush)
        fprintf(
            stderr,
            "nbdkit: qimg: %s: warning: cache=%s ignores flushes: after a failure of the "
            "host the image may be unusable\n",
            config.file, config.cache->name);
    return 0;
}

static int qimg_after_fork(void)
{
    int err = export_start(&the_export);

    if (!err && control)
        err = control_start(control);
    if (!err)
        err = start_shutdown();
    if (err)
        nbdkit_error("starting the background threads: %s", strerror(-err));
    return err ? -1 : 0;
}

static void qimg_cleanup(void)
{
    shutdown_stop();
    abandon_servers(); /* jobs may wait for them: users have got their answers */
    close_all();
}

static int qimg_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    (void)readonly;
    (void)is_tls;
    return nbdkit_add_export(exports, "", NULL);
}

static const char *qimg_default_export(int readonly, int is_tls)
{
    (void)readonly;
    (void)is_tls;
    return "";
}

static bool can_write_now(void)
{
    EXPORT_USE(use, export_enter(&the_export));

    return use.node->can_write;
}

/* Once: the client's own view of it would be that of a disk with a fault. */
static void say_read_only(void)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    EXPORT_USE(use, export_enter(&the_export));

    if (!atomic_flag_test_and_set(&said))
        nbdkit_error("%s: warning: is served read-only: %s", use.node->filename,
                     node_why_read_only(use.node));
}

static void *qimg_open(int readonly)
{
    const char *name = nbdkit_export_name();
    struct diag diag = {0};

    if (!name || *name) {
        nbdkit_error("%s: there is no export of the name asked for: the image is \"\"",
                     config.file);
        nbdkit_set_error(ENOENT);
        return NULL;
    }
    if (readonly)
        export_note_read_only(&the_export);
    bool writable = !readonly && can_write_now();
    if (!readonly && !writable)
        say_read_only();
    if (writable && export_make_writable(&the_export, &diag)) {
        fail(&diag);
        return NULL;
    }
    struct connection *connection = calloc(1, sizeof *connection);
    if (!connection) {
        nbdkit_error("out of memory");
        return NULL;
    }
    connection->readonly = !writable;
    return connection;
}

static void qimg_close(void *handle)
{
    free(handle);
}

static const char *qimg_export_description(void *handle)
{
    EXPORT_USE(use, export_enter(&the_export));

    (void)handle;
    return nbdkit_printf_intern("%s image, %" PRIu64 " bytes", use.node->driver->name,
                                use.node->size);
}

static int64_t qimg_get_size(void *handle)
{
    EXPORT_USE(use, export_enter(&the_export));

    (void)handle;
    return (int64_t)use.node->size;
}

static int qimg_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                           uint32_t *maximum)
{
    EXPORT_USE(use, export_enter(&the_export));
    const struct node *node = use.node;

    (void)handle;
    /* Requests of any alignment are served; these are what costs least. */
    *minimum = 1;
    *preferred =
        node->cluster_size == 1 ? 4096 : MIN(MAX(node->cluster_size, 512), MAX_PREFERRED);
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

/* What NBD has no word for, an NBD server's ETIMEDOUT for one, would reach clients as
 * EINVAL: as if their request were wrong. */
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

/* The end of every request: -errno becomes nbdkit's. */
static int done(int err, const struct export_use *use, const char *what, uint64_t offset,
                uint64_t count)
{
    if (LIKELY(err == 0))
        return 0;
    if (err == -EIO && control)
        control_request_failed(control);
    nbdkit_error("%s: %s of %" PRIu64 " bytes at %" PRIu64 ": %s", use->node->filename,
                 what, count, offset, strerror(-err));
    nbdkit_set_error(errno_for_client(-err));
    return -1;
}

static int qimg_pread(void *handle, void *buf, uint32_t count, uint64_t offset,
                      uint32_t flags)
{
    EXPORT_USE(use, export_enter(&the_export));

    (void)handle;
    (void)flags;
    return done(block_read(use.node, buf, offset, count), &use, "read", offset, count);
}

static int qimg_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
                       uint32_t flags)
{
    EXPORT_USE(use, export_enter_change(&the_export));
    unsigned how = flags & NBDKIT_FLAG_FUA ? BLOCK_FUA : 0;
    int err = block_write(use.node, buf, offset, count, how);

    (void)handle;
    return done(err, &use, "write", offset, count);
}

static int qimg_flush(void *handle, uint32_t flags)
{
    EXPORT_USE(use, export_enter(&the_export));

    (void)handle;
    (void)flags;
    return done(block_flush(use.node), &use, "flush", 0, use.node->size);
}

static int qimg_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    EXPORT_USE(use, export_enter_change(&the_export));
    unsigned how = flags & NBDKIT_FLAG_FUA ? BLOCK_FUA : 0;

    (void)handle;
    return done(block_discard(use.node, offset, count, how), &use, "trim", offset, count);
}

static int qimg_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    EXPORT_USE(use, export_enter_change(&the_export));
    bool fast = flags & NBDKIT_FLAG_FAST_ZERO;
    unsigned how = (flags & NBDKIT_FLAG_FUA ? BLOCK_FUA : 0) |
                   (flags & NBDKIT_FLAG_MAY_TRIM ? BLOCK_MAY_UNMAP : 0) |
                   (fast ? BLOCK_FAST : 0);
    int err = block_zero(use.node, offset, count, how);

    (void)handle;
    if (err == -ENOTSUP && fast) {
        nbdkit_set_error(EOPNOTSUPP); /* an answer, not a failure */
        return -1;
    }
    /* The server's fallback for ENOTSUP can't be trusted with more than 64 MiB. */
    return done(err == -ENOTSUP ? -EIO : err, &use, "zero", offset, count);
}

static int qimg_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    EXPORT_USE(use, export_enter(&the_export));

    (void)handle;
    (void)flags;
    return done(block_cache(use.node, offset, count), &use, "cache", offset, count);
}

static uint32_t extent_type(const struct block_status *st)
{
    return (st->data ? 0 : NBDKIT_EXTENT_HOLE) | (st->zero ? NBDKIT_EXTENT_ZERO : 0);
}

static int qimg_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                        struct nbdkit_extents *extents)
{
    EXPORT_USE(use, export_enter(&the_export));
    uint64_t end = offset + count;
    uint32_t first_type = 0;

    (void)handle;
    for (unsigned runs = 0; offset < end && runs < MAX_RUNS; runs++) {
        struct block_status st;
        int err = block_status(use.node, offset, end - offset, &st);
        if (err)
            return done(err, &use, "block status", offset, end - offset);
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

/* What the macro defines and the server looks for. */
struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
