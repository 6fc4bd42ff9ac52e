#include <errno.h>
#include <string.h>

#include "cli.h"
#include "image.h"

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

int image_open(struct image *image, const char *filename,
               const struct chain_options *options, enum image_guess guess)
{
    struct chain_options actual = *options;
    struct diag diag = {0};

    filename = cli_local_name(filename);
    if (guess == IMAGE_MAYBE_RAW && !options->format && looks_raw(filename))
        actual.format = "raw";
    if (block_context_init(&image->ctx, CACHE_BYTES, NULL, NULL) < 0)
        return cli_error("out of memory");
    if (chain_open(&image->ctx, filename, &actual, &image->node, &diag) == 0)
        return CLI_OK;
    block_context_destroy(&image->ctx);
    return diag.err == EAGAIN && guess == IMAGE_MAYBE_RAW ? cli_locked(&diag)
                                                          : cli_diag(&diag);
}

int image_close(struct image *image)
{
    int rc = node_close(image->node);
    block_context_destroy(&image->ctx);
    return rc < 0 ? cli_error("cannot close the image: %s", strerror(-rc)) : CLI_OK;
}
