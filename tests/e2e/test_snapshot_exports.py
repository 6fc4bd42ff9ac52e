# SPDX-License-Identifier: BSD-3-Clause
"""Internal snapshots are served as exports beside the disk.

I-01, I-02, I-10.
"""

import threading

import nbd

from crowd import work
from featured import Featured
from harness import KIB, MIB, SECTOR, Case, Model, content, create, fill, header, patch, run

SIZE = 4 * MIB


class Names(Case):
    def image(self, *snapshots):
        image = create(self.path("disk"), "qcow2", SIZE)
        for number, name in enumerate(snapshots):
            fill(image, "qcow2", [(0, bytes([number + 1]) * SECTOR)])
            run("qemu-img", "snapshot", "-c", name, image)
        return image

    def first_byte(self, server, export):
        return server.connect(export).pread(1, 0)[0]

    def test_by_name_and_by_id(self):
        server = self.serve(self.image("first", "3", "twice", "twice"))
        self.assertEqual(list(server.exports()), ["", "snapshot/first", "snapshot/3", "snapshot/4"])
        self.assertRegex(server.exports()["snapshot/first"], r"^snapshot of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, 4194304 bytes$")
        for export, byte in (("", 4), ("snapshot/first", 1), ("snapshot/1", 1), ("snapshot/3", 2), ("snapshot/4", 4)):
            self.assertEqual(self.first_byte(server, export), byte, export)
        handle = server.connect("snapshot/first")
        self.assertTrue(handle.is_read_only())
        with self.assertRaises(nbd.Error):
            handle.pwrite(bytes(SECTOR), 0)

    def test_names_that_nothing_has(self):
        image = self.image("first")
        server = self.serve(image)
        for export in ("snapshot/second", "snapshot/", "snapshot", "/snapshot/first", "a/snapshot/first", "snapshot//first", "//",
                       "bitmap/first", "backup/first", "snapshot/" + 4000 * "n"):
            with self.assertRaises(nbd.Error, msg=export):
                server.connect(export)
        for words in "there is no snapshot 'second'", "Dirty bitmap 'first' not found", "backup 'first': there is no such job":
            self.assertIn(f"error: {image}: {words}", server.errors)
        self.assertEqual(self.first_byte(server, "snapshot/first"), 1)

    def test_a_name_with_slashes(self):
        server = self.serve(self.image("a/snapshot/b", "snapshot/b"))
        self.assertEqual(self.first_byte(server, "snapshot/a/snapshot/b"), 1)
        self.assertEqual(self.first_byte(server, "snapshot/snapshot/b"), 2)

    def test_formats_without_snapshots(self):
        server = self.serve(create(self.path("disk.qed"), "qed", SIZE))
        self.assertEqual(list(server.exports()), [""])
        with self.assertRaises(nbd.Error):
            server.connect("snapshot/first")

    def test_as_the_default(self):
        image = self.image("first", "second")
        server = self.serve(image, "snapshot=first", "writable=now")
        self.assertEqual(self.first_byte(server, ""), 1)
        self.assertTrue(server.connect().is_read_only())
        self.assertEqual(self.first_byte(server, "snapshot/second"), 2)
        server.stop()
        self.refused(image, "snapshot=third", words=("third",))

    def test_vm_state_is_told_and_not_shown(self):
        image = self.image("first")
        table = header(image, 64, 8, "big")
        patch(image, table + 40, (5 << 30).to_bytes(8, "big"))  # in the extra data
        server = self.serve(image)
        self.assertIn("5368709120 bytes of VM state", server.exports()["snapshot/first"])
        self.assertEqual(server.connect("snapshot/first").get_size(), SIZE)


