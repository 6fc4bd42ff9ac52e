# SPDX-License-Identifier: BSD-3-Clause
"""The mirror job on real servers: under load, to targets of all kinds, and to targets that fail."""

import itertools
import os
import pathlib
import random
import re
import threading
import time
import unittest

import nbd

import harness
from harness import KIB, LONG, MIB, SEED, Case, create, fill, parametrised, run, wait_until
from peer import Peer, changes
from test_control import JobCase
from writers import Writers

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 50 if LONG else 5))
SOON = 15  # seconds: less than 30, the timeout of a request to a server that hangs


class MirrorCase(JobCase):
    """A disk of any format, a third of it filled."""

    SIZE = 8 * MIB

    def setUp(self):
        Case.setUp(self)
        self.make("qcow2")

    def make(self, fmt, size=None):
        self.fmt, size = fmt, self.SIZE if size is None else size
        self.image = create(self.path(f"disk.{fmt}"), fmt, size)
        self.content = bytearray(size)
        pieces = [(off, self.rng.randbytes(min(48 * KIB, size - off))) for off in range(0, size, 160 * KIB)]
        for off, payload in pieces:
            self.content[off:off + len(payload)] = payload
        if pieces:
            fill(self.image, fmt, pieces)

    def begin(self, *keys):
        keys = (*keys, "format=raw") if self.fmt == "raw" else keys
        super().begin(*keys)

    def peer(self, *argv, **kwargs):
        return Peer(self, *argv, **kwargs)

    def memory(self, *filters, size=None):
        """Starts a target in memory, behind these filters with their parameters."""
        names = [f for f in filters if f.startswith("--")]
        return self.peer(*names, "memory", str(size or self.SIZE), *[f for f in filters if f not in names])

    def switch(self, name):
        """A file that makes the error filter fail requests as long as it exists."""
        path = pathlib.Path(self.path(name))
        path.touch()
        return path

    def softly(self, job="job"):
        """Ends a ready job by a soft cancel: its target is a copy of the disk at this moment."""
        self.client.cmd("block-job-cancel", device=job)
        return self.ended()

    def pivot(self, job="job"):
        self.client.cmd("block-job-complete", device=job)
        return self.ended()

    def forced(self, job="job", timeout=SOON):
        self.client.cmd("block-job-cancel", device=job, force=True)
        event = self.client.event("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", timeout=timeout)
        self.assertEqual(event["event"], "BLOCK_JOB_CANCELLED")
        self.client.event("JOB_STATUS_CHANGE", id=job, status="null")

    def io_error(self, timeout=60, **data):
        event = self.client.event("BLOCK_JOB_ERROR", "BLOCK_JOB_COMPLETED", timeout=timeout)
        self.assertEqual((event["event"], event["data"]), ("BLOCK_JOB_ERROR", {"device": "job", **data}))

    def same(self, found, what="the target"):
        if found != self.content:
            at = next(i for i in range(self.SIZE) if found[i] != self.content[i])
            self.fail(f"{what}: byte {at} is {found[at]:02x} instead of {self.content[at]:02x}")

    def source_is_good(self):
        self.server.stop()
        harness.check(self.image, self.fmt)
        self.expect_content(self.image, self.fmt)


@parametrised
class UnderWriters(MirrorCase):
    """random clients write all the time; afterwards the target is equal byte for byte"""

    SIZE = 4 * MIB
    TIMEOUT = 1000

    cases_rounds = {f"{fmt} {end}": (fmt, end) for fmt in ("qcow2", "qed", "raw")
                    for end in ("cancel", "complete")}

    def check_rounds(self, fmt, end):
        """M-01, M-02, M-04, M-06"""
        for number in range(end == "complete", ROUNDS, 2):
            with self.part(round=number):
                seed = f"{SEED} {fmt} {number}"
                rng = random.Random(seed)
                self.make(fmt)
                self.begin(*(["discard=ignore"] if rng.random() < 0.1 else []))
                writers = Writers(self.server, self.content, seed)
                try:
                    getattr(self, f"to_{end}")(rng, writers)
                finally:
                    writers.stop()
                self.after(writers, end)

    def until_ready(self, rng, writers):
        self.target_format = rng.choice(["raw", "qcow2", "qed"])
        self.target = self.mirror(
            f"target.{self.target_format}", format=self.target_format,
            copy_mode=rng.choice(["background", "write-blocking"]),
            granularity=rng.choice([512, 4 * KIB, 64 * KIB, MIB]), unmap=rng.random() < 0.5,
            **({"buf_size": rng.choice([64 * KIB, MIB])} if rng.random() < 0.3 else {}),
            **({"speed": 4 * MIB} if rng.random() < 0.3 else {}))
        if rng.random() < 0.5:
            self.client.cmd("block-job-pause", device="job")
            writers.some(20)
            self.client.cmd("block-job-set-speed", device="job", speed=rng.choice([0, 50 * MIB]))
            self.client.cmd("block-job-resume", device="job")
        self.client.cmd("block-job-set-speed", device="job", speed=0)
        data = self.ready()
        self.assertEqual(data["offset"], data["len"])
        writers.some(60)

    def to_cancel(self, rng, writers):
        """soft cancel: the target is the disk at one moment after the command"""
        self.until_ready(rng, writers)
        writers.mark()
        self.softly()
        found = harness.content(self.target, self.target_format)
        writers.some(20)
        self.assertTrue(writers.is_a_moment(found), "the copy isn't the disk of any moment")

    def to_complete(self, rng, writers):
        """pivot: clients go on, on the same connections, and are served from the target"""
        self.until_ready(rng, writers)
        self.pivot()
        self.old = harness.sha256(self.image)
        writers.some(60)

    def after(self, writers, end):
        writers.all[0].handle.flush()
        self.server.stop()
        if end == "complete":
            self.assertEqual(harness.sha256(self.image), self.old, "the source was written to")
            self.image, self.fmt = self.target, self.target_format
        harness.check(self.target, self.target_format)
        harness.check(self.image, self.fmt)
        self.expect_content(self.image, self.fmt)


