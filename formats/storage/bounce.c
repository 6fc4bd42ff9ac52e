/* SPDX-License-Identifier: BSD-3-Clause */
/* Small buffers come from the heap; large ones are halves of huge pages. */
#include "storage/bounce.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/spares.h"

#define PAGE_ALIGN 4096u
/* From this size on, a buffer's small pages cost more than a large buffer. */
#define LARGE_FROM (64u << 10)
/* The size of a huge page on most processors. */
#define HUGE_BYTES (2 * (size_t)BOUNCE_BYTES)

/* Used by all files. */
static struct spares large_ones;

static void unmap(char *from, const char *to)
{
    if (from < to)
        (void)munmap(from, (size_t)(to - from));
}

/* Maps HUGE_BYTES, aligned to HUGE_BYTES; NULL: memory is short. */
static char *map_huge(void)
{
    char *all = mmap(NULL, 2 * HUGE_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (all == MAP_FAILED)
        return NULL;
    char *start = all + (align_up((uintptr_t)all, HUGE_BYTES) - (uintptr_t)all);
    unmap(all, start);
    unmap(start + HUGE_BYTES, all + 2 * HUGE_BYTES);
#ifdef MADV_HUGEPAGE
    (void)madvise(start, HUGE_BYTES, MADV_HUGEPAGE); /* without it, small pages do */
#endif
    return start;
}

static void leave_large(char *p)
{
    if (!spares_leave(&large_ones, p))
        unmap(p, p + BOUNCE_BYTES);
}

static char *take_large(void)
{
    char *p = spares_take(&large_ones);

    if (!p) {
        p = map_huge();
        if (p)
            leave_large(p + BOUNCE_BYTES);
    }
    return p;
}

struct bounce bounce_new(uint64_t span, uint32_t align)
{
    struct bounce b = {.capacity = MIN(span, BOUNCE_BYTES)};
    void *p;

    if (b.capacity >= LARGE_FROM)
        b.bytes = take_large();
    else if (posix_memalign(&p, MAX(PAGE_ALIGN, align), b.capacity) == 0)
        b.bytes = p;
    return b;
}

void bounce_release(struct bounce *b)
{
    if (b->bytes && b->capacity >= LARGE_FROM)
        leave_large(b->bytes);
    else
        free(b->bytes);
}
