/* SPDX-License-Identifier: BSD-3-Clause */
/* Takes clusters from the end of the file, or from those that failed writes gave back. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/no_space.h"
#include "qed/image.h"

void qed_space_init(struct qed_space *space, struct node *node, uint64_t file_end)
{
    *space = (struct qed_space){.node = node};
    atomic_init(&space->file_end, file_end);
    lock_init(&space->growth, RANK_GROWTH);
}

void qed_space_look_again(struct qed_space *space, uint32_t cluster_size)
{
    uint64_t size;

    if (!space->node->active && storage_size(space->node->file, &size) == 0 &&
        size <= (uint64_t)INT64_MAX - cluster_size)
        atomic_store(&space->file_end, align_up(size, cluster_size));
}

void qed_space_destroy(struct qed_space *space)
{
    lock_destroy(&space->growth);
}

void qed_space_activate(struct qed_space *space, uint32_t cluster_size, uint64_t file_end)
{
    atomic_store(&space->file_end, file_end);
    tail_init(&space->tail, cluster_size, file_end, file_end);
}

/* META: takes from the first run that is long enough. */
static bool take_released(struct qed_space *space, uint64_t least, uint64_t most,
                          struct qed_clusters *out)
{
    for (unsigned i = 0; i < space->n_released; i++) {
        struct qed_clusters *run = &space->released[i];
        if (run->length < least)
            continue;
        *out =
            (struct qed_clusters){.offset = run->offset, .length = MIN(run->length, most)};
        run->offset += out->length;
        run->length -= out->length;
        if (run->length == 0)
            *run = space->released[--space->n_released];
        return true;
    }
    return false;
}

/* META: has the tail at least this many bytes? */
static bool tail_has(const struct qed_space *space, uint64_t bytes)
{
    return space->tail.end - space->tail.next >= bytes;
}

/* Growth lock.  Moves the tail behind everything that tables point to.  Nothing was linked in
 * this session yet, so the tables in the file are complete. */
static int move_behind_references(struct qed_space *space)
{
    struct node *node = space->node;
    uint64_t end;

    int err = qed_last_reference(node->state, &end);
    if (err < 0 || end <= space->tail.end)
        return err;
    log_warning("%s: tables point up to offset %" PRIu64
                ", past the end of the file: it was cut short, and data is lost",
                node->filename, end);
    err = storage_truncate(node->file, end);
    if (err < 0)
        return err;
    LOCK_GUARD(mcache_meta(node->mc));
    tail_init(&space->tail, space->tail.cluster_size, end, end);
    atomic_store(&space->file_end, end);
    return 0;
}

/* Extends the file so that its tail has at least `least` bytes, unless another thread has done
 * so. */
static int grow_file(struct qed_space *space, uint64_t least, uint64_t most)
{
    struct lock *meta = mcache_meta(space->node->mc);
    LOCK_GUARD(&space->growth);

    int err = space->end_is_sure ? 0 : move_behind_references(space);
    if (err < 0)
        return err;
    space->end_is_sure = true;

    lock_acquire(meta);
    bool enough = tail_has(space, least);
    uint64_t old_end = space->tail.end;
    uint64_t new_end = tail_next_end(&space->tail, most);
    uint64_t least_end = space->tail.next + least;
    lock_release(meta);
    if (enough)
        return 0;

    /* Lookups compare with file_end, so it moves before clusters there can be linked. */
    atomic_store(&space->file_end, new_end);
    err = tail_grow(&space->tail, space->node, new_end);
    /* If the usual step is too large (disk full, size limit), try the smallest one. */
    if (means_no_space(err) && least_end < new_end) {
        atomic_store(&space->file_end, least_end);
        err = tail_grow(&space->tail, space->node, least_end);
    }
    if (err < 0)
        atomic_store(&space->file_end, old_end);
    return err;
}

int qed_space_take(struct qed_space *space, uint64_t least, uint64_t most,
                   struct qed_clusters *out)
{
    struct lock *meta = mcache_meta(space->node->mc);

    for (;;) {
        lock_acquire(meta);
        bool got = take_released(space, least, most, out);
        if (!got && tail_has(space, least)) {
            out->length = tail_take(&space->tail, most, &out->offset, &out->fresh);
            assert(out->length >= least);
            got = true;
        }
        lock_release(meta);
        if (got)
            return 0;
        int err = grow_file(space, least, most);
        if (err < 0)
            return err;
    }
}

void qed_space_put(struct qed_space *space, uint64_t offset, uint64_t length)
{
    lock_assert_held(mcache_meta(space->node->mc));
    if (length == 0)
        return;
    for (unsigned i = 0; i < space->n_released; i++) {
        struct qed_clusters *run = &space->released[i];
        if (run->offset + run->length == offset) {
            run->length += length;
            return;
        }
        if (offset + length == run->offset) {
            run->offset = offset;
            run->length += length;
            return;
        }
    }
    /* If the list is full the clusters leak, as they would in a crash. */
    if (space->n_released < QED_MAX_RELEASED)
        space->released[space->n_released++] =
            (struct qed_clusters){.offset = offset, .length = length};
}

int qed_space_try(struct qed_space *space, int (*what)(struct storage *, uint64_t))
{
    struct storage *st = space->node->file;
    LOCK_GUARD(&space->growth);
    /* The end changes under the growth lock only. */
    uint64_t end = space->tail.end;

    int err = storage_truncate(st, end + space->tail.cluster_size);
    if (err < 0)
        return err;
    err = what(st, end);
    int cut = storage_truncate(st, end);
    return err ? err : cut;
}

bool qed_space_settled(const struct qed_space *space, const struct qed_clusters *clusters)
{
    return clusters->fresh &&
           tail_settled(&space->tail, clusters->offset + clusters->length);
}

/* META: the end of the last used cluster.  Released clusters before it are unused, and are
 * removed from the list. */
static uint64_t used_end(struct qed_space *space)
{
    uint64_t end = space->tail.next;

    for (unsigned i = 0; i < space->n_released;) {
        if (space->released[i].offset + space->released[i].length != end) {
            i++;
            continue;
        }
        end = space->released[i].offset;
        space->released[i] = space->released[--space->n_released];
        i = 0;
    }
    return end;
}

int qed_space_trim(struct qed_space *space)
{
    struct node *node = space->node;
    struct lock *meta = mcache_meta(node->mc);
    LOCK_GUARD(&space->growth);

    lock_acquire(meta);
    uint64_t end = used_end(space);
    bool trimmed = end == space->tail.end;
    lock_release(meta);
    if (trimmed)
        return 0;
    int err = storage_truncate(node->file, end);
    mcache_note_write(node->mc);
    if (err < 0)
        return err;

    /* What is cut and grown again is fresh, and its growth isn't durable: also if a group that
     * is being written was frozen with a larger end. */
    LOCK_GUARD(meta);
    uint64_t taken = space->tail.taken;
    tail_init(&space->tail, space->tail.cluster_size, end, end);
    space->tail.taken = taken;
    atomic_store(&space->file_end, end);
    return 0;
}
