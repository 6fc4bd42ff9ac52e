/* SPDX-License-Identifier: BSD-3-Clause */
/* Model tests (support/random_ops.h) of qcow2: versions, geometries, backing files and modes. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "random_ops.h"
#include "registry.h"

#define V2 "compat=0.10,"
#define V3 "compat=1.1,"

#define IMAGE(opts, bytes) \
    .image.format = "qcow2", .image.options = opts, .image.size = bytes
#define BASE(fmt, bytes) .image.base_format = fmt, .image.base_size = bytes
#define CACHE(bytes)     .image.cache_bytes = bytes
#define DELAY            .image.node.need_check_delay_ns = 5 * SEC

/* Most disk sizes are no whole number of clusters, on purpose. */
static const struct trial_case cases[] = {
    /* version 3: more than 100,000 requests in all */
    {.name = "v3-512", IMAGE(V3 "cluster_size=512", 3 * MIB + 1536), .ops = 12000},
    {.name = "v3-512-rc1",
     IMAGE(V3 "cluster_size=512,refcount_bits=1", 3 * MIB + 512),
     CACHE(48 * KIB),
     .ops = 12000},
    {.name = "v3-512-rc64-small-cache",
     IMAGE(V3 "cluster_size=512,refcount_bits=64", 6 * MIB + 512),
     CACHE(32 * KIB),
     .ops = 12000},
    {.name = "v3-512-rc64-snapshot",
     IMAGE(V3 "cluster_size=512,refcount_bits=64", 3 * MIB),
     .image.snapshot = true,
     .ops = 10000},
    {.name = "v3-4k-base-raw-shorter",
     IMAGE(V3 "cluster_size=4096", 24 * MIB + 512),
     BASE("raw", 10 * MIB + 1000 * 512),
     CACHE(64 * KIB),
     .ops = 12000},
    {.name = "v3-4k-base-qcow2-longer",
     IMAGE(V3 "cluster_size=4096", 16 * MIB + 3584),
     BASE("qcow2", 20 * MIB),
     .ops = 12000},
    {.name = "v3-4k-base-qed-shorter-snapshot",
     IMAGE(V3 "cluster_size=4096", 16 * MIB + 512),
     BASE("qed", 9 * MIB + 512),
     .image.snapshot = true,
     .ops = 10000},
    {.name = "v3-4k-rc64-lazy",
     IMAGE(V3 "cluster_size=4096,refcount_bits=64,lazy_refcounts=on", 24 * MIB + 512),
     CACHE(128 * KIB),
     DELAY,
     .ops = 12000},
    {.name = "v3-64k", IMAGE(V3 "cluster_size=65536", 48 * MIB + 512), .ops = 10000},
    {.name = "v3-64k-prealloc",
     IMAGE(V3 "cluster_size=65536,preallocation=metadata", 32 * MIB + 512),
     .ops = 8000},
    {.name = "v3-64k-lazy-base-file",
     IMAGE(V3 "cluster_size=65536,lazy_refcounts=on", 32 * MIB + 512),
     BASE("raw", 17 * MIB + 512),
     DELAY,
     .image.on_file = true,
     .ops = 5000},
    {.name = "v3-64k-rc1-ignore-trim",
     IMAGE(V3 "cluster_size=65536,refcount_bits=1", 32 * MIB),
     .image.node.discard_ignore = true,
     .image.node.detect_zeroes = DETECT_UNMAP,
     .ops = 8000},
    {.name = "v3-4k-packed",
     IMAGE(V3 "cluster_size=4096", 12 * MIB + 512),
     .image.node.compress = true,
     .ops = 10000},
    {.name = "v3-512-packed-rc1-base",
     IMAGE(V3 "cluster_size=512,refcount_bits=1", 2 * MIB + 512),
     BASE("qcow2", MIB + 512),
     .image.node.compress = true,
     CACHE(64 * KIB),
     .ops = 6000},
    {.name = "v3-64k-packed-base-snapshot",
     IMAGE(V3 "cluster_size=65536,lazy_refcounts=on", 32 * MIB + 512),
     BASE("qed", 20 * MIB),
     DELAY,
     .image.snapshot = true,
     .image.node.compress = true,
     .ops = 4000},
    {.name = "v2-2m-packed-file",
     IMAGE(V2 "cluster_size=2097152", 41 * MIB),
     .image.on_file = true,
     .image.node.compress = true,
     .max_len = 5 * MIB,
     .ops = 300},
    {.name = "v3-512-plain",
     IMAGE(V3 "cluster_size=512", 3 * MIB + 512),
     .image.plain = true,
     CACHE(64 * KIB),
     .ops = 10000},
    {.name = "v3-4k-plain-base",
     IMAGE(V3 "cluster_size=4096", 12 * MIB + 512),
     BASE("qcow2", 7 * MIB + 512),
     .image.plain = true,
     .ops = 10000},
    {.name = "v3-2m",
     IMAGE(V3 "cluster_size=2097152", 63 * MIB + 512),
     .max_len = 5 * MIB,
     .ops = 1500},
    {.name = "v3-2m-base-snapshot",
     IMAGE(V3 "cluster_size=2097152,refcount_bits=64", 40 * MIB + 512),
     BASE("qed", 50 * MIB),
     .image.snapshot = true,
     .max_len = 3 * MIB,
     .ops = 800},
    /* version 2 */
    {.name = "v2-512", IMAGE(V2 "cluster_size=512", 4 * MIB + 512), .ops = 25000},
    {.name = "v2-512-base",
     IMAGE(V2 "cluster_size=512", 3 * MIB + 512),
     BASE("qcow2", 2 * MIB + 512),
     CACHE(64 * KIB),
     .ops = 20000},
    {.name = "v2-4k-snapshot",
     IMAGE(V2 "cluster_size=4096", 16 * MIB + 512),
     .image.snapshot = true,
     .ops = 20000},
    {.name = "v2-4k-base-longer-ignore-trim",
     IMAGE(V2 "cluster_size=4096", 16 * MIB + 512),
     BASE("raw", 20 * MIB),
     .image.node.discard_ignore = true,
     .image.node.detect_zeroes = DETECT_ON,
     .ops = 20000},
    {.name = "v2-64k-base-snapshot",
     IMAGE(V2 "cluster_size=65536", 32 * MIB + 512),
     BASE("qed", 20 * MIB),
     .image.snapshot = true,
     CACHE(256 * KIB),
     .ops = 8000},
    {.name = "v2-64k-file-prealloc",
     IMAGE(V2 "cluster_size=65536,preallocation=metadata", 32 * MIB + 512),
     .image.on_file = true,
     .ops = 8000},
    {.name = "v2-512-plain",
     IMAGE(V2 "cluster_size=512", 3 * MIB + 512),
     .image.plain = true,
     .ops = 10000},
    {.name = "v2-2m",
     IMAGE(V2 "cluster_size=2097152", 41 * MIB),
     .max_len = 3 * MIB,
     .ops = 1500},
};

ParameterizedTestParameters(model_qcow2, random_requests)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, model_qcow2, random_requests, .timeout = 300)
{
    registry_init();
    trial_run(&cases[*index]);
}

/* With writethrough each write is durable before it is answered: another path of the code. */
Test(model_qcow2, write_through, .timeout = 300)
{
    struct trial_case what = {.name = "v3-4k-writethrough",
                              IMAGE(V3 "cluster_size=4096", 16 * MIB + 512),
                              BASE("raw", 3 * MIB),
                              .ops = 6000};

    registry_init();
    what.image.node.cache = cache_mode_find("writethrough");
    trial_run(&what);
}

Test(model_qcow2, volatile_cache, .timeout = 300)
{
    struct trial_case what = {
        .name = "v3-4k-volatile-lazy",
        IMAGE(V3 "cluster_size=4096,lazy_refcounts=on", 16 * MIB + 512),
        DELAY,
        .ops = 6000};

    registry_init();
    what.image.node.cache = cache_mode_find("volatile");
    trial_run(&what);
}
