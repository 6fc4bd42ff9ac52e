# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots and backups at one point of a disk's writes, and jobs that end together (B-14, B-15)."""

import os
import random
import threading

import nbd

import harness
from harness import KIB, LONG, MIB, SEED, check, create, parametrised
from test_backup import BackupCase
from test_overlays import ManyDisks, OverlayCase
from writers import Writers

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 20 if LONG else 3))
CHUNK = 64 * KIB


class TogetherCase(OverlayCase, BackupCase):
    def over(self, name):
        return {"type": "blockdev-snapshot-sync", "data": {
            "device": "drive0", "snapshot-file": self.path(f"{name}.qcow2"), "snapshot-node-name": name}}

    def internal(self, name):
        return {"type": "blockdev-snapshot-internal-sync", "data": {"device": "drive0", "name": name}}

    def grouped(self, *actions):
        self.client.cmd("transaction", actions=list(actions), properties={"completion-mode": "grouped"})


@parametrised
class OnePoint(TogetherCase):
    TIMEOUT = 1000

    cases_overlay = {f"{order}, {fmt}": (order, fmt) for order in ("backup first", "overlay first")
                     for fmt in ("qcow2", "qed", "raw")}

    def check_overlay(self, order, fmt):
        """a new image on top and a backup in one transaction, under writers: the backup equals the frozen image"""
        self.make(fmt)
        self.begin()
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b", granularity=CHUNK)
        writers = Writers(self.server, self.content, f"{SEED} {order} {fmt}")
        try:
            for number in range(ROUNDS):
                writers.some(30)
                writers.mark()
                old, target, job = self.top(), self.path(f"t{number}.raw"), f"job{number}"
                actions = [self.action(target, job=job, speed=random.choice([0, 8 * MIB])), self.over(f"o{number}")]
                self.transact(*(actions if order == "backup first" else actions[::-1]))
                writers.some(30)
                self.all_end(job)
                copy = harness.content(target, "raw")
                self.assertTrue(writers.is_a_moment(copy), f"{SEED}: not a moment of the disk")
                self.assertTrue(copy == harness.content(old["file"], old["drv"]), f"{SEED}: not what was frozen")
                if number % 2:
                    self.commit()
        finally:
            self.content = writers.stop()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        top = self.top()
        self.server.stop()
        self.expect_content(top["file"], top["drv"])
        if top["drv"] != "raw":
            check(top["file"], top["drv"])

    def test_fleecing(self):
        """backup/NAME still shows the point when the image has become a backing file, and what was dirty"""
        self.begin()
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b", granularity=CHUNK)
        self.write(MIB, b"dirty")
        then = bytes(self.content)
        create(self.path("store.qcow2"), "qcow2", self.SIZE)
        self.transact(self.over("o"), self.action(self.path("store.qcow2"), "none", job="f", bitmap="b", mode="existing",
                                                  format="qcow2"))
        self.write(MIB, b"after" * 40000)
        self.assertTrue(self.view("f") == then)
        self.assertIn("backup/f", list(self.server.exports()))
        self.cancelled("f")
        with self.assertRaises(nbd.Error):
            self.server.connect("backup/f")
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.server.disconnect()
        self.disk = self.server.connect()
        self.commit()
        self.source_is_good()

    def test_the_disk_moves_on(self):
        """a mirror's target replaces the overlay: views and backups of earlier points don't change, and end normally"""
        self.begin()
        self.write(0, random.Random(SEED).randbytes(self.SIZE))
        then = bytes(self.content)
        create(self.path("store.qcow2"), "qcow2", self.SIZE)
        self.transact(self.action(self.path("slow.raw"), job="slow", speed=64 * KIB), self.over("o"),
                      self.action(self.path("store.qcow2"), "none", job="view", mode="existing", format="qcow2"))
        self.write(3 * MIB, b"over" * 50000)
        target = self.mirror(job_id="m")
        self.ready()
        self.client.cmd("job-complete", id="m")
        self.client.event("JOB_STATUS_CHANGE", id="m", status="null", timeout=60)
        self.assertEqual(self.top()["file"], target)
        self.write(2 * MIB, b"target" * 100000)
        self.client.cmd("block-job-set-speed", device="slow", speed=0)
        self.all_end("slow")
        self.assertTrue(harness.content(self.path("slow.raw"), "raw") == then, "the copy")
        self.assertTrue(self.view("view") == then, "what is shown")
        self.server.disconnect()
        self.cancelled("view")
        self.disk = self.server.connect()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        check(self.image, self.fmt)  # without -U: it is closed
        self.server.stop()
        self.expect_content(target, "raw")

    def test_internal(self):
        """an internal snapshot and a backup in one transaction"""
        self.begin()
        writers = Writers(self.server, self.content, SEED)
        try:
            for number in range(ROUNDS):
                writers.some(30)
                writers.mark()
                target = self.path(f"i{number}.raw")
                actions = [self.action(target, job=f"job{number}"), self.internal(f"s{number}")]
                self.transact(*random.sample(actions, 2))
                writers.some(30)
                self.all_end(f"job{number}")
                snapshot = self.server.connect(f"snapshot/s{number}")
                copy = harness.content(target, "raw")
                self.assertTrue(writers.is_a_moment(copy))
                self.assertTrue(copy == bytes(snapshot.pread(self.SIZE, 0)))
        finally:
            self.content = writers.stop()
        self.source_is_good()

    def test_none_of_them(self):
        self.begin()
        target = self.path("t.raw")
        for extra in ([self.over("o")], [self.internal("s")]):
            for actions in ([self.action(target), *extra], [*extra, self.action(target)]):
                for bad, words in (({"type": "abort", "data": {}}, "Abort action"),
                                   (self.action(self.path("none"), job="x", mode="existing"), "No such file")):
                    self.fails("GenericError", self.client, "transaction", words, actions=[*actions, bad])
                    self.assertFalse(os.path.exists(self.path("o.qcow2")))
                    self.assertEqual(self.client.cmd("query-jobs"), [])
                    self.assertEqual(self.names(), ["drive0"])
                    self.write(0, b"goes on")
        self.fails("GenericError", self.client, "transaction", "busy", actions=[self.over("o"), self.internal("s")])
        # As for single commands, another job of the disk can prevent the transaction.
        self.mirror(speed=64 * KIB)
        self.fails("GenericError", self.client, "transaction", "a job uses it",
                   actions=[self.action(target, job="b"), self.over("o")])
        self.forced()
        self.source_is_good()


