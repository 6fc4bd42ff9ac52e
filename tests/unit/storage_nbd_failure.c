/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests NBD exports whose server is killed, hangs, or comes back with another export: requests must
 * fail within a limited time.  The limits are generous: they only prove that nothing hangs. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "nbd_server.h"
#include "scratch.h"
#include "storage/nbd_internal.h"

#define SIZE 1000000u

static struct scratch scratch;
static struct nbd_server server;
static struct storage *st;
static char *disk;
static uint8_t buf[4096];

/* Starts a server on a file, so that written data survives when the server is killed. */
static void serve_file(void)
{
    if (nbd_server_missing("nbdkit"))
        cr_skip_test("nbdkit is not installed");
    scratch_make(&scratch);
    disk = scratch_path(&scratch, "disk");
    FILE *f = fopen(disk, "w");
    cr_assert(f && ftruncate(fileno(f), SIZE) == 0);
    fclose(f);
    nbd_server_nbdkit(&server, &scratch, (const char *const[]){"file", disk, NULL});
    memset(buf, 0x5a, sizeof buf);
}

static void open_it(const struct nbd_open *how)
{
    struct diag diag = {0};

    cr_assert_eq(storage_open_nbd(server.uri, how, &st, &diag), 0, "%s", diag.text);
}

static void end(void)
{
    storage_close(st);
    nbd_server_free(&server);
    scratch_remove(&scratch);
    free(disk);
}

static void nap(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000},
              NULL);
}

static uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int write_it(void)
{
    return storage_write(st, buf, 0, sizeof buf, 0);
}

/* Each test runs with the storage's thread and without it: different code notices the failure. */
#define BOTH(name)                         \
    static void name(bool thread);         \
    Test(nbd_inline, name, .timeout = 120) \
    {                                      \
        name(false);                       \
    }                                      \
    Test(nbd_thread, name, .timeout = 120) \
    {                                      \
        name(true);                        \
    }                                      \
    static void name(bool thread)

static void start_if(bool thread)
{
    if (thread)
        cr_assert_eq(storage_nbd_start(st), 0);
}

/* ---- killed ---- */

BOTH(killed_server_gives_errors)
{
    serve_file();
    open_it(&(struct nbd_open){0});
    start_if(thread);
    cr_assert_eq(write_it(), 0);
    nbd_server_kill(&server);
    for (int i = 0; i < 3; i++) {
        int err = write_it();
        cr_assert(err == -ENOTCONN || err == -EIO, "%d", err);
    }
    cr_assert_not(nbd_of(st)->connected);
    cr_assert_neq(storage_flush(st), 0);
    bool data;
    uint64_t run;
    cr_assert_neq(storage_extent(st, 0, SIZE, &data, &run), 0);
    end();
}

BOTH(restarted_server_is_found_again)
{
    uint8_t back[sizeof buf];

    serve_file();
    open_it(&(struct nbd_open){0});
    start_if(thread);
    cr_assert_eq(write_it(), 0);
    cr_assert_eq(storage_flush(st), 0);
    nbd_server_kill(&server);
    cr_assert_neq(write_it(), 0);
    nbd_server_restart(&server);
    cr_assert_eq(storage_read(st, back, 0, sizeof back), 0);
    cr_assert_eq(memcmp(back, buf, sizeof buf), 0);
    cr_assert(nbd_of(st)->connected);
    cr_assert_eq(write_it(), 0);
    cr_assert_eq(storage_flush(st), 0, "nothing unflushed was lost");
    cr_assert_eq(storage_nbd_losses(st), 0);
    end();
}

BOTH(writes_that_may_be_forgotten_fail_one_flush)
{
    serve_file();
    open_it(&(struct nbd_open){0});
    start_if(thread);
    cr_assert_eq(write_it(), 0);
    nbd_server_kill(&server);
    nbd_server_restart(&server);
    cr_assert_eq(storage_read(st, buf, 0, 1), 0);
    cr_assert_eq(storage_nbd_losses(st), 1);
    cr_assert_eq(storage_flush(st), -EIO);
    cr_assert_eq(storage_flush(st), 0);
    /* A durable write can't be lost. */
    cr_assert_eq(storage_write(st, buf, 0, sizeof buf, STORAGE_FUA), 0);
    nbd_server_kill(&server);
    nbd_server_restart(&server);
    cr_assert_eq(storage_flush(st), 0);
    cr_assert_eq(storage_nbd_losses(st), 1);
    end();
}

