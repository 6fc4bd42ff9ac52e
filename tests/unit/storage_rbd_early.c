/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests "early" writes to RBD, which are answered before the cluster has them: the
 * rules E1 to E5 of rbd_early.c. */
#include "fake_librbd.h"

#include "rng.h"

TestSuite(rbd_early, .init = fake_set_up, .fini = fake_tear_down);

#define SECTOR 16u

static struct rbd_storage *open_early(void)
{
    static struct rbd_storage rbd;
    static char name[] = "rbd:p/i";

    rbd = (struct rbd_storage){.st = {.ops = &rbd_ops, .name = name, .keeps_writes = true},
                               .early = true,
                               .link = conn,
                               .facts.timeout_ms = LONG,
                               .size = FAKE_BYTES};
    range_lock_init(&rbd.growth, RANK_LEAF);
    atomic_store(&real_size, FAKE_BYTES);
    return &rbd;
}

static int write_sectors(struct rbd_storage *rbd, char byte, unsigned first, unsigned n)
{
    char bytes[FAKE_BYTES];

    memset(bytes, byte, n * SECTOR);
    return storage_write(&rbd->st, bytes, first * SECTOR, n * SECTOR, 0);
}

/* Writes sectors from 0 on until the list of early writes is full.  Returns how many. */
static unsigned fill_list(struct rbd_storage *rbd)
{
    unsigned n = 0;

    while (!conn->early.full)
        cr_assert_eq(write_sectors(rbd, 'a', n++, 1), 0);
    cr_expect_leq(n, FAKE_BYTES / SECTOR);
    return n;
}

/* A client's request, on its own thread, as it may have to wait. */
struct client {
    pthread_t thread;
    struct rbd_storage *rbd;
    char what; /* 'r'ead, 'f'lush, 'd'iscard, or the byte to write ('F': with FUA) */
    unsigned sector;
    unsigned flags;
    char buf[SECTOR];
    _Atomic bool done;
    int err;
};

static void *client_main(void *opaque)
{
    struct client *c = opaque;
    struct storage *st = &c->rbd->st;
    const uint64_t off = c->sector * SECTOR;

    if (c->what == 'f') {
        c->err = storage_flush(st);
    } else if (c->what == 'd') {
        c->err = storage_discard(st, off, SECTOR);
    } else if (c->what == 'r') {
        c->err = storage_read(st, c->buf, off, SECTOR);
    } else {
        memset(c->buf, c->what, SECTOR);
        c->err = storage_write(st, c->buf, off, SECTOR, c->flags);
    }
    atomic_store(&c->done, true);
    return NULL;
}

static void begin(struct client *c, struct rbd_storage *rbd, char what, unsigned sector)
{
    *c = (struct client){
        .rbd = rbd, .what = what, .sector = sector, .flags = what == 'F' ? STORAGE_FUA : 0};
    cr_assert_eq(pthread_create(&c->thread, NULL, client_main, c), 0);
}

static int end(struct client *c)
{
    pthread_join(c->thread, NULL);
    return c->err;
}

static void expect_waits(const struct client *c)
{
    clock_nap_ns(20000000);
    cr_expect(!atomic_load(&c->done), "it didn't wait");
}

Test(rbd_early, a_write_is_answered_when_it_is_under_way)
{
    struct rbd_storage *rbd = open_early();

    cr_expect_eq(write_sectors(rbd, 'a', 0, 1), 0);
    cr_expect_eq(write_sectors(rbd, 'b', 1, 1), 0);
    cr_expect_eq(atomic_load(&n_submitted), 2);
    cr_expect(rbd_early_any(conn));
    answer(1, 0);
    answer(0, 0);
    cr_expect(!rbd_early_any(conn));
    cr_expect_eq(fake_image[0], 'a');
    cr_expect_eq(fake_image[SECTOR], 'b');
}

