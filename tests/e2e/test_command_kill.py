# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 in the middle of each command that changes an image in place: afterwards the image opens, has no
errors except leaks, and no data of the guest is lost.

One half of the rounds kills after a random time, the other half at one of the system calls that change a file,
so that every interval between two of these calls is tried.  Requirements: O-03 to O-05, O-08.
QIMG_ROUNDS: rounds of each command and image (3; with QIMG_LONG 50).
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time

from harness import KIB, LONG, MIB, QIMG, Case, content, create, fill, header, plugin_env, run
from side_by_side import pattern
import snapshot_table

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 50 if LONG else 3))
CALLS = "pwrite64,pwritev2,pwritev,fdatasync,fsync,fallocate,ftruncate"
SIZE = 4 * MIB
SMALL = SIZE - 1000 * KIB


class CommandKill(Case):
    """Subclasses make images in self.path("master"); each round works on a new copy of them."""

    def setUp(self):
        super().setUp()
        self.here = self.path("round")

    def there(self, name):
        return os.path.join(self.here, name)

    def anew(self):
        shutil.rmtree(self.here, ignore_errors=True)
        subprocess.run(["cp", "-r", "--sparse=always", self.path("master"), self.here], check=True)

    def calls(self, argv):
        """The system calls by which an undisturbed command changes files: (name, n), the n-th call of that name in
        its thread."""
        self.anew()
        log, counts, found = self.path("calls"), {}, []
        run("strace", "-f", "-qq", "-o", log, "-e", f"trace={CALLS}", QIMG, *argv, cwd=self.here, env=plugin_env())
        for call in re.findall(r"(?m)^(\d+) +(\w+)\(", pathlib.Path(log).read_text(encoding="utf-8", errors="replace")):
            counts[call] = counts.get(call, 0) + 1
            found.append((call[1], counts[call]))
        return found

    def killed_at_a_call(self, argv, name, number):
        """Kills the command at a thread's n-th call of that name; True if a thread made so many."""
        done = run("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e",
                   f"inject={name}:signal=KILL:when={number}", QIMG, *argv, cwd=self.here, env=plugin_env(), check=False)
        return done.returncode != 0

    def killed_after(self, argv, seconds):
        process = subprocess.Popen([str(QIMG), *argv], cwd=self.here, env=plugin_env(), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        time.sleep(seconds)
        process.kill()
        _, errors = process.communicate()
        self.assertIn(process.returncode, (0, -9), errors)
        return process.returncode != 0

    def rounds(self, argv, judge):
        """Kills the command ROUNDS times; after each kill judge() checks the images."""
        calls, killed = self.calls(argv), 0
        judge()
        began = time.monotonic()
        self.anew()
        run(QIMG, *argv, cwd=self.here, env=plugin_env())
        lasts = time.monotonic() - began
        for number in range(ROUNDS):
            self.anew()
            if number % 2:
                killed += self.killed_after(argv, self.rng.random() * lasts)
            else:
                killed += self.killed_at_a_call(argv, *self.rng.choice(calls))
            with self.subTest(argv=argv, number=number):
                judge()
        self.assertGreater(killed, 0, "no round was cut short")

    def sound(self, name, fmt):
        """Both programs' checks must find no errors; leaks are allowed."""
        for tool in ("qemu-img", QIMG):
            done = run(tool, "check", "-f", fmt, self.there(name), check=False)
            self.assertIn(done.returncode, (0, 3), f"{tool}\n{done.stdout}{done.stderr}")
        if fmt == "qcow2":
            run("qemu-img", "check", "-r", "leaks", "-f", fmt, self.there(name))

    def reads(self, name, fmt):
        self.sound(name, fmt)
        return content(self.there(name), fmt)


class Disk(CommandKill):
    """One image in which every other piece is allocated."""

    def make(self, fmt, options=""):
        shutil.rmtree(self.path("master"), ignore_errors=True)
        os.mkdir(self.path("master"))
        data = bytearray(SIZE)
        pieces = [(at, pattern(at + 1, 90 * KIB)) for at in range(0, SIZE, 200 * KIB)]
        for at, piece in pieces:
            data[at:at + len(piece)] = piece
        self.data = bytes(data[:SIZE])
        create(self.path("master/i"), fmt, SIZE, options)
        fill(self.path("master/i"), fmt, [(at, piece[:SIZE - at]) for at, piece in pieces])

    KINDS = (("qcow2", "cluster_size=4k"), ("qcow2", "refcount_bits=1,lazy_refcounts=on"), ("qed", "cluster_size=4k"))

    def test_resize(self):
        for fmt, options in self.KINDS:
            self.make(fmt, options)

            def judge():
                now = self.reads("i", fmt)
                self.assertIn(len(now), (SIZE, 8 * SIZE))
                self.assertEqual(now, self.data + bytes(len(now) - SIZE))

            self.rounds(["resize", "-q", "-f", fmt, "i", str(8 * SIZE)], judge)

    def test_resize_with_preallocation(self):
        self.make("qcow2", "cluster_size=4k")

        def judge():
            now = self.reads("i", "qcow2")
            self.assertIn(len(now), (SIZE, 2 * SIZE))
            self.assertEqual(now, self.data + bytes(len(now) - SIZE))

        self.rounds(["resize", "-q", "--preallocation=full", "i", str(2 * SIZE)], judge)

    def test_shrink(self):
        """Everything before the new end stays; the user gave up what lies behind it."""
        for fmt, options in self.KINDS[:2]:
            self.make(fmt, options)

            def judge():
                now = self.reads("i", fmt)
                self.assertIn(len(now), (SIZE, SMALL))
                self.assertEqual(now[:SMALL], self.data[:SMALL])

            self.rounds(["resize", "-q", "--shrink", "-f", fmt, "i", str(SMALL)], judge)

    def test_amend(self):
        for options in ("compat=0.10", "refcount_bits=64", "lazy_refcounts=on", f"size={8 * SIZE}"):
            self.make("qcow2", "cluster_size=4k")
            run("qemu-io", "-f", "qcow2", "-c", "write -q -z 1M 512k", self.path("master/i"))
            self.data = content(self.path("master/i"), "qcow2")

            def judge():
                now = self.reads("i", "qcow2")
                self.assertEqual(now, self.data + bytes(len(now) - SIZE))

            self.rounds(["amend", "-o", options, "i"], judge)


class Snapshots(CommandKill):
    """A disk with a snapshot that differs from it in a part."""

    def make(self, options):
        shutil.rmtree(self.path("master"), ignore_errors=True)
        os.mkdir(self.path("master"))
        image = create(self.path("master/i"), "qcow2", SIZE, options)
        fill(image, "qcow2", [(0, pattern(1, 2 * MIB))])
        self.old = content(image, "qcow2")
        run("qemu-img", "snapshot", "-c", "old", image)
        fill(image, "qcow2", [(MIB, pattern(2, 2 * MIB))])
        self.now = content(image, "qcow2")

    def names(self):
        described = json.loads(run("qemu-img", "info", "--output=json", self.there("i")).stdout)
        return [snapshot["name"] for snapshot in described.get("snapshots", [])]

    def snapshot(self, name):
        flat = self.path("flat")
        run("qemu-img", "convert", "-l", f"snapshot.name={name}", "-O", "raw", self.there("i"), flat)
        return pathlib.Path(flat).read_bytes()

    def each(self, argv, judge):
        for options in ("cluster_size=4k", "cluster_size=64k,refcount_bits=2,lazy_refcounts=on"):
            self.make(options)
            self.rounds(argv, judge)

    def test_amend(self):
        """From version 2 to 3: the extra data that version 3 requires in the snapshot table is written before the
        version is changed."""
        for options in ("cluster_size=4k,compat=0.10", "cluster_size=64k,compat=0.10"):
            self.make(options)
            snapshot_table.shorten(self.path("master/i"), [8])

            def judge():
                if header(self.there("i"), 4, 4, "big") == 3:
                    self.assertEqual(snapshot_table.extras(self.there("i")), [(24, SIZE)])
                self.assertEqual(self.reads("i", "qcow2"), self.now)
                self.assertEqual(self.snapshot("old"), self.old)
            self.rounds(["amend", "-o", "compat=1.1", "i"], judge)

    def test_create(self):
        def judge():
            self.assertEqual(self.reads("i", "qcow2"), self.now)
            self.assertIn(self.names(), (["old"], ["old", "new"]))
            for name in self.names():
                self.assertEqual(self.snapshot(name), self.old if name == "old" else self.now, name)
        self.each(["snapshot", "-c", "new", "i"], judge)

    def test_apply(self):
        def judge():
            self.assertIn(self.reads("i", "qcow2"), (self.now, self.old))
            self.assertEqual(self.snapshot("old"), self.old)
        self.each(["snapshot", "-a", "old", "i"], judge)

    def test_delete(self):
        def judge():
            self.assertEqual(self.reads("i", "qcow2"), self.now)
            for name in self.names():
                self.assertEqual(self.snapshot(name), self.old)
        self.each(["snapshot", "-d", "old", "i"], judge)


class Chains(CommandKill):
    """base <- top, and another base with different data in a part."""

    SIZE, PIECE, FORMATS = SIZE, 100 * KIB, ("qcow2", "qed")

    def make(self, fmt, base_fmt):
        shutil.rmtree(self.path("master"), ignore_errors=True)
        os.mkdir(self.path("master"))
        base, other, top = (bytearray(pattern(i, self.SIZE)) for i in (1, 2, 3))
        other[MIB:2 * MIB] = base[MIB:2 * MIB]
        base[2 * MIB:3 * MIB] = bytes(MIB)
        for name, data in (("base", base), ("other", other)):
            create(self.path(f"master/{name}"), base_fmt, self.SIZE)
            fill(self.path(f"master/{name}"), base_fmt, [(0, bytes(data))])
        create(self.path("master/top"), fmt, self.SIZE, backing="base", backing_fmt=base_fmt)
        self.data = base[:]
        pieces = [(at, bytes(top[at:at + self.PIECE])) for at in range(0, self.SIZE, 512 * KIB)]
        for at, piece in pieces:
            self.data[at:at + len(piece)] = piece
        fill(self.path("master/top"), fmt, pieces)
        self.data = bytes(self.data)

    def same_bytes(self, name, fmt):
        self.assertTrue(self.reads(name, fmt) == self.data, f"{name} reads differently")

    def same(self, argv, base_fmt, also=()):
        for fmt in self.FORMATS:
            self.make(fmt, base_fmt)

            def judge():
                for name in also:
                    self.sound(name, base_fmt)
                self.same_bytes("top", fmt)
                # The command can be repeated; after a complete rebase it may fail, as "top" has another backing file.
                run(QIMG, *argv, cwd=self.here, env=plugin_env(), check=argv[0] != "rebase")
                self.same_bytes("top", fmt)
                if argv[0] == "commit":
                    self.same_bytes("base", base_fmt)

            self.rounds(argv, judge)

    def test_rebase(self):
        self.same(["rebase", "-b", "other", "-F", "raw", "top"], "raw")

    def test_rebase_to_no_backing_file(self):
        self.same(["rebase", "-b", "", "top"], "raw")

    def test_commit(self):
        self.same(["commit", "-q", "top"], "qcow2", also=["base"])

    def test_commit_that_leaves_the_image(self):
        self.same(["commit", "-q", "-d", "top"], "qcow2", also=["base"])


class FlushedEarly(Chains):
    """So much data that it is flushed in between, before the end."""

    SIZE, PIECE, FORMATS = 256 * MIB, 256 * KIB, ("qcow2",)
    test_rebase = test_commit_that_leaves_the_image = None

    def test_a_flush_that_fails(self):
        self.make("qcow2", "raw")
        for argv, name, words in ((("commit", "top"), "base", "top is as it was"),
                                  (("rebase", "-b", "", "top"), "top", "top: still has its old backing file, and reads as before")):
            with self.subTest(argv=argv):
                self.anew()
                done = run("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e",
                           "inject=fdatasync:error=EIO", QIMG, *argv, cwd=self.here, env=plugin_env(), check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn(f"{name}: flushing failed: Input/output error", done.stderr)
                self.assertIn(words, done.stderr)
                self.same_bytes("top", "qcow2")


class Bitmaps(CommandKill):
    """A disk with two bitmaps; the commands change "work", and "keep" must not change."""

    def make(self):
        os.makedirs(self.path("master"), exist_ok=True)
        image = create(self.path("master/i"), "qcow2", SIZE, "cluster_size=4k")
        for name in ("keep", "work"):
            run("qemu-img", "bitmap", "--add", "-g", "4k", image, name)
        fill(image, "qcow2", [(at, pattern(at + 1, 12 * KIB)) for at in range(0, SIZE, 128 * KIB)])
        run("qemu-img", "bitmap", "--disable", image, "keep")
        self.data = content(image, "qcow2")
        self.kept = self.bits(image)

    def bits(self, image):
        """The content of the bitmap "keep", as the bytes of an image into which it is merged."""
        copy = self.path("copy")
        for number in range(2):
            run("qemu-img", "create", "-q", "-f", "qcow2", copy, str(SIZE))
            run("qemu-img", "bitmap", "--add", "-g", "4k", copy, "b")
            if number:
                run("qemu-img", "bitmap", "--merge", "keep", "-b", image, "-F", "qcow2", copy, "b")
            found = pathlib.Path(copy).read_bytes() if number else None
        return re.sub(rb"\0{512,}", b"|", found)

    def test_every_verb(self):
        self.make()

        def judge():
            self.assertEqual(self.reads("i", "qcow2"), self.data)
            self.assertEqual(self.bits(self.there("i")), self.kept)

        for verb in (["--add", "-g", "512", "i", "new"], ["--remove", "i", "work"], ["--clear", "i", "work"],
                     ["--disable", "i", "work"], ["--merge", "keep", "i", "work"]):
            self.rounds(["bitmap", *verb], judge)
