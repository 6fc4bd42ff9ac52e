/* SPDX-License-Identifier: BSD-3-Clause */
/* Images of any format for tests, each with a model of its contents: a flat array with the
 * bytes that the guest should see.
 *
 * An image is created by its driver (by qemu-img where a feature needs it), with or without a
 * backing file and a snapshot, in memory or in a file.  The test does the same requests to the
 * node and to the model; image_verify then compares both and runs our check and qemu-img.
 *
 *     struct image img;
 *     image_make(&img, &(struct image_spec){.format = "qcow2", .size = 64 * MIB}, 1);
 *     image_open(&img);
 *     ... block_write(img.node, ...), and the same to img.model.bytes ...
 *     image_close(&img);
 *     cr_assert(image_verify(&img, why, sizeof why), "%s", why);
 *     image_free(&img);
 *
 * The functions abort when a preparation fails.  Call registry_init first.  Threads: one. */
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
    const char *options; /* for create, "cluster_size=4096,compat=0.10"; NULL: none */
    uint64_t size;
    const char *base_format; /* NULL: no backing file */
    uint64_t base_size;
    const char *encrypt; /* qcow2: its encrypt.format, "luks" or "aes"; NULL: none */
    /* qcow2: an external data file, "plain" or "raw" (with data_file_raw=on: the file alone
     * reads as the disk).  NULL: the data is in the image. */
    const char *data_file;
    bool packed;        /* two thirds of its clusters are filled and compressed */
    bool snapshot;      /* after some writes qemu-img makes a snapshot */
    bool on_file;       /* the image is in a file; else it is in memory */
    bool plain;         /* in memory: the storage can't zero, punch holes or report them */
    bool real_time;     /* the housekeeper's thread runs, with the real clock */
    size_t cache_bytes; /* of metadata; 0: 16 MiB */
    struct node_options node;
};

/* The bytes that the guest should see. */
struct flat {
    uint8_t *bytes;
    uint64_t size;
};

struct image {
    struct image_spec spec;
    struct scratch scratch;
    char *path, *base_path, *data_path; /* NULL: there is none */
    char *tools; /* encrypted: the image as an --image-opts string for qemu-img */
    struct storage *mem, *base_mem, *data_mem; /* the test's handles; NULL: in a file */
    struct crash_log *log;   /* set by the test: open a storage of this log, not `mem` */
    struct fault_plan *plan; /* set by the test: put a fault storage with it on top */
    struct flat model, snapshot; /* snapshot.bytes NULL: none */
    uint64_t now;                /* the clock in ns, unless real_time */
    struct block_context ctx;
    struct node *node; /* NULL: closed */
};

/* Creates the image (left closed), a base with random contents, and the model to match. */
void image_make(struct image *img, const struct image_spec *spec, uint64_t seed);
/* Closes the image if it is open. */
void image_free(struct image *img);

/* Opens the chain and makes the top writable.  0 or -errno. */
int image_try_open(struct image *img, struct diag *diag) MUST_USE;
/* The same; aborts on an error, and starts the housekeeper with real_time. */
void image_open(struct image *img);
int image_close(struct image *img);

/* The image must be closed.  True if our check and qemu-img find neither corruption nor leak,
 * and qemu-img reads what the model holds.  Otherwise `why` says what is wrong.  Without
 * qemu-img only our check runs. */
bool image_verify(struct image *img, char *why, size_t n);

/* Saves the closed image as a file, if it is in memory; returns the path. */
const char *image_save(struct image *img);

/* Runs a shell command and returns its exit status (255: killed by a signal).  Up to n - 1
 * bytes of its output are stored in `output` unless that is NULL. */
int shell(char *output, size_t n, const char *fmt, ...) PRINTF_LIKE(3, 4);
bool have_qemu(void);

/* Creates an image file by its driver. */
void image_create(const char *path, const char *format, const char *options, uint64_t size,
                  const char *base_name, const char *base_format);

/* Random bytes to write to the image, compressible ones if it compresses. */
void image_fill(const struct image *img, struct rng *rng, void *buf, size_t len);

/* A number from the environment, for long or repeated runs, or else `otherwise`. */
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
