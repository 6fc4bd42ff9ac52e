/* SPDX-License-Identifier: BSD-3-Clause */
/* Images that lost their end, as after an interrupted copy or a crash of the host.  The file is
 * cut at the boundary of each of its clusters, and in the middle of each, so that every structure
 * is missing once, wholly or by half.  Then the image is opened and written to.
 *
 * Opening may be refused and requests may fail, but no wrong data may be returned: a cluster
 * reads as what it held, as zeroes where the file ended, or with an error, never as other
 * clusters' data.  What was written and flushed after the cut must be there when the image is
 * opened again, and no host cluster may be used twice. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"

#define CLUSTER 4096u
#define SECTOR  512u

/* read_first: the whole disk is read before it is written to, so that reads find the damage. */
struct cut_case {
    const char *name;
    struct image_spec image;
    bool read_first;
};

#define IMAGE(fmt, opts) .image.format = fmt, .image.options = opts, .image.size = 4 * MIB

static const struct cut_case cases[] = {
    {.name = "qcow2", IMAGE("qcow2", "cluster_size=4096")},
    {.name = "qcow2, read first", IMAGE("qcow2", "cluster_size=4096"), .read_first = true},
    {.name = "qcow2 with a snapshot",
     IMAGE("qcow2", "cluster_size=4096"),
     .image.snapshot = true},
    {.name = "qcow2 version 2", IMAGE("qcow2", "cluster_size=4096,compat=0.10")},
    {.name = "qcow2 lazy", IMAGE("qcow2", "cluster_size=4096,lazy_refcounts=on")},
    {.name = "qcow2 overlay",
     IMAGE("qcow2", "cluster_size=4096"),
     .image.base_format = "raw",
     .image.base_size = 4 * MIB},
    {.name = "QED", IMAGE("qed", "cluster_size=4096,table_size=1")},
    {.name = "QED, read first",
     IMAGE("qed", "cluster_size=4096,table_size=1"),
     .read_first = true},
    {.name = "QED overlay",
     IMAGE("qed", "cluster_size=4096,table_size=1"),
     .image.base_format = "raw",
     .image.base_size = 4 * MIB},
};

struct run {
    const struct cut_case *c;
    struct image *img;
    const uint8_t *below, *whole; /* the disk's bytes before and after fill_disk */
    uint8_t *now;                 /* the bytes with those written after the cut */
    bool *written;                /* for each cluster: was it written after the cut? */
    char label[120];
};

static void fill_disk(struct image *img)
{
    uint8_t bytes[3 * CLUSTER];

    for (uint64_t off = 0; off + sizeof bytes <= img->model.size; off += 100 * KIB) {
        memset(bytes, 1 + (int)(off / (100 * KIB)), sizeof bytes);
        cr_assert_eq(block_write(img->node, bytes, off, sizeof bytes, 0), 0);
        memcpy(img->model.bytes + off, bytes, sizeof bytes);
    }
}

/* May the cluster at off read as `got`?  A cluster written after the cut must hold just that.  In
 * another one each sector may be as before the cut, zeroes, or that of the backing file. */
static bool may_be(const struct run *r, uint64_t off, const uint8_t *got)
{
    static const uint8_t zeroes[SECTOR];

    if (r->written[off / CLUSTER])
        return memcmp(got, r->now + off, CLUSTER) == 0;
    for (uint64_t at = 0; at < CLUSTER; at += SECTOR)
        if (memcmp(got + at, r->now + off + at, SECTOR) != 0 &&
            memcmp(got + at, zeroes, SECTOR) != 0 &&
            memcmp(got + at, r->below + off + at, SECTOR) != 0)
            return false;
    return true;
}

static void look(struct run *r, const char *when)
{
    uint8_t got[CLUSTER];

    for (uint64_t off = 0; off < r->img->model.size; off += CLUSTER) {
        int err = block_read(r->img->node, got, off, CLUSTER);
        cr_assert(err == 0 || err == -EIO, "%s, %s: errno %d", r->label, when, -err);
        cr_assert(err || may_be(r, off, got), "%s, %s: the cluster at %" PRIu64 " is %02x",
                  r->label, when, off, got[0]);
    }
}

