# SPDX-License-Identifier: BSD-3-Clause
"""How jobs end when their target fails or hangs, and what they report: a job that reports success has
done its work."""

import contextlib
import errno
import os
import subprocess
import tempfile
import threading
import unittest

from harness import KIB, MIB, create, fill, parametrised, wait_until
from qmp import Qmp
from test_mirror import MirrorCase


@parametrised
class DeadTarget(MirrorCase):
    """the target goes away or hangs while the job has nothing to write to it"""

    def alive(self):
        """Clients must still be served from the source, with the right content."""
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.write(MIB, b"goes on" * 100)
        self.disk.flush()
        self.assertEqual(self.client.cmd("query-block")[0]["inserted"]["file"], self.image)

    def script(self, can_flush, flush="true"):
        """Starts a target that discards all writes.  flush: the shell command that it runs for a flush."""
        path = self.path("script")
        with open(path, "w", encoding="ascii") as script:
            script.write(f"""#!/bin/sh
                case "$1" in
                get_size) echo {self.SIZE} ;; thread_model) echo parallel ;; can_write | open) ;;
                can_flush) exit {0 if can_flush else 3} ;;
                can_fua) echo none ;; can_multi_conn | can_zero | can_trim) exit 3 ;;
                pread) head -c "$3" /dev/zero ;; pwrite) cat > /dev/null ;;
                flush) {flush} ;;
                *) exit 2 ;; esac""")
        os.chmod(path, 0o700)
        return self.peer("sh", path)

    cases_idle = {f"{how} {verb}{'' if flushes else ' without flush'}": (how, verb, flushes)
                  for how, verb, flushes in (("kill", "complete", True), ("kill", "cancel", True),
                                             ("freeze", "complete", True), ("kill", "finalize", True),
                                             ("kill", "complete", False))}

    def check_idle(self, how, verb, flushes):
        """M-05: the job fails, and clients aren't affected"""
        self.begin()
        target = self.memory() if flushes else self.script(False)
        self.mirror(target.uri, auto_finalize=verb != "finalize", mode="existing")
        self.ready()
        if verb == "finalize":
            self.client.cmd("block-job-complete", device="job")
            self.expect_event("BLOCK_JOB_PENDING")
        getattr(target, how)()
        self.addCleanup(target.thaw if how == "freeze" else lambda: None)
        self.client.cmd(f"block-job-{verb}", **{"id" if verb == "finalize" else "device": "job"})
        if verb != "finalize":
            self.io_error(operation="write", action="report")
        self.ended(error=r"copying from .*disk\.qcow2 to nbd.*: \w+")
        self.alive()
        self.source_is_good()

    def test_a_target_that_comes_back(self):
        """the target is restarted and the job resumed: the switch takes place"""
        self.begin()
        path = self.path("target.raw")
        with open(path, "wb") as file:
            file.truncate(self.SIZE)
        target = self.peer("file", path)
        self.mirror(target.uri, on_target_error="stop")
        self.ready()
        target.kill()
        self.client.cmd("block-job-complete", device="job")
        self.io_error(operation="write", action="stop")
        self.alive()
        target.start()
        self.client.cmd("block-job-resume", device="job")
        self.ended()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.disk.flush()
        self.server.stop()
        self.same(target.content())

    def test_a_forced_cancel_while_it_waits(self):
        """the job waits for the target before it switches to it, and is cancelled by force"""
        self.begin()
        target = self.memory()
        self.mirror(target.uri)
        self.ready()
        target.freeze()
        self.addCleanup(target.thaw)
        self.client.cmd("block-job-complete", device="job")
        self.forced()
        self.alive()
        self.source_is_good()

    def test_it_hangs_with_clients_held_back(self):
        """the target hangs in the last flush before the switch, while clients are held back: a forced cancel lets them
        go on"""
        self.begin()
        count = self.path("count")
        # The first flush comes before READY, the second one before clients are held back.
        target = self.script(True, f"echo >> {count}; sleep $(sed -n $(wc -l < {count})p {count}.naps)")
        with open(f"{count}.naps", "w", encoding="ascii") as naps:
            naps.write("0\n1\n60\n")

        def flushes(number):
            wait_until(lambda: os.path.exists(count) and os.path.getsize(count) == number, 20, f"flush {number}")

        self.mirror(target.uri)
        self.ready()
        self.client.cmd("block-job-complete", device="job")
        flushes(2)
        self.write(0, b"left to be copied")
        flushes(3)
        self.write(0, b"held back for seconds")
        self.forced()
        self.alive()
        self.source_is_good()


