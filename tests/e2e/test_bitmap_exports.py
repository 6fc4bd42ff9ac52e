# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps are served as exports beside the disk; their block status shows what is dirty (B-08, B-09)."""

import random
import threading
import unittest

import nbd

from harness import *
from test_stored_bitmaps import GRANULE, SIZE, KeptBitmaps, granules


def dirty_ranges(handle):
    """(offset, length) of a bitmap export's data, which are the dirty ranges; clean ranges are holes, not zeroes."""
    found, off, size = [], 0, handle.get_size()
    while off < size:
        entries = []
        handle.block_status(min(size - off, 1 << 30), off,
                            lambda context, _off, pairs, _error: entries.extend(pairs) if context == "base:allocation" else None)
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags not in (0, nbd.STATE_HOLE):
                raise AssertionError(f"{flags} at {off}")
            if flags == 0:
                found.append((off, length))
            off += length
    return found


@unittest.skipIf(STANDIN, "needs the plugin")
class BitmapExports(KeptBitmaps):
    def share(self, server, name):
        return server.connect(f"bitmap/{name}")

    def test_the_status_is_the_bitmap(self):
        """With granules of each size, while the bitmap records, and on a disk that ends inside a granule."""
        rng = random.Random(3)
        image = create(self.path("disk"), "qcow2", SIZE + 1536)
        server = self.start(image)
        disk = server.connect()
        for granularity in (512, 4096, GRANULE, MIB):
            name = f"b{granularity}"
            self.cmd("add", name, granularity=granularity, persistent=granularity > 512)
            handle, model = self.share(server, name), set()
            self.assertEqual(dirty_ranges(handle), [])
            for _ in range(40):
                length = rng.choice((1, 512, 5000, 70000))
                off = rng.randrange(disk.get_size() - length + 1)
                disk.pwrite(rng.randbytes(length), off)
                model |= granules([(off, length)], granularity)
            disk.pwrite(b"end", disk.get_size() - 3)
            model |= granules([(disk.get_size() - 3, 3)], granularity)
            ranges = dirty_ranges(handle)
            self.assertEqual(granules(ranges, granularity), model)
            self.assertTrue(all(off % granularity == 0 for off, _ in ranges))
            self.assertEqual(sum(length for _, length in ranges), self.client.bitmaps()[name]["count"])
            self.assertEqual(handle.pread(handle.get_size(), 0), disk.pread(disk.get_size(), 0))
            self.assertTrue(handle.is_read_only())
            with self.assertRaises(nbd.Error):
                handle.pwrite(b"x", 0)
            handle.shutdown()

    def test_listed_and_described(self):
        server = self.start(self.image("monday"))
        self.cmd("add", "a/b", granularity=4096)
        server.connect().pwrite(b"x" * 5000, 0)
        self.assertEqual(server.exports(), {
            "": server.exports()[""], "bitmap/monday": "dirty bitmap of 65536-byte granules, 65536 bytes dirty",
            "bitmap/a/b": "dirty bitmap of 4096-byte granules, 8192 bytes dirty"})
        self.assertEqual(dirty_ranges(self.share(server, "a/b")), [(0, 8192)])
        for name in ("tuesday", "", "monday/"):
            with self.assertRaises(nbd.Error):
                self.share(server, name)

    def test_busy_while_it_is_served(self):
        """Several clients can read a bitmap; meanwhile commands can't change or remove it."""
        server = self.start(self.image("b"))
        first, second = self.share(server, "b"), self.share(server, "b")
        self.assertTrue(self.client.bitmaps()["b"]["busy"])
        for verb in ("clear", "enable", "disable", "remove"):
            self.fails("'b' is currently in use", verb, "b")
        self.assertEqual(dirty_ranges(second), [])
        first.shutdown()
        wait_until(lambda: len(dirty_ranges(second)) == 0, 5, "the other")
        self.fails("'b' is currently in use", "remove", "b")
        second.shutdown()
        wait_until(lambda: not self.client.bitmaps()["b"]["busy"], 10, "both to have left")
        self.cmd("remove", "b")
        with self.assertRaises(nbd.Error):
            self.share(server, "b")

    def test_read_only(self):
        """A read-only server also exports stored bitmaps, but not inconsistent ones."""
        image = self.image("b", "broken")
        run("qemu-io", "-f", "qcow2", "-c", "write 3M 100k", image)
        with open(image, "rb") as file:
            raw = file.read()
        at = raw.index(bytes.fromhex("23852875")) + 24
        directory = int.from_bytes(raw[at:at + 8], "big")
        patch(image, raw.index(b"broken", directory) - 24 + 15, b"\x03")
        before = sha256(image)
        server = self.serve(image, nbdkit=["-r"])
        self.assertEqual(list(server.exports()), ["", "bitmap/b"])
        self.assertEqual(granules(dirty_ranges(self.share(server, "b"))), granules([(3 * MIB, 100 * KIB)]))
        with self.assertRaises(nbd.Error):
            self.share(server, "broken")
        self.assertIn("inconsistent", server.errors)
        server.stop()
        self.assertEqual(sha256(image), before)

    def test_while_others_write(self):
        """Writes that were answered before a query of the block status are dirty in it; queries don't delay writers."""
        server = self.start(self.image())
        self.cmd("add", "b", granularity=4096, persistent=True)
        handle, stop, failures, done = self.share(server, "b"), threading.Event(), [], [[] for _ in range(4)]

        def write(number, disk):
            rng = random.Random(number)
            try:
                while not stop.is_set():
                    off = rng.randrange(SIZE // 4096) * 4096
                    disk.pwrite(b"w" * 4096, off)
                    done[number].append(off // 4096)
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)

        threads = [threading.Thread(target=write, args=(n, server.connect())) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(50):
                answered = set().union(*map(list, done))
                self.assertLessEqual(answered, granules(dirty_ranges(handle), 4096))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertEqual(failures, [])
        self.assertEqual(granules(dirty_ranges(handle), 4096), set().union(*done))


if __name__ == "__main__":
    unittest.main()
