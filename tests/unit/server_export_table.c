/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the table of exports: finding them by name, adding and removing them while others are in
 * use, and their common memory limit. */
#include "server_testing.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "export_table.h"

#define MIB   (1024u * KIB)
#define LIMIT ((size_t)1 << 20)

struct fixture {
    struct scratch scratch;
    struct block_shared shared;
    struct export_table table;
};

static void begin(struct fixture *f)
{
    registry_init();
    scratch_make(&f->scratch);
    cr_assert_eq(block_shared_init(&f->shared, LIMIT, NULL, NULL), 0);
    cr_assert_eq(housekeeper_start(f->shared.housekeeper), 0);
    export_table_init(&f->table);
}

static void end(struct fixture *f)
{
    export_table_close(&f->table);
    export_table_close(&f->table); /* closing twice is harmless */
    cr_expect_eq(mc_pool_used(f->shared.pool), 0, "nothing of theirs is left");
    export_table_destroy(&f->table);
    block_shared_destroy(&f->shared);
    scratch_remove(&f->scratch);
}

/* Opens an image as an export of that name, with the node name "n" followed by that name. */
static int open_export(struct fixture *f, const char *name, const char *path,
                       struct diag *diag)
{
    const struct plugin_config config = {
        .cache = cache_mode_find("writeback"),
        .writable_now = true,
    };
    char node_name[32];
    const struct export_request request = {.file = path, .config = &config};

    snprintf(node_name, sizeof node_name, "n%.20s", name);
    int err = export_table_open(&f->table, name, node_name, &request, &f->shared, diag);
    if (err)
        return err;
    CLEANUP_EXPORT struct served_export *exp = export_table_find(&f->table, name, diag);
    return export_start(exp);
}

/* Makes an image of that size; sets *path, which the caller frees. */
static void add_image(struct fixture *f, const char *name, uint64_t size, char **path)
{
    static unsigned number;
    struct diag diag = {0};
    char file[32];

    snprintf(file, sizeof file, "image%u", number++);
    *path = scratch_path(&f->scratch, file);
    make_image(*path, "qcow2", size, NULL);
    cr_assert_eq(open_export(f, name, *path, &diag), 0, "%s", diag.text);
}

static struct served_export *find(struct fixture *f, const char *name)
{
    struct diag diag = {0};
    struct served_export *exp = export_table_find(&f->table, name, &diag);

    cr_assert_not_null(exp, "%s", diag.text);
    return exp;
}

static unsigned count(struct fixture *f)
{
    unsigned n = 0;

    EXPORT_TABLE_EACH (exp, &f->table)
        n++;
    return n;
}

/* ---- names ---- */

Test(export_table, each_is_found_by_its_name)
{
    struct fixture f;
    CLEANUP_FREE char *first = NULL, *second = NULL;

    begin(&f);
    cr_expect_null(export_table_default(&f.table));
    add_image(&f, "", SIZE, &first);
    add_image(&f, "b/c", 2 * SIZE, &second);
    cr_expect_str_eq(export_table_default(&f.table), "");
    cr_expect_eq(count(&f), 2);

    CLEANUP_EXPORT struct served_export *one = find(&f, ""), *other = find(&f, "b/c");
    CLEANUP_EXPORT struct served_export *by_node = export_table_find_node(&f.table, "nb/c");
    cr_expect_eq(by_node, other);
    cr_expect_neq(one, other);
    cr_expect_null(export_table_find_node(&f.table, "b/c"));
    cr_assert_eq(write_byte(one, 1, 0), 0);
    cr_assert_eq(write_byte(other, 2, 0), 0);
    cr_expect_eq(read_byte(one, 0), 1);
    cr_expect_eq(read_byte(other, 0), 2);
    export_put(TAKE(&one));
    export_put(TAKE(&other));
    export_put(TAKE(&by_node));
    end(&f);
}

Test(export_table, who_asks_for_another_is_told_what_there_is)
{
    struct fixture f;
    CLEANUP_FREE char *first = NULL, *second = NULL;
    struct diag diag = {0};
    char name[4097];

    begin(&f);
    cr_expect_null(export_table_find(&f.table, "", &diag));
    cr_expect_str_eq(diag.text, "there is no export '': there is none at all");
    add_image(&f, "", SIZE, &first);
    add_image(&f, "b", SIZE, &second);
    cr_expect_null(export_table_find(&f.table, "c", &diag));
    cr_expect_eq(diag.err, ENOENT);
    cr_expect_str_eq(diag.text, "there is no export 'c': there is \"\", \"b\"");

    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    name[0] = '\n';
    cr_expect_null(export_table_find(&f.table, name, &diag));
    cr_expect_null(strchr(diag.text, '\n'));
    cr_expect(strstr(diag.text, "there is \"\", \"b\""), "%s", diag.text);
    end(&f);
}

