# SPDX-License-Identifier: BSD-3-Clause
"""Compressed clusters, encryption, subclusters and data files, alone and together: images that QEMU
made, served, written by eight threads, and judged by a model and by QEMU's tools.

In some image each pair of properties occurs.  A quick run takes a share of the images, another one
with each seed; QIMG_LONG=1 takes all.
"""

import unittest

from crowd import work
from featured import SPACE, Featured, legal
from harness import *
from pairwise import covering

SHARES = 5


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
        """QEMU's tools, once nobody serves it."""
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


if __name__ == "__main__":
    unittest.main()
