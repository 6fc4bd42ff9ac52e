/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of optional features. */
#include "common/build_features.h"

#include <stddef.h>

#include "storage/rbd.h"

static const bool yes = true, no = false;

const struct build_feature build_features[] = {
    {"zstd", &yes}, {"luks", &yes}, {"rbd", &rbd_is_there}, {"io_uring", &no}, {NULL, NULL},
};