@parametrised
class Targets(MirrorCase):
    """every kind of target, with writers, by a soft cancel and by a pivot"""

    SIZE = 4 * MIB

    def to_file(self, *filters, size=None):
        path = self.path("target.raw")
        with open(path, "wb") as file:
            file.truncate(size or self.SIZE)
        return self.peer(*filters, "file", path)

    cases_kinds = {
        "nbdkit file": (lambda self: self.to_file(),),
        "nbdkit memory": (lambda self: self.memory(),),
        "without zeroing": (lambda self: self.memory("--filter=nozero"),),
        "without status": (lambda self: self.memory("--filter=noextents"),),
        "slow": (lambda self: self.memory("--filter=delay", "delay-write=3ms"),),
        "limited rate": (lambda self: self.memory("--filter=rate", "rate=100M"),),
        "large blocks": (lambda self: self.memory(
            "--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-preferred=64K",
            "blocksize-error-policy=error"),),
        "one connection": (lambda self: self.memory("--filter=noparallel", "--filter=multi-conn",
                                                    "multi-conn-mode=disable"),),
        "qemu-nbd": (lambda self: self.qemu(),),
        "another qimg": (lambda self: self.other(),),
    }

    def qemu(self):
        path = create(self.path("target.qcow2"), "qcow2", self.SIZE)
        return self.peer("-f", "qcow2", "--discard=unmap", path, program="qemu-nbd")

    def other(self):
        path = create(self.path("target.qcow2"), "qcow2", self.SIZE)
        return self.peer(harness.PLUGIN, path, env=harness.plugin_env())

    def check_kinds(self, target):
        """M-01, M-15, M-34"""
        target = target(self)
        for mode in ("background", "write-blocking"):
            self.image = self.path(f"disk.{self.fmt}")
            self.begin()
            writers = Writers(self.server, self.content, f"{SEED} {mode}", pause=0.003)
            try:
                self.mirror(target.uri, copy_mode=mode, granularity=4 * KIB, mode="existing")
                self.ready()
                writers.some(60)
            finally:
                writers.stop()
            self.softly()
            self.same(target.content(), mode)
            self.source_is_good()
        self.begin()
        writers = Writers(self.server, self.content, SEED, pause=0.003)
        try:
            self.mirror(target.uri, mode="existing")
            self.ready()
            self.pivot()
            writers.some(60)
        finally:
            writers.stop()
        self.disk.flush()
        self.assertEqual(self.client.cmd("query-block")[0]["inserted"]["file"], target.uri)
        self.server.stop()
        self.same(target.content(), "after the pivot")

    def test_refused(self):
        """M-21, M-31, M-34, M-38: targets of another size, read-only, hanging or gone: a clear message, no file left"""
        self.begin()
        before = set(os.listdir(self.dir))

        def refused(uri, words):
            self.fails("GenericError", self.client, "drive-mirror", words, device="drive0", target=uri,
                       sync="full")
            self.assertIsNone(self.job())

        for size in (self.SIZE - 512, self.SIZE + 512, 0):
            with self.subTest(size=size):
                refused(self.to_file(size=size or 512).uri, r"size.*\d+ bytes differs .* \d+")
        refused(self.peer("-r", "memory", str(self.SIZE)).uri, "read-only")
        asleep = self.memory()
        asleep.freeze()
        self.addCleanup(asleep.thaw)
        refused(asleep.uri, "timed out")
        gone = self.memory()
        gone.kill()
        refused(gone.uri, "Connection refused|No such file")
        self.assertEqual({n for n in os.listdir(self.dir) if not n.startswith("p")} - {"target.raw"},
                         {n for n in before if not n.startswith("p")})
        self.softly_after_all_that()

    def test_refused_before_anything_is_made(self):
        self.begin()
        for words, arguments in (("power of two", {"granularity": 1000}), ("well-formed", {"job_id": "1"}),
                                 ("'b' not found|bitmap 'b'", {"sync": "incremental", "bitmap": "b"})):
            self.fails("GenericError", self.client, "drive-mirror", words,
                       **{"device": "drive0", "target": self.path("left"), "sync": "full", **arguments})
            self.assertFalse(os.path.exists(self.path("left")))

    def test_a_target_in_use(self):
        """the target of another job is refused, even if it would be created anew; and so is an overlay of the disk"""
        overlay = create(self.path("overlay.qcow2"), "qcow2", self.SIZE, backing=self.image, backing_fmt="qcow2")
        self.begin()
        target = self.mirror("target.raw")
        self.ready()

        def refused(words, **arguments):
            self.fails("GenericError", self.client, "drive-mirror", words,
                       **{"device": "drive0", "sync": "full", "job_id": "other", **arguments})

        refused("target.raw.*lock", target=target)
        refused("target.raw.*lock", target=target, mode="existing")
        for sync in ("full", "top", "none"):
            refused("disk.qcow2.*lock", target=overlay, format="qcow2", mode="existing", sync=sync)
        self.softly()
        self.expect_content(target, "raw")
        self.source_is_good()

    def test_no_holes(self):
        """unmap=false: zeroes are written without trim, in both copy modes"""
        for mode in ("background", "write-blocking"):
            for unmap in (False, True):
                with self.part(mode=mode, unmap=unmap):
                    self.make("qcow2")
                    self.begin()
                    log = self.path("log")
                    target = self.memory("--filter=log", f"logfile={log}")
                    self.mirror(target.uri, copy_mode=mode, unmap=unmap)
                    self.ready()
                    self.disk.trim(64 * KIB, 64 * KIB)
                    self.disk.zero(64 * KIB, 192 * KIB)
                    self.content[64 * KIB:128 * KIB] = self.content[192 * KIB:256 * KIB] = bytes(64 * KIB)
                    self.softly()
                    self.same(target.content())
                    zeroes = re.findall(" Zero id=.* trim=([01])", pathlib.Path(log).read_text(encoding="ascii"))
                    self.assertEqual(set(zeroes), {"1" if unmap else "0"})

    def softly_after_all_that(self):
        target = self.memory()
        self.mirror(target.uri)
        self.ready()
        self.softly()
        self.same(target.content())
        self.source_is_good()

    def test_an_existing_file(self):
        """the old content of an existing file is overwritten, also by zeroes"""
        for fmt in ("raw", "qcow2", "qed"):
            with self.subTest(format=fmt):
                target = create(self.path(f"old.{fmt}"), fmt, self.SIZE)
                fill(target, fmt, [(0, b"\xaa" * self.SIZE)])
                self.begin()
                self.mirror(f"old.{fmt}", format=fmt, mode="existing")
                self.ready()
                self.softly()
                self.server.stop()
                harness.check(target, fmt)
                self.expect_content(target, fmt)


