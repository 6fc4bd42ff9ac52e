/* SPDX-License-Identifier: BSD-3-Clause */
/* Ceph's exclusive lock.
 *
 * librbd takes the lock by itself with the first change, and hands it over to another client that
 * wants to write.  A lock taken by lock_acquire isn't handed over.  A client whose librbd has taken
 * the lock by itself (QEMU) would have to hand it over to us in the middle of its writes.  So we
 * check first whether another holder is alive, and then refuse. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "storage/rbd_internal.h"

/* The first and the largest buffers for lists of lock holders (bytes) and watchers (entries). */
#define NAMES_BYTES     4096
#define NAMES_BYTES_MAX (1u << 20)
#define WATCHERS        64
#define WATCHERS_MAX    (1u << 16)
#define TRIES           5

/* The cookies of librbd's locks begin with this; the number of the holder's watch follows. */
#define COOKIE "auto "
/* The tag of librbd's locks; locks that people set have another tag or none. */
#define LIBRBD_TAG "internal"

struct lock_task {
    struct rbd_task task;
    enum storage_lock_level level;
    char *place;
};

/* ---- the holders of a lock ---- */

/* Strings one behind the other, each with its NUL. */
struct names {
    char *text;
    size_t bytes;
};

/* Ceph's exclusive lock has one holder; locks that people set (`rbd lock add --shared`) can have
 * any number. */
struct holders {
    size_t n;
    struct names tag, clients, cookies, addresses;
};

static inline void cleanup_holders(struct holders *holders)
{
    free(holders->tag.text);
    free(holders->clients.text);
    free(holders->cookies.text);
    free(holders->addresses.text);
}

/* Allocates `bytes`, or a minimum. */
static int make_room(struct names *names)
{
    if (names->bytes > NAMES_BYTES_MAX)
        return -E2BIG;
    names->bytes = MAX(names->bytes, NAMES_BYTES);
    free(names->text);
    names->text = malloc(names->bytes);
    return names->text ? 0 : -ENOMEM;
}

static int make_rooms(struct holders *h)
{
    struct names *const all[] = {&h->tag, &h->clients, &h->cookies, &h->addresses};

    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        int err = make_room(all[i]);
        if (err)
            return err;
    }
    return 0;
}

/* -ERANGE: the buffers were too small; now `bytes` has the sizes that are needed. */
static int ask_holders(struct rbd_link *link, struct holders *h)
{
    int exclusive, err = make_rooms(h);

    if (err)
        return err;
    ssize_t n =
        librbd.list_lockers(link->image, &exclusive, h->tag.text, &h->tag.bytes,
                            h->clients.text, &h->clients.bytes, h->cookies.text,
                            &h->cookies.bytes, h->addresses.text, &h->addresses.bytes);
    if (n < 0)
        return (int)n;
    h->n = (size_t)n;
    return 0;
}

/* Between two attempts there may be more holders again. */
static int list_holders(struct rbd_link *link, struct holders *h)
{
    int err = -ERANGE;

    for (unsigned i = 0; i < TRIES && err == -ERANGE; i++)
        err = ask_holders(link, h);
    return err;
}

/* ---- is the holder alive?  Then it watches the image; Ceph removes the watch of a client that has
 * died after half a minute ---- */

struct watchers {
    rbd_image_watcher_t *list;
    size_t n;
};

static inline void cleanup_watchers(struct watchers *watchers)
{
    if (watchers->list)
        librbd.watchers_list_cleanup(watchers->list, watchers->n);
    free(watchers->list);
}

/* Like list_holders, tries several times. */
static int list_watchers(struct rbd_link *link, struct watchers *out)
{
    size_t room = WATCHERS;

    for (unsigned i = 0; i < TRIES && room <= WATCHERS_MAX; i++) {
        rbd_image_watcher_t *list = calloc(room, sizeof *list);
        size_t n = room;
        if (!list)
            return -ENOMEM;
        int err = librbd.watchers_list(link->image, list, &n);
        if (!err) {
            *out = (struct watchers){list, n};
            return 0;
        }
        free(list);
        if (err != -ERANGE)
            return err;
        room = n;
    }
    return -E2BIG;
}