Test(rbd_early, what_overlaps_waits)
{
    struct rbd_storage *rbd = open_early();
    struct client read, write, other;

    cr_expect_eq(write_sectors(rbd, 'a', 4, 1), 0);
    begin(&read, rbd, 'r', 4);
    begin(&write, rbd, 'b', 4);
    begin(&other, rbd, 'r', 5);
    await_submitted(2);
    expect_waits(&read);
    expect_waits(&write);
    cr_expect_eq(atomic_load(&n_submitted), 2);
    answer(1, SECTOR);
    cr_expect_eq(end(&other), 0);
    cr_expect_eq(other.buf[0], 'r');
    answer(0, 0);
    cr_expect_eq(end(&write), 0);
    await_submitted(3);
    for (unsigned n = 2; !atomic_load(&read.done) || rbd_early_any(conn); n++) {
        await_submitted(n + 1);
        answer(n, fake_submitted[n]->op == RBD_OP_READ ? (ssize_t)SECTOR : 0);
        clock_nap_ns(20000000);
    }
    cr_expect_eq(end(&read), 0);
    cr_expect(read.buf[0] == 'a' || read.buf[0] == 'b');
    cr_expect_eq(fake_image[4 * SECTOR], 'b');
}

Test(rbd_early, a_flush_waits_for_what_was_answered_before)
{
    struct rbd_storage *rbd = open_early();
    struct client flush;

    cr_expect_eq(write_sectors(rbd, 'a', 0, 1), 0);
    begin(&flush, rbd, 'f', 0);
    expect_waits(&flush);
    cr_expect_eq(write_sectors(rbd, 'b', 1, 1), 0, "a write that comes later doesn't wait");
    answer(0, 0);
    await_submitted(3); /* the flush was passed on to librbd */
    answer(2, 0);
    cr_expect_eq(end(&flush), 0, "it waited for one that came later");
    answer(1, 0);
}

Test(rbd_early, a_write_that_is_to_be_durable_waits)
{
    struct rbd_storage *rbd = open_early();
    struct client write;

    begin(&write, rbd, 'F', 0);
    await_submitted(1);
    expect_waits(&write);
    answer(0, 0);
    await_submitted(2); /* the flush */
    answer(1, 0);
    cr_expect_eq(end(&write), 0);
}

Test(rbd_early, there_is_room_for_so_many)
{
    struct rbd_storage *rbd = open_early();
    struct client late;
    unsigned n = fill_list(rbd);

    begin(&late, rbd, 'b', n);
    expect_waits(&late);
    for (unsigned i = 0; i < n; i++)
        answer(i, 0);
    cr_expect_eq(end(&late), 0);
    answer(n, 0);
}

Test(rbd_early, what_failed_stays_and_is_tried_again)
{
    struct rbd_storage *rbd = open_early();
    struct client flush, read, write;

    cr_expect_eq(write_sectors(rbd, 'a', 0, 1), 0);
    answer(0, -ENOSPC);
    cr_expect_eq(fake_image[0], 'r');

    begin(&read, rbd, 'r', 0); /* a read gets the bytes of the failed write */
    await_submitted(2);
    answer(1, SECTOR);
    cr_expect_eq(end(&read), 0);
    cr_expect_eq(read.buf[0], 'a');

    begin(&flush, rbd, 'f', 0); /* a flush tries again and fails with the same error */
    await_submitted(3);
    answer(2, -ENOSPC);
    cr_expect_eq(end(&flush), -ENOSPC);

    begin(&write, rbd, 'b', 9); /* so does a write to another sector */
    await_submitted(4);
    answer(3, -ENOSPC);
    cr_expect_eq(end(&write), -ENOSPC);
    cr_expect_eq(atomic_load(&n_submitted), 4, "it was made");

    begin(&flush, rbd, 'f', 0); /* when there is space, a flush succeeds */
    await_submitted(5);
    answer(4, 0);
    await_submitted(6);
    answer(5, 0);
    cr_expect_eq(end(&flush), 0);
    cr_expect_eq(fake_image[0], 'a');
    cr_expect(!rbd_early_any(conn));
}

/* Failed early writes stay in the list.  If all have failed, a new write fails with their error. */
Test(rbd_early, when_all_have_failed_a_write_is_told_why)
{
    struct rbd_storage *rbd = open_early();
    struct client write;
    unsigned n = fill_list(rbd);

    begin(&write, rbd, 'b', n);
    expect_waits(&write);
    for (unsigned i = 0; i < n; i++)
        answer(i, -ENOSPC);
    cr_expect_eq(end(&write), -ENOSPC);
    begin(&write, rbd, 'b', n);
    await_submitted(n + 1);
    answer(n, -ENOSPC);
    cr_expect_eq(end(&write), -ENOSPC);
}

/* A read has got old bytes from the cluster; then another request's retry of the failed write
 * succeeds, so that the read doesn't find the early write in the list any more.  It must ask the
 * cluster again. */
