/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps: bits for granules of a disk. */
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/fence.h"
#include "block/dirty_bitmap_internal.h"

/* The longest run that dirty_bitmap_next returns, so that it doesn't read all of a full bitmap. */
#define LONGEST_RUN 65536u /* granules */

bool dirty_bitmap_granularity_ok(uint64_t granularity)
{
    return is_power_of_two(granularity) && granularity >= BITMAP_MIN_GRANULARITY &&
           granularity <= BITMAP_MAX_GRANULARITY;
}

uint64_t dirty_bitmap_default_granularity(uint64_t cluster_size)
{
    if (cluster_size <= 1)
        return BITMAP_DEFAULT_GRANULARITY;
    return MIN(MAX(cluster_size, 4096), BITMAP_DEFAULT_GRANULARITY);
}

static uint64_t count_granules(uint64_t size, unsigned shift)
{
    return (size >> shift) + ((size & ((1ull << shift) - 1)) != 0);
}

static void mark_change(struct observer *observer, uint64_t off, uint64_t len)
{
    struct dirty_bitmap *bitmap = CONTAINER_OF(observer, struct dirty_bitmap, observer);

    /* With the barrier in dirty_bitmap_enable: either the enabling thread sees the data that
     * was written, or we see that the bitmap is enabled. */
    full_fence();
    if (atomic_load(&bitmap->enabled))
        dirty_bitmap_set(bitmap, off, len);
}

static struct dirty_bitmap *new_bitmap(const char *name, uint64_t size,
                                       uint64_t granularity, bool has_bits)
{
    struct dirty_bitmap *bitmap = calloc(1, sizeof *bitmap);

    assert(dirty_bitmap_granularity_ok(granularity));
    if (!bitmap)
        return NULL;
    bitmap->observer.wrote = mark_change;
    bitmap->size = size;
    bitmap->shift = (unsigned)__builtin_ctzll(granularity);
    atomic_init(&bitmap->enabled, has_bits);
    bitmap->inconsistent = !has_bits;
    bitmap->slot = BITMAP_NO_SLOT;
    list_init(&bitmap->link);
    bool named = !name || (bitmap->name = strdup(name));
    uint64_t bits = has_bits ? count_granules(size, bitmap->shift) : 0;
    if (hbits_init(&bitmap->bits, bits) == 0 && named)
        return bitmap;
    dirty_bitmap_free(bitmap);
    return NULL;
}

struct dirty_bitmap *dirty_bitmap_new(const char *name, uint64_t size, uint64_t granularity)
{
    return new_bitmap(name, size, granularity, true);
}

struct dirty_bitmap *dirty_bitmap_new_inconsistent(const char *name, uint64_t size,
                                                   uint64_t granularity)
{
    struct dirty_bitmap *bitmap = new_bitmap(name, size, granularity, false);

    if (bitmap)
        bitmap->persistent = true;
    return bitmap;
}

void dirty_bitmap_free(struct dirty_bitmap *bitmap)
{
    if (!bitmap)
        return;
    assert(list_empty(&bitmap->link));
    hbits_destroy(&bitmap->bits);
    free(bitmap->name);
    free(bitmap);
}

const char *dirty_bitmap_name(const struct dirty_bitmap *bitmap)
{
    return bitmap->name;
}

uint64_t dirty_bitmap_size(const struct dirty_bitmap *bitmap)
{
    return bitmap->size;
}

uint64_t dirty_bitmap_granularity(const struct dirty_bitmap *bitmap)
{
    return 1ull << bitmap->shift;
}

/* ---- bits ---- */

/* Called after bits have changed: a thread that clears `unsaved` and then reads the bits misses
 * none. */
static void note_unsaved(struct dirty_bitmap *bitmap)
{
    if (!atomic_load(&bitmap->unsaved))
        atomic_store(&bitmap->unsaved, true);
}

/* The end of a range, cut to the disk.  Ranges of an inconsistent bitmap are empty. */
static uint64_t end_of(const struct dirty_bitmap *bitmap, uint64_t off, uint64_t len)
{
    if (bitmap->inconsistent)
        return off;
    return off < bitmap->size ? off + MIN(len, bitmap->size - off) : off;
}

void dirty_bitmap_set(struct dirty_bitmap *bitmap, uint64_t off, uint64_t len)
{
    uint64_t end = end_of(bitmap, off, len);
    uint64_t first = off >> bitmap->shift;

    if (off >= end)
        return;
    hbits_set(&bitmap->bits, first, count_granules(end, bitmap->shift) - first);
    note_unsaved(bitmap);
}

