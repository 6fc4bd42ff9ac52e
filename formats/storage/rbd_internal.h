/* SPDX-License-Identifier: BSD-3-Clause */
/* Shared by the parts of the RBD store.
 *
 *   rbd.c          open, close, rest and start
 *   rbd_io.c       the storage interface
 *   rbd_size.c     the size of the image
 *   rbd_call.c     one asynchronous request, and its caller, who waits for it
 *   rbd_early.c    writes that are answered before the cluster has them
 *   rbd_lock.c     Ceph's exclusive lock
 *   rbd_status.c   data and holes
 *   rbd_connect.c  configuring, connecting, opening the image
 *   rbd_link.c     a link (a connection to a cluster, with the image open): its users and its end
 *   rbd_task.c     blocking functions of Ceph's libraries, on threads that can be abandoned
 *   rbd_name.c     names of images
 *   rbd_user.c     the Ceph user, when a name doesn't give it
 *   rbd_library.c  loading librbd and librados
 *
 * Nothing that waits for a cluster is called on a caller's own thread.  Callers wait with a
 * deadline, for librbd's asynchronous requests (calls) and for blocking functions (tasks).  One
 * that hasn't ended by then is abandoned: it goes on alone, with all the memory that it uses,
 * and is called late.  A link is closed when no call or task of it runs any more.
 *
 * Private to this folder. */
#ifndef STORAGE_RBD_INTERNAL_H
#define STORAGE_RBD_INTERNAL_H

#include <stdatomic.h>

#include "base/list.h"
#include "base/lock.h"
#include "base/range_lock.h"
#include "storage/rbd.h"
#include "storage/rbd_library.h"

/* What is known about an image when it has been opened. */
struct rbd_facts {
    uint64_t size;
    uint64_t object_size; /* bytes; a power of two */
    bool has_lock;        /* the feature exclusive-lock */
    bool locks_to_read;   /* librbd takes the lock even to read, unless opened read-only */
    bool tells_status;    /* librbd can say which objects exist (feature fast-diff) */
    unsigned timeout_ms;  /* of one request */
    uint64_t device, inode; /* for storage_identity */
    uint64_t client;        /* the number by which the cluster knows us */
};

/* Writes that were answered and that the cluster doesn't have yet: see rbd_early.c.  Under the
 * link's lock, except where something else is said. */
struct rbd_early {
    struct list writes; /* struct rbd_call.link; no two overlap */
    unsigned count;
    uint64_t bytes;
    bool full;           /* no more writes for now */
    pthread_cond_t room; /* the list isn't full any more, or a write has failed */
    uint64_t next;       /* the number of the next write; they increase */
    /* Writes in the list that have failed at least once; and how many such writes have succeeded
     * since, which is counted before `failed` is decreased.  Both are also read without the
     * lock. */
    _Atomic unsigned failed;
    _Atomic uint64_t mended;
    _Atomic uint64_t failures; /* how often any write has failed; changed under the lock */
};

struct rbd_link {
    rados_t cluster;
    rados_ioctx_t io;
    rbd_image_t image;
    bool in_cluster; /* `cluster` is connected, and `io` exists */
    bool watched;    /* `watch` reports changes of the image */
    uint64_t watch;
    struct rbd_facts facts;
    _Atomic bool aborted; /* all waiting and new callers get -ECANCELED */
    _Atomic bool locked;  /* by lock_acquire; librbd may also take the lock by itself */
    /* A resize was abandoned, or another client may have changed the size. */
    _Atomic bool size_unknown;
    _Atomic uint64_t doubts;   /* how often the size has become unknown */
    _Atomic bool told_blocked; /* the log has the message that the client is blocklisted */
    struct list known;         /* in the list of this process' links */
    struct lock lock;
    /* under lock */
    pthread_cond_t changed; /* a late call or task has ended, `running` is 0, ... */
    struct list calls;      /* struct rbd_call.link: calls with a waiting caller */
    struct rbd_early early;
    unsigned running;      /* calls and tasks that use the image */
    unsigned late_changes; /* abandoned calls and tasks that change the image */
    unsigned late_tasks;   /* abandoned tasks, each of which has a thread */
    unsigned changing; /* calls in flight that change the image, abandoned ones included */
    bool resizing;     /* a resize waits or runs; changes wait for its end (rbd_call.c) */
    uint64_t late_bytes; /* in buffers of abandoned reads */
    bool orphan;         /* closed by its owner: the last call or task destroys the link */
};

struct rbd_storage {
    struct storage st;
    struct rbd_name name;
    bool wants_lock; /* it has the writer's lock, or takes it again after a rest */
    bool early;      /* writes may be answered early (rbd_early.c) */
    const _Atomic bool *give_up;
    struct rbd_link *link; /* NULL: resting */
    struct rbd_facts facts;
    _Atomic uint64_t size;
    struct range_lock growth; /* held while the size is asked for or changed */
};

static inline struct rbd_storage *rbd_of(struct storage *st)
{
    return CONTAINER_OF(st, struct rbd_storage, st);
}

/* ---- rbd_connect.c ---- */

