/* SPDX-License-Identifier: BSD-3-Clause */
/* Power failures while internal snapshots are created, applied and deleted (I-04).  Afterwards
 * the image must have the snapshots and the disk of before the change or those of after it,
 * nothing in between; each snapshot has its contents, and nothing but leaks is wrong.
 *
 * The environment variables are those of crash_matrix.c. */
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/cleanup.h"
#include "image.h"
#include "mem_storage.h"
#include "registry.h"
#include "support/structure.h"

#define SECTOR      512u
#define MOST        3u /* snapshots that exist at once */
#define STEPS       8u /* in one run */
#define TOOLS_EVERY 24u

static const struct config {
    const char *name;
    struct image_spec spec;
} configs[] = {
    {.name = "snapshots-plain", .spec = {.size = MIB}},
    {.name = "snapshots-small-clusters",
     .spec = {.options = "cluster_size=512,refcount_bits=64", .size = MIB / 2}},
    {.name = "snapshots-narrow-counts",
     .spec = {.options = "cluster_size=4096,refcount_bits=4", .size = MIB}},
    {.name = "snapshots-v2-backing",
     .spec = {.options = "cluster_size=4096,compat=0.10",
              .size = MIB,
              .base_format = "qcow2",
              .base_size = MIB / 2}},
    {.name = "snapshots-extended",
     .spec = {.options = "cluster_size=16384,extended_l2=on", .size = MIB}},
    {.name = "snapshots-packed",
     .spec = {.options = "cluster_size=8192",
              .size = MIB,
              .packed = true,
              .node = {.compress = true}}},
    {.name = "snapshots-encrypted",
     .spec = {.options = "cluster_size=4096", .size = MIB, .encrypt = "aes"}},
};

/* The snapshots and the disk's contents at one moment. */
struct moment {
    unsigned n;
    struct {
        char name[8];
        uint8_t *bytes;
    } snapshot[MOST];
    uint8_t *disk;
};

/* The part of the log in which the image changes from one moment's state to the next. */
struct stretch {
    uint64_t from, until;
    struct moment before, after;
    bool by_sectors; /* unflushed writes: each sector of the disk may be old or new */
};

struct run {
    const struct config *config;
    struct image img;
    struct rng rng;
    struct moment now;
    struct fault_plan plan;
    struct stretch stretch[2 * STEPS];
    unsigned n_stretches, names;
};

/* A copy of the disk's bytes.  It is never freed, because moments share their bytes. */
static uint8_t *copy(const struct run *r, const uint8_t *bytes)
{
    uint8_t *out = malloc(r->config->spec.size);

    cr_assert(out);
    return memcpy(out, bytes, r->config->spec.size);
}

/* ---- the run ---- */

static void begin(struct run *r, bool by_sectors)
{
    r->stretch[r->n_stretches] = (struct stretch){
        .from = crash_log_count(r->img.log), .before = r->now, .by_sectors = by_sectors};
}

static void end(struct run *r)
{
    struct stretch *s = &r->stretch[r->n_stretches++];

    s->until = crash_log_count(r->img.log);
    s->after = r->now;
}

/* The writes don't overlap, so that after a crash each sector is simply old or new. */
static void scatter(struct run *r)
{
    uint64_t part = r->config->spec.size / 6;
    uint8_t *disk = copy(r, r->now.disk);

    for (unsigned i = 0; i < 6; i++) {
        uint64_t len = rng_between(&r->rng, 1, 40) * SECTOR;
        uint64_t off = (i * part + rng_below(&r->rng, part - len)) / SECTOR * SECTOR;
        if (rng_one_in(&r->rng, 3))
            continue;
        image_fill(&r->img, &r->rng, disk + off, len);
        cr_assert_eq(block_write(r->img.node, disk + off, off, len, 0), 0);
    }
    r->now.disk = disk;
}

static void write_somewhere(struct run *r)
{
    begin(r, true);
    scatter(r);
    end(r);
    cr_assert_eq(block_flush(r->img.node), 0);
}

/* Creates a snapshot in its steps; half of the time there are writes after the commit, before
 * the snapshot is finished. */
