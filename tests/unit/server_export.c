/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests an export whose image is replaced by another one while clients use it. */
#include "server_testing.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct fixture {
    struct scratch scratch;
    struct block_shared shared;
    struct served_export exp;
    char *path;
    char name[8];
};

static void start(struct fixture *f)
{
    const struct plugin_config config = {
        .cache = cache_mode_find("writeback"),
        .writable_now = true,
    };
    const struct export_request request = {.file = f->path, .config = &config};
    struct diag diag = {0};

    strcpy(f->name, "drive0");
    cr_assert_eq(block_shared_init(&f->shared, (size_t)16 << 20, NULL, NULL), 0);
    cr_assert_eq(housekeeper_start(f->shared.housekeeper), 0);
    f->exp = (struct served_export){.node_name = f->name};
    cr_assert_eq(export_open(&f->exp, &request, &f->shared, &diag), 0, "%s", diag.text);
    cr_assert_eq(export_start(&f->exp), 0);
}

static void set_up(struct fixture *f, const char *name)
{
    registry_init();
    scratch_make(&f->scratch);
    f->path = scratch_path(&f->scratch, name);
}

static void begin(struct fixture *f)
{
    set_up(f, "first");
    make_image(f->path, "qcow2", SIZE, NULL);
    start(f);
}

static void end(struct fixture *f)
{
    cr_assert_eq(export_close(&f->exp), 0);
    cr_assert_eq(export_close(&f->exp), 0, "again");
    block_shared_destroy(&f->shared);
    scratch_remove(&f->scratch);
    free(f->path);
}

/* Makes an image and opens it in the export's context; sets *path, which the caller frees. */
static struct node *another(struct fixture *f, const char *name, uint64_t size, char **path)
{
    const struct chain_options options = {.format = "qcow2"};
    struct diag diag = {0};
    struct node *node = NULL;

    *path = scratch_path(&f->scratch, name);
    make_image(*path, "qcow2", size, NULL);
    cr_assert_eq(chain_open(&f->exp.ctx, *path, &options, &node, &diag), 0, "%s",
                 diag.text);
    return node;
}

/* Replaces the export's node as a job does. */
static int replace(struct served_export *exp, struct node *node, struct diag *diag)
{
    export_begin_drain(exp);
    int err = export_replace(exp, node, diag);
    export_end_drain(exp);
    return err;
}

/* The test's seat, as of a job that is about to replace the disk. */
static struct disk_seat own_seat;

static struct node *take_seat(struct served_export *exp)
{
    struct node *node = export_take_seat(exp, &own_seat);

    export_set_seat(exp, &own_seat, SEAT_IDLE);
    return node;
}

static void leave_seat(struct served_export *exp)
{
    export_leave_seat(exp, &own_seat);
}

/* M-06 */
Test(exp, another_image_takes_its_place)
{
    struct fixture f;
    CLEANUP_FREE char *second = NULL;

    begin(&f);
    cr_assert_eq(write_byte(&f.exp, 1, 0), 0);
    cr_assert_not(is_free(f.path));
    struct node *old = take_seat(&f.exp);
    struct node *node = another(&f, "second", SIZE, &second);
    cr_assert_neq(node, old);

    export_begin_drain(&f.exp);
    cr_assert_eq(export_replace(&f.exp, node, NULL), 0);
    export_end_drain(&f.exp);
    leave_seat(&f.exp);

    cr_assert_eq(read_byte(&f.exp, 0), 0, "the new one is empty");
    cr_assert(is_free(f.path), "the old one is closed");
    cr_assert_eq(write_byte(&f.exp, 2, 0), 0);
    cr_assert_eq(read_byte(&f.exp, 0), 2);
    cr_assert_not(is_free(second), "the new one is locked");
    end(&f);
}

Test(exp, a_smaller_one_is_refused)
{
    struct fixture f;
    CLEANUP_FREE char *path = NULL;
    struct diag diag = {0};

    begin(&f);
    struct node *old = take_seat(&f.exp);
    struct node *node = another(&f, "smaller", SIZE / 2, &path);
    cr_assert_eq(replace(&f.exp, node, &diag), -EINVAL);
    cr_assert(strstr(diag.text, "smaller"));
    cr_assert_eq(atomic_load(&f.exp.node), old);
    cr_assert_eq(node_close(node), 0);
    leave_seat(&f.exp);
    end(&f);
}

