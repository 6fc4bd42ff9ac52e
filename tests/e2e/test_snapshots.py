# SPDX-License-Identifier: BSD-3-Clause
"""Images with internal snapshots: writes to the active disk don't change them."""

import unittest

from harness import KIB, MIB, Case, check, content, create, run

SIZE = 8 * MIB


class Written(Case):
    def snapshot(self, image, name):
        run("qemu-img", "convert", "-f", "qcow2", "-l", name, "-O", "raw", image, self.path("flat"))
        with open(self.path("flat"), "rb") as file:
            return file.read()

    def test_over_zeroed_clusters_that_keep_their_place(self):
        """Zero clusters that keep their host cluster: a snapshot uses it, too, so it must not be overwritten."""
        image = create(self.path("disk"), "qcow2", SIZE)
        run("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 2M", "-c", "write -q -z 512k 1M", image)
        run("qemu-img", "snapshot", "-c", "first", image)
        before = content(image, "qcow2")
        server = self.serve(image)
        handle = server.connect()
        handle.pwrite(b"new" * 1000, 600 * KIB)
        handle.pwrite(bytes(64 * KIB), MIB)
        handle.zero(64 * KIB, 0)
        expected = bytearray(before)
        expected[600 * KIB:600 * KIB + 3000] = b"new" * 1000
        expected[:64 * KIB] = bytes(64 * KIB)
        server.stop()
        check(image, "qcow2")
        self.assertEqual(content(image, "qcow2"), expected)
        self.assertEqual(self.snapshot(image, "first"), before)


if __name__ == "__main__":
    unittest.main()
