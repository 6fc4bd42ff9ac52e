/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates, opens and verifies the images of tests; see image.h. */
#include "image.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "block/check.h"
#include "mem_storage.h"

#define MAX_OPTIONS 8
#define PASSPHRASE  "sesame"
#define SECRET      "--object secret,id=s,data=" PASSPHRASE

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

/* For features that our drivers don't create. */
static void create_by_qemu(const struct image *img)
{
    const struct image_spec *spec = &img->spec;
    CLEANUP_FREE char *options = NULL;

    if (asprintf(
            &options, "%s%s%s%s%s%s%s", spec->options,
            spec->encrypt ? ",encrypt.key-secret=s,encrypt.format=" : "",
            spec->encrypt ? spec->encrypt : "",
            spec->encrypt && strcmp(spec->encrypt, "luks") == 0 ? ",encrypt.iter-time=10"
                                                                : "",
            spec->data_file ? ",data_file=" : "", spec->data_file ? img->data_path : "",
            spec->data_file && strcmp(spec->data_file, "raw") == 0 ? ",data_file_raw=on"
                                                                   : "") < 0)
        abort();
    if (shell(NULL, 0, "qemu-img create -q %s -f qcow2 %s %s -o %s %s %llu 2>&1",
              spec->encrypt ? SECRET : "", spec->base_format ? "-b base -F" : "",
              spec->base_format ? spec->base_format : "", options, img->path,
              (unsigned long long)spec->size) != 0)
        give_up(options, -EINVAL, NULL);
}

static bool needs_qemu(const struct image_spec *spec)
{
    return spec->encrypt || spec->data_file ||
           (spec->options && strstr(spec->options, "extended_l2=on"));
}

static void create(const struct image *img)
{
    const struct image_spec *spec = &img->spec;

    if (needs_qemu(spec))
        create_by_qemu(img);
    else
        image_create(img->path, spec->format, spec->options, spec->size,
                     spec->base_format ? "base" : NULL, spec->base_format);
}

static uint64_t on_clock(void *opaque)
{
    return ((struct image *)opaque)->now;
}

/* Writes n runs of random bytes at random places, to the node and to the model. */
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

void image_fill(const struct image *img, struct rng *rng, void *buf, size_t len)
{
    if (img->spec.node.compress)
        rng_texture(rng, buf, len);
    else
        rng_fill(rng, buf, len);
}

static void pack(struct image *img, struct rng *rng)
{
    bool compress = img->spec.node.compress;

    img->spec.node.compress = true;
    image_open(img);
    uint64_t cluster = img->node->cluster_size, n;
    for (uint64_t off = 0; off < img->model.size; off += n) {
        n = MIN(cluster, img->model.size - off);
        if (rng_one_in(rng, 3))
            continue;
        image_fill(img, rng, img->model.bytes + off, n);
        must("packing", block_write(img->node, img->model.bytes + off, off, n, 0), NULL);
    }
    must("packing", image_close(img), NULL);
    img->spec.node.compress = compress;
}

static void take_snapshot(struct image *img, struct rng *rng)
{
    image_open(img);
    scatter(img->node, &img->model, rng, 12);
    must("snapshot", image_close(img), NULL);
    if (shell(NULL, 0, "qemu-img snapshot %s -c first %s",
              img->tools ? SECRET " --image-opts" : "",
              img->tools ? img->tools : img->path) != 0)
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
    if (spec->data_file)
        img->data_path = scratch_path(&img->scratch, "data");
    if (spec->encrypt &&
        asprintf(&img->tools, "driver=qcow2,encrypt.key-secret=s,file.filename=%s",
                 img->path) < 0)
        abort();
    create(img);
    if (spec->packed)
        pack(img, &rng);
    if (spec->snapshot)
        take_snapshot(img, &rng);
    if (spec->on_file)
        return;
    must(img->path, mem_storage_load(img->path, &img->mem), NULL);
    if (img->base_path)
        must(img->base_path, mem_storage_load(img->base_path, &img->base_mem), NULL);
    if (img->data_path)
        must(img->data_path, mem_storage_load(img->data_path, &img->data_mem), NULL);
}

void image_free(struct image *img)
{
    (void)image_close(img);
    block_context_destroy(&img->ctx);
    storage_close(img->mem);
    storage_close(img->base_mem);
    storage_close(img->data_mem);
    free(img->model.bytes);
    free(img->snapshot.bytes);
    free(img->path);
    free(img->base_path);
    free(img->data_path);
    free(img->tools);
    scratch_remove(&img->scratch);
}

/* ---- opening ---- */

/* Takes all optional operations from the storage, as on a filesystem that can only read and
 * write: discarded bytes stay as they were. */
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

/* Opens the backing file as chain_open would, also from memory. */
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

