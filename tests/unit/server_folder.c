/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests images of a folder as exports: opened on demand, closed when they aren't used any more. */
#include "server_testing.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "export_table.h"
#include "image_folder.h"

struct fixture {
    struct scratch scratch;
    struct plugin_config config;
    struct block_shared shared;
    struct image_folder *folder;
    struct export_table table;
};

static void begin(struct fixture *f, uint64_t linger_ms)
{
    struct diag diag = {0};

    registry_init();
    scratch_make(&f->scratch);
    f->config = (struct plugin_config){.cache = cache_mode_find("writeback"),
                                       .dir = f->scratch.dir};
    cr_assert_eq(block_shared_init(&f->shared, SIZE, NULL, NULL), 0);
    cr_assert_eq(housekeeper_start(f->shared.housekeeper), 0);
    cr_assert_eq(image_folder_open(&f->config, &f->shared, &f->folder, &diag), 0, "%s",
                 diag.text);
    export_table_init(&f->table);
    export_table_set_folder(&f->table, f->folder, linger_ms);
    cr_assert_eq(export_table_start(&f->table), 0);
}

static void end(struct fixture *f)
{
    export_table_close(&f->table);
    export_table_destroy(&f->table);
    image_folder_close(f->folder);
    block_shared_destroy(&f->shared);
    scratch_remove(&f->scratch);
}

/* Makes an image in the folder; returns its path, which the caller frees. */
static char *add_image(struct fixture *f, const char *name)
{
    char *path = scratch_path(&f->scratch, name);

    make_image(path, "qcow2", SIZE, NULL);
    return path;
}

/* E-03 */
Test(folder, an_image_is_closed_when_its_time_is_over)
{
    struct fixture f;
    struct diag diag = {0};

    begin(&f, 50);
    CLEANUP_FREE char *path = add_image(&f, "disk");
    for (int round = 0; round < 3; round++) {
        struct served_export *first = export_table_find(&f.table, "disk", &diag);
        struct served_export *second = export_table_find(&f.table, "disk", &diag);
        cr_assert_not_null(first, "%s", diag.text);
        cr_expect_eq(first, second, "it is shared");
        cr_assert_eq(export_make_writable(first, &diag), 0, "%s", diag.text);
        cr_assert_eq(write_byte(first, (unsigned char)(round + 1), 0), 0);
        export_put(first);
        cr_expect_eq(read_byte(second, 0), round + 1);
        cr_expect_not(is_free(path));
        export_put(second);
        while (!is_free(path))
            usleep(1000);
    }
    end(&f);
}

/* E-03: a job keeps the image open.  Iterating over the exports neither keeps it open nor closes
 * it. */
Test(folder, a_job_keeps_it_open)
{
    struct fixture f;
    struct diag diag = {0};

    begin(&f, 0);
    CLEANUP_FREE char *path = add_image(&f, "disk");
    struct served_export *exp = export_table_find(&f.table, "disk", &diag);
    cr_assert_eq(export_make_writable(exp, &diag), 0, "%s", diag.text);
    cr_assert(export_begin_job(exp));
    export_put(exp);
    EXPORT_TABLE_EACH (looked_at, &f.table)
        cr_expect_eq(looked_at, exp);
    usleep(20000);
    cr_expect_not(is_free(path));
    export_end_job(exp);
    while (!is_free(path))
        usleep(1000);
    end(&f);
}

struct asker {
    pthread_t thread;
    struct fixture *f;
    struct diag diag;
};

static void *ask(void *opaque)
{
    struct asker *asker = opaque;

    /* Often enough that some threads wait for an attempt of another one. */
    for (int i = 0; i < 100; i++) {
        cr_expect_null(export_table_find(&asker->f->table, "broken", &asker->diag));
        cr_expect(strstr(asker->diag.text, "/broken: "), "%s", asker->diag.text);
    }
    return NULL;
}

/* E-04 */
Test(folder, all_are_told_why_it_cannot_be_opened)
{
    struct fixture f;
    struct asker askers[8];

    begin(&f, 0);
    CLEANUP_FREE char *path = add_image(&f, "broken");
    cr_assert_eq(truncate(path, 80), 0);
    for (unsigned i = 0; i < ARRAY_LEN(askers); i++) {
        askers[i] = (struct asker){.f = &f};
        cr_assert_eq(pthread_create(&askers[i].thread, NULL, ask, &askers[i]), 0);
    }
    for (unsigned i = 0; i < ARRAY_LEN(askers); i++) {
        pthread_join(askers[i].thread, NULL);
        cr_expect_str_eq(askers[i].diag.text, askers[0].diag.text);
        cr_expect(strstr(askers[i].diag.text, path), "%s", askers[i].diag.text);
    }
    end(&f);
}

Test(folder, none_is_opened_at_the_end)
{
    struct fixture f;
    struct diag diag = {0};

    begin(&f, 0);
    free(add_image(&f, "disk"));
    export_table_seal(&f.table);
    cr_expect_null(export_table_find(&f.table, "disk", &diag));
    cr_expect_eq(diag.err, ESHUTDOWN);
    end(&f);
}
