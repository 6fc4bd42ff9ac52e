/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening an image as the commands that read one do. */
#include <errno.h>
#include <string.h>

#include "cli.h"
#include "image.h"
#include "image_opts.h"

/* Tables of the images that a command looks at; more isn't needed for one pass over them.
 */
#define CACHE_BYTES (16u << 20)

/* Is it a file we can open, but of no known magic? */
static bool looks_raw(const char *filename)
{
    const struct storage_open how = {.read_only = true};
    CLEANUP_STORAGE struct storage *file = NULL;
    const struct driver *driver;

    return storage_open_file(filename, &how, &file, NULL) == 0 &&
           chain_find_driver(file, NULL, &driver, NULL) == -EINVAL;
}

static int open_chain(struct image *image, const char *filename,
                      const struct chain_options *options, bool share_helps)
{
    struct diag diag = {0};

    if (block_context_init(&image->ctx, CACHE_BYTES, NULL, NULL) < 0)
        return cli_error("out of memory");
    if (chain_open(&image->ctx, filename, options, &image->node, &diag) == 0)
        return CLI_OK;
    block_context_destroy(&image->ctx);
    return diag.err == EAGAIN && share_helps ? cli_locked(&diag) : cli_diag(&diag);
}

int image_open(struct image *image, const char *filename,
               const struct chain_options *options, enum image_guess guess)
{
    struct chain_options actual = *options;
    bool maybe_raw = guess == IMAGE_MAYBE_RAW;

    bool is_local = !options->protocol || options->protocol == &storage_protocol_file;

    filename = is_local ? cli_local_name(filename) : filename;
    if (maybe_raw && !options->format && is_local && looks_raw(filename))
        actual.format = "raw";
    return open_chain(image, filename, &actual, maybe_raw);
}

/* As --image-opts has it. */
static int open_by_options(struct image *image, const struct cli_image *given,
                           const struct chain_options *options)
{
    CLEANUP_IMAGE_OPTS struct image_opts opts = {0};
    CLEANUP(passphrases_free) struct passphrases keys = {0};
    struct chain_options actual = *options;

    int code = image_opts_parse(given->filename, &opts);
    /* Who only describes an image needs no key, and looks for none. */
    if (code == CLI_OK && !options->node.describe)
        code = image_opts_find_keys(&opts, &given->secrets, &keys);
    if (code != CLI_OK)
        return code;
    actual.format = opts.image.format;
    actual.protocol = opts.image.protocol;
    actual.passphrases = keys.list;
    actual.n_passphrases = keys.count;
    code = image_open(image, opts.image.path, &actual, IMAGE_MAYBE_RAW);
    if (code != CLI_OK)
        return code;
    code = image_opts_check_encryption(&opts, image->node);
    if (code != CLI_OK)
        (void)image_close(image);
    return code;
}

int image_open_given(struct image *image, const struct cli_image *given,
                     const struct chain_options *options)
{
    struct chain_options actual = *options;

    if (given->image_opts)
        return open_by_options(image, given, options);
    actual.format = given->format;
    return image_open(image, given->filename, &actual, IMAGE_MAYBE_RAW);
}

int image_close(struct image *image)
{
    int rc = node_close(image->node);
    block_context_destroy(&image->ctx);
    return rc < 0 ? cli_error("cannot close the image: %s", strerror(-rc)) : CLI_OK;
}
