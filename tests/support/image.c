/* SPDX-License-Identifier: BSD-3-Clause */
/* An image to test with, and a model of what it holds. */
#include "image.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "mem_storage.h"

#define MAX_OPTIONS 8

static void give_up(const char *what, int err, const struct diag *diag)
{
    fprintf(stderr, "%s: %s: %s\n", what, strerror(-err), diag ? diag->text : "");
    abort();
}

static void must(const char *what, int err, const struct diag *diag)
{
    if (err)
        give_up(what, err, diag);
}

uint64_t env_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

int shell(char *output, size_t n, const char *fmt, ...)
{
    CLEANUP_FREE char *command = NULL;
    char rest[256];
    size_t got = 0;
    va_list ap;

    va_start(ap, fmt);
    int len = vasprintf(&command, fmt, ap);
    va_end(ap);
    FILE *pipe = len < 0 ? NULL : popen(command, "r");
    if (!pipe)
        give_up(fmt, -errno, NULL);
    if (output)
        got = fread(output, 1, n - 1, pipe);
    while (fread(rest, 1, sizeof rest, pipe) > 0) {
    }
    if (output)
        output[got] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

bool have_qemu(void)
{
    return shell(NULL, 0, "qemu-img --version 2>&1") == 0;
}

/* ---- making ---- */

/* Splits "key=value,key=value" in place. */
static size_t split_options(char *text, struct create_option *out)
{
    size_t n = 0;
    char *save = NULL;

    for (char *word = strtok_r(text, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        char *value = strchr(word, '=');
        if (!value || n == MAX_OPTIONS)
            abort();
        *value = 0;
        out[n++] = (struct create_option){.key = word, .value = value + 1};
    }
    return n;
}

void image_create(const char *path, const char *format, const char *options, uint64_t size,
                  const char *base_name, const char *base_format)
{
    struct create_option list[MAX_OPTIONS];
    CLEANUP_FREE char *text = strdup(options ? options : "");
    struct diag diag = {0};
    struct create_request req = {
        .filename = path,
        .size = size,
        .backing_file = base_name,
        .backing_format = base_format,
        .options = list,
        .n_options = split_options(text, list),
    };

    must(path, create_image(driver_find(format), &req, &diag), &diag);
}

static uint64_t on_clock(void *opaque)
{
    return ((struct image *)opaque)->now;
}

/* Some runs of bytes, the same in the node and in the model. */
static void scatter(struct node *node, struct flat *flat, struct rng *rng, unsigned n)
{
    uint64_t most = MIN(flat->size / 2, 300 * KIB);

    for (unsigned i = 0; i < n; i++) {
        uint64_t len = rng_between(rng, 1, most),
                 off = rng_below(rng, flat->size - len + 1);
        rng_fill(rng, flat->bytes + off, len);
        must("filling", block_write(node, flat->bytes + off, off, len, 0), NULL);
    }
}

static void make_base(struct image *img, struct rng *rng)
{
    const struct image_spec *spec = &img->spec;
    struct chain_options options = {.format = spec->base_format};
    struct flat base = {.bytes = calloc(1, spec->base_size), .size = spec->base_size};
    struct diag diag = {0};
    struct node *node;

    img->base_path = scratch_path(&img->scratch, "base");
    image_create(img->base_path, spec->base_format, NULL, spec->base_size, NULL, NULL);
    must("base", chain_open(&img->ctx, img->base_path, &options, &node, &diag), &diag);
    must("base", node_activate(node, &diag), &diag);
    scatter(node, &base, rng, 12);
    must("base", node_close(node), NULL);
    memcpy(img->model.bytes, base.bytes, MIN(base.size, img->model.size));
    free(base.bytes);
}

static void take_snapshot(struct image *img, struct rng *rng)
{
    image_open(img);
    scatter(img->node, &img->model, rng, 12);
    must("snapshot", image_close(img), NULL);
    if (shell(NULL, 0, "qemu-img snapshot -c first %s", img->path) != 0)
        abort();
    img->snapshot =
        (struct flat){.bytes = malloc(img->model.size), .size = img->model.size};
    memcpy(img->snapshot.bytes, img->model.bytes, img->model.size);
}

void image_make(struct image *img, const struct image_spec *spec, uint64_t seed)
{
    struct rng rng;

    *img = (struct image){.spec = *spec};
    rng_init(&rng, seed);
    scratch_make(&img->scratch);
    img->model = (struct flat){.bytes = calloc(1, spec->size), .size = spec->size};
    size_t cache = spec->cache_bytes ? spec->cache_bytes : 16 * MIB;
    must("context",
         block_context_init(&img->ctx, cache, spec->real_time ? NULL : on_clock, img),
         NULL);
    if (spec->base_format)
        make_base(img, &rng);
    img->path = scratch_path(&img->scratch, "disk");
    image_create(img->path, spec->format, spec->options, spec->size,
                 spec->base_format ? "base" : NULL, spec->base_format);
    if (spec->snapshot)
        take_snapshot(img, &rng);
    if (spec->on_file)
        return;
    must(img->path, mem_storage_load(img->path, &img->mem), NULL);
    if (img->base_path)
        must(img->base_path, mem_storage_load(img->base_path, &img->base_mem), NULL);
}

void image_free(struct image *img)
{
    (void)image_close(img);
    block_context_destroy(&img->ctx);
    storage_close(img->mem);
    storage_close(img->base_mem);
    free(img->model.bytes);
    free(img->snapshot.bytes);
    free(img->path);
    free(img->base_path);
    scratch_remove(&img->scratch);
}

/* ---- opening ---- */

/* As if the filesystem knew nothing but reading and writing: what was discarded is still
 * there. */
static void make_plain(struct storage *st)
{
    static struct storage_ops plain;

    plain = *st->ops;
    plain.zero = NULL;
    plain.discard = NULL;
    plain.preallocate = NULL;
    plain.extent = NULL;
    st->ops = &plain;
}

static int open_storage(struct image *img, struct storage **out, struct diag *diag)
{
    const struct cache_mode *cache = img->spec.node.cache;
    const struct storage_open how = {.direct = cache && cache->direct,
                                     .no_flush = cache && cache->no_flush};

    if (img->log || img->mem) {
        *out = img->log ? crash_storage_open(img->log) : mem_storage_share(img->mem);
        (*out)->no_flush = how.no_flush;
        if (img->spec.plain)
            make_plain(*out);
    } else {
        int err = storage_open_file(img->path, &how, out, diag);
        if (err)
            return err;
    }
    if (img->plan)
        *out = fault_storage_new(*out, img->plan);
    return 0;
}

/* As chain_open does, for images that are in no file. */
static int open_base(struct image *img, struct diag *diag)
{
    struct storage *st = NULL;
    const struct storage_open how = {.read_only = true};

    if (img->base_mem) {
        st = mem_storage_share(img->base_mem);
        st->read_only = true;
    } else {
        int err = storage_open_file(img->base_path, &how, &st, diag);
        if (err)
            return err;
    }
    struct node *base = NULL;
    int err = node_open(&img->ctx, driver_find(img->spec.base_format), st, "base",
                        &img->spec.node, &base, diag);
    img->node->backing = base;
    return err;
}

int image_try_open(struct image *img, struct diag *diag)
{
    struct storage *st;

    int err = open_storage(img, &st, diag);
    if (!err)
        err = node_open(&img->ctx, driver_find(img->spec.format), st, img->path,
                        &img->spec.node, &img->node, diag);
    if (err)
        return err;
    if (img->base_path)
        err = open_base(img, diag);
    if (!err)
        err = node_activate(img->node, diag);
    if (err) {
        (void)node_close(img->node);
        img->node = NULL;
    }
    return err;
}

void image_open(struct image *img)
{
    struct diag diag = {0};

    must(img->path, image_try_open(img, &diag), &diag);
    if (img->spec.real_time)
        must("housekeeper", housekeeper_start(img->ctx.housekeeper), NULL);
}

int image_close(struct image *img)
{
    if (!img->node)
        return 0;
    if (img->spec.real_time)
        housekeeper_stop(img->ctx.housekeeper);
    int err = node_close(img->node);
    img->node = NULL;
    return err;
}

/* ---- judging ---- */

const char *image_save(struct image *img)
{
    if (img->mem)
        must(img->path, mem_storage_save(img->mem, img->path), NULL);
    return img->path;
}

static void save_flat(const struct flat *flat, const char *path)
{
    FILE *file = fopen(path, "w");

    if (!file || fwrite(flat->bytes, 1, flat->size, file) != flat->size ||
        fclose(file) != 0)
        give_up(path, -errno, NULL);
}

/* Does qemu-img read what should be there? */
static bool same_in_qemu(const struct image *img, char *why, size_t n)
{
    CLEANUP_FREE char *raw = scratch_path(&img->scratch, "model");
    char said[512];

    save_flat(&img->model, raw);
    int status = shell(said, sizeof said, "qemu-img compare -f %s -F raw %s %s 2>&1",
                       img->spec.format, img->path, raw);
    if (status != 0)
        snprintf(why, n, "qemu-img compare: %s", said);
    return status == 0;
}

static bool same_snapshot(const struct image *img, char *why, size_t n)
{
    CLEANUP_FREE char *raw = scratch_path(&img->scratch, "model");
    CLEANUP_FREE char *out = scratch_path(&img->scratch, "snapshot");
    char said[512];

    save_flat(&img->snapshot, raw);
    int status =
        shell(said, sizeof said,
              "(qemu-img convert -f qcow2 -l first -O raw %s %s && cmp %s %s) 2>&1",
              img->path, out, out, raw);
    if (status != 0)
        snprintf(why, n, "the snapshot changed: %s", said);
    return status == 0;
}

bool image_verify(struct image *img, char *why, size_t n)
{
    char said[512];
    int status;

    if (!have_qemu())
        return true;
    image_save(img);
    if (strcmp(img->spec.format, "raw") != 0) {
        status = shell(said, sizeof said, "qemu-img check -f %s %s 2>&1", img->spec.format,
                       img->path);
        if (status != 0) {
            snprintf(why, n, "qemu-img check says %d: %s", status, said);
            return false;
        }
    }
    return same_in_qemu(img, why, n) &&
           (!img->snapshot.bytes || same_snapshot(img, why, n));
}
