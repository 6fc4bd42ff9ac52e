/* SPDX-License-Identifier: BSD-3-Clause */
/* Jobs that end together. */
#include "jobs/job_group.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/lock.h"

struct job_group {
    struct lock lock;
    /* under lock */
    pthread_cond_t changed;
    unsigned holders;    /* the jobs, and the creator */
    unsigned jobs, done; /* jobs in the group, and those whose work is done */
    bool failed;
};

struct job_group *job_group_new(void)
{
    struct job_group *group = calloc(1, sizeof *group);

    if (!group)
        return NULL;
    lock_init(&group->lock, RANK_LEAF);
    pthread_cond_init(&group->changed, NULL);
    group->holders = 1;
    return group;
}

static bool drop_hold(struct job_group *group)
{
    LOCK_GUARD(&group->lock);
    return --group->holders == 0;
}

void job_group_put(struct job_group *group)
{
    if (!group || !drop_hold(group))
        return;
    pthread_cond_destroy(&group->changed);
    lock_destroy(&group->lock);
    free(group);
}

void job_group_join(struct job_group *group)
{
    if (!group)
        return;
    LOCK_GUARD(&group->lock);
    group->holders++;
    group->jobs++;
}

static void count_out(struct job_group *group)
{
    LOCK_GUARD(&group->lock);
    group->jobs--;
    pthread_cond_broadcast(&group->changed);
}

void job_group_leave(struct job_group *group)
{
    if (!group)
        return;
    count_out(group);
    job_group_put(group);
}

bool job_group_meet(struct job_group *group)
{
    if (!group)
        return true;
    LOCK_GUARD(&group->lock);
    group->done++;
    pthread_cond_broadcast(&group->changed);
    while (group->done < group->jobs && !group->failed)
        lock_wait(&group->lock, &group->changed);
    return !group->failed;
}

void job_group_fail(struct job_group *group)
{
    if (!group)
        return;
    LOCK_GUARD(&group->lock);
    group->failed = true;
    pthread_cond_broadcast(&group->changed);
}
