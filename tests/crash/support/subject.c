/* SPDX-License-Identifier: BSD-3-Clause */
/* The image under test, and its random requests. */
#include "subject.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "mem_storage.h"
#include "registry.h"
#include "rng.h"
#include "stamp.h"

static void must_be(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "crash tests: %s failed\n", what);
    abort();
}

static void must_be_0(int err, const char *what)
{
    if (err)
        fprintf(stderr, "crash tests: errno %d\n", -err);
    must_be(err == 0, what);
}

int run_tool(const struct subject *s, const char *const *words)
{
    CLEANUP_FREE char *out = scratch_path(&s->scratch, "tool.out");
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    extern char **environ;
    int err = posix_spawnp(&pid, words[0], &actions, NULL, (char *const *)(uintptr_t)words,
                           environ);
    posix_spawn_file_actions_destroy(&actions);
    if (err || waitpid(pid, &status, 0) != pid) {
        fprintf(stderr, "crash tests: can't run %s (errno %d)\n", words[0],
                err ? err : errno);
        return -1;
    }
    if (!WIFEXITED(status)) {
        fprintf(stderr, "crash tests: %s was killed by signal %d\n", words[0],
                WTERMSIG(status));
        return -1;
    }
    return WEXITSTATUS(status);
}

/* ---- sessions ---- */

static uint64_t session_clock(void *opaque)
{
    struct session *se = opaque;

    return atomic_load(&se->now);
}

static int open_backing(struct session *se, const struct subject *s,
                        const struct node_options *options)
{
    struct storage *file = mem_storage_share(s->backing);

    file->read_only = true;
    struct node *backing = NULL;
    int err =
        node_open(&se->ctx, driver_find("raw"), file, "backing", options, &backing, NULL);
    se->node->backing = backing;
    return err;
}

int session_open(struct session *se, const struct subject *s, struct storage *file,
                 bool writable)
{
    const struct subject_config *c = s->config;
    struct node_options options = {
        .cache = cache_mode_find(c->cache ? c->cache : "writeback"),
        .need_check_delay_ns = 5 * SECOND,
        .lazy_refcounts = c->lazy_refcounts,
        .compress = c->compress,
    };

    atomic_init(&se->now, SECOND);
    se->node = NULL;
    must_be_0(block_context_init(&se->ctx, c->pool_bytes ? c->pool_bytes : 64u << 20,
                                 session_clock, se),
              "making a context");
    int err = node_open(&se->ctx, driver_find(c->format), file, "image", &options,
                        &se->node, NULL);
    if (!err && s->backing)
        err = open_backing(se, s, &options);
    if (!err && writable)
        err = node_activate(se->node, NULL);
    if (err)
        session_close(se);
    return err;
}

int session_close(struct session *se)
{
    int err = node_close(se->node);

    se->node = NULL;
    block_context_destroy(&se->ctx);
    return err;
}

/* ---- making the image ---- */

static void make_backing(struct subject *s, const char *path)
{
    uint64_t n = s->config->backing_bytes / SECTOR_BYTES;
    CLEANUP_FREE uint8_t *data = malloc(n * SECTOR_BYTES);

    must_be(data != NULL, "memory");
    stamp_fill(data, 0, n, VERSION_BACKING);
    /* Holes, so that zeroes of the backing file are met too. */
    for (uint64_t i = 0; i + 24 <= n; i += 200)
        stamp_fill(data + i * SECTOR_BYTES, i, 24, 0);
    s->backing = mem_storage_new(0);
    must_be_0(storage_write(s->backing, data, 0, n * SECTOR_BYTES, 0), "writing");
    must_be_0(mem_storage_save(s->backing, path), "saving the backing file");
    /* What a disk grows by reads as zeroes, whatever lies below. */
    uint64_t shown = s->config->created_bytes ? s->config->created_bytes / SECTOR_BYTES : n;
    for (uint64_t i = 0; i < MIN(MIN(n, shown), s->n_sectors); i++)
        s->initial[i] = stamp_read(data + i * SECTOR_BYTES).version;
}

