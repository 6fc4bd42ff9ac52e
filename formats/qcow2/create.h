/* SPDX-License-Identifier: BSD-3-Clause */
/* Creating an image, in three steps: the request is parsed into parameters, these give a layout,
 * and both are written.  Private to this folder. */
#ifndef QCOW2_CREATE_H
#define QCOW2_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/diag.h"
#include "block/create.h"
#include "crypto/luks.h"
#include "qcow2/geometry.h"
#include "storage/storage.h"

enum qcow2_preallocation {
    PREALLOC_OFF,
    PREALLOC_METADATA, /* tables for the whole disk, so that each cluster has its place */
    PREALLOC_FALLOC,   /* the same, and the file's blocks are reserved */
    PREALLOC_FULL,     /* the same, and the file's blocks are written */
};

/* How guest data is to be encrypted. */
struct qcow2_encryption {
    uint32_t method;         /* 0, CRYPT_AES, CRYPT_LUKS */
    struct luks_params luks; /* LUKS */
    const void *passphrase;  /* the request's */
    size_t passphrase_len;
    /* Used while options are parsed. */
    bool alias_on;           /* encryption=on was given */
    const char *format;      /* the value of encrypt.format */
    const char *luks_option; /* the name of an option that only LUKS has */
};

/* The parameters of a new image; each is valid, and they fit together. */
struct qcow2_params {
    const char *filename; /* for messages */
    uint64_t size;        /* bytes, whole sectors */
    struct qcow2_geometry geo;
    uint8_t compression_type;
    bool lazy_refcounts, data_file_raw;
    enum qcow2_preallocation preallocation;
    /* Borrowed from the request; NULL: none. */
    const char *backing_file, *backing_format, *data_file;
    struct qcow2_encryption encryption;
    const _Atomic bool *give_up; /* borrowed, too; true: stop with -ECANCELED */
};

/* The places of metadata, as cluster numbers, in this order: header (0), refcount table, refcount
 * blocks, L1 table, LUKS header (no cluster if there is none), end. */
struct qcow2_layout {
    uint64_t table, blocks, l1, luks, end;
    uint32_t l1_entries;
};

/* Parses and checks a request: 0, or -errno and a message that names the option and its value. */
int qcow2_parse_params(const struct create_request *req, struct qcow2_params *out,
                       struct diag *diag) MUST_USE;

struct qcow2_layout qcow2_plan_layout(const struct qcow2_params *params);

/* ---- create_crypt.c ---- */

/* Parses an option whose key begins with "encrypt", like the parsers in create_params.c.
 * -ENOENT, without a message: there is no option of that name. */
int qcow2_take_encryption(struct qcow2_params *p, const struct create_option *o,
                          struct diag *diag) MUST_USE;

/* Checks the encryption options together, after all were parsed. */
int qcow2_judge_encryption(struct qcow2_params *p, const struct create_request *req,
                           struct diag *diag) MUST_USE;

/* The length of the LUKS header with its key material, in bytes; 0: there is none. */
uint64_t qcow2_luks_bytes(const struct qcow2_params *p);

/* Writes the LUKS header at `off`, and returns in *cipher what guest data is encrypted with; NULL
 * without encryption.  0, or -errno and a message. */
int qcow2_make_key(const struct qcow2_params *p, struct storage *file, uint64_t off,
                   struct cipher **cipher, struct diag *diag) MUST_USE;

/* ---- create_allocate.c ---- */

/* Allocates clusters for the whole disk of the image in `file`, as p->preallocation says.  Takes
 * ownership of the stores (data NULL: none) and the cipher. */
int qcow2_allocate_all(const struct qcow2_params *p, struct storage *file,
                       struct storage *data, struct cipher *cipher,
                       struct diag *diag) MUST_USE;

#endif