Test(export_table, a_message_names_only_so_many)
{
    struct fixture f;
    struct diag diag = {0};

    begin(&f);
    for (unsigned i = 0; i < 11; i++) {
        CLEANUP_FREE char *path = NULL;
        char name[8];
        snprintf(name, sizeof name, "e%u", i);
        add_image(&f, name, SIZE, &path);
    }
    cr_expect_null(export_table_find(&f.table, "", &diag));
    cr_expect(strstr(diag.text, "\"e0\", \"e1\""));
    cr_expect(strstr(diag.text, "\"e7\" and 3 more"), "%s", diag.text);
    end(&f);
}

Test(export_table, a_name_is_given_once)
{
    struct fixture f;
    CLEANUP_FREE char *first = NULL, *other = NULL;
    struct diag diag = {0};

    begin(&f);
    add_image(&f, "a", SIZE, &first);
    other = scratch_path(&f.scratch, "other");
    make_image(other, "qcow2", SIZE, NULL);
    cr_expect_eq(open_export(&f, "a", other, &diag), -EEXIST);
    cr_expect(strstr(diag.text, "export 'a'"));
    cr_expect(is_free(other), "what was refused is closed");

    const struct plugin_config config = {.cache = cache_mode_find("writeback")};
    const struct export_request request = {.file = other, .config = &config};
    cr_expect_eq(export_table_open(&f.table, "b", "na", &request, &f.shared, &diag),
                 -EEXIST);
    cr_expect(strstr(diag.text, "node name 'na'"));
    cr_expect_eq(count(&f), 1);
    end(&f);
}

/* ---- coming and going ---- */

static int withdraw(struct fixture *f, const char *name, struct diag *diag)
{
    CLEANUP_EXPORT struct served_export *exp = export_table_find(&f->table, name, diag);

    return exp ? export_table_withdraw(exp, true, diag) : -ENOENT;
}

Test(export_table, the_last_user_closes_what_was_removed)
{
    struct fixture f;
    CLEANUP_FREE char *path = NULL;
    struct diag diag = {0};

    begin(&f);
    add_image(&f, "a", SIZE, &path);
    struct served_export *user = find(&f, "a");
    cr_assert_eq(withdraw(&f, "a", &diag), 0);
    cr_expect_eq(withdraw(&f, "a", &diag), -ENOENT);
    cr_expect_null(export_table_find(&f.table, "a", &diag));
    cr_expect_eq(count(&f), 0);
    cr_expect_eq(write_byte(user, 1, 0), 0, "who has it goes on");
    cr_expect_eq(read_byte(user, 0), 1);
    cr_expect_not(is_free(path));
    export_put(user);
    cr_expect(is_free(path));

    /* The name can be used again, and the written byte is there. */
    cr_assert_eq(open_export(&f, "a", path, &diag), 0, "%s", diag.text);
    CLEANUP_EXPORT struct served_export *again = find(&f, "a");
    cr_expect_eq(read_byte(again, 0), 1);
    export_put(TAKE(&again));
    end(&f);
}

Test(export_table, a_job_keeps_its_export)
{
    struct fixture f;
    CLEANUP_FREE char *path = NULL;
    struct diag diag = {0};

    begin(&f);
    add_image(&f, "a", SIZE, &path);
    struct served_export *user = find(&f, "a");
    cr_assert(export_begin_job(user));
    cr_expect_eq(withdraw(&f, "a", &diag), -EBUSY);
    cr_expect(strstr(diag.text, "job"));
    export_end_job(user);
    cr_assert_eq(withdraw(&f, "a", &diag), 0);
    cr_expect_not(export_begin_job(user), "it is on its way out");
    export_put(user);
    end(&f);
}

Test(export_table, the_end_closes_what_is_in_use)
{
    struct fixture f;
    CLEANUP_FREE char *first = NULL, *second = NULL;

    begin(&f);
    add_image(&f, "a", SIZE, &first);
    add_image(&f, "b", SIZE, &second);
    struct served_export *listed = find(&f, "a"), *removed = find(&f, "b");
    cr_assert_eq(withdraw(&f, "b", &(struct diag){0}), 0);
    cr_expect(export_table_is_idle(&f.table));
    {
        EXPORT_USE(use, export_enter(removed));
        cr_expect_not(export_table_is_idle(&f.table));
    }
    export_table_abandon_servers(&f.table);
    export_table_seal(&f.table);
    export_table_close(&f.table);
    cr_expect(is_free(first));
    cr_expect(is_free(second));
    export_put(listed);
    export_put(removed);
    end(&f);
}

/* ---- beside each other ---- */

struct writer {
    pthread_t thread;
    struct fixture *f;
    const char *name;
    _Atomic bool *stop;
    _Atomic uint64_t rounds;
    uint64_t off;
};