/* M-24 */
Test(exp, not_while_another_job_uses_it)
{
    struct fixture f;
    CLEANUP_FREE char *path = NULL;

    begin(&f);
    struct disk_seat other = {0};
    cr_assert_eq(take_seat(&f.exp), export_take_seat(&f.exp, &other));
    struct node *node = another(&f, "second", SIZE, &path);
    cr_assert_eq(replace(&f.exp, node, NULL), -EBUSY);
    export_leave_seat(&f.exp, &other);
    cr_assert_eq(replace(&f.exp, node, NULL), 0);
    leave_seat(&f.exp);
    end(&f);
}

/* M-24: the end of another job may hang; drained users must not wait for it without limit. */
Test(exp, who_doesnt_leave_isnt_waited_for_without_end, .timeout = 60)
{
    struct fixture f;
    CLEANUP_FREE char *path = NULL;
    struct disk_seat other = {0};
    struct diag diag = {0};

    begin(&f);
    struct node *old = take_seat(&f.exp);
    cr_assert_eq(export_take_seat(&f.exp, &other), old);
    export_set_seat(&f.exp, &other, SEAT_LEAVES);
    struct node *node = another(&f, "second", SIZE, &path);
    atomic_fetch_add(&old->viewers, 1); /* a client still reads the old node */
    cr_expect_eq(replace(&f.exp, node, &diag), -EBUSY);
    cr_expect(strstr(diag.text, "a client reads"), "%s", diag.text);
    atomic_fetch_sub(&old->viewers, 1);
    cr_expect_eq(replace(&f.exp, node, &diag), -EBUSY);
    cr_expect(strstr(diag.text, "Node 'drive0' is busy: "), "%s", diag.text);
    cr_expect_eq(write_byte(&f.exp, 1, 0), 0);
    export_set_seat(&f.exp, &other, SEAT_IDLE);
    cr_expect_eq(replace(&f.exp, node, &diag), 0, "%s", diag.text);
    export_leave_seat(&f.exp, &other);
    leave_seat(&f.exp);
    end(&f);
}

/* M-28 */
Test(exp, a_base_takes_the_place_of_its_overlay)
{
    struct fixture f;
    CLEANUP_FREE char *base = NULL;

    set_up(&f, "top");
    base = scratch_path(&f.scratch, "base");
    make_image(base, "qcow2", SIZE, NULL);
    make_image(f.path, "qcow2", SIZE, base);
    start(&f);
    struct node *top = take_seat(&f.exp);
    struct node *below = top->backing;
    /* A commit would write to the base now. */
    cr_assert_eq(write_byte(&f.exp, 1, 0), 0);
    cr_assert_not(is_free(f.path));

    f.exp.wanted_writable = false; /* the base was opened read-only */
    cr_assert_eq(replace(&f.exp, below, NULL), 0);
    leave_seat(&f.exp);
    cr_assert(is_free(f.path));
    cr_assert_eq(read_byte(&f.exp, 0), 0);
    end(&f);
}

/* M-24 */
Test(exp, an_overlay_takes_the_place_of_its_base)
{
    struct fixture f;
    CLEANUP_FREE char *path = NULL;

    begin(&f);
    cr_assert_eq(write_byte(&f.exp, 3, 0), 0);
    struct node *old = take_seat(&f.exp);
    struct node *node = another(&f, "overlay", SIZE, &path);
    node->backing = old;
    cr_assert_eq(replace(&f.exp, node, NULL), 0);
    leave_seat(&f.exp);
    cr_assert_not(is_free(f.path), "it is still needed");
    end(&f);
}

/* ---- bitmaps ---- */

static struct dirty_bitmap *add_bitmap(struct node *node, const char *name)
{
    const struct bitmap_params params = {.name = name, .granularity = 64u << 10};
    struct dirty_bitmap *bitmap;
    struct diag diag = {0};

    cr_assert_eq(node_bitmap_create(node, &params, &bitmap, &diag), 0, "%s", diag.text);
    return bitmap;
}

