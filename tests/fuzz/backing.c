/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes names of backing files as they stand in an image: how each policy of `references=`
 * resolves or refuses them, and which files are really opened when only the image's folder is
 * allowed.
 *
 * The input is a format, a newline, and a name. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/chain.h"
#include "block/json_name.h"
#include "fuzz.h"
#include "scratch.h"
#include "storage/nbd_uri.h"

/* folder/ holds the image and files that it may name, outside/ files that it may not. */
static struct scratch scratch;
static char *image, *folder;

static void remove_scratch(void)
{
    scratch_remove(&scratch);
    free(image);
    free(folder);
}

static void make_image(const char *path, const char *format, const char *backing,
                       const char *backing_format)
{
    struct create_request request = {
        .filename = path,
        .size = 1 << 20,
        .backing_file = backing,
        .backing_format = backing_format,
    };
    struct diag diag = {0};

    if (create_image(driver_find(format), &request, &diag))
        fuzz_fail(__FILE__, __LINE__, "%s", diag.text);
}

/* The current folder is changed only here: libFuzzer uses relative names of its own. */
static void make_scratch(void)
{
    CLEANUP_FREE char *here = getcwd(NULL, 0);

    scratch_make(&scratch);
    atexit(remove_scratch);
    if (!here || chdir(scratch.dir) != 0 ||
        system("mkdir folder folder/below outside") != 0)
        abort();
    make_image("folder/base.qcow2", "qcow2", NULL, NULL);
    make_image("folder/below/base.qed", "qed", "../../outside/secret.qcow2", "qcow2");
    make_image("folder/loop.qcow2", "qcow2", "image", "qcow2");
    make_image("outside/secret.qcow2", "qcow2", NULL, NULL);
    if (symlink("../outside/secret.qcow2", "folder/link") != 0 ||
        symlink("../outside", "folder/way-out") != 0)
        abort();
    folder = realpath("folder", NULL);
    image = scratch_path(&scratch, "folder/image");
    if (chdir(here) != 0)
        abort();
}

static void check_is_below_folder(const char *path)
{
    char real[PATH_MAX];

    fuzz_check(realpath(path, real), "'%s' was opened, and isn't there", path);
    size_t n = strlen(folder);
    fuzz_check(strncmp(real, folder, n) == 0 && real[n] == '/', "'%s' is outside", path);
}

/* Checks one of the files to which a name was resolved. */
static void check_reference(const struct reference *ref, const char *name,
                            enum references policy)
{
    bool is_protocol = name[strcspn(name, ":/")] == ':' && strncmp(name, "file:", 5) != 0;

    fuzz_check(policy != REFERENCES_NONE, "'%s' is let pass", name);
    fuzz_check(ref->protocol == &storage_protocol_file || policy == REFERENCES_ANY,
               "'%s' is let pass", name);
    if (ref->protocol != &storage_protocol_file)
        return;
    fuzz_check(!is_protocol || json_name_is_one(name), "'%s' is let pass", name);
    fuzz_check(ref->path[0] == '/', "'%s' became '%s'", name, ref->path);
    if (policy == REFERENCES_DIR)
        check_is_below_folder(ref->path);
}

static void check_resolving(const char *name)
{
    static const enum references policies[] = {REFERENCES_ANY, REFERENCES_DIR,
                                               REFERENCES_NONE};
    for (size_t i = 0; i < ARRAY_LEN(policies); i++) {
        CLEANUP_REFERENCE struct reference ref = {0};
        struct diag diag = {0};
        int err = reference_resolve_layer(image, name, policies[i], &ref, &diag);
        const char *path = ref.path;
        fuzz_check_diag(err, &diag);
        fuzz_check(!err == (path != NULL), "error %d and path %s", err, path ? path : "");
        for (const struct reference *r = err ? NULL : &ref; r; r = r->below)
            if (r->path) /* NULL: the image above it says where it is */
                check_reference(r, name, policies[i]);
    }
    CLEANUP_FREE char *joined = reference_join(image, name);
    fuzz_check(joined && strlen(joined) >= strlen(name), "'%s' joined", name);
}

/* Creates an image with that backing file, if that is possible, and opens it: all opened files
 * must be below the folder. */
static void check_opening(const char *format, const char *name)
{
    const struct chain_options options = {.format = "qcow2", .references = REFERENCES_DIR};
    struct create_request request = {
        .filename = image,
        .size = 1 << 20,
        .backing_file = name,
        .backing_format = format[0] ? format : NULL,
    };
    struct block_context ctx;
    struct node *node;
    struct diag diag = {0};

    unlink(image);
    int err = create_image(driver_find("qcow2"), &request, &diag);
    fuzz_check_diag(err, &diag);
    if (err)
        return;
    if (block_context_init(&ctx, 1 << 20, NULL, NULL))
        abort();
    err = chain_open(&ctx, image, &options, &node, &diag);
    fuzz_check_diag(err, &diag);
    for (struct node *layer = err ? NULL : node; layer; layer = layer->backing)
        check_is_below_folder(layer->filename);
    if (!err && node_close(node) != 0)
        fuzz_fail(__FILE__, __LINE__, "close");
    block_context_destroy(&ctx);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *text = fuzz_text(data, size);
    char *end = strchr(text, '\n');

    if (!scratch.dir[0])
        make_scratch();
    if (!end)
        return 0;
    *end = '\0';
    check_resolving(end + 1);
    check_opening(text, end + 1);
    return 0;
}
