/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests which files and exports an image may name (`references=`). */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/open_policy.h"

struct resolve_case {
    char image[32], name[48], path[48]; /* path "": the name is refused */
};

static void expect_resolved(const char *image, const char *name, enum references policy,
                            const char *path)
{
    CLEANUP_REFERENCE struct reference ref = {0};
    struct diag diag = {0};
    int rc = reference_resolve(image, name, policy, &ref, &diag);
    const char *got = ref.path;

    if (path) {
        cr_assert_eq(rc, 0, "%s in %s: %s", name, image, diag.text);
        cr_expect_str_eq(got, path);
    } else {
        cr_assert_lt(rc, 0, "%s in %s gave %s", name, image, got ? got : "-");
        cr_expect_null(got);
        cr_expect_eq(diag.err, -rc);
        cr_expect(strstr(diag.text, image) == diag.text, "%s", diag.text);
    }
}

Test(open_policy, words)
{
    enum references policy;

    cr_expect_eq(references_parse("any", &policy), 0);
    cr_expect_eq(policy, REFERENCES_ANY);
    cr_expect_eq(references_parse("dir", &policy), 0);
    cr_expect_eq(policy, REFERENCES_DIR);
    cr_expect_eq(references_parse("none", &policy), 0);
    cr_expect_eq(policy, REFERENCES_NONE);
    cr_expect_eq(references_parse("all", &policy), -EINVAL);
    cr_expect_eq(references_parse("", &policy), -EINVAL);
}

ParameterizedTestParameters(open_policy, any)
{
    static struct resolve_case cases[] = {
        {"disk", "base", "base"},
        {"vm/disk", "base", "vm/base"},
        {"vm/disk", "../base", "vm/../base"},
        {"/vm/disk", "sub/base", "/vm/sub/base"},
        {"/disk", "base", "/base"},
        {"vm/disk", "/base", "/base"},
        {"vm/disk", "file:base", "vm/base"},
        {"vm/disk", "file:/base", "/base"},
        {"vm/disk", "file:///base", "///base"},
        /* A colon after a slash or after "file:" belongs to the file's name. */
        {"vm/disk", "./nbd:base", "vm/./nbd:base"},
        {"vm/disk", "/x:y", "/x:y"},
        {"vm/disk", "file:a:b", "vm/a:b"},
        {"a:b/disk", "base", "a:b/base"},
        {"vm/disk", "json:{\"driver\":\"nbd\"}", ""},
        {"vm/disk", "nbd:h:1:exportname=x", "nbd:h:1:exportname=x"},
        {"vm/disk", "json:", ""},
        {"vm/disk", "nbd://host/x", "nbd://host/x"},
        {"vm/disk", "rbd:p/i@s", "rbd:p/i@s"},
        {"vm/disk", "nbd+unix:///?socket=/s", "nbd+unix:///?socket=/s"},
        {"vm/disk", "ssh://host/x", ""},
        {"vm/disk", "blkdebug::x", ""},
        {"vm/disk", "fat:rw:/tmp", ""},
        {"vm/disk", ":", ""},
        {"vm/disk", "FILE:base", ""},
        {"vm/disk", "", ""},
        {"vm/disk", "file:", ""},
    };
    return cr_make_param_array(struct resolve_case, cases, ARRAY_LEN(cases));
}

ParameterizedTest(struct resolve_case *c, open_policy, any)
{
    expect_resolved(c->image, c->name, REFERENCES_ANY, c->path[0] ? c->path : NULL);
    expect_resolved(c->image, c->name, REFERENCES_NONE, NULL);
}

Test(open_policy, joining_refuses_nothing)
{
    static const char *const cases[][3] = {
        {"vm/disk", "base", "vm/base"},
        {"disk", "base", "base"},
        {"vm/disk", "/base", "/base"},
        {"vm/disk", "nbd://host/x", "nbd://host/x"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        CLEANUP_FREE char *path = reference_join(cases[i][0], cases[i][1]);
        cr_expect_str_eq(path, cases[i][2]);
    }
}

/* A folder with vm/, vm/sub/base, vm/base, other, and symbolic links between them. */
static char folder[] = "/tmp/qimg-policy-XXXXXX";

static void touch(const char *path)
{
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f);
    fclose(f);
}

