/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the life of jobs, with a kind of job made up for the test: verbs, pauses, the rate limit,
 * and the ways it can end. */
#include "jobs_testing.h"

/* The test's kind of job: it does what the test sets here, and counts the calls. */
struct kind {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool ready, end;   /* set by the test: become ready, end */
    int result;        /* what run returns */
    bool opens_slowly; /* opening takes until it is interrupted */
    int open_error;
    int finish_error; /* what finish returns after a success */
    uint64_t bytes;   /* accounted for by the rate limit at the next pause point */
    struct job *_Atomic job;
    /* what has happened so far */
    _Atomic unsigned turns, settled, interrupted, finished, freed;
    _Atomic bool success, in_checkpoint;
};

static int work(struct job *job, struct kind *k)
{
    pthread_mutex_lock(&k->mutex);
    bool ready = k->ready, end = k->end;
    uint64_t bytes = k->bytes;
    k->bytes = 0;
    pthread_mutex_unlock(&k->mutex);

    atomic_store(&k->in_checkpoint, true);
    int err = job_checkpoint(job, bytes);
    atomic_store(&k->in_checkpoint, false);
    if (err)
        return err;
    if (ready)
        job_ready(job);
    if (end)
        return k->result ? k->result : 1;
    if (job_should_finish(job))
        return 1;
    atomic_fetch_add(&k->turns, 1);
    job_sleep(job, 1000000);
    return 0;
}

static int open_kind(struct job *job, void *state, struct diag *diag)
{
    struct kind *k = state;

    (void)job;
    while (k->opens_slowly && !atomic_load(&k->interrupted))
        nap();
    return k->open_error ? diag_set(diag, -k->open_error, "it isn't there") : 0;
}

static int run(struct job *job, void *state, struct diag *diag)
{
    int err = 0;

    atomic_store(&((struct kind *)state)->job, job);
    while (!err)
        err = work(job, state);
    if (err == 1)
        return 0;
    return err == -ECANCELED ? err : diag_set(diag, -err, "it broke");
}

static void settle(struct job *job, void *state)
{
    (void)job;
    atomic_fetch_add(&((struct kind *)state)->settled, 1);
}

static void interrupt(struct job *job, void *state)
{
    (void)job;
    atomic_fetch_add(&((struct kind *)state)->interrupted, 1);
}

static int finish(struct job *job, void *state, bool success, struct diag *diag)
{
    struct kind *k = state;

    (void)job;
    atomic_fetch_add(&k->finished, 1);
    atomic_store(&k->success, success);
    return success && k->finish_error ? diag_set(diag, -k->finish_error, "no way") : 0;
}

static void free_kind(void *state)
{
    atomic_fetch_add(&((struct kind *)state)->freed, 1);
}

static const struct job_ops ops = {
    .type = "mirror",
    .open = open_kind,
    .run = run,
    .wait_in_flight = settle,
    .interrupt = interrupt,
    .finish = finish,
    .free = free_kind,
};

static struct kind k;
static struct listener heard;
static struct job_manager *manager;
static struct diag diag;

static void setup(void)
{
    k = (struct kind){.mutex = PTHREAD_MUTEX_INITIALIZER};
    listener_init(&heard);
    manager = job_manager_new(hear, &heard);
}

static void teardown(void)
{
    job_manager_free(manager);
}

TestSuite(life, .init = setup, .fini = teardown, .timeout = 120);

static void start(const struct job_params *params)
{
    cr_assert_eq(job_start(manager, &ops, &k, params, &diag), 0, "%s", diag.text);
}

static void wish(bool *what)
{
    pthread_mutex_lock(&k.mutex);
    *what = true;
    pthread_mutex_unlock(&k.mutex);
}

static void status(enum job_state state)
{
    listen_for(&heard, JOB_EVENT_STATUS, state);
}

/* The states reported by events, one letter each. */
static const char *told(void)
{
    static char story[64];
    unsigned n = 0;

    pthread_mutex_lock(&heard.mutex);
    for (unsigned i = 0; i < heard.n; i++)
        if (heard.events[i].kind == JOB_EVENT_STATUS)
            story[n++] = "cRPyswpaXn"[heard.events[i].info.state];
    pthread_mutex_unlock(&heard.mutex);
    story[n] = '\0';
    return story;
}

