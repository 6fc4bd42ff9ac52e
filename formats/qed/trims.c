/* SPDX-License-Identifier: BSD-3-Clause */
/* Trimmed clusters, by pages of L2 tables, and punching them. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qed/image.h"

/* Limits: 4 MiB of pages; and as many holes as can be zeroed in the second or so that an
 * orderly close may take. */
#define MAX_PAGES 1024u
#define MAX_RUNS  16384u
/* Limits of one slice in holes, and of one hole in bytes: a writer to these clusters may have
 * to wait for it. */
#define SLICE_RUNS 16u
#define MAX_HOLE   (UINT64_C(64) << 20)

/* The trimmed clusters of one page of an L2 table. */
struct trimmed_page {
    struct list link;
    struct trimmed_page *next;      /* in its bucket */
    uint64_t index;                 /* qed_page_index */
    uint32_t n;                     /* number of places that aren't 0 */
    uint64_t place[QED_PAGE_WORDS]; /* host offset; 0: not trimmed */
};

/* Clusters of one page that are contiguous for the guest and in the file. */
struct trimmed_run {
    uint64_t off, place, len; /* bytes; len 0: no run */
};

static struct trimmed_page **find(struct qed_trims *trims, uint64_t index)
{
    struct trimmed_page **at = &trims->buckets[index % QED_TRIM_BUCKETS];

    while (*at && (*at)->index != index)
        at = &(*at)->next;
    return at;
}

/* Does the word's cluster directly follow, in the file, that of the word before? */
static bool continues(const struct qed_image *img, const struct trimmed_page *page,
                      uint32_t word)
{
    return word > 0 && word < QED_PAGE_WORDS && page->place[word] &&
           page->place[word - 1] &&
           page->place[word] == page->place[word - 1] + img->geo.cluster_size;
}

/* META: sets a place and updates n_runs, the number of runs. */
static void set_place(struct qed_image *img, struct trimmed_page *page, uint32_t word,
                      uint64_t place)
{
    uint32_t *n_runs = &img->trims.n_runs;
    bool was = page->place[word];

    *n_runs += continues(img, page, word);
    *n_runs += continues(img, page, word + 1);
    page->place[word] = place;
    *n_runs -= continues(img, page, word);
    *n_runs -= continues(img, page, word + 1);
    *n_runs += (place != 0);
    *n_runs -= was;
}

void qed_trims_forget(struct qed_image *img, uint64_t off)
{
    struct qed_trims *trims = &img->trims;
    struct trimmed_page **at = find(trims, qed_page_index(img, off)), *page = *at;
    uint32_t word = qed_page_word(img, off);

    assert(page && page->place[word]);
    set_place(img, page, word, 0);
    if (--page->n > 0)
        return;
    if (trims->pages.next == &page->link)
        trims->next_word = 0;
    *at = page->next;
    list_remove(&page->link);
    free(page);
    if (atomic_fetch_sub(&trims->n_pages, 1) == 1 && trims->holds_mark) {
        trims->holds_mark = false;
        dirty_mark_end(&img->mark);
    }
}

void qed_trims_end_mark(struct qed_image *img)
{
    struct qed_trims *trims = &img->trims;

    lock_assert_held(mcache_meta(img->node->mc));
    if (atomic_load(&trims->n_pages) > 0 && !trims->holds_mark)
        trims->holds_mark = true;
    else
        dirty_mark_end(&img->mark);
}

uint64_t qed_trims_place(struct qed_image *img, uint64_t off, uint64_t *len)
{
    uint32_t word = qed_page_word(img, off);

    if (atomic_load_explicit(&img->trims.n_pages, memory_order_relaxed) == 0)
        return 0;
    *len = MIN(*len, qed_left_in_page(img, off));
    LOCK_GUARD(mcache_meta(img->node->mc));
    const struct trimmed_page *page = *find(&img->trims, qed_page_index(img, off));
    if (!page)
        return 0;
    uint64_t place = page->place[word], n = 1;
    while (n < *len / img->geo.cluster_size &&
           (place ? continues(img, page, word + (uint32_t)n)
                  : page->place[word + (uint32_t)n] == 0))
        n++;
    *len = n * img->geo.cluster_size;
    return place;
}

