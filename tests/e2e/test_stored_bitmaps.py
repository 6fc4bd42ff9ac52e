# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps that are stored in an image: whoever serves it without keeping them up says so, and
takes them away no sooner than the disk changes."""

import json
import unittest

from harness import *

SIZE = 2 * MIB


@unittest.skipIf(STANDIN, "needs the plugin")
class StoredBitmaps(Case):
    def image(self, count=2):
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, b"x" * MIB)])
        for number in range(count):
            run("qemu-img", "bitmap", "--add", image, f"monday{number}")
        return image

    def bitmaps(self, image):
        done = run("qemu-img", "info", "--output=json", image)
        return [b["name"] for b in json.loads(done.stdout)["format-specific"]["data"].get("bitmaps", [])]

    def test_a_connection_that_changes_nothing(self):
        """Reads, flushes, and what was refused leave the bitmaps and the check's result alone."""
        for keys in ((), ("writable=now",), ("cache=none",), ("lazy-refcounts=on",), ("discard=ignore",)):
            with self.part(keys=keys):
                image = self.image()
                server = self.serve(image, *keys)
                handle = server.connect()
                self.assertEqual(handle.pread(512, 0), b"x" * 512)
                handle.flush()
                handle.cache(MIB, 0)
                if "discard=ignore" in keys:
                    handle.trim(MIB, 0)
                server.stop()
                self.assertEqual(self.bitmaps(image), ["monday0", "monday1"])
                check(image, "qcow2")

    def test_the_first_change_is_announced(self):
        """After any change the bit isn't set any more: nobody takes the bitmaps for right."""
        changes = {
            "write": lambda h: h.pwrite(b"new", 0),
            "allocating write": lambda h: h.pwrite(b"new", MIB),
            "zero": lambda h: h.zero(4096, 0),
            "zero of nothing": lambda h: h.zero(65536, MIB + 65536),
            "trim": lambda h: h.trim(65536, 0),
        }
        for what, change in changes.items():
            with self.part(change=what):
                image = self.image()
                server = self.serve(image)
                handle = server.connect()
                self.assertEqual(header(image, 88, 8, "big"), 1)
                change(handle)
                self.assertEqual(header(image, 88, 8, "big"), 0)
                server.kill()
                self.assertEqual(self.bitmaps(image), [])

    def test_it_is_said(self):
        """Who opens the image for writing is told which bitmaps that will cost; once."""
        server = self.serve(self.image(), "writable=now")
        self.assertRegex(server.errors, "disk: .*bitmaps.*first change.*invalid: monday0, monday1")
        server.connect()
        server.connect()
        server.stop()
        self.assertEqual(server.errors.count("monday0"), 1)

    def test_many_names_are_counted(self):
        server = self.serve(self.image(10), "writable=now")
        self.assertRegex(server.errors, "monday7 and 2 more")
        server.stop()

    def test_readers_are_told_nothing(self):
        server = self.serve(self.image(), nbdkit=["-r"])
        server.connect()
        server.stop()
        self.assertNotIn("monday", server.errors)

    def test_repair_drops_the_extension(self):
        """Of bitmaps that are dropped nothing is left, or QEMU would warn each time."""
        image = self.image()
        with open(image, "rb") as file:
            at = file.read(1024).index(bytes.fromhex("23852875"))
        patch(image, at + 24, b"\x7f" * 8)
        done = run(QIMG, "check", "-r", "all", image)
        self.assertIn("the bitmaps are dropped", done.stderr)
        check(image, "qcow2")
        for handles in ("--readwrite", "-r"):
            done = run("qemu-io", *(["-r"] if handles == "-r" else []), "-f", "qcow2", "-c", "read -q 0 4k", image)
            self.assertNotIn("itmap", done.stdout + done.stderr)

    def test_a_directory_that_can_not_be(self):
        """Bitmaps are an addition: a damaged directory is said, and the disk served."""
        image = self.image()
        with open(image, "rb") as file:
            raw = file.read(1024)
        at = raw.index(bytes.fromhex("23852875"))
        directory = int.from_bytes(raw[at + 24:at + 32], "big")
        for off, value, says in ((at + 8, b"\xff" * 4, "extension 0x23852875"),
                                 (at + 24, b"\x7f" * 8, "extension 0x23852875"),
                                 (directory + 17, b"\x08", "entry 0: its granularity"),
                                 (directory + 18, b"\xff\xff", "entry 0: reaches past"),
                                 (directory + 24 + 2, b"\0", "entry 0: the name.*NUL byte at 2")):
            with self.subTest(says=says):
                with open(image, "rb") as file:
                    file.seek(off)
                    before = file.read(len(value))
                patch(image, off, value)
                server = self.serve(image, nbdkit=["-r"])
                self.assertRegex(server.errors, f"disk: .*{says}.*can't be used")
                self.assertEqual(server.connect().pread(4, 0), b"xxxx")
                server.stop()
                patch(image, off, before)


if __name__ == "__main__":
    unittest.main()