static int open_data(struct image *img, struct diag *diag)
{
    const struct cache_mode *cache = img->spec.node.cache;
    const struct storage_open how = {.direct = cache && cache->direct,
                                     .no_flush = cache && cache->no_flush};
    struct storage *st = NULL;

    if (img->data_mem) {
        st = mem_storage_share(img->data_mem);
        st->no_flush = how.no_flush;
        if (img->spec.plain)
            make_plain(st);
    } else {
        int err = storage_open_file(img->data_path, &how, &st, diag);
        if (err)
            return err;
    }
    if (img->plan)
        st = fault_storage_new(st, img->plan);
    node_set_data_file(img->node, st);
    return 0;
}

/* Opens the data file, unlocks the encryption and opens the backing file, as needed. */
static int complete(struct image *img, struct diag *diag)
{
    int err = img->data_path ? open_data(img, diag) : 0;

    if (!err && img->spec.encrypt)
        err = img->node->driver->unlock(img->node, PASSPHRASE, strlen(PASSPHRASE), diag);
    if (!err && img->base_path)
        err = open_base(img, diag);
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
    err = complete(img, diag);
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
    if (img->data_mem)
        must(img->data_path, mem_storage_save(img->data_mem, img->data_path), NULL);
    return img->path;
}

static void save_flat(const struct flat *flat, const char *path)
{
    FILE *file = fopen(path, "w");

    if (!file || fwrite(flat->bytes, 1, flat->size, file) != flat->size ||
        fclose(file) != 0)
        give_up(path, -errno, NULL);
}

/* Runs "qemu-img COMMAND WORDS IMAGE MORE"; returns the exit status, with the output in
 * `said`. */
static int qemu(const struct image *img, const char *command, const char *words,
                const char *more, char *said, size_t n)
{
    const char *format = img->spec.format;

    if (img->tools)
        return shell(said, n, "qemu-img %s " SECRET " --image-opts %s %s %s 2>&1", command,
                     words, img->tools, more);
    return shell(said, n, "qemu-img %s -f %s %s %s %s 2>&1", command, format, words,
                 img->path, more);
}

/* Does qemu-img read the model's bytes? */
static bool same_in_qemu(const struct image *img, char *why, size_t n)
{
    CLEANUP_FREE char *raw = scratch_path(&img->scratch, "model");
    char said[512], other[512];

    save_flat(&img->model, raw);
    snprintf(other, sizeof other, "%s%s", img->tools ? "driver=raw,file.filename=" : "",
             raw);
    int status = qemu(img, "compare", img->tools ? "" : "-F raw", other, said, sizeof said);
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
    int status = qemu(img, "convert", "-l first -O raw", out, said, sizeof said);
    if (!status)
        status = shell(said, sizeof said, "cmp %s %s 2>&1", out, raw);
    if (status != 0)
        snprintf(why, n, "the snapshot changed: %s", said);
    return status == 0;
}

/* A raw data file must hold the model's bytes by itself. */
static bool same_raw(const struct image *img, char *why, size_t n)
{
    CLEANUP_FREE char *raw = scratch_path(&img->scratch, "model");
    char said[512];

    if (!img->data_path || strcmp(img->spec.data_file, "raw") != 0 || img->spec.encrypt)
        return true;
    save_flat(&img->model, raw);
    /* The file may be longer than the disk, up to a whole cluster. */
    int status = shell(said, sizeof said, "cmp -n %llu %s %s 2>&1",
                       (unsigned long long)img->model.size, raw, img->data_path);
    if (status != 0)
        snprintf(why, n, "the data file isn't the disk: %s", said);
    return status == 0;
}

static bool is_clean(const struct image *img, char *why, size_t n)
{
    const struct driver *driver = driver_find(img->spec.format);
    const struct check_options options = {.repair = REPAIR_NONE};
    const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *st = NULL;
    struct check_result found = {0};
    struct diag diag = {0};

    if (!driver_can(driver, DRIVER_CHECKS))
        return true;
    must(img->path, storage_open_file(img->path, &how, &st, &diag), &diag);
    int err = driver->check(st, &options, &found, &diag);
    if (!err && !found.corruptions && !found.leaks && !found.check_errors)
        return true;
    snprintf(why, n, "our check: %s %llu corruptions, %llu leaks, %llu errors", diag.text,
             (unsigned long long)found.corruptions, (unsigned long long)found.leaks,
             (unsigned long long)found.check_errors);
    return false;
}

bool image_verify(struct image *img, char *why, size_t n)
{
    char said[512];

    image_save(img);
    if (!is_clean(img, why, n))
        return false;
    if (!have_qemu())
        return true;
    if (strcmp(img->spec.format, "raw") != 0) {
        int status = qemu(img, "check", "", "", said, sizeof said);
        if (status != 0) {
            snprintf(why, n, "qemu-img check says %d: %s", status, said);
            return false;
        }
    }
    return same_in_qemu(img, why, n) && same_raw(img, why, n) &&
           (!img->snapshot.bytes || same_snapshot(img, why, n));
}