/* ---- trimming ---- */

/* META: the page's entry; if there is none, *spare becomes it and is set to NULL.  NULL: no
 * room. */
static struct trimmed_page *get_page(struct qed_trims *trims, uint64_t index,
                                     struct trimmed_page **spare)
{
    struct trimmed_page **at = find(trims, index);

    if (trims->n_runs >= MAX_RUNS)
        return NULL;
    if (*at || !*spare || atomic_load(&trims->n_pages) >= MAX_PAGES)
        return *at;
    *at = TAKE(spare);
    (*at)->index = index;
    list_append(&trims->pages, &(*at)->link);
    atomic_fetch_add(&trims->n_pages, 1);
    return *at;
}

/* META: replaces the words of data by zero markers.  A marker points to nothing, so a barrier
 * is needed only if the mark requires it. */
static void keep_words(struct qed_image *img, struct mc_page *page,
                       struct trimmed_page *trimmed, uint64_t off, uint64_t len)
{
    if (dirty_mark_needs_barrier(&img->mark))
        mcache_strict(img->node->mc);
    for (uint64_t at = 0; at < len; at += img->geo.cluster_size) {
        uint32_t word = qed_page_word(img, off + at);
        assert(trimmed->place[word] == 0);
        set_place(img, trimmed, word, mc_load(page, word));
        trimmed->n++;
        mcmap_store(page, word, QED_ENTRY_ZERO, MC_LINK);
    }
    node_took_place(img->node);
    background_start(&img->trims.background);
}

int qed_trims_keep(struct qed_image *img, uint64_t off, uint64_t len, bool *full)
{
    uint64_t index = qed_page_index(img, off);
    CLEANUP_FREE struct trimmed_page *spare = calloc(1, sizeof *spare);

    for (;;) {
        {
            LOCK_GUARD(mcache_meta(img->node->mc));
            struct mc_page *page = mcmap_peek_for_store(img->l2_map, index);
            struct trimmed_page *trimmed =
                page ? get_page(&img->trims, index, &spare) : NULL;
            *full = page && !trimmed;
            if (trimmed)
                keep_words(img, page, trimmed, off, len);
            if (page)
                return 0;
        }
        int err = mcmap_get_for_store(img->l2_map, index, NULL);
        if (err < 0)
            return err;
    }
}

/* ---- punching ---- */

/* META: the next run after the last one.  Runs that were busy are tried again after all others. */
static struct trimmed_run next_run(struct qed_image *img)
{
    struct qed_trims *trims = &img->trims;
    struct trimmed_run run = {0};

    if (list_empty(&trims->pages))
        return run;
    struct trimmed_page *page = CONTAINER_OF(trims->pages.next, struct trimmed_page, link);
    uint32_t word = trims->next_word;
    while (word < QED_PAGE_WORDS && page->place[word] == 0)
        word++;
    if (word == QED_PAGE_WORDS) {
        trims->next_word = 0;
        list_remove(&page->link);
        list_append(&trims->pages, &page->link);
        return run;
    }
    run.off = (page->index * QED_PAGE_WORDS + word) << img->geo.cluster_bits;
    run.place = page->place[word++];
    run.len = img->geo.cluster_size;
    while (run.len < MAX_HOLE && continues(img, page, word)) {
        run.len += img->geo.cluster_size;
        word++;
    }
    trims->next_word = word;
    return run;
}

/* After punching: gives the words their places back, so that the clusters are data again. */
static int put_back(struct qed_image *img, const struct trimmed_run *run)
{
    struct mcache *mc = img->node->mc;
    uint64_t index = qed_page_index(img, run->off);

    for (;;) {
        {
            LOCK_GUARD(mcache_meta(mc));
            struct mc_page *page = mcmap_peek_for_store(img->l2_map, index);
            if (page)
                mcache_strict(mc);
            for (uint64_t at = 0; page && at < run->len; at += img->geo.cluster_size) {
                uint32_t word = qed_page_word(img, run->off + at);
                assert(mc_load(page, word) == QED_ENTRY_ZERO);
                mcmap_store(page, word, run->place + at, MC_LINK);
                qed_trims_forget(img, run->off + at);
            }
            if (page)
                return 0;
        }
        int err = mcmap_get_for_store(img->l2_map, index, NULL);
        if (err < 0)
            return err;
    }
}

