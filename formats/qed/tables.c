/* SPDX-License-Identifier: BSD-3-Clause */
/* The L1 table in memory, the maps of both levels, and adding L2 tables. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "qed/image.h"

/* Tables are read in pieces of this many bytes. */
#define CHUNK_BYTES 65536u

static uint64_t locate_l1(void *owner, uint64_t page_index)
{
    struct qed_image *img = owner;

    return img->geo.l1_offset + page_index * QED_PAGE_BYTES;
}

static uint64_t locate_l2(void *owner, uint64_t page_index)
{
    struct qed_image *img = owner;
    uint64_t pages_per_table = img->geo.table_bytes / QED_PAGE_BYTES;
    uint64_t table =
        atomic_load_explicit(&img->l1[page_index / pages_per_table], memory_order_acquire);

    return table ? table + page_index % pages_per_table * QED_PAGE_BYTES : 0;
}

/* Reads the words from the file.  Zero words aren't stored, so that untouched memory isn't
 * allocated. */
static int read_l1(struct qed_image *img, _Atomic uint64_t *words, uint64_t n,
                   struct diag *diag)
{
    CLEANUP_FREE uint8_t *chunk = malloc(CHUNK_BYTES);

    if (!chunk)
        return diag_errno(diag, ENOMEM, "%s: L1 table", img->node->filename);
    for (uint64_t done = 0; done < n * 8; done += CHUNK_BYTES) {
        uint64_t bytes = MIN(CHUNK_BYTES, n * 8 - done);
        int err = storage_read(img->node->file, chunk, img->geo.l1_offset + done, bytes);
        if (err < 0)
            return diag_errno(diag, -err, "%s: reading the L1 table at offset %" PRIu64,
                              img->node->filename, img->geo.l1_offset + done);
        for (uint64_t i = 0; i < bytes / 8; i++) {
            uint64_t word = load_le64(chunk + i * 8);
            if (word)
                atomic_init(&words[done / 8 + i], word);
        }
    }
    return 0;
}

int qed_tables_load(struct qed_image *img, uint64_t image_size, struct diag *diag)
{
    struct node *node = img->node;
    uint64_t clusters = div_round_up(image_size, img->geo.cluster_size);
    uint64_t tables = div_round_up(clusters, UINT64_C(1) << img->geo.entry_bits);

    /* Only what the virtual size needs, which is a few MiB at most; the whole table can be a
     * GiB.  In whole pages, which every table has. */
    uint64_t n = align_up(MAX(tables, 1), QED_PAGE_WORDS);
    CLEANUP_FREE _Atomic uint64_t *words = calloc(n, sizeof *words);
    if (!words)
        return diag_errno(diag, ENOMEM, "%s: L1 table", node->filename);
    int err = read_l1(img, words, n, diag);
    if (err < 0)
        return err;

    struct mcmap *l1_map = mcmap_new_resident(node->mc, words, n, MC_LE64, locate_l1, img);
    struct mcmap *l2_map =
        mcmap_new(node->mc, div_round_up(MAX(clusters, 1), QED_PAGE_WORDS), QED_PAGE_BYTES,
                  MC_LE64, locate_l2, img);
    if (!l1_map || !l2_map) {
        if (l1_map)
            mcmap_free(l1_map);
        if (l2_map)
            mcmap_free(l2_map);
        return diag_errno(diag, ENOMEM, "%s: tables for %" PRIu64 " bytes", node->filename,
                          image_size);
    }
    qed_tables_free(img);
    img->l1 = TAKE(&words);
    img->l1_map = l1_map;
    img->l2_map = l2_map;
    return 0;
}

void qed_tables_free(struct qed_image *img)
{
    if (img->l2_map)
        mcmap_free(img->l2_map);
    if (img->l1_map)
        mcmap_free(img->l1_map);
    free(img->l1);
    img->l1 = NULL;
    img->l1_map = img->l2_map = NULL;
}

/* The farthest place that the file could ever have reached: its present end plus twice the size
 * of all tables and clusters, since some may have leaked. */
static uint64_t farthest_end(const struct qed_image *img, uint64_t tables)
{
    uint64_t all =
        align_up(img->node->size, img->geo.cluster_size) + tables * img->geo.table_bytes;

    return atomic_load(&img->space.file_end) + 2 * all;
}

