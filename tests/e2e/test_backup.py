# SPDX-License-Identifier: BSD-3-Clause
"""Backup jobs on real servers: every frozen point is the disk at one moment, whatever clients, targets
and kill -9 do meanwhile (F-01, F-03 to F-07)."""

import os
import threading
import unittest

import nbd

import harness
from harness import KIB, LONG, MIB, SEED, create, parametrised, run, wait_until
from test_mirror import MirrorCase
from writers import Writers

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 50 if LONG else 3))
CHUNK = 64 * KIB


class BackupCase(MirrorCase):
    SIZE = 4 * MIB

    def backup(self, target, sync="full", job="job", **arguments):
        """Starts a job; returns its target's path or URI."""
        target = target if ":" in target else self.path(target)
        self.assertEqual(self.client.cmd("drive-backup", job_id=job, device="drive0", target=target, sync=sync,
                                         **{"format": "raw", **arguments}), {})
        return target

    def action(self, target, sync="full", job="job", **data):
        data = {key.replace("_", "-"): value for key, value in data.items()}
        return {"type": "drive-backup", "data": {"job-id": job, "device": "drive0", "target": target, "sync": sync,
                                                 "format": "raw", **data}}

    def transact(self, *actions):
        self.client.cmd("transaction", actions=list(actions))

    def bitmap(self, verb, name="map", **data):
        return {"type": f"block-dirty-bitmap-{verb}", "data": {"node": "drive0", "name": name, **data}}

    def dirty(self, name="map"):
        return self.client.bitmaps().get(name, {}).get("count")

    def all_end(self, *jobs):
        """Waits until these jobs have ended without an error, in any order."""
        left = set(jobs)
        while left:
            event = self.client.event("JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR", timeout=60)
            self.assertNotEqual(event["event"], "BLOCK_JOB_ERROR", event)
            self.assertNotIn("error", event["data"])
            if event["data"].get("status") == "null":
                left.discard(event["data"]["id"])

    def cancelled(self, job="job"):
        self.client.cmd("block-job-cancel", device=job)
        self.client.event("BLOCK_JOB_CANCELLED", device=job)
        self.client.event("JOB_STATUS_CHANGE", id=job, status="null")

    def view(self, job="job"):
        """The frozen point as a client reads it from backup/JOB."""
        handle = self.server.connect(f"backup/{job}")
        return bytes(b"".join(handle.pread(MIB, off) for off in range(0, self.SIZE, MIB)))


@parametrised
class UnderWriters(BackupCase):
    """four random clients and one that flushes: the copies and the view are the disk at one moment"""

    TIMEOUT = 1000

    cases_rounds = {fmt: (fmt,) for fmt in ("qcow2", "qed", "raw")}

    def flush_all_the_time(self):
        handle = self.server.connect()
        while not self.over:
            handle.flush()

    def check_rounds(self, fmt):
        self.make(fmt)
        self.begin()
        self.over = False
        writers = Writers(self.server, self.content, f"{SEED} {fmt}")
        flusher = threading.Thread(target=self.flush_all_the_time)
        flusher.start()
        try:
            for number in range(ROUNDS):
                with self.subTest(round=number):
                    self.a_round(number, writers)
        finally:
            self.over = True
            flusher.join()
            writers.stop()
        self.source_is_good()

    def a_round(self, number, writers):
        target_format = self.rng.choice(["qcow2", "qed", "raw"])
        more = {"compress": True} if target_format == "qcow2" and self.rng.random() < 0.3 else {}
        if self.rng.random() < 0.3:
            more["speed"] = 8 * MIB
        if self.rng.random() < 0.3:
            more.update(cbw_timeout=60, on_cbw_error=self.rng.choice(["break-snapshot", "break-guest-write"]))
        writers.mark()
        first, second = (self.path(f"{number} {n}.{target_format}") for n in (1, 2))
        # Two copies and a view of the same frozen point must be equal.
        self.transact(self.action(first, job="a", format=target_format, **more),
                      self.action(second, job="b", format=target_format),
                      self.action(self.path(f"{number} 3.qcow2"), "none", job="c", format="qcow2"))
        writers.some(20)
        shown = self.view("c")
        self.all_end("a", "b")
        writers.some(20)
        again = self.view("c")
        self.cancelled("c")
        found = harness.content(first, target_format)
        self.assertTrue(writers.is_a_moment(found), "the copy isn't the disk of any moment")
        self.assertTrue(found == harness.content(second, target_format), "two points instead of one")
        self.assertTrue(found == shown, "the view isn't the same point")
        self.assertTrue(found == again, "the view has changed")
        harness.check(first, target_format)
        for path in (first, second, self.path(f"{number} 3.qcow2")):
            os.unlink(path)

    def test_order_of_writes(self):
        """a client sends the second of two writes after the reply to the first: no frozen point has only the second"""
        self.make("qcow2")
        self.begin()
        handle, over, done = self.server.connect(), threading.Event(), []

        def count():
            while not over.is_set():
                number = (len(done) + 1).to_bytes(8, "big")
                handle.pwrite(number, 3 * MIB)
                handle.pwrite(number, 100)
                done.append(number)

        thread = threading.Thread(target=count)
        thread.start()
        try:
            for turn in range(5 * ROUNDS):
                wait_until(lambda: len(done) > 10 * turn, 30, "writes")
                self.backup(f"{turn}.qcow2", "none", format="qcow2")
                view = self.server.connect("backup/job")
                first, second = (int.from_bytes(view.pread(8, at), "big") for at in (3 * MIB, 100))
                self.assertIn(first - second, (0, 1) if turn else (first - second,))
                self.cancelled()
        finally:
            over.set()
            thread.join()


