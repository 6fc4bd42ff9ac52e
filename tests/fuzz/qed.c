/* SPDX-License-Identifier: BSD-3-Clause */
/* QED images with any bytes: opened, read, changed in every way, closed, opened again. */
#include "image_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image_input in;

    if (image_input_parse(data, size, &in))
        image_session(&in, driver_find("qed"));
    return 0;
}
