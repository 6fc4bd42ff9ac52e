# SPDX-License-Identifier: BSD-3-Clause
"""Random requests on images of every geometry, judged by a flat model and by qemu-img.

Requirements: Q-01 to Q-08, Q-14, Q-18 (QED), L-01, L-05, L-07 and the qcow2 specification.  By default
each pair of properties occurs in some image; QIMG_LONG=1 runs every combination of those that shape the file.
"""

import itertools
import os
import random
import unittest

from harness import *
from pairwise import complete, covering

# Every image has some clusters with data and some without, and its disk ends inside a cluster.
CLUSTERS = [1 << bits for bits in range(9, 22)]
REFCOUNT_BITS = [1, 2, 4, 8, 16, 32, 64]
BACKINGS = [None] + [(fmt, size) for fmt in ("raw", "qcow2", "qed") for size in ("short", "long")]
PREALLOCATIONS = ["off", "metadata", "falloc", "full"]
TOOLS = ["qemu-img", "qimg"]

QCOW2 = {
    "tool": TOOLS,
    "compat": ["0.10", "1.1"],
    "cluster": CLUSTERS,
    "refcount_bits": REFCOUNT_BITS,
    "lazy": ["off", "on"],
    "backing": BACKINGS,
    "preallocation": PREALLOCATIONS,
    "prefilled": [False, True],
    "cache": ["writeback", "writethrough", "none", "directsync", "volatile"],
}
QED = {
    "tool": TOOLS,
    "cluster": [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 2 * MIB],
    "table": [2, 4, 16],
    "backing": BACKINGS,
    "prefilled": [False, True],
    "cache": ["writeback", "writethrough", "none", "directsync", "volatile"],
}


def qcow2_legal(row):
    """Can qemu-img create an image with these properties?  For an incomplete row: can it be completed?"""
    if row.get("compat") == "0.10" and (row.get("refcount_bits", 16) != 16 or row.get("lazy") == "on"):
        return False
    return row.get("backing") is None or row.get("preallocation", "off") == "off"


def qed_legal(row):
    return row.get("table", 0) * row.get("cluster", 0) <= 4 * MIB


FREE = {"lazy", "prefilled", "cache"}  # the full matrix has one random value of these for each combination


def all_rows(space, legal, rng):
    shape = [key for key in space if key not in FREE]
    for values in itertools.product(*(space[key] for key in shape)):
        row = complete(space, legal, rng, dict(zip(shape, values)))
        if row:
            yield row


