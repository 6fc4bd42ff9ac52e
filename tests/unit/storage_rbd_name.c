/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests names of RBD images: which are accepted, which are refused, and that a printed name parses
 * to the same (R-01). */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/compiler.h"
#include "rng.h"
#include "storage/protocol.h"
#include "storage/rbd.h"

static int parse(const char *text, enum rbd_name_origin origin, struct rbd_name *name)
{
    struct diag diag = {0};
    int err = rbd_name_parse(text, origin, name, &diag);

    cr_assert_eq(diag.err, -err, "%s", text);
    cr_assert_eq(diag.text[0] != '\0', err != 0, "%s", text);
    return err;
}

static bool same(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

Test(rbd_name, parts)
{
    static const struct {
        const char *text, *pool, *space, *image, *snapshot, *id, *conf;
    } cases[] = {
        {"rbd:p/i", "p", NULL, "i", NULL, NULL, NULL},
        {"rbd:p/i@s", "p", NULL, "i", "s", NULL, NULL},
        {"rbd:p/n/i@s:id=me:conf=/etc/c", "p", "n", "i", "s", "me", "/etc/c"},
        {"rbd:p/i:conf=/a\\:b\\@c=d:id=x", "p", NULL, "i", NULL, "x", "/a:b@c=d"},
        {"rbd:a\\/b/c\\/d\\@e\\:f\\\\", "a/b", NULL, "c/d@e:f\\", NULL, NULL, NULL},
        {"rbd:p/n\\/m/i@s\\:t@u/v", "p", "n/m", "i", "s:t@u/v", NULL, NULL},
        {"rbd:p/i@s:id=a@b", "p", NULL, "i", "s", "a@b", NULL},
        {"rbd:p o/i x.qcow2", "p o", NULL, "i x.qcow2", NULL, NULL, NULL},
        {"rbd:\xc3\xa9/\xff", "\xc3\xa9", NULL, "\xff", NULL, NULL, NULL},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct rbd_name name;
        cr_assert_eq(parse(cases[i].text, RBD_NAME_USER, &name), 0, "%s", cases[i].text);
        cr_expect(same(name.pool, cases[i].pool), "%s", cases[i].text);
        cr_expect(same(name.space, cases[i].space), "%s", cases[i].text);
        cr_expect(same(name.image, cases[i].image), "%s", cases[i].text);
        cr_expect(same(name.snapshot, cases[i].snapshot), "%s", cases[i].text);
        cr_expect(same(name.id, cases[i].id), "%s", cases[i].text);
        cr_expect(same(name.conf, cases[i].conf), "%s", cases[i].text);
        cr_expect_eq(storage_protocol_of(cases[i].text), &storage_protocol_rbd);
        rbd_name_free(&name);
    }
}

Test(rbd_name, options_keep_their_order)
{
    struct rbd_name name;

    cr_assert_eq(parse("rbd:p/i:mon_host=[v2\\:1.2.3.4\\:3300]:a\\=b=c:a\\=b=d",
                       RBD_NAME_USER, &name),
                 0);
    cr_assert_eq(name.n_options, 3);
    cr_expect_str_eq(name.options[0].key, "mon_host");
    cr_expect_str_eq(name.options[0].value, "[v2:1.2.3.4:3300]");
    cr_expect_str_eq(name.options[1].key, "a=b");
    cr_expect_str_eq(name.options[1].value, "c");
    cr_expect_str_eq(name.options[2].value, "d");
    rbd_name_free(&name);
}

Test(rbd_name, refusals)
{
    static const struct {
        const char *text;
        int err;
    } cases[] = {
        {"rbd:", EINVAL},
        {"rbd:p", EINVAL},
        {"rbd:/i", EINVAL},
        {"rbd:p/", EINVAL},
        {"rbd:p/@s", EINVAL},
        {"rbd:p/i@", EINVAL},
        {"rbd:p/n/", EINVAL},
        {"rbd:p//i", EINVAL},
        {"rbd:p/a/b/c", EINVAL},
        {"rbd:p/i:", EINVAL},
        {"rbd:p/i:id", EINVAL},
        {"rbd:p/i:=x", EINVAL},
        {"rbd:p/i:id=", EINVAL},
        {"rbd:p/i:id=a:", EINVAL},
        {"rbd:p/i::id=a", EINVAL},
        {"rbd:p/i\\", EINVAL},
        {"rbd:p\\/i", EINVAL},
        {"rbd:p/i\n", EINVAL},
        {"rbd:p/i\x7f", EINVAL},
        {"rbd:p/i:a=b\x01", EINVAL},
        {"rbd:p/i:id=a:id=b", EINVAL},
        {"rbd:p/i:conf=/a:conf=/b", EINVAL},
        /* QEMU would take everything before the @ for the image's name. */
        {"rbd:p/i:id=a@b", EINVAL},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct rbd_name name;
        cr_expect_eq(parse(cases[i].text, RBD_NAME_USER, &name), -cases[i].err, "%s",
                     cases[i].text);
        cr_expect(!name.pool && !name.image && !name.conf && !name.n_options);
    }
}

Test(rbd_name, lengths)
{
    char text[RBD_NAME_MAX + 2] = "rbd:p/";
    struct rbd_name name;

    memset(text + 6, 'x', RBD_NAME_MAX - 6);
    cr_expect_eq(parse(text, RBD_NAME_USER, &name), 0);
    rbd_name_free(&name);
    text[RBD_NAME_MAX] = 'x';
    cr_expect_eq(parse(text, RBD_NAME_USER, &name), -ENAMETOOLONG);

    strcpy(text, "rbd:p/i");
    for (int i = 0; i < RBD_OPTIONS_MAX; i++)
        strcat(text, ":k=v");
    cr_expect_eq(parse(text, RBD_NAME_USER, &name), 0);
    rbd_name_free(&name);
    strcat(text, ":k=v");
    cr_expect_eq(parse(text, RBD_NAME_USER, &name), -EINVAL);
}

/* A name in an image must not choose keys, or files that Ceph's library opens. */
Test(rbd_name, an_image_names_a_place_only)
{
    static const char *const refused[] = {"rbd:p/i:id=admin", "rbd:p/i:conf=/etc/x",
                                          "rbd:p/i@s:log_file=/etc/passwd",
                                          "rbd:p/i:mon_host=1.2.3.4"};
    struct rbd_name name;

    cr_assert_eq(parse("rbd:p/n/i@s", RBD_NAME_IMAGE, &name), 0);
    rbd_name_free(&name);
    for (size_t i = 0; i < ARRAY_LEN(refused); i++)
        cr_expect_eq(parse(refused[i], RBD_NAME_IMAGE, &name), -EACCES, "%s", refused[i]);
}

Test(rbd_name, a_relative_conf_is_made_absolute)
{
    char folder[512], expected[600];
    struct rbd_name name;

    cr_assert(getcwd(folder, sizeof folder));
    snprintf(expected, sizeof expected, "%s/my.conf", folder);
    cr_assert_eq(parse("rbd:p/i:conf=my.conf", RBD_NAME_USER, &name), 0);
    cr_expect_str_eq(name.conf, expected);
    rbd_name_free(&name);
}

static char *random_text(struct rng *rng)
{
    static const char alphabet[] = "ab/@:=\\ \"'%.\xc3";
    size_t len = 1 + rng_below(rng, 8);
    char *text = calloc(1, len + 1);

    for (size_t i = 0; i < len; i++)
        text[i] = alphabet[rng_below(rng, sizeof alphabet - 1)];
    return text;
}

static void make_random_name(struct rng *rng, struct rbd_name *name)
{
    *name = (struct rbd_name){.pool = random_text(rng), .image = random_text(rng)};
    char **optional[] = {&name->space, &name->snapshot, &name->id};
    for (size_t i = 0; i < ARRAY_LEN(optional); i++)
        if (rng_below(rng, 2))
            *optional[i] = random_text(rng);
    name->n_options = (unsigned)rng_below(rng, 3);
    for (unsigned i = 0; i < name->n_options; i++) {
        name->options[i].value = random_text(rng);
        do {
            free(name->options[i].key);
            name->options[i].key = random_text(rng);
        } while (same(name->options[i].key, "id") || same(name->options[i].key, "conf"));
    }
}

static void expect_same(const struct rbd_name *a, const struct rbd_name *b,
                        const char *text)
{
    cr_assert(same(a->pool, b->pool) && same(a->image, b->image) &&
                  same(a->space, b->space) && same(a->snapshot, b->snapshot) &&
                  same(a->id, b->id) && a->n_options == b->n_options,
              "%s", text);
    for (unsigned i = 0; i < a->n_options; i++)
        cr_assert(same(a->options[i].key, b->options[i].key) &&
                      same(a->options[i].value, b->options[i].value),
                  "%s", text);
}

Test(rbd_name, printing_and_parsing)
{
    struct rng rng;

    rng_init(&rng, 1);
    for (int i = 0; i < 20000; i++) {
        struct rbd_name name, again;
        make_random_name(&rng, &name);
        char *text = rbd_name_print(&name);
        cr_assert_eq(parse(text, RBD_NAME_USER, &again), 0, "%s", text);
        expect_same(&name, &again, text);
        char *place = rbd_name_print_place(&name);
        cr_assert_eq(strncmp(text, place, strlen(place)), 0, "%s, %s", text, place);
        free(place);
        free(text);
        rbd_name_free(&name);
        rbd_name_free(&again);
    }
}

/* Hostile names are refused before Ceph's library is loaded. */
Test(rbd_name, a_bad_name_opens_nothing)
{
    const struct storage_open how = {.read_only = true, .named_by_image = true};
    struct storage *st = NULL;
    struct diag diag = {0};

    int err = storage_open_rbd("rbd:p/i:conf=/etc/shadow", &how, &st, &diag);
    cr_expect_eq(err, rbd_is_there ? -EACCES : -ENOTSUP, "%s", diag.text);
    cr_expect_null(st);
}

/* Names appear in logs and replies, where secrets must not be shown. */
Test(rbd_name, secrets_are_not_shown)
{
    struct rbd_name name;
    struct diag diag = {0};

    cr_assert_eq(
        parse("rbd:p/i:id=me:key=AQsecret==:rbd_op_threads=2", RBD_NAME_USER, &name), 0);
    char *shown = rbd_name_print_shown(&name), *place = rbd_name_print_place(&name);
    cr_expect_str_eq(shown, "rbd:p/i:id=me:key=***:rbd_op_threads=2");
    cr_expect_str_eq(place, "rbd:p/i");
    free(shown);
    free(place);
    rbd_name_free(&name);
    cr_expect(rbd_option_is_secret(" key ")); /* Ceph ignores the blanks, too */
    cr_expect(!rbd_option_is_secret("keyring"));
    cr_expect_neq(rbd_name_parse("rbd:p/i:key=AQsecret==", RBD_NAME_IMAGE, &name, &diag),
                  0);
    cr_expect_null(strstr(diag.text, "AQsecret"), "%s", diag.text);
    cr_expect_neq(rbd_name_parse("rbd:p/i:key=AQsecret==:key", RBD_NAME_USER, &name, &diag),
                  0);
    cr_expect_null(strstr(diag.text, "AQsecret"), "%s", diag.text);
}
