/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the RBD store share.
 *
 *   rbd.c          open, close, rest and start
 *   rbd_io.c       the storage interface
 *   rbd_size.c     how large it is
 *   rbd_call.c     one asynchronous request, and who waits for it
 *   rbd_early.c    writes that are answered before the cluster has them
 *   rbd_lock.c     Ceph's exclusive lock
 *   rbd_status.c   which objects there are
 *   rbd_connect.c  configuring, connecting, opening the image
 *   rbd_link.c     a connection to a cluster, with the image open: who uses it, and its end
 *   rbd_task.c     functions of Ceph's that wait, on threads that can be left behind
 *   rbd_name.c     names
 *   rbd_user.c     who asks, when a name doesn't say it
 *   rbd_library.c  librbd and librados, loaded when they are needed first
 *
 * Nothing that waits for a cluster is called on a caller's own thread: librbd's asynchronous
 * requests and the functions that only wait are both waited for with a deadline, and what
 * doesn't end by then is left behind, with all the memory that it uses.  A link is closed
 * when nothing of it runs any more.
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

/* What is known of an image when it has been opened. */
struct rbd_facts {
    uint64_t size;
    uint64_t object_size;   /* bytes; a power of two */
    bool has_lock;          /* the feature exclusive-lock */
    bool locks_to_read;     /* librbd takes the lock to read, if it may write */
    bool tells_status;      /* which objects there are is known to the cluster, and told */
    unsigned timeout_ms;    /* for one answer */
    uint64_t device, inode; /* for storage_identity */
    uint64_t client;        /* what the cluster calls us */
};

/* Writes that were answered, and that the cluster doesn't have yet: see rbd_early.c.  Under the
 * link's lock but where something else is said. */
struct rbd_early {
    struct list writes; /* struct rbd_call.link; no two overlap */
    unsigned count;
    uint64_t bytes;
    bool full;           /* no more for now */
    pthread_cond_t room; /* it isn't full any more, or one has failed */
    uint64_t next;       /* each has a number; they rise */
    /* of them, failed at least once; and how many such did well then: counted before `failed`
     * falls.  Both are read without the lock, too */
    _Atomic unsigned failed;
    _Atomic uint64_t mended;
    _Atomic uint64_t failures; /* how often one failed; changed under the lock */
};

struct rbd_link {
    rados_t cluster;
    rados_ioctx_t io;
    rbd_image_t image;
    bool in_cluster; /* `cluster` is connected, and `io` is there */
    bool watched;    /* `watch` tells of changes */
    uint64_t watch;
    struct rbd_facts facts;
    _Atomic bool aborted; /* who waits is told so */
    _Atomic bool locked;  /* by a call; else librbd may have the lock for itself */
    /* A change of it was left behind, or somebody may have made one. */
    _Atomic bool size_unknown;
    _Atomic uint64_t doubts;   /* how often it has become unknown */
    _Atomic bool told_blocked; /* it is in the log that the cluster refuses us */
    struct list known;         /* among the links of this process */
    struct lock lock;
    /* under lock */
    pthread_cond_t changed; /* of a call that ended late, or of `running` */
    struct list calls;      /* struct rbd_call.link: somebody waits for them */
    struct rbd_early early;
    unsigned running;      /* calls and tasks that use the image */
    unsigned late_changes; /* changes for which nobody waits any more */
    unsigned late_tasks;   /* the same of tasks, each of which has a thread */
    unsigned changing;     /* calls under way that change the image, these included */
    bool resizing;         /* changes wait: beside a resize librbd may never end either */
    uint64_t late_bytes;   /* in buffers of such calls */
    bool orphan;           /* closed: the last that runs ends it */
};

struct rbd_storage {
    struct storage st;
    struct rbd_name name;
    bool wants_lock; /* a writer's */
    bool early;      /* writes are answered when they are under way */
    const _Atomic bool *give_up;
    struct rbd_link *link; /* NULL: resting */
    struct rbd_facts facts;
    _Atomic uint64_t size;
    struct range_lock growth; /* who changes the size */
};

static inline struct rbd_storage *rbd_of(struct storage *st)
{
    return CONTAINER_OF(st, struct rbd_storage, st);
}

/* ---- rbd_connect.c ---- */

enum rbd_purpose { RBD_READ_ONLY, RBD_READ_WRITE, RBD_CREATE, RBD_REMOVE };

/* Connects, and opens the image (RBD_CREATE: that it makes before; RBD_REMOVE: removes it, and
 * *out is not set). */