static void create_subject_image(struct subject *s, const char *backing)
{
    const struct subject_config *c = s->config;
    char size[24];
    const char *words[16] = {"qemu-img", "create", "-f", c->format};
    unsigned n = 4;

    snprintf(size, sizeof size, "%llu",
             (unsigned long long)(c->created_bytes ? c->created_bytes : c->disk_bytes));
    if (c->create) {
        words[n++] = "-o";
        words[n++] = c->create;
    }
    if (c->backing_bytes) {
        words[n++] = "-b";
        words[n++] = backing;
        words[n++] = "-F";
        words[n++] = "raw";
    }
    words[n++] = s->image_path;
    words[n++] = size;
    must_be(run_tool(s, words) == 0, "qemu-img create");
    must_be_0(mem_storage_load(s->image_path, &s->base), "loading the image");
}

/* Writes a part of the disk through a node that is closed cleanly. */
static void populate(struct subject *s)
{
    uint64_t n = s->n_sectors * s->config->populated / 100, step = 160;
    CLEANUP_FREE uint8_t *data = malloc(step * SECTOR_BYTES);
    struct session se;
    struct rng rng;

    rng_init(&rng, n);
    must_be(data != NULL, "memory");
    must_be_0(session_open(&se, s, mem_storage_share(s->base), true), "opening");
    for (uint64_t done = 0; done < n;) {
        uint64_t start = rng_below(&rng, s->n_sectors);
        uint64_t len = rng_between(&rng, 1, step);
        len = MIN(len, s->n_sectors - start); /* not at once: MIN rolls its dice twice */
        stamp_fill(data, start, len, VERSION_BASE);
        must_be_0(block_write(se.node, data, start * SECTOR_BYTES, len * SECTOR_BYTES, 0),
                  "populating");
        for (uint64_t i = 0; i < len; i++)
            s->initial[start + i] = VERSION_BASE;
        done += len;
    }
    must_be_0(session_close(&se), "closing");
}

static void take_snapshot(struct subject *s)
{
    const char *words[] = {"qemu-img", "snapshot", "-c", "first", s->image_path, NULL};

    must_be_0(mem_storage_save(s->base, s->image_path), "saving");
    must_be(run_tool(s, words) == 0, "qemu-img snapshot");
    storage_close(s->base);
    must_be_0(mem_storage_load(s->image_path, &s->base), "loading");
    s->snapshot = calloc(s->n_sectors, sizeof *s->snapshot);
    must_be(s->snapshot != NULL, "memory");
    memcpy(s->snapshot, s->initial, s->n_sectors * sizeof *s->initial);
}

/* Failures are wanted in places; what matters is what the tests make of them. */
static void drop_message(enum log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

void subject_make(struct subject *s, const struct subject_config *config)
{
    registry_init();
    log_set_sink(drop_message);
    *s = (struct subject){.config = config, .next_version = VERSION_FIRST};
    scratch_make(&s->scratch);
    s->image_path = scratch_path(&s->scratch, "image");
    CLEANUP_FREE char *backing = scratch_path(&s->scratch, "backing");
    s->n_sectors = config->disk_bytes / SECTOR_BYTES;
    s->initial = calloc(s->n_sectors, sizeof *s->initial);
    must_be(s->initial != NULL, "memory");
    if (config->backing_bytes)
        make_backing(s, backing);
    create_subject_image(s, backing);
    if (config->populated)
        populate(s);
    if (config->snapshot)
        take_snapshot(s);
    if (config->fixed_size)
        must_be_0(storage_truncate(s->base, config->disk_bytes * 2), "making room");
}

void subject_remove(struct subject *s)
{
    storage_close(s->base);
    storage_close(s->backing);
    free(s->image_path);
    free(s->initial);
    free(s->snapshot);
    scratch_remove(&s->scratch);
}

void subject_structure(const struct subject *s, struct storage *st, struct structure *out)
{
    if (strcmp(s->config->format, "qed") == 0)
        structure_check_qed(st, out);
    else
        structure_check_qcow2(st, out);
}