void dirty_bitmap_clear(struct dirty_bitmap *bitmap, uint64_t off, uint64_t len)
{
    uint64_t end = end_of(bitmap, off, len);

    if (off >= end)
        return;
    uint64_t first = count_granules(off, bitmap->shift), stop = end >> bitmap->shift;
    if (end == bitmap->size) /* the last granule may be short */
        stop = bitmap->bits.n_bits;
    if (first < stop)
        hbits_clear(&bitmap->bits, first, stop - first);
    note_unsaved(bitmap);
}

bool dirty_bitmap_get(const struct dirty_bitmap *bitmap, uint64_t off)
{
    return off < bitmap->size && !bitmap->inconsistent &&
           hbits_test(&bitmap->bits, off >> bitmap->shift);
}

uint64_t dirty_bitmap_count(const struct dirty_bitmap *bitmap)
{
    if (bitmap->inconsistent)
        return 0;
    uint64_t n = bitmap->bits.n_bits, bytes = hbits_count(&bitmap->bits) << bitmap->shift;

    /* Subtract what the last granule has beyond the end of the disk. */
    if (bytes > 0 && hbits_test(&bitmap->bits, n - 1))
        bytes -= MIN(bytes, (n << bitmap->shift) - bitmap->size);
    return MIN(bytes, bitmap->size);
}

bool dirty_bitmap_next(const struct dirty_bitmap *bitmap, uint64_t from, uint64_t *off,
                       uint64_t *len)
{
    uint64_t n = bitmap->bits.n_bits;

    if (from >= bitmap->size || bitmap->inconsistent)
        return false;
    uint64_t first = hbits_next_set(&bitmap->bits, from >> bitmap->shift, n);
    if (first == n)
        return false;
    uint64_t stop =
        hbits_next_clear(&bitmap->bits, first, first + MIN(n - first, LONGEST_RUN));
    if (stop == first) /* cleared after it was found; reported as dirty */
        stop++;
    *off = MAX(from, first << bitmap->shift);
    *len = MIN(stop << bitmap->shift, bitmap->size) - *off;
    return true;
}

void dirty_bitmap_merge(struct dirty_bitmap *to, const struct dirty_bitmap *from)
{
    uint64_t off, len;

    for (uint64_t at = 0; dirty_bitmap_next(from, at, &off, &len); at = off + len)
        dirty_bitmap_set(to, off, len);
}

int dirty_bitmap_make_room(const struct dirty_bitmap *bitmap, uint64_t size,
                           struct hbits *room)
{
    return hbits_init(room, count_granules(size, bitmap->shift));
}

void dirty_bitmap_move_bits(struct dirty_bitmap *bitmap, uint64_t size, struct hbits *room)
{
    struct hbits old = bitmap->bits;

    hbits_merge(room, &old);
    bitmap->bits = *room;
    *room = old;
    bitmap->size = size;
    note_unsaved(bitmap);
}

int dirty_bitmap_resize(struct dirty_bitmap *bitmap, uint64_t size)
{
    int err = bitmap->inconsistent
                  ? 0
                  : hbits_resize(&bitmap->bits, count_granules(size, bitmap->shift));

    if (err)
        return err;
    bitmap->size = size;
    note_unsaved(bitmap);
    return 0;
}

void dirty_bitmap_enable(struct dirty_bitmap *bitmap, bool on)
{
    atomic_store(&bitmap->enabled, on);
    full_fence();
}

bool dirty_bitmap_enabled(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->enabled);
}

static int refuse_inconsistent(const struct dirty_bitmap *bitmap, struct diag *diag)
{
    if (bitmap->inconsistent)
        return diag_set(
            diag, EINVAL,
            "Bitmap '%.200s' is inconsistent and cannot be used; it can only be "
            "removed",
            bitmap->name);
    return 0;
}

static int refuse_busy(const struct dirty_bitmap *bitmap, struct diag *diag)
{
    return diag_set(
        diag, EBUSY,
        "Bitmap '%.200s' is currently in use by another operation and cannot be "
        "used",
        bitmap->name ? bitmap->name : "");
}

int dirty_bitmap_acquire(struct dirty_bitmap *bitmap, struct diag *diag)
{
    int err = refuse_inconsistent(bitmap, diag);

    return err ? err : dirty_bitmap_acquire_to_remove(bitmap, diag);
}

int dirty_bitmap_acquire_to_remove(struct dirty_bitmap *bitmap, struct diag *diag)
{
    int nobody = 0;

    return atomic_compare_exchange_strong(&bitmap->users, &nobody, BITMAP_ALONE)
               ? 0
               : refuse_busy(bitmap, diag);
}