class Syncs(BackupCase):
    """what each kind of backup copies, and what bitmaps contain afterwards"""

    def test_incremental_chain(self):
        """a full backup with a new bitmap, and incremental ones on top of it: each restores its own moment"""
        self.begin()
        points, top = [], self.path("0.qcow2")
        self.transact(self.bitmap("add"), self.action(top, format="qcow2"))
        self.ended()
        points.append((top, bytes(self.content)))
        for number in range(1, 4):
            for _ in range(5):
                self.write(self.rng.randrange(self.SIZE - 5000), self.rng.randbytes(5000))
            overlay = create(self.path(f"{number}.qcow2"), "qcow2", self.SIZE, backing=top, backing_fmt="qcow2")
            self.backup(overlay, "incremental", bitmap="map", mode="existing", format="qcow2")
            self.ended()
            points.append((overlay, bytes(self.content)))
            top = overlay
            self.assertEqual(self.dirty(), 0)
        for path, content in points:
            self.assertTrue(harness.content(path, "qcow2") == content, path)

    def test_top(self):
        """sync=top copies only what the active layer has, to an overlay of the same base"""
        base = self.image
        self.image = create(self.path("over.qcow2"), "qcow2", self.SIZE, backing=base, backing_fmt="qcow2")
        self.begin()
        self.write(MIB + 5, b"in the overlay")
        target = self.backup("target.qcow2", "top", format="qcow2")
        self.ended()
        self.expect_content(target, "qcow2")
        info = harness.info(target, "qcow2")
        self.assertEqual(info["full-backing-filename"], base)
        mapped = [m for m in harness.json.loads(run("qemu-img", "map", "-U", "--output=json", target).stdout)
                  if m["depth"] == 0 and m.get("present", True) and m["data"]]
        self.assertEqual([(m["start"], m["length"]) for m in mapped], [(MIB, CHUNK)])

    def test_bitmap_at_the_end(self):
        """M-26: each bitmap-mode, with failure and success; another bitmap on the disk isn't touched"""
        self.begin()
        self.transact(self.bitmap("add"), self.bitmap("add", "other"))
        self.write(0, b"x")
        for mode, fails, left in (("never", False, CHUNK), ("on-success", True, CHUNK), ("always", True, CHUNK),
                                  ("always", False, 0), ("on-success", False, 0)):
            with self.subTest(mode=mode, fails=fails):
                self.write(0, b"x")
                target = self.memory("--filter=error", "error-pwrite=EIO", "error-rate=100%") if fails else self.memory()
                self.backup(target.uri, "bitmap", bitmap="map", bitmap_mode=mode, mode="existing")
                self.ended(error="Input/output error" if fails else None)
                self.assertEqual(self.dirty(), left)
        self.assertEqual(self.dirty("other"), CHUNK)

    def test_zeroes_take_no_space(self):
        self.begin()
        target = self.backup("target.raw")
        self.ended()
        self.expect_content(target, "raw")
        self.assertLess(os.stat(target).st_blocks * 512, self.SIZE * 3 // 4)

    def test_compressed(self):
        self.begin()
        self.write(0, bytes(range(256)) * 4096)
        target = self.backup("target.qcow2", format="qcow2", compress=True)
        self.ended()
        self.expect_content(target, "qcow2")
        check = harness.json.loads(run("qemu-img", "check", "--output=json", target).stdout)
        self.assertGreater(check["compressed-clusters"], 10)

    def test_refused(self):
        self.begin()
        self.transact(self.bitmap("add"))
        none = self.path("none.raw")
        for words, arguments in (
                ("needs 'bitmap'", {"sync": "incremental"}), ("needs 'bitmap'", {"sync": "bitmap"}),
                ("needs 'bitmap-mode'", {"sync": "bitmap", "bitmap": "map"}),
                ("goes with 'bitmap'", {"sync": "full", "bitmap_mode": "never"}),
                ("no use", {"sync": "full", "bitmap": "map", "bitmap_mode": "never"}),
                ("on-success", {"sync": "incremental", "bitmap": "map", "bitmap_mode": "always"}),
                ("only be never", {"sync": "none", "bitmap": "map", "bitmap_mode": "always"}),
                ("not found", {"sync": "incremental", "bitmap": "x"}),
                ("max-workers", {"sync": "full", "x_perf": {"max-workers": 0}}),
                ("an integer", {"sync": "full", "x_perf": {"max-workers": "x"}}),
                ("'x-perf.x' is unexpected", {"sync": "full", "x_perf": {"x": 0}}),
                ("at most", {"sync": "full", "cbw_timeout": 1 << 40}),
                ("compress", {"sync": "full", "compress": True, "format": "raw"}),
                ("part of the disk", {"sync": "full", "target": self.image}),
                ("No such file", {"sync": "full", "mode": "existing", "target": self.path("nowhere")}),
                ("is recognised|not recognised", {"sync": "full", "target": create(
                    self.path("empty.raw"), "raw", self.SIZE), "command": "blockdev-backup"})):
            with self.subTest(**arguments):
                command = arguments.pop("command", "drive-backup")
                self.fails("GenericError", self.client, command, words,
                           **{"job_id": "job", "device": "drive0", "target": none, **arguments})
                self.assertEqual(self.client.cmd("query-jobs"), [])
        self.fails("DeviceNotFound", self.client, "drive-backup", "x", device="x", target=none, sync="full")
        self.client.cmd("block-dirty-bitmap-remove", node="drive0", name="map")

    def test_the_format_that_is_not_said(self):
        """without `format`: a new file gets the disk's format, an existing file is probed, an export is raw"""
        for fmt, other in ("qcow2", "qed"), ("qed", "qcow2"), ("raw", "qcow2"):
            with self.part(format=fmt):
                self.image, self.fmt = create(self.path("source"), fmt, self.SIZE), fmt
                self.content = bytearray(self.rng.randbytes(self.SIZE))
                harness.fill(self.image, fmt, [(0, bytes(self.content))])
                self.begin()
                there, raw, export = create(self.path("there"), other, self.SIZE), create(self.path("raw"), "raw", self.SIZE), self.memory()
                command = {"job_id": "job", "device": "drive0", "sync": "full"}
                for target, mode in (self.path("new"), "absolute-paths"), (there, "existing"), (export.uri, "existing"):
                    self.client.cmd("drive-backup", target=target, mode=mode, **command)
                    self.ended()
                self.expect_content(self.path("new"), fmt)
                if fmt != "raw":
                    harness.check(self.path("new"), fmt)
                self.expect_content(there, other)
                self.assertTrue(export.content() == self.content)
                self.fails("GenericError", self.client, "drive-backup", "raw is never guessed", target=raw, mode="existing", **command)

    def test_blockdev_backup_to_an_image(self):
        self.begin()
        target = create(self.path("target.qed"), "qed", self.SIZE)
        self.client.cmd("blockdev-backup", job_id="job", device="drive0", target=target, sync="full")
        self.ended()
        self.expect_content(target, "qed")

    def test_blockdev_backup_to_a_node(self):
        self.begin()
        target = create(self.path("target.qcow2"), "qcow2", self.SIZE)
        self.client.cmd("blockdev-add", driver="qcow2", node_name="target", file={"driver": "file", "filename": target})
        self.client.cmd("blockdev-backup", job_id="job", device="drive0", target="target", sync="full")
        self.ended()
        self.client.cmd("blockdev-del", node_name="target")
        self.expect_content(target, "qcow2")


class Transactions(BackupCase):
    """a backup as an action of a transaction: at one point with the other actions, or not at all"""

    def test_none_of_them(self):
        self.begin()
        self.transact(self.bitmap("add", "old"))
        self.write(0, b"x")
        good = self.path("good.raw")
        for words, bad in (("Abort action", {"type": "abort", "data": {}}),
                           ("No such file", self.action(self.path("none"), job="b", mode="existing")),
                           ("in use", self.action(self.path("b.raw"), job="b")),
                           ("in use", self.bitmap("clear", "new"))):
            with self.subTest(words=words, bad=bad["type"]):
                actions = [self.bitmap("add", "new"),
                           self.action(good, "bitmap", job="b" if words == "in use" else "a", bitmap="new",
                                       bitmap_mode="never"),
                           self.bitmap("clear", "old"), bad]
                self.fails("GenericError", self.client, "transaction", words, actions=actions)
                self.assertIsNone(self.dirty("new"))
                self.assertEqual(self.dirty("old"), CHUNK)
                self.assertEqual(self.client.cmd("query-jobs"), [])
        self.write(1, b"y")
        self.source_is_good()

    def test_a_bitmap_that_begins_with_it(self):
        """a bitmap is created, filled and used in one transaction, and is free again when the job has ended"""
        self.begin()
        self.transact(self.bitmap("add", "old"))
        self.write(MIB, b"x")
        target = create(self.path("target.qcow2"), "qcow2", self.SIZE)
        self.transact({"type": "block-dirty-bitmap-add", "data": {"node": "drive0", "name": "copy", "disabled": True}},
                      {"type": "block-dirty-bitmap-merge",
                       "data": {"node": "drive0", "target": "copy", "bitmaps": ["old"]}},
                      self.bitmap("clear", "old"),
                      self.action(target, "bitmap", bitmap="copy", bitmap_mode="on-success", mode="existing",
                                  format="qcow2"))
        self.ended()
        self.assertEqual((self.dirty("copy"), self.dirty("old")), (0, 0))
        self.assertEqual(harness.content(target, "qcow2")[MIB:MIB + CHUNK], self.content[MIB:MIB + CHUNK])
        self.client.cmd("block-dirty-bitmap-remove", node="drive0", name="copy")


class Views(BackupCase):
    """backup/NAME: clients read the frozen point"""

    def test_with_a_bitmap(self):
        """the block status: dirty ranges are data, clean ones are holes without the zero flag"""
        self.begin()
        self.transact(self.bitmap("add"))
        self.write(2 * CHUNK, b"x")
        self.write(5 * CHUNK, b"x" * (CHUNK + 1))
        self.backup("fleece.qcow2", "none", bitmap="map", format="qcow2")
        old = bytes(self.content)
        self.write(8 * CHUNK, b"later")
        handle = nbd.NBD()
        handle.add_meta_context("base:allocation")
        handle.set_export_name("backup/job")
        handle.connect_unix(self.server.socket)
        found, at = [], 0

        def note(_context, _offset, entries, _error):
            found.extend(zip(entries[::2], entries[1::2]))
            return 0

        while at < self.SIZE:
            handle.block_status(self.SIZE - at, at, note)
            at = sum(length for length, _ in found)
        runs = []
        for length, flags in found:
            if runs and runs[-1][1] == flags:
                length += runs.pop()[0]
            runs.append((length, flags))
        hole, data = nbd.STATE_HOLE, 0
        self.assertEqual(runs, [(2 * CHUNK, hole), (CHUNK, data), (2 * CHUNK, hole), (2 * CHUNK, data),
                                (self.SIZE - 7 * CHUNK, hole)])
        self.assertTrue(self.view() == old)
        self.assertTrue(handle.is_read_only())
        self.assertEqual(self.dirty(), 4 * CHUNK)

    def test_listed_and_gone(self):
        self.begin()
        self.backup("fleece.qcow2", "none", job="one", format="qcow2")
        self.assertIn("backup/one", run("nbdinfo", "--list", "--json", self.server.uri).stdout)
        handle = self.server.connect("backup/one")
        self.cancelled("one")
        self.errno(5, handle.pread, 512, 0)
        with self.assertRaises(nbd.Error):
            self.server.connect("backup/one")
        self.write(0, b"the disk goes on")
        self.source_is_good()

    def test_remote(self):
        """the target is an NBD server: old content is copied there before it is changed, and the view still shows it"""
        self.begin()
        target, old = self.memory(), bytes(self.content)
        self.backup(target.uri, "none", mode="existing")
        self.write(3 * CHUNK, b"new")
        self.write(9 * CHUNK, b"new")
        self.assertTrue(self.view() == old)

        def has_arrived():
            found = target.content()
            return all(found[n * CHUNK:(n + 1) * CHUNK] == old[n * CHUNK:(n + 1) * CHUNK] for n in (3, 9))
        wait_until(has_arrived, 20, "old content on the target")
        self.assertEqual(target.content()[4 * CHUNK:5 * CHUNK], bytes(CHUNK))
        self.cancelled()


@parametrised
class Targets(BackupCase):
    """a target that is slow, hangs, is full or dies: clients of the disk aren't held up and get no error"""

    def users_go_on(self, n=64):
        for number in range(n):
            self.write(number * CHUNK + self.rng.randrange(CHUNK), b"users go on")

    def test_slow(self):
        """clients change all granules while the target is far too slow to copy them"""
        self.begin()
        target, old = self.memory("--filter=rate", "rate=2M"), bytes(self.content)
        self.backup(target.uri, mode="existing", on_cbw_error="break-snapshot")
        self.users_go_on()
        self.assertEqual(self.job()["status"], "running")
        target.kill()
        self.ended(error="job 'job'")
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.assertNotEqual(old, bytes(self.content))

    def test_frozen_and_cancelled(self):
        self.begin()
        target = self.memory("--filter=delay", "delay-write=100ms")
        self.backup(target.uri, mode="existing")
        target.freeze()
        self.users_go_on()
        self.client.cmd("block-job-cancel", device="job", force=True)
        self.client.event("BLOCK_JOB_CANCELLED")
        target.thaw()
        self.source_is_good()

    def test_full_for_a_while(self):
        self.begin()
        full, old = self.switch("full"), bytes(self.content)
        target = self.memory("--filter=error", "error-pwrite=ENOSPC", "error-pwrite-rate=100%",
                             f"error-pwrite-file={full}")
        self.backup(target.uri, mode="existing", on_target_error="enospc")
        self.client.event("BLOCK_JOB_ERROR", action="stop", operation="write")
        self.client.event("JOB_STATUS_CHANGE", status="paused")
        self.users_go_on()
        full.unlink()
        self.client.cmd("block-job-resume", device="job")
        self.ended()
        self.assertTrue(bytes(target.content()) == old)
        self.source_is_good()

    def test_restarted(self):
        """content that the target lost before a flush is copied again, as it was at the frozen point"""
        self.begin()
        path, old = self.path("target.raw"), bytes(self.content)
        with open(path, "wb") as file:
            file.truncate(self.SIZE)
        target = self.peer("--filter=cache", "--filter=delay", "file", path, "cache=writeback", "delay-write=20ms")
        self.backup(target.uri, mode="existing", on_target_error="ignore", x_perf={"max-workers": 1})
        wait_until(lambda: self.job()["offset"] > 0, 20, "something is copied")
        target.kill()
        self.users_go_on()
        target.start()
        self.ended()
        target.stop()
        self.assertTrue(harness.content(path, "raw") == old)
        self.source_is_good()

    cases_killed = {f"{fmt} {phase}": (fmt, phase) for fmt in ("qcow2", "qed", "raw")
                    for phase in ("copying", "shown", "pending")}

    def check_killed(self, fmt, phase):
        """kill -9 of the server: the disk is what was flushed, or newer"""
        self.make(fmt)
        self.begin()
        writers = Writers(self.server, self.content, f"{SEED} {fmt} {phase}")
        if phase == "shown":
            self.backup("target.qcow2", "none", format="qcow2")
        else:
            self.backup("target.qcow2", format="qcow2", auto_finalize=False,
                        **({"speed": MIB} if phase == "copying" else {}))
        if phase == "pending":
            self.client.event("BLOCK_JOB_PENDING")
        writers.some(60)
        self.server.kill()
        found_by = harness.repair if fmt != "raw" else lambda *_: None
        found_by(self.image, fmt)
        self.assertTrue(writers.crashed(harness.content(self.image, fmt)))
        self.assertEqual([name for name in os.listdir(self.dir) if ".qimg" in name], [])


if __name__ == "__main__":
    unittest.main()
