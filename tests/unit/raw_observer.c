/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the calls of observers by the request engine: after every change, failed or not, and before
 * its reply; and the order of observers that act before and after a change. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/node.h"
#include "fault_storage.h"
#include "mem_storage.h"
#include "raw/raw.h"

#define SIZE (1u << 20)

static struct block_context ctx;
static struct fault_plan plan;
static struct storage *memory;
static struct node *node;
static struct diag diag;

/* The calls so far, as words. */
static char story[512];

struct witness {
    struct observer observer;
    char name;
    uint8_t byte_then; /* the byte at the changed place at the time of the call */
};

static void tell(const char *what, char who)
{
    size_t n = strlen(story);

    snprintf(story + n, sizeof story - n, "%s%c ", what, who);
}

static void wrote(struct observer *observer, uint64_t off, uint64_t len)
{
    struct witness *w = CONTAINER_OF(observer, struct witness, observer);
    size_t n = strlen(story);

    snprintf(story + n, sizeof story - n, "%c:%lu+%lu ", w->name, (unsigned long)off,
             (unsigned long)len);
    cr_assert_eq(storage_read(memory, &w->byte_then, off, 1), 0);
    cr_assert_not(gate_empty(&ctx.gate), "inside the gate");
}

static void *before(struct observer *observer, const struct change *change)
{
    struct witness *w = CONTAINER_OF(observer, struct witness, observer);

    tell(change->kind == CHANGE_WRITE  ? "write-"
         : change->kind == CHANGE_ZERO ? "zero-"
                                       : "discard-",
         w->name);
    cr_assert_eq(change->buf != NULL, change->kind == CHANGE_WRITE);
    return w;
}

static void after(struct observer *observer, const struct change *change, void *token,
                  int err)
{
    struct witness *w = CONTAINER_OF(observer, struct witness, observer);

    cr_assert_eq(token, w);
    cr_assert(change->len > 0);
    tell(err ? "failed-" : "done-", w->name);
}

static void setup(void)
{
    const struct node_options options = {.lock_off = true};

    fault_plan_init(&plan);
    memory = mem_storage_new(SIZE);
    cr_assert_eq(block_context_init(&ctx, 1 << 20, NULL, NULL), 0);
    cr_assert_eq(node_open(&ctx, &raw_driver,
                           fault_storage_new(mem_storage_share(memory), &plan), "disk",
                           &options, &node, &diag),
                 0, "%s", diag.text);
    cr_assert_eq(node_activate(node, &diag), 0, "%s", diag.text);
}

static void teardown(void)
{
    node_close(node);
    storage_close(memory);
    block_context_destroy(&ctx);
    fault_plan_destroy(&plan);
}

TestSuite(observer, .init = setup, .fini = teardown);

static void add(struct witness *w)
{
    cr_assert_eq(observer_add(&node->observers, &w->observer), 0);
}

static int refuse(struct observer *observer, const struct change *change)
{
    struct witness *w = CONTAINER_OF(observer, struct witness, observer);

    tell("guard-", w->name);
    return change->off == 0 ? -EDQUOT : 0;
}

/* When a guard refuses a change, it isn't made, and no other observer is called. */
Test(observer, a_guard_refuses)
{
    struct witness around = {.observer = {.wrote = wrote, .before = before, .after = after},
                             .name = 'a'};
    struct witness guard = {.observer = {.wrote = wrote, .guard = refuse}, .name = 'g'};
    uint8_t byte = 7;

    add(&around);
    add(&guard);
    cr_expect_eq(block_write(node, &byte, 0, 1, 0), -EDQUOT);
    cr_expect_eq(block_zero(node, 0, 4096, 0), -EDQUOT);
    cr_expect_eq(block_discard(node, 0, 4096, BLOCK_FUA), -EDQUOT);
    cr_expect_str_eq(story, "guard-g guard-g guard-g ");
    cr_expect_eq(block_read(node, &byte, 0, 1), 0);
    cr_expect_eq(byte, 0);
    cr_expect(gate_empty(&ctx.gate));
    story[0] = '\0';
    cr_expect_eq(block_write(node, &byte, 1, 1, 0), 0);
    cr_expect_str_eq(story, "guard-g write-a a:1+1 g:1+1 done-a ");
    observer_remove(&node->observers, &guard.observer);
    cr_expect_eq(block_write(node, &byte, 0, 1, 0), 0);
    observer_remove(&node->observers, &around.observer);
}

