/* SPDX-License-Identifier: BSD-3-Clause */
/* A new image in three steps: what is asked for becomes parameters, parameters a layout, and
 * these are written.  Private to this folder. */
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
    PREALLOC_METADATA, /* tables for the whole disk, and places in the file */
    PREALLOC_FALLOC,   /* and the blocks of the file */
    PREALLOC_FULL,     /* and these are written to */
};

/* How guest data is to be encrypted. */
struct qcow2_encryption {
    uint32_t method;         /* 0, CRYPT_AES, CRYPT_LUKS */
    struct luks_params luks; /* LUKS */
    const void *passphrase;  /* the request's */
    size_t passphrase_len;
    /* While options are taken: what was said, in which words. */
    bool alias_on;           /* encryption=on */
    const char *format;      /* encrypt.format */
    const char *luks_option; /* one that only LUKS has */
};

/* What the image is to be; valid, and possible together. */
struct qcow2_params {
    const char *filename; /* for messages */
    uint64_t size;        /* bytes, whole sectors */
    struct qcow2_geometry geo;
    uint8_t compression_type;
    bool lazy_refcounts, data_file_raw;
    enum qcow2_preallocation preallocation;
    /* The request's; NULL: none. */
    const char *backing_file, *backing_format, *data_file;
    struct qcow2_encryption encryption;
    const _Atomic bool *give_up; /* so, too */
};

/* Where its metadata lies, by number of cluster: header | refcount table | refcount blocks |
 * L1 table | LUKS header (no cluster, if there is none). */
struct qcow2_layout {
    uint64_t table, blocks, l1, luks, end;
    uint32_t l1_entries;
};

/* Parses and judges a request: 0, or -errno with a sentence that names option and value. */
int qcow2_parse_params(const struct create_request *req, struct qcow2_params *out,
                       struct diag *diag) MUST_USE;

struct qcow2_layout qcow2_plan_layout(const struct qcow2_params *params);

/* ---- create_crypt.c ---- */

/* Takes an option whose key begins with "encrypt"; as takers of create_params.c do.
 * -ENOENT, without a sentence: there is none of that key. */
int qcow2_take_encryption(struct qcow2_params *p, const struct create_option *o,
                          struct diag *diag) MUST_USE;

/* Once all are taken: what they say together. */
int qcow2_judge_encryption(struct qcow2_params *p, const struct create_request *req,
                           struct diag *diag) MUST_USE;

/* The bytes of the LUKS header with its key material; 0: there is none. */
uint64_t qcow2_luks_bytes(const struct qcow2_params *p);

/* Writes the LUKS header to its place at `off`, and gives what guest data is encrypted with;
 * *cipher stays NULL where it isn't.  0 or -errno with a sentence. */
int qcow2_make_key(const struct qcow2_params *p, struct storage *file, uint64_t off,
                   struct cipher **cipher, struct diag *diag) MUST_USE;

/* ---- create_allocate.c ---- */

/* Allocates clusters for the whole disk of the image that was written to `file`, as
 * p->preallocation says.  Takes over the stores (data NULL: none) and the cipher. */
int qcow2_allocate_all(const struct qcow2_params *p, struct storage *file,
                       struct storage *data, struct cipher *cipher,
                       struct diag *diag) MUST_USE;

#endif