class Contents(Case):
    ROWS = (
        {"compression": "zlib", "cluster": 4 * KIB},
        {"compression": "zstd", "refcount_bits": 64},
        {"encryption": "luks-xts", "backing": "qcow2"},
        {"encryption": "aes"},
        {"extended": "on", "backing": "raw"},
        {"backing": "compressed", "lazy": "on", "cluster": 512},
        {"compat": "0.10"},
    )

    def check_row(self, row):
        disk = Featured(self.dir, {**row, "snapshot": True}, self.rng)
        disk.tool_snapshot("second")
        server = self.serve(disk.path, *disk.keys)
        model = Model(disk.data)
        readers = [(Model(data), server.connect(f"snapshot/{name}")) for name, (_, data) in disk.snapshots.items()]
        for snapshot, handle in readers:
            self.assertEqual(handle.get_size(), len(snapshot))
        stop = threading.Event()
        failed = []

        def read():
            try:
                while not stop.is_set():
                    for snapshot, handle in readers:
                        snapshot.compare(handle)
            except (AssertionError, nbd.Error) as error:
                failed.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        work(server, model, self.rng, 30, disk.cluster, threads=4)
        stop.set()
        reader.join()
        self.assertEqual(failed, [])
        for snapshot, handle in readers:
            snapshot.compare(handle)
        model.compare(server.connect())
        server.stop()
        disk.check()
        disk.check_rest()

    def test_of_every_feature(self):
        for row in self.ROWS:
            with self.part(**row):
                self.check_row(row)

    def test_of_another_size(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(SIZE - SECTOR, b"a" * SECTOR)])
        run("qemu-img", "snapshot", "-c", "small", image)
        run("qemu-img", "resize", "-q", image, 4 * SIZE)
        fill(image, "qcow2", [(3 * SIZE, b"b" * SECTOR)])
        server = self.serve(image)
        handle = server.connect("snapshot/small")
        self.assertEqual(handle.get_size(), SIZE)
        self.assertEqual(handle.pread(SECTOR, SIZE - SECTOR), b"a" * SECTOR)
        self.assertEqual(server.connect().get_size(), 4 * SIZE)

    def test_block_status(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(MIB, b"a" * 64 * KIB)])
        run("qemu-img", "snapshot", "-c", "first", image)
        server = self.serve(image)
        server.connect().zero(SIZE, 0)
        runs = []
        server.connect("snapshot/first").block_status(SIZE, 0, lambda context, off, entries, error: runs.extend(entries))
        self.assertEqual(runs[:6], [MIB, 3, 64 * KIB, 0, SIZE - MIB - 64 * KIB, 3])

    def test_r_changes_no_byte(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, b"a" * MIB)])
        run("qemu-img", "snapshot", "-c", "first", image)
        with open(image, "rb") as file:
            before = file.read()
        server = self.serve(image, nbdkit=("-r",))
        self.assertEqual(server.connect("snapshot/first").pread(MIB, 0), b"a" * MIB)
        server.stop()
        with open(image, "rb") as file:
            self.assertEqual(file.read(), before)


class Damaged(Case):
    def test_what_only_a_snapshot_has_stops_no_writes(self):
        """A bad entry of a snapshot fails reads of the snapshot; the disk can still be written."""
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, b"a" * MIB)])
        run("qemu-img", "snapshot", "-c", "first", image)
        fill(image, "qcow2", [(0, b"b" * MIB)])
        table = header(image, 64, 8, "big")
        l2_table = header(image, header(image, table, 8, "big"), 8, "big") & ~(1 << 63)
        patch(image, l2_table, (123 << 40).to_bytes(8, "big"))
        server = self.serve(image)
        with self.assertRaises(nbd.Error):
            server.connect("snapshot/first").pread(SECTOR, 0)
        self.assertIn("snapshot 'first': L2 entry of guest offset 0", server.errors)
        server.connect().pwrite(b"c" * MIB, 2 * MIB)
        self.assertEqual(server.connect("snapshot/first").pread(SECTOR, 64 * KIB), b"a" * SECTOR)
        server.stop()
        self.assertEqual(content(image, "qcow2")[2 * MIB:3 * MIB], b"c" * MIB)

    def test_an_l1_table_too_small(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        run("qemu-img", "snapshot", "-c", "first", image)
        table = header(image, 64, 8, "big")
        patch(image, table + 48, (1 << 40).to_bytes(8, "big"))  # the snapshot's disk size
        server = self.serve(image)
        with self.assertRaises(nbd.Error):
            server.connect("snapshot/first")
        self.assertIn("L1 table has 1 entries", server.errors)
        self.assertEqual(server.connect().pread(1, 0), b"\0")


if __name__ == "__main__":
    import unittest
    unittest.main()
