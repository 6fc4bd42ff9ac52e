/* SPDX-License-Identifier: BSD-3-Clause */
/* The configurations that are tested. */
#ifndef CRASH_MATRIX_H
#define CRASH_MATRIX_H

#include "subject.h"

extern const struct subject_config crash_matrix[];
extern const size_t crash_matrix_count;

#endif
