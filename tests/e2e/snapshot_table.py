# SPDX-License-Identifier: BSD-3-Clause
"""The snapshot table of a qcow2 image, with the extra data of its entries, which depends on the format's version."""

import pathlib

from harness import header, patch

ROOM = 4096  # bytes; the largest table that these functions handle


def entries(image):
    """(the fixed part without the length of the extra data, the extra data, id and name) of each snapshot"""
    at, count, found = header(image, 64, 8, "big"), header(image, 60, 4, "big"), []
    table = pathlib.Path(image).read_bytes()[at:at + ROOM]
    for _ in range(count):
        names, extra = sum(int.from_bytes(table[i:i + 2], "big") for i in (12, 14)), int.from_bytes(table[36:40], "big")
        found.append((table[:36], table[40:40 + extra], table[40 + extra:40 + extra + names]))
        table = table[(40 + extra + names + 7) // 8 * 8:]
    return found


def extras(image):
    """(length of the extra data, the disk's size therein or None) of each snapshot"""
    return [(len(extra), int.from_bytes(extra[8:16], "big") if len(extra) >= 16 else None) for _, extra, _ in entries(image)]


def shorten(image, wanted):
    """Cuts or extends the extra data of each entry to the length in `wanted`.  Version 2 requires none."""
    table = b""
    for (fixed, extra, names), has in zip(entries(image), wanted):
        entry = fixed + has.to_bytes(4, "big") + (extra + b"?" * has)[:has] + names
        table += entry + bytes(-len(entry) % 8)
    patch(image, header(image, 64, 8, "big"), table + bytes(ROOM - len(table)))
