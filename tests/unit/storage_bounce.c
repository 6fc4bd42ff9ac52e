/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests bounce buffers: their alignment, that no two users get the same one, and their reuse. */
#include <pthread.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/checked.h"
#include "storage/bounce.h"

#define MANY   40 /* more than are kept for reuse */
#define ROUNDS 200

static const uint64_t spans[] = {
    1, 512, 4096, 65535, 65536, 65537, 1 << 19, BOUNCE_BYTES, BOUNCE_BYTES + 1, 1 << 24};

Test(storage_bounce, has_its_alignment_and_capacity)
{
    for (size_t i = 0; i < ARRAY_LEN(spans); i++)
        for (uint32_t align = 512; align <= BOUNCE_BYTES; align *= 2) {
            struct bounce b = bounce_new(spans[i], align);
            cr_assert_not_null(b.bytes);
            cr_assert_eq(b.capacity, MIN(spans[i], BOUNCE_BYTES));
            cr_assert(is_aligned((uintptr_t)b.bytes, MAX(align, 4096)));
            memset(b.bytes, 0xa5, b.capacity);
            bounce_release(&b);
        }
}

/* Two buffers share a huge page but don't overlap.  More are used at once than are kept; the others
 * are returned to the system. */
Test(storage_bounce, many_at_once_lie_apart)
{
    struct bounce b[MANY];

    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MANY; i++) {
            b[i] = bounce_new(BOUNCE_BYTES, 512);
            cr_assert_not_null(b[i].bytes);
            memset(b[i].bytes, i, BOUNCE_BYTES);
        }
        for (int i = 0; i < MANY; i++) {
            cr_assert_eq(b[i].bytes[0], i);
            cr_assert_eq(memcmp(b[i].bytes, b[i].bytes + 1, BOUNCE_BYTES - 1), 0);
            bounce_release(&b[i]);
        }
    }
}

Test(storage_bounce, the_next_gets_what_was_there)
{
    const uintptr_t huge = 2 * BOUNCE_BYTES;
    struct bounce first = bounce_new(BOUNCE_BYTES, 512);
    uintptr_t page = align_down((uintptr_t)first.bytes, huge);

    bounce_release(&first);
    struct bounce second = bounce_new(65536, 512), third = bounce_new(BOUNCE_BYTES, 512);
    cr_assert_neq(second.bytes, third.bytes);
    cr_assert_eq(align_down((uintptr_t)second.bytes, huge), page);
    cr_assert_eq(align_down((uintptr_t)third.bytes, huge), page);
    bounce_release(&second);
    bounce_release(&third);
}

static void *use_some(void *arg)
{
    char mark = *(char *)arg;

    for (int i = 0; i < ROUNDS; i++) {
        struct bounce b = bounce_new(BOUNCE_BYTES, 512);
        memset(b.bytes, mark, 8192);
        for (int at = 0; at < 8192; at++)
            if (b.bytes[at] != mark)
                return "another thread wrote to it";
        bounce_release(&b);
    }
    return NULL;
}

Test(storage_bounce, threads_have_their_own)
{
    pthread_t threads[4];
    char marks[4];

    for (int i = 0; i < 4; i++) {
        marks[i] = (char)i;
        cr_assert_eq(pthread_create(&threads[i], NULL, use_some, &marks[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *failure;
        pthread_join(threads[i], &failure);
        cr_assert_null(failure, "%s", (char *)failure);
    }
}
