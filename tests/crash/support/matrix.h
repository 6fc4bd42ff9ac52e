/* SPDX-License-Identifier: BSD-3-Clause */
/* The configurations that are tested. */
#ifndef CRASH_MATRIX_H
#define CRASH_MATRIX_H

#include "subject.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)

/* Much is freed and used again. */
#define CHURN                                                                  \
    {                                                                          \
        .requests = 300, .write = 40, .zero = 5, .zero_unmap = 18, .trim = 18, \
        .flush = 10, .fua = 3, .tick = 5, .settle = 1                          \
    }

/* Freed, and reused, with another client's flushes in between. */
#define PROMPTED                                                                           \
    {                                                                                      \
        .requests = 200, .write = 40, .zero = 5, .zero_unmap = 12, .trim = 14, .flush = 4, \
        .fua = 6, .tick = 5, .prompted = 8                                                 \
    }

/* A store that runs full now and then. */
#define FULL                                                                   \
    {                                                                          \
        .requests = 300, .write = 40, .zero = 5, .zero_unmap = 12, .trim = 14, \
        .flush = 14, .fua = 6, .tick = 6, .settle = 1, .failing = 12           \
    }

/* One that breaks. */
#define BROKEN                                                                 \
    {                                                                          \
        .requests = 200, .write = 40, .zero = 5, .zero_unmap = 12, .trim = 14, \
        .flush = 10, .fua = 6, .tick = 5, .failing = 60, .failing_flush = 40   \
    }

#define THREADS                       \
    {                                 \
        .requests = 320, .threads = 4 \
    }

extern const struct subject_config crash_matrix[];
extern const size_t crash_matrix_count;

/* Those where the disk's data isn't in the file as the guest sees it, or isn't in the file at
 * all. */
extern const struct subject_config crash_features[];
extern const size_t crash_features_count;

#endif
