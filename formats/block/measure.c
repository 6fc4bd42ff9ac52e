/* SPDX-License-Identifier: BSD-3-Clause */
/* Measuring: the driver's calculation, and counting data. */
#include "block/measure.h"

#include <errno.h>

#include "base/checked.h"
#include "block/driver.h"
#include "block/node.h"

int measure_image(const struct driver *driver, const struct create_request *req,
                  struct node *source, struct image_measure *out, struct diag *diag)
{
    if (!driver->measure)
        return diag_set(diag, ENOTSUP,
                        "Block driver '%s' does not support size measurement",
                        driver->name);
    return driver->measure(req, source, out, diag);
}

int measure_data(struct node *source, uint64_t unit, uint64_t *bytes)
{
    struct block_status st;
    uint64_t counted = 0; /* everything before this is counted */

    *bytes = 0;
    for (uint64_t off = 0; off < source->size; off += st.length) {
        int err = block_status(source, off, source->size - off, &st);
        if (err)
            return err;
        uint64_t start = MAX(counted, align_down(off, unit));
        uint64_t end = align_up(off + st.length, unit);
        if (st.zero || end <= start)
            continue;
        *bytes += end - start;
        counted = end;
    }
    return 0;
}
