/* SPDX-License-Identifier: BSD-3-Clause */
/* Taking clusters from the end of the file, and growing it. */
#include <errno.h>

#include "base/checked.h"
#include "block/node.h"
#include "block/tail.h"

/* The file grows by an eighth of what this session has taken, within these bounds (bytes): so
 * little is left over in a small image, and a busy one grows rarely. */
#define STEP_MIN (1u << 20)
#define STEP_MAX (64u << 20)

void tail_init(struct tail *tail, uint32_t cluster_size, uint64_t start, uint64_t file_size)
{
    *tail = (struct tail){
        .next = start,
        .end = MAX(start, align_up(file_size, cluster_size)),
        .cluster_size = cluster_size,
    };
    tail->fresh_from = tail->end;
    tail->durable = tail->frozen_end = tail->end;
}

uint64_t tail_take(struct tail *tail, uint64_t bytes, uint64_t *offset, bool *fresh)
{
    uint64_t n = MIN(bytes, tail->end - tail->next);

    /* All of a run is fresh, or nothing. */
    if (tail->next < tail->fresh_from)
        n = MIN(n, tail->fresh_from - tail->next);
    *offset = tail->next;
    *fresh = tail->next >= tail->fresh_from;
    tail->next += n;
    tail->taken += n;
    return n;
}

bool tail_settled(const struct tail *tail, uint64_t host_end)
{
    return host_end <= tail->durable;
}

uint64_t tail_next_end(const struct tail *tail, uint64_t bytes)
{
    uint64_t step = MIN(MAX(tail->taken / 8, STEP_MIN), STEP_MAX);

    return align_up(tail->end + MAX(bytes, step), tail->cluster_size);
}

int tail_grow(struct tail *tail, struct node *node, uint64_t new_end)
{
    if (node->file->fixed_size)
        return -ENOSPC;
    int err = storage_truncate(node->file, new_end);
    if (err)
        return err;
    storage_expect_pieces(node->file, tail->end, new_end - tail->end);
    LOCK_GUARD(mcache_meta(node->mc));
    tail_publish(tail, new_end);
    return 0;
}

void tail_publish(struct tail *tail, uint64_t new_end)
{
    tail->end = new_end;
}

void tail_cut(struct tail *tail, uint64_t new_end)
{
    tail->end = new_end;
    tail->durable = MIN(tail->durable, new_end);
    tail->frozen_end = MIN(tail->frozen_end, new_end);
}

void tail_frozen(struct tail *tail)
{
    tail->frozen_end = tail->end;
}

void tail_durable(struct tail *tail, struct node *node)
{
    LOCK_GUARD(mcache_meta(node->mc));
    if (tail->durable < tail->frozen_end)
        tail->durable = tail->frozen_end;
}
