/* SPDX-License-Identifier: BSD-3-Clause */
/* Goes over a range of a disk once, with several threads: what offline commands do.  Pieces
 * are handed out from low to high, and each is worked on by one thread; the caller waits,
 * and is told how far they are.  Layer: jobs. */
#ifndef JOBS_SWEEP_H
#define JOBS_SWEEP_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct sweep {
    uint64_t start, end;
    uint64_t piece; /* bytes handed out at once, a power of two: pieces end on multiples of
                       it, counted from `start` */
    unsigned threads;    /* 1..SWEEP_MAX_THREADS */
    size_t buffer_bytes; /* of each thread's buffer, page aligned; 0: none */
    uint64_t speed;      /* bytes that are moved in a second; 0: no limit */
    /* Works on a piece; *moved: bytes that count for `speed` and `flush`, set to 0 before.  0,
     * or a result that ends the sweep: what began is ended, and nothing behind it is begun. */
    int (*work)(void *opaque, void *buffer, uint64_t off, uint64_t len, uint64_t *moved);
    /* Optional, on the caller's thread: bytes that were dealt with, which only rise. */
    void (*progress)(void *opaque, uint64_t done);
    /* Optional, on the caller's thread, whenever SWEEP_FLUSH_BYTES more were moved, while the
     * others go on: the disk works while there is more to copy, and the last flush finds
     * little left to do.  Its result, if not 0, ends the sweep. */
    int (*flush)(void *opaque);
    void *opaque;
    const volatile sig_atomic_t *stop; /* when it isn't 0 the sweep ends; NULL: never */
};

#define SWEEP_MAX_THREADS 16
#define SWEEP_FLUSH_BYTES (64u << 20)

/* How many threads suit a machine, when nobody says. */
unsigned sweep_threads(void);

/* A piece that gives each thread of a range of so many bytes several, of at least `least`
 * bytes (a power of two). */
uint64_t sweep_piece(uint64_t bytes, uint64_t least);

/* 0; the result of the lowest piece that had one, or else of a flush; -EINTR: it was
 * stopped; -ENOMEM and the like: it couldn't begin. */
int sweep_run(const struct sweep *sweep) MUST_USE;

#endif
