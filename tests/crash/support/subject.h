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

enum data_place {
    DATA_INSIDE,
    DATA_FILE, /* in a file of its own */
    DATA_RAW,  /* and that file reads as the disk by itself */
};

struct subject_config {
    const char *name, *format;
    const char *create;  /* options of qemu-img create, NULL: none */
    const char *encrypt; /* more of them, with a passphrase; NULL: not encrypted */
    enum data_place data;
    bool packed;   /* what it is populated with is compressed */
    bool compress; /* and so is what the run writes */
    uint64_t disk_bytes;
    uint64_t created_bytes; /* the disk's size at first; 0: disk_bytes */
    uint64_t backing_bytes; /* 0: no backing file */
    unsigned populated;     /* percent of the disk written before the recording */
    bool snapshot;          /* taken after that */
    bool bitmaps;           /* kept in the image, made after that; see bitmaps.h */
    bool fixed_size;        /* the store can't grow; it has room for twice the disk */
    bool killed_only;   /* crashes of the server, not of the host: all that was written is
                           there */
    const char *cache;  /* NULL: writeback */
    int lazy_refcounts; /* as in node_options */
    size_t pool_bytes;  /* 0: plenty */
    struct workload load;
};

/* The files of one image, mem storages. */
struct files {
    struct storage *image, *data; /* data NULL: none */
};

struct subject {
    const struct subject_config *config;
    struct scratch scratch;
    char *image_path, *data_path; /* where states are put for the tools */
    char *image_options;          /* the image in the tools' words, when it is encrypted */
    struct files base;
    struct storage *backing; /* a mem storage; NULL: none */
    uint64_t n_sectors;
    uint32_t *initial;  /* the version each sector of `base` reads as */
    uint32_t *raw;      /* those its raw data file has; NULL: the same */
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

/* ---- files ---- */

struct files files_clone(struct files f);
struct files files_share(struct files f);
void files_close(struct files *f);

/* Puts them where the tools find them, and the other way round.  0 or -errno. */
int files_save(struct files f, const struct subject *s) MUST_USE;
int files_load(struct files *f, const struct subject *s) MUST_USE;

/* ---- QEMU's tools ---- */

#define TOOL_WORDS 24

/* "qemu-img COMMAND WORDS IMAGE MORE", quietly, the lists of words with NULL at the end or
 * NULL; returns its exit status, -1 when it could not run. */
int run_tool(const struct subject *s, const char *command, const char *const *words,
             const char *const *more);

/* ---- a node over a copy ---- */

struct session {
    struct block_context ctx;
    struct node *node;
    _Atomic uint64_t now; /* the clock, ns */
};

/* Opens an image over `files`, storages of any kind, which it takes.  0 or -errno. */
int session_open(struct session *se, const struct subject *s, struct files files,
                 bool writable);
/* The same with other choices of a user than the subject's runs have. */
int session_open_as(struct session *se, const struct subject *s, struct files files,
                    bool writable, bool compress);
int session_close(struct session *se);

#endif