int rbd_link_open(const struct rbd_name *name, enum rbd_purpose purpose,
                  const _Atomic bool *give_up, struct rbd_link **out,
                  struct diag *diag) MUST_USE;

/* ---- rbd_link.c ---- */

/* NULL: memory is short. */
struct rbd_link *rbd_link_new(void);
/* It has its client's number now. */
void rbd_link_make_known(struct rbd_link *link);
/* Both wait for the cluster; an image that isn't open is no harm. */
void rbd_link_close_image(struct rbd_link *link);
void rbd_link_destroy(struct rbd_link *link);

/* Waits a moment for what runs, then leaves the rest to it.  Returns how many early writes the
 * cluster may never have.  NULL is allowed. */
unsigned rbd_link_close(struct rbd_link *link);

/* Is the client of that number a link of this process that didn't ask for the lock? */
bool rbd_link_is_friendly(uint64_t client);

/* Something that uses the image begins, or has ended: then it must not touch the link any
 * more.  can_wait: the thread is ours, and may wait for a cluster. */
void rbd_link_enter(struct rbd_link *link);
void rbd_link_leave(struct rbd_link *link, bool can_wait);
/* The same for who has the link's lock.  rbd_link_count_out says whether rbd_link_end_orphan is
 * due when the lock was let go. */
void rbd_link_count_in(struct rbd_link *link);
bool rbd_link_count_out(struct rbd_link *link);
void rbd_link_end_orphan(struct rbd_link *link, bool can_wait);

/* ---- rbd_task.c ---- */

/* A function that waits for a cluster.  Part of something larger, which `free` frees. */
struct rbd_task {
    int (*run)(struct rbd_task *task); /* on a thread of its own; 0 or -errno */
    void (*free)(struct rbd_task *task);
    struct rbd_link *link; /* used by it; NULL: none */
    bool changes;          /* the image: later changes wait for it, wherever it ends */
    /* Set by another thread: it isn't waited for; NULL: none. */
    const _Atomic bool *give_up;
    struct diag diag; /* for `run` */
    bool abandoned;   /* for `free`: who asked has left */

    /* private */
    struct lock lock;
    pthread_cond_t ended;
    bool done;
    int err;
};

/* What `run` returned, with its words in diag (which may be NULL); the task is the caller's
 * to free, as it was.  -ETIMEDOUT, -ECANCELED: if it goes on alone *task is NULL then; else it
 * never began, as others of its link have to end first. */
int rbd_task_run(struct rbd_task **task, unsigned timeout_ms, struct diag *diag) MUST_USE;

/* Do so many without a link go on alone that there should be no more? */
bool rbd_too_many_tasks(void);

/* Would one of this link wait for others, which were left behind, to end? */
bool rbd_link_is_stuck(struct rbd_link *link);

/* ---- rbd_call.c ---- */

enum rbd_op { RBD_OP_READ, RBD_OP_WRITE, RBD_OP_ZERO, RBD_OP_DISCARD, RBD_OP_FLUSH };

/* When it was seen to that all has its place in the image: a change's own range, and what had
 * failed before.  What failed since may have none, and what was under way when the size became
 * unknown may have been cut. */
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
    bool early;        /* RBD_OP_WRITE: isn't waited for (rbd_early.c) */
    unsigned timeout_ms;
    struct rbd_since since; /* of a change or a flush */
};

/* One that librbd has, or an early write that failed. */
struct rbd_call {
    struct list link; /* rbd_link.calls or rbd_link.early.writes */
    struct rbd_link *on;
    struct rbd_request req; /* the caller's memory is used no longer than he waits */
    char *buffer;           /* for a read's bytes, or with an early write's */
    /* under the link's lock */
    pthread_cond_t ended;
    bool done, abandoned;
    ssize_t result; /* bytes, or -errno */
    /* of an early write */
    uint64_t number, begun_ms;
    int failed;         /* -errno; 0: it is under way */
    uint64_t failed_at; /* rbd_early.failures when it failed last; 0: it never did */
};

/* Makes the request and waits for it, if it isn't early.  0, -ETIMEDOUT, -ECANCELED, or -errno of
 * Ceph's, maybe for an early write that failed before. */
int rbd_call(struct rbd_link *link, const struct rbd_request *req) MUST_USE;

/* Gives it to librbd (again), counted among what runs.  0 or -errno: then it doesn't run, and under
 * the lock rbd_call_undo says so. */
int rbd_call_start(struct rbd_call *call) MUST_USE;
void rbd_call_undo(struct rbd_call *call);
void rbd_call_free(struct rbd_call *call);

