/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests asynchronous requests to NBD exports: many in flight, split, chained, refused. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbd_server.h"
#include "rng.h"
#include "scratch.h"
#include "storage/nbd.h"

#define SIZE  (8u << 20)
#define CHUNK (64u << 10)
#define COUNT (SIZE / CHUNK)

static struct scratch scratch;
static struct nbd_server server;
static struct storage *st;
static uint8_t data[SIZE], back[SIZE];

/* Waits for the end of several requests. */
struct tally {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned left;
    int err; /* the first error */
};

static void setup(const struct nbd_open *how, const char *const args[])
{
    struct diag diag = {0};
    struct rng rng;

    if (nbd_server_missing("nbdkit"))
        cr_skip_test("nbdkit is not installed");
    scratch_make(&scratch);
    nbd_server_nbdkit(&server, &scratch, args);
    cr_assert_eq(storage_open_nbd(server.uri, how, &st, &diag), 0, "%s", diag.text);
    rng_init(&rng, 5);
    rng_fill(&rng, data, SIZE);
}

#define SETUP(how, ...) setup(how, (const char *const[]){__VA_ARGS__, NULL})

static void end(void)
{
    storage_close(st);
    nbd_server_free(&server);
    scratch_remove(&scratch);
}

static void tally_init(struct tally *tally, unsigned n)
{
    *tally = (struct tally){.left = n};
    pthread_mutex_init(&tally->mutex, NULL);
    pthread_cond_init(&tally->changed, NULL);
}

static void count_down(struct tally *tally, int err)
{
    pthread_mutex_lock(&tally->mutex);
    tally->err = tally->err ? tally->err : err;
    tally->left--;
    pthread_cond_signal(&tally->changed);
    pthread_mutex_unlock(&tally->mutex);
}

static int await(struct tally *tally)
{
    pthread_mutex_lock(&tally->mutex);
    while (tally->left > 0)
        pthread_cond_wait(&tally->changed, &tally->mutex);
    pthread_mutex_unlock(&tally->mutex);
    return tally->err;
}

static void done(struct nbd_request *req, int err)
{
    count_down(req->opaque, err);
}

static int run(struct nbd_request *req)
{
    struct tally tally;

    tally_init(&tally, 1);
    req->done = done;
    req->opaque = &tally;
    int err = storage_nbd_submit(st, req);
    return err ? err : await(&tally);
}

/* ---- many ---- */

static struct nbd_request requests[COUNT];

static void all_at_once(enum nbd_op op, uint8_t *buf, unsigned flags)
{
    struct tally tally;

    tally_init(&tally, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        requests[i] = (struct nbd_request){.op = op,
                                           .flags = flags,
                                           .off = i * CHUNK,
                                           .len = CHUNK,
                                           .buf = buf ? buf + i * CHUNK : NULL,
                                           .done = done,
                                           .opaque = &tally};
        cr_assert_eq(storage_nbd_submit(st, &requests[i]), 0);
    }
    cr_assert_eq(await(&tally), 0);
}

static void write_zero_and_read(void)
{
    all_at_once(NBD_WRITE, data, 0);
    all_at_once(NBD_READ, back, 0);
    cr_assert_eq(memcmp(data, back, SIZE), 0);
    all_at_once(NBD_ZERO, NULL, STORAGE_MAY_UNMAP);
    all_at_once(NBD_READ, back, 0);
    memset(data, 0, SIZE);
    cr_assert_eq(memcmp(data, back, SIZE), 0);
}

Test(nbd_async, many_in_flight, .timeout = 120)
{
    SETUP(&(struct nbd_open){0}, "memory", "8M");
    write_zero_and_read();
    end();
}

Test(nbd_async, over_a_slow_server, .timeout = 120)
{
    SETUP(&(struct nbd_open){.connections = 4}, "--filter=delay", "--filter=rate", "memory",
          "8M", "delay-read=3ms", "delay-write=3ms", "delay-zero=3ms", "rate=800M");
    write_zero_and_read();
    end();
}

static unsigned connections_in(const char *path)
{
    char line[1024];
    unsigned n = 0;
    FILE *f = fopen(path, "r");

    cr_assert_not_null(f);
    while (fgets(line, sizeof line, f))
        n += strstr(line, " Connect ") != NULL;
    fclose(f);
    return n;
}

Test(nbd_async, several_connections, .timeout = 120)
{
    char log[300], arg[320];

    scratch_make(&scratch); /* for the log; SETUP makes another one */
    struct scratch place = scratch;
    snprintf(log, sizeof log, "%s/log", place.dir);
    snprintf(arg, sizeof arg, "logfile=%s", log);
    SETUP(&(struct nbd_open){.connections = 4}, "--filter=log", "--filter=delay", "memory",
          "8M", arg, "delay-write=10ms");
    for (int i = 0; i < 20 && connections_in(log) < 4; i++)
        all_at_once(NBD_WRITE, data, STORAGE_FUA);
    cr_assert_eq(connections_in(log), 4);
    all_at_once(NBD_READ, back, 0);
    cr_assert_eq(memcmp(data, back, SIZE), 0);
    cr_assert_eq(run(&(struct nbd_request){.op = NBD_FLUSH}), 0);
    end();
    scratch_remove(&place);
}

/* ---- one by one ---- */

Test(nbd_async, larger_than_the_server_takes, .timeout = 120)
{
    SETUP(&(struct nbd_open){0}, "--filter=blocksize-policy", "memory", "8M",
          "blocksize-maximum=64K", "blocksize-error-policy=error");
    cr_assert_eq(storage_nbd_info(st)->max_block, 64u << 10);
    struct nbd_request write = {
        .op = NBD_WRITE, .flags = STORAGE_FUA, .len = SIZE, .buf = data};
    cr_assert_eq(run(&write), 0);
    struct nbd_request read = {.op = NBD_READ, .len = SIZE, .buf = back};
    cr_assert_eq(run(&read), 0);
    cr_assert_eq(memcmp(data, back, SIZE), 0);
    end();
}