class AfterAPivot(MirrorCase):
    """after the pivot the server that now has the disk goes away and comes back"""

    def pivoted(self):
        path = self.path("target.raw")
        with open(path, "wb") as file:
            file.truncate(self.SIZE)
        # With this filter a killed server loses what wasn't flushed.
        target = self.peer("--filter=cache", "file", path, "cache=writeback")
        self.mirror(target.uri, mode="existing")
        self.ready()
        self.pivot()
        return target

    def test_nothing_is_lost(self):
        """M-06: everything was flushed: clients wait until the server is back, and get no error"""
        self.begin()
        target = self.pivoted()
        for _ in range(3):
            self.write(self.rng.randrange(self.SIZE - 4096), self.rng.randbytes(4096))
            self.disk.flush()
            target.kill()
            writer = threading.Thread(target=self.write, args=(self.rng.randrange(self.SIZE - 4096), b"waits" * 99))
            writer.start()
            writer.join(0.5)
            target.start()
            writer.join()
            self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
            self.disk.flush()
        self.server.stop()
        target.stop()
        self.expect_content(self.path("target.raw"), "raw")

    def test_what_is_lost_is_told_once(self):
        self.begin()
        target = self.pivoted()
        for _ in range(3):
            self.write(MIB, b"lost")
            target.kill()
            target.start()
            self.disk.pread(512, 0)
            self.errno(errno.EIO, self.disk.flush)
            self.disk.flush()
            self.write(MIB, b"here again")
            self.disk.flush()
        self.server.stop()
        target.stop()
        self.expect_content(self.path("target.raw"), "raw")

    def test_requests_in_flight(self):
        """requests in flight are sent again to the restarted server"""
        self.begin()
        target = self.pivoted()
        target.freeze()
        results = []
        threads = [threading.Thread(target=lambda off=off: results.append(self.write(off, b"%07d" % off)))
                   for off in range(0, 8 * MIB, MIB)]
        for thread in threads:
            thread.start()
        target.kill()
        target.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(results), 8, "a write failed")
        self.disk.flush()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.server.stop()

    def test_it_stays_away(self):
        """requests fail after a timeout, and succeed when the server is back"""
        self.begin()
        target = self.pivoted()
        target.kill()
        self.errno(errno.EIO, self.disk.pread, 512, 0)
        self.errno(errno.EIO, self.disk.pwrite, b"x" * 512, 0)
        target.start()
        self.write(0, b"back")
        self.disk.flush()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.server.stop()


class Daemon:
    """A qemu-storage-daemon with a disk and a target, which runs the same jobs."""

    def __init__(self, case):
        folder = tempfile.mkdtemp(prefix="q", dir=case.dir)
        control, argv = os.path.join(folder, "qmp"), ["qemu-storage-daemon"]
        for node in "drive0", "target":
            path = create(os.path.join(folder, node), "qcow2", case.SIZE)
            argv += ["--blockdev", f"qcow2,node-name={node},file.driver=file,file.filename={path}"]
        fill(os.path.join(folder, "drive0"), "qcow2", [(0, b"x" * MIB)])
        self.process = subprocess.Popen([*argv, "--chardev", f"socket,path={control},server=on,wait=off,id=c",
                                         "--monitor", "chardev=c"])
        case.addCleanup(self.end)
        self.client = None
        wait_until(lambda: self.connect(control), 20, "the daemon's monitor")
        case.addCleanup(self.client.close)

    def connect(self, control):
        """The monitor serves one client at a time, so the first connection that succeeds is kept."""
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            self.client = Qmp(control)
        return self.client

    def end(self):
        self.process.kill()
        self.process.wait()


@parametrised
class AsQemu(MirrorCase):
    """the same commands to qimg and QEMU give the same events in the same order, and the same states"""

    manual, shown = {"auto_finalize": False}, {"auto_dismiss": False}
    ready, pending, end = "BLOCK_JOB_READY", "BLOCK_JOB_PENDING", "concluded"
    complete, cancel = ("block-job-complete", {"device": "job"}), ("block-job-cancel", {"device": "job"})
    force = ("block-job-cancel", {"device": "job", "force": True})
    finalize, dismiss = ("block-job-finalize", {"id": "job"}), ("block-job-dismiss", {"id": "job"})
    pause, resume = ("block-job-pause", {"device": "job"}), ("block-job-resume", {"device": "job"})
    slow = {"speed": 64 * KIB}

    cases_story = {
        "complete": ({}, ready, complete),
        "complete shown": (shown, ready, complete, end, dismiss),
        "cancel": ({}, ready, cancel),
        "cancel shown": (shown, ready, cancel, end, dismiss),
        "force": ({}, ready, force),
        "force shown": (shown, ready, force, end, dismiss),
        "cancel early": (slow, "running", cancel),
        "cancel early shown": ({**slow, **shown}, "running", cancel, end, dismiss),
        "force paused": (slow, "running", pause, "paused", force),
        "finalize": (manual, ready, complete, pending, finalize),
        "finalize a cancel": (manual, ready, cancel, pending, finalize),
        "finalize shown": ({**manual, **shown}, ready, cancel, pending, finalize, end, dismiss),
        "cancel pending": ({**manual, **shown}, ready, complete, pending, cancel, end, dismiss),
        "cancel a cancel": ({**manual, **shown}, ready, cancel, pending, cancel, end, dismiss),
        "complete in standby": (shown, ready, pause, "standby", complete, resume, end, dismiss),
    }

    def check_story(self, arguments, *steps):
        """M-37: the same events and states as QEMU's daemon has"""
        self.begin()
        ours = self.play(self.client, "drive-mirror", {"target": self.path("target.raw"), **arguments}, steps)
        daemon = Daemon(self)
        theirs = self.play(daemon.client, "blockdev-mirror", {"target": "target", **arguments}, steps)
        self.assertEqual(ours, theirs)
        self.server.stop()

    def play(self, client, command, arguments, steps):
        """Runs the job and its steps: a step is a command, or an event or state to wait for.  Returns the events, and
        how queries show the job while it is pending or concluded."""
        heard, client.events = [], []
        client.cmd(command, job_id="job", device="drive0", sync="full", **arguments)

        def listen(until):
            while True:
                event = client.events.pop(0) if client.events else client.receive()
                data = event["data"]
                heard.append((event["event"], data.get("status"), set(data)))
                if until in (event["event"], data.get("status")):
                    return

        for step in (*steps, "null"):
            if isinstance(step, tuple):
                client.cmd(step[0], **step[1])
                continue
            listen(step)
            shown = client.cmd("query-block-jobs") if step in (self.pending, self.end) else []
            heard += [{key: job.get(key) for key in ("status", "ready", "io-status", "error", "type")}
                      for job in shown]
            if step == self.end:
                heard += [{key: job.get(key) for key in ("status", "error")} for job in client.cmd("query-jobs")]
        return heard


if __name__ == "__main__":
    unittest.main()
