# SPDX-License-Identifier: BSD-3-Clause
"""Several jobs on one disk at the same time: mirrors whose targets become the disk one after the other, backups that
go on meanwhile, streams of layers below.  M-59"""

import os
import pathlib
import random
import socket

import nbd

import harness
from harness import KIB, LONG, MIB, SEED, check, create, wait_until
from test_bitmaps_move import BitmapCase
from test_mirror import SOON
from test_stream import StreamCase
from test_together import TogetherCase
from writers import Writers

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 30 if LONG else 3))


class Mirrors(BitmapCase):
    TIMEOUT = 1000

    def test_one_by_one(self):
        """each target becomes the disk in turn; the image that was the disk before is the disk of that moment"""
        for number in range(ROUNDS):
            with self.subTest(round=number):
                self.one(random.Random(f"{SEED} {number}"), number)

    def one(self, rng, number):
        self.make(rng.choice(["qcow2", "qed", "raw"]))
        self.begin()
        self.bitmap("add", "b", granularity=4 * KIB)
        writers = Writers(self.server, self.content, f"{SEED} beside {number}")
        try:
            jobs = [f"job{n}" for n in range(3)]
            images = {None: (self.image, self.fmt)}
            for job in jobs:
                fmt = rng.choice(["qcow2", "qed", "raw"])
                images[job] = (self.mirror(f"{job}.{number}", job_id=job, format=fmt,
                                           copy_mode=rng.choice(["background", "write-blocking"]),
                                           granularity=rng.choice([4 * KIB, 64 * KIB, MIB])), fmt)
                if rng.random() < 0.5:
                    writers.some(10)
            if rng.random() < 0.5:  # the third mirror may still be copying when the first completes
                self.client.cmd("block-job-set-speed", device=jobs[2], speed=MIB)
            last = None
            for job in jobs:
                if job == jobs[2]:
                    self.client.cmd("block-job-set-speed", device=job, speed=0)
                self.until_ready(job)
                writers.some(20)
                writers.mark()
                self.client.cmd("job-complete", id=job)
                self.client.event("JOB_STATUS_CHANGE", id=job, status="null", timeout=60)
                writers.some(20)
                self.assertEqual(self.top()["file"], images[job][0])
                if job == jobs[2]:
                    self.assertTrue(writers.is_a_moment(harness.content(*images[last])), f"{SEED}: what was left")
                last = job
            with writers.still():
                self.expect_dirty("b", writers.changed(), "after all")
        finally:
            self.content = writers.stop()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.server.stop()
        for path, fmt in images.values():
            check(path, fmt)
        self.expect_content(*images[last])

    def until_ready(self, job):
        while not [j for j in self.client.cmd("query-block-jobs") if j["device"] == job and j["ready"]]:
            self.client.event("BLOCK_JOB_READY", device=job, timeout=60)

    def test_one_that_is_paused(self):
        """a paused mirror follows the disk to its new image, and keeps the old one open until it is resumed"""
        self.begin()
        for job in ("one", "two"):
            self.mirror(f"{job}.raw", job_id=job, granularity=4 * KIB)
            self.until_ready(job)
        self.client.cmd("job-pause", id="two")
        self.client.event("JOB_STATUS_CHANGE", id="two", status="standby")
        self.client.cmd("job-complete", id="one")
        self.client.event("JOB_STATUS_CHANGE", id="one", status="null")
        for n in range(20):
            self.write(n * 64 * KIB + 5, b"later" * 100)
        self.client.cmd("job-resume", id="two")
        self.client.cmd("block-job-complete", device="two")
        self.client.event("JOB_STATUS_CHANGE", id="two", status="null")
        self.write(0, b"last")
        self.assertEqual(self.top()["file"], self.path("two.raw"))
        check(self.image, self.fmt)  # without -U: the old image isn't locked any more
        self.server.stop()
        self.expect_content(self.path("two.raw"), "raw")

    def test_the_old_image_is_let_go(self):
        """a second mirror copies from the new image, and the old one is soon closed cleanly"""
        self.begin()
        for job in ("one", "two"):
            self.mirror(f"{job}.raw", job_id=job)
            self.until_ready(job)
        self.client.cmd("job-complete", id="one")
        self.client.event("JOB_STATUS_CHANGE", id="one", status="null")
        harness.wait_until(lambda: harness.run("qemu-img", "check", self.image, check=False).returncode == 0, 20,
                           "the old image's end")
        self.write(MIB, b"x" * 5000)
        self.client.cmd("block-job-cancel", device="two")
        self.client.event("JOB_STATUS_CHANGE", id="two", status="null")
        self.expect_content(self.path("two.raw"), "raw")
        self.server.stop()
        self.expect_content(self.path("one.raw"), "raw")