/* M-02 */
Test(life, to_the_end)
{
    start(&(struct job_params){.id = "j"});
    wish(&k.ready);
    status(JOB_READY);
    cr_expect_eq(job_complete(manager, "j", &diag), 0);
    struct job_event event = listen_for(&heard, JOB_EVENT_COMPLETED, 0);
    cr_expect_str_empty(event.info.error);
    status(JOB_NULL);
    cr_expect_str_eq(told(), "cRywpXn");
    cr_expect(atomic_load(&k.success));
    cr_expect_eq(job_query(manager, NULL, 0), 0);
    cr_expect_eq(atomic_load(&k.freed), 1);
}

/* No event is sent for a job that couldn't begin, except to its starter (M-24, M-31). */
Test(life, cannot_be_opened)
{
    k.open_error = -ENOENT;
    start(&(struct job_params){.id = "j", .ticket = 7, .manual_dismiss = true});
    struct job_event event = listen_for(&heard, JOB_EVENT_OPENED, 0);
    cr_expect_eq(event.err, -ENOENT);
    cr_expect_eq(event.info.ticket, 7);
    cr_expect_str_eq(event.info.error, "it isn't there");
    cr_expect_eq(job_query(manager, NULL, 0), 0);
    cr_expect_str_eq(told(), "");
    cr_expect_eq(heard.n, 1);
    cr_expect_eq(atomic_load(&k.finished), 1, "what was opened is closed");
    cr_expect_not(atomic_load(&k.success));
    cr_expect_eq(atomic_load(&k.freed), 1);
}

Test(life, is_cancelled_while_it_is_being_opened)
{
    struct job_info info;

    k.opens_slowly = true;
    start(&(struct job_params){.id = "j"});
    cr_expect_eq(job_query(manager, &info, 1), 1);
    cr_expect_eq(info.state, JOB_CREATED);
    cr_expect_eq(job_complete(manager, "j", &diag), -EBUSY);
    cr_expect_eq(job_cancel(manager, "j", false, &diag), 0);
    struct job_event event = listen_for(&heard, JOB_EVENT_OPENED, 0);
    cr_expect_eq(event.err, -ECANCELED);
    cr_expect_str_eq(told(), "");
    cr_expect_eq(atomic_load(&k.freed), 0);
    cr_expect_eq(job_query(manager, NULL, 0), 0);
    cr_expect_eq(atomic_load(&k.freed), 1);
}

/* M-10 */
Test(life, fails)
{
    k.result = -ENOSPC;
    start(&(struct job_params){.id = "j"});
    wish(&k.end);
    struct job_event event = listen_for(&heard, JOB_EVENT_COMPLETED, 0);
    cr_expect_str_eq(event.info.error, "it broke");
    status(JOB_NULL);
    cr_expect_str_eq(told(), "cRaXn");
    cr_expect_not(atomic_load(&k.success));
    cr_expect_eq(atomic_load(&k.finished), 1);
}

Test(life, a_failure_of_its_effect_fails_it)
{
    k.finish_error = -EBUSY;
    start(&(struct job_params){.id = "j"});
    wish(&k.end);
    struct job_event event = listen_for(&heard, JOB_EVENT_COMPLETED, 0);
    cr_expect_str_eq(event.info.error, "no way");
    status(JOB_NULL);
    cr_expect_str_eq(told(), "cRwpaXn");
}

Test(life, a_cancel_before_it_is_ready_abandons_it)
{
    start(&(struct job_params){.id = "j"});
    status(JOB_RUNNING);
    cr_expect_eq(job_cancel(manager, "j", false, &diag), 0);
    listen_for(&heard, JOB_EVENT_CANCELLED, 0);
    status(JOB_NULL);
    cr_expect_str_eq(told(), "cRaXn");
    cr_expect_eq(atomic_load(&k.interrupted), 1);
    cr_expect_not(atomic_load(&k.success));
}

/* M-04 */
Test(life, a_soft_cancel_when_it_is_ready_ends_it_in_order)
{
    start(&(struct job_params){.id = "j", .manual_finalize = true});
    wish(&k.ready);
    status(JOB_READY);
    cr_expect_eq(job_cancel(manager, "j", false, &diag), 0);
    cr_expect_neq(job_complete(manager, "j", &diag), 0, "not once it is cancelled");
    listen_for(&heard, JOB_EVENT_PENDING, 0);
    cr_expect_eq(job_finalize(manager, "j", &diag), 0);
    listen_for(&heard, JOB_EVENT_COMPLETED, 0);
    status(JOB_NULL);
    cr_expect_str_eq(told(), "cRywpXn");
    cr_expect_eq(atomic_load(&k.interrupted), 0);
}