/* Under the link's lock: waits until something has ended.  0: the deadline isn't there yet; else
 * -ETIMEDOUT or -ECANCELED. */
int rbd_wait_for_change(struct rbd_link *link, uint64_t deadline_ns) MUST_USE;
/* The same with another condition of the link's. */
int rbd_wait_for(struct rbd_link *link, pthread_cond_t *cond,
                 uint64_t deadline_ns) MUST_USE;

/* Until no change is under way; none begins before rbd_end_resize.  0, -ETIMEDOUT or -ECANCELED:
 * then nothing was begun. */
int rbd_begin_resize(struct rbd_link *link, uint64_t deadline_ns) MUST_USE;
void rbd_end_resize(struct rbd_link *link);

/* All who wait for calls, and who come, are answered with -ECANCELED. */
void rbd_call_abort_all(struct rbd_link *link);

static inline bool rbd_changes_image(enum rbd_op op)
{
    return op == RBD_OP_WRITE || op == RBD_OP_ZERO || op == RBD_OP_DISCARD;
}

/* ---- rbd_early.c: these under the link's lock ---- */

/* What a call has to wait for that comes now; NULL: for no early write.  `before`: those with
 * smaller numbers are meant. */
pthread_cond_t *rbd_early_obstacle(struct rbd_link *link, const struct rbd_request *req,
                                   uint64_t before);
/* One that failed and stands in the call's way; NULL: none does. */
struct rbd_call *rbd_early_failed(const struct rbd_link *link,
                                  const struct rbd_request *req, uint64_t before);
/* It is tried once more; the lock is let go meanwhile.  since: when its place was seen to. */
void rbd_early_try_again(struct rbd_call *call, struct rbd_since since);
void rbd_early_add(struct rbd_call *call);
void rbd_early_remove(struct rbd_call *call);
/* It has a result.  True: it did well, and is the caller's to free. */
bool rbd_early_end(struct rbd_call *call, ssize_t result) MUST_USE;
/* What failed in the range lies in memory alone: copies that over what was read. */
void rbd_early_overlay(const struct rbd_link *link, char *buf, uint64_t off, uint64_t len);

/* Those without it. */

/* Should a write of that length be answered early? */
bool rbd_early_is_wise(struct rbd_link *link, uint64_t len);
/* Is there any in the list? */
bool rbd_early_any(struct rbd_link *link);
/* No write that failed goes beyond. */
uint64_t rbd_early_failed_end(struct rbd_link *link);
/* Does any of the list go beyond? */
bool rbd_early_reaches_past(struct rbd_link *link, uint64_t end);
/* Frees those of a link that nobody uses any more. */
void rbd_early_drop(struct rbd_link *link);

/* ---- rbd_size.c ---- */

/* The image has so many bytes at least, and its size is known. */
int rbd_grow_to(struct rbd_storage *rbd, uint64_t bytes) MUST_USE;
/* Asks the cluster how large it is.  0 or -errno. */
int rbd_learn_size(struct rbd_storage *rbd) MUST_USE;
/* Since it was asked nobody has told of a change. */
bool rbd_size_is_known(const struct rbd_storage *rbd);
/* From any thread, and never waits: it may have changed. */
void rbd_doubt_size(struct rbd_link *link);
int rbd_truncate_storage(struct storage *st, uint64_t bytes) MUST_USE;

/* ---- rbd_lock.c, rbd_status.c: as the storage operations ---- */

int rbd_take_lock(struct rbd_storage *rbd, enum storage_lock_level level,
                  struct diag *diag) MUST_USE;
int rbd_find_extent(struct rbd_storage *rbd, uint64_t off, uint64_t len, bool *data,
                    uint64_t *run) MUST_USE;

/* ---- rbd_io.c ---- */

/* Until the cluster has all that was answered.  0 or -errno: it isn't known to have it. */
int rbd_settle(struct rbd_storage *rbd) MUST_USE;
/* The same when some of it lies past the end of an image that somebody has made smaller, and what
 * is asked for goes there, too: so that it is found below *size.  That is how large the image is
 * for who asks: others may learn of a smaller one at any moment. */
int rbd_settle_past_end(struct rbd_storage *rbd, uint64_t end, uint64_t *size) MUST_USE;

extern const struct storage_ops rbd_ops;

void rbd_close_storage(struct storage *st); /* in rbd.c */
void rbd_rest_storage(struct storage *st);
int rbd_start_storage(struct storage *st);

#endif
