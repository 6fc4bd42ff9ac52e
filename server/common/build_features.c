/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of features. */
#include "common/build_features.h"

#include <stddef.h>

const struct build_feature build_features[] = {
    {"zstd", true},
    {"luks", true},
    {"io_uring", false},
    {NULL, false},
};
