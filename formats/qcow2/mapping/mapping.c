/* SPDX-License-Identifier: BSD-3-Clause */
/* Setting up a mapping: its L1 table, and the cached pages of both levels. */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "qcow2/internal.h"

void mapping_init(struct qcow2_mapping *m, struct qcow2 *q, const char *name)
{
    m->q = q;
    m->name = name;
    m->geo = q->geo;
    for (unsigned i = 0; i < TABLE_STRIPES; i++)
        lock_init(&m->table_lock[i], RANK_TABLE);
}

void mapping_destroy(struct qcow2_mapping *m)
{
    mcmap_free(m->l1_map);
    mcmap_free(m->l2_map);
    free((void *)m->l1);
    for (unsigned i = 0; i < TABLE_STRIPES; i++)
        lock_destroy(&m->table_lock[i]);
}

static uint64_t locate_l1(void *owner, uint64_t page_index)
{
    struct qcow2_mapping *m = owner;

    (void)page_index;
    return atomic_load(&m->l1_offset);
}

static uint64_t locate_l2(void *owner, uint64_t page_index)
{
    struct qcow2_mapping *m = owner;
    uint32_t in_table_bits = m->geo.l2_bits - m->geo.page_bits;
    uint64_t index = page_index >> in_table_bits;
    uint64_t entry = atomic_load_explicit(&m->l1[index], memory_order_acquire);
    uint64_t in_table = page_index & ((1ull << in_table_bits) - 1);

    if ((entry & L1_OFFSET) == 0 || mapping_check_l1(m, (uint32_t)index, entry))
        return 0;
    return (entry & L1_OFFSET) + (in_table << m->geo.page_bits << m->geo.word_bits) * 8;
}

int mapping_set_l1(struct qcow2_mapping *m, _Atomic uint64_t *l1, uint32_t n,
                   uint64_t offset)
{
    struct mcache *mc = m->q->node->mc;
    uint32_t in_table_bits = m->geo.l2_bits - m->geo.page_bits;
    uint32_t page_bytes = 8u << m->geo.word_bits << m->geo.page_bits;
    struct mcmap *map = mcmap_new_resident(mc, l1, n, MC_BE64, locate_l1, m);
    struct mcmap *pages =
        mcmap_new(mc, (uint64_t)n << in_table_bits, page_bytes, MC_BE64, locate_l2, m);

    if (!map || !pages) {
        mcmap_free(map);
        mcmap_free(pages);
        return -ENOMEM;
    }
    mcmap_free(m->l1_map);
    mcmap_free(m->l2_map);
    free((void *)m->l1);
    m->l1_map = map;
    m->l2_map = pages;
    m->l1 = l1;
    m->l1_size = n;
    atomic_store(&m->l1_offset, offset);
    return 0;
}

int mapping_read_l1(struct qcow2_mapping *m, uint64_t offset, uint32_t n)
{
    uint64_t bytes = (uint64_t)n * 8;
    CLEANUP_FREE uint8_t *raw = malloc(bytes + 1);
    CLEANUP_FREE _Atomic uint64_t *l1 = calloc(n + 1u, sizeof *l1);

    if (!raw || !l1)
        return -ENOMEM;
    int err = storage_read(m->q->node->file, raw, offset, bytes);
    if (err)
        return err;
    for (uint32_t i = 0; i < n; i++)
        atomic_init(&l1[i], load_be64(raw + (size_t)i * 8));
    err = mapping_set_l1(m, l1, n, offset);
    if (!err)
        l1 = NULL;
    return err;
}
