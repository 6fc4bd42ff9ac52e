# SPDX-License-Identifier: BSD-3-Clause
"""A long sequence of jobs on one disk: snapshots and their commits, streams and backups, one after the other on one
server, with four random writers and a client that flushes; and kill -9 in each phase.  M-58"""

import os
import random
import threading

import harness
from harness import KIB, LONG, MIB, SEED, check, parametrised, run
from test_together import TogetherCase
from writers import Writers

OVERLAYS, STREAMS, BACKUPS = (200, 50, 50) if LONG else (8, 2, 2)
KILLS = int(os.environ.get("QIMG_ROUNDS", 20 if LONG else 1))


class Flusher(threading.Thread):
    """A client that flushes all the time."""

    def __init__(self, handle):
        super().__init__(daemon=True)
        self.handle, self.over, self.error = handle, False, None
        self.start()

    def run(self):
        try:
            while not self.over:
                self.handle.flush()
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def stop(self):
        self.over = True
        self.join(60)


class Life(TogetherCase):
    TIMEOUT = 6000

    def test_one_disk(self):
        """each frozen image and each backup is the disk at one moment, byte for byte"""
        rng = random.Random(f"{SEED} life")
        acts = ["commit"] * OVERLAYS + ["stream"] * STREAMS + ["backup"] * BACKUPS
        rng.shuffle(acts)
        self.make(rng.choice(["qcow2", "qed"]))
        self.begin("need-check-delay=0.05")
        writers, flusher = Writers(self.server, self.content, f"{SEED} life"), Flusher(self.server.connect())
        try:
            for number, act in enumerate(acts):
                writers.some(20)
                writers.mark()
                getattr(self, act)(rng, writers, number)
        finally:
            flusher.stop()
            self.content = writers.stop()
        self.assertIsNone(flusher.error)
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        top = self.top()
        self.server.stop()
        check(top["file"], top["drv"])
        self.expect_content(top["file"], top["drv"])

    def is_a_moment(self, writers, path, fmt, what):
        self.assertTrue(writers.is_a_moment(harness.content(path, fmt)), f"{SEED}: {what}: not a moment of the disk")

    def grown(self, rng, writers, number):
        """Puts a new image on top; the frozen image below must be the disk at one moment."""
        old = self.top()
        self.snapshot(f"o{number}", rng.choice(["qcow2", "qed"]))
        writers.some(20)
        self.is_a_moment(writers, old["file"], old["drv"], f"frozen {number}")
        if old["drv"] != "raw":
            check(old["file"], old["drv"])
        return old

    def commit(self, rng=None, writers=None, number=None):
        if rng is None:
            super().commit()
            return
        old = self.grown(rng, writers, number)
        over = self.top()["file"]
        super().commit()
        self.assertEqual(self.top()["file"], old["file"])
        os.unlink(over)

    def stream(self, rng, writers, number):
        old = self.grown(rng, writers, number)
        self.client.cmd("block-stream", job_id="stream", device="drive0")
        self.ended()
        self.assertEqual(len(self.names()), 1)
        os.unlink(old["file"])

    def backup(self, rng, writers, number):  # pylint: disable=arguments-differ,arguments-renamed
        fmt = rng.choice(["qcow2", "qed", "raw"])
        path = self.path(f"backup{number}")
        self.client.cmd("drive-backup", job_id="backup", device="drive0", target=path, format=fmt, sync="full",
                        **({"speed": 8 * MIB} if rng.random() < 0.3 else {}))
        writers.some(20)
        self.all_end("backup")
        self.is_a_moment(writers, path, fmt, f"backup {number}")
        os.unlink(path)


@parametrised
class Killed(TogetherCase):
    """kill -9: each image opens, and everything that was flushed is there"""

    TIMEOUT = 6000
    PHASES = ("snapshot", "commit", "complete", "stream", "backup", "together", "mirror", "pivot")

    cases_phases = {phase: (phase,) for phase in PHASES}

    def check_phases(self, phase):
        for number in range(KILLS):
            with self.part(round=number):
                self.one(random.Random(f"{SEED} {phase} {number}"), phase, number)

    def one(self, rng, phase, number):
        self.make(rng.choice(["qcow2", "qed"]))
        self.begin()
        self.files = [(self.image, self.fmt)]
        writers, flusher = Writers(self.server, self.content, f"{SEED} {phase} {number}"), Flusher(self.server.connect())
        writers.some(20)
        self.number = number
        getattr(self, f"begin_{phase}")(rng)
        threading.Event().wait(rng.random() * 0.1)
        self.server.kill()
        flusher.stop()
        found = [self.content_of(path, fmt) for path, fmt in self.files if self.is_an_image(path, fmt)]
        # The user knows from replies and events which of these images is the disk.
        self.assertTrue(any(writers.crashed(content) for content in found), f"{SEED} {phase} {number}")

    def is_an_image(self, path, fmt):
        return os.path.exists(path) and run("qemu-img", "info", "-U", "-f", fmt, path, check=False).returncode == 0

    def content_of(self, path, fmt):
        if fmt != "raw":
            done = run(harness.QIMG, "check", "-q", "-r", "all", "-f", fmt, path, check=False)
            self.assertIn(done.returncode, (0, 3), done.stderr)
        return harness.content(path, fmt)

    def send(self, command, **arguments):
        self.client.send({"execute": command, "arguments": arguments})

    def on_top(self):
        path = self.snapshot(f"over{self.number}")
        self.files.insert(0, (path, "qcow2"))

    def begin_snapshot(self, _rng):
        path = self.path(f"killed{self.number}.qcow2")
        self.files.insert(0, (path, "qcow2"))
        self.send("blockdev-snapshot-sync", **{"device": "drive0", "snapshot-file": path})

    def begin_commit(self, _rng):
        self.on_top()
        self.send("block-commit", **{"job-id": "job", "device": "drive0"})

    def begin_complete(self, rng):
        self.on_top()
        self.client.cmd("block-commit", job_id="job", device="drive0")
        self.ready()
        threading.Event().wait(rng.random() * 0.03)
        self.send("job-complete", id="job")

    def begin_stream(self, _rng):
        self.on_top()
        self.send("block-stream", **{"job-id": "job", "device": "drive0"})

    def begin_backup(self, _rng):
        self.send("drive-backup", **{"job-id": "job", "device": "drive0", "target": self.path(f"copy{self.number}"),
                                     "sync": "full", "format": "raw"})

    def begin_together(self, _rng):
        path = self.path(f"over{self.number}.qcow2")
        self.files.insert(0, (path, "qcow2"))
        self.send("transaction", actions=[self.action(self.path(f"copy{self.number}")), self.over(f"over{self.number}")])

    def begin_mirror(self, _rng):
        self.send("drive-mirror", **{"job-id": "job", "device": "drive0", "target": self.path(f"copy{self.number}"),
                                     "sync": "full", "granularity": 4 * KIB})

    def begin_pivot(self, rng):
        path = self.mirror(f"copy{self.number}.qcow2", format="qcow2")
        self.files.append((path, "qcow2"))
        self.ready()
        threading.Event().wait(rng.random() * 0.03)
        self.send("job-complete", id="job")


if __name__ == "__main__":
    harness.unittest.main()