static void make_tree(void)
{
    cr_assert_not_null(mkdtemp(folder));
    cr_assert_eq(chdir(folder), 0);
    cr_assert_eq(mkdir("vm", 0700), 0);
    cr_assert_eq(mkdir("vm/sub", 0700), 0);
    cr_assert_eq(mkdir("vm2", 0700), 0);
    touch("vm/base");
    touch("vm/sub/base");
    touch("vm2/base");
    touch("other");
    cr_assert_eq(symlink("../other", "vm/out"), 0);
    cr_assert_eq(symlink("sub/base", "vm/in"), 0);
    cr_assert_eq(symlink("vm", "alias"), 0);
}

static void remove_tree(void)
{
    static const char *const files[] = {"vm/base", "vm/sub/base", "vm2/base", "other",
                                        "vm/out",  "vm/in",       "alias"};
    for (size_t i = 0; i < ARRAY_LEN(files); i++)
        unlink(files[i]);
    rmdir("vm/sub");
    rmdir("vm");
    rmdir("vm2");
    rmdir(folder);
}

Test(open_policy, below_the_folder, .init = make_tree, .fini = remove_tree)
{
    expect_resolved("vm/disk", "base", REFERENCES_DIR, "vm/base");
    expect_resolved("vm/disk", "sub/base", REFERENCES_DIR, "vm/sub/base");
    expect_resolved("vm/disk", "sub/../base", REFERENCES_DIR, "vm/sub/../base");
    expect_resolved("vm/disk", "in", REFERENCES_DIR, "vm/in");
    expect_resolved("disk", "vm/base", REFERENCES_DIR, "vm/base");
    expect_resolved("alias/disk", "base", REFERENCES_DIR, "alias/base");
    expect_resolved("/disk", "tmp", REFERENCES_DIR, "/tmp");
}

Test(open_policy, not_below_the_folder, .init = make_tree, .fini = remove_tree)
{
    expect_resolved("vm/disk", "../other", REFERENCES_DIR, NULL);
    expect_resolved("vm/disk", "../vm2/base", REFERENCES_DIR, NULL);
    expect_resolved("vm/disk", "out", REFERENCES_DIR, NULL);
    expect_resolved("vm/disk", "/etc/passwd", REFERENCES_DIR, NULL);
    expect_resolved("vm/disk", "file:../other", REFERENCES_DIR, NULL);
    expect_resolved("vm/disk", "missing", REFERENCES_DIR, NULL);
    /* The folder itself isn't below the folder. */
    expect_resolved("vm/disk", ".", REFERENCES_DIR, NULL);
}

/* Options of the connection to Ceph may come from the user, not from an image. */
Test(open_policy, rbd_options_are_the_users)
{
    static const char *const names[] = {
        "rbd:p/i:id=me",
        "json:{\"driver\":\"rbd\",\"pool\":\"p\",\"image\":\"i\",\"user\":\"me\"}",
    };
    struct diag diag = {0};

    expect_resolved("/vm/disk", "rbd:p/i@s", REFERENCES_ANY, "rbd:p/i@s");
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        CLEANUP_REFERENCE struct reference ref = {0};
        expect_resolved("/vm/disk", names[i], REFERENCES_ANY, NULL);
        cr_assert_eq(reference_resolve_given("backing=", names[i], &ref, &diag), 0);
        cr_expect_str_eq(ref.path, "rbd:p/i:id=me");
    }
    cr_expect_eq(reference_check_recorded("/vm/disk", "rbd:p/i", &diag), 0);
    cr_expect_eq(reference_check_recorded("/vm/disk", "rbd:p/i:id=me", &diag), -EACCES);
    cr_expect_eq(reference_check_recorded("/vm/disk", "http://x/y", &diag), 0);
}

/* A name with which the image couldn't be opened later must not be recorded in it.  Names of
 * protocols that only other programs know may be. */
