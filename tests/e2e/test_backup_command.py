# SPDX-License-Identifier: BSD-3-Clause
"""qimg backup and qimg restore: a folder of backups of a disk in use, each restored exactly (F-08 to F-10)."""

import json
import os
import pathlib
import signal
import subprocess
import time
import unittest

import harness
from harness import KIB, LONG, MIB, QIMG, SEED, parametrised, run, wait_until
from test_mirror import MirrorCase
from writers import Writers

INCREMENTS, KEPT = (700, 30) if LONG else (12, 3)
CHUNK = 64 * KIB


class CommandCase(MirrorCase):
    SIZE = 4 * MIB

    def setUp(self):
        super().setUp()
        self.folder = self.path("backups")

    def backup(self, *options, ok=True, **kwargs):
        done = run(QIMG, "backup", f"--control={self.control}", *options, self.folder, check=False, **kwargs)
        self.assertEqual(done.returncode, 0 if ok else 1, done.stderr)
        return done

    def points(self):
        return json.loads(run(QIMG, "backup", "--list", "--output=json", self.folder).stdout)

    def restored(self, *point):
        path = self.path("restored.raw")
        run(QIMG, "restore", self.folder, *point, path)
        content = pathlib.Path(path).read_bytes()
        os.unlink(path)
        return content

    def verify(self, code=0):
        done = run(QIMG, "backup", "--verify", self.folder, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def bitmaps(self):
        return list(self.client.bitmaps())

    def change(self, times=4):
        for _ in range(times):
            self.write(self.rng.randrange(self.SIZE - 5000), self.rng.randbytes(self.rng.randint(1, 5000)))


@parametrised
class Points(CommandCase):
    cases_of = {fmt: (fmt,) for fmt in ("qcow2", "qed", "raw")}

    def check_of(self, fmt):
        """a full backup, then increments; each restores the disk as it was at that point"""
        self.make(fmt)
        self.begin()
        expected = []
        for number in range(4):
            self.change()
            self.backup(*(["-c"] if number == 2 else []))
            expected.append(bytes(self.content))
        points = self.points()
        self.assertEqual([p["type"] for p in points], ["full"] + ["incremental"] * 3)
        self.assertEqual([p["number"] for p in points], [1, 2, 3, 4])
        self.assertEqual([p["virtual-size"] for p in points], [self.SIZE] * 4)
        self.assertTrue(all(p["actual-size"] < MIB for p in points[1:]), points)
        for point, content in zip(points, expected):
            self.assertTrue(self.restored(point["name"]) == content, point)
            self.assertTrue(self.restored(str(point["number"])) == content, point)
        self.assertTrue(self.restored() == expected[-1])
        self.assertEqual(len(self.bitmaps()), 1)
        self.verify()
        self.source_is_good()

    def test_pruned(self):
        """the oldest points are folded into the next one; all others, and later ones, still restore exactly"""
        self.begin()
        expected = {}
        for number in range(1, 7):
            self.change()
            if number == 4:
                self.disk.zero(MIB, MIB)
                self.content[MIB:2 * MIB] = bytes(MIB)
            self.backup("--keep", "3")
            expected[number] = bytes(self.content)
        points = self.points()
        self.assertEqual([p["number"] for p in points], [4, 5, 6])
        self.assertEqual([p["type"] for p in points], ["full", "incremental", "incremental"])
        for number in (4, 5, 6):
            self.assertTrue(self.restored(str(number)) == expected[number], number)
        self.assertEqual(run(QIMG, "restore", self.folder, "3", self.path("x"), check=False).returncode, 1)
        self.verify()
        self.assertEqual(sorted(os.listdir(self.folder)), [".qimg-backup"] + [f"{p['name']}.qcow2" for p in points])

    def test_a_whole_one_when_it_has_to_be(self):
        """a full backup is made when the server has lost its bitmap, or on request; older full ones are then removed"""
        self.begin()
        self.backup()
        self.server.stop()
        self.begin()
        self.change()
        self.backup("--full")
        self.backup("--full")
        self.backup()
        self.assertEqual([p["type"] for p in self.points()][-3:], ["full", "full", "incremental"])
        self.backup("--keep=2")
        self.assertEqual([p["type"] for p in self.points()], ["full", "incremental"])
        self.assertTrue(self.restored() == self.content)
        self.verify()

    def test_shrunk_and_grown_between(self):
        """the disk shrinks and grows back between backups: the part that was cut off has changed, it reads as zeroes"""
        for online in True, False:
            with self.subTest(online=online):
                self.folder = self.path(f"backups-{online}")
                self.content = bytearray(self.SIZE)
                self.image = harness.create(self.path(f"disk-{online}.qcow2"), "qcow2", self.SIZE)
                self.begin()
                self.write(0, self.rng.randbytes(self.SIZE))
                self.backup()
                self.disk.shutdown()
                self.server.stop()
                less = self.SIZE // 2 + 5 * 512  # inside a granule
                run(QIMG, "resize", "-q", "--shrink", self.image, less)
                if not online:
                    run(QIMG, "resize", "-q", self.image, self.SIZE)
                self.begin()
                if online:
                    self.client.cmd("block_resize", device="drive0", size=self.SIZE)
                    self.disk = self.server.connect()
                self.content[less:] = bytes(self.SIZE - less)
                self.backup()
                self.assertEqual([p["type"] for p in self.points()], ["full", "incremental"])
                self.assertTrue(self.restored() == bytes(self.content))
                self.disk.shutdown()
                self.server.stop()
                self.client.close()

    def test_two_folders(self):
        """each folder has its own bitmap"""
        self.begin()
        first, second = self.path("a"), self.path("b")
        for self.folder in (first, second, first, second):
            self.change()
            self.backup()
        self.assertEqual(len(self.bitmaps()), 2)
        for self.folder in (first, second):
            self.assertEqual([p["type"] for p in self.points()], ["full", "incremental"])
        self.assertTrue(self.restored() == self.content)

    def test_under_writers(self):
        """many backups, pruned on the way; each point that is kept is the disk at one moment, and doesn't change"""
        self.begin()
        writers, expected = Writers(self.server, self.content, f"{SEED} month"), {}
        try:
            for number in range(1, INCREMENTS + 1):
                writers.mark()
                self.backup("-q", "--keep", str(KEPT))
                content = self.restored()
                self.assertTrue(writers.is_a_moment(content), f"point {number} isn't the disk of any moment")
                expected[number] = harness.hashlib.sha256(content).digest()
        finally:
            writers.stop()
        points = self.points()
        self.assertEqual([p["number"] for p in points], list(range(INCREMENTS - KEPT + 1, INCREMENTS + 1)))
        for point in points:
            self.assertEqual(harness.hashlib.sha256(self.restored(point["name"])).digest(), expected[point["number"]],
                             point)
        self.verify()


class Interrupted(CommandCase):
    """a backup is interrupted: the existing points don't change, and the next backup continues from them"""

    def setUp(self):
        super().setUp()
        self.begin()
        self.change()
        self.backup()
        self.expected = bytes(self.content)

    def begun(self, *options):
        """Starts a backup that is so slow that it doesn't end by itself."""
        self.change(20)
        process = subprocess.Popen([QIMG, "backup", f"--control={self.control}", "--speed=64k", *options, self.folder],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        wait_until(lambda: any(name.endswith(".part") for name in os.listdir(self.folder)) and self.job(), 20, "a job")
        return process

    def goes_on(self, kind="incremental"):
        self.assertTrue(self.restored("1") == self.expected)
        self.assertEqual(len(self.points()), 1)
        self.backup()
        self.assertEqual([p["type"] for p in self.points()], ["full", kind])
        self.assertTrue(self.restored() == self.content)
        self.assertFalse([name for name in os.listdir(self.folder) if "part" in name])
        self.assertEqual(len(self.bitmaps()), 1)
        self.verify()

    def test_command_killed(self):
        process = self.begun()
        process.kill()
        process.wait()
        self.change()
        self.goes_on()

    def test_ctrl_c(self):
        """Ctrl-C ends the job and removes what it has made; the bitmap of the last point stays"""
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number):
                kept = self.bitmaps()
                process = self.begun()
                process.send_signal(number)
                self.assertEqual(process.wait(20), -number)
                self.assertIn("cancelled", process.stderr.read())
                self.assertIsNone(self.job())
                self.assertEqual(self.bitmaps(), kept)
                self.assertEqual([name for name in os.listdir(self.folder) if "part" in name], [])
        self.goes_on()

    def test_quiet(self):
        self.change()
        self.assertEqual(self.backup("-q").stdout, "")
        self.change()
        self.assertIn("completed", self.backup().stdout)

    def test_job_cancelled(self):
        process = self.begun()
        self.client.cmd("block-job-cancel", device=self.job()["device"])
        self.assertEqual(process.wait(20), 1)
        self.goes_on()

    def test_server_killed(self):
        process = self.begun()
        self.server.kill()
        self.assertEqual(process.wait(20), 1)
        harness.repair(self.image, self.fmt)
        self.content = bytearray(harness.content(self.image, self.fmt))
        self.begin()
        self.goes_on("full")

    def test_nobody_else_meanwhile(self):
        process = self.begun()
        self.assertIn("another backup", self.backup(ok=False).stderr)
        process.kill()
        process.wait()

    def test_folding_killed(self):
        """kill -9 while points are folded: the points that are kept restore, and the next run continues the folding"""
        expected = {1: self.expected}
        for number in range(2, 6):
            self.change(10)
            self.backup("-q")
            expected[number] = bytes(self.content)
        for turn in range(8):
            before = len(self.points())
            self.change(2)
            process = subprocess.Popen([QIMG, "backup", "-q", f"--control={self.control}", "--keep=2", self.folder],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(turn * 0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            points = self.points()
            for point in points:
                content = self.restored(point["name"])
                if point["number"] in expected:
                    self.assertTrue(content == expected[point["number"]], (turn, point))
                else:
                    expected[point["number"]] = content
            self.assertGreaterEqual(len(points), min(2, before))
        self.backup("--keep=2")
        self.assertTrue(self.restored() == self.content)
        self.assertEqual(len(self.points()), 2)
        self.verify()


class RestoredMeanwhile(CommandCase):
    """A restore while points are folded gives the content of the point, or fails."""

    def two_points(self):
        self.begin()
        for _ in range(2):
            self.change()
            self.backup("-q")
        return [point["name"] for point in self.points()]

    def test_found_and_then_folded(self):
        """the point is folded after the restore has listed the folder and before it opens the file: once the folding
        is unfinished, once it is complete"""
        (oldest, newest), found = self.two_points(), []
        file, marker = (f"{self.folder}/{oldest}{suffix}" for suffix in (".qcow2", ".folding"))
        # SIGSTOP stops the restore when it has looked for the last marker.
        for done in (False, True):
            log = self.path("calls")
            process = subprocess.Popen(["strace", "-D", "-qq", "-o", log, "-e", "trace=faccessat,faccessat2", "-e",
                                        "inject=faccessat,faccessat2:signal=SIGSTOP:when=2", str(QIMG), "restore", self.folder, "1",
                                        self.path("x.raw")], stderr=subprocess.PIPE, text=True,
                                       env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
            self.addCleanup(harness.kill_quietly, process)
            wait_until(lambda: pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "tT", 60, "it stops")
            pathlib.Path(marker).touch()
            run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 1M", file)
            if done:
                os.rename(file, f"{self.folder}/{newest}.qcow2")
                os.unlink(marker)
            process.send_signal(signal.SIGCONT)
            errors = process.communicate(timeout=60)[1]
            found.append((process.returncode, errors))
            self.assertFalse(os.path.exists(self.path("x.raw")))
            if not done:
                os.unlink(marker)
        self.assertEqual([code for code, _ in found], [1, 1], found)
        self.assertIn("has just been folded into the next one", found[0][1])

    def test_folding_waits_for_no_reader(self):
        """while a point is being read the folding is refused, and the point can still be restored"""
        oldest, _ = self.two_points()
        before, first = self.points(), self.restored("1")
        reader = subprocess.Popen(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", self.path("reader"),
                                   f"{self.folder}/{oldest}.qcow2"])
        self.addCleanup(harness.kill_quietly, reader)
        harness.await_listener(self.path("reader"))
        self.assertIn("lock", self.backup("-q", "--keep=1", ok=False).stderr)
        self.assertEqual(self.points()[:2], before)
        self.assertTrue(self.restored("1") == first)
        reader.kill()
        reader.wait()
        self.backup("-q", "--keep=1")
        self.assertEqual(len(self.points()), 1)
        self.verify()


class Hostile(CommandCase):
    """Files in the folder that somebody else has written."""

    def refused(self, words):
        done = run(QIMG, "backup", "--control=/nonexistent", self.folder, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{self.folder}/.qimg-backup: {words}", done.stderr)

    def test_what_is_no_id_stays_as_it_is(self):
        os.mkdir(self.folder)
        victim, name = pathlib.Path(self.path("victim")), os.path.join(self.folder, ".qimg-backup")
        for content in b"precious", b"", b"f" * 17, b"0123456789abcdeg":
            victim.write_bytes(content)
            os.symlink("../victim", name)
            self.refused("Too many levels of symbolic links")
            os.unlink(name)
            os.link(victim, name)
            self.refused("is no id of a folder of backups")
            os.unlink(name)
            self.assertEqual(victim.read_bytes(), content)
            if content:
                pathlib.Path(name).write_bytes(content)
                self.refused("is no id of a folder of backups")
                self.assertEqual(pathlib.Path(name).read_bytes(), content)
                os.unlink(name)
        os.mkfifo(name)
        self.refused("is no id of a folder of backups")

    def test_an_id_that_a_crash_cut_off(self):
        os.mkdir(self.folder)
        self.make("qcow2")
        self.begin()
        for content in b"", b"0123", bytes(16):
            pathlib.Path(self.folder, ".qimg-backup").write_bytes(content)
            self.backup()
        self.assertTrue(self.restored() == bytes(self.content))


class Refused(CommandCase):
    def test_words(self):
        self.begin()
        for words, argv in (
                ("Expecting one folder", ["backup", "--control=x"]),
                ("--control=PATH", ["backup", self.folder]),
                ("from 1 on", ["backup", "--control=x", "--keep=0", self.folder]),
                ("from 1 on", ["backup", "--control=x", "--keep=many", self.folder]),
                ("two things", ["backup", "--list", "--verify", self.folder]),
                ("folder alone", ["backup", "--list", "--keep=2", self.folder]),
                ("No such file", ["backup", "--list", self.path("nowhere")]),
                ("no disk 'x'", ["backup", f"--control={self.control}", "--device=x", self.folder]),
                ("DIR \\[POINT\\] TARGET", ["restore", self.folder]),
                ("no point 'latest'", ["restore", self.folder, self.path("x.raw")])):
            with self.subTest(words=words):
                done = run(QIMG, *argv, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertRegex(done.stderr, words)
        self.backup()
        self.assertRegex(run(QIMG, "restore", self.folder, "7", self.path("x.raw"), check=False).stderr, "no point '7'")
        there = self.path("there.raw")
        pathlib.Path(there).write_bytes(b"somebody's")
        self.assertRegex(run(QIMG, "restore", self.folder, there, check=False).stderr, "is there already")
        self.assertRegex(run(QIMG, "restore", self.folder, f"file:{there}", check=False).stderr, "is there already")
        self.assertEqual(pathlib.Path(there).read_bytes(), b"somebody's")
        disk = self.memory()
        self.assertRegex(run(QIMG, "restore", self.folder, disk.uri, check=False).stderr, "is an NBD export; --force")
        self.assertEqual(disk.content(), bytes(self.SIZE))
        run(QIMG, "restore", "--force", self.folder, there)
        self.assertTrue(pathlib.Path(there).read_bytes() == self.content)
        for fmt in ("qcow2", "qed"):
            target = self.path(f"r.{fmt}")
            run(QIMG, "restore", self.folder, "1", target)
            self.expect_content(target, fmt)

    def test_damage_is_found(self):
        self.begin()
        self.backup()
        self.change()
        self.backup()
        first, second = (os.path.join(self.folder, p["name"] + ".qcow2") for p in self.points())
        self.verify()
        good = pathlib.Path(second).read_bytes()
        with open(second, "r+b") as file:
            file.seek(64 * KIB)
            file.write(b"\xff" * 64)
        self.assertIn("BAD", self.verify(1).stdout)
        pathlib.Path(second).write_bytes(good)
        self.verify()
        os.unlink(first)
        self.assertIn("isn't the point before it", self.verify(1).stderr)


if __name__ == "__main__":
    unittest.main()
