# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps that are stored in an image: right after every stop, marked in use after a kill, and the same for
QEMU (B-02 to B-07)."""

import json
import os
import pathlib
import random
import struct
import subprocess
import unittest

import nbd

from harness import *
from qmp import Qmp, QmpError

SIZE = 8 * MIB
GRANULE = 64 * KIB
ROUNDS = int(os.environ.get("QIMG_ROUNDS", "0"))


def granules(pieces, granularity=GRANULE):
    """The numbers of the granules that these pieces, (offset, length), touch."""
    return {n for off, length in pieces for n in range(off // granularity, (off + length - 1) // granularity + 1)}


class KeptBitmaps(Case):
    """Shared by the tests of stored bitmaps."""

    def image(self, *names, options="", size=SIZE):
        image = create(self.path("disk"), "qcow2", size, options)
        fill(image, "qcow2", [(0, b"x" * MIB)])
        for name in names:
            run("qemu-img", "bitmap", "--add", image, name)
        return image

    def stored(self, image):
        """{name: flags} of the image's bitmaps, as qemu-img prints them."""
        done = run("qemu-img", "info", "-U", "--output=json", image)
        bitmaps = json.loads(done.stdout)["format-specific"]["data"].get("bitmaps", [])
        return {b["name"]: b["flags"] for b in bitmaps}

    def dirty_for_qemu(self, image, name, granularity=GRANULE):
        """The dirty granules of a bitmap, as qemu-nbd exports them."""
        socket, pidfile = self.path("qemu-nbd.sock"), pathlib.Path(self.path("qemu-nbd.pid"))
        pidfile.unlink(missing_ok=True)
        server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-B", name, "-k", socket,
                                   f"--pid-file={pidfile}", image], stderr=subprocess.PIPE)
        try:
            wait_until(lambda: pidfile.exists() or server.poll() is not None, 10, "qemu-nbd")
            self.assertIsNone(server.poll(), server.stderr.read() if server.poll() is not None else "")
            handle = nbd.NBD()
            handle.add_meta_context(f"qemu:dirty-bitmap:{name}")
            handle.connect_unix(socket)
            dirty = set()

            def note(_context, off, entries, _error):
                for length, flags in zip(entries[::2], entries[1::2]):
                    if flags & 1:
                        dirty.update(granules([(off, length)], granularity))
                    off += length

            size, off = handle.get_size(), 0
            while off < size:
                handle.block_status(min(size - off, 4 * MIB), off, note)
                off += min(size - off, 4 * MIB)
            handle.shutdown()
            return dirty
        finally:
            server.kill()
            server.communicate()

    def start(self, image, *keys, **kwargs):
        self.control = self.path("control")
        server = self.serve(image, f"control={self.control}", "writable=now", *keys, **kwargs)
        self.client = Qmp(self.control)
        self.addCleanup(self.client.close)
        return server

    def cmd(self, verb, name, **more):
        return self.client.cmd(f"block-dirty-bitmap-{verb}", node="drive0", name=name, **more)

    def fails(self, words, verb, name, **more):
        with self.assertRaisesRegex(QmpError, words):
            self.cmd(verb, name, **more)


