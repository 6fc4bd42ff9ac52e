/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the image under test and opens nodes on copies of it; see subject.h. */
#include "subject.h"

#include "bitmaps.h"

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

/* ---- files ---- */

struct files files_clone(struct files f)
{
    return (struct files){.image = mem_storage_clone(f.image),
                          .data = f.data ? mem_storage_clone(f.data) : NULL};
}

struct files files_share(struct files f)
{
    return (struct files){.image = mem_storage_share(f.image),
                          .data = f.data ? mem_storage_share(f.data) : NULL};
}

void files_close(struct files *f)
{
    storage_close(f->image);
    storage_close(f->data);
    *f = (struct files){0};
}

int files_save(struct files f, const struct subject *s)
{
    int err = mem_storage_save(f.image, s->image_path);

    return err || !f.data ? err : mem_storage_save(f.data, s->data_path);
}

int files_load(struct files *f, const struct subject *s)
{
    *f = (struct files){0};
    int err = mem_storage_load(s->image_path, &f->image);
    if (!err && s->config->data != DATA_INSIDE)
        err = mem_storage_load(s->data_path, &f->data);
    if (err)
        files_close(f);
    return err;
}

/* ---- tools ---- */

#define PASSPHRASE "sesame"

static int run_words(const struct subject *s, const char *const *words)
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

static unsigned add_words(const char **to, unsigned n, const char *const *words)
{
    for (; words && *words; words++) {
        must_be(n + 1 < TOOL_WORDS, "a command that short");
        to[n++] = *words;
    }
    return n;
}

