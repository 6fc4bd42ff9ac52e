/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens images for commands. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli.h"
#include "image.h"
#include "image_opts.h"
#include "storage/rbd_name.h"

/* Cache for metadata tables: a command passes over them once. */
#define CACHE_BYTES (16u << 20)

static int open_and_start(struct image *image, const char *filename,
                          const struct chain_options *options, struct diag *diag)
{
    int err = chain_open(&image->ctx, filename, options, &image->node, diag);
    if (err)
        return err;
    err = chain_start(image->node);
    if (!err)
        return 0;
    node_close(image->node);
    image->node = NULL;
    return diag_errno(diag, -err, "%s: starting its threads", filename);
}

static const char *skip(const char *text, const char *words)
{
    size_t n = strlen(words);

    return strncmp(text, words, n) == 0 && strncmp(text + n, ": ", 2) == 0 ? text + n + 2
                                                                           : text;
}

/* `filename` was opened; messages show `said`. */
static void blame(const char *filename, const char *said, struct diag *diag)
{
    struct diag cause = *diag;
    const char *reason =
        skip(skip(cause.text, filename), "cannot be opened"); /* not twice */

    diag_set(diag, cause.err, "Could not open '%s': %s", said, reason);
}

void image_blame(const char *filename, const struct storage_protocol *protocol,
                 struct diag *diag)
{
    CLEANUP_FREE char *shown = storage_shown_name(protocol, filename);

    if (shown)
        blame(shown, shown, diag);
}

/* said: the name for messages; NULL: the filename. */
static int open_chain(struct image *image, const char *filename, const char *said,
                      const struct chain_options *options, bool share_helps)
{
    struct diag diag = {0};

    if (block_context_init(&image->ctx, CACHE_BYTES, NULL, NULL) < 0)
        return cli_error("out of memory");
    if (open_and_start(image, filename, options, &diag) == 0)
        return CLI_OK;
    block_context_destroy(&image->ctx);
    if (said)
        blame(filename, said, &diag);
    else
        image_blame(filename, options->protocol, &diag);
    return diag.err == EAGAIN && share_helps ? cli_locked(&diag) : cli_diag(&diag);
}

/* Warns like qemu-img when an image is opened for writing. */
static void warn_of_guess(const char *filename)
{
    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images: "
            "what a guest writes to the first blocks can look like another format.\n"
            "         Specify the 'raw' format explicitly.\n",
            filename);
}

/* "file:a:b" becomes "./a:b", a path that can't be taken for a protocol's name. */
static char *path_without_protocol(const char *filename)
{
    const char *local = cli_local_name(filename);
    bool looks_other = local != filename && local[strcspn(local, ":/")] == ':';
    char *path;

    return asprintf(&path, "%s%s", looks_other ? "./" : "", local) < 0 ? NULL : path;
}

int image_open(struct image *image, const char *filename,
               const struct chain_options *options, enum image_guess guess)
{
    struct chain_options actual = *options;
    bool maybe_raw = guess == IMAGE_MAYBE_RAW && !options->format;
    CLEANUP_FREE char *path = NULL;

    if (!actual.protocol)
        actual.protocol =
            rbd_name_is_one(filename) ? &storage_protocol_rbd : &storage_protocol_file;
    if (actual.protocol == &storage_protocol_file)
        filename = path = path_without_protocol(filename);
    if (!filename)
        return cli_error("out of memory");
    actual.unknown_is_raw = maybe_raw;
    int code = open_chain(image, filename, NULL, &actual,
                          guess == IMAGE_MAYBE_RAW && options->read_only);
    if (code == CLI_OK && maybe_raw && !options->read_only &&
        image->node->driver == driver_find("raw"))
        warn_of_guess(filename);
    return code;
}

int image_open_temporary(struct image *image, const char *path, const char *said,
                         const struct chain_options *options)
{
    return open_chain(image, path, said, options, false);
}

/* Opens an image given by --image-opts. */
static int open_by_options(struct image *image, const struct cli_image *given,
                           const struct chain_options *options)
{
    CLEANUP_IMAGE_OPTS struct image_opts opts = {0};
    CLEANUP(passphrases_free) struct passphrases keys = {0};
    struct chain_options actual = *options;

    int code = image_opts_parse(given, &opts);
    /* A command that only describes an image needs no key. */
    if (code == CLI_OK && !options->node.describe)
        code = image_opts_find_keys(&opts, &given->secrets, &keys);
    if (code != CLI_OK)
        return code;
    actual.format = opts.image.format;
    actual.protocol = opts.image.protocol;
    actual.named = &opts.image;
    actual.data_file = opts.image.data_file;
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

/* Is it a URI or "json:..." instead of a path? */
static bool is_special_name(const char *name)
{
    return strncmp(name, "json:", 5) == 0 ||
           storage_protocol_of(name) != &storage_protocol_file;
}

int image_name_resolve(const struct cli_image *given, struct reference *out)
{
    struct diag diag = {0};

    *out = (struct reference){.protocol = &storage_protocol_file, .given = true};
    if (!is_special_name(given->filename)) {
        out->path = path_without_protocol(given->filename);
        return out->path ? CLI_OK : cli_error("out of memory");
    }
    if (reference_resolve_given("", given->filename, out, &diag) < 0)
        return cli_diag(&diag);
    if (out->plain && !given->format)
        out->format = "raw";
    if (out->format && given->format && strcmp(out->format, given->format) != 0)
        return cli_error("%s: its format is said twice: '%s' and '%s'", given->filename,
                         out->format, given->format);
    return CLI_OK;
}

static int open_by_name(struct image *image, const struct cli_image *given,
                        struct chain_options *options)
{
    CLEANUP_REFERENCE struct reference ref = {0};

    int code = image_name_resolve(given, &ref);
    if (code != CLI_OK)
        return code;
    if (ref.format)
        options->format = ref.format;
    options->protocol = ref.protocol;
    options->named = &ref;
    options->data_file = ref.data_file;
    return image_open(image, ref.path, options, IMAGE_MAYBE_RAW);
}

int image_open_given(struct image *image, const struct cli_image *given,
                     const struct chain_options *options)
{
    struct chain_options actual = *options;

    if (given->image_opts)
        return open_by_options(image, given, options);
    actual.format = given->format;
    return open_by_name(image, given, &actual);
}

int image_close(struct image *image)
{
    int rc = node_close(image->node);
    block_context_destroy(&image->ctx);
    return rc < 0 ? cli_error("cannot close the image: %s", strerror(-rc)) : CLI_OK;
}
