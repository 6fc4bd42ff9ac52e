# SPDX-License-Identifier: BSD-3-Clause
"""A disk's size and the way it is opened change while clients use it.  M-54, V-08"""

import shutil
import threading
import time
import unittest

import nbd

import harness
from harness import KIB, MIB, SEED, check, create, parametrised, run, wait_until
from test_nodes import NodeCase
from test_trace import SYNCS, Traced
from qmp import Qmp
from writers import Writers


@parametrised
class Resize(NodeCase):
    SIZE = 4 * MIB

    cases_formats = {fmt: (fmt,) for fmt in ("qcow2", "qed", "raw")}

    def check_formats(self, fmt):
        """the disk is resized several times while clients write; new connections see the new size"""
        self.make(fmt)
        self.begin()
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b", granularity=64 * KIB)
        writers = Writers(self.server, self.content, SEED)
        try:
            for step in range(1, 6):
                writers.some(30)
                self.client.cmd("block_resize", device="drive0", size=self.SIZE + step * 30 * MIB)
        finally:
            self.content = writers.stop()
        size = self.SIZE + 150 * MIB
        self.assertEqual(self.client.cmd("query-block")[0]["inserted"]["image"]["virtual-size"], size)
        self.assertEqual(self.disk.get_size(), self.SIZE)
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        late = self.server.connect()
        self.assertEqual(late.get_size(), size)
        late.pwrite(b"at the end", size - 10)
        late.pwrite(b"at the beginning", self.SIZE)
        self.content += b"at the beginning" + bytes(150 * MIB - 26) + b"at the end"
        late.flush()
        self.server.stop()
        if fmt != "raw":
            check(self.image, fmt)
        self.expect_content(self.image, fmt)

    def test_what_a_longer_backing_file_has(self):
        """the part of a longer backing file behind the old end doesn't show when the disk grows over it"""
        for fmt in ("qcow2", "qed"):
            with self.subTest(format=fmt):
                base = create(self.path("base.raw"), "raw", 3 * MIB)
                with open(base, "r+b") as file:
                    file.write(b"\xff" * 3 * MIB)
                self.fmt, self.image = fmt, self.path(f"over.{fmt}")
                create(self.image, fmt, MIB + 512, backing=base, backing_fmt="raw")
                self.begin()
                self.client.cmd("block_resize", node_name="drive0", size=4 * MIB)
                self.server.stop()
                self.content = b"\xff" * (MIB + 512) + bytes(3 * MIB - 512)
                self.expect_content(self.image, fmt)
                check(self.image, fmt)

    def test_refused(self):
        self.begin()

        def refused(words, kind="GenericError", **arguments):
            self.fails(kind, self.client, "block_resize", words, **arguments)

        refused("can't shrink", device="drive0", size=MIB)
        refused("no multiple of 512", device="drive0", size=self.SIZE + 1)
        refused("'device' is missing", size=self.SIZE)
        refused("give one", device="drive0", node_name="drive0", size=self.SIZE)
        refused("", "DeviceNotFound", device="nosuch", size=self.SIZE)
        refused("", device="drive0", size=2**62)
        self.mirror(speed=64 * KIB)
        refused("a job uses it", device="drive0", size=2 * self.SIZE)
        self.client.cmd("job-cancel", id="job")
        self.ended("BLOCK_JOB_CANCELLED")
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")

    def test_readers_wait_for_a_moment(self):
        self.begin()
        over, errors, count = threading.Event(), [], [0]

        def read(handle):
            try:
                while not over.is_set():
                    assert bytes(handle.pread(64 * KIB, 160 * KIB)) == self.content[160 * KIB:224 * KIB]
                    count[0] += 1
            except Exception as error:  # pylint: disable=broad-except
                errors.append(error)

        threads = [threading.Thread(target=read, args=(self.server.connect(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for step in range(1, 30):
            self.client.cmd("block_resize", device="drive0", size=self.SIZE + step * 64 * MIB)
        before = count[0]
        wait_until(lambda: count[0] > before + 20, 20, "readers go on")
        over.set()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])


class Reopen(NodeCase):
    def reopen(self, driver="qcow2", **options):
        options = {"driver": driver, "node-name": "drive0", "file": {"driver": "file", "filename": self.image}, **options}
        self.client.cmd("blockdev-reopen", options=[options])

    def inserted(self):
        return self.client.cmd("query-block")[0]["inserted"]

    def test_discard(self):
        self.make("raw")
        self.begin("discard=ignore")
        self.write(0, b"x" * MIB)
        self.disk.trim(MIB, 0)
        self.assertEqual(bytes(self.disk.pread(1, 0)), b"x")
        self.reopen("raw", discard="unmap")
        self.disk.trim(MIB, 0)
        self.assertEqual(bytes(self.disk.pread(MIB, 0)), bytes(MIB))
        self.reopen("raw")
        self.disk.pwrite(b"y" * MIB, 0)
        self.disk.trim(MIB, 0)
        self.assertEqual(bytes(self.disk.pread(1, 0)), b"y")

    def test_detect_zeroes(self):
        self.begin()
        self.assertEqual(self.inserted()["detect_zeroes"], "off")
        self.reopen(**{"detect-zeroes": "unmap", "discard": "unmap"})
        self.assertEqual(self.inserted()["detect_zeroes"], "unmap")
        self.disk.pwrite(bytes(MIB), 0)
        found = []
        self.disk.block_status(MIB, 0, lambda _, _off, entries, _err: found.extend(entries) or 0)
        self.assertEqual(found[:2], [MIB, nbd.STATE_HOLE | nbd.STATE_ZERO])

    def test_under_writers(self):
        """the dirty mark of a volatile session is cleared when the session isn't volatile any more"""
        self.image = create(self.path("lazy.qcow2"), "qcow2", self.SIZE, "lazy_refcounts=on")
        self.fmt, self.content = "qcow2", bytearray(self.SIZE)
        self.begin("cache=volatile", "need-check-delay=0.1")
        writers = Writers(self.server, self.content, SEED)
        try:
            for no_flush in (False, True, False):
                writers.some(40)
                self.reopen(cache={"no-flush": no_flush})
                self.assertEqual(self.inserted()["cache"]["no-flush"], no_flush)
        finally:
            self.content = writers.stop()
        self.disk.pwrite(b"a new cluster" * 9999, 3 * MIB)
        self.content[3 * MIB:3 * MIB + 13 * 9999] = b"a new cluster" * 9999
        wait_until(lambda: not harness.info(self.image, "qcow2")["dirty-flag"], 20, "the mark")
        self.server.stop()
        self.expect_content(self.image, "qcow2")

    def test_refused(self):
        self.begin()

        def refused(words, **options):
            options = {"driver": "qcow2", "node-name": "drive0", "file": {"driver": "file", "filename": self.image},
                       **options}
            self.fails("GenericError", self.client, "blockdev-reopen", words, options=[options])

        refused("that is served", **{"node-name": "nosuch"})
        refused("option 'driver'", driver="raw")
        refused("option 'file'", file={"driver": "file", "filename": "/elsewhere"})
        refused("option 'read-only'", **{"read-only": True})
        refused("O_DIRECT", cache={"direct": True})
        refused("no such mode", cache={"direct": True, "no-flush": True})
        refused("unexpected", filename="x")
        self.fails("GenericError", self.client, "blockdev-reopen", r"Invalid parameter 'options\[0\]', expected: an object", options=[1])
        self.assertEqual(self.client.cmd("blockdev-reopen", options=[]), {})


class NbdServer(NodeCase):
    def test_what_it_is(self):
        """the NBD server is shown as running and with its exports; commands that would change that get an error"""
        self.begin()
        address = {"type": "unix", "data": {"path": "/nowhere"}}
        self.fails("GenericError", self.client, "nbd-server-start", "NBD server already running", addr=address)
        self.assertEqual(self.client.cmd("nbd-server-add", device="drive0", name="", writable=True), {})
        self.fails("GenericError", self.client, "nbd-server-add", "is exported as ''", device="drive0", name="other")
        self.fails("GenericError", self.client, "nbd-server-add", "'nosuch' is not found", device="drive0", name="",
                   bitmap="nosuch")
        self.fails("GenericError", self.client, "nbd-server-add", "node-name='nosuch'", device="nosuch")
        self.fails("GenericError", self.client, "nbd-server-stop", "^NBD server not running.*'quit' ends")


@unittest.skipUnless(shutil.which("strace"), "strace isn't installed")
class Synced(Traced):
    def test_volatile_to_writeback(self):
        """V-08: everything written is synced before the command is answered, and from then on flushes sync"""
        image, control = create(self.path("disk"), "qcow2", 64 * MIB), self.path("control")
        server = self.traced(image, "cache=volatile", f"control={control}", fmt="qcow2", calls=SYNCS)
        disk = server.connect()
        disk.pwrite(b"x" * MIB, 0)
        disk.flush()
        with Qmp(control) as client:
            before = time.time()
            client.cmd("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "drive0", "file": "f"}])
            after = time.time()
            disk.pwrite(b"y", 0)
            disk.flush()
        server.stop()
        self.assertEqual(self.calls("sync", until=before), [])
        self.assertTrue(any(image in call for call in self.calls("sync", since=before, until=after)))
        self.assertTrue(self.calls("sync", since=after))