Test(rbd_early, a_read_beside_the_success_of_another_try)
{
    struct rbd_storage *rbd = open_early();
    struct client read, flush;

    cr_expect_eq(write_sectors(rbd, 'a', 0, 1), 0);
    answer(0, -ENOSPC);
    begin(&read, rbd, 'r', 0);
    await_submitted(2); /* librbd has read the old bytes, but hasn't answered yet */
    memset(fake_submitted[1]->buf, 'r', SECTOR);
    begin(&flush, rbd, 'f', 0);
    await_submitted(3);
    answer(2, 0);
    await_submitted(4);
    answer(3, 0);
    cr_expect_eq(end(&flush), 0);
    fake_submitted[1]->result = SECTOR; /* it answers only now */
    fake_submitted[1]->callback(fake_submitted[1], fake_submitted[1]->opaque);
    await_submitted(5); /* the cluster is asked again */
    answer(4, SECTOR);
    cr_expect_eq(end(&read), 0);
    cr_expect_eq(read.buf[0], 'a');
}

/* If the image has just become smaller, librbd leaves out what lies past its end and reports
 * success: the write has to be made again. */
Test(rbd_early, one_that_may_have_been_cut_is_made_again)
{
    struct rbd_storage *rbd = open_early();
    struct client flush;

    cr_expect_eq(write_sectors(rbd, 'a', 9, 1), 0);
    atomic_store(&real_size, SECTOR);
    rbd_doubt_size(conn);
    answer(0, 0);
    memset(fake_image, 0, sizeof fake_image);
    begin(&flush, rbd, 'f', 0);
    await_submitted(2);
    cr_expect_geq(atomic_load(&real_size), 10 * SECTOR, "it has no place");
    answer(1, 0);
    await_submitted(3);
    answer(2, 0);
    cr_expect_eq(end(&flush), 0);
    cr_expect_eq(fake_image[9 * SECTOR], 'a');
}

/* As if another client had cut the image in the middle of that sector. */
static void cut_in_the_middle_of(unsigned sector)
{
    atomic_store(&real_size, sector * SECTOR + SECTOR / 2);
    memset(fake_image + real_size, 0, FAKE_BYTES - real_size);
    rbd_doubt_size(conn);
}

static void flush_again(struct rbd_storage *rbd, unsigned first)
{
    struct client flush;

    begin(&flush, rbd, 'f', 0);
    await_submitted(first + 1);
    answer(first, 0);
    await_submitted(first + 2);
    answer(first + 1, 0);
    cr_expect_eq(end(&flush), 0);
    cr_expect(!rbd_early_any(conn));
}

/* The write must be made again even if another request has learned the smaller size meanwhile. */
Test(rbd_early, one_that_was_cut_while_others_ask_for_the_size)
{
    struct rbd_storage *rbd = open_early();

    cr_expect_eq(write_sectors(rbd, 'a', 9, 1), 0);
    cut_in_the_middle_of(9);
    cr_expect_eq(rbd_learn_size(rbd), 0);
    answer(0, 0);
    cr_expect(rbd_early_any(conn), "it is taken for written");
    flush_again(rbd, 1);
    cr_expect_eq(fake_image[10 * SECTOR - 1], 'a');
}

/* The same if the sector, of which a part is left, is read. */
Test(rbd_early, one_that_was_cut_is_read)
{
    struct rbd_storage *rbd = open_early();
    struct client read;

    cr_expect_eq(write_sectors(rbd, 'a', 9, 1), 0);
    cut_in_the_middle_of(9);
    answer(0, 0);
    cr_expect_eq(rbd_learn_size(rbd), 0);
    begin(&read, rbd, 'r', 9); /* past the end: the write is made again first */
    await_submitted(2);
    cr_expect_eq(fake_submitted[1]->op, RBD_OP_WRITE);
    cr_expect_eq(atomic_load(&real_size), 10 * SECTOR);
    answer(1, 0);
    await_submitted(3);
    answer(2, 0);
    await_submitted(4);
    answer(3, SECTOR);
    cr_expect_eq(end(&read), 0);
    cr_expect_eq(memcmp(read.buf, (char[SECTOR]){[0 ... SECTOR - 1] = 'a'}, SECTOR), 0);
}