/* Writes to clusters that were written before and to others.  Ends at the first error: an image
 * that was found to be damaged refuses all further writes. */
static void write_all_over(struct run *r)
{
    uint8_t bytes[2 * CLUSTER];

    for (uint64_t n = 0, off = 8 * CLUSTER; off + sizeof bytes <= r->img->model.size;
         off += 13 * CLUSTER, n++) {
        memset(bytes, 0xe0 + (int)(n % 16), sizeof bytes);
        int err = block_write(r->img->node, bytes, off, sizeof bytes, 0);
        cr_assert(err == 0 || err == -EIO, "%s: a write says errno %d", r->label, -err);
        if (err)
            return;
        memcpy(r->now + off, bytes, sizeof bytes);
        r->written[off / CLUSTER] = r->written[off / CLUSTER + 1] = true;
    }
}

/* qemu-img check may report missing clusters, but no cluster that is used twice. */
static void judge(struct run *r, bool with_qemu)
{
    char said[4096];

    if (!with_qemu || !have_qemu())
        return;
    (void)shell(said, sizeof said, "qemu-img check -f %s %s 2>&1", r->c->image.format,
                image_save(r->img));
    cr_assert_null(strstr(said, "refcount=1 reference=2"), "%s: %s", r->label, said);
}

static void cut_at(struct run *r, struct storage *pristine, uint64_t length)
{
    struct image *img = r->img;
    struct diag diag = {0};

    snprintf(r->label, sizeof r->label, "%s cut to %" PRIu64, r->c->name, length);
    memcpy(r->now, r->whole, img->model.size);
    memset(r->written, 0, img->model.size / CLUSTER * sizeof *r->written);
    storage_close(img->mem);
    img->mem = mem_storage_clone(pristine);
    cr_assert_eq(storage_truncate(img->mem, length), 0);
    if (image_try_open(img, &diag)) {
        cr_assert(strlen(diag.text) > 0, "%s: refused without a word", r->label);
        return;
    }
    if (r->c->read_first)
        look(r, "at the start");
    write_all_over(r);
    look(r, "after writing");
    int err = block_flush(img->node);
    cr_assert(err == 0 || err == -EIO, "%s: the flush says errno %d", r->label, -err);
    look(r, "after the flush");
    int closed = image_close(img);
    judge(r, length % (8 * CLUSTER) == 0);
    if (err || closed || image_try_open(img, &diag))
        return;
    look(r, "opened again");
    (void)!image_close(img);
}

static void no_messages(enum log_level level, const char *fmt, va_list ap)
{
    (void)level;
    (void)fmt;
    (void)ap;
}

ParameterizedTestParameters(cut_short, anywhere)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, cut_short, anywhere, .timeout = 600)
{
    const struct cut_case *c = &cases[*index];
    struct image img;
    uint64_t size;

    registry_init();
    log_set_sink(no_messages);
    image_make(&img, &c->image, 1);
    CLEANUP_FREE uint8_t *below = malloc(img.model.size);
    memcpy(below, img.model.bytes, img.model.size);
    image_open(&img);
    fill_disk(&img);
    cr_assert_eq(image_close(&img), 0);
    CLEANUP_FREE uint8_t *now = malloc(img.model.size);
    CLEANUP_FREE bool *written = calloc(img.model.size / CLUSTER, sizeof *written);
    struct run r = {.c = c,
                    .img = &img,
                    .below = below,
                    .whole = img.model.bytes,
                    .now = now,
                    .written = written};
    struct storage *pristine = mem_storage_clone(img.mem);
    cr_assert_eq(storage_size(pristine, &size), 0);
    for (uint64_t cluster = 0; cluster < size; cluster += CLUSTER * build_slowness()) {
        cut_at(&r, pristine, cluster);
        cut_at(&r, pristine, cluster + 512);
        cut_at(&r, pristine, cluster + CLUSTER / 2);
    }
    storage_close(pristine);
    image_free(&img);
}
