/* SPDX-License-Identifier: BSD-3-Clause */
/* A bench for the QED driver: an image in memory and a node on it. */
#ifndef QED_TESTING_H
#define QED_TESTING_H

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/node.h"
#include "fault_storage.h"
#include "mem_storage.h"
#include "qed/header.h"
#include "qed/qed.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1024) * KIB)
#define GIB (UINT64_C(1024) * MIB)
#define TIB (UINT64_C(1024) * GIB)
#define SEC UINT64_C(1000000000)

struct bench {
    bool is_device;
    uint64_t now, tick; /* the fake clock in ns, and by how much each reading advances it */
    struct block_context ctx;
    struct node_options options;
    struct storage *mem; /* the test's handle on the image */
    struct fault_plan plan;
    struct node *node; /* NULL: closed */
};

static inline uint64_t bench_clock(void *opaque)
{
    struct bench *b = opaque;

    if (b->tick)
        b->now += b->tick;
    return b->now;
}

static inline struct qed_header small_header(uint64_t size)
{
    return (struct qed_header){
        .cluster_size = 4096,
        .table_size = 1,
        .header_size = 1,
        .l1_table_offset = 4096,
        .image_size = size,
    };
}

static inline void put_header(struct storage *st, const struct qed_header *header)
{
    uint8_t raw[sizeof(struct qed_disk_header)];

    qed_header_encode(header, raw);
    cr_assert_eq(storage_write(st, raw, 0, sizeof raw, 0), 0);
}

/* Makes an empty image.  backing: the name to record, behind the header, or NULL. */
static inline struct storage *new_image_in_memory(struct qed_header header,
                                                  const char *backing)
{
    struct storage *st = mem_storage_new(header.l1_table_offset +
                                         (uint64_t)header.table_size * header.cluster_size);

    if (backing) {
        header.features |= QED_F_BACKING_FILE;
        header.backing_filename_offset = sizeof(struct qed_disk_header);
        header.backing_filename_size = (uint32_t)strlen(backing);
        cr_assert_eq(
            storage_write(st, backing, header.backing_filename_offset, strlen(backing), 0),
            0);
    }
    put_header(st, &header);
    return st;
}

static inline uint64_t get_word(struct storage *st, uint64_t off)
{
    uint8_t raw[8];

    cr_assert_eq(storage_read(st, raw, off, sizeof raw), 0);
    return load_le64(raw);
}

static inline void put_word(struct storage *st, uint64_t off, uint64_t value)
{
    uint8_t raw[8];

    store_le64(raw, value);
    cr_assert_eq(storage_write(st, raw, off, sizeof raw, 0), 0);
}

static inline uint64_t features_of(struct storage *st)
{
    return get_word(st, offsetof(struct qed_disk_header, features));
}

static inline uint64_t size_of(struct storage *st)
{
    uint64_t bytes = 0;

    cr_assert_eq(storage_size(st, &bytes), 0);
    return bytes;
}

/* Takes ownership of mem. */
static inline void bench_init(struct bench *b, struct storage *mem)
{
    *b = (struct bench){.mem = mem};
    b->options.need_check_delay_ns = 5 * SEC;
    fault_plan_init(&b->plan);
    cr_assert_eq(block_context_init(&b->ctx, 16 * MIB, bench_clock, b), 0);
}

static inline int bench_try_open(struct bench *b, struct diag *diag)
{
    struct storage *st = fault_storage_new(mem_storage_share(b->mem), &b->plan);

    st->fixed_size = b->is_device;
    return node_open(&b->ctx, &qed_driver, st, "disk.qed", &b->options, &b->node, diag);
}

static inline void bench_open(struct bench *b)
{
    struct diag diag = {0};

    cr_assert_eq(bench_try_open(b, &diag), 0, "%s", diag.text);
}

static inline void bench_open_writable(struct bench *b)
{
    struct diag diag = {0};

    bench_open(b);
    cr_assert_eq(node_activate(b->node, &diag), 0, "%s", diag.text);
}