class Sizes(MirrorCase):
    def whole_life(self, size, **arguments):
        self.SIZE = size  # pylint: disable=invalid-name
        for fmt in ("qcow2", "raw"):
            for end in ("cancel", "complete"):
                with self.part(size=size, format=fmt, end=end):
                    self.make(fmt, size)
                    self.begin()
                    target = self.mirror("target.raw", **arguments)
                    data = self.ready()
                    self.assertEqual(data["offset"], data["len"])
                    self.assertLessEqual(data["len"], size)
                    if size:
                        self.write(size - 512, b"\x5a" * 512)
                    if end == "cancel":
                        self.softly()
                    else:
                        self.pivot()
                    self.server.stop()
                    self.expect_content(target, "raw")

    def test_no_bytes(self):
        """M-19: a disk of 0 bytes: the job is ready at once and waits for a command"""
        self.whole_life(0)

    def test_one_sector(self):
        self.whole_life(512)

    def test_no_multiple_of_the_granularity(self):
        """M-13, M-35"""
        self.whole_life(3 * MIB + 1536, granularity=MIB)

    def test_granularities(self):
        """M-14: each from 512 to 64M"""
        self.begin()
        for shift in range(9, 27, 1 if LONG else 4):
            with self.subTest(granularity=1 << shift):
                self.mirror(f"t{shift}.raw", granularity=1 << shift)
                self.ready()
                self.write(12345, bytes([shift]) * 5000)
                self.softly()
                self.expect_content(self.path(f"t{shift}.raw"), "raw")


