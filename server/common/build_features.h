/* SPDX-License-Identifier: BSD-3-Clause */
/* What this build has, and what it hasn't, of what another build may have.  Layer: common. */
#ifndef COMMON_BUILD_FEATURES_H
#define COMMON_BUILD_FEATURES_H

#include <stdbool.h>

struct build_feature {
    const char *name; /* as nbdkit --dump-plugin and `qimg version` have it */
    const bool *present;
};

/* Ends with one without a name. */
extern const struct build_feature build_features[];

#endif