/* Opens a QED image as the backing file, so that the raw driver isn't needed. */
static inline struct node *open_backing(struct bench *b, struct storage *mem)
{
    struct node *node = NULL;
    struct diag diag = {0};

    cr_assert_eq(
        node_open(&b->ctx, &qed_driver, mem, "base.qed", &b->options, &node, &diag), 0,
        "%s", diag.text);
    return node;
}

static inline int bench_close(struct bench *b)
{
    int err = node_close(b->node);

    b->node = NULL;
    return err;
}

static inline void bench_fini(struct bench *b)
{
    cr_assert_eq(bench_close(b), 0);
    cr_assert(gate_empty(&b->ctx.gate));
    block_context_destroy(&b->ctx);
    fault_plan_destroy(&b->plan);
    storage_close(b->mem);
}

static inline struct extent map_at(struct node *node, uint64_t off, uint64_t len)
{
    struct extent ext = {0};
    gate_ticket ticket = gate_enter(&node->ctx->gate);
    int err = node->driver->map(node, off, len, &ext);

    gate_leave(&node->ctx->gate, ticket);
    cr_assert_eq(err, 0, "map at %llu: %d", (unsigned long long)off, err);
    return ext;
}

static inline void write_pattern(struct node *node, uint64_t off, uint64_t len, int pattern)
{
    unsigned char *buf = malloc(len);

    memset(buf, pattern, len);
    cr_assert_eq(block_write(node, buf, off, len, 0), 0);
    free(buf);
}

static inline bool reads_as(struct node *node, uint64_t off, uint64_t len, int pattern)
{
    unsigned char *buf = malloc(len);
    bool same = true;

    cr_assert_eq(block_read(node, buf, off, len), 0);
    for (uint64_t i = 0; i < len; i++)
        same &= buf[i] == (unsigned char)pattern;
    free(buf);
    return same;
}

static inline bool have_qemu_img(void)
{
    return system("qemu-img --version >/dev/null 2>&1") == 0;
}

/* Runs a shell command; returns its exit status. */
static inline int PRINTF_LIKE(1, 2) run(const char *fmt, ...)
{
    char command[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

/* Makes a temporary folder for the test; it is removed with its files. */
static inline void make_folder(char path[32])
{
    strcpy(path, "/tmp/qed-test.XXXXXX");
    cr_assert_not_null(mkdtemp(path));
}

static inline void remove_folder(const char *path)
{
    run("rm -rf %s", path);
}

/* Runs qemu-img check on an image in memory: 0 clean, 2 corrupt, 3 leaks; 0 if there is no
 * qemu-img.  Only for images of less than cluster_size^2 bytes: QEMU 7.2 divides by
 * cluster_size - 1 when it counts clusters, and reports a leak in every larger image. */
static inline int qemu_check(struct storage *mem)
{
    char folder[32], file[64];

    if (!have_qemu_img())
        return 0;
    make_folder(folder);
    snprintf(file, sizeof file, "%s/disk.qed", folder);
    cr_assert_eq(mem_storage_save(mem, file), 0);
    /* The backing file, for images that have one; its contents don't matter. */
    cr_assert_eq(run("qemu-img create -q -f qed %s/base.qed 1M", folder), 0);
    int status = run("qemu-img check -f qed %s >/dev/null 2>&1", file);
    remove_folder(folder);
    return status;
}

/* Closes the image, which must be clean then. */
static inline void bench_finish(struct bench *b)
{
    cr_expect_eq(bench_close(b), 0);
    cr_expect_eq(qemu_check(b->mem), 0);
    cr_expect_not(features_of(b->mem) & QED_F_NEED_CHECK);
    bench_fini(b);
}

/* The first message that was logged. */
static char logged[1024];

static inline void log_to_buffer(enum log_level level, const char *fmt, va_list ap)
{
    if (level != LOG_DEBUG && logged[0] == '\0')
        vsnprintf(logged, sizeof logged, fmt, ap);
}

#endif