/* A second cancel, while the first one is complete and waits to be finalized, abandons the job. */
Test(life, a_soft_cancel_is_cancelled)
{
    struct job_info info;

    start(&(struct job_params){.id = "j", .manual_finalize = true, .manual_dismiss = true});
    wish(&k.ready);
    status(JOB_READY);
    cr_expect_eq(job_cancel(manager, "j", false, &diag), 0);
    listen_for(&heard, JOB_EVENT_PENDING, 0);
    cr_expect_eq(job_query(manager, &info, 1), 1);
    cr_expect_not(info.ready, "not any more");
    cr_expect_eq(job_cancel(manager, "j", false, &diag), 0);
    listen_for(&heard, JOB_EVENT_CANCELLED, 0);
    status(JOB_CONCLUDED);
    cr_expect_eq(job_query(manager, &info, 1), 1);
    cr_expect_str_eq(info.error, "Operation canceled");
    cr_expect_eq(job_dismiss(manager, "j", &diag), 0);
    status(JOB_NULL);
    cr_expect_str_eq(told(), "cRywpaXn");
}

Test(life, stands_still_with_nothing_in_flight)
{
    start(&(struct job_params){.id = "j"});
    status(JOB_RUNNING);
    cr_expect_eq(job_pause(manager, "j", &diag), 0);
    cr_expect_eq(job_pause(manager, "j", &diag), -EBUSY);
    struct job_event event = listen_for(&heard, JOB_EVENT_STATUS, JOB_PAUSED);
    cr_expect(event.info.paused);
    cr_expect_eq(atomic_load(&k.settled), 1);
    unsigned turns = atomic_load(&k.turns);
    cr_expect_eq(job_complete(manager, "j", &diag), -EBUSY);
    for (unsigned i = 0; i < 20; i++)
        nap();
    cr_expect_eq(atomic_load(&k.turns), turns);
    cr_expect_eq(job_resume(manager, "j", &diag), 0);
    cr_expect_eq(job_resume(manager, "j", &diag), -EBUSY);
    status(JOB_RUNNING);
    while (atomic_load(&k.turns) == turns)
        nap();
    wish(&k.ready);
    status(JOB_READY);
    cr_expect_eq(job_pause(manager, "j", &diag), 0);
    status(JOB_STANDBY);
    cr_expect_eq(job_cancel(manager, "j", false, &diag), 0);
    listen_for(&heard, JOB_EVENT_COMPLETED, 0);
    status(JOB_NULL);
    cr_expect_str_eq(told(), "cRPRysywpXn");
}

Test(life, a_forced_cancel_ends_a_pause)
{
    start(&(struct job_params){.id = "j"});
    cr_expect_eq(job_pause(manager, "j", &diag), 0);
    status(JOB_PAUSED);
    cr_expect_eq(job_cancel(manager, "j", true, &diag), 0);
    listen_for(&heard, JOB_EVENT_CANCELLED, 0);
}

/* M-33: the sleep of the rate limit isn't cut short when a transfer completes (job_kick), but by
 * verbs such as a new speed. */
Test(life, only_verbs_end_the_sleep_of_the_rate_limit)
{
    k.bytes = 1000000;
    start(&(struct job_params){.id = "j", .speed = 1});
    while (!atomic_load(&k.in_checkpoint))
        nap();
    for (unsigned i = 0; i < 100; i++) {
        job_kick(atomic_load(&k.job));
        nap();
        cr_assert_eq(atomic_load(&k.turns), 0, "the sleep ended");
    }
    /* Nor is it cut short by verbs that are refused or don't concern it. */
    for (unsigned i = 0; i < 100; i++) {
        cr_expect_eq(job_resume(manager, "j", &diag), -EBUSY);
        cr_expect_eq(job_set_speed(manager, "j", 1 + i % 2, &diag), 0);
        cr_expect_eq(job_pause(manager, "j", &diag), 0);
        cr_expect_eq(job_pause(manager, "j", &diag), -EBUSY);
        cr_expect_eq(job_resume(manager, "j", &diag), 0);
        nap();
        cr_assert_eq(atomic_load(&k.turns), 0, "the sleep ended");
    }
    cr_expect_eq(job_set_speed(manager, "j", 0, &diag), 0);
    while (atomic_load(&k.turns) == 0)
        nap();
    cr_expect_eq(job_cancel(manager, "j", true, &diag), 0);
    listen_for(&heard, JOB_EVENT_CANCELLED, 0);
}