/* If one bitmap can't move to the new node, none is moved or changed (F-04). */
Test(exp, bitmaps_go_all_or_none)
{
    CLEANUP_FREE char *base = NULL, *path = NULL;
    struct diag diag = {0};
    struct fixture f;

    set_up(&f, "top");
    base = scratch_path(&f.scratch, "base");
    make_image(base, "qcow2", SIZE, NULL);
    make_image(f.path, "qcow2", SIZE, base);
    start(&f);
    struct node *top = take_seat(&f.exp);
    struct node *larger = another(&f, "larger", 2 * SIZE, &path);
    cr_assert_eq(node_activate(larger, &diag), 0, "%s", diag.text);
    struct dirty_bitmap *below = add_bitmap(top->backing, "idle");
    struct dirty_bitmap *idle = add_bitmap(top, "idle"), *busy = add_bitmap(top, "zbusy");
    dirty_bitmap_set(below, 0, 1);
    cr_assert_eq(dirty_bitmap_acquire(busy, &diag), 0);

    cr_expect_eq(replace(&f.exp, larger, &diag), -EBUSY);
    cr_expect(strstr(diag.text, "'zbusy' is in use"), "%s", diag.text);
    cr_expect_eq(node_bitmap_find(top, "idle"), idle);
    cr_expect_eq(node_bitmap_find(top->backing, "idle"), below);
    cr_expect_eq(dirty_bitmap_size(idle), SIZE);
    cr_expect_eq(dirty_bitmap_size(below), SIZE);
    cr_expect_eq(dirty_bitmap_count(idle), 0);
    cr_expect_null(node_bitmap_find(larger, "idle"));
    cr_expect_null(atomic_load(&larger->observers.list), "somebody records");

    dirty_bitmap_release(busy);
    cr_assert_eq(replace(&f.exp, larger, &diag), 0, "%s", diag.text);
    cr_expect_eq(node_bitmap_find(larger, "idle"), idle);
    cr_expect_eq(node_bitmap_find(larger, "zbusy"), busy);
    cr_expect_eq(dirty_bitmap_size(idle), 2 * SIZE);
    cr_expect(dirty_bitmap_get(idle, 0), "what the layer below has recorded");
    cr_expect_eq(dirty_bitmap_count(idle), SIZE + (64u << 10), "and what nobody has");
    leave_seat(&f.exp);
    end(&f);
}

/* A bitmap of a lower layer would be merged into that of the layer above.  While it is in use this
 * is refused. */
Test(exp, a_busy_bitmap_becomes_no_part_of_another)
{
    CLEANUP_FREE char *base = NULL, *path = NULL;
    struct diag diag = {0};
    struct fixture f;

    set_up(&f, "top");
    base = scratch_path(&f.scratch, "base");
    make_image(base, "qcow2", SIZE, NULL);
    make_image(f.path, "qcow2", SIZE, base);
    start(&f);
    struct node *top = take_seat(&f.exp), *mid = top->backing;
    struct node *other = another(&f, "other", SIZE, &path);
    struct dirty_bitmap *below = add_bitmap(mid, "b"), *above = add_bitmap(top, "b");
    cr_assert_eq(dirty_bitmap_acquire(below, &diag), 0);
    cr_expect_eq(replace(&f.exp, other, &diag), -EBUSY);
    cr_expect_eq(node_bitmap_find(top, "b"), above);
    cr_expect_eq(node_bitmap_find(mid, "b"), below);
    dirty_bitmap_release(below);
    cr_expect_eq(replace(&f.exp, other, &diag), 0, "%s", diag.text);
    cr_expect_eq(node_bitmap_find(other, "b"), above);
    leave_seat(&f.exp);
    end(&f);
}

/* ---- draining ---- */

struct writer {
    pthread_t thread;
    struct served_export *exp;
    _Atomic bool *stop;
    uint64_t off;
    _Atomic uint64_t writes;
};

static void *write_on(void *opaque)
{
    struct writer *w = opaque;

    while (!atomic_load(w->stop)) {
        unsigned char value = (unsigned char)(atomic_load(&w->writes) + 1);
        cr_assert_eq(write_byte(w->exp, value, w->off), 0);
        cr_assert_eq(read_byte(w->exp, w->off), value);
        atomic_fetch_add(&w->writes, 1);
    }
    return NULL;
}

