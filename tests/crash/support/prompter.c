/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs requests of a second client at chosen moments of another request; see prompter.h. */
#include "prompter.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "rng.h"

/* How long a stopped request waits for the prompted one.  It has to be limited: the prompted
 * request may itself have to wait for the stopped one. */
#define PATIENCE_NS 2000000

struct prompter {
    void (*one_request)(void *);
    void *opaque;
    unsigned one_in;
    pthread_t thread;
    pthread_mutex_t mutex;
    /* under mutex */
    pthread_cond_t asked, done;
    struct rng rng;
    uint64_t n_asked, n_done;
    bool stop;
};

static void *prompter_main(void *opaque)
{
    struct prompter *p = opaque;

    pthread_mutex_lock(&p->mutex);
    for (;;) {
        while (!p->stop && p->n_done == p->n_asked)
            pthread_cond_wait(&p->asked, &p->mutex);
        if (p->stop)
            break;
        pthread_mutex_unlock(&p->mutex);
        p->one_request(p->opaque);
        pthread_mutex_lock(&p->mutex);
        p->n_done++;
        pthread_cond_broadcast(&p->done);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

struct prompter *prompter_new(uint64_t seed, unsigned one_in, void (*one_request)(void *),
                              void *opaque)
{
    struct prompter *p = calloc(1, sizeof *p);

    if (!p)
        abort();
    p->one_request = one_request;
    p->opaque = opaque;
    p->one_in = one_in;
    rng_init(&p->rng, seed);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->asked, NULL);
    pthread_cond_init(&p->done, NULL);
    if (pthread_create(&p->thread, NULL, prompter_main, p))
        abort();
    return p;
}

void prompter_free(struct prompter *p)
{
    pthread_mutex_lock(&p->mutex);
    while (p->n_done < p->n_asked)
        pthread_cond_wait(&p->done, &p->mutex);
    p->stop = true;
    pthread_cond_signal(&p->asked);
    pthread_mutex_unlock(&p->mutex);
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->asked);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->mutex);
    free(p);
}

void prompter_moment(struct prompter *p)
{
    struct timespec until;

    if (pthread_equal(pthread_self(), p->thread))
        return;
    pthread_mutex_lock(&p->mutex);
    /* Only one at a time: the previous one may still be waiting for a stopped request. */
    if (rng_one_in(&p->rng, p->one_in) && p->n_done == p->n_asked) {
        p->n_asked++;
        pthread_cond_signal(&p->asked);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += PATIENCE_NS;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        while (p->n_done < p->n_asked &&
               pthread_cond_timedwait(&p->done, &p->mutex, &until) == 0)
            continue;
    }
    pthread_mutex_unlock(&p->mutex);
}

void prompter_hook(void *opaque, enum crash_kind kind, uint64_t off, uint64_t len)
{
    (void)kind;
    (void)off;
    (void)len;
    prompter_moment(opaque);
}

void prompter_before_read(void *opaque, uint64_t off, uint64_t len)
{
    (void)off;
    (void)len;
    prompter_moment(opaque);
}

int prompter_before_write(void *opaque, uint64_t off, uint64_t len, bool *done)
{
    (void)off;
    (void)len;
    (void)done;
    prompter_moment(opaque);
    return 0;
}
