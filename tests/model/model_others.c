/* SPDX-License-Identifier: BSD-3-Clause */
/* Model tests (support/random_ops.h) of QED and raw. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "random_ops.h"
#include "registry.h"

#define QED(opts, bytes) .image.format = "qed", .image.options = opts, .image.size = bytes
#define RAW(bytes)       .image.format = "raw", .image.size = bytes
#define BASE(fmt, bytes) .image.base_format = fmt, .image.base_size = bytes
#define CACHE(bytes)     .image.cache_bytes = bytes
#define DELAY            .image.node.need_check_delay_ns = 5 * SEC

/* Each QED file has fewer clusters than a cluster has bytes.  In larger files qemu-img check
 * reports a leak that isn't one, because it divides by the cluster size minus one. */
static const struct trial_case cases[] = {
    {.name = "qed-4k",
     QED("cluster_size=4096,table_size=2", 12 * MIB + 512),
     DELAY,
     .ops = 20000},
    {.name = "qed-4k-table16-small-cache",
     QED("cluster_size=4096,table_size=16", 12 * MIB + 512),
     CACHE(32 * KIB),
     DELAY,
     .ops = 15000},
    {.name = "qed-4k-base-raw-shorter",
     QED("cluster_size=4096,table_size=2", 12 * MIB + 512),
     BASE("raw", 9 * MIB + 512),
     CACHE(32 * KIB),
     .ops = 20000},
    {.name = "qed-4k-base-qcow2-longer",
     QED("cluster_size=4096,table_size=8", 12 * MIB + 1536),
     BASE("qcow2", 15 * MIB),
     .ops = 15000},
    {.name = "qed-4k-reads-kept",
     QED("cluster_size=4096,table_size=2", 12 * MIB + 512),
     BASE("raw", 9 * MIB + 512),
     .image.node.copy_on_read = true,
     DELAY,
     .ops = 10000},
    {.name = "qed-64k-base-qed",
     QED("cluster_size=65536", 32 * MIB + 512),
     BASE("qed", 20 * MIB + 512),
     .ops = 10000},
    {.name = "qed-64k-file",
     QED("cluster_size=65536,table_size=4", 48 * MIB + 512),
     .image.on_file = true,
     DELAY,
     .ops = 10000},
    {.name = "qed-64k-ignore-trim",
     QED("cluster_size=65536,table_size=2", 32 * MIB),
     .image.node.discard_ignore = true,
     .image.node.detect_zeroes = DETECT_UNMAP,
     .ops = 10000},
    {.name = "qed-2m",
     QED("cluster_size=2097152,table_size=2", 41 * MIB + 512),
     .max_len = 3 * MIB,
     .ops = 1500},
    {.name = "raw", RAW(24 * MIB + 512), .ops = 40000},
    {.name = "qed-4k-plain-base",
     QED("cluster_size=4096,table_size=4", 12 * MIB + 512),
     BASE("raw", 7 * MIB + 512),
     .image.plain = true,
     DELAY,
     .ops = 10000},
    {.name = "raw-plain", RAW(8 * MIB + 512), .image.plain = true, .ops = 10000},
    {.name = "raw-file", RAW(24 * MIB + 512), .image.on_file = true, .ops = 30000},
    {.name = "raw-ignore-trim",
     RAW(16 * MIB),
     .image.node.discard_ignore = true,
     .image.node.detect_zeroes = DETECT_UNMAP,
     .ops = 35000},
};

ParameterizedTestParameters(model_others, random_requests)
{
    static int index[ARRAY_LEN(cases)];

    for (int i = 0; i < (int)ARRAY_LEN(cases); i++)
        index[i] = i;
    return cr_make_param_array(int, index, ARRAY_LEN(cases));
}

ParameterizedTest(int *index, model_others, random_requests, .timeout = 300)
{
    registry_init();
    trial_run(&cases[*index]);
}

static void run_with_cache(const char *mode, struct trial_case what)
{
    registry_init();
    what.image.node.cache = cache_mode_find(mode);
    trial_run(&what);
}

Test(model_others, qed_write_through, .timeout = 300)
{
    run_with_cache("writethrough", (struct trial_case){.name = "qed-4k-writethrough",
                                                       QED("cluster_size=4096,table_size=2",
                                                           12 * MIB + 512),
                                                       DELAY,
                                                       .ops = 6000});
}

Test(model_others, qed_direct_file, .timeout = 300)
{
    run_with_cache("none", (struct trial_case){.name = "qed-64k-none-file",
                                               QED("cluster_size=65536", 24 * MIB + 512),
                                               .image.on_file = true,
                                               .ops = 2000});
}

Test(model_others, raw_write_through_file, .timeout = 300)
{
    run_with_cache("writethrough", (struct trial_case){.name = "raw-writethrough-file",
                                                       RAW(16 * MIB + 512),
                                                       .image.on_file = true,
                                                       .ops = 3000});
}