enum rbd_purpose { RBD_READ_ONLY, RBD_READ_WRITE, RBD_CREATE, RBD_REMOVE };

/* Connects and opens the image.  RBD_CREATE: creates it before.  RBD_REMOVE: removes it instead,
 * and doesn't set *out.  Setting *give_up ends the wait.  0 or -errno with diag. */
int rbd_link_open(const struct rbd_name *name, enum rbd_purpose purpose,
                  const _Atomic bool *give_up, struct rbd_link **out,
                  struct diag *diag) MUST_USE;

/* ---- rbd_link.c ---- */

/* NULL when memory is short. */
struct rbd_link *rbd_link_new(void);
/* To be called when facts.client is set: rbd_link_is_friendly knows the link then. */
void rbd_link_make_known(struct rbd_link *link);
/* Both wait for the cluster, and may be called without an open image. */
void rbd_link_close_image(struct rbd_link *link);
void rbd_link_destroy(struct rbd_link *link);

/* Waits some seconds for the calls and tasks that run, and destroys the link; if some still run,
 * the last of them destroys it.  Returns how many early writes the cluster may never get.  NULL
 * is allowed. */
unsigned rbd_link_close(struct rbd_link *link);

/* Does this client number belong to a link of this process that hasn't taken the lock by a call? */
bool rbd_link_is_friendly(uint64_t client);

/* To be called before the image is used, and after that; after rbd_link_leave the link must not be
 * touched any more.  can_wait: this is a thread of ours, which may wait for a cluster. */
void rbd_link_enter(struct rbd_link *link);
void rbd_link_leave(struct rbd_link *link, bool can_wait);
/* The same for callers that hold the link's lock.  If rbd_link_count_out returns true, the caller
 * has to release the lock and call rbd_link_end_orphan. */
void rbd_link_count_in(struct rbd_link *link);
bool rbd_link_count_out(struct rbd_link *link);
void rbd_link_end_orphan(struct rbd_link *link, bool can_wait);

/* ---- rbd_task.c ---- */

/* A function that waits for a cluster.  It is part of a larger struct, which `free` frees. */
struct rbd_task {
    int (*run)(struct rbd_task *task); /* on a thread of its own; 0 or -errno */
    void (*free)(struct rbd_task *task);
    struct rbd_link *link; /* the link that it uses; NULL: none */
    bool changes;          /* it changes the image: later changes wait for its end */
    /* When another thread sets it, the caller stops waiting; NULL: none. */
    const _Atomic bool *give_up;
    struct diag diag; /* for `run` */
    bool abandoned;   /* for `free`: the caller has stopped waiting */

    /* private */
    struct lock lock;
    pthread_cond_t ended;
    bool done;
    int err;
};

/* Runs the task on a thread of its own and waits for it.  Returns what `run` returned, with its
 * message in diag (which may be NULL); the caller still has to free the task.  -ETIMEDOUT or
 * -ECANCELED when the caller stops waiting: if *task is NULL then, the task goes on alone and
 * frees itself; otherwise it wasn't started, because too many abandoned tasks of its link still
 * run. */
int rbd_task_run(struct rbd_task **task, unsigned timeout_ms, struct diag *diag) MUST_USE;

/* Are there so many abandoned tasks without a link that no new one should be started? */
bool rbd_too_many_tasks(void);

/* Would a new task of this link have to wait for abandoned ones? */
bool rbd_link_is_stuck(struct rbd_link *link);

/* ---- rbd_call.c ---- */

enum rbd_op { RBD_OP_READ, RBD_OP_WRITE, RBD_OP_ZERO, RBD_OP_DISCARD, RBD_OP_FLUSH };

/* Counters at the time when the image was made large enough for a change and for all early writes
 * that had failed by then.  Writes that have failed since may lie past the end.  If `doubts` has
 * changed, the image may have been smaller for a while, and the change may be incomplete. */
struct rbd_since {
    uint64_t failures, doubts;
};

struct rbd_request {
    enum rbd_op op;
    void *buf; /* RBD_OP_READ: filled */
    const struct iovec *iov;
    int count;
    uint64_t off, len; /* inside the image */
    int zero_flags;    /* librbd's */
    bool early;        /* RBD_OP_WRITE: the caller doesn't wait for it (rbd_early.c) */
    unsigned timeout_ms;
    struct rbd_since since; /* for changes and flushes */
};

/* A request in librbd, or an early write that failed. */
struct rbd_call {
    struct list link; /* rbd_link.calls or rbd_link.early.writes */
    struct rbd_link *on;
    struct rbd_request req; /* the caller's memory is used only while the caller waits */
    char *buffer;           /* for a read's bytes, or with an early write's */
    /* under the link's lock */
    pthread_cond_t ended;
    bool done, abandoned;
    ssize_t result; /* bytes, or -errno */
    /* for an early write */
    uint64_t number, begun_ms;
    int failed;         /* -errno; 0: it is in flight */
    uint64_t failed_at; /* rbd_early.failures at its last failure; 0: it never failed */
};

/* Makes the request and waits for it, unless it is early.  Returns 0, -ETIMEDOUT, -ECANCELED, or
 * Ceph's -errno, which may be that of an earlier early write. */
