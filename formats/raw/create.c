/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates empty raw images. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "raw/raw.h"
#include "storage/protocol.h"

const struct create_option_info raw_create_options[] = {
    CREATE_OPTION_SIZE,
    CREATE_OPTION_NOCOW,
    {"preallocation", CREATE_TEXT, .help = "What to allocate now: off, falloc or full"},
    CREATE_OPTION_EXTENT,
    {0},
};

#define SECTOR      512
#define FIRST_BLOCK 4096
#define ZERO_BUFFER (1u << 20)

enum preallocation { PREALLOC_OFF, PREALLOC_FALLOC, PREALLOC_FULL };

struct raw_params {
    uint64_t size; /* rounded up to whole sectors, unless exact_size */
    enum preallocation preallocation;
    const _Atomic bool *give_up; /* as in the request */
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

static int parse_options(const struct create_request *req, struct raw_params *out,
                         struct diag *diag)
{
    for (size_t i = 0; i < req->n_options; i++) {
        const struct create_option *o = &req->options[i];
        if (strcmp(o->key, "preallocation") != 0)
            return diag_set(diag, EINVAL, "%s: raw images have no option '%s'",
                            req->filename, o->key);
        if (parse_preallocation(o->value, &out->preallocation))
            return diag_set(diag, EINVAL, "%s: %s doesn't take the value '%s'",
                            req->filename, o->key, o->value);
    }
    return 0;
}

static int parse_params(const struct create_request *req, struct raw_params *out,
                        struct diag *diag)
{
    *out = (struct raw_params){.preallocation = PREALLOC_OFF, .give_up = req->give_up};
    int err = parse_options(req, out, diag);
    if (err)
        return err;
    if (req->backing_file)
        return diag_set(diag, ENOTSUP, "%s: raw images have no backing file",
                        req->filename);
    if (add_overflows(req->size, SECTOR - 1, &out->size))
        return diag_set(diag, EFBIG, "%s: the size is too large", req->filename);
    out->size = req->exact_size ? req->size : align_down(out->size, SECTOR);
    return 0;
}

static int write_zeroes(struct storage *file, const struct raw_params *params)
{
    uint64_t size = params->size;

    CLEANUP_FREE uint8_t *zeroes = calloc(1, ZERO_BUFFER);
    if (!zeroes)
        return -ENOMEM;
    for (uint64_t off = 0; off < size; off += ZERO_BUFFER) {
        if (create_is_given_up(params->give_up))
            return -ECANCELED;
        int err = storage_write(file, zeroes, off, MIN(size - off, ZERO_BUFFER), 0);
        if (err)
            return err;
    }
    return 0;
}

/* Sets the size and allocates if requested.  A block device keeps its size and has its blocks. */
static int set_size(struct storage *file, const struct raw_params *params)
{
    bool reserve = params->preallocation == PREALLOC_FALLOC && !file->fixed_size;

    return reserve ? storage_preallocate(file, 0, params->size)
                   : storage_truncate(file, params->size);
}

/* Writes the first block.  A program that opens the file with O_DIRECT finds out by trial reads
 * of it which alignment the filesystem requires; some filesystems accept any alignment in a
 * hole. */
static int allocate_first_block(struct storage *file, uint64_t size)
{
    static const uint8_t zeroes[FIRST_BLOCK];

    if (file->fixed_size || storage_protocol_of_store(file) != &storage_protocol_file)
        return 0;
    return storage_write(file, zeroes, 0,
                         size < FIRST_BLOCK ? MIN(size, SECTOR) : FIRST_BLOCK, 0);
}

static int write_contents(struct storage *file, const struct raw_params *params)
{
    int err = params->preallocation == PREALLOC_FULL ? write_zeroes(file, params)
              : params->preallocation == PREALLOC_OFF
                  ? allocate_first_block(file, params->size)
                  : 0;

    return err ? err : storage_flush(file);
}

int raw_check_create(const struct create_request *req, struct diag *diag)
{
    struct raw_params params;

    return parse_params(req, &params, diag);
}

int raw_create(struct storage *st, struct storage *data, const struct create_request *req,
               struct diag *diag)
{
    CLEANUP_STORAGE struct storage *file = st;
    struct raw_params params;
    (void)data; /* raw images have no data file */

    int err = parse_params(req, &params, diag);
    if (err)
        return err;
    err = set_size(file, &params);
    if (err)
        return diag_errno(diag, -err, "%s: cannot be given %" PRIu64 " bytes", file->name,
                          params.size);
    err = write_contents(file, &params);
    return err ? diag_errno(diag, -err, "%s: cannot be written", file->name) : 0;
}