static void *write_in_thread(void *opaque)
{
    *(int *)opaque = write_it();
    return NULL;
}

BOTH(a_request_may_wait_for_the_server)
{
    pthread_t writer;
    int err = 1;

    serve_file();
    open_it(&(struct nbd_open){.reconnect_ms = 20000});
    start_if(thread);
    nbd_server_kill(&server);
    pthread_create(&writer, NULL, write_in_thread, &err);
    nap(600);
    nbd_server_restart(&server);
    pthread_join(writer, NULL);
    /* This write may have been the one that noticed that the server is gone. */
    cr_assert(err == 0 || err == -EIO, "%d", err);
    cr_assert_eq(write_it(), 0);
    end();
}

BOTH(lost_for_good_where_reconnecting_is_off)
{
    serve_file();
    open_it(&(struct nbd_open){.no_reconnect = true});
    start_if(thread);
    nbd_server_kill(&server);
    cr_assert_neq(write_it(), 0);
    nbd_server_restart(&server);
    nap(200);
    cr_assert_eq(write_it(), -ENOTCONN);
    end();
}

BOTH(what_comes_back_must_be_the_same)
{
    serve_file();
    open_it(&(struct nbd_open){0});
    start_if(thread);
    nbd_server_kill(&server);
    cr_assert_eq(truncate(disk, SIZE / 2), 0);
    nbd_server_restart(&server);
    cr_assert_neq(write_it(), 0);
    cr_assert_neq(write_it(), 0);
    cr_assert_not(nbd_of(st)->connected);
    nbd_server_kill(&server);
    cr_assert_eq(truncate(disk, SIZE), 0);
    nbd_server_restart(&server);
    cr_assert_eq(write_it(), 0);
    end();
}

Test(nbd_thread, the_thread_notices_by_itself, .timeout = 120)
{
    serve_file();
    open_it(&(struct nbd_open){0});
    cr_assert_eq(storage_nbd_start(st), 0);
    nbd_server_kill(&server);
    for (int i = 0; i < 1000 && nbd_of(st)->connected; i++)
        nap(10);
    cr_assert_not(nbd_of(st)->connected);
    end();
}

/* ---- hanging ---- */

/* How long a server may take to answer, where a test waits for the end of that time. */
#define PATIENCE_MS 1000

/* Writes until the server answers in time: one that was just resumed may need a while on a busy
 * machine. */
static int write_until_answered(void)
{
    int err = -ETIMEDOUT;

    for (int i = 0; err && i < 20; i++)
        err = write_it();
    return err;
}

BOTH(a_hung_server_times_out)
{
    serve_file();
    open_it(&(struct nbd_open){.timeout_ms = PATIENCE_MS});
    start_if(thread);
    cr_assert_eq(write_it(), 0);
    nbd_server_pause(&server);
    uint64_t start = now_ms();
    cr_assert_eq(write_it(), -ETIMEDOUT);
    cr_assert_lt(now_ms() - start, 20000u);
    cr_assert_not(nbd_of(st)->connected);
    /* The next attempt gets only into the kernel's queue of connections. */
    int err = write_it();
    cr_assert(err == -ETIMEDOUT || err == -ENOTCONN, "%d", err);
    cr_assert_lt(now_ms() - start, 40000u);
    nbd_server_resume(&server);
    cr_assert_eq(write_until_answered(), 0);
    end();
}

Test(nbd_inline, opening_a_hung_server_times_out, .timeout = 120)
{
    struct diag diag = {0};

    serve_file();
    nbd_server_pause(&server);
    int err = storage_open_nbd(server.uri, &(struct nbd_open){.timeout_ms = PATIENCE_MS},
                               &st, &diag);
    cr_assert_eq(err, -ETIMEDOUT, "%s", diag.text);
    cr_assert(strstr(diag.text, strerror(ETIMEDOUT)), "%s", diag.text);
    st = NULL;
    end();
}

/* The timeout for connecting may be shorter than that for answers. */
Test(nbd_inline, a_connection_has_a_time_of_its_own, .timeout = 120)
{
    struct diag diag = {0};

    serve_file();
    nbd_server_pause(&server);
    int err = storage_open_nbd(
        server.uri, &(struct nbd_open){.timeout_ms = 600000, .connect_ms = PATIENCE_MS},
        &st, &diag);
    cr_assert_eq(err, -ETIMEDOUT, "%s", diag.text);
    nbd_server_resume(&server);
    open_it(&(struct nbd_open){.timeout_ms = PATIENCE_MS, .connect_ms = 600000});
    nbd_server_kill(&server);
    nbd_server_restart(&server);
    nbd_server_pause(&server);
    err = write_it(); /* the connection is lost and can't be made again in time */
    cr_assert(err == -ETIMEDOUT || err == -ENOTCONN || err == -EIO, "%d", err);
    nbd_server_resume(&server);
    end();
}

