# SPDX-License-Identifier: BSD-3-Clause
"""Compressed clusters, encryption, subclusters and data files, alone and together: images made by QEMU
are served, written by eight threads, and judged by a model and by QEMU's tools.

Each pair of properties occurs in some image.  A quick run takes a part of the images, which depends on
the seed; QIMG_LONG=1 takes all.
"""

import unittest

from crowd import work
from featured import SPACE, Featured, legal
from harness import *
from pairwise import covering

SHARES = 8


def statuses(handle, size, off=0):
    """(offset, length, flags) over the whole disk."""
    while off < size:
        found = []

        def note(_context, _offset, entries, _error, found=found):
            found += zip(entries[::2], entries[1::2])
            return 0
        handle.block_status(min(size - off, 1 << 30), off, note)
        for length, flags in found:
            yield off, length, flags
            off += length


class Featured8(Case):
    TIMEOUT = 800

    def check_status(self, handle, model):
        end = 0
        for off, length, flags in statuses(handle, len(model)):
            self.assertEqual(off, end)
            end = off + length
            if flags & nbd.STATE_ZERO:
                self.assertFalse(any(model.data[off:end]), f"{off}+{length} is said to be zeroes")
            elif flags & nbd.STATE_HOLE:
                self.fail(f"{off}+{length} is said to be a hole that isn't zeroes")
        self.assertEqual(end, len(model))

    def judge(self, disk, model):
        """Compares the disk with the model by QEMU's tools, after the server's end."""
        disk.check()
        model.expect(disk.content(), "qemu-img convert")
        disk.check_data_file(model.data)
        disk.check_rest()

    def one_image(self, row, requests):
        disk = Featured(self.dir, row, self.rng)
        model = Model(disk.data)
        model.expect(disk.content(), "qemu-img convert, at first")
        keys = [*disk.keys, f"cache={row['cache']}", f"compress={row['compress']}"]
        for again in (False, True):
            server = self.serve(disk.path, *keys, f"metadata-cache={self.rng.choice(('64M', '1M'))}")
            first = server.connect()
            self.assertEqual(first.get_size(), disk.size)
            model.compare(first, what="first read")
            self.check_status(first, model)
            work(server, model, self.rng, requests // 8 if again else requests, disk.cluster)
            model.compare(first, what="after all writes")
            self.check_status(first, model)
            server.stop()
            self.judge(disk, model)


class Pairs(Featured8):
    def test_pairs_of_properties(self):
        rows = list(covering(SPACE, legal, random.Random(f"{SEED} features")))
        self.assertGreater(len(rows), 60)
        for row in rows if LONG else rows[SEED % SHARES::SHARES]:
            with self.part(**row):
                self.one_image(row, 150 if LONG else 25)


class Small(Featured8):
    """Requests that are smaller than the unit that is written to the file: an encrypted sector, a subcluster,
    a compressed cluster."""

    ROWS = [{"encryption": "luks-xts"}, {"encryption": "luks-cbc", "cluster": 512},
            {"encryption": "aes", "cluster": 4 * KIB}, {"encryption": "aes", "data_file": "plain"},
            {"encryption": "luks-xts", "extended": "on", "cluster": 16 * KIB},
            {"extended": "on", "cluster": 16 * KIB}, {"compression": "zstd"},
            {"encryption": "luks-xts", "backing": "compressed"}, {"extended": "on", "backing": "qcow2"}]
    PLACES = ((100, 1), (511, 2), (100, 50), (0, 511), (1, 511), (300, 512), (1, 1023), (700, 5000), (0, 512))

    def test_parts_of_units(self):
        """Writes to unallocated units, and then to the same, now allocated units."""
        for row in self.ROWS:
            with self.part(**row):
                disk = Featured(self.dir, row, self.rng, size=MIB + 512)
                model = Model(disk.data)
                server = self.serve(disk.path, *disk.keys)
                handle = server.connect()
                for again in range(2):
                    for number, (off, length) in enumerate(self.PLACES):
                        at = (40 + 97 * number) * KIB + off
                        model.write(handle, at, self.rng.randbytes(length), nbd.CMD_FLAG_FUA if again else 0)
                        model.compare(handle, at // (64 * KIB) * 64 * KIB, 64 * KIB)
                        model.zero(handle, at + 7, max(1, length // 2), 0 if number % 2 else nbd.CMD_FLAG_NO_HOLE)
                    model.trim(handle, 200 * KIB + 77, 3000)
                    model.write(handle, len(model) - 3, b"end")
                model.compare(handle)
                self.check_status(handle, model)
                server.stop()
                self.judge(disk, model)

    def test_compressed_clusters_of_an_encrypted_image(self):
        """QEMU can make compressed clusters in an encrypted image; these aren't encrypted."""
        for encryption in ("luks-xts", "aes"):
            with self.part(encryption=encryption):
                disk = Featured(self.dir, {"encryption": encryption}, self.rng, fill=False)
                disk.tool("qemu-io", "-c", "write -q -c -P 7 64k 64k", "-c", "write -q -P 8 128k 64k")
                model = Model(disk.data)
                model.data[64 * KIB:192 * KIB] = b"\7" * 64 * KIB + b"\x08" * 64 * KIB
                server = self.serve(disk.path, *disk.keys)
                handle = server.connect()
                model.compare(handle)
                model.write(handle, 100 * KIB + 1, b"over")
                model.compare(handle)
                server.stop()
                self.judge(disk, model)


class Together(Featured8):
    """Writers that share clusters, for a longer time."""

    def busy(self, row, *keys, requests=400 if LONG else 60):
        disk = Featured(self.dir, row, self.rng, size=MIB + 3 * SECTOR)
        model = Model(disk.data)
        server = self.serve(disk.path, *disk.keys, *keys)
        work(server, model, self.rng, requests, disk.cluster)
        model.compare(server.connect())
        server.stop()
        self.judge(disk, model)

    def test_packed(self):
        self.busy({"cluster": 4 * KIB, "compression": "zlib"}, "compress=on")

    def test_packed_with_one_reference(self):
        self.busy({"cluster": 4 * KIB, "refcount_bits": 1}, "compress=on")

    def test_packed_after_a_snapshot(self):
        self.busy({"cluster": 16 * KIB, "compression": "zstd", "snapshot": True, "extended": "on"}, "compress=on")

    def test_encrypted(self):
        self.busy({"encryption": "luks-xts", "snapshot": True})

    def test_subclusters(self):
        self.busy({"extended": "on", "backing": "compressed", "snapshot": True})

    def test_data_file(self):
        self.busy({"data_file": "raw", "extended": "on"})


if __name__ == "__main__":
    unittest.main()
