# SPDX-License-Identifier: BSD-3-Clause
"""`qimg bitmap` compared with `qemu-img bitmap`: the same options, results and exit codes (B-10); and how
other commands treat bitmaps (B-13)."""

import json
import random
import shutil
import unittest

from harness import *
from test_stored_bitmaps import KeptBitmaps, SIZE, granules


@unittest.skipIf(STANDIN, "needs the command")
class BitmapCommand(KeptBitmaps):
    def bitmaps(self, image):
        done = run("qemu-img", "info", "--output=json", image)
        found = json.loads(done.stdout)["format-specific"]["data"].get("bitmaps", [])
        return sorted((b["name"], b["granularity"], sorted(b["flags"])) for b in found)

    def both(self, image, *words, says=""):
        """Runs the command by both programs, each on its own copy of the image; afterwards both copies must have the
        same bitmaps.  Returns whether it succeeded."""
        ours, theirs = self.path("ours.qcow2"), self.path("theirs.qcow2")
        if not os.path.exists(ours):
            shutil.copy(image, ours)
            shutil.copy(image, theirs)
        done = run(QIMG, "bitmap", *[ours if w is image else w for w in words], check=False)
        other = run("qemu-img", "bitmap", *[theirs if w is image else w for w in words], check=False)
        self.assertEqual(done.returncode, other.returncode, (words, done.stderr, other.stderr))
        if says:
            self.assertIn(says, done.stderr)
            self.assertIn(says, other.stderr)
            self.assertTrue(done.stderr.startswith("qimg: "), done.stderr)
        check(ours, "qcow2")
        self.assertEqual(self.bitmaps(ours), self.bitmaps(theirs), words)
        return done.returncode == 0

    def test_as_qemu_img(self):
        image = self.image()
        self.assertTrue(self.both(image, "--add", image, "a"))
        self.assertFalse(self.both(image, "--add", image, "a",
                                   says="Operation add on bitmap a failed: Bitmap already exists: a"))
        self.assertTrue(self.both(image, "--add", "-g", "4k", image, "fine"))
        self.assertTrue(self.both(image, "--add", "--disable", "--granularity", "2G", image, "coarse"))
        self.assertTrue(self.both(image, "--disable", "--enable", "--clear", "--remove", "--add", "--disable", image, "a"))
        self.assertTrue(self.both(image, "--enable", image, "a"))
        self.assertTrue(self.both(image, "--add", "--merge", "a", "--merge", "fine", image, "both"))
        self.assertTrue(self.both(image, "-f", "qcow2", "--clear", image, "fine"))
        for verb in ("remove", "clear", "enable", "disable"):
            self.assertFalse(self.both(image, f"--{verb}", image, "x",
                                       says=f"Operation {verb} on bitmap x failed: Dirty bitmap 'x' not found"))
        self.assertFalse(self.both(image, "--merge", "x", image, "a",
                                   says="Operation merge on bitmap a failed: Dirty bitmap 'x' not found"))
        # The actions before the failed one stay in effect.
        self.assertFalse(self.both(image, "--add", "--merge", "x", image, "new"))
        self.assertIn("new", str(self.bitmaps(self.path("ours.qcow2"))))
        for name, *_ in self.bitmaps(self.path("ours.qcow2")):
            self.assertTrue(self.both(image, "--remove", image, name))
        self.assertEqual(self.bitmaps(self.path("ours.qcow2")), [])

    def test_refused(self):
        image = self.image("b")
        huge = "n" * 1024
        for says, words in (
                ("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge", [image, "b"]),
                ("Expecting filename and bitmap name", ["--add", image]),
                ("Expecting filename and bitmap name", ["--add", image, "b", "c"]),
                ("granularity only supported with --add", ["-g", "64k", "--remove", image, "b"]),
                ("-F only supported with -b", ["--add", "-F", "qcow2", image, "c"]),
                ("Merge bitmap source file only supported with --merge", ["--add", "-b", image, image, "c"]),
                ("Invalid granularity specified", ["--add", "-g", "x", image, "c"]),
                ("ranularity must be ", ["--add", "-g", "1000", image, "c"]),
                ("ranularity must be ", ["--add", "-g", "4G", image, "c"]),
                ("Bitmap name cannot be empty", ["--add", image, ""]),
                ("1023", ["--add", image, huge])):
            with self.subTest(words=words):
                before = sha256(image)
                done = run(QIMG, "bitmap", *words, check=False)
                self.assertEqual(sha256(image), before)
                other = run("qemu-img", "bitmap", *words, check=False)
                self.assertEqual((done.returncode, other.returncode), (1, 1))
                self.assertIn(says, done.stderr)
                self.assertIn(says, other.stderr)
        self.assertEqual(self.stored(image), {"b": ["auto"]})
        for fmt in ("raw", "qed"):
            done = run(QIMG, "bitmap", "--add", "-f", fmt, create(self.path(fmt), fmt, MIB), "b", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"Driver '{fmt}' does not support persistent bitmaps", done.stderr)
        done = run(QIMG, "bitmap", "--add", create(self.path("v2"), "qcow2", MIB, "compat=0.10"), "b", check=False)
        self.assertIn("Cannot store dirty bitmaps in qcow2 v2 files", done.stderr)
        self.assertIn("No such file", run(QIMG, "bitmap", "--add", self.path("none"), "b", check=False).stderr)

    def test_large_ones(self):
        """Bitmaps of the largest size that QEMU allows, 512 MiB each, and 2 GiB of bitmaps in an image."""
        image = self.path("huge")
        create(image, "qcow2", 2 << 40, "cluster_size=2M")
        for name, granularity in (("fine", "512"), ("coarse", "2M"), ("second", "512"), ("third", "512")):
            self.assertTrue(self.both(image, "--add", "-g", granularity, image, name))
        ours = self.path("ours.qcow2")
        done = run(QIMG, "bitmap", "--add", "-g", "512", ours, "fourth", check=False)
        self.assertIn("Too much space will be occupied by the bitmaps. Use larger granularity", done.stderr)
        self.assertEqual([name for name, *_ in self.bitmaps(ours)], ["coarse", "fine", "second", "third"])
        self.assertTrue(self.both(image, "--remove", image, "third"))
        larger = create(self.path("larger"), "qcow2", (2 << 40) + (1 << 30), "cluster_size=2M")
        for tool in (QIMG, "qemu-img"):
            done = run(tool, "bitmap", "--add", "-g", "512", larger, "fine", check=False)
            self.assertIn("Too much space will be occupied by the bitmap. Use larger granularity", done.stderr)
        done = run(QIMG, "resize", ours, "3T", check=False)
        self.assertRegex(done.stderr, "its dirty bitmaps would take [0-9]+ bytes")
        check(ours, "qcow2")

    def test_merged_from_another_image(self):
        """The granularities may differ, the source image isn't changed, and the disks must have the same size."""
        rng = random.Random(9)
        source, image = create(self.path("source"), "qcow2", SIZE), self.image("b")
        run("qemu-img", "bitmap", "--add", "-g", "4k", source, "s")
        pieces = [(rng.randrange(SIZE - 100000), rng.randrange(1, 100000)) for _ in range(10)]
        run("qemu-io", "-f", "qcow2", *[w for off, n in pieces for w in ("-c", f"write -q {off} {n}")], source)
        before = sha256(source)
        run(QIMG, "bitmap", "--merge", "s", "--source-file", source, "--source-format", "qcow2", image, "b")
        # The source's granules have 4 KiB.
        coarse = {n * 4096 // 65536 for n in granules(pieces, 4096)}
        self.assertEqual(self.dirty_for_qemu(image, "b"), coarse)
        self.assertEqual(sha256(source), before)
        run("qemu-img", "bitmap", "--add", create(self.path("small"), "qcow2", MIB), "t")
        done = run(QIMG, "bitmap", "--merge", "t", "-b", self.path("small"), image, "b", check=False)
        self.assertRegex(done.stderr, r"Operation merge on bitmap b failed: Bitmaps are of different sizes \(destination "
                                      r"size is 8388608, source size is 1048576\) and can't be merged")
        self.assertEqual(self.dirty_for_qemu(image, "b"), coarse)
        run(QIMG, "bitmap", "--merge", "b", image, "b")
        self.assertEqual(self.dirty_for_qemu(image, "b"), coarse)
        check(image, "qcow2")

    def test_inconsistent_ones(self):
        image = self.image("b")
        server = self.serve(image)
        server.connect().pwrite(b"x", 0)
        self.assertIn("lock", run(QIMG, "bitmap", "--clear", image, "b", check=False).stderr)
        server.kill()
        for words in (["--clear"], ["--enable"], ["--disable"], ["--merge", "b"]):
            done = run(QIMG, "bitmap", *words, image, "b", check=False)
            self.assertRegex(done.stderr, r"failed: Bitmap 'b' is inconsistent and cannot be used")
        run(QIMG, "bitmap", "--remove", image, "b")
        self.assertEqual(self.stored(image), {})
        run(QIMG, "check", "-r", "leaks", image)
        check(image, "qcow2")

    def test_an_applied_snapshot(self):
        """After `snapshot -a` and `resize`: a recording bitmap has all that may have changed, and the new size."""
        image = self.image("b")
        run("qemu-img", "bitmap", "--add", "--disable", image, "frozen")
        run(QIMG, "snapshot", "-c", "s", image)
        run(QIMG, "snapshot", "-a", "s", image)
        self.assertEqual(len(self.dirty_for_qemu(image, "b")), SIZE // 65536)
        self.assertEqual(self.dirty_for_qemu(image, "frozen"), set())
        run(QIMG, "bitmap", "--clear", image, "b")
        run(QIMG, "resize", image, str(2 * SIZE))
        self.assertEqual(self.dirty_for_qemu(image, "b"), set(range(SIZE // 65536, 2 * SIZE // 65536)))
        self.assertEqual(self.dirty_for_qemu(image, "frozen"), set())
        run(QIMG, "snapshot", "-c", "large", image)
        run(QIMG, "snapshot", "-a", "s", image)
        self.assertEqual(len(self.dirty_for_qemu(image, "b")), SIZE // 65536)
        run(QIMG, "snapshot", "-a", "large", image)
        self.assertEqual(len(self.dirty_for_qemu(image, "b")), 2 * SIZE // 65536)
        self.assertEqual(self.stored(image), {"b": ["auto"], "frozen": []})
        check(image, "qcow2")

    def test_encrypted(self):
        """Bitmaps aren't encrypted, but opening the image needs the key."""
        image = self.path("luks")
        options = f"driver=qcow2,file.filename={image},encrypt.key-secret=s"
        create_encrypted(image, MIB, "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
        run(QIMG, "bitmap", "--add", "--object", "secret,id=s,data=sesame", "--image-opts", options, "b")
        self.assertEqual(self.stored(image), {"b": ["auto"]})


if __name__ == "__main__":
    unittest.main()
