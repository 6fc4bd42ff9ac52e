/* SPDX-License-Identifier: BSD-3-Clause */
/* Which optional features this build has.  Layer: common. */
#ifndef COMMON_BUILD_FEATURES_H
#define COMMON_BUILD_FEATURES_H

#include <stdbool.h>

struct build_feature {
    const char *name; /* as shown by nbdkit --dump-plugin and `qimg version` */
    const bool *present;
};

/* Ends with a NULL name. */
extern const struct build_feature build_features[];

#endif