static void create(struct run *r)
{
    char *name = r->now.snapshot[r->now.n].name;
    struct snapshot_request request = {
        .kind = SNAPSHOT_CREATE, .name = name, .ahead = rng_one_in(&r->rng, 2)};
    struct snapshot_change *change;
    struct diag diag = {0};

    snprintf(name, sizeof r->now.snapshot[0].name, "s%u", r->names++ % 1000);
    cr_assert_eq(node_begin_snapshot(r->img.node, &request, &change, &diag), 0, "%s",
                 diag.text);
    cr_assert_eq(node_prepare_snapshot(change, &diag), 0, "%s", diag.text);
    node_commit_snapshot(change);
    r->now.snapshot[r->now.n++].bytes = r->now.disk;
    if (rng_one_in(&r->rng, 2))
        scatter(r);
    cr_assert_eq(node_finish_snapshot(change, true, &diag), 0, "%s", diag.text);
}

/* A write of the deletion fails for lack of space.  Then the list of snapshots changes first, and
 * the rest follows: at once (SNAPSHOT_TIDY) or with the next change of snapshots. */
static void delete_without_space(struct run *r, const struct snapshot_request *request)
{
    const struct snapshot_request tidy = {.kind = SNAPSHOT_TIDY};
    struct snapshot_change *change;
    struct diag diag = {0};

    cr_assert_eq(node_begin_snapshot(r->img.node, request, &change, &diag), 0, "%s",
                 diag.text);
    fault_plan_fail(&r->plan, FAULT_WRITE, rng_between(&r->rng, 1, 8), ENOSPC, FAULT_ONCE);
    cr_assert_eq(node_prepare_snapshot(change, &diag), 0, "%s", diag.text);
    fault_plan_heal(&r->plan);
    node_commit_snapshot(change);
    cr_assert_eq(node_finish_snapshot(change, true, &diag), 0, "%s", diag.text);
    if (rng_one_in(&r->rng, 2))
        (void)!node_change_snapshot(r->img.node, &tidy, NULL, &diag);
}

static void apply_or_delete(struct run *r, enum snapshot_kind kind, unsigned i)
{
    struct snapshot_request request = {.kind = kind, .name = r->now.snapshot[i].name};
    struct diag diag = {0};

    if (kind == SNAPSHOT_DELETE && rng_one_in(&r->rng, 2))
        delete_without_space(r, &request);
    else
        cr_assert_eq(node_change_snapshot(r->img.node, &request, NULL, &diag), 0, "%s",
                     diag.text);
    if (kind == SNAPSHOT_APPLY) {
        r->now.disk = r->now.snapshot[i].bytes;
        return;
    }
    r->now.n--;
    memmove(&r->now.snapshot[i], &r->now.snapshot[i + 1],
            (r->now.n - i) * sizeof r->now.snapshot[0]);
}

static void change(struct run *r, enum snapshot_kind kind, unsigned i)
{
    begin(r, kind == SNAPSHOT_CREATE);
    if (kind == SNAPSHOT_CREATE)
        create(r);
    else
        apply_or_delete(r, kind, i);
    /* The clusters that the change unlinked become free. */
    for (unsigned pass = 0; pass < 2; pass++) {
        cr_assert_eq(block_flush(r->img.node), 0);
        r->img.now += SEC;
        housekeeper_run_due(r->img.ctx.housekeeper);
    }
    end(r);
}

static void step(struct run *r)
{
    unsigned dice = (unsigned)rng_below(&r->rng, 3),
             i = r->now.n ? (unsigned)rng_below(&r->rng, r->now.n) : 0;

    write_somewhere(r);
    if (r->now.n == 0 || (dice == 0 && r->now.n < MOST))
        change(r, SNAPSHOT_CREATE, 0);
    else
        change(r, dice == 1 ? SNAPSHOT_APPLY : SNAPSHOT_DELETE, i);
}

