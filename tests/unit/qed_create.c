/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests creating QED images. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "qed_testing.h"

static char folder[32];

static void setup(void)
{
    make_folder(folder);
    cr_assert_eq(chdir(folder), 0);
}

static void teardown(void)
{
    cr_assert_eq(chdir("/"), 0);
    remove_folder(folder);
}

TestSuite(qed_create, .init = setup, .fini = teardown);

/* options: up to four, as "key=value key=value ...". */
static int create(const char *filename, uint64_t size, const char *options,
                  struct diag *diag)
{
    char copy[256];
    struct create_option list[4] = {0};
    struct create_request req = {.filename = filename, .size = size, .options = list};

    snprintf(copy, sizeof copy, "%s", options);
    char *save = NULL;
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *equals = strchr(word, '=');
        *equals = '\0';
        list[req.n_options++] = (struct create_option){.key = word, .value = equals + 1};
    }
    return create_image(&qed_driver, &req, diag);
}

static void create_fails(uint64_t size, const char *options, int err, const char *message)
{
    struct diag diag = {0};

    cr_expect_eq(create("new.qed", size, options, &diag), -err, "%s: %s", options,
                 diag.text);
    cr_expect_str_eq(diag.text, message);
    cr_expect_neq(access("new.qed", F_OK), 0, "nothing is left behind");
}

Test(qed_create, q01_q03_byte_for_byte_as_qemu_img)
{
    static const struct {
        uint64_t size;
        const char *options, *same_for_qemu;
    } cases[] = {
        {GIB, "", ""},
        {0, "", ""},
        {GIB + 512, "cluster_size=4k", "-o cluster_size=4k"},
        {MIB, "cluster_size=4096 table_size=1", "-o cluster_size=4096,table_size=1"},
        {MIB, "cluster_size=1M table_size=16", "-o cluster_size=1M,table_size=16"},
        {64 * TIB, "", ""},
        {MIB, "backing_file=base backing_fmt=raw", "-u -b base -F raw"},
        {MIB, "backing_file=base backing_fmt=qcow2", "-u -b base -F qcow2"},
    };

    if (!have_qemu_img())
        cr_skip("qemu-img is not installed");
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct diag diag = {0};
        cr_assert_eq(create("ours.qed", cases[i].size, cases[i].options, &diag), 0, "%s",
                     diag.text);
        cr_assert_eq(run("qemu-img create -q -f qed %s theirs.qed %llu",
                         cases[i].same_for_qemu, (unsigned long long)cases[i].size),
                     0);
        cr_expect_eq(run("cmp ours.qed theirs.qed"), 0, "%s", cases[i].options);
    }
}

Test(qed_create, q03_accepted_by_qemu_img)
{
    if (!have_qemu_img())
        cr_skip("qemu-img is not installed");
    cr_assert_eq(create("disk.qed", 100 * MIB, "cluster_size=8k table_size=2", NULL), 0);
    cr_expect_eq(run("qemu-img check -q -f qed disk.qed"), 0);
    cr_expect_eq(run("qemu-img info --output=json -f qed disk.qed | "
                     "grep -q '\"virtual-size\": 104857600'"),
                 0);
}

/* QEMU 7.2 creates images with tables of one cluster, but then refuses to open them. */
Test(qed_create, q02_tables_of_one_cluster_are_warned_about)
{
    log_set_sink(log_to_buffer);
    logged[0] = '\0';
    cr_assert_eq(create("disk.qed", MIB, "table_size=1", NULL), 0);
    cr_expect_str_eq(logged, "disk.qed: table_size 1: QEMU doesn't open images with tables "
                             "of one cluster");
}

Test(qed_create, q03_layout)
{
    struct storage *st;
    struct qed_header h;
    char *backing = NULL;

    cr_assert_eq(create("disk.qed", 1000, "backing_file=below backing_fmt=raw", NULL), 0);
    cr_assert_eq(mem_storage_load("disk.qed", &st), 0);
    cr_assert_eq(qed_header_read(st, "disk.qed", &h, NULL), 0);
    cr_expect_eq(h.cluster_size, 65536);
    cr_expect_eq(h.table_size, 4);
    cr_expect_eq(h.header_size, 1);
    cr_expect_eq(h.image_size, 1024, "rounded up to whole sectors");
    cr_expect_eq(h.l1_table_offset, h.cluster_size);
    cr_expect_eq(h.features, QED_F_BACKING_FILE | QED_F_BACKING_FORMAT_NO_PROBE);
    cr_expect_eq(h.backing_filename_offset, 64);
    cr_expect_eq(size_of(st), 5 * 65536);
    cr_assert_eq(qed_header_read_backing(st, "disk.qed", &h, &backing, NULL), 0);
    cr_expect_str_eq(backing, "below");
    free(backing);
    storage_close(st);
}

Test(qed_create, q03_an_older_file_is_cut_first)
{
    cr_assert_eq(run("head -c 10000000 /dev/urandom >disk.qed"), 0);
    cr_assert_eq(create("disk.qed", MIB, "", NULL), 0);
    cr_assert_eq(create("other.qed", MIB, "", NULL), 0);
    cr_expect_eq(run("cmp disk.qed other.qed"), 0);
}