Test(observer, is_told_of_every_change)
{
    struct witness w = {.observer.wrote = wrote, .name = 'w'};
    uint8_t buf[100];

    memset(buf, 7, sizeof buf);
    add(&w);
    cr_assert_eq(block_write(node, buf, 5000, 100, 0), 0);
    cr_assert_eq(w.byte_then, 7, "after the change");
    cr_assert_eq(block_zero(node, 5000, 50, 0), 0);
    cr_assert_eq(w.byte_then, 0, "after the change");
    cr_assert_eq(block_discard(node, 8192, 4096, 0), 0);
    cr_assert_eq(block_write(node, buf, 1, 0, 0), 0);
    cr_assert_eq(block_read(node, buf, 0, 100), 0);
    cr_assert_eq(block_flush(node), 0);
    cr_assert_eq(block_write(node, buf, SIZE, 1, 0), -EINVAL);
    cr_assert_str_eq(story, "w:5000+100 w:5000+50 w:8192+4096 ");
    observer_remove(&node->observers, &w.observer);
    observer_remove(&node->observers, &w.observer);
    cr_assert_eq(block_write(node, buf, 0, 100, 0), 0);
    cr_assert_str_eq(story, "w:5000+100 w:5000+50 w:8192+4096 ");
}

Test(observer, is_told_of_failures)
{
    struct witness w = {.observer = {.wrote = wrote, .before = before, .after = after},
                        .name = 'w'};
    uint8_t buf[100] = {0};

    add(&w);
    fault_plan_fail(&plan, FAULT_WRITE, 1, ENOSPC, FAULT_ONCE);
    cr_assert_eq(block_write(node, buf, 0, 100, 0), -ENOSPC);
    cr_assert_str_eq(story, "write-w w:0+100 failed-w ");
    observer_remove(&node->observers, &w.observer);
}

Test(observer, around_comes_first_and_last)
{
    struct witness plain = {.observer.wrote = wrote, .name = 'p'};
    struct witness a = {.observer = {.wrote = wrote, .before = before, .after = after},
                        .name = 'a'};
    struct witness b = a;
    uint8_t buf[1] = {1};

    b.name = 'b';
    add(&plain);
    add(&a);
    add(&b);
    cr_assert_eq(block_write(node, buf, 9, 1, 0), 0);
    cr_assert_str_eq(story, "write-a write-b a:9+1 b:9+1 p:9+1 done-b done-a ");
    story[0] = '\0';
    observer_remove(&node->observers, &a.observer);
    cr_assert_eq(block_zero(node, 9, 1, 0), 0);
    cr_assert_str_eq(story, "zero-b b:9+1 p:9+1 done-b ");
    observer_remove(&node->observers, &plain.observer);
    observer_remove(&node->observers, &b.observer);
}

Test(observer, not_too_many_around)
{
    struct witness w[OBSERVERS_AROUND + 1], plain[20];

    for (unsigned i = 0; i < ARRAY_LEN(w); i++) {
        w[i] = (struct witness){
            .observer = {.wrote = wrote, .before = before, .after = after}, .name = 'w'};
        cr_assert_eq(observer_add(&node->observers, &w[i].observer),
                     i < OBSERVERS_AROUND ? 0 : -EBUSY);
    }
    for (unsigned i = 0; i < ARRAY_LEN(plain); i++) {
        plain[i] = (struct witness){.observer.wrote = wrote, .name = 'p'};
        add(&plain[i]);
    }
    for (unsigned i = 0; i < ARRAY_LEN(w); i++)
        observer_remove(&node->observers, &w[i].observer);
    for (unsigned i = 0; i < ARRAY_LEN(plain); i++)
        observer_remove(&node->observers, &plain[i].observer);
    cr_assert_null(node->observers.list);
}
