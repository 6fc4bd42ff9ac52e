/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the parsing of names of RBD images, which come from users and from images. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "storage/rbd_name.h"

static bool same(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static void check_part(const char *part)
{
    fuzz_check(!part || part[0], "an empty part");
    for (const char *p = part; p && *p; p++)
        fuzz_check((unsigned char)*p >= ' ' && *p != 0x7f, "control character in '%s'",
                   part);
}

static void check_parts(const struct rbd_name *name)
{
    const char *parts[] = {name->pool,     name->image, name->space,
                           name->snapshot, name->id,    name->conf};

    fuzz_check(name->pool && name->image, "no pool or no image");
    fuzz_check(!name->conf || name->conf[0] == '/', "conf '%s'", name->conf);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        check_part(parts[i]);
    for (unsigned i = 0; i < name->n_options; i++) {
        check_part(name->options[i].key);
        check_part(name->options[i].value);
    }
}

static bool same_options(const struct rbd_name *a, const struct rbd_name *b)
{
    if (a->n_options != b->n_options)
        return false;
    for (unsigned i = 0; i < a->n_options; i++)
        if (!same(a->options[i].key, b->options[i].key) ||
            !same(a->options[i].value, b->options[i].value))
            return false;
    return true;
}

/* A printed name must parse to the same parts again. */
static void check_canonical(const struct rbd_name *name)
{
    CLEANUP_FREE char *text = rbd_name_print(name);
    CLEANUP_RBD_NAME struct rbd_name again = {0};
    struct diag diag = {0};

    fuzz_check(text && rbd_name_is_one(text), "no text");
    if (strlen(text) > RBD_NAME_MAX)
        return;
    int err = rbd_name_parse(text, RBD_NAME_USER, &again, &diag);
    fuzz_check(err == 0, "'%s': %s", text, diag.text);
    fuzz_check(same(name->pool, again.pool) && same(name->image, again.image) &&
                   same(name->space, again.space) && same(name->snapshot, again.snapshot) &&
                   same(name->id, again.id) && same(name->conf, again.conf) &&
                   same_options(name, &again),
               "'%s' parses to something else", text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *text = fuzz_text(data, size);

    if (!rbd_name_is_one(text))
        return 0;
    for (int origin = RBD_NAME_USER; origin <= RBD_NAME_IMAGE; origin++) {
        CLEANUP_RBD_NAME struct rbd_name name = {0};
        struct diag diag = {0};
        int err = rbd_name_parse(text, (enum rbd_name_origin)origin, &name, &diag);
        fuzz_check_diag(err, &diag);
        if (err) {
            fuzz_check(!name.pool && !name.image && !name.n_options, "not empty");
            continue;
        }
        check_parts(&name);
        fuzz_check(origin == RBD_NAME_USER || (!name.id && !name.conf && !name.n_options),
                   "an image chooses how Ceph is asked");
        check_canonical(&name);
    }
    return 0;
}