BOTH(closing_does_not_wait_for_a_hung_server)
{
    serve_file();
    open_it(&(struct nbd_open){0});
    start_if(thread);
    cr_assert_eq(write_it(), 0);
    nbd_server_pause(&server);
    uint64_t start = now_ms();
    storage_close(st);
    st = NULL;
    cr_assert_lt(now_ms() - start, 15000u);
    end();
}

BOTH(abort_ends_what_waits)
{
    enum { WAITERS = 4 };
    pthread_t waiters[WAITERS];
    int err[WAITERS];

    serve_file();
    open_it(&(struct nbd_open){.timeout_ms = 600000});
    start_if(thread);
    nbd_server_pause(&server);
    for (int i = 0; i < WAITERS; i++)
        pthread_create(&waiters[i], NULL, write_in_thread, &err[i]);
    nap(100);
    uint64_t start = now_ms();
    storage_nbd_abort(st);
    for (int i = 0; i < WAITERS; i++) {
        pthread_join(waiters[i], NULL);
        cr_assert_eq(err[i], -ECANCELED, "%d", err[i]);
    }
    cr_assert_lt(now_ms() - start, 15000u);
    cr_assert_eq(write_it(), -ECANCELED);
    cr_assert_eq(storage_flush(st), -ECANCELED);
    end();
}

/* ---- many in flight ---- */

#define MANY 32

struct batch {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned left, failed;
    struct nbd_request req[MANY];
};

static void batch_done(struct nbd_request *req, int err)
{
    struct batch *batch = req->opaque;

    pthread_mutex_lock(&batch->mutex);
    batch->left--;
    batch->failed += err != 0;
    pthread_cond_signal(&batch->changed);
    pthread_mutex_unlock(&batch->mutex);
}

static void submit_batch(struct batch *batch)
{
    *batch = (struct batch){.left = MANY};
    pthread_mutex_init(&batch->mutex, NULL);
    pthread_cond_init(&batch->changed, NULL);
    for (unsigned i = 0; i < MANY; i++) {
        batch->req[i] = (struct nbd_request){.op = NBD_WRITE,
                                             .off = i * sizeof buf,
                                             .len = sizeof buf,
                                             .buf = buf,
                                             .done = batch_done,
                                             .opaque = batch};
        cr_assert_eq(storage_nbd_submit(st, &batch->req[i]), 0);
    }
}

static void await_batch(struct batch *batch)
{
    pthread_mutex_lock(&batch->mutex);
    while (batch->left > 0)
        pthread_cond_wait(&batch->changed, &batch->mutex);
    pthread_mutex_unlock(&batch->mutex);
}

Test(nbd_batch, each_is_told_when_the_server_dies, .timeout = 120)
{
    static struct batch batch;

    serve_file();
    open_it(&(struct nbd_open){.connections = 4});
    for (int i = 0; i < 5; i++) {
        nbd_server_pause(&server);
        submit_batch(&batch);
        nap(20);
        nbd_server_kill(&server);
        await_batch(&batch);
        cr_assert_gt(batch.failed, 0u);
        nbd_server_restart(&server);
        while (write_it() != 0)
            nap(10);
    }
    end();
}

Test(nbd_batch, each_is_told_when_the_server_hangs, .timeout = 120)
{
    static struct batch batch;

    serve_file();
    open_it(&(struct nbd_open){.connections = 4, .timeout_ms = PATIENCE_MS});
    nbd_server_pause(&server);
    submit_batch(&batch);
    await_batch(&batch);
    cr_assert_eq(batch.failed, MANY);
    nbd_server_resume(&server);
    end();
}

Test(nbd_batch, each_is_told_at_close, .timeout = 120)
{
    static struct batch batch;

    serve_file();
    open_it(&(struct nbd_open){.connections = 2, .timeout_ms = 600000});
    nbd_server_pause(&server);
    submit_batch(&batch);
    storage_close(st);
    st = NULL;
    await_batch(&batch);
    cr_assert_eq(batch.failed, MANY);
    end();
}