@unittest.skipIf(STANDIN, "needs the plugin")
class StoredBitmaps(KeptBitmaps):
    def test_a_connection_that_changes_nothing(self):
        """A writable connection that only reads, flushes or trims without effect doesn't change the image."""
        for keys in ((), ("writable=now",), ("cache=none",), ("lazy-refcounts=on",), ("discard=ignore",)):
            with self.part(keys=keys):
                image = self.image("monday", "tuesday")
                before = sha256(image)
                server = self.serve(image, *keys)
                handle = server.connect()
                self.assertEqual(handle.pread(512, 0), b"x" * 512)
                handle.flush()
                handle.cache(MIB, 0)
                if "discard=ignore" in keys:
                    handle.trim(MIB, 0)
                server.stop()
                self.assertEqual(sha256(image), before)

    def test_the_first_change_is_announced(self):
        """Before the first change is answered, recording bitmaps are marked in use in the file; after a kill they stay
        so and can only be removed."""
        changes = {
            "write": lambda h: h.pwrite(b"new", 0),
            "allocating write": lambda h: h.pwrite(b"new", MIB),
            "zero": lambda h: h.zero(4096, 0),
            "zero of nothing": lambda h: h.zero(65536, MIB + 65536),
            "trim": lambda h: h.trim(65536, 0),
        }
        for what, change in changes.items():
            with self.part(change=what):
                image = self.image("monday")
                run("qemu-img", "bitmap", "--add", "--disable", image, "frozen")
                server = self.serve(image)
                handle = server.connect()
                self.assertEqual(self.stored(image), {"monday": ["auto"], "frozen": []})
                change(handle)
                self.assertEqual(self.stored(image), {"monday": ["in-use", "auto"], "frozen": []})
                server.kill()
                check(image, "qcow2", allow_leaks=True)
                server = self.start(image)
                self.assertEqual(self.client.bitmaps()["monday"].get("inconsistent"), True)
                self.assertNotIn("inconsistent", self.client.bitmaps()["frozen"])
                for verb in ("clear", "enable", "disable"):
                    self.fails("inconsistent", verb, "monday")
                self.fails("already", "add", "monday")
                self.cmd("remove", "monday")
                self.assertEqual(self.stored(image), {"frozen": []})
                server.stop()
                check(image, "qcow2")

    def test_readers_change_nothing(self):
        image = self.image("monday")
        before = sha256(image)
        self.control = self.path("control")
        server = self.serve(image, f"control={self.control}", nbdkit=["-r"])
        self.client = Qmp(self.control)
        self.addCleanup(self.client.close)
        server.connect()
        self.assertEqual(self.client.bitmaps()["monday"]["persistent"], True)
        for verb in ("clear", "enable", "disable", "remove"):
            self.fails("readonly and cannot be modified", verb, "monday")
        self.fails("read-only", "add", "new", persistent=True)
        self.cmd("add", "memory")
        self.cmd("clear", "memory")
        server.stop()
        self.assertEqual(sha256(image), before)
        self.assertNotIn("monday", server.errors)

    def test_every_verb(self):
        """QEMU sees the effect of every bitmap command after the server's end."""
        image = self.image("old", "gone")
        server = self.start(image)
        disk = server.connect()
        self.cmd("add", "fine", persistent=True, granularity=4096)
        self.cmd("add", "off", persistent=True, disabled=True)
        self.cmd("add", "memory")
        self.assertIn("in-use", self.stored(image)["fine"])
        disk.pwrite(b"w" * 100, 3 * MIB)
        self.cmd("remove", "gone")
        self.assertNotIn("gone", self.stored(image))
        self.client.cmd("block-dirty-bitmap-merge", node="drive0", target="off", bitmaps=["fine"])
        self.cmd("clear", "old")
        self.cmd("disable", "fine")
        disk.pwrite(b"w" * 100, 5 * MIB)
        server.stop()
        check(image, "qcow2")
        self.assertEqual(self.stored(image), {"old": ["auto"], "fine": [], "off": []})
        self.assertEqual(self.dirty_for_qemu(image, "old"), granules([(5 * MIB, 1)]))
        self.assertEqual(self.dirty_for_qemu(image, "fine", 4096), granules([(3 * MIB, 1)], 4096))
        self.assertEqual(self.dirty_for_qemu(image, "off"), granules([(3 * MIB, 1)]))

    def test_from_qemu_and_back(self):
        """A bitmap that QEMU stored is continued by the server, and then by QEMU again."""
        image = self.image("b")
        run("qemu-io", "-f", "qcow2", "-c", "write 1M 64k", "-c", "write 7M 1", image)
        server = self.start(image)
        self.assertEqual(self.client.bitmaps()["b"]["count"], 2 * GRANULE)
        server.connect().pwrite(b"w", 4 * MIB)
        server.stop()
        run("qemu-io", "-f", "qcow2", "-c", "write 6M 1", image)
        self.assertEqual(self.dirty_for_qemu(image, "b"),
                         granules([(MIB, 1), (4 * MIB, 1), (6 * MIB, 1), (7 * MIB, 1)]))
        run("qemu-img", "bitmap", "--clear", image, "b")
        server = self.start(image)
        self.assertEqual(self.client.bitmaps()["b"]["count"], 0)
        server.stop()
        check(image, "qcow2")

    def test_a_size_of_too_many_bits(self):
        """A disk can't grow so large that its bitmaps exceed the limits: QEMU couldn't open the image any more."""
        image = create(self.path("disk"), "qcow2", 4 * GIB << 10)
        run("qemu-img", "snapshot", "-c", "large", image)
        run(QIMG, "resize", "--shrink", image, "512G")
        run("qemu-img", "bitmap", "--add", "-g", "512", image, "fine")
        run("qemu-img", "bitmap", "--add", "-g", "512", image, "fine too")
        run("qemu-img", "bitmap", "--add", image, "coarse")
        before = sha256(image)
        for command in (["resize", image, "3T"], ["snapshot", "-a", "large", image]):
            with self.subTest(command=command):
                done = run(QIMG, *command, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn("its dirty bitmaps would take", done.stderr)
                self.assertEqual(sha256(image), before)
        run(QIMG, "resize", image, "2T")
        self.assertEqual(self.stored(image), {"fine": ["auto"], "fine too": ["auto"], "coarse": ["auto"]})
        for name in ("fine", "fine too"):
            run(QIMG, "bitmap", "--remove", image, name)
        run(QIMG, "resize", image, "3T")

    def test_a_snapshot_is_applied(self):
        """After `snapshot -a` the disk has changed everywhere: recording bitmaps are all dirty, disabled ones
        unchanged, and both have the new size."""
        for size in (SIZE, 2 * SIZE, SIZE // 2):
            with self.part(size=size):
                image = self.image("records", "rests")
                run("qemu-img", "bitmap", "--disable", image, "rests")
                run(QIMG, "snapshot", "-c", "first", image)
                run(QIMG, "resize", "--shrink", image, size)
                run("qemu-io", "-c", "write -P 9 0 64k", image)
                run(QIMG, "bitmap", "--clear", image, "records")
                run(QIMG, "snapshot", "-a", "first", image)
                check(image, "qcow2")
                self.assertEqual(self.stored(image), {"records": ["auto"], "rests": []})
                self.assertEqual(self.dirty_for_qemu(image, "records"), granules([(0, SIZE)]))
                self.assertEqual(self.dirty_for_qemu(image, "rests"), set())

    def test_stored_when_idle(self):
        """Bitmaps are stored after a time without changes: then a kill loses nothing."""
        image = self.image("b")
        server = self.start(image, "need-check-delay=0.05")
        disk = server.connect()
        for number in range(3):
            disk.pwrite(b"w", number * MIB)
            self.assertIn("in-use", self.stored(image)["b"])
            wait_until(lambda: self.stored(image)["b"] == ["auto"], 20, "the bitmap to be stored")
        server.kill()
        check(image, "qcow2", allow_leaks=True)
        self.assertEqual(self.dirty_for_qemu(image, "b"), {0, 16, 32})

    def random_round(self, server, model, rng, names):
        disk = server.connect()
        for _ in range(rng.randrange(1, 30)):
            off = rng.randrange(SIZE)
            length = min(SIZE - off, rng.choice((1, 512, 5000, 70000, 300000)))
            kind = rng.randrange(4)
            if kind == 0:
                disk.zero(length, off)
            elif kind == 1:
                disk.trim(length, off)
            else:
                disk.pwrite(b"w" * length if kind == 2 else bytes(length), off)
            for name, granularity in names.items():
                model[name] |= granules([(off, length)], granularity)

    def test_stops_and_kills(self):
        """After each of 50 clean ends a bitmap has exactly the written granules; after a kill it is in use."""
        rng = random.Random(7)
        names = {"fine": 4096, "usual": GRANULE, "coarse": MIB}
        image = create(self.path("disk"), "qcow2", SIZE)
        model = {name: set() for name in names}
        present = set()
        for number in range(ROUNDS or 50):
            keys = rng.choice(((), ("lazy-refcounts=on",), ("cache=none",), ("detect-zeroes=unmap",), ("cache=volatile",)))
            server = self.start(image, *keys)
            for name, granularity in names.items():
                if name not in present:
                    self.cmd("add", name, granularity=granularity, persistent=True)
                    model[name] = set()
            present = set(names)
            self.random_round(server, model, rng, names)
            if rng.randrange(4) == 0:
                server.kill()
                if "cache=volatile" not in keys and "lazy-refcounts=on" not in keys:
                    check(image, "qcow2", allow_leaks=True)
                repair(image, "qcow2")
                for name, flags in self.stored(image).items():
                    self.assertIn("in-use", flags)
                server = self.start(image)
                for name in list(self.client.bitmaps()):
                    self.assertTrue(self.client.bitmaps()[name]["inconsistent"])
                    self.cmd("remove", name)
                present = set()
            else:
                known = self.client.bitmaps()
                for name, granularity in names.items():
                    self.assertEqual(known[name]["count"], len(model[name]) * granularity, (number, name))
            server.stop()
            check(image, "qcow2")
            name = rng.choice(list(names))
            if name in present:
                self.assertEqual(self.dirty_for_qemu(image, name, names[name]), model[name], (number, name))

    def test_limits(self):
        image = self.image()
        server = self.start(image)
        self.cmd("add", "n" * 1023, persistent=True)
        self.fails("1023", "add", "n" * 1024, persistent=True)
        self.cmd("add", "coarse", persistent=True, granularity=1 << 31)
        self.fails("power of two", "add", "x", persistent=True, granularity=1 << 32)
        server.connect().pwrite(b"w", 0)
        server.stop()
        check(image, "qcow2")
        self.assertEqual(set(self.stored(image)), {"n" * 1023, "coarse"})
        huge = create(self.path("huge"), "qcow2", 1 << 45)
        server = self.start(huge)
        self.fails("Too much space.*larger granularity", "add", "x", persistent=True, granularity=512)
        self.cmd("add", "x", persistent=True, granularity=1 << 20)
        server.stop()
        check(huge, "qcow2")

    def test_where_none_can_be(self):
        for name, fmt, options, words in (("v2", "qcow2", "compat=0.10", "qcow2 v2"), ("qed", "qed", "", "'qed' does not"),
                                          ("raw", "raw", "", "'raw' does not")):
            with self.part(name=name):
                server = self.start(create(self.path(name), fmt, MIB, options),
                                    *(["format=raw"] if fmt == "raw" else []))
                self.fails(words, "add", "x", persistent=True)
                self.cmd("add", "x")
                server.stop()

    def test_room_in_the_header(self):
        """In an overlay made by QEMU the backing name follows the header extensions: it moves to make room."""
        base = create(self.path("base"), "qcow2", MIB)
        image = create(self.path("disk"), "qcow2", MIB, backing=base, backing_fmt="qcow2")
        server = self.start(image)
        self.cmd("add", "x", persistent=True)
        server.connect().pwrite(b"w", 0)
        server.stop()
        self.assertEqual(info(image, "qcow2")["backing-filename"], base)
        check(image, "qcow2")
        self.assertEqual(self.dirty_for_qemu(image, "x"), {0})
        server = self.start(image)
        self.cmd("remove", "x")
        server.stop()
        self.assertNotIn("itmap", run("qemu-io", "-f", "qcow2", "-c", "read 0 1", image).stderr)
        check(image, "qcow2")

    def test_repair_drops_the_extension(self):
        """A repair that drops the bitmaps also removes the header extension, or QEMU would warn each time."""
        image = self.image("monday0", "monday1")
        with open(image, "rb") as file:
            at = file.read(1024).index(bytes.fromhex("23852875"))
        patch(image, at + 24, b"\x7f" * 8)
        done = run(QIMG, "check", "-r", "all", image)
        self.assertIn("the bitmaps are dropped", done.stderr)
        check(image, "qcow2")
        for handles in ("--readwrite", "-r"):
            done = run("qemu-io", *(["-r"] if handles == "-r" else []), "-f", "qcow2", "-c", "read -q 0 4k", image)
            self.assertNotIn("itmap", done.stdout + done.stderr)


@unittest.skipIf(STANDIN, "needs the plugin")
class DamagedBitmaps(KeptBitmaps):
    """Damaged bitmaps are reported, and the disk is served all the same, even for writing."""

    def place(self, image):
        """The offsets of the bitmaps extension, the directory, and the first bitmap's table."""
        with open(image, "rb") as file:
            raw = file.read(1024)
            at = raw.index(bytes.fromhex("23852875"))
            directory = int.from_bytes(raw[at + 24:at + 32], "big")
            file.seek(directory)
            return at, directory, int.from_bytes(file.read(8), "big")

    def damaged(self, image, off, value, says):
        patch(image, off, value)
        server = self.serve(image, nbdkit=["-r"])
        self.assertRegex(server.errors, f"disk: .*{says}.*can't be used")
        self.assertEqual(server.connect().pread(4, 0), b"xxxx")
        server.stop()
        server = self.start(image)
        self.assertRegex(server.errors, f"disk: .*{says}.*can't be used")
        disk = server.connect()
        disk.pwrite(b"yyyy", 0)
        self.assertEqual(header(image, 88, 8, "big"), 0, "nobody may take them for right")
        self.cmd("add", "new", persistent=True)
        disk.pwrite(b"y", MIB)
        server.stop()
        self.assertEqual(self.stored(image), {"new": ["auto"]})
        self.assertEqual(self.dirty_for_qemu(image, "new"), {16})
        repair(image, "qcow2")
        check(image, "qcow2")

    def test_a_directory_that_can_not_be(self):
        with_bits = struct.pack(">Q", 1 << 40)
        for where, off, value, says in (
                ("extension", 8, b"\xff" * 4, "extension 0x23852875"),
                ("extension", 24, b"\x7f" * 8, "extension 0x23852875"),
                ("directory", 17, b"\x08", "entry 0: its granularity"),
                ("directory", 18, b"\xff\xff", "entry 0: reaches past"),
                ("directory", 24 + 2, b"\0", "entry 0: the name.*NUL byte at 2"),
                ("directory", 12, b"\x80", "entry 0: it has flags"),
                ("directory", 16, b"\x02", "entry 0: its type"),
                ("directory", 8, b"\0\0\0\0", "entry 0: its table is of no size"),
                ("directory", 8, b"\x7f\0\0\0", "entry 0: its table is of no size"),
                ("directory", 0, b"\x7f" * 8, "'monday0': its table at offset"),
                ("directory", 0, struct.pack(">Q", 65536), "refcount of 1, or holds other metadata"),
                ("directory", 32 + 24, b"monday0", "two bitmaps have the name"),
                ("table", 0, with_bits, "'monday0': its table's entry"),
                ("table", 0, b"\x80" + bytes(7), "'monday0': its table's entry"),
                ("table", 0, struct.pack(">Q", 513), "'monday0': its table's entry"),
                ("table", 0, struct.pack(">Q", 65536), "holds other metadata")):
            with self.part(says=says, where=where):
                image = self.image("monday0", "monday1")
                place = dict(zip(("extension", "directory", "table"), self.place(image)))[where]
                if "holds other" in says:  # only a writable connection checks this
                    patch(image, place + off, value)
                    server = self.start(image)
                    self.assertRegex(server.errors, f"disk: .*{says}.*can't be used")
                    server.connect().pwrite(b"y", MIB)
                    server.stop()
                    self.assertEqual(self.stored(image), {})
                else:
                    self.damaged(image, place + off, value, says)

    def test_extra_data(self):
        """Unknown extra data of a bitmap is kept; the bitmap is used if its flags allow it."""
        for flags, usable in ((2 | 4, True), (2, False)):
            with self.part(flags=flags):
                image = self.image("monday")
                at, directory, _ = self.place(image)
                entry = bytearray(open(image, "rb").read()[directory:directory + 24])
                struct.pack_into(">I", entry, 12, flags)
                struct.pack_into(">I", entry, 20, 5)
                patch(image, directory, bytes(entry) + b"extra" + b"monday" + bytes(5))
                patch(image, at + 16, struct.pack(">Q", 40))
                run(QIMG, "check", image)
                server = self.start(image)
                self.assertEqual("inconsistent" in self.client.bitmaps()["monday"], not usable)
                server.connect().pwrite(b"y", MIB)
                server.stop()
                _, directory, _ = self.place(image)
                raw = open(image, "rb").read()[directory:directory + 40]
                self.assertEqual(raw[20:35], struct.pack(">I", 5) + b"extramonday")
                self.assertEqual(raw[15], flags if usable else flags | 1)
                run(QIMG, "check", image)


if __name__ == "__main__":
    unittest.main()
