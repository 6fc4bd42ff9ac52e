/* SPDX-License-Identifier: BSD-3-Clause */
/* Making images: the store around what a driver writes. */
#include <errno.h>
#include <inttypes.h>

#include "block/create.h"
#include "block/driver.h"
#include "storage/protocol.h"

#define SECTOR 512u

static int check_exact_size(const struct driver *driver, const struct create_request *req,
                            struct diag *diag)
{
    if (!req->exact_size || req->size % SECTOR == 0 || !driver_can(driver, DRIVER_CLUSTERS))
        return 0;
    return diag_set(diag, EINVAL,
                    "%s: the disk's %" PRIu64 " bytes are no multiple of %u, as %s "
                    "images have them: say format=raw",
                    req->filename, req->size, SECTOR, driver->name);
}

int create_image(const struct driver *driver, const struct create_request *req,
                 struct diag *diag)
{
    const struct storage_protocol *protocol =
        req->protocol ? req->protocol : &storage_protocol_file;
    struct storage *st;

    if (!protocol->create)
        return diag_set(diag, ENOTSUP, "%s: images can't be made by the protocol %s",
                        req->filename, protocol->name);
    int err = check_exact_size(driver, req, diag);
    if (err)
        return err;
    err = driver->check_create(req, diag);
    if (err)
        return err;
    err = protocol->create(req->filename, &req->hints, &st, diag);
    if (err)
        return err;
    bool is_ours = !st->fixed_size;
    err = driver->create(st, req, diag);
    if (err && is_ours)
        protocol->remove(req->filename);
    return err;
}
