/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes how large an image will be.  The result equals QEMU's, which includes the tables for
 * the whole disk even if it is empty. */
#include <errno.h>

#include "block/measure.h"
#include "qcow2/create.h"
#include "qcow2/internal.h"

/* How many clusters the refcount table and blocks take that count `clusters` clusters and
 * themselves. */
static uint64_t refcount_clusters(const struct qcow2_params *p, uint64_t clusters)
{
    uint64_t cluster = geometry_cluster(&p->geo), blocks = 0, table = 0, before;
    uint64_t per_block = cluster * 8 >> p->geo.refcount_order;

    do {
        before = blocks + table;
        blocks = div_round_up(clusters + before, per_block);
        table = div_round_up(blocks, cluster / 8);
    } while (blocks + table != before);
    return before;
}

/* The metadata without the LUKS header, in bytes. */
static uint64_t metadata_bytes(const struct qcow2_params *p, uint64_t disk)
{
    uint64_t cluster = geometry_cluster(&p->geo), entry = 8u << p->geo.word_bits;
    uint64_t l2_tables = div_round_up(disk / cluster * entry, cluster);
    uint64_t l1_clusters = div_round_up(l2_tables * 8, cluster);
    uint64_t clusters = 1 + l2_tables + l1_clusters;

    return (clusters + refcount_clusters(p, clusters + disk / cluster)) * cluster;
}

int qcow2_measure(const struct create_request *req, struct node *source,
                  struct image_measure *out, struct diag *diag)
{
    struct qcow2_params p;
    uint64_t data = 0;

    int err = qcow2_parse_params(req, &p, diag);
    if (err)
        return err;
    uint64_t cluster = geometry_cluster(&p.geo), disk = align_up(p.size, cluster);
    uint64_t luks = align_up(qcow2_luks_bytes(&p), cluster);
    if (p.preallocation >= PREALLOC_FALLOC || (source && p.backing_file))
        data = disk;
    else if (source)
        err = measure_data(source, cluster, &data);
    if (err)
        return diag_errno(diag, -err, "%s: looking for its data", source->filename);
    out->allocated = metadata_bytes(&p, disk) + disk + luks;
    out->required = out->allocated - disk + data;
    return 0;
}