static unsigned how_to_zero(const struct qed_image *img)
{
    uint64_t until = img->trims.punch_until_ns;

    return until == 0 || housekeeper_now(img->trims.background.hk) < until
               ? STORAGE_MAY_UNMAP
               : 0;
}

/* The run's guest range is locked. */
static int punch_locked(struct qed_image *img, struct trimmed_run *run)
{
    /* Other requests may have changed the clusters before the range was locked. */
    uint64_t place = qed_trims_place(img, run->off, &run->len);
    if (place == 0)
        return 0;
    run->place = place;
    int err = storage_zero(img->node->file, run->place, run->len, how_to_zero(img));
    if (err == 0)
        err = put_back(img, run);
    node_wrote(img->node);
    return err;
}

/* Returns true if it made progress. */
static bool punch_run(struct qed_image *img, struct trimmed_run *run)
{
    struct locked_range range;
    uint64_t got =
        range_lock_try_acquire(&img->node->ranges, &range, run->off, run->off + run->len);

    if (got == 0)
        return false;
    run->len = align_down(got, img->geo.cluster_size);
    int err = run->len ? punch_locked(img, run) : 0;
    range_lock_release(&range);
    if (err < 0 && img->trims.error == 0)
        log_error("%s: making holes for trimmed clusters: errno %d; it is tried again",
                  img->node->filename, -err);
    img->trims.error = err;
    return run->len && err == 0;
}

/* Called by one thread at a time. */
static size_t punch_slice(void *owner)
{
    struct qed_image *img = owner;
    struct gate *gate = &img->node->ctx->gate;
    size_t n = 0;

    /* A corrupt image, or one whose barrier has failed, isn't changed any more. */
    int err = mcache_health(img->node->mc);
    if (err < 0) {
        img->trims.error = err;
        return 0;
    }
    gate_ticket ticket = gate_enter(gate);
    for (unsigned i = 0; i < SLICE_RUNS; i++) {
        lock_acquire(mcache_meta(img->node->mc));
        struct trimmed_run run = next_run(img);
        lock_release(mcache_meta(img->node->mc));
        if (run.len && punch_run(img, &run))
            n++;
    }
    gate_leave(gate, ticket);
    return n;
}

static bool nothing_is_kept(const struct qed_image *img)
{
    return atomic_load(&img->trims.n_pages) == 0;
}

static bool nothing_to_punch(void *owner)
{
    struct qed_image *img = owner;

    return nothing_is_kept(img) || mcache_health(img->node->mc) < 0;
}

/* ---- beginning and end ---- */

void qed_trims_init(struct qed_image *img)
{
    list_init(&img->trims.pages);
    background_init(&img->trims.background, img->node->ctx->housekeeper, punch_slice,
                    nothing_to_punch, img);
}

void qed_trims_free(struct qed_image *img)
{
    background_stop(&img->trims.background);
    LIST_FOR_EACH_SAFE (pos, &img->trims.pages)
        free(CONTAINER_OF(pos, struct trimmed_page, link));
    list_init(&img->trims.pages);
}

void qed_trims_pause(struct qed_image *img)
{
    background_stop(&img->trims.background);
}

void qed_trims_resume(struct qed_image *img)
{
    if (!nothing_is_kept(img))
        background_start(&img->trims.background);
}

int qed_trims_finish(struct qed_image *img)
{
    qed_trims_pause(img);
    img->trims.error = 0;
    img->trims.punch_until_ns =
        housekeeper_now(img->trims.background.hk) + BACKGROUND_LAST_NS;
    /* A slice may end without punching anything, at the end of a page. */
    while (!nothing_is_kept(img) && img->trims.error == 0)
        punch_slice(img);
    img->trims.punch_until_ns = 0;
    return img->trims.error;
}
