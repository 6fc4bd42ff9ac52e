/* SPDX-License-Identifier: BSD-3-Clause */
/* A storage in memory: a hash table of pages, which clones share until they are written. */
#include "mem_storage.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/lock.h"

/* Clones share pages.  A page is written only while it has a single user. */
struct page {
    _Atomic unsigned users;
    uint8_t bytes[MEM_PAGE_BYTES];
};

/* One entry of a hash table from page number to page. */
struct slot {
    struct slot *next;
    uint64_t index;
    struct page *page;
};

struct memory {
    _Atomic unsigned handles;
    struct lock lock;
    /* under lock */
    struct slot **buckets;
    uint64_t n_buckets; /* a power of two */
    uint64_t n_pages;
    uint64_t max_pages;
    uint64_t size;
};

struct mem_storage {
    struct storage st;
    struct memory *memory;
};

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

static struct memory *memory_of(struct storage *st)
{
    return ((struct mem_storage *)st)->memory;
}

/* ---- pages; call these functions with the lock held ---- */

static void page_put(struct page *page)
{
    if (atomic_fetch_sub(&page->users, 1) == 1)
        free(page);
}

static struct slot **find(struct memory *m, uint64_t index)
{
    uint64_t hash = index * 0x9e3779b97f4a7c15u >> 20;
    struct slot **pos = &m->buckets[hash & (m->n_buckets - 1)];

    while (*pos && (*pos)->index != index)
        pos = &(*pos)->next;
    return pos;
}

static void insert(struct memory *m, struct slot *slot)
{
    struct slot **pos = find(m, slot->index);

    slot->next = *pos;
    *pos = slot;
}

static void rehash(struct memory *m, uint64_t n_buckets)
{
    struct slot **old = m->buckets;
    uint64_t n_old = m->n_buckets;

    m->buckets = must(calloc(n_buckets, sizeof *m->buckets));
    m->n_buckets = n_buckets;
    for (uint64_t i = 0; i < n_old; i++)
        for (struct slot *slot = old[i], *next; slot; slot = next) {
            next = slot->next;
            insert(m, slot);
        }
    free(old);
}

static void add_page(struct memory *m, uint64_t index, struct page *page)
{
    struct slot *slot = must(calloc(1, sizeof *slot));

    if (++m->n_pages > m->n_buckets)
        rehash(m, m->n_buckets * 2);
    slot->index = index;
    slot->page = page;
    insert(m, slot);
}

static void drop_page(struct memory *m, uint64_t index)
{
    struct slot **pos = find(m, index), *slot = *pos;

    if (!slot)
        return;
    *pos = slot->next;
    page_put(slot->page);
    free(slot);
    m->n_pages--;
}

static const uint8_t *page_to_read(struct memory *m, uint64_t index)
{
    struct slot *slot = *find(m, index);

    return slot ? slot->page->bytes : NULL;
}

/* The page for writing, copied first if it is shared; NULL when the limit allows no more. */
static uint8_t *page_to_write(struct memory *m, uint64_t index)
{
    struct slot *slot = *find(m, index);

    if (!slot) {
        if (m->n_pages >= m->max_pages)
            return NULL;
        struct page *page = must(calloc(1, sizeof *page));
        page->users = 1;
        add_page(m, index, page);
        return page->bytes;
    }
    if (slot->page->users > 1) {
        struct page *copy = must(malloc(sizeof *copy));
        copy->users = 1;
        memcpy(copy->bytes, slot->page->bytes, sizeof copy->bytes);
        page_put(slot->page);
        slot->page = copy;
    }
    return slot->page->bytes;
}

/* Zeroes [off, end).  Whole pages are dropped; for a range wider than the number of pages in
 * memory the hash table is walked instead of the range. */
static void clear(struct memory *m, uint64_t off, uint64_t end)
{
    uint64_t first = div_round_up(off, MEM_PAGE_BYTES), last = end / MEM_PAGE_BYTES;

    if (last > first && last - first <= m->n_pages) {
        for (uint64_t i = first; i < last; i++)
            drop_page(m, i);
    } else if (last > first) {
        for (uint64_t b = 0; b < m->n_buckets; b++)
            for (struct slot *slot = m->buckets[b], *next; slot; slot = next) {
                next = slot->next;
                if (slot->index >= first && slot->index < last)
                    drop_page(m, slot->index);
            }
    }
    /* What is left are parts of the first and of the last page, which may be the same one. */
    while (off < end) {
        uint64_t index = off / MEM_PAGE_BYTES, in = off % MEM_PAGE_BYTES;
        uint64_t n = MIN(MEM_PAGE_BYTES - in, end - off);
        if (n < MEM_PAGE_BYTES && *find(m, index))
            memset(page_to_write(m, index) + in, 0, n);
        off = off + n < last * MEM_PAGE_BYTES ? last * MEM_PAGE_BYTES : off + n;
    }
}

