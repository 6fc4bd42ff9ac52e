/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests NBD exports as storages: reading and writing, with real servers of different abilities. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nbd_server.h"
#include "rng.h"
#include "scratch.h"
#include "storage/nbd_internal.h"

#define SIZE (512u << 10)

static struct scratch scratch;
static struct nbd_server server;
static struct storage *st;

static void serve(const char *const args[])
{
    if (nbd_server_missing("nbdkit"))
        cr_skip_test("nbdkit is not installed");
    scratch_make(&scratch);
    nbd_server_nbdkit(&server, &scratch, args);
}

#define SERVE(...) serve((const char *const[]){__VA_ARGS__, NULL})

static int try_open(const struct nbd_open *how, struct diag *diag)
{
    return storage_open_nbd(server.uri, how, &st, diag);
}

static void open_it(const struct nbd_open *how)
{
    struct diag diag = {0};

    cr_assert_eq(try_open(how, &diag), 0, "%s", diag.text);
}

static void end(void)
{
    storage_close(st);
    nbd_server_free(&server);
    scratch_remove(&scratch);
}

/* ---- a random model ---- */

static uint8_t flat[SIZE], seen[SIZE + 64];

static void check_reading(uint64_t off, uint64_t len)
{
    memset(seen, 0xee, sizeof seen);
    cr_assert_eq(storage_read(st, seen, off, len), 0);
    for (uint64_t i = 0; i < len; i++)
        cr_assert_eq(seen[i], off + i < SIZE ? flat[off + i] : 0, "byte %lu of %lu at %lu",
                     (unsigned long)i, (unsigned long)len, (unsigned long)off);
    cr_assert_eq(seen[len], 0xee, "read too far");
}

static void check_extents(void)
{
    for (uint64_t off = 0, run; off < SIZE; off += run) {
        bool data;
        cr_assert_eq(storage_extent(st, off, SIZE - off, &data, &run), 0);
        for (uint64_t i = off; !data && i < off + run; i++)
            cr_assert_eq(flat[i], 0, "data at %lu in a hole", (unsigned long)i);
    }
}

/* After a trim the range reads as the server chooses, but its neighbours must be unchanged. */
static void trim(uint64_t off, uint64_t len)
{
    cr_assert_eq(storage_discard(st, off, len), 0);
    cr_assert_eq(storage_read(st, flat + off, off, len), 0);
}

static void write_pieces(struct rng *rng, uint64_t off, uint64_t len, unsigned flags)
{
    struct iovec iov[5];
    int n = (int)rng_between(rng, 1, 5);

    for (int i = 0; i < n; i++) {
        uint64_t piece = i == n - 1 ? len : rng_below(rng, len + 1);
        iov[i] = (struct iovec){.iov_base = flat + off, .iov_len = piece};
        off += piece;
        len -= piece;
    }
    cr_assert_eq(
        storage_writev(st, iov, n, (uint64_t)((uint8_t *)iov[0].iov_base - flat), flags),
        0);
}

static void one_step(struct rng *rng)
{
    uint64_t off = rng_below(rng, SIZE), len = rng_between(rng, 1, SIZE - off);
    uint64_t shorter = rng_between(rng, 1, 20000);
    unsigned fua = rng_one_in(rng, 4) ? STORAGE_FUA : 0;

    if (!rng_one_in(rng, 8))
        len = MIN(len, shorter);
    switch (rng_below(rng, 6)) {
    case 0:
    case 1:
        rng_fill(rng, flat + off, len);
        write_pieces(rng, off, len, fua);
        break;
    case 2:
        memset(flat + off, 0, len);
        cr_assert_eq(storage_zero(st, off, len, fua | (len & 1 ? STORAGE_MAY_UNMAP : 0)),
                     0);
        break;
    case 3:
        trim(off, len);
        break;
    case 4:
        cr_assert_eq(storage_flush(st), 0);
        break;
    default:
        check_reading(off, MIN(len + 64, sizeof seen - 1));
    }
}

static void run_model(const struct nbd_open *how, unsigned steps)
{
    struct rng rng;
    uint64_t size;

    open_it(how);
    cr_assert_eq(storage_size(st, &size), 0);
    cr_assert_eq(size, SIZE);
    cr_assert_eq(storage_read(st, flat, 0, SIZE), 0);
    rng_init(&rng, 7);
    for (unsigned i = 0; i < steps; i++) {
        one_step(&rng);
        if (i == steps / 2)
            cr_assert_eq(storage_nbd_start(st), 0);
        if (i % 64 == 0)
            check_extents();
    }
    check_reading(0, SIZE);
    /* Another client must read the same. */
    cr_assert_eq(storage_flush(st), 0);
    storage_close(st);
    open_it(&(struct nbd_open){.read_only = true});
    check_reading(0, SIZE);
    end();
}

#define MODEL(name, ...)                                      \
    Test(nbd_model, name, .timeout = 120)                     \
    {                                                         \
        SERVE(__VA_ARGS__);                                   \
        run_model(&(struct nbd_open){.connections = 4}, 400); \
    }