int run_tool(const struct subject *s, const char *command, const char *const *words,
             const char *const *more)
{
    static const char *const secret[] = {"--object", "secret,id=s,data=" PASSPHRASE,
                                         "--image-opts", NULL};
    const char *format[] = {"-f", s->config->format, NULL};
    const char *all[TOOL_WORDS] = {"qemu-img", command};
    bool encrypted = s->image_options, snapshot = strcmp(command, "snapshot") == 0;
    unsigned n = 2;

    if (encrypted)
        n = add_words(all, n, secret);
    else if (!snapshot) /* qemu-img snapshot has no such option */
        n = add_words(all, n, format);
    n = add_words(all, n, words);
    all[n++] = encrypted ? s->image_options : s->image_path;
    add_words(all, n, more);
    return run_words(s, all);
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

/* Sets the data file and unlocks the encryption, as needed. */
static int complete(struct session *se, struct storage *data)
{
    struct node *node = se->node;

    if (data)
        node_set_data_file(node, data);
    return node->encryption
               ? node->driver->unlock(node, PASSPHRASE, strlen(PASSPHRASE), NULL)
               : 0;
}

int session_open(struct session *se, const struct subject *s, struct files files,
                 bool writable)
{
    return session_open_as(se, s, files, writable, s->config->compress);
}

int session_open_as(struct session *se, const struct subject *s, struct files files,
                    bool writable, bool compress)
{
    const struct subject_config *c = s->config;
    struct node_options options = {
        .cache = cache_mode_find(c->cache ? c->cache : "writeback"),
        .need_check_delay_ns = 5 * SECOND,
        .lazy_refcounts = c->lazy_refcounts,
        .compress = compress,
    };

    atomic_init(&se->now, SECOND);
    se->node = NULL;
    must_be_0(block_context_init(&se->ctx, c->pool_bytes ? c->pool_bytes : 64u << 20,
                                 session_clock, se),
              "making a context");
    int err = node_open(&se->ctx, driver_find(c->format), files.image, "image", &options,
                        &se->node, NULL);
    if (err)
        storage_close(files.data);
    else
        err = complete(se, files.data);
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
    /* Some runs of zeroes, so that zeroes of the backing file are tested, too. */
    for (uint64_t i = 0; i + 24 <= n; i += 200)
        stamp_fill(data + i * SECTOR_BYTES, i, 24, 0);
    s->backing = mem_storage_new(0);
    must_be_0(storage_write(s->backing, data, 0, n * SECTOR_BYTES, 0), "writing");
    must_be_0(mem_storage_save(s->backing, path), "saving the backing file");
    /* Where the disk grows later it reads as zeroes, even if the backing file is longer. */
    uint64_t shown = s->config->created_bytes ? s->config->created_bytes / SECTOR_BYTES : n;
    for (uint64_t i = 0; i < MIN(MIN(n, shown), s->n_sectors); i++)
        s->initial[i] = stamp_read(data + i * SECTOR_BYTES).version;
}

/* The argument of qemu-img create -o; the caller frees it. */
static char *create_options(const struct subject *s)
{
    const struct subject_config *c = s->config;
    bool external = c->data != DATA_INSIDE;
    char *text = NULL;

    must_be(asprintf(&text, "%s%s%s%s%s%s%s", c->create ? c->create : "",
                     c->create && (c->encrypt || external) ? "," : "",
                     c->encrypt ? c->encrypt : "", c->encrypt && external ? "," : "",
                     external ? "data_file=" : "", external ? s->data_path : "",
                     c->data == DATA_RAW ? ",data_file_raw=on" : "") >= 0,
            "memory");
    return text;
}

static void create_subject_image(struct subject *s, const char *backing)
{
    const struct subject_config *c = s->config;
    CLEANUP_FREE char *options = create_options(s);
    char size[24];
    const char *words[TOOL_WORDS] = {"qemu-img", "create", "-f", c->format};
    unsigned n = 4, tries = 20;

    snprintf(size, sizeof size, "%llu",
             (unsigned long long)(c->created_bytes ? c->created_bytes : c->disk_bytes));
    if (c->encrypt) {
        words[n++] = "--object";
        words[n++] = "secret,id=s,data=" PASSPHRASE;
    }
    if (*options) {
        words[n++] = "-o";
        words[n++] = options;
    }
    if (c->backing_bytes) {
        words[n++] = "-b";
        words[n++] = backing;
        words[n++] = "-F";
        words[n++] = "raw";
    }
    words[n++] = s->image_path;
    words[n++] = size;
    /* For LUKS qemu-img measures its key derivation, which sometimes fails on a busy machine. */
    while (run_words(s, words) != 0)
        must_be(c->encrypt && --tries, "qemu-img create");
    must_be_0(files_load(&s->base, s), "loading the image");
}

/* Writes a part of the disk through a node that is closed cleanly. */
static void populate(struct subject *s)
{
    bool compress = s->config->packed || s->config->compress;
    uint64_t n = s->n_sectors * s->config->populated / 100, step = compress ? 400 : 160;
    CLEANUP_FREE uint8_t *data = malloc(step * SECTOR_BYTES);
    struct session se;
    struct rng rng;

    rng_init(&rng, n);
    must_be(data != NULL, "memory");
    must_be_0(session_open_as(&se, s, files_share(s->base), true, compress), "opening");
    for (uint64_t done = 0; done < n;) {
        uint64_t start = rng_below(&rng, s->n_sectors);
        uint64_t len = rng_between(&rng, 1, step);
        /* Not within MIN, which evaluates its arguments twice: each time another number. */
        len = MIN(len, s->n_sectors - start);
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
    const char *words[] = {"-c", "first", NULL};

    must_be_0(files_save(s->base, s), "saving");
    must_be(run_tool(s, "snapshot", words, NULL) == 0, "qemu-img snapshot");
    files_close(&s->base);
    must_be_0(files_load(&s->base, s), "loading");
    s->snapshot = calloc(s->n_sectors, sizeof *s->snapshot);
    must_be(s->snapshot != NULL, "memory");
    memcpy(s->snapshot, s->initial, s->n_sectors * sizeof *s->initial);
}

static void make_bitmaps(struct subject *s)
{
    must_be_0(files_save(s->base, s), "saving");
    for (unsigned i = 0; i < kept_bitmaps_count; i++) {
        const char *words[] = {"--add", "-g", kept_bitmaps[i].granularity,
                               kept_bitmaps[i].frozen ? "--disable" : NULL, NULL};
        const char *more[] = {kept_bitmaps[i].name, NULL};
        must_be(run_tool(s, "bitmap", words, more) == 0, "qemu-img bitmap");
    }
    files_close(&s->base);
    must_be_0(files_load(&s->base, s), "loading");
}

/* Many tests provoke failures on purpose; log messages about them would only distract. */
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
    s->data_path = scratch_path(&s->scratch, "data");
    if (config->encrypt)
        must_be(asprintf(&s->image_options,
                         "driver=%s,encrypt.key-secret=s,file.filename=%s", config->format,
                         s->image_path) >= 0,
                "memory");
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
    if (config->bitmaps)
        make_bitmaps(s);
    if (config->fixed_size)
        must_be_0(storage_truncate(s->base.image, config->disk_bytes * 2), "making room");
}

void subject_remove(struct subject *s)
{
    files_close(&s->base);
    storage_close(s->backing);
    free(s->image_path);
    free(s->data_path);
    free(s->image_options);
    free(s->initial);
    free(s->raw);
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