/* Writes as a client would, with one connection after the other. */
static void *write_on(void *opaque)
{
    struct writer *w = opaque;

    while (!atomic_load(w->stop)) {
        CLEANUP_EXPORT struct served_export *exp = find(w->f, w->name);
        unsigned char value = (unsigned char)(atomic_load(&w->rounds) + 1);
        cr_assert_eq(write_byte(exp, value, w->off), 0);
        cr_assert_eq(read_byte(exp, w->off), value);
        atomic_fetch_add(&w->rounds, 1);
    }
    return NULL;
}

static void await(struct writer *w, uint64_t more)
{
    uint64_t goal = atomic_load(&w->rounds) + more;

    while (atomic_load(&w->rounds) < goal)
        usleep(1000);
}

Test(export_table, others_come_and_go_while_one_is_used)
{
    struct fixture f;
    struct writer writers[2];
    CLEANUP_FREE char *stays = NULL, *goes = NULL;
    _Atomic bool stop = false;

    begin(&f);
    add_image(&f, "stays", SIZE, &stays);
    add_image(&f, "goes", SIZE, &goes);
    for (unsigned i = 0; i < ARRAY_LEN(writers); i++) {
        writers[i] =
            (struct writer){.f = &f, .name = "stays", .stop = &stop, .off = i * STEP};
        pthread_create(&writers[i].thread, NULL, write_on, &writers[i]);
    }
    for (unsigned round = 0; round < 20; round++) {
        struct diag diag = {0};
        CLEANUP_EXPORT struct served_export *exp = find(&f, "goes");
        cr_assert_eq(write_byte(exp, (unsigned char)round, round * STEP / 2), 0);
        await(&writers[round % 2], 5);
        cr_assert_eq(withdraw(&f, "goes", &diag), 0);
        cr_assert_eq(read_byte(exp, round * STEP / 2), round);
        export_put(TAKE(&exp));
        cr_assert(is_free(goes));
        cr_assert_eq(count(&f), 1);
        await(&writers[round % 2], 5);
        cr_assert_eq(open_export(&f, "goes", goes, &diag), 0, "%s", diag.text);
    }
    stop = true;
    for (unsigned i = 0; i < ARRAY_LEN(writers); i++)
        pthread_join(writers[i].thread, NULL);
    end(&f);
}

/* Draining one export doesn't affect the others. */
Test(export_table, a_drain_is_of_one_export)
{
    struct fixture f;
    CLEANUP_FREE char *first = NULL, *second = NULL;

    begin(&f);
    add_image(&f, "a", SIZE, &first);
    add_image(&f, "b", SIZE, &second);
    struct served_export *held = find(&f, "a"), *other = find(&f, "b");
    {
        EXPORT_USE(writer, export_enter_change(other));
        export_begin_drain(held); /* waits only for requests of its own export */
        cr_expect_eq(block_write(writer.node, "x", 0, 1, 0), 0);
    }
    cr_expect_eq(write_byte(other, 7, 0), 0);
    export_end_drain(held);
    export_put(held);
    export_put(other);
    end(&f);
}

/* the tables of each image alone would take more memory than the limit for all. */
Test(export_table, all_share_one_memory_limit)
{
    enum { TABLES = 1000, IMAGES = 3 };
    static const char *const names[IMAGES] = {"a", "b", "c"};
    struct fixture f;
    struct served_export *exp[IMAGES];
    char *paths[IMAGES];
    size_t most = 0;

    begin(&f);
    for (unsigned i = 0; i < IMAGES; i++) {
        struct create_option options[] = {{.key = "cluster_size", .value = "4096"}};
        struct create_request request = {
            .size = (uint64_t)TABLES * 2 * MIB, .options = options, .n_options = 1};
        struct diag diag = {0};
        paths[i] = scratch_path(&f.scratch, names[i]);
        request.filename = paths[i];
        cr_assert_eq(create_image(driver_find("qcow2"), &request, &diag), 0, "%s",
                     diag.text);
        cr_assert_eq(open_export(&f, names[i], paths[i], &diag), 0, "%s", diag.text);
        exp[i] = find(&f, names[i]);
    }
    for (unsigned table = 0; table < TABLES; table++)
        for (unsigned i = 0; i < IMAGES; i++) {
            cr_assert_eq(write_byte(exp[i], (unsigned char)(table + i), table * 2ull * MIB),
                         0);
            most = MAX(most, mc_pool_used(f.shared.pool));
        }
    for (unsigned table = 0; table < TABLES; table++)
        for (unsigned i = 0; i < IMAGES; i++) {
            cr_assert_eq(read_byte(exp[i], table * 2ull * MIB), (unsigned char)(table + i));
            most = MAX(most, mc_pool_used(f.shared.pool));
        }
    cr_expect_leq(most, LIMIT);
    cr_expect_gt(most, LIMIT / 2);
    for (unsigned i = 0; i < IMAGES; i++) {
        export_put(exp[i]);
        free(paths[i]);
    }
    end(&f);
}