static bool is_alive(const struct watchers *watchers, const char *cookie,
                     const char *address)
{
    uint64_t watch = strncmp(cookie, COOKIE, strlen(COOKIE)) == 0
                         ? strtoull(cookie + strlen(COOKIE), NULL, 10)
                         : 0;

    for (size_t i = 0; i < watchers->n; i++)
        if (strcmp(watchers->list[i].addr, address) == 0 &&
            (watch == 0 || watchers->list[i].cookie == watch))
            return true;
    return false;
}

/* ---- */

/* Is the holder this link, or another link of this process that opened the image without taking the
 * lock, because the disk it belongs to has it? */
static bool is_ours(const struct rbd_link *link, const char *holder)
{
    const char *number = strchr(holder, '.');
    uint64_t client = number ? strtoull(number + 1, NULL, 10) : 0;

    return client == link->facts.client || rbd_link_is_friendly(client);
}

static int refuse_holder(const struct holders *holders, const struct watchers *watchers,
                         struct rbd_task *task, const char *place)
{
    const char *client = holders->clients.text, *cookie = holders->cookies.text;
    const char *address = holders->addresses.text;

    for (size_t i = 0; i < holders->n; i++) {
        if (!is_ours(task->link, client) && is_alive(watchers, cookie, address))
            return diag_set(&task->diag, EAGAIN,
                            "%s: lock: another process is using the image: %.100s at "
                            "%.100s (Ceph takes 30 seconds to notice that one died)",
                            place, client, address);
        client += strlen(client) + 1;
        cookie += strlen(cookie) + 1;
        address += strlen(address) + 1;
    }
    return 0;
}

/* Refuses if somebody has set a lock: librbd would wait until it is removed. */
static int refuse_set_lock(const struct holders *holders, struct rbd_task *task,
                           const char *place)
{
    return holders->n > 0 && strcmp(holders->tag.text, LIBRBD_TAG) != 0
               ? diag_set(
                     &task->diag, EAGAIN,
                     "%s: lock: %.100s at %.100s has one that somebody set (rbd lock ls)",
                     place, holders->clients.text, holders->addresses.text)
               : 0;
}

static int check_others(struct rbd_task *task, enum storage_lock_level level,
                        const char *place)
{
    CLEANUP(cleanup_holders) struct holders holders = {0};
    CLEANUP(cleanup_watchers) struct watchers watchers = {0};

    int err = list_holders(task->link, &holders);
    if (!err && holders.n > 0)
        err = list_watchers(task->link, &watchers);
    if (err)
        return diag_errno(&task->diag, -err, "%s: lock: looking for who has it", place);
    err = refuse_holder(&holders, &watchers, task, place);
    return err || level == STORAGE_READER ? err : refuse_set_lock(&holders, task, place);
}

static int run_lock(struct rbd_task *task)
{
    struct lock_task *t = CONTAINER_OF(task, struct lock_task, task);

    if (t->level == STORAGE_READER && atomic_exchange(&task->link->locked, false))
        (void)librbd.lock_release(task->link->image); /* it may be lost already */
    int err = check_others(task, t->level, t->place);
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
    /* Nothing is written through this opening of the image, though maybe through another one. */
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
    /* Otherwise early writes could overwrite those of the next holder. */
    int err = level == STORAGE_READER ? rbd_settle(rbd) : 0;
    if (err)
        return diag_errno(diag, -err, "%s: lock: writing what was answered", place);
    struct lock_task *t = calloc(1, sizeof *t);
    if (!t || !(t->place = strdup(place))) {
        free(t);
        return diag_errno(diag, ENOMEM, "%s", place);
    }
    t->task = (struct rbd_task){.run = run_lock, .free = free_lock, .link = rbd->link};
    t->level = level;
    struct rbd_task *task = &t->task;
    err = rbd_task_run(&task, rbd->facts.timeout_ms, diag);
    if (task)
        free_lock(task);
    if (err)
        return err;
    rbd->wants_lock = level == STORAGE_WRITER;
    /* The holder before may have changed the size. */
    err = level == STORAGE_WRITER ? rbd_learn_size(rbd) : 0;
    return err ? diag_errno(diag, -err, "%s: lock: asking for its size", place) : 0;
}
