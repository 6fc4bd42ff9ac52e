/* SPDX-License-Identifier: BSD-3-Clause */
/* Creating raw images. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "raw/raw.h"
#include "storage/storage.h"

const struct create_option_info raw_create_options[] = {
    {"size", CREATE_SIZE, NULL, "Virtual disk size"},
    CREATE_NOCOW_OPTION,
    {"preallocation", CREATE_TEXT, NULL, "What to allocate now: off, falloc or full"},
    CREATE_EXTENT_OPTION,
    {0},
};

#define SECTOR      512
#define ZERO_BUFFER (1u << 20)

enum preallocation { PREALLOC_OFF, PREALLOC_FALLOC, PREALLOC_FULL };

struct raw_options {
    enum preallocation preallocation;
};

static int parse_preallocation(const char *word, enum preallocation *out)
{
    static const char *const words[] = {
        [PREALLOC_OFF] = "off", [PREALLOC_FALLOC] = "falloc", [PREALLOC_FULL] = "full"};

    for (unsigned i = 0; i < ARRAY_LEN(words); i++) {
        if (strcmp(word, words[i]) == 0) {
            *out = (enum preallocation)i;
            return 0;
        }
    }
    return -EINVAL;
}

static int parse_options(struct create_request *req, struct raw_options *out,
                         struct diag *diag)
{
    *out = (struct raw_options){.preallocation = PREALLOC_OFF};
    for (size_t i = 0; i < req->n_options; i++) {
        struct create_option *o = &req->options[i];
        int rc;
        if (strcmp(o->key, "preallocation") == 0)
            rc = parse_preallocation(o->value, &out->preallocation);
        else
            return diag_set(diag, EINVAL, "%s: raw images have no option '%s'",
                            req->filename, o->key);
        if (rc < 0)
            return diag_set(diag, EINVAL, "%s: %s doesn't take the value '%s'",
                            req->filename, o->key, o->value);
        o->used = true;
    }
    if (req->backing_file)
        return diag_set(diag, ENOTSUP, "%s: raw images have no backing file",
                        req->filename);
    return 0;
}

static int write_zeroes(struct storage *file, uint64_t size)
{
    CLEANUP_FREE uint8_t *zeroes = calloc(1, ZERO_BUFFER);
    if (!zeroes)
        return -ENOMEM;
    for (uint64_t off = 0; off < size; off += ZERO_BUFFER) {
        int rc = storage_write(file, zeroes, off, MIN(size - off, ZERO_BUFFER), 0);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int fill(struct storage *file, uint64_t size, enum preallocation how,
                struct diag *diag)
{
    /* A device has its size and its blocks. */
    bool reserve = how == PREALLOC_FALLOC && !file->fixed_size;
    int rc = reserve ? storage_preallocate(file, 0, size) : storage_truncate(file, size);
    if (rc < 0)
        return diag_errno(diag, -rc, "%s: cannot be given %" PRIu64 " bytes", file->name,
                          size);

    if (how == PREALLOC_FULL)
        rc = write_zeroes(file, size);
    if (rc == 0)
        rc = storage_flush(file);
    return rc < 0 ? diag_errno(diag, -rc, "%s: cannot be written", file->name) : 0;
}

int raw_create(struct create_request *req, struct diag *diag)
{
    struct raw_options options;
    int rc = parse_options(req, &options, diag);
    if (rc < 0)
        return rc;
    uint64_t size;
    if (add_overflows(req->size, SECTOR - 1, &size))
        return diag_set(diag, EFBIG, "%s: the size is too large", req->filename);
    size = align_down(size, SECTOR);

    struct storage *file;
    rc = storage_create_file(req->filename, &file, diag);
    if (rc < 0)
        return rc;
    bool is_device = file->fixed_size;
    storage_set_hints(file, &req->hints);
    rc = fill(file, size, options.preallocation, diag);
    storage_close(file);
    if (rc < 0 && !is_device)
        unlink(req->filename);
    return rc;
}
