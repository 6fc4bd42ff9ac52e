/* SPDX-License-Identifier: BSD-3-Clause */
/* Helpers for tests of the server's exports: image files, and reading and writing single bytes. */
#ifndef SERVER_TESTING_H
#define SERVER_TESTING_H

#include <criterion/criterion.h>
#include <string.h>

#include "base/cleanup.h"
#include "export.h"
#include "registry.h"
#include "scratch.h"

#define KIB  1024u
#define SIZE (1024u * KIB)
#define STEP (64u * KIB)

static inline void make_image(const char *path, const char *format, uint64_t size,
                              const char *backing)
{
    struct create_request request = {
        .filename = path,
        .size = size,
        .backing_file = backing,
        .backing_format = backing ? "qcow2" : NULL,
    };
    struct diag diag = {0};

    cr_assert_eq(create_image(driver_find(format), &request, &diag), 0, "%s", diag.text);
}

/* Can another process lock the image for writing? */
static inline bool is_free(const char *path)
{
    const struct storage_open how = {.read_only = false};
    CLEANUP_STORAGE struct storage *file = NULL;

    return storage_open_file(path, &how, &file, NULL) == 0 &&
           storage_lock(file, STORAGE_READER, NULL) == 0 &&
           storage_lock(file, STORAGE_WRITER, NULL) == 0;
}

static inline int write_byte(struct served_export *exp, unsigned char value, uint64_t off)
{
    unsigned char buf[512];
    EXPORT_USE(use, export_enter_change(exp));

    memset(buf, value, sizeof buf);
    return block_write(use.node, buf, off, sizeof buf, 0);
}

static inline unsigned char read_byte(struct served_export *exp, uint64_t off)
{
    unsigned char byte;
    EXPORT_USE(use, export_enter(exp));

    cr_assert_eq(block_read(use.node, &byte, off, 1), 0);
    return byte;
}

#endif