/* The end of `bytes` at the offset in a word; 0 if the word isn't a possible offset.  Words
 * beyond `farthest` are ignored: the file can't grow that far, and growing it there now would
 * make damaged words look valid. */
static uint64_t end_of(const struct qed_image *img, uint64_t word, uint64_t bytes,
                       uint64_t farthest)
{
    uint64_t end;

    if (word < img->geo.header_bytes || !is_aligned(word, img->geo.cluster_size) ||
        add_overflows(word, bytes, &end) || end > farthest)
        return 0;
    return end;
}

static int last_in_table(const struct qed_image *img, uint64_t table, uint8_t *chunk,
                         uint64_t farthest, uint64_t *end)
{
    for (uint64_t done = 0; done < img->geo.table_bytes; done += CHUNK_BYTES) {
        uint64_t bytes = MIN(CHUNK_BYTES, img->geo.table_bytes - done);
        int err = storage_read(img->node->file, chunk, table + done, bytes);
        if (err < 0)
            return err;
        for (uint64_t i = 0; i < bytes; i += 8)
            *end = MAX(*end,
                       end_of(img, load_le64(chunk + i), img->geo.cluster_size, farthest));
    }
    return 0;
}

int qed_last_reference(const struct qed_image *img, uint64_t *end)
{
    uint64_t clusters = div_round_up(img->node->size, img->geo.cluster_size);
    uint64_t tables = div_round_up(clusters, UINT64_C(1) << img->geo.entry_bits);
    uint64_t farthest = farthest_end(img, tables);
    CLEANUP_FREE uint8_t *chunk = malloc(CHUNK_BYTES);

    *end = 0;
    if (!chunk)
        return -ENOMEM;
    for (uint64_t i = 0; i < tables; i++) {
        uint64_t table = atomic_load(&img->l1[i]);
        uint64_t table_end = end_of(img, table, img->geo.table_bytes, farthest);
        if (table_end == 0 || table_end > INT64_MAX)
            continue;
        *end = MAX(*end, table_end);
        int err = last_in_table(img, table, chunk, farthest, end);
        if (err < 0)
            return err;
    }
    return 0;
}

bool qed_needs_barrier(const struct qed_image *img, const struct qed_clusters *clusters)
{
    return !qed_space_settled(&img->space, clusters) ||
           dirty_mark_needs_barrier(&img->mark);
}

/* META. */
static void store_l1(struct qed_image *img, uint64_t index, uint64_t table)
{
    uint32_t per_page = mcmap_words_per_page(img->l1_map);
    struct mc_page *page = mcmap_peek_for_store(img->l1_map, index / per_page);

    mcmap_store(page, (uint32_t)(index % per_page), table, MC_LINK);
}

/* Under the table lock. */
static int add_table(struct qed_image *img, uint64_t index)
{
    struct mcache *mc = img->node->mc;
    struct qed_clusters table;

    int err =
        mcmap_get_for_store(img->l1_map, index / mcmap_words_per_page(img->l1_map), NULL);
    if (err < 0)
        return err;
    err = qed_space_take(&img->space, img->geo.table_bytes, img->geo.table_bytes, &table);
    if (err < 0)
        return err;
    if (!table.fresh)
        err = storage_zero(img->node->file, table.offset, table.length, STORAGE_MAY_UNMAP);

    lock_acquire(mcache_meta(mc));
    if (err < 0) {
        qed_space_put(&img->space, table.offset, table.length);
    } else {
        if (qed_needs_barrier(img, &table))
            mcache_strict(mc);
        store_l1(img, index, table.offset);
    }
    lock_release(mcache_meta(mc));
    node_wrote(img->node);
    return err;
}

static int check_table(const struct qed_image *img, uint64_t off, uint64_t word)
{
    const char *fault = qed_table_fault(img, word);

    return fault ? qed_corrupt(img, "L1", off, word, fault) : 0;
}

int qed_ensure_table(struct qed_image *img, uint64_t off)
{
    uint64_t index = qed_l1_index(img, off);
    uint64_t word = atomic_load_explicit(&img->l1[index], memory_order_acquire);

    if (word)
        return check_table(img, off, word);
    LOCK_GUARD(&img->table_locks[index % QED_TABLE_LOCKS]);
    /* Another request may have added the table meanwhile. */
    word = atomic_load_explicit(&img->l1[index], memory_order_acquire);
    return word ? check_table(img, off, word) : add_table(img, index);
}