class Matrix(Case):
    """Each image is made, served, written at random, compared in three ways, and checked."""

    TIMEOUT = 800

    def make_backing(self, backing, size):
        """Makes a backing file with data and a hole; returns its path, its format and what the overlay reads as."""
        fmt, how = backing
        length = (size * 2 // 3 // SECTOR * SECTOR) if how == "short" else size + 3 * SECTOR
        flat = self.path("flat")
        body = bytearray(self.rng.randbytes(length))
        hole = length // 5 // SECTOR * SECTOR
        body[hole:2 * hole] = bytes(hole)
        with open(flat, "wb") as file:
            file.write(body)
        path = self.path(f"backing.{fmt}")
        run("qemu-img", "convert", "-f", "raw", "-O", fmt, flat, path)
        return path, fmt, bytes(body[:size]) + bytes(max(0, size - length))

    def make(self, fmt, row):
        """Makes the image of a row; returns its path and what it reads as."""
        cluster = row["cluster"]
        size = min(max(5 * MIB, 3 * cluster), 8 * MIB)
        if cluster < 4 * KIB:
            size = 2 * MIB
        size += self.rng.randrange(1, 16) * SECTOR
        options = [f"cluster_size={cluster}"]
        if fmt == "qed":
            options.append(f"table_size={row['table']}")
        else:
            options += [f"compat={row['compat']}", f"preallocation={row['preallocation']}"]
            if row["compat"] == "1.1":
                options += [f"refcount_bits={row['refcount_bits']}", f"lazy_refcounts={row['lazy']}"]
        below, below_fmt, data = None, None, bytes(size)
        if row["backing"]:
            below, below_fmt, data = self.make_backing(row["backing"], size)
        image = create(self.path("disk"), fmt, size, ",".join(options), below, below_fmt, row["tool"])
        data = bytearray(data)
        if row["prefilled"]:
            pieces = [(off, self.rng.randbytes(length)) for off, length in
                      ((0, 3 * SECTOR), (size // 2 // SECTOR * SECTOR, 70 * SECTOR), (size - SECTOR, SECTOR))]
            fill(image, fmt, pieces)
            for off, payload in pieces:
                data[off:off + len(payload)] = payload
        return image, bytes(data)

    def one_image(self, fmt, row):
        image, data = self.make(fmt, row)
        check(image, fmt)
        model = Model(data)
        backing = self.path(f"backing.{row['backing'][0]}") if row["backing"] else None
        untouched = sha256(backing) if backing else None
        server = self.serve(image, f"cache={row['cache']}", fmt=fmt)
        handles = [server.connect(), server.connect()]
        self.assertEqual(handles[0].get_size(), len(model))
        model.compare(handles[0], what="first read")
        exercise(handles, model, self.rng, 400 if LONG else 70, row["cluster"])
        server.stop()
        check(image, fmt)
        model.expect(content(image, fmt), "qemu-img convert")
        if backing:
            self.assertEqual(sha256(backing), untouched, "the backing file changed")
        server = self.serve(image, fmt=fmt)
        handle = server.connect()
        model.compare(handle, what="after the server's restart")
        exercise([handle], model, self.rng, 10, row["cluster"])
        server.stop()
        check(image, fmt)
        flat = self.path("model.raw")
        with open(flat, "wb") as file:
            file.write(model.data)
        run("qemu-img", "compare", "-f", fmt, "-F", "raw", image, flat)

    def rows(self, fmt, space, legal, share):
        """Runs this class's part of the rows; share: (number, of how many)."""
        rng = random.Random(f"{SEED} rows")
        rows = list(all_rows(space, legal, rng) if LONG else covering(space, legal, rng))
        number, shares = share
        for row in rows[number::shares]:
            with self.part(**row):
                self.one_image(fmt, row)


class Qcow2A(Matrix):
    def test_half_of_the_geometries(self):
        self.rows("qcow2", QCOW2, qcow2_legal, (0, 2))


class Qcow2B(Matrix):
    def test_other_half_of_the_geometries(self):
        self.rows("qcow2", QCOW2, qcow2_legal, (1, 2))


class Qed(Matrix):
    def test_geometries(self):
        self.rows("qed", QED, qed_legal, (0, 1))

    def test_tables_of_one_cluster(self):
        """Q-02 allows L1 tables of one cluster.  qemu-img 7.2 makes such images, but can't open them."""
        for tool in TOOLS:
            with self.part(tool=tool):
                image = create(self.path("disk"), "qed", 5 * MIB, "cluster_size=16384,table_size=1", tool=tool)
                model = Model(bytes(5 * MIB))
                for _ in range(2):
                    server = self.serve(image, fmt="qed")
                    exercise([server.connect()], model, self.rng, 100, 16 * KIB)
                    server.stop()
                    self.assertFalse(need_check(image))


class Raw(Matrix):
    def test_sizes(self):
        """Raw images of any size; they need format=raw."""
        for size in (1, 511, 4095, 3 * MIB + 1, 4 * MIB):
            for cache in QED["cache"]:
                with self.part(size=size, cache=cache):
                    image = self.path("disk.raw")
                    data = self.rng.randbytes(size)
                    with open(image, "wb") as file:
                        file.write(data)
                    model = Model(data)
                    server = self.serve(image, "format=raw", f"cache={cache}", fmt="raw")
                    handles = [server.connect(), server.connect()]
                    self.assertEqual(handles[0].get_size(), size)
                    exercise(handles, model, self.rng, 40, 4096)
                    server.stop()
                    with open(image, "rb") as file:
                        model.expect(file.read(), "the file")


class Chain(Matrix):
    def test_three_layers_of_three_formats(self):
        """Reads find the right layer, and writes only change the top one."""
        for top, middle in itertools.permutations(("qcow2", "qed"), 2):
            with self.part(top=top):
                size = 4 * MIB
                flat = Model(self.rng.randbytes(size))
                base, mid, image = self.path("base.raw"), self.path(f"mid.{middle}"), self.path(f"top.{top}")
                with open(base, "wb") as file:
                    file.write(flat.data)
                create(mid, middle, size, backing=base, backing_fmt="raw")
                piece = self.rng.randbytes(100 * KIB)
                fill(mid, middle, [(MIB, piece)])
                flat.data[MIB:MIB + len(piece)] = piece
                create(image, top, size, backing=mid, backing_fmt=middle)
                below = sha256(base), sha256(mid)
                server = self.serve(image, fmt=top)
                exercise([server.connect()], flat, self.rng, 150)
                server.stop()
                check(image, top)
                flat.expect(content(image, top), "qemu-img convert")
                self.assertEqual((sha256(base), sha256(mid)), below)

    def test_zero_and_trim_hide_what_lies_below(self):
        """Q-18: after zero and trim requests data of lower layers that was hidden stays hidden."""
        for fmt, options in (("qed", ""), ("qcow2", "compat=0.10"), ("qcow2", "compat=1.1")):
            for how in ("zero", "trim", "zero-keep", "write-then-trim"):
                with self.part(fmt=fmt, options=options, how=how):
                    size = 2 * MIB
                    model = Model(self.rng.randbytes(size))
                    base = self.path("base.raw")
                    with open(base, "wb") as file:
                        file.write(model.data)
                    image = create(self.path("top"), fmt, size, options, base, "raw")
                    server = self.serve(image, fmt=fmt)
                    handle = server.connect()
                    off, length = 64 * KIB - 777, 512 * KIB + 1234
                    if how == "write-then-trim":
                        model.write(handle, off, self.rng.randbytes(length))
                    if "trim" in how:
                        model.trim(handle, off, length)
                    else:
                        model.zero(handle, off, length, nbd.CMD_FLAG_NO_HOLE if "keep" in how else 0)
                    model.compare(handle)
                    model.write(handle, off + 5000, self.rng.randbytes(100))
                    model.compare(handle)
                    server.stop()
                    check(image, fmt)
                    model.expect(content(image, fmt), "qemu-img convert")

if __name__ == "__main__":
    unittest.main()
