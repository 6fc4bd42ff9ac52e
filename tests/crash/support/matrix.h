/* SPDX-License-Identifier: BSD-3-Clause */
/* The configurations of images and workloads that crash_matrix.c tests. */
#ifndef CRASH_MATRIX_H
#define CRASH_MATRIX_H

#include "subject.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)

/* Workload: many clusters are freed and reused. */
#define CHURN                                                                  \
    {                                                                          \
        .requests = 300, .write = 40, .zero = 5, .zero_unmap = 18, .trim = 18, \
        .flush = 10, .fua = 3, .tick = 5, .settle = 1                          \
    }

/* Workload: clusters are freed and reused while another client flushes in between (see
 * prompter.h). */
#define PROMPTED                                                                           \
    {                                                                                      \
        .requests = 200, .write = 40, .zero = 5, .zero_unmap = 12, .trim = 14, .flush = 4, \
        .fua = 6, .tick = 5, .prompted = 8                                                 \
    }

/* Workload: some changes of the file fail with ENOSPC. */
#define FULL                                                                   \
    {                                                                          \
        .requests = 300, .write = 40, .zero = 5, .zero_unmap = 12, .trim = 14, \
        .flush = 14, .fua = 6, .tick = 6, .settle = 1, .failing = 12           \
    }

/* Workload: some changes of the file fail, and then a flush does. */
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

/* The configurations with subclusters, compression, encryption or an external data file. */
extern const struct subject_config crash_features[];
extern const size_t crash_features_count;

#endif