class Backups(TogetherCase, BitmapCase):
    TIMEOUT = 1000

    def test_the_disk_moves_meanwhile(self):
        """the disk moves during a backup: copy and view stay at the frozen point; the bitmap has all later changes"""
        for number in range(ROUNDS):
            with self.subTest(round=number):
                self.one(random.Random(f"{SEED} b{number}"), number)

    def one(self, rng, number):
        self.make(rng.choice(["qcow2", "qed", "raw"]))
        self.begin()
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b", granularity=4 * KIB)
        create(self.path(f"store{number}.qcow2"), "qcow2", self.SIZE)
        fmt, slow = rng.choice(["qcow2", "raw"]), self.path(f"slow{number}.raw")
        writers = Writers(self.server, self.content, f"{SEED} b{number}")
        try:
            target = self.mirror(f"target{number}", job_id="m", format=fmt)
            self.ready()
            with writers.still():
                writers.mark()
                writers.changed(begin=True)
                self.transact(self.action(slow, job="slow", speed=MIB, bitmap="b", bitmap_mode="on-success",
                                          **({"on_cbw_error": "break-snapshot", "cbw_timeout": 60} if number % 2 else {})),
                              self.action(self.path(f"store{number}.qcow2"), "none", job="view", mode="existing",
                                          format="qcow2"))
            writers.some(30)
            self.client.cmd("job-complete", id="m")
            self.client.event("JOB_STATUS_CHANGE", id="m", status="null", timeout=60)
            writers.some(30)
            self.assertEqual(self.top()["file"], target)
            shown = self.view("view")
            self.client.cmd("block-job-set-speed", device="slow", speed=0)
            self.all_end("slow")
            writers.some(20)
            copy = harness.content(slow, "raw")
            self.assertTrue(writers.is_a_moment(copy), f"{SEED}: the copy")
            self.assertTrue(copy == shown == self.view("view"), f"{SEED}: what is shown")
            with writers.still():
                self.expect_dirty("b", writers.changed(), "the backup's bitmap")
            self.cancelled("view")
        finally:
            self.content = writers.stop()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.server.stop()
        self.expect_content(target, fmt)
        check(target, fmt)
        check(self.image, self.fmt)

    def test_a_target_that_hangs(self):
        """only its own job waits for a target that hangs: others start, end and move the disk, and clients go on"""
        self.begin()
        hung = self.memory("--filter=delay", "delay-write=50ms")
        self.transact(self.action(hung.uri, job="hung", mode="existing"))
        hung.freeze()
        try:
            for number in range(4):
                self.write(number * MIB, b"goes on" * 1000)
                self.client.cmd("drive-backup", job_id="b", device="drive0", target=self.path("b.raw"), sync="full", format="raw")
                self.all_end("b")
                self.assertTrue(harness.content(self.path("b.raw"), "raw") == self.content)
            self.mirror("t.raw", job_id="m")
            self.client.event("BLOCK_JOB_READY", device="m")
            self.write(MIB, b"before" * 1000)
            self.client.cmd("job-complete", id="m")
            self.client.event("JOB_STATUS_CHANGE", id="m", status="null")
            self.write(MIB, b"after" * 1000)
            self.client.cmd("block-job-cancel", device="hung", force=True)
            self.client.event("BLOCK_JOB_CANCELLED", device="hung")
        finally:
            hung.thaw()
        self.server.stop()
        self.expect_content(self.path("t.raw"), "raw")

    def test_a_reader_that_hangs(self):
        """a client hangs in a read of a view: the backup's end waits for it, but a mirror that can't complete because
        of it doesn't hold clients back"""
        log, switch = pathlib.Path(self.path("log")), self.path("switch")
        base = self.peer("--filter=log", "--filter=pause", "pattern", str(self.SIZE), f"logfile={log}",
                         f"pause-control={switch}")
        self.image, self.fmt = create(self.path("upon"), "qcow2", None, backing=base.uri, backing_fmt="raw"), "qcow2"
        self.content = bytearray(b"".join(off.to_bytes(8, "big") for off in range(0, self.SIZE, 8)))
        self.begin()
        create(self.path("store.qcow2"), "qcow2", self.SIZE)
        self.mirror("t.raw", job_id="m")
        self.client.event("BLOCK_JOB_READY", device="m")
        self.backup("store.qcow2", "none", job="f", mode="existing", format="qcow2")
        reader = self.server.connect("backup/f")
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(switch)
            control.sendall(b"p")
            self.assertEqual(control.recv(1), b"P")
            self.beside_a_hung_read(reader, log)
            control.sendall(b"r")
            self.assertEqual(control.recv(1), b"R")
        self.client.event("JOB_STATUS_CHANGE", id="f", status="null", timeout=60)
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.server.stop()
        check(self.image, self.fmt)

    def beside_a_hung_read(self, reader, log):
        def has_come():
            reader.poll(10)
            return log.read_text().count(" Read ") > reads

        reads = log.read_text().count(" Read ")
        read = reader.aio_pread(nbd.Buffer(64 * KIB), MIB)
        wait_until(has_come, SOON, "the read")
        self.client.cmd("block-job-cancel", device="f")
        self.client.cmd("job-complete", id="m")
        event = self.client.event("BLOCK_JOB_COMPLETED", device="m", timeout=60)
        self.assertRegex(event["data"]["error"], "a client reads|is busy")
        reader.poll(0)
        self.assertFalse(reader.aio_command_completed(read), "it was waited for")
        self.write(2 * MIB, bytes(64 * KIB))  # a whole cluster, so that nothing is read from below


