/* SPDX-License-Identifier: BSD-3-Clause */
/* Ceph's exclusive lock.
 *
 * librbd takes it by itself with the first change, and gives it to another client that wants
 * to write.  Taken by a call it stays.  As a client that only took it by itself (QEMU) would
 * have to give it to us while it writes, one that is alive is looked for first. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "storage/rbd_internal.h"

#define NAMES_BYTES  4096
#define MAX_WATCHERS 1024

/* What librbd begins the cookies of its locks with; the number of the holder's watch follows.
 */
#define COOKIE "auto "

struct lock_task {
    struct rbd_task task;
    enum storage_lock_level level;
    char *place;
};

/* The first of those who have a lock: with an exclusive one there is no other. */
struct holder {
    char client[NAMES_BYTES], cookie[NAMES_BYTES], address[NAMES_BYTES];
};

/* 1: there is one, 0: none. */
static int find_holder(struct rbd_link *link, struct holder *out)
{
    char tag[NAMES_BYTES];
    size_t tag_len = sizeof tag, client_len = sizeof out->client;
    size_t cookie_len = sizeof out->cookie, address_len = sizeof out->address;
    int exclusive;

    ssize_t n = librbd.list_lockers(link->image, &exclusive, tag, &tag_len, out->client,
                                    &client_len, out->cookie, &cookie_len, out->address,
                                    &address_len);
    return n > 0 ? 1 : (int)n;
}

/* Of this image, or one of a disk's other views of it: that was opened without a lock of its
 * own, as the disk has one. */
static bool is_ours(const struct rbd_link *link, const struct holder *holder)
{
    const char *number = strchr(holder->client, '.');
    uint64_t client = number ? strtoull(number + 1, NULL, 10) : 0;

    return client == link->facts.client || rbd_link_is_friendly(client);
}

/* Who is alive watches the image; Ceph forgets who died after half a minute. */
static int is_alive(struct rbd_link *link, const struct holder *holder)
{
    rbd_image_watcher_t *list = calloc(MAX_WATCHERS, sizeof *list);
    size_t n = MAX_WATCHERS;
    int found = 0;

    if (!list)
        return -ENOMEM;
    uint64_t watch = strncmp(holder->cookie, COOKIE, strlen(COOKIE)) == 0
                         ? strtoull(holder->cookie + strlen(COOKIE), NULL, 10)
                         : 0;
    int err = librbd.watchers_list(link->image, list, &n);
    if (!err) {
        for (size_t i = 0; i < n; i++)
            found |= strcmp(list[i].addr, holder->address) == 0 &&
                     (watch == 0 || list[i].cookie == watch);
        librbd.watchers_list_cleanup(list, n);
    }
    free(list);
    return err ? err : found;
}

static int check_others(struct rbd_task *task, const char *place)
{
    CLEANUP_FREE struct holder *holder = calloc(1, sizeof *holder);
    if (!holder)
        return diag_errno(&task->diag, ENOMEM, "%s", place);
    int n = find_holder(task->link, holder);
    if (n == 0)
        return 0;
    if (n > 0 && is_ours(task->link, holder))
        return 0;
    if (n > 0)
        n = is_alive(task->link, holder);
    if (n < 0)
        return diag_errno(&task->diag, -n, "%s: lock: looking for who has it", place);
    return n == 0 ? 0
                  : diag_set(&task->diag, EAGAIN,
                             "%s: lock: another process is using the image: %.100s at "
                             "%.100s (Ceph takes 30 seconds to notice that one died)",
                             place, holder->client, holder->address);
}

static int run_lock(struct rbd_task *task)
{
    struct lock_task *t = CONTAINER_OF(task, struct lock_task, task);

    if (t->level == STORAGE_READER && atomic_exchange(&task->link->locked, false))
        (void)librbd.lock_release(task->link->image); /* gone already is no failure */
    int err = check_others(task, t->place);
    if (err || t->level == STORAGE_READER)
        return err;
    err = librbd.lock_acquire(task->link->image, RBD_LOCK_MODE_EXCLUSIVE);
    if (err == -EBUSY || err == -EROFS)
        return diag_set(&task->diag, EAGAIN, "%s: lock: another process is using the image",
                        t->place);
    if (err)
        return diag_errno(&task->diag, -err, "%s: lock: taking it", t->place);
    atomic_store(&task->link->locked, true);
    return 0;
}

static void free_lock(struct rbd_task *task)
{
    struct lock_task *t = CONTAINER_OF(task, struct lock_task, task);

    free(t->place);
    free(t);
}

int rbd_take_lock(struct rbd_storage *rbd, enum storage_lock_level level, struct diag *diag)
{
    const char *place = rbd->st.name;

    if (rbd->name.snapshot) /* nobody can change it */
        return 0;
    /* Who writes then does so through another view. */
    if (rbd->st.read_only)
        level = STORAGE_READER;
    if (!rbd->link)
        return diag_errno(diag, ENOTCONN, "%s: lock", place);
    if (level == STORAGE_WRITER && !rbd->facts.has_lock)
        return diag_set(
            diag, ENOTSUP,
            "%s: lock: the image hasn't Ceph's feature exclusive-lock: rbd feature "
            "enable, or lock=off",
            place);
    struct lock_task *t = calloc(1, sizeof *t);
    if (!t || !(t->place = strdup(place))) {
        free(t);
        return diag_errno(diag, ENOMEM, "%s", place);
    }
    t->task = (struct rbd_task){.run = run_lock, .free = free_lock, .link = rbd->link};
    t->level = level;
    struct rbd_task *task = &t->task;
    int err = rbd_task_run(&task, rbd->facts.timeout_ms, diag);
    if (task)
        free_lock(task);
    if (!err)
        rbd->wants_lock = level == STORAGE_WRITER;
    return err;
}
