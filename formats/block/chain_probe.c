/* SPDX-License-Identifier: BSD-3-Clause */
/* Which driver an image file is opened with: by the format that the user or another image names,
 * or by the magic of its first bytes. */
#include <errno.h>
#include <string.h>

#include "block/chain_internal.h"
#include "block/foreign_format.h"

/* Bytes that probing reads. */
#define HEAD_BYTES 512

/* What probing has found. */
struct findings {
    const struct driver *driver; /* NULL: none */
    const char *foreign;         /* without a driver: the foreign format, if it is known */
};

static int probe_file(struct storage *file, struct findings *out, struct diag *diag)
{
    uint8_t head[HEAD_BYTES];
    uint64_t size;

    *out = (struct findings){0};
    int rc = storage_size(file, &size);
    if (rc < 0)
        return diag_errno(diag, -rc, "%s: cannot get its size", file->name);
    size_t n = (size_t)MIN(size, sizeof head);
    rc = storage_read(file, head, 0, n);
    if (rc < 0)
        return diag_errno(diag, -rc, "%s: cannot read its header", file->name);
    out->foreign = foreign_format(head, n);
    if (!out->foreign)
        out->driver = driver_probe(head, n);
    return 0;
}

/* Finds a driver by name.  Content with a known magic must be of that format.  Content without
 * one is accepted here: the driver decides, because a check may repair it. */
static int find_by_name(struct storage *file, const char *format, const struct driver **out,
                        struct diag *diag)
{
    struct driver_names_text names;
    struct findings found;

    *out = driver_find_recorded(format);
    if (!*out)
        return diag_set(diag, ENOTSUP, "%s: unknown format '%s': must be one of %s",
                        file->name, format, driver_names(&names));
    if (!(*out)->probe)
        return 0;
    int rc = probe_file(file, &found, diag);
    if (rc < 0)
        return rc;
    if (found.foreign)
        return diag_set(diag, EINVAL, "%s: magic: not a %s image, but %s", file->name,
                        format, found.foreign);
    if (found.driver && found.driver != *out)
        return diag_set(diag, EINVAL, "%s: magic: not a %s image, but a %s image",
                        file->name, format, found.driver->name);
    return 0;
}

int chain_find_by_magic(struct storage *file, const char *remedy, const struct driver **out,
                        struct diag *diag)
{
    struct driver_names_text names;
    struct findings found;

    int rc = probe_file(file, &found, diag);
    if (rc < 0)
        return rc;
    if (found.foreign)
        return diag_set(
            diag, ENOTSUP,
            "%s: is %s: not a format of qimg, which has %s; qemu-img convert makes "
            "one of another",
            file->name, found.foreign, driver_names(&names));
    if (!found.driver)
        return diag_set(diag, EINVAL, "%s: %s", file->name, remedy);
    *out = found.driver;
    return 0;
}

int chain_find_driver(struct storage *file, const char *format, const struct driver **out,
                      struct diag *diag)
{
    if (!chain_is_auto(format))
        return find_by_name(file, format, out, diag);
    return chain_find_by_magic(
        file,
        "the format is not recognised; raw is never guessed, say format=raw "
        "if it is that",
        out, diag);
}