Test(qed_create, q02_q03_bad_options_leave_nothing)
{
    create_fails(MIB, "cluster_size=2k", EINVAL,
                 "new.qed: cluster_size 2048: must be a power of two from 4k to 64M");
    create_fails(MIB, "cluster_size=128M", EINVAL,
                 "new.qed: cluster_size 134217728: must be a power of two from 4k to 64M");
    create_fails(MIB, "cluster_size=64kb", EINVAL,
                 "new.qed: cluster_size '64kb': not a size");
    create_fails(MIB, "cluster_size=-4096", EINVAL,
                 "new.qed: cluster_size '-4096': not a size");
    create_fails(MIB, "cluster_size=16777216T", EINVAL,
                 "new.qed: cluster_size '16777216T': not a size");
    create_fails(MIB, "cluster_size=", EINVAL, "new.qed: cluster_size '': not a size");
    create_fails(MIB, "table_size=3", EINVAL,
                 "new.qed: table_size 3: must be a power of two from 1 to 16 clusters");
    create_fails(MIB, "table_size=32", EINVAL,
                 "new.qed: table_size 32: must be a power of two from 1 to 16 clusters");
    create_fails(MIB, "backing_fmt=raw", EINVAL,
                 "new.qed: backing_fmt 'raw': there is no backing_file");
    create_fails(MIB, "compat=1.1", EINVAL,
                 "new.qed: unknown option 'compat': QED has cluster_size, table_size, "
                 "backing_file and backing_fmt");
    create_fails(
        GIB + 1, "cluster_size=4k table_size=1", EFBIG,
        "new.qed: size 1073741825: clusters of 4096 bytes and tables of 1 clusters "
        "map 1073741824 bytes at most");
    create_fails(
        UINT64_MAX, "", EFBIG,
        "new.qed: size 18446744073709551615: clusters of 65536 bytes and tables of 4 "
        "clusters map 70368744177664 bytes at most");
}

Test(qed_create, q03_backing_name_has_to_fit)
{
    char name[4096], option[4200];
    struct diag diag = {0};
    struct create_option options[] = {{.key = "cluster_size", .value = "4k"}};
    struct create_request req = {.filename = "new.qed",
                                 .size = MIB,
                                 .backing_file = name,
                                 .options = options,
                                 .n_options = 1};

    memset(name, 'x', sizeof name);
    name[4032] = '\0';
    cr_expect_eq(create_image(&qed_driver, &req, &diag), 0, "%s", diag.text);
    cr_assert_eq(unlink("new.qed"), 0);
    memset(name, 'x', sizeof name);
    name[4033] = '\0';
    cr_expect_eq(create_image(&qed_driver, &req, &diag), -EINVAL);
    snprintf(option, sizeof option,
             "new.qed: backing_file: its name is longer than 4032 bytes");
    cr_expect_str_eq(diag.text, option);
    cr_expect_neq(access("new.qed", F_OK), 0);
}

Test(qed_create, q03_a_failing_step_leaves_nothing)
{
    const struct rlimit limit = {.rlim_cur = 8192, .rlim_max = RLIM_INFINITY};
    const struct rlimit none = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    struct diag diag = {0};

    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int err = create("new.qed", MIB, "", &diag);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &none), 0);
    cr_expect_eq(err, -EFBIG);
    cr_expect_eq(strncmp(diag.text, "new.qed: writing the image: ", 28), 0, "%s",
                 diag.text);
    cr_expect_neq(access("new.qed", F_OK), 0);
}

Test(qed_create, q04_character_devices_are_refused)
{
    struct diag diag = {0};

    cr_expect_eq(create("/dev/null", MIB, "", &diag), -EINVAL);
    cr_expect(strstr(diag.text, "/dev/null"), "%s", diag.text);
    cr_expect(strstr(diag.text, "character device"), "%s", diag.text);
}

Test(qed_create, q04_block_devices_are_refused)
{
    struct diag diag = {0};

    /* Skipped unless the test is allowed to make device nodes. */
    if (mknod("device", S_IFBLK | 0600, (dev_t)(7 << 8)) != 0 ||
        run("dd if=device of=/dev/null count=0 2>/dev/null") != 0)
        cr_skip("block devices can't be opened here");
    cr_expect_eq(create("device", MIB, "", &diag), -ENOTSUP, "%s", diag.text);
    cr_expect_str_eq(diag.text,
                     "device: a QED image can't be created on a block device: the format "
                     "grows by extending its file");
    cr_expect_eq(access("device", F_OK), 0, "the device is not ours to remove");
}

Test(qed_create, images_open)
{
    struct bench b;
    struct storage *st;

    cr_assert_eq(create("disk.qed", 10 * MIB, "cluster_size=4k", NULL), 0);
    cr_assert_eq(mem_storage_load("disk.qed", &st), 0);
    bench_init(&b, st);
    bench_open_writable(&b);
    cr_expect(reads_as(b.node, 0, 10 * MIB, 0));
    write_pattern(b.node, 5 * MIB, 10000, 7);
    cr_expect(reads_as(b.node, 5 * MIB, 10000, 7));
    cr_assert_eq(bench_close(&b), 0);
    cr_expect_eq(qemu_check(b.mem), 0);
    bench_fini(&b);
}
