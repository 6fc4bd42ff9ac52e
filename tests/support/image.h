/* SPDX-License-Identifier: BSD-3-Clause */
/* Images of any format for the tests that use them from outside: made by the drivers (with
 * some features of qcow2 by qemu-img), with or without a backing file and a snapshot, in memory
 * or in a file, and judged by our check and qemu-img.
 *
 *     struct image img;
 *     image_make(&img, &(struct image_spec){.format = "qcow2", .size = 64 * MIB}, 1);
 *     image_open(&img);
 *     ... block_write(img.node, ...), and the same to img.model.bytes ...
 *     image_close(&img);
 *     cr_assert(image_verify(&img, why, sizeof why), "%s", why);
 *     image_free(&img);
 *
 * Preparations that fail abort.  The registry must be initialised before. */
#ifndef SUPPORT_IMAGE_H
#define SUPPORT_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "crash_storage.h"
#include "fault_storage.h"
#include "rng.h"
#include "scratch.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1024) * KIB)
#define GIB (UINT64_C(1024) * MIB)
#define SEC UINT64_C(1000000000)

struct image_spec {
    const char *format;
    const char *options; /* of create: "cluster_size=4096,compat=0.10"; NULL: none */
    uint64_t size;
    const char *base_format; /* NULL: no backing file */
    uint64_t base_size;
    const char *encrypt; /* qcow2: its encrypt.format, "luks" or "aes"; NULL: none */
    /* qcow2: data lies in a file of its own: "plain", or "raw", which reads as the disk by
     * itself.  NULL: in the image. */
    const char *data_file;
    bool packed;        /* two thirds of its clusters are filled, compressed */
    bool snapshot;      /* qemu-img takes one of it, half full */
    bool on_file;       /* else it lies in memory */
    bool plain;         /* in memory: it can't zero, punch, or tell where its holes are */
    bool real_time;     /* the housekeeper runs, with the real clock */
    size_t cache_bytes; /* of metadata; 0: 16 MiB */
    struct node_options node;
};

/* What the guest should see. */
struct flat {
    uint8_t *bytes;
    uint64_t size;
};

struct image {
    struct image_spec spec;
    struct scratch scratch;
    char *path, *base_path, *data_path; /* NULL: there is none */
    char *tools;                        /* encrypted: the image in words of QEMU's tools */
    struct storage *mem, *base_mem, *data_mem; /* ours to look at; NULL: on a file */
    struct crash_log *log;       /* set by the test: the storage is one of its, not `mem` */
    struct fault_plan *plan;     /* set by the test: the storage follows it */
    struct flat model, snapshot; /* snapshot.bytes NULL: none */
    uint64_t now;                /* the clock, unless real_time */
    struct block_context ctx;
    struct node *node; /* NULL: closed */
};

/* Makes the image, its base filled with something, and the model with its contents; closed.
 */
void image_make(struct image *img, const struct image_spec *spec, uint64_t seed);
/* Closes when it is open. */
void image_free(struct image *img);

/* Opens the chain and makes the top writable.  0 or -errno. */
int image_try_open(struct image *img, struct diag *diag) MUST_USE;
/* Aborts when it can't. */
void image_open(struct image *img);
int image_close(struct image *img);

/* Closed image: our check and qemu-img find no fault and no leak, and qemu-img reads what the
 * model holds.  If not, `why` says it. */
bool image_verify(struct image *img, char *why, size_t n);

/* The closed image as a file, whose path it returns. */
const char *image_save(struct image *img);

/* The exit status of a shell command; its output goes to `output` when it isn't NULL. */
int shell(char *output, size_t n, const char *fmt, ...) PRINTF_LIKE(3, 4);
bool have_qemu(void);

/* Makes an image file with a driver. */
void image_create(const char *path, const char *format, const char *options, uint64_t size,
                  const char *base_name, const char *base_format);

/* Bytes for a write to the image; compressible where that is wanted. */
void image_fill(const struct image *img, struct rng *rng, void *buf, size_t len);

/* Numbers from the environment, for long or repeated runs. */
uint64_t env_number(const char *name, uint64_t otherwise);

/* How much slower this build is than a plain one: divides the work of long tests. */
static inline unsigned build_slowness(void)
{
#if defined(__SANITIZE_THREAD__)
    return 10;
#elif defined(__SANITIZE_ADDRESS__)
    return 3;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
    return 10;
#elif __has_feature(address_sanitizer)
    return 3;
#else
    return 1;
#endif
#else
    return 1;
#endif
}

#endif