#define WRITERS 4

static void start_writers(struct writer *writers, struct served_export *exp,
                          _Atomic bool *stop)
{
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i].exp = exp;
        writers[i].stop = stop;
        writers[i].off = i * STEP;
        atomic_init(&writers[i].writes, 0);
        pthread_create(&writers[i].thread, NULL, write_on, &writers[i]);
    }
}

static uint64_t count(struct writer *writers)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < WRITERS; i++)
        n += atomic_load(&writers[i].writes);
    return n;
}

static void await(struct writer *writers, uint64_t more)
{
    uint64_t goal = count(writers) + more;

    while (count(writers) < goal)
        usleep(1000);
}

/* M-09 */
Test(exp, changes_wait_while_they_are_held)
{
    struct fixture f;
    struct writer writers[WRITERS];
    _Atomic bool stop = false;

    begin(&f);
    start_writers(writers, &f.exp, &stop);
    for (unsigned round = 0; round < 20; round++) {
        await(writers, 10);
        export_begin_drain(&f.exp);
        unsigned char before = read_byte(&f.exp, 0);
        usleep(2000);
        cr_assert_eq(read_byte(&f.exp, 0), before);
        export_end_drain(&f.exp);
    }
    await(writers, 10);
    stop = true;
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(writers[i].thread, NULL);
    end(&f);
}

static void copy_all(struct served_export *exp, struct node *to)
{
    static unsigned char buf[SIZE];
    EXPORT_USE(use, export_enter(exp));

    cr_assert_eq(block_read(use.node, buf, 0, SIZE), 0);
    cr_assert_eq(block_write(to, buf, 0, SIZE, 0), 0);
}

/* Replaces the image again and again, as a mirror does at its end, while clients check all they
 * read (M-06). */
Test(exp, replaces_under_load)
{
    struct fixture f;
    struct writer writers[WRITERS];
    _Atomic bool stop = false;

    begin(&f);
    start_writers(writers, &f.exp, &stop);
    for (unsigned round = 0; round < 20; round++) {
        CLEANUP_FREE char *path = NULL;
        char name[32];
        snprintf(name, sizeof name, "image%u", round);
        await(writers, 10);
        struct node *old = take_seat(&f.exp);
        struct node *node = another(&f, name, SIZE, &path);
        cr_assert_eq(node_activate(node, NULL), 0);
        cr_assert_neq(old, node);
        export_begin_drain(&f.exp);
        copy_all(&f.exp, node);
        cr_assert_eq(export_replace(&f.exp, node, NULL), 0);
        export_end_drain(&f.exp);
        leave_seat(&f.exp);
    }
    await(writers, 10);
    stop = true;
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(writers[i].thread, NULL);
    end(&f);
}

/* ---- the end ---- */

static void *resize_it(void *opaque)
{
    struct fixture *f = opaque;
    struct diag diag = {0};

    return (void *)(intptr_t)export_resize(&f->exp, 2 * SIZE, &diag);
}

static void *seal_it(void *opaque)
{
    export_seal(&((struct fixture *)opaque)->exp);
    return NULL;
}

/* At the server's end, a resize that waits for a request gives up, and doesn't make the image
 * available again. */
Test(server_export, the_end_finds_the_image_being_resized)
{
    pthread_t resizer, sealer;
    struct fixture f;
    void *result;

    begin(&f);
    struct export_use use = export_enter(&f.exp);
    cr_assert_eq(pthread_create(&resizer, NULL, resize_it, &f), 0);
    while (atomic_load(&f.exp.node))
        usleep(1000);
    cr_assert_eq(pthread_create(&sealer, NULL, seal_it, &f), 0);
    pthread_join(resizer, &result);
    cr_assert_eq((intptr_t)result, -EBUSY);
    export_leave(&use);
    pthread_join(sealer, NULL);
    cr_assert_null(atomic_load(&f.exp.node), "it can be used after the end");
    cr_assert_not_null(f.exp.sealed);
    end(&f);
}