class Streams(StreamCase, TogetherCase):
    TIMEOUT = 1000

    def test_beside_copies(self):
        """streams remove layers below a disk while a backup and a mirror copy it"""
        for number in range(ROUNDS):
            with self.subTest(round=number):
                self.one(number)

    def one(self, number):
        rng = self.rng = random.Random(f"{SEED} s{number}")
        self.chain()
        self.begin()
        writers = Writers(self.server, self.content, f"{SEED} s{number}")
        try:
            writers.some(10)
            writers.mark()
            self.client.cmd("drive-backup", job_id="copy", device="drive0", target=self.path("copy.raw"), sync="full",
                            format="raw", speed=2 * MIB)
            self.client.cmd("drive-mirror", job_id="mirror", device="drive0", target=self.path("mirror.raw"), sync="full",
                            speed=2 * MIB)
            layer, base = rng.choice([("drive0#1", None), ("drive0#1", "drive0#3"), ("drive0", "drive0#2"), ("drive0", None)])
            self.client.cmd("block-stream", job_id="job", device=layer, **({"base_node": base} if base else {}))
            self.client.event("JOB_STATUS_CHANGE", id="job", status="null", timeout=60)
            self.assertLess(len(self.names()), 4)
            for job in ("copy", "mirror"):
                self.client.cmd("block-job-set-speed", device=job, speed=0)
            self.client.event("JOB_STATUS_CHANGE", id="copy", status="null", timeout=60)
            self.assertTrue(writers.is_a_moment(harness.content(self.path("copy.raw"), "raw")))
            while not self.job()["ready"]:
                self.client.event("BLOCK_JOB_READY", timeout=60)
        finally:
            self.content = writers.stop()
        self.client.cmd("block-job-cancel", device="mirror")
        self.client.event("JOB_STATUS_CHANGE", id="mirror", status="null", timeout=60)
        self.expect_content(self.path("mirror.raw"), "raw")
        self.good()

    def test_a_point_below_the_disk(self):
        """images below an overlay that a backup reads can't be removed by a stream until the backup has ended"""
        self.chain()
        self.begin()
        then = bytes(self.content)
        self.transact(self.action(self.path("b.raw"), job="b", speed=64 * KIB), self.over("o"))
        self.write(MIB, b"behind" * 1000)
        for device, base in (("o", None), ("o", self.files[2][0]), ("drive0", None)):
            self.fails("GenericError", self.client, "block-stream", "Node '.*' is busy", job_id="s", device=device,
                       **({"base": base} if base else {}))
        self.client.cmd("block-job-set-speed", device="b", speed=0)
        self.all_end("b")
        self.assertTrue(harness.content(self.path("b.raw"), "raw") == then)
        self.client.cmd("block-stream", job_id="job", device="o")
        self.ended()
        self.assertEqual(len(self.names()), 1)
        self.image, self.fmt = self.path("o.qcow2"), "qcow2"
        self.good()

    def test_an_image_that_is_kept(self):
        """a backup still reads the image that a mirror has replaced: a stream is refused until then"""
        self.chain()
        self.begin()
        self.client.cmd("drive-backup", job_id="b", device="drive0", target=self.path("b.raw"), sync="full", format="raw", speed=64 * KIB)
        then = bytes(self.content)
        create(self.path("base.qcow2"), "qcow2", self.SIZE)
        create(self.path("t.qcow2"), "qcow2", self.SIZE, backing=self.path("base.qcow2"), backing_fmt="qcow2")
        self.mirror("t.qcow2", job_id="m", mode="existing", format="qcow2")
        self.ready()
        self.client.cmd("job-complete", id="m")
        self.client.event("JOB_STATUS_CHANGE", id="m", status="null", timeout=60)
        self.fails("GenericError", self.client, "block-stream", "is busy", job_id="s", device="drive0")
        self.client.cmd("block-job-set-speed", device="b", speed=0)
        self.all_end("b")
        self.assertTrue(harness.content(self.path("b.raw"), "raw") == then)
        self.client.cmd("block-stream", job_id="job", device="drive0")
        self.ended()
        self.image, self.fmt = self.path("t.qcow2"), "qcow2"
        self.good()

    def test_refused(self):
        """jobs that remove images can't run together, and a mirror can't complete while such a job runs"""
        self.chain()
        self.begin()
        self.mirror(speed=64 * KIB)
        self.fails("GenericError", self.client, "block-commit", "'job' uses the disk, too", device="drive0", job_id="c")
        self.forced()
        self.client.cmd("block-stream", job_id="s", device="drive0#1", speed=1)
        self.fails("GenericError", self.client, "block-stream", "'s' uses the disk, too", device="drive0", job_id="t")
        self.fails("GenericError", self.client, "block-commit", "'s' uses the disk, too", device="drive0", job_id="c")
        self.mirror()
        self.ready()
        self.fails("GenericError", self.client, "job-complete", "cannot be completed: job 's'", id="job")
        self.client.cmd("block-job-cancel", device="s", force=True)
        self.client.event("JOB_STATUS_CHANGE", id="s", status="null", timeout=60)
        self.pivot()
        self.server.stop()
        self.expect_content(self.path("target.raw"), "raw")


if __name__ == "__main__":
    harness.unittest.main()