/* Discards make space in a full cluster, so they are passed on although a write has failed. */
Test(rbd_early, other_discards_are_made_beside_what_failed)
{
    struct rbd_storage *rbd = open_early();
    struct client discard;

    cr_expect_eq(write_sectors(rbd, 'a', 0, 1), 0);
    answer(0, -ENOSPC);
    begin(&discard, rbd, 'd', 5);
    await_submitted(2);
    cr_expect_eq(fake_submitted[1]->op, RBD_OP_DISCARD);
    answer(1, 0);
    cr_expect_eq(end(&discard), 0);
    begin(&discard, rbd, 'd', 0);
    await_submitted(3);
    cr_expect_eq(fake_submitted[2]->op, RBD_OP_WRITE, "it would be undone");
    answer(2, 0);
    await_submitted(4);
    answer(3, 0);
    cr_expect_eq(end(&discard), 0);
    cr_expect_eq(fake_image[0], 0);
}

Test(rbd_early, a_smaller_image_stays_smaller)
{
    struct rbd_storage *rbd = open_early();

    cr_expect_eq(write_sectors(rbd, 'a', 9, 1), 0);
    answer(0, -ENOSPC);
    rbd->facts.timeout_ms = 1;
    cr_expect_eq(rbd_truncate_storage(&rbd->st, SECTOR), -ETIMEDOUT);
    cr_expect_eq(atomic_load(&real_size), FAKE_BYTES);
    answer(1, 0);
}

Test(rbd_early, of_a_cluster_that_does_not_answer_all_are_told)
{
    struct rbd_storage *rbd = open_early();
    struct client write;
    char byte;

    cr_expect_eq(write_sectors(rbd, 'a', 0, 1), 0);
    for (unsigned i = 0; i < 11; i++)
        clock_nap_ns(100000000);
    rbd->facts.timeout_ms = 50;
    cr_expect_eq(write_sectors(rbd, 'b', 1, 1), -ETIMEDOUT);
    answer(0, 0);
    answer(1, 0);
    cr_expect_eq(storage_read(&rbd->st, &byte, 0, 1), -ETIMEDOUT);
    cr_expect_eq(write_sectors(rbd, 'b', 1, 1), -ETIMEDOUT);
    answer(2, 1);
    answer(3, 0);
    rbd->facts.timeout_ms = LONG;
    begin(&write, rbd, 'b', 1);
    await_submitted(5);
    cr_expect_eq(end(&write), 0, "it answers again");
    answer(4, 0);
}

Test(rbd_early, aborting_tells_who_waits)
{
    struct rbd_storage *rbd = open_early();
    struct client flush, write;
    unsigned n = fill_list(rbd);

    begin(&flush, rbd, 'f', 0);
    begin(&write, rbd, 'b', n);
    expect_waits(&flush);
    expect_waits(&write);
    rbd_call_abort_all(conn);
    cr_expect_eq(end(&flush), -ECANCELED);
    cr_expect_eq(end(&write), -ECANCELED);
    for (unsigned i = 0; i < n; i++)
        answer(i, 0);
}

/* ---- random requests against a model ---- */

static _Atomic bool cluster_ends, cluster_is_full, cluster_is_moody;

/* Either reports that the image's size may have changed, or doesn't answer for longer than some
 * deadlines. */
static void be_moody(struct rng *rng)
{
    if (rng_below(rng, 2))
        rbd_doubt_size(conn);
    else
        clock_nap_ns(5000000);
}

/* The fake cluster: answers requests in random order.  While it is full, writes often fail. */
static void *cluster_main(void *opaque)
{
    static bool answered[FAKE_MANY];
    struct rng rng;
    unsigned first = 0;

    rng_init(&rng, (uintptr_t)opaque);
    memset(answered, 0, sizeof answered);
    while (!atomic_load(&cluster_ends) || first < atomic_load(&n_submitted)) {
        unsigned n = atomic_load(&n_submitted);
        if (first == n) {
            clock_nap_ns(20000);
            continue;
        }
        unsigned i = first + (unsigned)rng_below(&rng, n - first);
        if (atomic_load(&cluster_is_moody) && rng_below(&rng, 100) == 0)
            be_moody(&rng);
        if (!answered[i]) {
            struct fake_pending *p = fake_submitted[i];
            bool fails = p->op == RBD_OP_WRITE && atomic_load(&cluster_is_full) &&
                         rng_below(&rng, 4) > 0;
            answered[i] = true;
            fake_answer_one(p, fails                  ? -ENOSPC
                               : p->op == RBD_OP_READ ? (ssize_t)p->len
                                                      : 0);
        }
        while (first < n && answered[first])
            first++;
    }
    return NULL;
}

