/* SPDX-License-Identifier: BSD-3-Clause */
/* The image under test: how it is made, and nodes over copies of it. */
#ifndef CRASH_SUBJECT_H
#define CRASH_SUBJECT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "scratch.h"
#include "structure.h"

#define SECOND UINT64_C(1000000000)

/* What a run does how often; 0 is never. */
struct workload {
    unsigned requests; /* of all threads together; 0: 250 */
    unsigned threads;  /* 0: one */
    unsigned write, zero, zero_unmap, trim, flush, fua, tick, settle; /* all 0: a mixture */
    uint32_t max_sectors; /* of one request; 0: 96 */
    unsigned prompted;    /* in one of so many moments another client speaks up; 0: never */
    unsigned failing;     /* one of so many changes of the file fails; 0: none */
    unsigned failing_flush; /* the same for flushes; the first ends it all */
    bool end_with_kill;     /* else with a clean close */
};

struct subject_config {
    const char *name, *format;
    const char *create; /* options of qemu-img create, NULL: none */
    uint64_t disk_bytes;
    uint64_t created_bytes; /* the disk's size at first; 0: disk_bytes */
    uint64_t backing_bytes; /* 0: no backing file */
    unsigned populated;     /* percent of the disk written before the recording */
    bool snapshot;          /* taken after that */
    bool fixed_size;        /* the store can't grow; it has room for twice the disk */
    bool killed_only;   /* crashes of the server, not of the host: all that was written is
                           there */
    bool compress;      /* whole clusters are stored compressed; not with a snapshot */
    const char *cache;  /* NULL: writeback */
    int lazy_refcounts; /* as in node_options */
    size_t pool_bytes;  /* 0: plenty */
    struct workload load;
};

struct subject {
    const struct subject_config *config;
    struct scratch scratch;
    char *image_path;               /* where states are put for the tools */
    struct storage *base, *backing; /* mem storages; backing NULL: none */
    uint64_t n_sectors;
    uint32_t *initial;  /* the version each sector of `base` reads as */
    uint32_t *snapshot; /* those the snapshot has; NULL: none */
    uint32_t next_version;
};

/* Versions 1 and 2 are the backing file's and the population's. */
#define VERSION_BACKING 1u
#define VERSION_BASE    2u
#define VERSION_FIRST   1000u

/* Aborts the test on failure. */
void subject_make(struct subject *s, const struct subject_config *config);
void subject_remove(struct subject *s);

void subject_structure(const struct subject *s, struct storage *st, struct structure *out);

/* Runs a command of words, NULL at the end, quietly; returns its exit status, -1 when it
 * could not run. */
int run_tool(const struct subject *s, const char *const *words);

/* ---- a node over a copy ---- */

struct session {
    struct block_context ctx;
    struct node *node;
    _Atomic uint64_t now; /* the clock, ns */
};

/* Opens an image over `file`, which it takes.  0 or -errno. */
int session_open(struct session *se, const struct subject *s, struct storage *file,
                 bool writable);
int session_close(struct session *se);

#endif
