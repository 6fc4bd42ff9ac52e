# SPDX-License-Identifier: BSD-3-Clause
"""Incremental backups with an NBD client alone: snapshot/NAME has the data, bitmap/NAME what has changed, and a
transaction makes both at one point (B-12)."""

import random
import threading
import unittest

from harness import *
from test_bitmap_exports import dirty_ranges
from test_stored_bitmaps import KeptBitmaps
from test_transaction import act, add, merge

SIZE = 16 * MIB
POINTS = int(os.environ.get("QIMG_ROUNDS", "5"))


def snapshot(name):
    return {"type": "blockdev-snapshot-internal-sync", "data": {"device": "drive0", "name": name}}


@unittest.skipIf(STANDIN, "needs the plugin")
class Incremental(KeptBitmaps):
    def write_on(self, server, stop, failures, number):
        rng, disk = random.Random(number), server.connect()
        try:
            while not stop.is_set():
                length = rng.choice((512, 4096, 70000))
                off = rng.randrange((SIZE - length) // 512) * 512
                kind = rng.randrange(8)
                if kind == 0:
                    disk.zero(length, off)
                elif kind == 1:
                    disk.trim(length, off)
                else:
                    disk.pwrite(rng.randbytes(length), off)
                stop.wait(rng.choice((0, 0, 0.002)))
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)

    def test_under_load(self):
        """A full copy and five incremental ones are equal to the disk at each point, while clients write."""
        image = create(self.path("disk"), "qcow2", SIZE, "cluster_size=16384")
        server = self.start(image, "need-check-delay=0.02")
        self.cmd("add", "changes", persistent=True, granularity=4096)
        stop, failures = threading.Event(), []
        threads = [threading.Thread(target=self.write_on, args=(server, stop, failures, n)) for n in range(3)]
        for thread in threads:
            thread.start()
        copy, copied = bytearray(), []
        try:
            self.client.cmd("transaction", actions=[snapshot("p0"), act("clear", "changes")])
            copy[:] = self.whole(server, "snapshot/p0")
            for point in range(1, POINTS + 1):
                stop.wait(0.1)
                self.client.cmd("transaction", actions=[
                    snapshot(f"p{point}"), add(f"n{point}", disabled=True, granularity=4096, persistent=point % 2 == 0),
                    merge(f"n{point}", "changes"), act("clear", "changes")])
                ranges = dirty_ranges(server.connect(f"bitmap/n{point}"))
                source = server.connect(f"snapshot/p{point}")
                for off, length in ranges:
                    copy[off:off + length] = source.pread(length, off)
                copied.append(sum(length for _, length in ranges))
                self.assertTrue(copy == self.whole(server, f"snapshot/p{point}"), f"point {point}")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertEqual(failures, [])
        self.assertTrue(all(0 < n for n in copied), copied)
        self.assertLess(min(copied), SIZE)
        server.stop()
        check(image, "qcow2")
        self.assertIn("auto", self.stored(image)["changes"])
        run(QIMG, "check", image)

    def whole(self, server, export):
        handle = server.connect(export)
        return handle.pread(handle.get_size(), 0)


if __name__ == "__main__":
    unittest.main()