void dirty_bitmap_release(struct dirty_bitmap *bitmap)
{
    assert(atomic_load(&bitmap->users) == BITMAP_ALONE);
    atomic_store(&bitmap->users, 0);
}

bool dirty_bitmap_busy(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->users) != 0;
}

int dirty_bitmap_share(struct dirty_bitmap *bitmap, struct diag *diag)
{
    int users = atomic_load(&bitmap->users);

    int err = refuse_inconsistent(bitmap, diag);
    if (err)
        return err;
    while (users != BITMAP_ALONE)
        if (atomic_compare_exchange_weak(&bitmap->users, &users, users + 1))
            return 0;
    return refuse_busy(bitmap, diag);
}

void dirty_bitmap_unshare(struct dirty_bitmap *bitmap)
{
    assert(atomic_load(&bitmap->users) > 0);
    atomic_fetch_sub(&bitmap->users, 1);
}

/* ---- persistence ---- */

bool dirty_bitmap_persistent(const struct dirty_bitmap *bitmap)
{
    return bitmap->persistent;
}

void dirty_bitmap_set_persistent(struct dirty_bitmap *bitmap)
{
    bitmap->persistent = true;
}

bool dirty_bitmap_inconsistent(const struct dirty_bitmap *bitmap)
{
    return bitmap->inconsistent;
}

void dirty_bitmap_spoil(struct dirty_bitmap *bitmap)
{
    bitmap->inconsistent = true;
    dirty_bitmap_enable(bitmap, false);
}

uint32_t dirty_bitmap_slot(const struct dirty_bitmap *bitmap)
{
    return bitmap->slot;
}

void dirty_bitmap_set_slot(struct dirty_bitmap *bitmap, uint32_t slot)
{
    bitmap->slot = slot;
}

bool dirty_bitmap_unsaved(const struct dirty_bitmap *bitmap)
{
    return atomic_load(&bitmap->unsaved);
}

void dirty_bitmap_set_unsaved(struct dirty_bitmap *bitmap, bool unsaved)
{
    atomic_store(&bitmap->unsaved, unsaved);
    full_fence();
}

uint64_t dirty_bitmap_bytes(uint64_t size, uint64_t granularity)
{
    return div_round_up(count_granules(size, (unsigned)__builtin_ctzll(granularity)), 8);
}

#define WORD_BYTES 8u

bool dirty_bitmap_export(const struct dirty_bitmap *bitmap, uint64_t at, uint8_t *out,
                         size_t n)
{
    const struct hbits *bits = &bitmap->bits;
    bool any = false;

    assert(at % WORD_BYTES == 0 && n % WORD_BYTES == 0);
    for (size_t i = 0; i < n; i += WORD_BYTES) {
        uint64_t w = (at + i) / WORD_BYTES;
        uint64_t word = w < bits->n_words[0] ? atomic_load(&bits->words[0][w]) : 0;
        store_le64(out + i, word);
        any |= word != 0;
    }
    return any;
}

bool dirty_bitmap_any(const struct dirty_bitmap *bitmap, uint64_t at, uint64_t n)
{
    uint64_t first = MIN(at * 8, bitmap->bits.n_bits);
    uint64_t end = first + MIN(n * 8, bitmap->bits.n_bits - first);

    return hbits_next_set(&bitmap->bits, first, end) < end;
}

void dirty_bitmap_import(struct dirty_bitmap *bitmap, uint64_t at, const uint8_t *in,
                         size_t n)
{
    struct hbits *bits = &bitmap->bits;

    assert(at % WORD_BYTES == 0 && n % WORD_BYTES == 0);
    for (size_t i = 0; i < n; i += WORD_BYTES) {
        uint64_t word = load_le64(in + i), first = (at + i) * 8;
        if (first >= bits->n_bits)
            return;
        if (bits->n_bits - first < 64)
            word &= UINT64_MAX >> (64 - (bits->n_bits - first));
        while (word) {
            unsigned from = (unsigned)__builtin_ctzll(word);
            uint64_t rest = ~(word >> from);
            unsigned run = rest ? (unsigned)__builtin_ctzll(rest) : 64;
            run = MIN(run, 64 - from);
            hbits_set(bits, first + from, run);
            word &= run == 64 ? 0 : ~(((1ull << run) - 1) << from);
        }
    }
}

void dirty_bitmap_import_ones(struct dirty_bitmap *bitmap, uint64_t at, uint64_t n)
{
    uint64_t first = MIN(at * 8, bitmap->bits.n_bits);

    hbits_set(&bitmap->bits, first, MIN(n * 8, bitmap->bits.n_bits - first));
}