static void expect_read(struct rbd_storage *rbd, const char *model, unsigned sector,
                        unsigned n)
{
    char buf[FAKE_BYTES];

    cr_assert_eq(storage_read(&rbd->st, buf, sector * SECTOR, n * SECTOR), 0);
    cr_assert_eq(memcmp(buf, model + sector * SECTOR, n * SECTOR), 0, "sector %u", sector);
}

static void do_something(struct rbd_storage *rbd, char *model, struct rng *rng)
{
    unsigned sector = (unsigned)rng_below(rng, FAKE_BYTES / SECTOR - 4);
    unsigned n = 1 + (unsigned)rng_below(rng, 4);
    char byte = (char)('A' + rng_below(rng, 50));

    switch (rng_below(rng, 20)) {
    case 0:
        atomic_store(&cluster_is_full, rng_below(rng, 3) == 0);
        break;
    case 1:
        if (storage_flush(&rbd->st) == 0)
            cr_assert_eq(memcmp(fake_image, model, FAKE_BYTES), 0, "flushed");
        break;
    case 2:
        if (storage_zero(&rbd->st, sector * SECTOR, n * SECTOR, STORAGE_MAY_UNMAP) == 0)
            memset(model + sector * SECTOR, 0, n * SECTOR);
        break;
    case 3 ... 9:
        expect_read(rbd, model, sector, n);
        break;
    default:
        if (write_sectors(rbd, byte, sector, n) == 0)
            memset(model + sector * SECTOR, byte, n * SECTOR);
    }
}

Test(rbd_early, as_a_model)
{
    for (unsigned seed = 1; seed <= 20; seed++) {
        struct rbd_storage *rbd = open_early();
        char model[FAKE_BYTES];
        struct rng rng;
        pthread_t cluster;

        rng_init(&rng, seed);
        memcpy(model, fake_image, sizeof model);
        atomic_store(&cluster_ends, false);
        atomic_store(&n_submitted, 0);
        atomic_store(&fake_created, 0);
        cr_assert_eq(pthread_create(&cluster, NULL, cluster_main, (void *)(uintptr_t)seed),
                     0);
        for (unsigned i = 0; i < 1000; i++)
            do_something(rbd, model, &rng);
        atomic_store(&cluster_is_full, false);
        cr_assert_eq(storage_flush(&rbd->st), 0);
        cr_assert_eq(memcmp(fake_image, model, FAKE_BYTES), 0);
        atomic_store(&cluster_ends, true);
        pthread_join(cluster, NULL);
        range_lock_destroy(&rbd->growth);
    }
}

/* ---- several clients at once, each with a part of the image ---- */

#define CLIENTS 4u
#define PART    (FAKE_BYTES / SECTOR / CLIENTS) /* sectors of each client */

/* A client and the expected content of its part.  After an error a sector may be old or new, and
 * may even change later: it is unknown until it is written again. */
struct owner {
    pthread_t thread;
    struct rbd_storage *rbd;
    struct rng rng;
    unsigned first; /* its first sector */
    char model[PART * SECTOR];
    bool unknown[PART];
};

static void note(struct owner *o, unsigned sector, unsigned n, char byte, int err)
{
    memset(o->model + sector * SECTOR, byte, n * SECTOR);
    for (unsigned i = sector; i < sector + n; i++)
        o->unknown[i] = err != 0;
}

/* Compares the n sectors from `sector` (counted in the part) with `bytes`, except unknown ones. */
static void expect_known(const struct owner *o, const char *bytes, unsigned sector,
                         unsigned n, const char *what)
{
    for (unsigned i = 0; i < n; i++)
        cr_assert(
            o->unknown[sector + i] ||
                memcmp(bytes + i * SECTOR, o->model + (sector + i) * SECTOR, SECTOR) == 0,
            "%s: sector %u", what, o->first + sector + i);
}

static void read_part(struct owner *o, unsigned sector, unsigned n)
{
    char buf[FAKE_BYTES];

    if (storage_read(&o->rbd->st, buf, (o->first + sector) * SECTOR, n * SECTOR) == 0)
        expect_known(o, buf, sector, n, "read");
}