int rbd_call(struct rbd_link *link, const struct rbd_request *req) MUST_USE;

/* Submits a call, which is already counted as running, to librbd.  0 or -errno; after an error the
 * caller has to call rbd_call_undo, under the lock. */
int rbd_call_start(struct rbd_call *call) MUST_USE;
void rbd_call_undo(struct rbd_call *call);
void rbd_call_free(struct rbd_call *call);

/* Under the link's lock: waits for the condition `changed`.  0: the deadline hasn't passed;
 * otherwise -ETIMEDOUT or -ECANCELED. */
int rbd_wait_for_change(struct rbd_link *link, uint64_t deadline_ns) MUST_USE;
/* The same with another condition of the link. */
int rbd_wait_for(struct rbd_link *link, pthread_cond_t *cond,
                 uint64_t deadline_ns) MUST_USE;

/* Waits until no change is in flight; none begins before rbd_end_resize.  0; or -ETIMEDOUT or
 * -ECANCELED, and then rbd_end_resize isn't to be called. */
int rbd_begin_resize(struct rbd_link *link, uint64_t deadline_ns) MUST_USE;
void rbd_end_resize(struct rbd_link *link);

/* All waiting callers, and all later ones, get -ECANCELED. */
void rbd_call_abort_all(struct rbd_link *link);

static inline bool rbd_changes_image(enum rbd_op op)
{
    return op == RBD_OP_WRITE || op == RBD_OP_ZERO || op == RBD_OP_DISCARD;
}

/* ---- rbd_early.c: to be called under the link's lock ---- */

/* The condition that a new request has to wait for because of an early write in flight; NULL: none.
 * `before`: a flush only waits for writes with smaller numbers. */
pthread_cond_t *rbd_early_obstacle(struct rbd_link *link, const struct rbd_request *req,
                                   uint64_t before);
/* A failed early write that has to be tried again before the request; NULL: none. */
struct rbd_call *rbd_early_failed(const struct rbd_link *link,
                                  const struct rbd_request *req, uint64_t before);
/* Submits a failed write again, and releases the lock meanwhile. */
void rbd_early_try_again(struct rbd_call *call, struct rbd_since since);
void rbd_early_add(struct rbd_call *call);
void rbd_early_remove(struct rbd_call *call);
/* Handles the result of an early write.  True: it succeeded, and the caller has to free it. */
bool rbd_early_end(struct rbd_call *call, ssize_t result) MUST_USE;
/* Failed writes are in memory only: copies their bytes in the range over those read from the
 * image. */
void rbd_early_overlay(const struct rbd_link *link, char *buf, uint64_t off, uint64_t len);

/* To be called without the lock: */

/* Should a write of this length be answered early? */
bool rbd_early_is_wise(struct rbd_link *link, uint64_t len);
/* Is there an early write in the list? */
bool rbd_early_any(struct rbd_link *link);
/* The highest end of a failed write; 0: none has failed. */
uint64_t rbd_early_failed_end(struct rbd_link *link);
/* Does an early write reach past this offset? */
bool rbd_early_reaches_past(struct rbd_link *link, uint64_t end);
/* Frees the early writes of a link that nothing uses any more. */
void rbd_early_drop(struct rbd_link *link);

/* ---- rbd_size.c ---- */

/* Makes sure that the image has at least so many bytes and that its size is known.  0 or -errno. */
int rbd_grow_to(struct rbd_storage *rbd, uint64_t bytes) MUST_USE;
/* Asks the cluster for the size.  0 or -errno. */
int rbd_learn_size(struct rbd_storage *rbd) MUST_USE;
/* Is the size known, that is: has nobody reported a change since it was asked for? */
bool rbd_size_is_known(const struct rbd_storage *rbd);
/* The size may have changed.  From any thread; never waits. */
void rbd_doubt_size(struct rbd_link *link);
int rbd_truncate_storage(struct storage *st, uint64_t bytes) MUST_USE;

/* ---- rbd_lock.c, rbd_status.c: like the storage operations `lock` and `extent` ---- */

int rbd_take_lock(struct rbd_storage *rbd, enum storage_lock_level level,
                  struct diag *diag) MUST_USE;
int rbd_find_extent(struct rbd_storage *rbd, uint64_t off, uint64_t len, bool *data,
                    uint64_t *run) MUST_USE;

/* ---- rbd_io.c ---- */

/* Waits until the cluster has all writes that were answered.  0; -errno: it may not have them. */
int rbd_settle(struct rbd_storage *rbd) MUST_USE;
/* For a request that ends at `end`: sets *size to the size of the image.  If both the request and
 * early writes reach past it (another client has made the image smaller), waits for these writes
 * first, which grow the image again.  The caller uses *size, because rbd->size may shrink at any
 * moment. */
int rbd_settle_past_end(struct rbd_storage *rbd, uint64_t end, uint64_t *size) MUST_USE;

extern const struct storage_ops rbd_ops;

void rbd_close_storage(struct storage *st); /* in rbd.c */
void rbd_rest_storage(struct storage *st);
int rbd_start_storage(struct storage *st);

#endif
