/* SPDX-License-Identifier: BSD-3-Clause */
/* The subject of a crash test: an image made as a configuration says, with the known version
 * (stamp.h) of each sector.  A session is a node opened on a copy of its files. */
#ifndef CRASH_SUBJECT_H
#define CRASH_SUBJECT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "scratch.h"
#include "structure.h"

#define SECOND UINT64_C(1000000000)

/* The requests of a random run.  The kinds (write to settle) are relative frequencies; 0: never. */
struct workload {
    unsigned requests; /* of all threads together; 0: 250 */
    unsigned threads;  /* 0: one */
    unsigned write, zero, zero_unmap, trim, flush, fua, tick, settle; /* all 0: a mixture */
    uint32_t max_sectors; /* of one request; 0: 96 */
    unsigned prompted;    /* one in n: how often another client's request runs; 0: never */
    unsigned failing;     /* one in n changes of the file fails; 0: none */
    unsigned failing_flush; /* one in n flushes fails; then all further changes do */
    bool end_with_kill;     /* else a clean close (or, for some seeds, a kill) */
};

enum data_place {
    DATA_INSIDE,
    DATA_FILE, /* in an external data file */
    DATA_RAW,  /* the same, with data_file_raw=on: the file by itself reads as the disk */
};

struct subject_config {
    const char *name, *format;
    const char *create;  /* options for qemu-img create -o; NULL: none */
    const char *encrypt; /* more options, for an encrypted image; NULL: not encrypted */
    enum data_place data;
    bool packed;   /* the data written before the recording is compressed */
    bool compress; /* the data written in the run is compressed, too */
    uint64_t disk_bytes;
    uint64_t created_bytes; /* the disk's size at first; 0: disk_bytes */
    uint64_t backing_bytes; /* 0: no backing file */
    unsigned populated;     /* percent of the disk written before the recording */
    bool snapshot;          /* then qemu-img makes a snapshot */
    bool bitmaps;           /* then qemu-img adds persistent bitmaps; see bitmaps.h */
    bool fixed_size;        /* the storage can't grow; it has room for twice the disk */
    bool killed_only;   /* only crashes of the server, not of the host: no written byte is
                           lost */
    const char *cache;  /* NULL: writeback */
    int lazy_refcounts; /* as in node_options */
    size_t pool_bytes;  /* metadata cache; 0: plenty */
    struct workload load;
};

/* The files of one image, as mem storages. */
struct files {
    struct storage *image, *data; /* data NULL: none */
};

struct subject {
    const struct subject_config *config;
    struct scratch scratch;
    char *image_path, *data_path; /* where states are saved for QEMU's tools */
    char *image_options;          /* encrypted: the image as an --image-opts string */
    struct files base;
    struct storage *backing; /* a mem storage; NULL: none */
    uint64_t n_sectors;
    uint32_t *initial;  /* the version of each sector of `base` */
    uint32_t *raw;      /* the versions in the raw data file; NULL: the same */
    uint32_t *snapshot; /* the versions in the snapshot; NULL: no snapshot */
    uint32_t next_version;
};

/* Versions of the backing file's data, of the data written before the recording, and of the first
 * request. */
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

/* Saves the files as image_path and data_path for QEMU's tools; loads them from there.  0 or
 * -errno. */
int files_save(struct files f, const struct subject *s) MUST_USE;
int files_load(struct files *f, const struct subject *s) MUST_USE;

/* ---- QEMU's tools ---- */

#define TOOL_WORDS 24

/* Runs "qemu-img COMMAND WORDS IMAGE MORE" without showing its output.  The lists end with NULL,
 * or are NULL.  Returns the exit status, or -1 when it couldn't be run. */
int run_tool(const struct subject *s, const char *command, const char *const *words,
             const char *const *more);

/* ---- a node over a copy ---- */

struct session {
    struct block_context ctx;
    struct node *node;
    _Atomic uint64_t now; /* the clock, ns */
};

/* Opens an image on `files`, which may be storages of any kind; takes ownership of them.  0 or
 * -errno. */
int session_open(struct session *se, const struct subject *s, struct files files,
                 bool writable);
/* The same, with `compress` instead of the configuration's. */
int session_open_as(struct session *se, const struct subject *s, struct files files,
                    bool writable, bool compress);
int session_close(struct session *se);

#endif