class Grouped(TogetherCase):
    """completion-mode=grouped"""

    def setUp(self):
        super().setUp()
        self.begin()
        for name in ("a", "b"):
            self.client.cmd("block-dirty-bitmap-add", node="drive0", name=name, granularity=CHUNK)
        self.write(0, b"x")
        self.write(MIB, b"y")
        self.before = (self.dirty("a"), self.dirty("b"))

    def two(self, second, **more):
        """Two jobs in a group; the second doesn't end before let_go()."""
        self.grouped(self.action(self.path("one.raw"), job="one", bitmap="a", bitmap_mode="on-success", **more),
                     self.action(second, job="two", bitmap="b", bitmap_mode="on-success", mode="existing", speed=KIB,
                                 **more))

    def let_go(self):
        self.client.cmd("block-job-set-speed", device="two", speed=0)

    def status(self):
        return {job["id"]: job["status"] for job in self.client.cmd("query-jobs")}

    def none_has_ended_well(self, failed):
        ends = {}
        while len(ends) < 2:
            event = self.client.event("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", timeout=60)
            ends[event["data"]["device"]] = (event["event"], "error" in event["data"])
        self.assertEqual(ends, {job: ("BLOCK_JOB_COMPLETED", True) if job == failed else ("BLOCK_JOB_CANCELLED", False)
                                for job in ("one", "two")})
        self.assertEqual((self.dirty("a"), self.dirty("b")), self.before)
        self.source_is_good()

    def test_one_fails(self):
        """one job fails: the other, which has done its work and waits for it, is cancelled"""
        fault = self.path("fault")
        target = self.memory("--filter=error", "error-pwrite=EIO", "error-pwrite-rate=100%",
                             f"error-pwrite-file={fault}")
        self.two(target.uri)
        self.client.event("JOB_STATUS_CHANGE", id="one", status="waiting")
        self.switch("fault")
        self.let_go()
        self.none_has_ended_well("two")

    def test_one_is_cancelled(self):
        """one job is cancelled, the waiting or the working one: both end soon, even if a target hangs"""
        for which in ("one", "two"):
            with self.subTest(which=which):
                if which == "two":
                    self.setUp()
                target = self.memory()
                self.two(target.uri)
                self.client.event("JOB_STATUS_CHANGE", id="one", status="waiting")
                target.freeze()
                self.client.cmd("block-job-cancel", device=which)
                self.none_has_ended_well(None)
                target.thaw()

    def test_all_are_well(self):
        target = self.memory()
        self.two(target.uri)
        self.client.event("JOB_STATUS_CHANGE", id="one", status="waiting")
        self.assertEqual(self.dirty("a"), CHUNK * 2)
        self.let_go()
        self.all_end("one", "two")
        self.assertEqual((self.dirty("a"), self.dirty("b")), (0, 0))
        self.expect_content(self.path("one.raw"), "raw")
        self.same(bytes(target.content()))
        self.source_is_good()

    def test_one_decision(self):
        """job-finalize of one job finalizes all jobs of the group"""
        self.two(self.memory().uri, auto_finalize=False)
        self.let_go()
        for _ in range(2):
            self.client.event("BLOCK_JOB_PENDING")
        self.client.cmd("job-finalize", id="two")
        self.all_end("one", "two")
        self.assertEqual((self.dirty("a"), self.dirty("b")), (0, 0))

    def test_the_end_of_the_server(self):
        self.two(self.memory().uri)
        self.client.event("JOB_STATUS_CHANGE", id="one", status="waiting")
        self.source_is_good()