Test(life, waits_to_be_finalized_and_dismissed)
{
    start(&(struct job_params){.id = "j", .manual_finalize = true, .manual_dismiss = true});
    cr_expect_eq(job_finalize(manager, "j", &diag), -EBUSY);
    cr_expect_eq(job_dismiss(manager, "j", &diag), -EBUSY);
    wish(&k.end);
    listen_for(&heard, JOB_EVENT_PENDING, 0);
    cr_expect_eq(atomic_load(&k.finished), 0);
    cr_expect_eq(job_pause(manager, "j", &diag), -EBUSY);
    cr_expect_eq(job_set_speed(manager, "j", 1, &diag), -EBUSY);
    cr_expect_eq(job_finalize(manager, "j", &diag), 0);
    listen_for(&heard, JOB_EVENT_COMPLETED, 0);
    struct job_info info;
    cr_expect_eq(job_query(manager, &info, 1), 1);
    cr_expect_eq(info.state, JOB_CONCLUDED);
    cr_expect_eq(job_cancel(manager, "j", true, &diag), -EBUSY);
    cr_expect_eq(job_dismiss(manager, "j", &diag), 0);
    status(JOB_NULL);
}

Test(life, a_cancel_while_pending_undoes)
{
    start(&(struct job_params){.id = "j", .manual_finalize = true});
    wish(&k.end);
    listen_for(&heard, JOB_EVENT_PENDING, 0);
    cr_expect_eq(job_cancel(manager, "j", false, &diag), 0);
    listen_for(&heard, JOB_EVENT_CANCELLED, 0);
    cr_expect_not(atomic_load(&k.success));
}

/* M-10 */
Test(life, the_end_of_the_server_in_any_state)
{
    start(&(struct job_params){.id = "running"});
    struct kind others[3];
    static const struct job_params params[] = {
        {.id = "pending", .manual_finalize = true},
        {.id = "concluded", .manual_dismiss = true},
        {.id = "paused"},
    };
    for (unsigned i = 0; i < 3; i++) {
        others[i] = (struct kind){.mutex = PTHREAD_MUTEX_INITIALIZER, .end = i < 2};
        cr_assert_eq(job_start(manager, &ops, &others[i], &params[i], &diag), 0);
    }
    cr_expect_eq(job_pause(manager, "paused", &diag), 0);
    status(JOB_PAUSED);
    job_manager_free(manager);
    manager = NULL;
    cr_expect_eq(atomic_load(&k.freed), 1);
    for (unsigned i = 0; i < 3; i++) {
        cr_expect_eq(atomic_load(&others[i].finished), 1);
        cr_expect_eq(atomic_load(&others[i].freed), 1);
    }
}

/* M-31: a job that couldn't start leaves nothing behind. */
Test(life, refused)
{
    static const char *const bad[] = {"", "1", "-x", "a b", "a/b", "\xc3\xa4"};
    static struct kind other;
    char longest[300];

    memset(longest, 'x', sizeof longest);
    longest[255] = '\0';
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++)
        cr_expect_eq(
            job_start(manager, &ops, &other, &(struct job_params){.id = bad[i]}, &diag),
            -EINVAL, "'%s'", bad[i]);
    start(&(struct job_params){.id = longest});
    cr_expect_eq(
        job_start(manager, &ops, &other, &(struct job_params){.id = longest}, &diag),
        -EEXIST);
    longest[255] = 'x';
    longest[256] = '\0';
    cr_expect_eq(
        job_start(manager, &ops, &other, &(struct job_params){.id = longest}, &diag),
        -EINVAL);
    cr_expect_eq(atomic_load(&other.freed), ARRAY_LEN(bad) + 2);
    cr_expect_eq(job_query(manager, NULL, 0), 1);
    cr_expect_eq(job_pause(manager, "other", &diag), -ENOENT);
}
