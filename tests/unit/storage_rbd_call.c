/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests requests to librbd that are given up after a deadline, with a fake librbd that
 * answers when the test wants. */
#include "fake_librbd.h"

#define MANY 16

TestSuite(rbd_call, .init = fake_set_up, .fini = fake_tear_down);

static int do_read(char *buf, size_t len, unsigned timeout_ms)
{
    return rbd_call(
        conn, &(struct rbd_request){
                  .op = RBD_OP_READ, .buf = buf, .len = len, .timeout_ms = timeout_ms});
}

static int do_write(unsigned timeout_ms)
{
    const struct iovec iov = {.iov_base = (char[]){"w"}, .iov_len = 1};

    return rbd_call(conn, &(struct rbd_request){.op = RBD_OP_WRITE,
                                                .iov = &iov,
                                                .count = 1,
                                                .len = 1,
                                                .timeout_ms = timeout_ms});
}

/* A caller, which runs on its own thread. */
struct caller {
    pthread_t thread;
    bool writes;
    char buf[8];
    int err;
};

static void *call_main(void *opaque)
{
    struct caller *c = opaque;

    c->err = c->writes ? do_write(LONG) : do_read(c->buf, sizeof c->buf, LONG);
    return NULL;
}

static void start(struct caller *c, bool writes)
{
    *c = (struct caller){.writes = writes};
    cr_assert_eq(pthread_create(&c->thread, NULL, call_main, c), 0);
}

static int end(struct caller *c)
{
    pthread_join(c->thread, NULL);
    return c->err;
}

Test(rbd_call, answers)
{
    struct caller c;

    start(&c, false);
    await_submitted(1);
    answer(0, 8);
    cr_expect_eq(end(&c), 0);
    cr_expect_eq(memcmp(c.buf, "rrrrrrrr", 8), 0);

    start(&c, false); /* a short read: the image has become smaller */
    await_submitted(2);
    answer(1, 3);
    cr_expect_eq(end(&c), 0);
    cr_expect_eq(memcmp(c.buf, "rrr\0\0\0\0\0", 8), 0);

    start(&c, true);
    await_submitted(3);
    answer(2, -ENOSPC);
    cr_expect_eq(end(&c), -ENOSPC);
}

Test(rbd_call, who_has_left_loses_no_memory_to_a_late_answer)
{
    char *buf = malloc(8);

    cr_expect_eq(do_read(buf, 8, 1), -ETIMEDOUT);
    cr_expect_eq(conn->late_bytes, 8);
    free(buf);    /* the caller may free it after the timeout */
    answer(0, 8); /* ASan would report a write to buf */
}

Test(rbd_call, a_change_waits_for_one_that_was_left_behind)
{
    struct caller later;

    cr_expect_eq(do_write(1), -ETIMEDOUT);
    cr_expect_eq(do_write(1), -ETIMEDOUT);
    cr_expect_eq(atomic_load(&n_submitted), 1, "the second was asked for");
    start(&later, true);
    answer(0, 0); /* the late one must come first, however late it is */
    await_submitted(2);
    answer(1, 0);
    cr_expect_eq(end(&later), 0);
}

Test(rbd_call, a_read_does_not_wait_for_a_change)
{
    struct caller c;

    cr_expect_eq(do_write(1), -ETIMEDOUT);
    start(&c, false);
    await_submitted(2);
    answer(1, 8);
    cr_expect_eq(end(&c), 0);
    answer(0, 0);
}

Test(rbd_call, aborting_tells_all)
{
    struct caller waiting, blocked;

    cr_expect_eq(do_write(1), -ETIMEDOUT);
    start(&blocked, true);
    start(&waiting, false);
    await_submitted(2);
    rbd_call_abort_all(conn);
    cr_expect_eq(end(&waiting), -ECANCELED);
    cr_expect_eq(end(&blocked), -ECANCELED);
    cr_expect_eq(do_write(LONG), -ECANCELED);
    answer(1, 8);
    answer(0, 0);
}

/* A resize whose caller has given up may still happen, and would then cut off what was written
 * meanwhile: so later changes wait for it. */
