"""The names and other texts that stand inside images: hostile, each of them.

What an image says is what is looked at: a text that goes on after a NUL is refused, by the field's
name, by the server and by every command.
"""

import os
import pathlib
import struct
import unittest

from harness import *

SIZE = 2 * MIB
BACKING_FORMAT, FEATURE_NAMES = 0xe2792aca, 0x6803f857


def add_extension(image, kind, payload):
    """A header extension in front of the others."""
    at = header(image, 100, 4, "big")
    with open(image, "rb") as file:
        file.seek(at)
        rest = file.read(2048)
    padded = payload + bytes(-len(payload) % 8)
    patch(image, at, struct.pack(">II", kind, len(payload)) + padded + rest)


@unittest.skipIf(STANDIN, "needs the plugin")
class HiddenText(Case):
    """A NUL inside of a text hides what follows."""

    def refused_by_all(self, image, words, commands=("info", "map", "check")):
        self.refused(image, "references=any", words=[words])
        for command in commands:
            done = run(QIMG, command, image, check=False)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertRegex(done.stderr, words)

    def test_backing_format(self):
        """An image that smuggles in a format: what it recorded isn't "raw"."""
        secret = self.path("secret")
        pathlib.Path(secret).write_bytes(b"secret" * 1000)
        for payload in (b"raw\0", b"raw\0qcow2", b"\0raw"):
            with self.subTest(payload=payload):
                image = create(self.path("disk"), "qcow2", SIZE)
                add_extension(image, BACKING_FORMAT, payload)
                patch(image, 8, struct.pack(">QI", 4096, len(secret)))
                patch(image, 4096, os.fsencode(secret))
                self.refused_by_all(image, f"0xe2792aca: the backing format.*NUL byte at {payload.index(0)}")

    def test_backing_name(self):
        for fmt, field, order in (("qcow2", (8, 8), "big"), ("qed", (56, 4), "little")):
            with self.subTest(fmt=fmt):
                base = create(self.path("base"), fmt, SIZE)
                image = create(self.path("disk"), fmt, SIZE, backing=base, backing_fmt=fmt)
                patch(image, header(image, *field, order) + 1, b"\0")
                looking = ("info", "map") if fmt == "qed" else ("info", "map", "check")
                self.refused_by_all(image, "backing_file.*NUL byte at 1, after '/'", looking)

    def test_feature_name(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        add_extension(image, FEATURE_NAMES, bytes([0, 50]) + b"a\0b".ljust(46, b"\0"))
        self.refused_by_all(image, "0x6803f857: the feature name 'a' goes on after a NUL")

    def test_snapshots(self):
        """The id and the name of an internal snapshot."""
        for what, place in (("id", 0), ("name", 1)):
            with self.subTest(what=what):
                image = create(self.path("disk"), "qcow2", SIZE)
                run("qemu-img", "snapshot", "-c", "monday", image)
                table = header(image, 64, 8, "big")
                patch(image, table + 40 + header(image, table + 36, 4, "big") + place, b"\0")
                self.refused_by_all(image, "snapshot table entry 0: .*(id|name)")

    def test_control_characters_are_not_printed(self):
        """A name can't forge lines of a log or speak to a terminal."""
        image = create(self.path("disk"), "qcow2", SIZE)
        run("qemu-img", "rebase", "-u", "-F", "raw", "-b", "/no\nwhere\x1b[31m", image)
        message = self.refused(image, words=["/no\\?where\\?"])
        self.assertNotIn("\x1b", message)


if __name__ == "__main__":
    unittest.main()