Test(open_policy, what_an_image_records)
{
    static const struct {
        const char *image, *name, *says;
    } cases[] = {
        {"/vm/disk", "", NULL},
        {"/vm/disk", "nbd://h/e", NULL},
        {"/vm/disk", "nbds://h/e", NULL},
        {"/vm/disk", "nbd+unix:///e?socket=/s", NULL},
        {"/vm/disk", "nbd:unix:/s:exportname=e", NULL},
        {"/vm/disk", "base", NULL},
        {"/vm/disk", "file:a:b", NULL},
        {"/vm/disk", "ssh://h/x", NULL},
        {"rbd:p/i", "/base", NULL},
        {"rbd:p/i", "rbd:p/base", NULL},
        {"/vm/disk", "json:{\"driver\":\"ssh\",\"path\":\"/x\"}", NULL},
        {"/vm/disk", "json:{\"file.filename\":\"a\",\"backing.file.filename\":\"b\"}",
         NULL},
        {"/vm/disk", "nbds://me@h/e",
         "/vm/disk: names nbds://me@h/e: an image may not choose a user"},
        {"/vm/disk", "nbds://h/e?tls-psk-file=/k",
         "an image may not choose keys (tls-psk-file=)"},
        {"/vm/disk", "nbds://h/e?tls-certificates=/k", "an image may not choose keys"},
        {"/vm/disk", "nbds://h/e?tls-verify-peer=false", "an image may not choose keys"},
        {"/vm/disk", "nbd://h/e?x-dirty-bitmap=c", "an image may not choose marks"},
        {"/vm/disk", "nbd+unix:///e?socket=s", "by its absolute path only"},
        {"/vm/disk", "json:{\"driver\":\"nbd\",\"host\":\"h\",\"tls-creds\":\"t\"}",
         "tls-creds: is not an image's to say"},
        {"/vm/disk",
         "json:{\"driver\":\"rbd\",\"pool\":\"p\",\"image\":\"i\",\"user\":\"me\"}",
         "may not choose how Ceph is asked"},
        {"/vm/disk",
         "json:{\"file.filename\":\"a\",\"backing\":{\"driver\":\"rbd\",\"pool\":"
         "\"p\",\"image\":\"i\",\"conf\":\"/c\"}}",
         "may not choose how Ceph is asked"},
        {"rbd:p/i", "base", "has no folder"},
        {"nbd://h/e", "../base", "has no folder"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct diag diag = {0};
        int err = reference_check_recorded(cases[i].image, cases[i].name, &diag);
        cr_expect_eq(!err, !cases[i].says, "%s: %s", cases[i].name, diag.text);
        cr_expect(!cases[i].says || strstr(diag.text, cases[i].says), "%s: %s",
                  cases[i].name, diag.text);
    }
}

/* Secrets in names must not appear in messages. */
Test(open_policy, keys_of_ceph_are_in_no_message)
{
    static const char name[] = "rbd:p/i:key=AQsecret";

    for (enum references policy = REFERENCES_ANY; policy <= REFERENCES_NONE; policy++) {
        CLEANUP_REFERENCE struct reference ref = {0};
        struct diag diag = {0};
        cr_expect_eq(reference_resolve("/vm/disk", name, policy, &ref, &diag), -EACCES);
        cr_expect(strstr(diag.text, "rbd:p/i"), "%s", diag.text);
        cr_expect_null(strstr(diag.text, "AQsecret"), "%s", diag.text);
    }
}

/* Names of further layers inside a name are resolved and checked like the name itself. */
Test(open_policy, layers_below)
{
    static const char name[] =
        "json:{\"file.filename\":\"a\",\"backing\":{\"file.filename\":\"sub/b\","
        "\"backing.file.filename\":\"/c\"}}";
    CLEANUP_REFERENCE struct reference ref = {0};
    struct diag diag = {0};

    cr_assert_eq(reference_resolve_layer("vm/disk", name, REFERENCES_ANY, &ref, &diag), 0,
                 "%s", diag.text);
    cr_expect_str_eq(ref.path, "vm/a");
    cr_assert_not_null(ref.below);
    cr_expect_str_eq(ref.below->path, "vm/sub/b");
    cr_assert_not_null(ref.below->below);
    cr_expect_str_eq(ref.below->below->path, "/c");
    cr_expect_null(ref.below->below->below);

    /* reference_resolve, which is for a single file, refuses a name that has other layers. */
    expect_resolved("vm/disk", name, REFERENCES_ANY, NULL);
}

Test(open_policy, layers_below_stay_in_the_folder, .init = make_tree, .fini = remove_tree)
{
    static const char good[] =
        "json:{\"file.filename\":\"base\",\"backing.file.filename\":\"sub/base\"}";
    static const char bad[] =
        "json:{\"file.filename\":\"base\",\"backing.file.filename\":\"../other\"}";
    CLEANUP_REFERENCE struct reference ref = {0};
    struct diag diag = {0};

    cr_assert_eq(reference_resolve_layer("vm/disk", good, REFERENCES_DIR, &ref, &diag), 0,
                 "%s", diag.text);
    cr_expect_str_eq(ref.below->path, "vm/sub/base");
    reference_free(&ref);
    cr_expect_eq(reference_resolve_layer("vm/disk", bad, REFERENCES_DIR, &ref, &diag),
                 -EACCES);
    cr_expect_null(ref.path);
    cr_expect_null(ref.below);
}