class Lost(MirrorCase):
    """targets that go away, hang or have no space"""

    def writes_go_on(self, handle=None, count=20):
        for _ in range(count):
            self.write(self.rng.randrange(self.SIZE - 4096), self.rng.randbytes(4096))

    def durable(self, *filters):
        """Starts a target that loses unflushed writes when it is killed; returns it and the log of its requests."""
        filters = ("--filter=cache", "cache=writeback", *filters)
        path, log = self.path("target.raw"), self.path("log")
        with open(path, "wb") as file:
            file.truncate(self.SIZE)
        names = [f for f in filters if f.startswith("--")]
        return self.peer("--filter=log", *names, "file", path, f"logfile={log}", "logappend=true",
                         *[f for f in filters if f not in names]), log

    def test_killed_and_restarted(self):
        """the target is killed and restarted: the job continues without starting over, in each mode"""
        for mode in ("background", "write-blocking"):
            with self.part(mode=mode):
                self.make("qcow2")
                self.begin()
                target, log = self.durable()
                self.mirror(target.uri, copy_mode=mode, on_target_error="stop", granularity=64 * KIB)
                self.ready()
                first = sum(n for _, n in changes(log))
                self.assertGreater(first, MIB)
                self.writes_go_on()  # the target gets these, but no flush
                wait_until(lambda: self.job()["offset"] == self.job()["len"], 20, "the copies")
                target.kill()
                self.writes_go_on()
                self.io_error(operation="write", action="stop")
                self.client.event("JOB_STATUS_CHANGE", id="job", status="standby")
                job = self.job()
                self.assertEqual((job["io-status"], job["paused"], job["status"]), ("failed", True, "standby"))
                self.writes_go_on()
                target.start()
                self.client.cmd("block-job-resume", device="job")
                self.assertEqual(self.job()["io-status"], "ok")
                self.writes_go_on()
                self.softly()
                self.same(target.content(), mode)
                again = sum(n for _, n in changes(log)) - first
                self.assertLess(again, 90 * 128 * KIB + MIB, "it started over")
                self.source_is_good()

    def test_killed_while_it_copies(self):
        """with on-target-error=ignore the job continues by itself when the target is back"""
        self.begin()
        target, _ = self.durable("--filter=delay", "delay-write=20ms")
        self.mirror(target.uri, on_target_error="ignore", granularity=64 * KIB, buf_size=256 * KIB)
        wait_until(lambda: self.job()["offset"] > 0, 20, "the first copy")
        target.kill()
        self.io_error(operation="write", action="ignore")
        self.writes_go_on()
        target.start()
        self.ready()
        self.softly()
        self.same(target.content())
        self.source_is_good()

    def test_lost_for_good(self):
        """M-01: with on-target-error=report the job fails, and clients aren't affected"""
        self.begin()
        target, _ = self.durable()
        self.mirror(target.uri)
        self.ready()
        target.kill()
        self.writes_go_on()
        self.io_error(operation="write", action="report")
        self.ended(error=r"copying from .*disk\.qcow2 to nbd.*: \w+")
        self.writes_go_on()
        self.source_is_good()

    def test_no_space(self):
        """M-07: a full target pauses the job (enospc or stop); with space again and resumed, it continues"""
        for policy in ("enospc", "stop"):
            with self.part(policy=policy):
                self.make("qcow2")
                self.begin()
                full = self.switch("full")
                target = self.memory("--filter=error", "error-pwrite=ENOSPC", "error-pwrite-rate=100%",
                                     f"error-pwrite-file={full}")
                self.mirror(target.uri, on_target_error=policy)
                self.io_error(operation="write", action="stop")
                self.client.event("JOB_STATUS_CHANGE", id="job", status="paused")
                self.assertEqual(self.job()["io-status"], "nospace")
                self.writes_go_on()
                full.unlink()
                self.client.cmd("block-job-resume", device="job")
                self.ready()  # without a second stop for the same cause
                self.assertNotIn("BLOCK_JOB_ERROR", [e["event"] for e in self.client.events])
                self.assertEqual(self.job()["io-status"], "ok")
                self.softly()
                self.same(target.content())
                self.source_is_good()

    def test_a_full_filesystem(self):
        """the same with a file on a full filesystem"""
        room = self.path("room")
        os.mkdir(room)
        if run("mount", "-t", "tmpfs", "-o", "size=2M", "qimg-e2e", room, check=False).returncode != 0:
            self.skipTest("a small tmpfs can't be mounted here")
        self.addCleanup(run, "umount", "-l", room)
        self.begin()
        self.mirror("room/target.qcow2", format="qcow2", on_target_error="enospc")
        self.io_error(operation="write", action="stop")
        wait_until(lambda: self.job()["status"] == "paused", 20, "the pause")
        self.assertEqual(self.job()["io-status"], "nospace")
        self.writes_go_on()
        run("mount", "-o", "remount,size=64M", room)
        self.client.cmd("block-job-resume", device="job")
        self.ready()
        self.softly()
        self.expect_content(os.path.join(room, "target.qcow2"), "qcow2")
        harness.check(os.path.join(room, "target.qcow2"), "qcow2")
        self.source_is_good()

    def test_error_that_isnt_space(self):
        """M-07: on-target-error=enospc ends the job at other errors"""
        self.begin()
        target = self.memory("--filter=error", "error-pwrite=EIO", "error-pwrite-rate=100%")
        self.mirror(target.uri, on_target_error="enospc")
        self.io_error(operation="write", action="report")
        self.ended(error="Input/output error")
        self.source_is_good()

    def test_some_writes_fail(self):
        """M-08: on-target-error=ignore tries failed writes again, and nothing is lost"""
        self.begin()
        target = self.memory("--filter=error", "error-pwrite=EIO", "error-pwrite-rate=10%",
                             "error-zero=EIO", "error-zero-rate=10%")
        self.mirror(target.uri, on_target_error="ignore", granularity=64 * KIB)
        self.ready()
        self.writes_go_on(count=5)
        self.softly()
        self.same(target.content())
        self.source_is_good()

    def test_stopped_again_after_a_cancel(self):
        """a soft cancel of a job that is stopped at an error stops at the next error again, and waits"""
        self.begin()
        bad = pathlib.Path(self.path("bad"))
        target = self.memory("--filter=error", "error-pwrite=EIO", "error-pwrite-rate=100%",
                             f"error-pwrite-file={bad}")
        self.mirror(target.uri, on_target_error="stop")
        self.ready()
        bad.touch()
        self.writes_go_on(count=1)
        self.io_error(operation="write", action="stop")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="standby")
        self.client.cmd("block-job-cancel", device="job")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="ready")
        self.io_error(operation="write", action="stop")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="standby")
        bad.unlink()
        self.client.cmd("block-job-resume", device="job")
        self.ended()
        self.same(target.content())
        self.source_is_good()

    def test_source_errors(self):
        """M-07, M-34: the source has an impossible table entry"""
        l1 = harness.header(self.image, 40, 8, "big")
        l2 = harness.header(self.image, l1, 8, "big") & 0x00fffffffffffe00
        entry = harness.header(self.image, l2, 8, "big")
        good, bad = entry.to_bytes(8, "big"), (entry + 512).to_bytes(8, "big")
        for policy, action in (("report", "report"), ("enospc", "report"), ("stop", "stop"), ("ignore", "ignore")):
            with self.subTest(policy=policy):
                harness.patch(self.image, l2, bad)
                harness.patch(self.image, 72, bytes(8))  # clear the corrupt bit of the run before
                self.begin()
                self.mirror(f"{policy}.raw", on_source_error=policy)
                self.io_error(operation="read", action=action)
                if action == "report":
                    self.ended(error="Input/output error")
                else:
                    if action == "stop":
                        self.client.event("JOB_STATUS_CHANGE", id="job", status="paused")
                        self.assertEqual(self.job()["io-status"], "failed")
                    else:
                        self.io_error(operation="read", action=action)
                        self.assertEqual(self.job()["io-status"], "ok")
                    self.forced()
                self.server.kill()
        harness.patch(self.image, l2, good)

    def hung(self, ready, **arguments):
        self.begin()
        target = self.memory(*([] if ready else ["--filter=delay", "delay-write=50ms"]))
        self.mirror(target.uri, **arguments)
        if ready:
            self.ready()
        else:
            wait_until(lambda: self.job()["busy"], 20, "the first copy")
        self.addCleanup(target.thaw)
        target.freeze()
        return target

    def test_hung(self):
        """M-01: clients go on; a forced cancel ends the job at once"""
        for ready in (False, True):
            with self.part(ready=ready):
                self.make("qcow2")
                self.hung(ready)
                self.writes_go_on()
                self.forced()
                self.writes_go_on()
                self.source_is_good()

    def test_hung_when_it_is_to_end(self):
        """M-09: a job that is to end waits for its hanging target without holding clients back"""
        for verb in ("block-job-cancel", "block-job-complete"):
            with self.part(verb=verb):
                self.make("qcow2")
                target = self.hung(True, on_target_error="stop")
                self.writes_go_on(count=1)
                self.client.cmd(verb, device="job")
                began = time.monotonic()
                self.writes_go_on()
                self.assertLess(time.monotonic() - began, SOON)
                target.thaw()
                self.ended()
                self.writes_go_on(count=1)
                if verb == "block-job-cancel":
                    self.source_is_good()
                else:
                    self.disk.flush()
                    self.server.stop()
                    self.same(target.content())

    def test_hung_under_a_blocked_write(self):
        """write-blocking: a client that waits for the hanging target goes on after the cancel; its write succeeds"""
        self.hung(True, copy_mode="write-blocking")
        writer = threading.Thread(target=self.write, args=(MIB, b"blocked" * 1000))
        writer.start()
        wait_until(lambda: self.job()["len"] != self.job()["offset"], 20, "the write")
        self.assertTrue(writer.is_alive())
        self.forced()
        writer.join(SOON)
        self.assertFalse(writer.is_alive())
        self.source_is_good()

    def test_hung_at_the_servers_end(self):
        for ready in (False, True):
            with self.part(ready=ready):
                self.make("qcow2")
                self.hung(ready)
                self.writes_go_on(count=2)
                began = time.monotonic()
                self.source_is_good()
                self.assertLess(time.monotonic() - began, SOON)


