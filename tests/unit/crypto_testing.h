/* SPDX-License-Identifier: BSD-3-Clause */
/* A LUKS container in memory that records writes and flushes, and fails where a test wants. */
#ifndef CRYPTO_TESTING_H
#define CRYPTO_TESTING_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/checked.h"
#include "crypto/luks.h"

#define QUICK_MS 1u /* iteration time for new keys: gives the fewest iterations allowed */

enum torn { NOT_TORN, TORN_BEGINNING, TORN_END };

struct memory {
    uint8_t *bytes;
    uint64_t size;
    int fail_after;    /* so many calls succeed, then one fails; -1: none fails */
    enum torn torn;    /* which half of a failing write is written nevertheless */
    char log[4096];    /* the calls: "w OFFSET LENGTH;" and "f;" */
    uint64_t unsynced; /* number of writes since the last flush */
};

static inline bool fails(struct memory *m)
{
    return m->fail_after >= 0 && m->fail_after-- == 0;
}

static inline int memory_read(void *opaque, void *buf, uint64_t off, size_t len)
{
    struct memory *m = opaque;

    cr_assert(range_inside(off, len, m->size), "read of %zu at %llu", len,
              (unsigned long long)off);
    if (fails(m))
        return -EIO;
    memcpy(buf, m->bytes + off, len);
    return 0;
}

static inline int memory_write(void *opaque, const void *buf, uint64_t off, size_t len)
{
    struct memory *m = opaque;
    size_t used = strlen(m->log);

    cr_assert(range_inside(off, len, m->size), "write of %zu at %llu", len,
              (unsigned long long)off);
    if (fails(m)) {
        size_t middle = align_up(len / 2, 512);
        if (m->torn == TORN_BEGINNING)
            memcpy(m->bytes + off, buf, middle);
        else if (m->torn == TORN_END)
            memcpy(m->bytes + off + middle, (const char *)buf + middle, len - middle);
        return -ENOSPC;
    }
    memcpy(m->bytes + off, buf, len);
    snprintf(m->log + used, sizeof m->log - used, "w %llu %zu;", (unsigned long long)off,
             len);
    m->unsynced++;
    return 0;
}

static inline int memory_flush(void *opaque)
{
    struct memory *m = opaque;
    size_t used = strlen(m->log);

    if (fails(m))
        return -EIO;
    snprintf(m->log + used, sizeof m->log - used, "f;");
    m->unsynced = 0;
    return 0;
}

static inline struct luks_io memory_io(struct memory *m)
{
    return (struct luks_io){memory_read, memory_write, memory_flush,
                            m,           m->size,      "disk.luks"};
}

static inline void memory_make(struct memory *m, uint64_t size)
{
    *m = (struct memory){.bytes = calloc(1, size), .size = size, .fail_after = -1};
    cr_assert_not_null(m->bytes);
}

static inline void memory_free(struct memory *m)
{
    free(m->bytes);
}

/* Makes a container of that kind, with the passphrase "first". */
static inline void memory_format(struct memory *m, const struct luks_params *params)
{
    struct diag diag = {0};

    memory_make(m, luks_payload_offset(params) + 65536);
    struct luks_io io = memory_io(m);
    cr_assert_eq(luks_format(NULL, &io, params, "first", 5, &diag), 0, "%s", diag.text);
    cr_assert_eq(m->unsynced, 0);
    m->log[0] = '\0';
}

/* Tries to open the container; returns luks_open's result. */
static inline int try_open(struct memory *m, const char *passphrase)
{
    struct luks_io io = memory_io(m);
    struct luks *luks = NULL;
    struct diag diag = {0};
    int err = luks_open(&luks, &io, passphrase, strlen(passphrase), &diag);

    cr_expect_eq(err, -diag.err);
    cr_expect_eq(!luks, err != 0);
    luks_close(luks);
    return err;
}

static const struct luks_params quick = {
    .spec = {CIPHER_AES_256, CIPHER_XTS, CIPHER_PLAIN64, HASH_SHA256},
    .hash = HASH_SHA256,
    .iter_time_ms = QUICK_MS,
};

#endif
