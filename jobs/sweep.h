/* SPDX-License-Identifier: BSD-3-Clause */
/* Goes over a range of a disk once, with several threads, for offline commands.  Pieces are
 * handed out from low to high, and one thread works on each.  The caller waits, and is told
 * the progress.  Layer: jobs. */
#ifndef JOBS_SWEEP_H
#define JOBS_SWEEP_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct sweep {
    uint64_t start, end;
    /* Bytes handed out at once, a power of two.  Pieces end at multiples of it from `start`. */
    uint64_t piece;
    unsigned threads;    /* 1..SWEEP_MAX_THREADS */
    size_t buffer_bytes; /* of each thread's buffer, page aligned; 0: no buffer */
    uint64_t speed;      /* bytes moved per second; 0: no limit */
    /* Works on a piece.  *moved: bytes that count for `speed` and `flush`; 0 before.  Returns
     * 0, or a result that ends the sweep: running pieces are finished, and none is begun. */
    int (*work)(void *opaque, void *buffer, uint64_t off, uint64_t len, uint64_t *moved);
    /* Optional, on the caller's thread: the number of bytes dealt with, which never falls. */
    void (*progress)(void *opaque, uint64_t done);
    /* Optional, on the caller's thread, each time SWEEP_FLUSH_BYTES more were moved, while the
     * other threads go on.  So the disk writes during the copy, and little is left for the
     * last flush.  A result other than 0 ends the sweep. */
    int (*flush)(void *opaque);
    void *opaque;
    const volatile sig_atomic_t *stop; /* the sweep ends when it isn't 0; NULL: never */
};

#define SWEEP_MAX_THREADS 16
#define SWEEP_FLUSH_BYTES (64u << 20)

/* A number of threads that suits the machine. */
unsigned sweep_threads(void);

/* A piece size for a range of so many bytes: every thread gets several pieces, of at least
 * `least` bytes (a power of two). */
uint64_t sweep_piece(uint64_t bytes, uint64_t least);

/* Returns 0; or the result of the lowest piece that had one, else that of a flush; -EINTR if
 * it was stopped; another -errno if it couldn't start. */
int sweep_run(const struct sweep *sweep) MUST_USE;

#endif
