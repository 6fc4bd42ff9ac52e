# SPDX-License-Identifier: BSD-3-Clause
"""O-02: `qimg compare`, compared with `qemu-img compare`."""

from harness import MIB, QIMG, run
from side_by_side import SideBySide, pattern


class Compare(SideBySide):
    def test_same_disks(self):
        self.rows([(f"compare {one} {two}", "") for one, two in (
            ("a.raw", "a.qcow2"), ("a.qed", "a.raw"), ("comp.qcow2", "ext.qcow2"), ("small.qcow2", "v2.qcow2"),
            ("lazy.qcow2", "a.qed"), ("a.raw", "a.raw"), ("top.qcow2", "top.qcow2"), ("odd.raw", "odd.raw"))])

    def test_other_disks(self):
        self.rows([(f"compare {one} {two}", "") for one, two in (
            ("a.raw", "b.raw"), ("a.qcow2", "b.raw"), ("over.qcow2", "a.raw"), ("top.qcow2", "over.qcow2"),
            ("over.qed", "over.qcow2"), ("long.qcow2", "a.raw"), ("a.raw", "long.qcow2"), ("odd.raw", "a.raw"),
            ("data.qcow2", "a.raw"))])

    def test_sizes(self):
        self.rows([(f"compare {words}", "", "qemu-img create -q -f raw c.raw 6M", "qemu-img convert -n -f raw -O raw a.raw c.raw",
                    "qemu-img create -q -f qcow2 -b a.raw -F raw d.qcow2 7M")
                   for words in ("a.raw c.raw", "c.raw a.raw", "-s a.raw c.raw", "c.raw d.qcow2", "d.qcow2 a.qed")])

    def test_strict(self):
        self.rows([(f"compare -s {words}", "") for words in (
            "a.raw a.raw", "a.qcow2 lazy.qcow2", "a.qcow2 small.qcow2", "a.qcow2 comp.qcow2", "top.qcow2 top.qcow2",
            "over.qcow2 comp.qcow2", "a.raw a.qcow2")])

    def test_words(self):
        self.rows([(f"compare {words}", "") for words in (
            "-q a.raw b.raw", "-p a.raw b.raw", "-p -q a.raw a.qed", "-f raw -F qcow2 a.raw a.qcow2", "-U a.raw a.qed", "-T none a.raw a.qed",
            "--image-opts driver=raw,file.filename=a.raw driver=qcow2,file.filename=a.qcow2",
            "a.raw", "", "a.raw b.raw c.raw", "a.raw none", "none a.raw", "-f foo a.raw b.raw", "-F foo a.raw b.raw", "-T foo a.raw b.raw",
            "-f qcow2 a.raw b.raw", "--bogus a.raw b.raw", "-q none a.raw")])

    def test_the_lowest_place_of_many(self):
        """The first difference is reported, whichever thread finds one first."""
        data = bytearray(pattern(1, MIB) * 64)
        for name, places in (("a", ()), ("b", range(5 * MIB + 777, 64 * MIB, MIB))):
            for at in places:
                data[at] ^= 255
            with open(self.path(name), "wb") as file:
                file.write(data)
        for _ in range(5):
            done = run(QIMG, "compare", "a", "b", cwd=self.dir, check=False)
            self.assertEqual((done.returncode, done.stdout), (1, f"Content mismatch at offset {5 * MIB + 512}!\n"))