static void record(struct run *r, const struct config *config, uint64_t seed)
{
    struct image_spec spec = config->spec;

    *r = (struct run){.config = config};
    rng_init(&r->rng, seed);
    spec.format = "qcow2";
    image_make(&r->img, &spec, seed);
    r->now.disk = copy(r, r->img.model.bytes);
    r->img.log = crash_log_new(r->img.mem);
    fault_plan_init(&r->plan);
    r->img.plan = &r->plan;
    image_open(&r->img);
    for (unsigned i = 0; i < STEPS; i++)
        step(r);
    cr_assert_eq(image_close(&r->img), 0);
}

static void forget(struct run *r)
{
    crash_log_free(r->img.log);
    r->img.log = NULL;
    fault_plan_destroy(&r->plan);
    image_free(&r->img);
}

/* ---- judging ---- */

static bool reads_as(struct node *node, const struct stretch *s, const struct moment *m,
                     const uint8_t *expected, bool by_sectors)
{
    CLEANUP_FREE uint8_t *found = malloc(node->size);
    const uint8_t *other = m == &s->before ? s->after.disk : s->before.disk;

    cr_assert(found);
    if (block_read(node, found, 0, node->size))
        return false;
    for (uint64_t at = 0; at < node->size; at += SECTOR)
        if (memcmp(found + at, expected + at, SECTOR) != 0 &&
            !(by_sectors && memcmp(found + at, other + at, SECTOR) == 0))
            return false;
    return true;
}

/* Compares the image with a moment; NULL, or what differs. */
static const char *differs(struct node *node, const struct stretch *s,
                           const struct moment *m)
{
    CLEANUP_SNAPSHOT_LIST struct snapshot_list list = {0};

    if (node_snapshots(node, &list) || list.n != m->n)
        return "another list";
    for (unsigned i = 0; i < m->n; i++) {
        struct diag diag = {0};
        struct node *snapshot;
        if (strcmp(list.list[i].name, m->snapshot[i].name) != 0)
            return "another list";
        if (node_open_snapshot(node, m->snapshot[i].name, &snapshot, &diag))
            return "a snapshot can't be opened";
        bool same = reads_as(snapshot, s, m, m->snapshot[i].bytes, false);
        node_close_snapshot(snapshot);
        if (!same)
            return "a snapshot has other contents";
    }
    return reads_as(node, s, m, m->disk, s->by_sectors) ? NULL
                                                        : "the disk has other contents";
}

static const char *judge_structure(struct storage *st)
{
    static char text[200];
    struct structure found;

    structure_check_qcow2(st, &found);
    if (!found.corruptions && !found.refcount_errors)
        return NULL;
    snprintf(text, sizeof text, "structure: %s", found.first);
    return text;
}

static const char *ask_tools(const struct run *r, struct storage *st)
{
    cr_assert_eq(mem_storage_save(st, r->img.path), 0);
    int code =
        shell(NULL, 0, "qemu-img check -q %s %s",
              r->img.tools ? "--object secret,id=s,data=sesame --image-opts" : "-f qcow2",
              r->img.tools ? r->img.tools : r->img.path);
    return code == 0 || code == 3 ? NULL : "qemu-img check finds errors";
}

/* The state must be sound, open, read as one of the two moments, and take writes and another
 * snapshot; after a close it must still be sound.  NULL, or what is wrong. */
static const char *judge(struct run *r, const struct stretch *s, struct storage *st,
                         bool with_tools)
{
    struct image state = r->img;
    struct diag diag = {0};

    const char *why = judge_structure(st);
    if (!why && with_tools)
        why = ask_tools(r, st);
    if (why)
        return why;
    state.log = NULL;
    state.plan = NULL;
    state.mem = st;
    if (image_try_open(&state, &diag))
        return "it can't be opened";
    why = differs(state.node, s, &s->before);
    if (why && differs(state.node, s, &s->after) == NULL)
        why = NULL;
    static const uint8_t more[40 * SECTOR];
    if (!why && block_write(state.node, more, 8 * SECTOR, sizeof more, 0))
        why = "it can't be written to";
    const struct snapshot_request request = {.kind = SNAPSHOT_CREATE, .name = "more"};
    if (!why && node_change_snapshot(state.node, &request, NULL, &diag))
        why = "no snapshot can be made";
    if (image_close(&state) && !why)
        why = "it can't be closed";
    return why ? why : judge_structure(st);
}