Test(rbd_call, a_resize_that_was_left_behind_is_a_late_change)
{
    struct rbd_storage rbd = {.link = conn, .facts.timeout_ms = 20};
    struct caller later;

    range_lock_init(&rbd.growth, RANK_LEAF);
    atomic_store(&hold_resize, true);
    cr_expect_eq(rbd_grow_to(&rbd, 100), -ETIMEDOUT);
    cr_expect_eq(do_write(1), -ETIMEDOUT);
    cr_expect_eq(rbd_truncate_storage(&rbd.st, 50), -ETIMEDOUT);
    cr_expect_eq(rbd_grow_to(&rbd, 0), -ETIMEDOUT);
    cr_expect_eq(atomic_load(&n_submitted), 0, "a change came before it");
    cr_expect_eq(atomic_load(&n_resizes), 1);
    start(&later, true);
    atomic_store(&hold_resize, false);
    await_submitted(1);
    answer(0, 0);
    cr_expect_eq(end(&later), 0);
    /* The size is asked from the cluster again: growing to a smaller size would cut data off. */
    rbd.facts.timeout_ms = LONG;
    cr_expect_eq(rbd_grow_to(&rbd, 60), 0);
    cr_expect_eq(atomic_load(&n_resizes), 1);
    cr_expect_eq(atomic_load(&rbd.size), 100);
    cr_expect_eq(rbd_truncate_storage(&rbd.st, 60), 0);
    cr_expect_eq(atomic_load(&real_size), 60);
    range_lock_destroy(&rbd.growth);
}

/* A write through the storage's operations. */
struct writer {
    pthread_t thread;
    struct rbd_storage rbd;
    int err;
};

static void *write_main(void *opaque)
{
    struct writer *w = opaque;

    w->err = rbd_ops.pwritev(
        &w->rbd.st, &(struct iovec){.iov_base = (char[]){"w"}, .iov_len = 1}, 1, 99, 0);
    return NULL;
}

/* If the image has just become smaller, librbd leaves out what lies past its end and reports
 * success.  So a write isn't answered as successful while the size is in doubt. */
Test(rbd_call, a_write_that_may_have_been_cut_is_no_success)
{
    struct writer w = {.rbd = {.link = conn, .facts.timeout_ms = LONG, .size = 100}};

    range_lock_init(&w.rbd.growth, RANK_LEAF);
    atomic_store(&real_size, 100);
    cr_assert_eq(pthread_create(&w.thread, NULL, write_main, &w), 0);
    await_submitted(1);
    rbd_doubt_size(conn);
    atomic_store(&fail_size, EIO);
    answer(0, 0);
    pthread_join(w.thread, NULL);
    cr_expect_eq(w.err, -EIO, "%d", w.err);

    /* When the size can be read, the data is written again, and the write succeeds. */
    atomic_store(&fail_size, 0);
    cr_assert_eq(pthread_create(&w.thread, NULL, write_main, &w), 0);
    await_submitted(2);
    atomic_store(&real_size, 50);
    rbd_doubt_size(conn);
    answer(1, 0);
    await_submitted(3);
    cr_expect_eq(atomic_load(&real_size), 100);
    answer(2, 0);
    pthread_join(w.thread, NULL);
    cr_expect_eq(w.err, 0, "%d", w.err);
    range_lock_destroy(&w.rbd.growth);
}

static void *learn_main(void *opaque)
{
    struct writer *w = opaque;

    cr_expect_eq(rbd_learn_size(&w->rbd), 0);
    return NULL;
}

/* While another thread asks for the size after a shrink, the old size still counts as known.  A
 * write that begins in this time must find out that it may have been cut. */
Test(rbd_call, a_write_beside_who_learns_of_a_smaller_size)
{
    struct writer w = {.rbd = {.link = conn, .facts.timeout_ms = LONG, .size = 100}};
    pthread_t learner;

    range_lock_init(&w.rbd.growth, RANK_LEAF);
    atomic_store(&real_size, 50);
    rbd_doubt_size(conn);
    unsigned asked = atomic_load(&n_asked);
    atomic_store(&hold_size, true);
    cr_assert_eq(pthread_create(&learner, NULL, learn_main, &w), 0);
    while (atomic_load(&n_asked) == asked)
        clock_nap_ns(1000000);
    cr_assert_eq(pthread_create(&w.thread, NULL, write_main, &w), 0);
    await_submitted(1);
    atomic_store(&hold_size, false);
    pthread_join(learner, NULL);
    answer(0, 0);
    await_submitted(2);
    cr_expect_eq(atomic_load(&real_size), 100);
    answer(1, 0);
    pthread_join(w.thread, NULL);
    cr_expect_eq(w.err, 0, "%d", w.err);
    range_lock_destroy(&w.rbd.growth);
}

