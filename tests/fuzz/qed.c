/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes QED images: a session (support/image_session.c) opens one, sends it requests of all
 * kinds, closes it and opens it again. */
#include "image_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image_input in;

    if (image_input_parse(data, size, &in))
        image_session(&in, driver_find("qed"));
    return 0;
}