/* ---- the operations ---- */

static int mem_pread(struct storage *st, void *buf, uint64_t off, uint64_t len)
{
    struct memory *m = memory_of(st);
    char *to = buf;
    LOCK_GUARD(&m->lock);

    while (len > 0) {
        uint64_t in = off % MEM_PAGE_BYTES, n = MIN(MEM_PAGE_BYTES - in, len);
        const uint8_t *page = page_to_read(m, off / MEM_PAGE_BYTES);
        if (page)
            memcpy(to, page + in, n);
        else
            memset(to, 0, n);
        to += n;
        off += n;
        len -= n;
    }
    return 0;
}

static int write_bytes(struct memory *m, const char *from, uint64_t off, uint64_t len)
{
    while (len > 0) {
        uint64_t in = off % MEM_PAGE_BYTES, n = MIN(MEM_PAGE_BYTES - in, len);
        uint8_t *page = page_to_write(m, off / MEM_PAGE_BYTES);
        if (!page)
            return -ENOSPC;
        memcpy(page + in, from, n);
        from += n;
        off += n;
        len -= n;
        m->size = MAX(m->size, off);
    }
    return 0;
}

static int mem_pwritev(struct storage *st, const struct iovec *iov, int count, uint64_t off,
                       unsigned flags)
{
    struct memory *m = memory_of(st);
    uint64_t end = off;
    LOCK_GUARD(&m->lock);

    (void)flags;
    for (int i = 0; i < count; i++)
        end += iov[i].iov_len;
    if (st->fixed_size && end > m->size)
        return -ENOSPC;
    for (int i = 0; i < count; i++) {
        int err = write_bytes(m, iov[i].iov_base, off, iov[i].iov_len);
        if (err)
            return err;
        off += iov[i].iov_len;
    }
    return 0;
}

static int mem_flush(struct storage *st)
{
    (void)st;
    return 0;
}

static int mem_size(struct storage *st, uint64_t *bytes)
{
    struct memory *m = memory_of(st);
    LOCK_GUARD(&m->lock);

    *bytes = m->size;
    return 0;
}

static int mem_truncate(struct storage *st, uint64_t bytes)
{
    struct memory *m = memory_of(st);
    LOCK_GUARD(&m->lock);

    if (bytes < m->size)
        clear(m, bytes, align_up(m->size, MEM_PAGE_BYTES));
    m->size = bytes;
    return 0;
}

static int mem_zero(struct storage *st, uint64_t off, uint64_t len, unsigned flags)
{
    struct memory *m = memory_of(st);
    LOCK_GUARD(&m->lock);

    (void)flags;
    clear(m, off, off + len);
    m->size = MAX(m->size, off + len);
    return 0;
}

static int mem_discard(struct storage *st, uint64_t off, uint64_t len)
{
    struct memory *m = memory_of(st);
    LOCK_GUARD(&m->lock);

    clear(m, off, off + len);
    return 0;
}

static int mem_extent(struct storage *st, uint64_t off, uint64_t len, bool *data,
                      uint64_t *run)
{
    static const uint64_t longest = 64 << 20; /* a wider hole is reported in pieces */
    struct memory *m = memory_of(st);
    LOCK_GUARD(&m->lock);

    *data = false;
    *run = len;
    if (off >= m->size)
        return 0;
    uint64_t end = off + MIN(MIN(len, longest), m->size - off), pos = off;
    *data = page_to_read(m, off / MEM_PAGE_BYTES) != NULL;
    do {
        pos = align_down(pos, MEM_PAGE_BYTES) + MEM_PAGE_BYTES;
    } while (pos < end && *data == (page_to_read(m, pos / MEM_PAGE_BYTES) != NULL));
    *run = MIN(pos, end) - off;
    return 0;
}

static int mem_allocated(struct storage *st, uint64_t *bytes)
{
    struct memory *m = memory_of(st);
    LOCK_GUARD(&m->lock);

    *bytes = m->n_pages * MEM_PAGE_BYTES;
    return 0;
}

static int mem_preallocate(struct storage *st, uint64_t off, uint64_t len)
{
    struct memory *m = memory_of(st);
    LOCK_GUARD(&m->lock);

    for (uint64_t i = off / MEM_PAGE_BYTES; i * MEM_PAGE_BYTES < off + len; i++)
        if (!page_to_write(m, i))
            return -ENOSPC;
    m->size = MAX(m->size, off + len);
    return 0;
}