/* However often the size is asked for, only a few threads wait for the cluster. */
Test(rbd_call, a_cluster_that_does_not_answer_costs_few_threads)
{
    struct rbd_storage rbd = {
        .link = conn, .facts = {.timeout_ms = 5, .tells_status = true}, .size = 100};
    uint64_t run;
    bool data;

    range_lock_init(&rbd.growth, RANK_LEAF);
    atomic_store(&n_asked, 0);
    atomic_store(&hold_size, true);
    for (unsigned i = 0; i < 3 * MANY; i++)
        cr_expect_eq(rbd_learn_size(&rbd), -ETIMEDOUT);
    cr_expect_leq(conn->late_tasks, 4);
    cr_expect_eq(rbd_find_extent(&rbd, 0, 10, &data, &run), -ENOTSUP);
    atomic_store(&hold_size, false);
    rbd.facts.timeout_ms = LONG;
    cr_expect_eq(rbd_learn_size(&rbd), 0);
    cr_expect_leq(atomic_load(&n_asked), 5);
    while (rbd_link_is_stuck(conn) || conn->running > 0)
        clock_nap_ns(1000000);
    range_lock_destroy(&rbd.growth);
}

/* ---- requests that wait for others to learn the size ---- */

static int learn(struct rbd_storage *rbd)
{
    return rbd_learn_size(rbd);
}

static int grow(struct rbd_storage *rbd)
{
    return rbd_grow_to(rbd, 200);
}

static int cut(struct rbd_storage *rbd)
{
    return rbd_truncate_storage(&rbd->st, 50);
}

struct asker {
    pthread_t thread;
    struct rbd_storage *rbd;
    int (*ask)(struct rbd_storage *rbd);
    int err;
};

static void *ask_main(void *opaque)
{
    struct asker *a = opaque;

    a->err = a->ask(a->rbd);
    return NULL;
}

static bool somebody_waits(struct range_lock *rl)
{
    LOCK_GUARD(&rl->lock);
    return rl->waiting > 0;
}

/* Each request keeps its own deadline.  Otherwise the last of many would wait for the deadlines of
 * all those before it. */
Test(rbd_call, who_waits_for_his_turn_is_told_in_time)
{
    int (*const asks[])(struct rbd_storage *) = {learn, grow, cut};
    struct rbd_storage rbd = {.link = conn, .facts.timeout_ms = 20, .size = 100};

    range_lock_init(&rbd.growth, RANK_LEAF);
    atomic_store(&n_asked, 0);
    atomic_store(&n_resizes, 0);
    for (size_t i = 0; i < ARRAY_LEN(asks); i++) {
        struct asker a = {.rbd = &rbd, .ask = asks[i]};
        struct locked_range others;
        range_lock_acquire(&rbd.growth, &others, 0, UINT64_MAX, RANGE_EXCLUSIVE);
        cr_assert_eq(pthread_create(&a.thread, NULL, ask_main, &a), 0);
        while (!somebody_waits(&rbd.growth))
            clock_nap_ns(1000000);
        clock_nap_ns(40000000);
        range_lock_release(&others);
        pthread_join(a.thread, NULL);
        cr_expect_eq(a.err, -ETIMEDOUT, "%zu: %d", i, a.err);
    }
    cr_expect_eq(atomic_load(&n_asked), 0);
    cr_expect_eq(atomic_load(&n_resizes), 0);
    range_lock_destroy(&rbd.growth);
}

/* A writer asks for the size first, so that it may learn only there that it is blocklisted. */
Test(rbd_call, that_it_is_blocklisted_is_said_to_who_writes)
{
    struct writer w = {.rbd = {.link = conn, .facts.timeout_ms = LONG, .size = 100}};

    range_lock_init(&w.rbd.growth, RANK_LEAF);
    rbd_doubt_size(conn);
    atomic_store(&fail_size, ESHUTDOWN);
    write_main(&w);
    cr_expect_eq(w.err, -ESHUTDOWN);
    cr_expect(atomic_load(&conn->told_blocked));
    atomic_store(&fail_size, 0);
    range_lock_destroy(&w.rbd.growth);
}
