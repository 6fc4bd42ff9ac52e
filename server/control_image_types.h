/* SPDX-License-Identifier: BSD-3-Clause */
/* The types of the values that common/image_info_json.h makes.  Layer: server. */
#ifndef SERVER_CONTROL_IMAGE_TYPES_H
#define SERVER_CONTROL_IMAGE_TYPES_H

#include "control_types.h"

extern const struct control_type control_image_info, control_snapshot_info;

#endif
