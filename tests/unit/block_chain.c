/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests opening chains, with a toy format: a file with the lines "TOY", the backing file's name and
 * its format. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/chain.h"

#define TOY_BYTES 512

static int open_nodes;

static bool toy_probe(const uint8_t *head, size_t n)
{
    return n >= 4 && memcmp(head, "TOY\n", 4) == 0;
}

static int plain_open(struct node *node, struct diag *diag)
{
    node->cluster_size = 1;
    node->mc = mcache_new(node->ctx->pool, &node->ctx->gate, node->file, NULL, NULL);
    open_nodes++;
    return node->mc ? 0 : diag_errno(diag, ENOMEM, "%s", node->filename);
}

static int toy_open(struct node *node, struct diag *diag)
{
    char text[TOY_BYTES + 1] = "", name[256] = "", format[32] = "";
    int rc = storage_read(node->file, text, 0, TOY_BYTES);
    if (rc < 0)
        return rc;
    if (!toy_probe((const uint8_t *)text, TOY_BYTES))
        return diag_set(diag, EINVAL, "%s: not a toy", node->filename);
    sscanf(text, "TOY\n%255s\n%31s", name, format);
    if (name[0])
        node->backing_name = strdup(name);
    if (format[0])
        node->backing_format = strdup(format);
    return plain_open(node, diag);
}

static int toy_close(struct node *node)
{
    (void)node;
    open_nodes--;
    return 0;
}

static int toy_set_backing(struct node *n, const char *name, const char *format,
                           struct diag *why)
{
    (void)n;
    (void)name;
    (void)format;
    (void)why;
    return -ENOTSUP;
}

static const struct driver toy = {
    .name = "toy",
    .features = DRIVER_BACKING,
    .probe = toy_probe,
    .open = toy_open,
    .settle = block_settle,
    .close = toy_close,
    .set_backing = toy_set_backing,
};
static const struct driver plain = {
    .name = "plain",
    .open = plain_open,
    .settle = block_settle,
    .close = toy_close,
};
static const struct driver *const drivers[] = {&toy, &plain, NULL};

static char folder[] = "/tmp/qimg-chain-XXXXXX";
static struct block_context ctx;
static struct chain_options options;
static struct node *node;
static struct diag diag;

static void setup(void)
{
    cr_assert_not_null(mkdtemp(folder));
    cr_assert_eq(chdir(folder), 0);
    drivers_set(drivers);
    cr_assert_eq(block_context_init(&ctx, 1 << 20, NULL, NULL), 0);
}

static void teardown(void)
{
    node_close(node);
    cr_expect_eq(open_nodes, 0);
    block_context_destroy(&ctx);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", folder);
    cr_expect_eq(system(command), 0);
}

TestSuite(chain, .init = setup, .fini = teardown);

static void make(const char *file, const char *content)
{
    FILE *f = fopen(file, "w");
    cr_assert_not_null(f);
    fputs(content, f);
    fclose(f);
}

static int open_chain(const char *file)
{
    node_close(node);
    node = NULL;
    diag = (struct diag){0};
    return chain_open(&ctx, file, &options, &node, &diag);
}

static void expect_depth(const char *file, unsigned depth)
{
    unsigned n = 0;

    cr_assert_eq(open_chain(file), 0, "%s", diag.text);
    for (struct node *layer = node; layer; layer = layer->backing)
        n++;
    cr_expect_eq(n, depth, "%s is %u deep", file, n);
}

static void expect_refused(const char *file, int err, const char *words)
{
    int rc = open_chain(file);

    cr_assert_eq(rc, -err, "%s: %d %s", file, rc, diag.text);
    cr_expect_null(node);
    cr_expect_eq(diag.err, err);
    cr_expect(strstr(diag.text, words), "%s", diag.text);
    cr_expect_eq(open_nodes, 0);
}

Test(chain, one_image)
{
    make("a", "TOY\n");
    expect_depth("a", 1);
    cr_expect_eq(node->driver, &toy);
    cr_expect(node->can_write);
}

Test(chain, names_are_relative_to_each_image)
{
    cr_assert_eq(mkdir("sub", 0700), 0);
    make("top", "TOY\nsub/mid\ntoy\n");
    make("sub/mid", "TOY\nbase\nplain\n");
    make("sub/base", "anything");
    expect_depth("top", 3);
    cr_expect_str_eq(node->backing->backing->filename, "sub/base");
    cr_expect_eq(node->backing->backing->driver, &plain);
}

Test(chain, what_lies_below_is_read_only)
{
    make("top", "TOY\nbase\n");
    make("base", "TOY\n");
    expect_depth("top", 2);
    cr_expect(node->can_write);
    cr_expect_not(node->backing->can_write);
    options.read_only = true;
    expect_depth("top", 2);
    cr_expect_not(node->can_write);
}

/* V-07 */
Test(chain, the_cache_mode_is_shared)
{
    make("top", "TOY\nbase\n");
    make("base", "TOY\n");
    options.node.cache = cache_mode_find("volatile");
    expect_depth("top", 2);
    cr_expect(node->file->no_flush);
    cr_expect(node->backing->file->no_flush);
}