MODEL(memory, "memory", "512K")
MODEL(no_abilities, "--filter=nozero", "--filter=noextents", "--filter=fua",
      "--filter=nocache", "memory", "512K")
MODEL(fua_pretended, "--filter=fua", "memory", "512K", "fuamode=force")
MODEL(blocks_of_4k, "--filter=blocksize-policy", "memory", "512K", "blocksize-minimum=4096",
      "blocksize-preferred=64K", "blocksize-maximum=64K", "blocksize-error-policy=error")
MODEL(blocks_of_512_without_zero, "--filter=blocksize-policy", "--filter=nozero", "memory",
      "512K", "blocksize-minimum=512", "blocksize-preferred=4K", "blocksize-maximum=8K",
      "blocksize-error-policy=error")
MODEL(one_connection, "--filter=multi-conn", "memory", "512K", "multi-conn-mode=disable")

static char *image_file(const char *name)
{
    char *path = scratch_path(&scratch, name);
    FILE *f = fopen(path, "w");

    cr_assert_not_null(f);
    cr_assert_eq(ftruncate(fileno(f), SIZE), 0);
    fclose(f);
    return path;
}

Test(nbd_model, file, .timeout = 120)
{
    if (nbd_server_missing("nbdkit"))
        cr_skip_test("nbdkit is not installed");
    scratch_make(&scratch);
    char *path = image_file("disk");
    nbd_server_nbdkit(&server, &scratch, (const char *const[]){"file", path, NULL});
    run_model(&(struct nbd_open){.connections = 2}, 400);
    free(path);
}

Test(nbd_model, qemu, .timeout = 120)
{
    if (nbd_server_missing("qemu-nbd"))
        cr_skip_test("qemu-nbd is not installed");
    scratch_make(&scratch);
    char *path = image_file("disk");
    /* The server accepts two clients at most: the third connection is never answered, which must do
     * no harm. */
    nbd_server_qemu(
        &server, &scratch,
        (const char *const[]){"-f", "raw", "-e", "2", "--discard=unmap", path, NULL});
    run_model(&(struct nbd_open){.connections = 4}, 400);
    free(path);
}

/* ---- what the export is ---- */

static struct diag refused(const struct nbd_open *how, int err)
{
    struct diag diag = {0};

    cr_assert_eq(try_open(how, &diag), -err, "%s", diag.text);
    cr_assert_eq(diag.err, err);
    st = NULL;
    return diag;
}

Test(nbd_export, read_only, .timeout = 120)
{
    uint8_t buf[512];

    SERVE("-r", "memory", "512K");
    struct diag diag = refused(&(struct nbd_open){0}, EROFS);
    cr_assert(strstr(diag.text, "read-only"), "%s", diag.text);
    open_it(&(struct nbd_open){.read_only = true});
    cr_assert(st->read_only);
    cr_assert_eq(storage_read(st, buf, 0, sizeof buf), 0);
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, 0), -EROFS);
    end();
}

Test(nbd_export, a_size_that_is_no_multiple_of_the_block, .timeout = 120)
{
    SERVE("--filter=blocksize-policy", "memory", "1000", "blocksize-minimum=512",
          "blocksize-error-policy=error");
    struct diag diag = refused(&(struct nbd_open){0}, EINVAL);
    cr_assert(strstr(diag.text, "multiple") && strstr(diag.text, "512"), "%s", diag.text);
    end();
}

Test(nbd_export, names_and_messages, .timeout = 120)
{
    struct diag diag = {0};
    char text[512];

    SERVE("--filter=exportname", "memory", "512K", "exportname-strict=true",
          "exportname=good");
    refused(&(struct nbd_open){.connections = NBD_MAX_CONNECTIONS + 1}, EINVAL);
    cr_assert_neq(try_open(&(struct nbd_open){0}, &diag), 0);
    cr_assert(strstr(diag.text, server.socket), "names the export: %s", diag.text);
    snprintf(text, sizeof text, "nbd+unix:///good?socket=%s", server.socket);
    cr_assert_eq(storage_open_nbd(text, &(struct nbd_open){0}, &st, &diag), 0, "%s",
                 diag.text);
    cr_assert_str_eq(st->name, text);
    cr_assert(storage_is_nbd(st) && nbd_of(st)->connected);
    storage_close(st);
    nbd_server_kill(&server);
    diag = refused(&(struct nbd_open){0}, ECONNREFUSED);
    cr_assert(strstr(diag.text, strerror(ECONNREFUSED)), "%s", diag.text);
    unlink(server.socket);
    diag = refused(&(struct nbd_open){0}, ENOENT);
    cr_assert(strstr(diag.text, strerror(ENOENT)), "%s", diag.text);
    end();
}

Test(nbd_export, past_the_end, .timeout = 120)
{
    uint8_t buf[1024];

    SERVE("memory", "512K");
    open_it(&(struct nbd_open){0});
    cr_assert(st->fixed_size);
    cr_assert_eq(storage_write(st, buf, SIZE - 512, 1024, 0), -ENOSPC);
    cr_assert_eq(storage_zero(st, SIZE - 512, 1024, 0), -ENOSPC);
    cr_assert_eq(storage_truncate(st, SIZE + 1), -ENOSPC);
    bool data;
    uint64_t run;
    cr_assert_eq(storage_extent(st, SIZE + 5, 77, &data, &run), 0);
    cr_assert(!data && run == 77);
    end();
}

