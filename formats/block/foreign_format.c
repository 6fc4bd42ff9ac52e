/* SPDX-License-Identifier: BSD-3-Clause */
/* Formats of other programs, recognised by their magic. */
#include <string.h>

#include "base/checked.h"
#include "block/foreign_format.h"

/* bytes: a string literal; its terminating NUL isn't part of the magic. */
#define MAGIC(offset, bytes, name)             \
    {                                          \
        offset, sizeof(bytes) - 1, bytes, name \
    }

static const struct {
    size_t offset, length;
    const char *bytes, *name;
} magics[] = {
    MAGIC(0, "KDMV", "a VMDK image"),
    MAGIC(0, "COWD", "a VMDK image"),
    MAGIC(0, "# Disk DescriptorFile", "the descriptor of a VMDK image"),
    MAGIC(64, "\x7f\x10\xda\xbe", "a VDI image"),
    MAGIC(0, "vhdxfile", "a VHDX image"),
    MAGIC(0, "conectix", "a VPC (VHD) image"),
    MAGIC(0, "WithoutFreeSpace", "a Parallels image"),
    MAGIC(0, "WithouFreSpacExt", "a Parallels image"),
    MAGIC(0, "LUKS\xba\xbe\0\2", "a LUKS volume of version 2"),
    MAGIC(0, "Bochs Virtual HD Image", "a Bochs image"),
    MAGIC(0, "#!/bin/sh\n#V2.0 Format\n", "a cloop image"),
    MAGIC(0, "QFI\xfb\0\0\0\1", "a qcow image of version 1"),
    MAGIC(0, "OOOM\0\0\0\2", "a COW image of User Mode Linux"),
};

const char *foreign_format(const uint8_t *head, size_t n)
{
    for (size_t i = 0; i < ARRAY_LEN(magics); i++)
        if (range_inside(magics[i].offset, magics[i].length, n) &&
            memcmp(head + magics[i].offset, magics[i].bytes, magics[i].length) == 0)
            return magics[i].name;
    return NULL;
}