/* Cuts the image: only the last client can, as its part ends with the image. */
static void cut_part(struct owner *o, unsigned sector)
{
    if (o->first + PART == FAKE_BYTES / SECTOR)
        note(o, sector, PART - sector, 0,
             storage_truncate(&o->rbd->st, (o->first + sector) * SECTOR));
}

static void change_part(struct owner *o, unsigned sector, unsigned n)
{
    struct storage *st = &o->rbd->st;
    const uint64_t off = (o->first + sector) * SECTOR;
    char byte = (char)('A' + rng_below(&o->rng, 50));
    char bytes[PART * SECTOR];

    memset(bytes, byte, n * SECTOR);
    switch (rng_below(&o->rng, 12)) {
    case 0:
        note(o, sector, n, 0, storage_zero(st, off, n * SECTOR, STORAGE_MAY_UNMAP));
        break;
    case 1:
        note(o, sector, n, 0, storage_discard(st, off, n * SECTOR));
        break;
    case 2:
        cut_part(o, sector);
        break;
    case 3:
        note(o, sector, n, byte, storage_write(st, bytes, off, n * SECTOR, STORAGE_FUA));
        break;
    default:
        note(o, sector, n, byte, storage_write(st, bytes, off, n * SECTOR, 0));
    }
}

static void *owner_main(void *opaque)
{
    struct owner *o = opaque;

    for (unsigned i = 0; i < 500; i++) {
        unsigned sector = (unsigned)rng_below(&o->rng, PART - 4);
        unsigned n = 1 + (unsigned)rng_below(&o->rng, 4);
        switch (rng_below(&o->rng, 20)) {
        case 0:
            atomic_store(&cluster_is_full, rng_below(&o->rng, 3) == 0);
            break;
        case 1:
            if (storage_flush(&o->rbd->st) == 0)
                expect_known(o, fake_image + o->first * SECTOR, 0, PART, "flushed");
            break;
        case 2 ... 7:
            read_part(o, sector, n);
            break;
        default:
            change_part(o, sector, n);
        }
    }
    return NULL;
}

static void settle_all(struct rbd_storage *rbd, const struct owner *owners)
{
    atomic_store(&cluster_is_full, false);
    atomic_store(&cluster_is_moody, false);
    rbd->facts.timeout_ms = LONG;
    if (storage_flush(&rbd->st) != 0) /* the first may still report an earlier failure */
        cr_assert_eq(storage_flush(&rbd->st), 0);
    cr_assert(!rbd_early_any(conn));
    for (unsigned i = 0; i < CLIENTS; i++)
        expect_known(&owners[i], fake_image + owners[i].first * SECTOR, 0, PART,
                     "at the end");
}

static void run_owners(struct rbd_storage *rbd, unsigned seed, unsigned timeout_ms)
{
    static struct owner owners[CLIENTS];

    rbd->facts.timeout_ms = timeout_ms;
    for (unsigned i = 0; i < CLIENTS; i++) {
        owners[i] = (struct owner){.rbd = rbd, .first = i * PART};
        rng_init(&owners[i].rng, seed * CLIENTS + i);
        memcpy(owners[i].model, fake_image + i * PART * SECTOR, PART * SECTOR);
    }
    for (unsigned i = 0; i < CLIENTS; i++)
        cr_assert_eq(pthread_create(&owners[i].thread, NULL, owner_main, &owners[i]), 0);
    for (unsigned i = 0; i < CLIENTS; i++)
        pthread_join(owners[i].thread, NULL);
    settle_all(rbd, owners);
}

static bool link_runs(void)
{
    LOCK_GUARD(&conn->lock);
    return conn->running > 0;
}

/* Deadlines pass, and the cluster reports that the size may have changed. */
Test(rbd_early, as_a_model_of_several_clients)
{
    for (unsigned seed = 1; seed <= 20; seed++) {
        struct rbd_storage *rbd = open_early();
        pthread_t cluster;

        atomic_store(&cluster_is_moody, true);
        atomic_store(&cluster_ends, false);
        atomic_store(&n_submitted, 0);
        atomic_store(&fake_created, 0);
        cr_assert_eq(pthread_create(&cluster, NULL, cluster_main, (void *)(uintptr_t)seed),
                     0);
        run_owners(rbd, seed, seed % 2 ? LONG : 2);
        atomic_store(&cluster_ends, true);
        pthread_join(cluster, NULL);
        while (link_runs())
            clock_nap_ns(1000000);
        range_lock_destroy(&rbd->growth);
    }
}