Test(nbd_async, fua_becomes_one_flush_at_the_end, .timeout = 120)
{
    SETUP(&(struct nbd_open){0}, "--filter=fua", "memory", "8M");
    cr_assert_not(storage_nbd_info(st)->can_fua);
    struct nbd_request write = {
        .op = NBD_WRITE, .flags = STORAGE_FUA, .len = SIZE, .buf = data};
    cr_assert_eq(run(&write), 0);
    end();
}

Test(nbd_async, status_in_runs, .timeout = 120)
{
    struct nbd_run runs[16];
    struct nbd_request req = {.op = NBD_STATUS, .len = SIZE, .runs = runs, .max_runs = 16};

    SETUP(&(struct nbd_open){0}, "memory", "8M");
    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(storage_write(st, data, (1 + 2 * i) << 20, 1 << 20, 0), 0);
    cr_assert_eq(run(&req), 0);
    cr_assert_geq(req.n_runs, 7u);
    uint64_t total = 0;
    for (unsigned i = 0; i < req.n_runs; i++) {
        cr_assert_eq(runs[i].zero, i % 2 == 0 || i > 5, "run %u", i);
        total += runs[i].length;
    }
    cr_assert_eq(total, SIZE);
    req.max_runs = 1;
    cr_assert_eq(run(&req), 0);
    cr_assert(req.n_runs == 1 && runs[0].zero && runs[0].length == 1u << 20);
    end();
}

Test(nbd_async, status_where_there_is_none, .timeout = 120)
{
    struct nbd_run answer;
    struct nbd_request req = {
        .op = NBD_STATUS, .len = SIZE, .runs = &answer, .max_runs = 1};

    /* A server without structured replies has no block status. */
    SETUP(&(struct nbd_open){0}, "--no-sr", "memory", "8M");
    cr_assert_not(storage_nbd_info(st)->has_status);
    cr_assert_eq(run(&req), 0);
    cr_assert(req.n_runs == 1 && !answer.zero && !answer.hole && answer.length == SIZE);
    bool is_data;
    uint64_t length;
    cr_assert_eq(storage_extent(st, 5, 100, &is_data, &length), 0);
    cr_assert(is_data && length == 100);
    end();
}

Test(nbd_async, refusals, .timeout = 120)
{
    SETUP(&(struct nbd_open){0}, "--filter=blocksize-policy", "--filter=nozero", "memory",
          "8M", "blocksize-minimum=4096", "blocksize-error-policy=error");
    const struct {
        struct nbd_request req;
        int err;
    } cases[] = {
        {{.op = NBD_READ, .len = 0, .buf = back}, -EINVAL},
        {{.op = NBD_READ, .len = 512, .buf = back}, -EINVAL},
        {{.op = NBD_READ, .off = 512, .len = 4096, .buf = back}, -EINVAL},
        {{.op = NBD_READ, .off = SIZE, .len = 4096, .buf = back}, -EINVAL},
        {{.op = NBD_READ, .off = UINT64_MAX - 4095, .len = 4096, .buf = back}, -EINVAL},
        {{.op = NBD_READ, .len = 4096, .buf = back, .flags = STORAGE_FUA}, -EINVAL},
        {{.op = NBD_WRITE, .len = 4096, .buf = data, .flags = STORAGE_FAST}, -EINVAL},
        {{.op = NBD_STATUS, .len = 4096}, -EINVAL},
        {{.op = NBD_ZERO, .len = 4096}, -ENOTSUP},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct nbd_request req = cases[i].req;
        cr_expect_eq(storage_nbd_submit(st, &req), cases[i].err, "case %zu", i);
    }
    end();
}

/* ---- from a callback ---- */

struct chain {
    struct nbd_request req;
    struct tally tally;
    unsigned steps;
};

static void next_step(struct nbd_request *req, int err)
{
    struct chain *chain = req->opaque;

    if (!err && --chain->steps > 0) {
        req->off = (req->off + CHUNK) % SIZE;
        err = storage_nbd_submit(st, req);
        if (!err)
            return;
    }
    count_down(&chain->tally, err);
}

Test(nbd_async, a_callback_may_submit, .timeout = 120)
{
    static struct chain chain;

    SETUP(&(struct nbd_open){.connections = 2}, "memory", "8M");
    chain.steps = 1000;
    chain.req = (struct nbd_request){
        .op = NBD_WRITE, .len = CHUNK, .buf = data, .done = next_step, .opaque = &chain};
    tally_init(&chain.tally, 1);
    cr_assert_eq(storage_nbd_submit(st, &chain.req), 0);
    cr_assert_eq(await(&chain.tally), 0);
    cr_assert_eq(chain.steps, 0);
    end();
}

static void freed(struct nbd_request *req, int err)
{
    struct tally *tally = req->opaque;

    free(req);
    count_down(tally, err);
}

Test(nbd_async, a_callback_may_free, .timeout = 120)
{
    struct tally tally;

    SETUP(&(struct nbd_open){0}, "memory", "8M");
    tally_init(&tally, 100);
    for (int i = 0; i < 100; i++) {
        struct nbd_request *req = calloc(1, sizeof *req);
        *req = (struct nbd_request){.op = NBD_FLUSH, .done = freed, .opaque = &tally};
        cr_assert_eq(storage_nbd_submit(st, req), 0);
    }
    cr_assert_eq(await(&tally), 0);
    storage_prefetch(st, 1, 100000); /* only the close waits for it */
    end();
}
