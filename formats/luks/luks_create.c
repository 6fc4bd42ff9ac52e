/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates empty LUKS containers.  The disk's initial content is what the zeroes of the new file
 * decrypt to, as in containers of other programs. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "block/luks_options.h"
#include "block/luks_store.h"
#include "block/measure.h"
#include "luks/luks_image.h"

const struct create_option_info luks_create_options[] = {
    CREATE_OPTION_SIZE,
    LUKS_CREATE_OPTIONS(""),
    CREATE_OPTION_NOCOW,
    CREATE_OPTION_EXTENT,
    {0},
};

/* *bytes: the size of the container. */
static int plan_bytes(const struct create_request *req, const struct luks_params *params,
                      uint64_t *bytes, struct diag *diag)
{
    uint64_t size;

    if (req->exact_size && !is_aligned(req->size, CIPHER_SECTOR))
        return diag_set(diag, EINVAL,
                        "%s: a size of %" PRIu64 " bytes: must be a multiple of %u",
                        req->filename, req->size, CIPHER_SECTOR);
    if (add_overflows(req->size, CIPHER_SECTOR - 1, &size) ||
        add_overflows(align_down(size, CIPHER_SECTOR), luks_payload_offset(params),
                      bytes) ||
        *bytes > INT64_MAX)
        return diag_set(diag, EFBIG, "%s: the size is too large", req->filename);
    return 0;
}

static int parse_request(const struct create_request *req, struct luks_params *params,
                         uint64_t *bytes, struct diag *diag)
{
    *params = luks_default_params;
    for (size_t i = 0; i < req->n_options; i++) {
        int err = luks_option_take(params, req->filename, "", &req->options[i], diag);
        if (err == -ENOENT)
            return diag_set(diag, EINVAL, "%s: LUKS images have no option '%s'",
                            req->filename, req->options[i].key);
        if (err)
            return err;
    }
    if (req->backing_file)
        return diag_set(diag, ENOTSUP, "%s: LUKS images have no backing file",
                        req->filename);
    if (!req->passphrase)
        return diag_set(
            diag, EINVAL,
            "%s: key-secret: is required: the id of a secret with the passphrase",
            req->filename);
    int err = luks_options_judge(params, req->filename, "", diag);
    return err ? err : plan_bytes(req, params, bytes, diag);
}

int luks_check_create(const struct create_request *req, struct diag *diag)
{
    struct luks_params params;
    uint64_t bytes;

    return parse_request(req, &params, &bytes, diag);
}

/* All of it is written, whatever the source has. */
int luks_measure(const struct create_request *req, struct node *source,
                 struct image_measure *out, struct diag *diag)
{
    struct luks_params params;
    uint64_t bytes;
    (void)source;

    int err = parse_request(req, &params, &bytes, diag);
    if (!err)
        *out = (struct image_measure){.required = bytes, .allocated = bytes};
    return err;
}

int luks_create(struct storage *st, struct storage *data, const struct create_request *req,
                struct diag *diag)
{
    CLEANUP_STORAGE struct storage *file = st;
    CLEANUP_CIPHER struct cipher *cipher = NULL;
    struct luks_params params;
    uint64_t bytes;
    (void)data; /* LUKS images have no data file */

    int err = parse_request(req, &params, &bytes, diag);
    if (err)
        return err;
    err = storage_truncate(file, bytes);
    if (err)
        return diag_errno(diag, -err, "%s: cannot be given %" PRIu64 " bytes", file->name,
                          bytes);
    struct luks_place place = {.file = file, .limit = bytes, .name = req->filename};
    err = luks_make_container(&place, &params, req->passphrase, req->passphrase_len,
                              &cipher, diag);
    if (err)
        return err;
    err = storage_flush(file);
    return err ? diag_errno(diag, -err, "%s: cannot be written", file->name) : 0;
}