Test(nbd_export, empty, .timeout = 120)
{
    uint8_t buf[4] = "xxx";

    SERVE("memory", "0");
    open_it(&(struct nbd_open){0});
    cr_assert_eq(storage_read(st, buf, 0, 4), 0);
    cr_assert_eq(buf[0], 0);
    cr_assert_eq(storage_flush(st), 0);
    end();
}

Test(nbd_export, errors_of_the_server_arrive, .timeout = 120)
{
    uint8_t buf[512] = {0};

    SERVE("--filter=error", "memory", "512K", "error-pwrite=ENOSPC", "error-pread=EIO",
          "error-pwrite-rate=100%", "error-pread-rate=100%");
    open_it(&(struct nbd_open){0});
    cr_assert_eq(storage_write(st, buf, 0, 512, 0), -ENOSPC);
    cr_assert_eq(storage_read(st, buf, 0, 512), -EIO);
    cr_assert_eq(storage_flush(st), 0, "the connection lives on");
    end();
}

Test(nbd_export, fast_zero, .timeout = 120)
{
    SERVE("--filter=nozero", "memory", "512K", "fastzeromode=none", "zeromode=emulate");
    open_it(&(struct nbd_open){0});
    cr_assert_eq(storage_zero(st, 0, 4096, STORAGE_FAST), -ENOTSUP);
    cr_assert_eq(storage_zero(st, 0, 4096, 0), 0);
    storage_close(st);
    nbd_server_free(&server);
    scratch_remove(&scratch);
    SERVE("memory", "512K");
    open_it(&(struct nbd_open){0});
    cr_assert_eq(storage_zero(st, 0, 4096, STORAGE_FAST | STORAGE_MAY_UNMAP), 0);
    end();
}

Test(nbd_export, tls_that_the_server_does_not_have, .timeout = 120)
{
    char text[128];
    struct diag diag = {0};

    if (nbd_server_missing("nbdkit"))
        cr_skip_test("nbdkit is not installed");
    scratch_make(&scratch);
    snprintf(text, sizeof text, "nbds://127.0.0.1:%d/", 20000 + getpid() % 10000);
    cr_assert_neq(storage_open_nbd(text, &(struct nbd_open){0}, &st, &diag), 0);
    cr_assert(strstr(diag.text, text), "%s", diag.text);
    scratch_remove(&scratch);
}

/* ---- many threads, and a fork ---- */

#define THREADS 8
#define STRIPE  (SIZE / THREADS + 3) /* neighbours share blocks */

static void *own_stripe(void *opaque)
{
    uint64_t start = (uint64_t)(uintptr_t)opaque * (STRIPE - 4);
    uint64_t stripe = STRIPE - 4;
    uint8_t *back = malloc(stripe);
    struct rng rng;

    rng_init(&rng, start);
    for (int i = 0; i < 60; i++) {
        uint64_t at = rng_below(&rng, stripe), len = rng_between(&rng, 1, stripe - at);
        uint8_t *mine = flat + start + at;
        rng_fill(&rng, mine, len);
        cr_assert_eq(storage_write(st, mine, start + at, len, 0), 0);
        if (i == 20)
            cr_assert_eq(storage_nbd_start(st), 0);
        if (i % 8 == 0)
            cr_assert_eq(storage_flush(st), 0);
    }
    cr_assert_eq(storage_read(st, back, start, stripe), 0);
    cr_assert_eq(memcmp(back, flat + start, stripe), 0);
    free(back);
    return NULL;
}

static void run_threads(void)
{
    pthread_t threads[THREADS];

    open_it(&(struct nbd_open){.connections = 3});
    for (uintptr_t i = 0; i < THREADS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, own_stripe, (void *)i), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    end();
}

Test(nbd_threads, bytes, .timeout = 120)
{
    SERVE("memory", "512K");
    run_threads();
}

Test(nbd_threads, blocks_that_neighbours_share, .timeout = 120)
{
    SERVE("--filter=blocksize-policy", "memory", "512K", "blocksize-minimum=4096",
          "blocksize-error-policy=error");
    run_threads();
}

Test(nbd_fork, opened_before_and_used_after, .timeout = 120)
{
    uint8_t buf[4096], back[4096];
    struct rng rng;
    int status;

    SERVE("memory", "512K");
    open_it(&(struct nbd_open){0});
    cr_assert_eq(storage_read(st, buf, 0, sizeof buf), 0, "as probing does");
    rng_init(&rng, 3);
    rng_fill(&rng, buf, sizeof buf);
    pid_t child = fork();
    if (child == 0) {
        int err = storage_nbd_start(st);
        err = err ? err : storage_write(st, buf, 100, sizeof buf, 0);
        err = err ? err : storage_read(st, back, 100, sizeof back);
        _exit(err == 0 && memcmp(buf, back, sizeof buf) == 0 ? 0 : 1);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    end();
}