class Sync(MirrorCase):
    """M-25: what each sync mode copies from a chain of three images"""

    def setUp(self):
        Case.setUp(self)
        self.fmt = "qcow2"
        self.base, self.middle, self.image = (self.path(n) for n in ("base.raw", "middle.qed", "top.qcow2"))
        create(self.base, "raw", self.SIZE)
        create(self.middle, "qed", self.SIZE, backing=self.base, backing_fmt="raw")
        create(self.image, "qcow2", self.SIZE, backing=self.middle, backing_fmt="qed")
        self.content = bytearray(self.SIZE)
        for number, (path, fmt) in enumerate([(self.base, "raw"), (self.middle, "qed"), (self.image, "qcow2")]):
            pieces = [(off, self.rng.randbytes(64 * KIB)) for off in range(number * MIB, self.SIZE, 3 * MIB)]
            fill(path, fmt, pieces)
            for off, payload in pieces:
                self.content[off:off + len(payload)] = payload
        run("qemu-io", "-f", "qcow2", "-c", "write -z 4096k 64k", self.image)  # zeroes that hide the middle layer
        self.content[4 * MIB:4 * MIB + 64 * KIB] = bytes(64 * KIB)
        self.tops = [2 * MIB, 4 * MIB, 5 * MIB]  # offsets of the 64 KiB that the active image has itself

    def recorder(self, fill_with=None):
        log, path = self.path("log"), self.path("target.raw")
        with open(path, "wb") as file:
            file.write(fill_with or bytes(self.SIZE))
        return self.peer("--filter=log", "file", path, f"logfile={log}"), log

    def touched(self, log):
        """The offsets of the 64 KiB chunks of the target that were changed."""
        return sorted({at // (64 * KIB) * 64 * KIB for off, n in changes(log)
                       for at in range(off, off + n, 512)})

    def finish(self, target):
        self.write(7 * MIB, b"late")
        self.softly()
        self.server.stop()
        return target.content() if target else None

    def test_full(self):
        self.begin()
        target, _ = self.recorder()
        self.mirror(target.uri, sync="full")
        self.ready()
        self.same(self.finish(target))

    def test_top(self):
        """sync=top only copies the active layer; the target already has the layers below"""
        below = harness.content(self.middle, "qed")
        self.begin()
        target, log = self.recorder(below)
        self.mirror(target.uri, sync="top", granularity=64 * KIB)
        self.ready()
        self.assertEqual(self.touched(log), self.tops)
        self.same(self.finish(target))

    def test_top_to_a_new_overlay(self):
        """M-12: a cluster that is copied in part is completed from the new overlay's own backing file"""
        for fmt, granularity in itertools.product(("qcow2", "qed"), (512, 64 * KIB)):
            with self.subTest(format=fmt, granularity=granularity):
                self.begin()
                target = self.mirror(f"new.{fmt}", sync="top", format=fmt, granularity=granularity)
                self.ready()
                self.finish(None)
                self.assertEqual(harness.info(target, fmt)["full-backing-filename"], self.middle)
                runs = harness.json.loads(run("qemu-img", "map", "--output=json", "-f", fmt, target).stdout)
                own = {at for r in runs if r["depth"] == 0
                       for at in range(r["start"], r["start"] + r["length"], 64 * KIB)}
                self.assertEqual(sorted(own), [*self.tops, 7 * MIB])
                self.expect_content(target, fmt)

    def test_none(self):
        self.begin()
        target, log = self.recorder(self.content)
        self.mirror(target.uri, sync="none", granularity=64 * KIB)
        data = self.ready()
        self.assertEqual((data["len"], data["offset"]), (0, 0))
        self.write(3 * MIB + 5, b"new")
        self.same(self.finish(target))
        self.assertEqual(self.touched(log), [3 * MIB, 7 * MIB])

    def test_incremental(self):
        """sync=incremental only copies what was written since the bitmap was added"""
        self.begin()
        self.write(MIB, b"before the bitmap")
        target, log = self.recorder(self.content)
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="since", granularity=64 * KIB)
        self.write(2 * MIB - 5, b"over an edge")
        self.disk.zero(64 * KIB, 6 * MIB)
        self.content[6 * MIB:6 * MIB + 64 * KIB] = bytes(64 * KIB)
        self.mirror(target.uri, sync="incremental", bitmap="since", granularity=64 * KIB)
        self.ready()
        self.assertEqual(self.touched(log), [2 * MIB - 64 * KIB, 2 * MIB, 6 * MIB])
        self.assertIs(self.client.cmd("query-block")[0]["inserted"]["dirty-bitmaps"][0]["busy"], True)
        self.same(self.finish(target))

    def test_a_pivot_from_a_chain(self):
        """the target has the content of the whole chain, whose images aren't changed any more"""
        self.begin()
        target = self.mirror("flat.qcow2", format="qcow2")
        self.ready()
        before = [harness.sha256(p) for p in (self.base, self.middle)]
        self.pivot()
        self.write(0, b"to the flat one")
        self.server.stop()
        self.expect_content(target, "qcow2")
        self.assertEqual([harness.sha256(p) for p in (self.base, self.middle)], before)


