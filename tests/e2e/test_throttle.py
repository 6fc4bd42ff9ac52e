# SPDX-License-Identifier: BSD-3-Clause
"""I/O limits of a disk: requests of clients take at least as long as the limits require, and nothing else
is slowed down.  No test here depends on something being fast."""

import fcntl
import os
import signal
import struct
import termios
import time

import nbd

from harness import KIB, MIB, Case, check, create, wait_until
from qmp import Qmp, QmpError

SIZE = 16 * MIB
NONE = dict(bps=0, bps_rd=0, bps_wr=0, iops=0, iops_rd=0, iops_wr=0)


class Throttle(Case):
    def start(self, *keys, image=True):
        self.image = create(self.path("disk"), "qcow2", SIZE) if image else None
        self.server = self.serve(self.image, f"control={self.path('control')}", *keys)
        self.client = Qmp(self.path("control"))
        self.addCleanup(self.client.close)

    def limit(self, device="drive0", **limits):
        # Not by cmd(): it changes underscores to dashes, and these names have underscores.
        self.client.send({"execute": "block_set_io_throttle", "arguments": {"device": device, **NONE, **limits}})
        reply = self.client.reply()
        if "error" in reply:
            raise QmpError(reply["error"])

    def inserted(self, device="drive0"):
        return next(disk["inserted"] for disk in self.client.cmd("query-block") if disk["device"] == device)

    def seconds(self, function):
        begin = time.monotonic()
        function()
        return time.monotonic() - begin

    def at_least(self, seconds, function):
        self.assertGreater(self.seconds(function), seconds)

    def begin(self, handle, count, length=4 * KIB):
        """Starts `count` writes, without waiting for their replies."""
        cookies = [handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(length)), n * length) for n in range(count)]
        def has_read_all():
            handle.poll(10)
            unread = struct.unpack("i", fcntl.ioctl(handle.aio_get_fd(), termios.TIOCOUTQ, bytes(4)))[0]
            return unread == 0 and not handle.aio_get_direction() & nbd.AIO_DIRECTION_WRITE
        wait_until(has_read_all, 20, "the server has read the requests")
        handle.poll(100)
        return cookies

    def finish(self, handle, cookies):
        while handle.aio_in_flight():
            handle.poll(-1)
        for cookie in cookies:
            handle.aio_command_completed(cookie)  # raises the request's error

    def test_operations(self):
        """E-20: with 50 requests a second, 100 take about two seconds, for each kind of request that counts"""
        self.start()
        handle = self.server.connect()
        kinds = {
            "read": lambda n: handle.pread(4 * KIB, n * 64 * KIB),
            "write": lambda n: handle.pwrite(bytes(4 * KIB), n * 64 * KIB),
            "zero": lambda n: handle.zero(64 * KIB, n * 64 * KIB),
            "trim": lambda n: handle.trim(64 * KIB, n * 64 * KIB),
            "cache": lambda n: handle.cache(64 * KIB, n * 64 * KIB),
        }
        for kind, request in kinds.items():
            with self.subTest(kind):
                self.limit(iops=50)
                self.at_least(1.5, lambda request=request: [request(n) for n in range(100)])

    def test_bytes_and_directions(self):
        self.start()
        handle = self.server.connect()
        self.limit(bps_wr=MIB)
        self.at_least(1.2, lambda: [handle.pwrite(bytes(256 * KIB), 0) for _ in range(8)])
        self.limit(bps_rd=MIB)
        self.at_least(1.2, lambda: [handle.pread(256 * KIB, 0) for _ in range(8)])
        # Writes have no limit now: with 1 MiB a second this gigabyte would exceed the test's timeout.
        for _ in range(64):
            handle.pwrite(bytes(16 * MIB), 0)
        # Flushes don't count.
        self.limit(iops=1)
        handle.pread(512, 0)
        handle.pread(512, 0)
        for _ in range(500):
            handle.flush()

    def test_burst(self):
        self.start()
        handle = self.server.connect()
        self.limit(iops=1, iops_max=300)
        for n in range(300):  # without the burst this would take five minutes
            handle.pread(512, n * 512)
        self.at_least(1.5, lambda: [handle.pread(512, 0) for _ in range(4)])
        self.limit(iops=20, iops_size=4096)
        self.at_least(0.8, lambda: [handle.pread(8 * KIB, 0) for _ in range(12)])

    def test_a_change_wakes(self):
        self.start()
        handle = self.server.connect()
        for change in (dict(iops=100000), {}, dict(iops=100000, group="other")):
            with self.subTest(**change):
                self.limit(bps=1)
                cookies = self.begin(handle, 16)
                wait_until(lambda: handle.poll(10) >= 0 and handle.aio_in_flight() == 15, 20, "the first")
                self.limit(**change)
                self.finish(handle, cookies)
        # Reads aren't delayed while writes wait.
        self.limit(bps_wr=1)
        cookies = self.begin(handle, 10)
        self.server.connect().pread(MIB, 0)
        self.assertGreater(handle.aio_in_flight(), 0)
        self.limit()
        self.finish(handle, cookies)

    def test_no_client_waits_for_another_one(self):
        """a client with many requests and one with few: requests of different connections take turns"""
        self.start()
        greedy, modest = self.server.connect(), self.server.connect()
        self.limit(iops=20)
        cookies = self.begin(greedy, 16)
        for n in range(2):
            modest.pread(512, 0)
            modest.pwrite(bytes(512), n * MIB)
        self.assertGreater(greedy.aio_in_flight(), 0)
        self.finish(greedy, cookies)

    def test_the_end_does_not_wait(self):
        """SIGTERM with requests that would wait for years: they are done at once, and answered"""
        for clients in (1, 3):
            with self.part(clients=clients):
                self.start()
                handles = [self.server.connect() for _ in range(clients)]
                self.limit(bps=1)
                begun = [(handle, self.begin(handle, 16)) for handle in handles]
                self.server.process.send_signal(signal.SIGTERM)
                for handle, cookies in begun:
                    self.finish(handle, cookies)
                self.server.wait()
                check(self.image, "qcow2")
                self.client.close()

    def test_jobs_and_drains_do_not_wait(self):
        """limits only apply to clients' requests"""
        self.start()
        handle = self.server.connect()
        handle.pwrite(b"\x07" * 4 * MIB, 0)
        self.limit(bps=1)
        cookies = self.begin(handle, 8)
        self.client.cmd("drive-backup", job_id="b", device="drive0", target=self.path("copy"), sync="full", format="qcow2")
        self.client.event("BLOCK_JOB_COMPLETED", device="b")
        self.client.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=self.path("over"), format="qcow2")
        self.client.cmd("block_resize", device="drive0", size=2 * SIZE)
        self.assertEqual(self.inserted()["bps"], 1)
        self.limit()
        self.finish(handle, cookies)
        self.server.stop()
        check(self.path("over"), "qcow2")

    def test_groups(self):
        """disks of a group share its limits; the last values that were set hold for the whole group"""
        for name in "abc":
            create(self.path(name), "qcow2", SIZE)
        self.start(*[f"export={name}:{self.path(name)}" for name in "abc"], image=False)
        handles = {name: self.server.connect(name) for name in "abc"}
        self.limit("a", iops=1000, group="g")
        self.limit("b", iops=40, group="g")
        for name in "ab":
            self.assertEqual({key: self.inserted(name)[key] for key in ("iops", "bps", "group")},
                             {"iops": 40, "bps": 0, "group": "g"})
        self.assertNotIn("group", self.inserted("c"))

        def both():
            for n in range(30):
                for name in "ab":
                    handles[name].pread(512, n * 512)
        self.at_least(1.2, both)
        self.limit("b")
        self.assertNotIn("group", self.inserted("b"))
        self.assertEqual(self.inserted("b")["iops"], 0)
        self.assertEqual(self.inserted("a")["iops"], 40)
        self.limit("c", bps=5)
        self.assertEqual(self.inserted("c")["group"], "c")
        # A disk that is removed leaves its group.
        self.client.cmd("block-export-del", id="c", mode="hard")
        handles["c"].shutdown()
        self.client.event("BLOCK_EXPORT_DELETED", id="c")
        self.server.stop()

    def test_a_client_that_left(self):
        """a client disconnects while its writes wait: they aren't done later, after writes on a new connection"""
        self.start()
        self.limit(iops_wr=1)
        old, new = nbd.NBD(), self.server.connect()
        old.connect_uri(self.server.uri)
        self.begin(old, 6)
        del old
        new.pwrite(b"n" * 6 * 4096, 0)
        self.limit()
        new.flush()
        time.sleep(1)
        self.assertEqual(bytes(new.pread(6 * 4096, 0)), b"n" * 6 * 4096)

    def test_a_connection_that_was_lost(self):
        """a lost connection is closed, even if its requests are still waiting"""
        self.start()
        files = f"/proc/{self.server.process.pid}/fd"
        new = self.server.connect()
        before = len(os.listdir(files))
        self.limit(bps_wr=1)
        old = nbd.NBD()
        old.connect_uri(self.server.uri)
        self.begin(old, 6)
        self.assertGreater(len(os.listdir(files)), before)
        del old
        wait_until(lambda: len(os.listdir(files)) == before, 60, "the connection is closed")
        self.limit()
        new.flush()

    def test_what_is_told(self):
        self.start()
        self.assertNotIn("bps_max", self.inserted())
        self.limit(bps_rd=1000, bps_rd_max=2000, bps_rd_max_length=3, bps_wr=7, iops=10, iops_max=20, iops_size=512)
        told = self.inserted()
        expected = {"bps": 0, "bps_rd": 1000, "bps_wr": 7, "iops": 10, "iops_rd": 0, "iops_wr": 0, "bps_rd_max": 2000,
                    "bps_rd_max_length": 3, "iops_max": 20, "iops_max_length": 1, "iops_size": 512, "group": "drive0"}
        self.assertEqual({key: value for key, value in told.items() if "ps" in key or key == "group"}, expected)
        layer = self.client.cmd("query-named-block-nodes")[0]
        self.assertEqual(layer["iops"], 0)
        self.assertNotIn("group", layer)

    def test_refused(self):
        """refused with QEMU's messages; the limits don't change"""
        self.start()
        self.limit(iops=77)
        same_time = "bps/iops/max total values and read/write values cannot be used at the same time"
        for words, limits in (
                (same_time, dict(bps=1, bps_rd=1)),
                (same_time, dict(iops=1, iops_wr=1)),
                (same_time, dict(bps=1, bps_rd=0, bps_max=2, bps_wr_max=2)),
                ("iops size requires an iops value to be set", dict(bps=1, iops_size=512)),
                ("bps/iops/max values must be within [0, 1000000000000000]", dict(bps=10**15 + 1)),
                ("the burst length cannot be 0", dict(bps=1, bps_max=1, bps_max_length=0)),
                ("burst length set without burst rate", dict(bps=1, bps_max_length=2)),
                ("burst length too high for this burst rate", dict(bps=1, bps_max=10**15, bps_max_length=2)),
                ("bps_max/iops_max require corresponding bps/iops values", dict(iops_rd_max=1)),
                ("bps_max/iops_max cannot be lower than bps/iops", dict(iops_rd=2, iops_rd_max=1)),
                ("Parameter 'group' is unexpected", None),
                ("Invalid parameter 'bps', expected: an integer from 0 on", dict(bps=-1)),
                ("Need exactly one of 'device' and 'id'", dict(id="drive0")),
                ("Cannot find device 'nosuch'", dict(device="nosuch"))):
            with self.subTest(words), self.assertRaises(QmpError) as caught:
                if limits is None:
                    self.client.cmd("block_resize", device="drive0", size=SIZE, group="g")
                else:
                    self.limit(**limits)
            self.assertIn(words, caught.exception.desc)
        with self.assertRaisesRegex(QmpError, "'iops_wr' is missing"):
            self.client.send({"execute": "block_set_io_throttle", "arguments": {
                "device": "drive0", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0}})
            reply = self.client.reply()
            raise QmpError(reply["error"])
        self.assertEqual(self.inserted()["iops"], 77)

    def test_reopen(self):
        """blockdev-reopen can set limits; without them it doesn't change the limits"""
        self.start()
        node = {"node-name": "drive0", "driver": "qcow2", "file": self.image}

        def reopen(**more):
            self.client.cmd("blockdev-reopen", options=[{**node, "file": {"driver": "file", "filename": self.image}, **more}])
        reopen(throttling={"iops-total": 10, "iops-total-max": 20, "group": "g"})
        self.assertEqual([self.inserted()[key] for key in ("iops", "iops_max", "group")], [10, 20, "g"])
        reopen(discard="unmap")
        self.assertEqual(self.inserted()["iops"], 10)
        with self.assertRaisesRegex(QmpError, "cannot be lower"):
            reopen(throttling={"bps-read": 10, "bps-read-max": 9})
        with self.assertRaisesRegex(QmpError, r"throttling.iops' is unexpected"):
            reopen(throttling={"iops": 10})
        with self.assertRaisesRegex(QmpError, "expected: an object"):
            reopen(throttling=5)
        self.assertEqual(self.inserted()["iops"], 10)
        reopen(throttling={})
        self.assertNotIn("group", self.inserted())

    def test_an_image_of_a_folder_stays_open(self):
        """an image with limits stays open without clients, because closing it would lose them"""
        create(self.path("one.qcow2"), "qcow2", SIZE)
        self.start(f"dir={self.dir}", "linger=0", image=False)
        handle = self.server.connect("one.qcow2")
        self.limit("one.qcow2", iops=30)
        handle.shutdown()
        time.sleep(0.3)
        self.assertEqual(self.inserted("one.qcow2")["iops"], 30)
        self.limit("one.qcow2")
        wait_until(lambda: not self.client.cmd("query-block"), 20, "closed")


if __name__ == "__main__":
    import unittest
    unittest.main()