Test(chain, raw_is_never_guessed)
{
    make("top", "TOY\nbase\n");
    make("base", "unknown");
    expect_refused("base", EINVAL, "format=raw");
    expect_refused("top", EINVAL, "backing-format=raw");
    make("empty", "");
    expect_refused("empty", EINVAL, "format=raw");
    options.format = "auto";
    expect_refused("base", EINVAL, "format=raw");
    options.format = "plain";
    expect_depth("base", 1);
}

Test(chain, a_given_format_is_obeyed)
{
    make("a", "TOY\nb\n");
    options.format = "plain";
    expect_depth("a", 1);
    cr_expect_eq(node->driver, &plain);
    make("b", "unknown");
    options.format = "toy";
    expect_refused("b", EINVAL, "b: not a toy");
    options.format = "vmdk";
    expect_refused("b", ENOTSUP, "unknown format 'vmdk'");
}

Test(chain, the_recorded_format_is_obeyed)
{
    make("top", "TOY\nbase\nplain\n");
    make("base", "TOY\nmissing\n");
    expect_depth("top", 2);
    make("top", "TOY\nbase\nvmdk\n");
    expect_refused("top", ENOTSUP, "unknown format 'vmdk'");
}

Test(chain, the_user_replaces_the_backing_file)
{
    make("top", "TOY\nmissing\n");
    make("other", "TOY\n");
    options.backing = "other";
    expect_depth("top", 2);
    cr_expect_str_eq(node->backing->filename, "other");
    options.backing = "file:other";
    expect_depth("top", 2);
    options.references = REFERENCES_NONE; /* is for names in images, not the user's */
    expect_depth("top", 2);
    make("other", "unknown");
    options.backing_format = "plain";
    expect_depth("top", 2);
    options.backing = "ssh://localhost/x";
    expect_refused("top", ENOTSUP, "ssh://localhost/x");
}

Test(chain, the_user_says_the_format_of_the_backing_file)
{
    make("top", "TOY\nbase\n");
    make("base", "unknown");
    options.backing_format = "plain";
    expect_depth("top", 2);
}

Test(chain, a_format_without_backing_files)
{
    make("top", "unknown");
    make("base", "TOY\n");
    options.format = "plain";
    options.backing = "base";
    expect_refused("top", EINVAL, "have no backing file");
}

Test(chain, no_backing)
{
    make("top", "TOY\nmissing\n");
    options.no_backing = true;
    expect_depth("top", 1);
    cr_expect_str_eq(node->backing_name, "missing");
}

Test(chain, a_missing_backing_file_is_named_with_its_image)
{
    make("top", "TOY\nmid\n");
    make("mid", "TOY\nmissing\n");
    expect_refused("top", ENOENT, "mid: backing file: missing");
    expect_refused("absent", ENOENT, "absent");
}

Test(chain, policy)
{
    make("top", "TOY\nssh://host/base\n");
    expect_refused("top", ENOTSUP, "local files, NBD exports and RBD images only");
    make("top", "TOY\nbase\n");
    make("base", "TOY\n");
    options.references = REFERENCES_DIR;
    expect_depth("top", 2);
    make("top", "TOY\n/etc/passwd\nplain\n");
    expect_refused("top", EACCES, "/etc/passwd");
    options.references = REFERENCES_NONE;
    expect_refused("top", EACCES, "references=none");
}

Test(chain, loops)
{
    make("self", "TOY\nself\n");
    expect_refused("self", ELOOP, "comes back");
    make("a", "TOY\nb\n");
    make("b", "TOY\nc\n");
    make("c", "TOY\nb\n");
    expect_refused("a", ELOOP, "comes back");
}

Test(chain, loops_under_other_names)
{
    make("a", "TOY\nlink\n");
    cr_assert_eq(symlink("a", "link"), 0);
    expect_refused("a", ELOOP, "link");
    unlink("link");
    cr_assert_eq(link("a", "link"), 0);
    expect_refused("a", ELOOP, "link");
    unlink("link");
    make("a", "TOY\n././a\n");
    expect_refused("a", ELOOP, "././a");
}

static void make_chain(unsigned depth)
{
    for (unsigned i = 0; i < depth; i++) {
        char file[16], content[64];
        snprintf(file, sizeof file, "%u", i);
        snprintf(content, sizeof content, "TOY\n%u\ntoy\n", i + 1);
        make(file, i + 1 < depth ? content : "TOY\n");
    }
}

Test(chain, depth)
{
    make_chain(CHAIN_MAX_DEPTH);
    expect_depth("0", CHAIN_MAX_DEPTH);
    make_chain(CHAIN_MAX_DEPTH + 1);
    expect_refused("0", ELOOP, "deeper than 500");
    make_chain(CHAIN_MAX_DEPTH + 50);
    expect_refused("0", ELOOP, "deeper than 500");
}

Test(chain, a_read_only_file)
{
    if (geteuid() == 0)
        cr_skip_test("root may write everything");
    make("a", "TOY\n");
    cr_assert_eq(chmod("a", 0400), 0);
    expect_refused("a", EACCES, "a");
    options.fallback_read_only = true;
    expect_depth("a", 1);
    cr_expect_not(node->can_write);
}

Test(chain, other_kinds_of_files)
{
    cr_assert_eq(mkfifo("fifo", 0600), 0);
    cr_assert_eq(mkdir("folder", 0700), 0);
    expect_refused("fifo", EINVAL, "fifo");
    expect_refused("folder", EINVAL, "folder");
    make("top", "TOY\nfifo\nplain\n");
    expect_refused("top", EINVAL, "fifo");
}