class Options(MirrorCase):
    """the disk's options (cache, discard, detect-zeroes) also hold for the image that takes its place"""

    def served(self):
        disk = self.client.cmd("query-block")[0]["inserted"]
        return disk["file"], disk["cache"]["mode"], disk["detect_zeroes"]

    def is_direct(self, path):
        found = [fd for fd in pathlib.Path(f"/proc/{self.server.process.pid}/fd").iterdir()
                 if os.readlink(fd) == os.path.realpath(path)]
        flags = [int(pathlib.Path(str(fd).replace("/fd/", "/fdinfo/")).read_text().split()[3], 8) for fd in found]
        return any(f & os.O_DIRECT for f in flags)

    def test_a_pivot(self):
        for mode in ("writethrough", "none", "directsync", "volatile"):
            with self.part(mode=mode):
                self.make("raw")
                self.begin(f"cache={mode}", "discard=ignore", "detect-zeroes=on")
                target = self.mirror(f"{mode}.raw")
                self.ready()
                self.pivot()
                # V-07: a target is never volatile, even if the disk was.
                self.assertEqual(self.served(), (target, "writeback" if mode == "volatile" else mode, "on"))
                self.assertEqual(self.is_direct(target), mode in ("none", "directsync"))
                self.write(0, bytes([7]) * MIB)
                self.disk.flush()
                before = os.stat(target).st_blocks
                self.disk.trim(MIB, 0)
                self.disk.flush()
                self.assertEqual(os.stat(target).st_blocks, before, "it was punched")
                self.server.stop()
                self.expect_content(target, "raw")


