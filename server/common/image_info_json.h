/* SPDX-License-Identifier: BSD-3-Clause */
/* An image's description as JSON.  Layer: common. */
#ifndef COMMON_IMAGE_INFO_JSON_H
#define COMMON_IMAGE_INFO_JSON_H

#include <jansson.h>

#include "block/image_info.h"

/* QMP's ImageInfo, which is also the object of `qimg info --output=json`.  Members have
 * QEMU's names and order. */
json_t *image_info_json(const struct image_info *info);

/* QMP's SnapshotInfo. */
json_t *snapshot_info_json(const struct snapshot_info *s);

#endif