struct figures {
    unsigned long states, by_policy[6], flushes, changes, runs, tools;
    char why[300];
};

static void cut_power(struct run *r, struct figures *f, uint64_t seed)
{
    static const enum crash_policy policies[] = {
        CRASH_NONE, CRASH_ALL, CRASH_SUBSET, CRASH_TORN, CRASH_ALL_BUT_ONE, CRASH_ONLY_ONE};
    struct rng rng;

    rng_init(&rng, seed);
    const struct stretch *s = &r->stretch[rng_below(&rng, r->n_stretches)];
    uint64_t point = rng_between(&rng, s->from, s->until);
    struct crash_choice choice = {.policy = policies[rng_below(&rng, ARRAY_LEN(policies))],
                                  .seed = seed};
    uint64_t pending = crash_pending(r->img.log, point, &choice);
    choice.one = pending ? rng_below(&rng, pending) : 0;
    struct storage *st = crash_materialise(r->img.log, point, &choice);
    bool with_tools = f->states % TOOLS_EVERY == 0;
    const char *why = judge(r, s, st, with_tools);

    storage_close(st);
    f->states++;
    f->tools += with_tools;
    f->by_policy[choice.policy]++;
    if (why)
        snprintf(f->why, sizeof f->why,
                 "%s: seed %" PRIu64 ", point %" PRIu64 " of [%" PRIu64 ",%" PRIu64
                 "], policy %d: %s",
                 r->config->name, seed, point, s->from, s->until, (int)choice.policy, why);
}

static void report(const struct config *config, const struct figures *f)
{
    const char *path = getenv("QIMG_CRASH_REPORT");
    const unsigned long *p = f->by_policy;
    FILE *to = path ? fopen(path, "a") : stderr;

    if (!to)
        return;
    fprintf(to,
            "%s recordings %lu changes %lu flushes %lu marks 0 growths 0 states %lu none "
            "%lu all %lu subset %lu torn %lu "
            "all-but-one %lu only-one %lu marked 0 in-repair 0 tools %lu leaky 0 max-leaks "
            "0 failures %d\n",
            config->name, f->runs, f->changes, f->flushes, f->states, p[CRASH_NONE],
            p[CRASH_ALL], p[CRASH_SUBSET], p[CRASH_TORN], p[CRASH_ALL_BUT_ONE],
            p[CRASH_ONLY_ONE], f->tools, f->why[0] != 0);
    if (path)
        fclose(to);
}

static void count_operations(const struct run *r, struct figures *f)
{
    for (uint64_t i = 0; i < crash_log_count(r->img.log); i++) {
        bool flush = crash_log_op(r->img.log, i).kind == CRASH_FLUSH;
        f->flushes += flush;
        f->changes += !flush;
    }
    f->runs++;
}

static void run_configuration(const struct config *config)
{
    unsigned long wanted = env_number("QIMG_CRASH_STATES", getenv("QIMG_LONG") ? 750 : 60);
    uint64_t seed = env_number("QIMG_CRASH_SEED", 1);
    struct figures f = {0};

    while (f.states < wanted && !f.why[0]) {
        struct run r;
        record(&r, config, seed);
        count_operations(&r, &f);
        for (unsigned i = 0; i < 60 && f.states < wanted && !f.why[0]; i++)
            cut_power(&r, &f, seed * 1000 + i);
        forget(&r);
        seed++;
    }
    report(config, &f);
    cr_assert(!f.why[0], "%s", f.why);
}

static size_t indexes[ARRAY_LEN(configs)];

ParameterizedTestParameters(crash_snapshot, power_cuts)
{
    for (size_t i = 0; i < ARRAY_LEN(configs); i++)
        indexes[i] = i;
    return cr_make_param_array(size_t, indexes, ARRAY_LEN(configs));
}

ParameterizedTest(size_t *index, crash_snapshot, power_cuts)
{
    const char *only = getenv("QIMG_CRASH_ONLY");

    registry_init();
    if (!only || fnmatch(only, configs[*index].name, FNM_EXTMATCH) == 0)
        run_configuration(&configs[*index]);
}