class Ends(MirrorCase):
    def test_users_go_on_while_a_job_is_pending(self):
        """clients go on while the job is pending, and the target gets their writes until it is finalized"""
        self.begin()
        writers = Writers(self.server, self.content, SEED)
        try:
            target = self.mirror("target.qcow2", format="qcow2", auto_finalize=False, auto_dismiss=False)
            self.ready()
            self.client.cmd("block-job-complete", device="job")
            self.expect_event("BLOCK_JOB_PENDING")
            writers.some(60)
            self.assertEqual(self.job()["status"], "pending")
            self.client.cmd("block-job-finalize", id="job")
            self.expect_event("BLOCK_JOB_COMPLETED")
            writers.some(60)
        finally:
            writers.stop()
        self.assertEqual(self.job()["status"], "concluded")
        self.disk.flush()
        self.server.stop()  # while a concluded job is still listed
        self.expect_content(target, "qcow2")
        harness.check(target, "qcow2")

    def test_no_job_comes_between(self):
        """M-38: after block-job-complete no other job can start on the disk"""
        self.begin()
        target = self.mirror("target.raw", auto_finalize=False)
        self.ready()
        self.client.cmd("block-job-complete", device="job")
        self.fails("GenericError", self.client, "drive-mirror", "'job' uses the disk", device="drive0",
                   job_id="other", sync="full", target=self.path("other.raw"))
        self.expect_event("BLOCK_JOB_PENDING")
        self.fails("GenericError", self.client, "drive-mirror", "'job' uses the disk", device="drive0",
                   job_id="other", sync="full", target=self.path("other.raw"))
        self.client.cmd("block-job-finalize", id="job")
        self.ended()
        self.server.stop()
        self.expect_content(target, "raw")

    def test_a_cancel_while_it_is_pending(self):
        for force in (False, True):
            with self.part(force=force):
                self.make("qcow2")
                self.begin()
                self.mirror("target.raw", auto_finalize=False)
                self.ready()
                self.client.cmd("block-job-complete", device="job")
                self.expect_event("BLOCK_JOB_PENDING")
                self.client.cmd("block-job-cancel", device="job", force=force)
                self.ended("BLOCK_JOB_CANCELLED")
                self.write(0, b"still here")
                self.source_is_good()

    def test_the_target_is_lost_while_it_is_pending(self):
        """finalizing fails, and the source stays in use"""
        self.begin()
        target = self.memory()
        self.mirror(target.uri, auto_finalize=False)
        self.ready()
        self.client.cmd("block-job-complete", device="job")
        self.expect_event("BLOCK_JOB_PENDING")
        target.kill()
        self.write(0, b"only here")
        self.client.cmd("block-job-finalize", id="job")
        self.ended(error="copying from")
        self.write(MIB, b"and here")
        self.source_is_good()

    def test_the_end_in_each_state_of_a_job_without_dismissal(self):
        """the server ends while a concluded job is still listed, after a cancel and after a pivot"""
        for end in ("cancel", "complete"):
            with self.part(end=end):
                self.make("qcow2")
                self.begin()
                target = self.memory()
                self.mirror(target.uri, auto_dismiss=False)
                self.ready()
                self.client.cmd(f"block-job-{end}", device="job")
                self.expect_event("BLOCK_JOB_COMPLETED")
                self.write(0, b"behind it")
                self.server.stop()
                self.assertNotIn("must be checked", self.server.errors)
                if end == "complete":
                    self.same(target.content())

    def test_two_jobs_and_a_bitmap(self):
        """M-26: two jobs and a bitmap follow the disk's changes independently"""
        self.begin()
        writers = Writers(self.server, self.content, SEED)
        try:
            self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b", granularity=4 * KIB)
            self.mirror("one.qcow2", job_id="one", format="qcow2")
            self.mirror("two.raw", job_id="two", copy_mode="write-blocking", granularity=4 * KIB)
            for _ in range(2):
                self.expect_event("BLOCK_JOB_READY")
            writers.some(60)
            self.client.cmd("block-dirty-bitmap-clear", node="drive0", name="b")
            writers.some(30)
        finally:
            writers.stop()
        self.assertGreater(self.client.cmd("query-block")[0]["inserted"]["dirty-bitmaps"][0]["count"], 0)
        for job in ("one", "two"):
            self.client.cmd("block-job-cancel", device=job)
        for _ in range(2):
            self.expect_event("BLOCK_JOB_COMPLETED")
        self.expect_content(self.path("one.qcow2"), "qcow2")
        self.expect_content(self.path("two.raw"), "raw")
        self.source_is_good()

    def test_two_jobs_that_end_at_once(self):
        """M-04: each target is the disk at one moment"""
        for number in range(max(2, ROUNDS // 2)):
            with self.part(round=number):
                self.make("raw")
                self.begin()
                writers = Writers(self.server, self.content, f"{SEED} {number}")
                try:
                    for job in ("one", "two"):
                        self.mirror(f"{job}.raw", job_id=job, granularity=4 * KIB)
                    for _ in range(2):
                        self.expect_event("BLOCK_JOB_READY")
                    writers.mark()
                    for job in ("one", "two"):
                        self.client.cmd("block-job-cancel", device=job)
                    for _ in range(2):
                        self.expect_event("BLOCK_JOB_COMPLETED")
                    found = [harness.content(self.path(f"{job}.raw"), "raw") for job in ("one", "two")]
                finally:
                    writers.stop()
                self.assertEqual([writers.is_a_moment(f) for f in found], [True, True])

    @unittest.skipIf(harness.SANITIZER_ENV, "a sanitizer takes memory for itself")
    def test_memory(self):
        """M-16: a job takes little more memory than buf-size"""
        self.SIZE = 40 * MIB  # pylint: disable=invalid-name
        self.content, self.fmt, self.image = bytearray(b"x" * self.SIZE), "raw", self.path("full.raw")
        pathlib.Path(self.image).write_bytes(self.content)

        def used():
            status = pathlib.Path(f"/proc/{self.server.process.pid}/status").read_text(encoding="ascii")
            return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * KIB

        for size, arguments in ((16 * MIB, {}), (MIB, {"buf_size": MIB})):
            with self.subTest(buf_size=size):
                self.begin()
                before = used()
                target = self.memory("--filter=delay", "delay-write=1ms")
                self.mirror(target.uri, granularity=64 * KIB, **arguments)
                self.ready()
                self.assertLess(used() - before, size + 2 * MIB)
                self.softly()
                self.server.stop()

    def test_progress(self):
        """M-03: offset never decreases, and never exceeds len"""
        self.begin()
        writers = Writers(self.server, self.content, SEED)
        seen = []
        try:
            self.mirror("t.raw", speed=MIB, granularity=4 * KIB)
            while not seen or not seen[-1]["ready"] or len(seen) < 80:
                if len(seen) == 40:
                    self.client.cmd("block-job-set-speed", device="job", speed=0)
                seen.append(self.job())
        finally:
            writers.stop()
        for before, after in zip(seen, seen[1:]):
            self.assertLessEqual(before["offset"], after["offset"])
            self.assertLessEqual(after["offset"], after["len"])
        self.softly()

    def test_users_are_served_right_after_a_pivot_to_another_cache_of_ours(self):
        """M-06: a read right after the switch returns what was written before it"""
        self.begin()
        self.mirror("t.qcow2", format="qcow2")
        self.ready()
        self.write(MIB, b"x" * 100000)
        self.client.cmd("block-job-complete", device="job")
        self.assertEqual(bytes(self.disk.pread(100000, MIB)), b"x" * 100000)
        self.ended()
        self.assertEqual(bytes(self.disk.pread(self.SIZE, 0)), bytes(self.content))


@parametrised
class Killed(MirrorCase):
    """kill -9 of the server in each phase of a job: the source has everything that was flushed"""

    cases_phase = {f"{fmt} {phase}": (fmt, phase) for fmt in ("qcow2", "qed", "raw")
                   for phase in ("running", "ready", "completing", "paused", "blocking", "pending")
                   if LONG or fmt == "qcow2" or phase in ("running", "ready", "completing")}

    def check_phase(self, fmt, phase):
        self.make(fmt)
        self.begin()
        writers = Writers(self.server, self.content, f"{SEED} {fmt} {phase}")
        writers.some(20)
        self.mirror("target.qcow2", format="qcow2", speed=MIB if phase in ("running", "paused") else 0,
                    copy_mode="write-blocking" if phase == "blocking" else "background",
                    auto_finalize=phase != "pending")
        if phase == "paused":
            self.client.cmd("block-job-pause", device="job")
            self.client.event("JOB_STATUS_CHANGE", status="paused")
        elif phase != "running":
            self.ready()
            if phase in ("pending", "completing"):
                self.client.cmd("block-job-complete", device="job")
            if phase == "pending":
                self.expect_event("BLOCK_JOB_PENDING")
        if phase != "completing":
            writers.some(30)
        self.server.kill()
        served = [self.image, fmt]
        if fmt != "raw":
            harness.repair(self.image, fmt)
            harness.check(self.image, fmt, allow_leaks=fmt == "qed")
        found = [harness.content(*served)]
        if phase == "completing":  # the server may have switched already
            harness.repair(self.path("target.qcow2"), "qcow2")
            found.append(harness.content(self.path("target.qcow2"), "qcow2"))
        self.assertTrue(any([writers.crashed(f) for f in found]), "a flushed byte is lost")


if __name__ == "__main__":
    unittest.main()