class Disks(ManyDisks):
    def test_one_point(self):
        """backups of two disks and a new image on top of one, at one point: each number is written to one disk and then
        to the other, so no point has it only on the second"""
        self.serve_two()
        first, second = (self.server.connect(name) for name in ("a", "b"))
        over, errors = threading.Event(), []

        def write():
            try:
                for number in range(1, 1 << 30):
                    for handle in (first, second):
                        handle.pwrite(number.to_bytes(8, "big"), 0)
                    if over.is_set():
                        return
            except Exception as error:  # pylint: disable=broad-except
                errors.append(error)

        def number_of(path, fmt):
            return int.from_bytes(harness.content(path, fmt)[:8], "big")

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for turn in range(ROUNDS):
                actions = [{"type": "drive-backup", "data": {"job-id": f"{disk}{turn}", "device": disk, "sync": "full",
                                                             "format": "raw", "target": self.path(f"{disk}{turn}.raw")}} for disk in "ba"]
                if turn == 1:
                    actions.insert(random.randrange(3), self.over("a"))
                properties = {"properties": {"completion-mode": "grouped"}} if turn != 1 else {}
                self.client.cmd("transaction", actions=actions, **properties)
                left = {f"{disk}{turn}" for disk in "ab"}
                while left:
                    event = self.client.event("BLOCK_JOB_COMPLETED")
                    self.assertNotIn("error", event["data"])
                    left.discard(event["data"]["device"])
                a, b = (number_of(self.path(f"{disk}{turn}.raw"), "raw") for disk in "ab")
                self.assertIn(a - b, (0, 1), (a, b))
                if turn == 1:
                    self.assertEqual(number_of(os.path.join(self.folder, "a"), "qcow2"), a)
        finally:
            over.set()
            thread.join()
        self.assertEqual(errors, [])


if __name__ == "__main__":
    harness.unittest.main()