static void mem_close(struct storage *st)
{
    struct memory *m = memory_of(st);

    free(st);
    if (atomic_fetch_sub(&m->handles, 1) != 1)
        return;
    for (uint64_t b = 0; b < m->n_buckets; b++)
        for (struct slot *slot = m->buckets[b], *next; slot; slot = next) {
            next = slot->next;
            page_put(slot->page);
            free(slot);
        }
    free(m->buckets);
    lock_destroy(&m->lock);
    free(m);
}

static const struct storage_ops mem_ops = {
    .pread = mem_pread,
    .pwritev = mem_pwritev,
    .flush = mem_flush,
    .size = mem_size,
    .truncate = mem_truncate,
    .close = mem_close,
    .zero = mem_zero,
    .discard = mem_discard,
    .extent = mem_extent,
    .allocated = mem_allocated,
    .preallocate = mem_preallocate,
};

/* ---- making and comparing ---- */

static struct storage *handle_on(struct memory *m)
{
    struct mem_storage *mem = must(calloc(1, sizeof *mem));

    atomic_fetch_add(&m->handles, 1);
    mem->memory = m;
    mem->st.ops = &mem_ops;
    mem->st.name = must(strdup("memory"));
    mem->st.align = 1;
    return &mem->st;
}

struct storage *mem_storage_new(uint64_t size)
{
    struct memory *m = must(calloc(1, sizeof *m));

    lock_init(&m->lock, RANK_LEAF);
    m->n_buckets = 64;
    m->buckets = must(calloc(m->n_buckets, sizeof *m->buckets));
    m->max_pages = UINT64_MAX;
    m->size = size;
    return handle_on(m);
}

struct storage *mem_storage_share(struct storage *st)
{
    return handle_on(memory_of(st));
}

struct storage *mem_storage_clone(struct storage *st)
{
    struct memory *from = memory_of(st);
    LOCK_GUARD(&from->lock);
    struct storage *copy = mem_storage_new(from->size);

    for (uint64_t b = 0; b < from->n_buckets; b++)
        for (struct slot *slot = from->buckets[b]; slot; slot = slot->next) {
            atomic_fetch_add(&slot->page->users, 1);
            add_page(memory_of(copy), slot->index, slot->page);
        }
    return copy;
}

void mem_storage_limit(struct storage *st, uint64_t bytes)
{
    struct memory *m = memory_of(st);
    LOCK_GUARD(&m->lock);

    m->max_pages = bytes == UINT64_MAX ? UINT64_MAX : bytes / MEM_PAGE_BYTES;
}

bool mem_storage_equal(struct storage *a, struct storage *b, uint64_t *where)
{
    uint64_t size, other;
    (void)mem_size(a, &size);
    (void)mem_size(b, &other);

    for (uint64_t off = 0; off < MIN(size, other); off += MEM_PAGE_BYTES) {
        uint8_t in_a[MEM_PAGE_BYTES], in_b[MEM_PAGE_BYTES];
        (void)mem_pread(a, in_a, off, sizeof in_a);
        (void)mem_pread(b, in_b, off, sizeof in_b);
        uint64_t n = MIN(MEM_PAGE_BYTES, MIN(size, other) - off);
        if (memcmp(in_a, in_b, n) == 0)
            continue;
        for (unsigned i = 0; i < n; i++)
            if (in_a[i] != in_b[i]) {
                if (where)
                    *where = off + i;
                return false;
            }
    }
    if (size != other && where)
        *where = MIN(size, other);
    return size == other;
}

/* ---- to and from files ---- */

/* Copies the data, without the holes, into a storage that reads as zeroes. */
static int copy_data(struct storage *from, struct storage *to)
{
    static const uint64_t step = 1 << 20;
    CLEANUP_FREE char *buf = must(malloc(step));
    uint64_t size;

    int err = storage_size(from, &size);
    if (err == 0)
        err = storage_truncate(to, size);
    for (uint64_t off = 0, run; !err && off < size; off += run) {
        bool data;
        err = storage_extent(from, off, MIN(size - off, step), &data, &run);
        if (err == 0 && data) {
            err = storage_read(from, buf, off, run);
            if (err == 0)
                err = storage_write(to, buf, off, run, 0);
        }
    }
    return err;
}

int mem_storage_load(const char *path, struct storage **out)
{
    const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *file = NULL;

    int err = storage_open_file(path, &how, &file, NULL);
    if (err)
        return err;
    struct storage *st = mem_storage_new(0);
    err = copy_data(file, st);
    if (err)
        storage_close(st);
    else
        *out = st;
    return err;
}

int mem_storage_save(struct storage *st, const char *path)
{
    CLEANUP_STORAGE struct storage *file = NULL;

    int err = storage_create_file(path, &file, NULL);
    return err ? err : copy_data(st, file);
}
