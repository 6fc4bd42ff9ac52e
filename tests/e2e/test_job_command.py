# SPDX-License-Identifier: BSD-3-Clause
"""qimg job: starts and controls jobs over the control socket."""

import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
import time
import unittest

from harness import KIB, MIB, QIMG, create, run, wait_until
from test_control import JobCase


class Command(JobCase):
    """qimg job"""

    def qimg(self, *words, code=0, **kwargs):
        done = run(QIMG, "job", f"--control={self.control}", *words, check=False, **kwargs)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        if code:
            self.assertRegex(done.stderr, r"\Aqimg: .*\n(Try.*\n)?\Z")
        else:
            self.assertEqual(done.stderr, "")
        return done

    def watch(self, *words):
        return subprocess.Popen([QIMG, "job", "--control", self.control, *words], text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_a_mirror(self):
        self.begin("node-name=mydisk")
        self.qimg("mirror", "target.raw", "--speed=1M", "--copy-mode=background", cwd=self.dir)
        jobs = json.loads(self.qimg("list", "--output=json").stdout)
        self.assertEqual([(j["device"], j["type"], j["speed"]) for j in jobs], [("mydisk", "mirror", MIB)])
        self.assertRegex(self.qimg("list").stdout, r"^mydisk +mirror +running +\d+\.\d%, .* left\n$")
        watcher = self.watch("watch", "mydisk")
        self.qimg("pause", "mydisk")
        self.qimg("resume", "mydisk")
        self.qimg("speed", "mydisk", "0")
        self.ready()
        self.qimg("complete", "mydisk")
        out, errors = watcher.communicate(timeout=20)
        self.assertEqual((watcher.returncode, errors), (0, ""), out)
        lines = out.splitlines()
        self.assertEqual(lines[-1], "mydisk: completed")
        for line in lines[:-1]:
            self.assertRegex(line, r"^mydisk: +\d+\.\d%, \S+ \S+ left, \S+ \S+/s, \w+$")
        self.assertEqual(self.qimg("list").stdout, "")
        self.assertEqual(json.loads(self.qimg("list", "--output=json").stdout), [])
        self.server.stop()
        self.expect_content(self.path("target.raw"), "raw")

    def test_a_job_of_no_disk(self):
        """a blockdev-create job is listed with the others, and can be dismissed"""
        self.begin()
        self.client.cmd("blockdev-create", job_id="make", options={
            "driver": "file", "filename": self.path("made"), "size": MIB})
        self.client.event("JOB_STATUS_CHANGE", id="make", status="concluded")
        self.mirror()
        self.ready()
        jobs = json.loads(self.qimg("list", "--output=json").stdout)
        self.assertEqual([(j["device"], j["type"], j["status"]) for j in jobs],
                         [("job", "mirror", "ready"), ("make", "create", "concluded")])
        self.assertRegex(self.qimg("list").stdout, r"\nmake +create +concluded +100\.0%.*\n\Z")
        self.qimg("dismiss", "make")
        self.assertEqual(len(json.loads(self.qimg("list", "--output=json").stdout)), 1)
        self.qimg("dismiss", "make", code=1)

    def test_help_fits_a_terminal(self):
        for line in run(QIMG, "job", "--help").stdout.splitlines():
            self.assertLessEqual(len(line), 100)

    def test_targets_that_are_no_files(self):
        """names with a protocol are refused, instead of becoming files of that name in the current folder"""
        self.begin()
        for target in ('json:{"driver": "raw"}', "ssh://host/disk", "a:b"):
            done = self.qimg("mirror", target, "--format=raw", code=1, cwd=self.dir)
            self.assertIn("only NBD URIs, RBD names and local files can be targets", done.stderr)
        self.qimg("mirror", "file:a:b", "--job-id=j", cwd=self.dir)
        self.ready()
        self.qimg("cancel", "j")
        self.client.event("JOB_STATUS_CHANGE", status="null")
        self.server.stop()
        self.expect_content(self.path("a:b"), "raw")

    def test_watching_ends_with_the_job(self):
        """--watch ends with the job, with an exit status that tells its result"""
        self.begin()
        for speed, code, said in (("0", 0, ""), ("64k", 1, "qimg: j: cancelled\n")):
            watcher = self.watch("mirror", self.path("t.raw"), "--job-id=j", "--watch", "--output=json",
                                 f"--speed={speed}")
            if code == 0:
                self.ready()
            else:
                self.client.event("JOB_STATUS_CHANGE", status="running")
            self.qimg("cancel", "j")
            out, errors = watcher.communicate(timeout=20)
            self.assertEqual((watcher.returncode, errors), (code, said))
            states = [json.loads(line) for line in out.splitlines()]
            self.assertTrue(all(state["device"] == "j" for state in states))
            self.client.event("JOB_STATUS_CHANGE", status="null")

    def test_a_bar_on_a_terminal(self):
        self.begin()
        self.mirror(job_id="j")
        self.ready()
        master, slave = os.openpty()
        watcher = subprocess.Popen([QIMG, "job", "--control", self.control, "watch", "j"], stdin=slave,
                                   stdout=slave, stderr=slave, close_fds=True)
        os.close(slave)
        out = b""
        while b"ready" not in out:
            out += os.read(master, 4096)
        self.qimg("cancel", "j")
        with contextlib.suppress(OSError):
            while chunk := os.read(master, 4096):
                out += chunk
        os.close(master)
        self.assertEqual(watcher.wait(20), 0)
        self.assertRegex(out.decode(), r"\r\[=+\] 100\.0%, 0 B left, .*/s, ready")
        self.assertTrue(out.endswith(b"j: completed\r\n"), out)

    def test_what_a_job_that_is_ready_waits_for(self):
        """how a ready job can be ended is printed once"""
        self.begin()
        self.mirror(job_id="j")
        self.ready()
        watcher = self.watch("watch", "j")
        lines = [watcher.stdout.readline(), watcher.stdout.readline()]
        self.assertRegex(lines[0], r"\Aj: ready: 'complete j' .* the target, 'cancel j' leaves .* copy\n\Z")
        self.assertRegex(lines[1], r"\Aj: 100\.0%, 0 B left, .*, ready\n\Z")
        self.write(MIB, b"goes on" * 10000)
        self.qimg("cancel", "j")
        out, errors = watcher.communicate(timeout=20)
        self.assertEqual((watcher.returncode, errors), (0, ""))
        self.assertNotIn("'complete j'", out)

    def test_ctrl_c(self):
        """Ctrl-C only ends the watching, and a message says that the job goes on"""
        self.begin()
        self.mirror(job_id="j", speed=64 * KIB)
        watcher = self.watch("watch", "j")
        watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=20)
        self.assertEqual((watcher.returncode, errors), (-signal.SIGINT, "j: goes on; 'cancel j' would end it\n"))
        self.assertEqual(self.job()["status"], "running")

    def test_a_narrow_terminal(self):
        """the progress bar fits into one line of a narrow terminal"""
        for width in 5, 20, 40, 50:
            with self.part(width=width):
                JobCase.setUp(self)
                self.begin()
                self.mirror(job_id="j", speed=64 * KIB)
                master, slave = os.openpty()
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
                watcher = subprocess.Popen([QIMG, "job", "--control", self.control, "watch", "j"], stdin=slave,
                                           stdout=slave, stderr=subprocess.DEVNULL, close_fds=True)
                os.close(slave)
                out = b""
                while out.count(b"\033[K") < 3:
                    out += os.read(master, 4096)
                watcher.kill()
                watcher.wait()
                os.close(master)
                shown = re.findall(r"\r([^\r\033]*)\033\[K", out.decode())
                self.assertNotIn("\n", "".join(shown))
                self.assertLess(max(len(line) for line in shown), width)

    def test_a_target_called_otherwise(self):
        """a new target whose name ends in another format's suffix isn't silently made raw"""
        self.begin()
        for fmt in "qcow2", "qed":
            target = self.path(f"new.{fmt}")
            self.assertRegex(self.qimg("mirror", target, code=1).stderr, rf"new\.{fmt}.*--format={fmt}")
            self.assertFalse(os.path.exists(target))
            self.qimg("mirror", target, f"--format={fmt}", "--job-id=j")
            self.ready()
            self.qimg("cancel", "j")
            self.ended()
            self.expect_content(target, fmt)

    def test_nothing_to_commit_to(self):
        self.begin()
        self.assertRegex(self.qimg("commit", code=1).stderr, "disk.qcow2: has no backing file")

    def test_a_job_that_waits_to_be_dismissed(self):
        self.begin()
        self.qimg("mirror", self.path("t.raw"), "--manual-finalize", "--manual-dismiss", "--no-unmap",
                  "--format=raw", "--mode=absolute-paths", "--granularity=4k", "--buf-size=1M")
        self.ready()
        self.qimg("complete", "drive0")
        self.expect_event("BLOCK_JOB_PENDING")
        self.qimg("finalize", "drive0")
        self.expect_event("BLOCK_JOB_COMPLETED")
        self.assertIn("drive0: completed\n", self.qimg("watch", "drive0").stdout)
        self.qimg("dismiss", "drive0")
        self.assertIn("no job 'drive0'", self.qimg("watch", "drive0", code=1).stderr)

    def test_a_job_that_was_cancelled(self):
        """a cancelled job isn't reported as completed"""
        self.begin()
        self.mirror(job_id="j", auto_dismiss=False)
        self.ready()
        self.client.cmd("block-job-cancel", device="j", force=True)
        self.expect_event("BLOCK_JOB_CANCELLED")
        self.assertEqual(self.qimg("watch", "j", code=1).stderr, "qimg: j: cancelled\n")
        self.assertRegex(self.qimg("list").stdout, r"\Aj +mirror +concluded .*, cancelled\n\Z")

    def test_commit(self):
        overlay = create(self.path("overlay.qcow2"), "qcow2", self.SIZE, backing=self.image, backing_fmt="qcow2")
        base, self.image = self.image, overlay
        self.begin()
        self.write(MIB, b"committed")
        self.qimg("commit", "--base=disk.qcow2", "--on-error=report", cwd=self.dir)
        self.ready()
        self.qimg("complete", "drive0")
        self.ended()
        self.server.stop()
        self.expect_content(base, "qcow2")

    def test_refused(self):
        self.begin()
        for words, said in ((["pause", "j"], "'j' not found"), (["watch", "j"], "no job 'j'"),
                            (["mirror"], "mirror TARGET"), (["pause"], "pause ID"), (["speed", "j"], "SIZE"),
                            (["speed", "j", "fast"], "speed 'fast'"), (["fly"], "'fly' is nothing"),
                            (["fly"], "there are: list, mirror,"), ([], "there are: list, mirror,"),
                            (["list", "--watch"], "options"), (["list", "--speed=1"], "options"),
                            (["pause", "j", "--speed=1"], "'speed' is unexpected"),
                            (["mirror", "nbd://[x", "--watch"], "nbd"), (["list", "--output=xml"], "json"),
                            (["mirror", "t", "--sync=all"], "full, top")):
            with self.subTest(words=words):
                self.assertIn(said, self.qimg(*words, code=1, cwd=self.dir).stderr)
        self.assertFalse(os.path.exists(self.path("t")))
        done = run(QIMG, "job", "list", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("--control", done.stderr)
        done = run(QIMG, "job", "--control", self.path("none"), "list", check=False)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("cannot connect", done.stderr)

    def test_a_server_that_goes_away(self):
        self.begin()
        self.mirror(job_id="j")
        self.ready()
        watcher = self.watch("watch", "j")
        wait_until(lambda: len(self.client.cmd("query-block-jobs")) == 1, 5, "the job")
        time.sleep(0.3)
        self.server.kill()
        _, errors = watcher.communicate(timeout=20)
        self.assertEqual(watcher.returncode, 1)
        self.assertIn("closed the connection", errors)


if __name__ == "__main__":
    unittest.main()
