# SPDX-License-Identifier: BSD-3-Clause
"""O-01: `qimg convert` compared with `qemu-img convert`; what only qimg can do; and how it ends."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import unittest

from harness import KIB, MIB, QIMG, Case, await_listener, content, create, fill, kill_quietly, plugin_env, run, wait_until
from side_by_side import SideBySide, pattern
from test_stored_bitmaps import KeptBitmaps

FORMATS = ("raw", "qcow2", "qed")


def in_use(image, name):
    """The bytes of a qcow2 image with the in-use flag set on that bitmap, as a killed writer leaves it."""
    image, at = bytearray(image), image.find(name)
    while at >= 0:
        image[at - 9] |= 1  # the lowest byte of its flags
        at = image.find(name, at + 1)
    return bytes(image)


class Beside(SideBySide):
    """Both programs with the same arguments."""

    def test_each_format_to_each(self):
        self.rows([(f"convert -f {source} -O {target} a.{source} out", f"out:{target}")
                   for source in FORMATS for target in FORMATS])

    def test_kinds_of_sources(self):
        self.rows([(f"convert -O {target} {source} out", f"out:{target}")
                   for source in ("odd.raw", "v2.qcow2", "ext.qcow2", "small.qcow2", "comp.qcow2", "data.qcow2", "over.qed",
                                  "top.qcow2", "long.qcow2")
                   for target in ("raw", "qcow2")])

    def test_options_of_the_target(self):
        self.rows([(f"convert -O qcow2 -o {options} a.raw out", "out:qcow2") for options in (
            "cluster_size=4k", "cluster_size=2M", "compat=0.10", "compat=1.1", "lazy_refcounts=on", "refcount_bits=1",
            "refcount_bits=64", "extended_l2=on,cluster_size=128k", "preallocation=metadata", "preallocation=falloc",
            "preallocation=full", "size=5M", "compression_type=zstd", "data_file=out.data", "data_file=out.data,data_file_raw=on")])
        self.rows([("convert -O qed -o cluster_size=4k,table_size=2 a.raw out", "out:qed"),
                   ("convert -O raw -o preallocation=falloc a.qcow2 out", "out:raw"),
                   ("convert -O raw -o preallocation=full a.qcow2 out", "out:raw"),
                   ("convert -O raw -o size=5M a.qcow2 out", "out:raw")])

    def test_compressed(self):
        self.rows([(f"convert -c -O qcow2 {options} {source} out", "out:qcow2")
                   for options in ("", "-o compression_type=zstd", "-o cluster_size=4k", "-o compat=0.10", "-W -m 3")
                   for source in ("a.raw", "over.qcow2")])

    def test_holes(self):
        self.rows([(f"convert -S {size} -O {target} a.raw out", f"out:{target}")
                   for size in ("0", "512", "4k", "1M") for target in FORMATS])

    def test_backing_files(self):
        self.rows([("convert -O qcow2 -B a.raw -F raw over.qcow2 out", "out:qcow2"),
                   ("convert -O qcow2 -o backing_file=a.raw,backing_fmt=raw over.qcow2 out", "out:qcow2"),
                   ("convert -O qcow2 -B over.qcow2 -F qcow2 top.qcow2 out", "out:qcow2"),
                   ("convert -O qed -B a.raw -F raw over.qed out", "out:qed"),
                   ("convert -c -O qcow2 -B a.raw -F raw over.qcow2 out", "out:qcow2"),
                   ("convert -O qcow2 -B a.raw -F raw long.qcow2 out", "out:qcow2")])

    def test_into_what_is_there(self):
        self.rows([("convert -n -O qcow2 a.raw b.qcow2", "b.qcow2:qcow2", "qemu-img create -q -f qcow2 b.qcow2 4M"),
                   ("convert -n -O qcow2 a.raw b.qcow2", "b.qcow2:qcow2", "qemu-img create -q -f qcow2 b.qcow2 6M"),
                   ("convert -n --target-is-zero -O qcow2 a.raw b.qcow2", "b.qcow2:qcow2",
                    "qemu-img create -q -f qcow2 b.qcow2 4M"),
                   ("convert -n -O raw over.qcow2 b.raw", "b.raw:raw"),
                   ("convert -n -O qcow2 b.raw ext.qcow2", "ext.qcow2:qcow2"),
                   ("convert -n -c -O qcow2 b.raw b.qcow2", "b.qcow2:qcow2", "qemu-img create -q -f qcow2 b.qcow2 4M"),
                   ("convert -n -O qcow2 b.raw small.qcow2", "small.qcow2:qcow2"),
                   ("convert -n -O qcow2 b.raw over.qcow2", "over.qcow2:qcow2"),
                   ("convert -O qcow2 a.raw b.raw", "b.raw:qcow2"),
                   ("convert -n --target-image-opts a.raw driver=qcow2,file.filename=lazy.qcow2", "lazy.qcow2:qcow2")])

    def test_several_sources(self):
        self.rows([("convert -O qcow2 a.raw odd.raw out", "out:qcow2"), ("convert -O raw odd.raw odd.raw out", "out:raw"),
                   ("convert -f qcow2 -O qed a.qcow2 top.qcow2 ext.qcow2 out", "out:qed"),
                   ("convert -n -O raw odd.raw odd.raw b.raw", "b.raw:raw"),
                   ("convert -c -O qcow2 odd.raw a.raw out", "out:qcow2")])

    def test_ways_of_working(self):
        self.rows([(f"convert {words} -O qcow2 a.raw out", "out:qcow2") for words in (
            "-m 1", "-m 16", "-W", "-q", "-U", "-t none", "-t writeback", "-t unsafe", "-T none", "-r 100M", "-r 0", "--salvage", "-C")])
        self.rows([("convert -p -q -O qcow2 a.raw out", "out:qcow2"),
                   ("convert --image-opts -O raw driver=qcow2,file.filename=a.qcow2 out", "out:raw")])

    def test_refused(self):
        self.rows([(f"convert {words}", "") for words in (
            "a.raw", "", "-n --target-is-zero a.raw out", "--target-is-zero a.raw out", "-C -c -O qcow2 a.raw out",
            "-C -S 0 a.raw out", "-m 77 a.raw out", "-m 0 a.raw out", "-c a.raw out", "-c -O qed a.raw out",
            "-B a.raw -O qcow2 over.qcow2 out", "-O foo a.raw out", "-f foo a.raw out", "-S 77 a.raw out", "-r foo a.raw out",
            "-t foo a.raw out", "-T foo a.raw out", "-n -o cluster_size=4k -O qcow2 a.raw a.qcow2",
            "--target-image-opts a.raw driver=raw,file.filename=out", "-O qcow2 -o cluster_size=3 a.raw out",
            "a.raw a.raw", "a.raw nodir/out", "--salvage -C a.raw out", "-O qcow2 -B none -F raw a.raw out", "none out",
            "-O qcow2 -B a.raw -F raw a.raw b.raw out", "-O raw -B a.raw -F raw over.qcow2 out", "-n -O qcow2 a.raw none",
            "-n -O raw long.qcow2 a.raw", "-O qcow2 -F raw over.qcow2 out", "-O qcow2 -o backing_fmt=raw over.qcow2 out",
            "-c -O qcow2 -o preallocation=metadata a.raw out", "-c -O qcow2 -o preallocation=full a.raw out",
            "-f qcow2 a.raw out", "-f qed a.qcow2 out",
            "--bogus a.raw out")])


class BitmapsBeside(SideBySide, KeptBitmaps):
    """`--bitmaps` copies the names, granularities, flags and dirty ranges of bitmaps."""

    NAMES = {"wednesday": 4 * KIB, "tuesday": 128 * KIB, "monday": 512}  # the first one is disabled

    @classmethod
    def setUpClass(cls):
        super().setUpClass()

        def qemu(*words):
            run(*words, cwd=cls.fixture)

        qemu("qemu-img", "create", "-q", "-f", "qcow2", "bits.qcow2", "4M")
        for at, (name, granularity) in enumerate(cls.NAMES.items()):
            qemu("qemu-img", "bitmap", "--add", "-g", str(granularity), "bits.qcow2", name)
            qemu("qemu-io", "-f", "qcow2", "-c", f"write -q {at}M 5k", "-c", f"write -q {3500 + at}k 200k", "bits.qcow2")
        qemu("qemu-img", "bitmap", "--disable", "bits.qcow2", "wednesday")
        qemu("qemu-img", "snapshot", "-c", "snap", "bits.qcow2")
        qemu("qemu-io", "-f", "qcow2", "-c", "write -q 2500k 1k", "bits.qcow2")
        whole = pathlib.Path(cls.fixture, "bits.qcow2").read_bytes()
        pathlib.Path(cls.fixture, "broken.qcow2").write_bytes(in_use(whole, b"tuesday"))
        pathlib.Path(cls.fixture, "lost.qcow2").write_bytes(whole.replace(b"tuesday", b"\0\0\0\0\0\0\0"))

    def same_bits(self, row, *names, image="out"):
        self.same(row)
        for name in names:
            found = [self.dirty_for_qemu(os.path.join(self.path(folder), image), name, 512) for folder in ("theirs", "ours")]
            self.assertEqual(*found, (row, name))
            self.assertTrue(found[0])

    def test_they_are_copied(self):
        for words in ("", "-c", "-o cluster_size=4k,refcount_bits=8", "-l snap", "-t writeback -m 1",
                      "-o preallocation=full", "-o extended_l2=on"):
            with self.subTest(words=words):
                self.same_bits((f"convert --bitmaps {words} -O qcow2 bits.qcow2 out", "out:qcow2"), *self.NAMES)
        # A target with an enabled bitmap of its own, which records what is written.
        self.same_bits(("convert --bitmaps -n -O qcow2 bits.qcow2 there", "there:qcow2", "qemu-img create -q -f qcow2 there 4M",
                        "qemu-img bitmap --add there own"), "own", *self.NAMES, image="there")

    def test_of_the_image_itself(self):
        """Only the source image's own bitmaps are copied, not those of its backing file."""
        self.rows([("convert --bitmaps -O qcow2 a.qcow2 out", "out:qcow2"),
                   ("convert --bitmaps -O qcow2 -o data_file=out.data,data_file_raw=on bits.qcow2 out", "out:qcow2"),
                   ("convert --bitmaps -O qcow2 layer out", "out:qcow2",
                    "qemu-img create -q -f qcow2 -b bits.qcow2 -F qcow2 layer"),
                   ("convert --bitmaps -n -O qcow2 a.qcow2 there", "there:qcow2", "qemu-img create -q -f qcow2 there 5M")])

    def test_broken_ones_are_left_out(self):
        self.same_bits(("convert --bitmaps --skip-broken-bitmaps -O qcow2 broken.qcow2 out", "out:qcow2"), "wednesday", "monday")
        # Broken bitmaps of the target don't matter.
        self.same_bits(("convert --bitmaps -n -O qcow2 layer broken.qcow2", "broken.qcow2:qcow2",
                        "qemu-img create -q -f qcow2 -b bits.qcow2 -F qcow2 layer", "qemu-img bitmap --add layer x",
                        "qemu-img bitmap --merge monday -b bits.qcow2 -F qcow2 layer x"), "x", image="broken.qcow2")

    def test_refused(self):
        """Refused with qemu-img's message, before an existing target is touched."""
        for words, *before in (
                ("--bitmaps -O qcow2 a.raw out",), ("--bitmaps -O qcow2 v2.qcow2 out",), ("--bitmaps -O qcow2 a.qed out",),
                ("--bitmaps -O qcow2 bits.qcow2 bits.qcow2 out",), ("--bitmaps -O qcow2 broken.qcow2 out",),
                ("--skip-broken-bitmaps -O qcow2 bits.qcow2 out",), ("--bitmaps -O raw bits.qcow2 out",),
                ("--bitmaps -O qed bits.qcow2 out",), ("--bitmaps -O qcow2 -o compat=0.10 bits.qcow2 out",),
                ("--bitmaps -n -O qcow2 bits.qcow2 v2.qcow2",),
                ("--bitmaps -n -O qcow2 bits.qcow2 there", "qemu-img create -q -f qcow2 there 5M",
                 "qemu-img bitmap --add there other"),
                ("--bitmaps -n -O qcow2 bits.qcow2 there", "qemu-img create -q -f qcow2 there 4M",
                 "qemu-img bitmap --add there monday")):
            with self.subTest(words=words):
                theirs, ours = self.both(["convert", *words.split()], before)
                self.assertEqual((theirs.returncode, ours.returncode), (1, 1))
                self.assertEqual(*[re.sub("wednesday|tuesday|monday", "-", text) for text in (  # the last one first
                    theirs.stderr.replace("qemu-img", "qimg"),
                    re.sub("(?m)^qimg: out: was not made\n", "", ours.stderr))])
                self.assertFalse(os.path.exists(os.path.join(self.path("ours"), "out")))
                if before:
                    there = os.path.join(self.path("ours"), "there")
                    self.assertEqual(len(self.stored(there)), 1)
                    self.assertNotIn('"data": true', run("qemu-img", "map", "--output=json", there).stdout)

    def test_lost_ones_are_no_empty_list(self):
        """An image whose bitmaps can't be loaded is refused, unless broken ones are to be skipped; qemu-img doesn't
        open it."""
        words = ("convert", "--bitmaps", "-O", "qcow2", os.path.join(self.fixture, "lost.qcow2"), self.path("out"))
        done = run(QIMG, *words, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("lost.qcow2: its bitmaps can't be loaded", done.stderr)
        self.assertFalse(os.path.exists(self.path("out")))
        run(QIMG, *words, "--skip-broken-bitmaps")
        self.assertEqual(self.stored(self.path("out")), {})

    def test_no_room_for_them(self):
        """If the bitmaps can't be stored in the target, the conversion fails and the target is removed."""
        image = create(self.path("large"), "qcow2", "1G")
        run("qemu-img", "bitmap", "--add", "-g", "512", image, "b")
        run("qemu-io", "-f", "qcow2", *[w for at in range(4) for w in ("-c", f"write -q -z {at * 256}M 256M")], image)
        done = run("bash", "-c", f"ulimit -f 400; trap '' XFSZ; {QIMG} convert --bitmaps -O qcow2 large out", cwd=self.dir,
                   check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, "bitmap b could not be stored\n")
        self.assertEqual(os.listdir(self.dir), ["large"])


class Alone(Case):
    """What differs from qemu-img."""

    def source(self):
        path = self.path("a.raw")
        with open(path, "wb") as file:
            file.truncate(64 * MIB)
            for at in range(0, 64, 4):
                file.seek(at * MIB)
                file.write(pattern(at, MIB))
        return path

    def moved_by_the_kernel(self, *words):
        """The number of bytes that `qimg convert` moves by copy_file_range, according to strace."""
        log = self.path("calls")
        run("strace", "-f", "-qq", "-o", log, "-e", "trace=copy_file_range", QIMG, "convert", *words, cwd=self.dir, env=plugin_env())
        return sum(map(int, re.findall(r"= (\d+)$", pathlib.Path(log).read_text(encoding="utf-8"), re.M)))

    def test_offloaded(self):
        """-C: the kernel moves data that lies uncompressed in a file to clusters that the target has; the rest is
        copied as usual."""
        data = pattern(1, 3 * MIB) + bytes(MIB) + pattern(2, 70001)
        pathlib.Path(self.path("a.raw")).write_bytes(data)
        data += bytes(-len(data) % 512)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2", cwd=self.dir)
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "a.raw", "c.qcow2", cwd=self.dir)
        shutil.copy(self.path("a.qcow2"), self.path("there"))
        for words, fmt, least in (("-f raw -O raw a.raw out", "raw", 3 * MIB), ("-f qcow2 -O raw a.qcow2 out", "raw", 3 * MIB),
                                  ("-n -f raw -O qcow2 a.raw there", "qcow2", 3 * MIB), ("-f qcow2 -O raw c.qcow2 out", "raw", 0),
                                  ("-f raw -O qcow2 a.raw out", "qcow2", 0), ("-t none -f raw -O raw a.raw out", "raw", 0)):
            with self.subTest(words=words):
                moved = self.moved_by_the_kernel("-C", *words.split())
                self.assertEqual(content(self.path(words.split()[-1]), fmt)[:len(data)], data)
                self.assertGreaterEqual(moved, least)
                self.assertEqual(bool(moved), bool(least))
        self.assertEqual(self.moved_by_the_kernel("-f", "raw", "-O", "raw", "a.raw", "out"), 0)

    def test_holes_amid_data(self):
        """Blocks of a raw target may be reserved in advance; ranges that then turn out to be zero become holes."""
        zeroes = [(5 * MIB, MIB), (9 * MIB + 4 * KIB, 12 * KIB), (16 * MIB, 3 * MIB), (23 * MIB, MIB)]
        data = bytearray(pattern(1, 24 * MIB))
        for at, length in zeroes:
            data[at:at + length] = bytes(length)
        pathlib.Path(self.path("a.raw")).write_bytes(data)
        is_ext4 = "ext2/ext3" in run("stat", "-f", "-c", "%T", ".", cwd=self.dir).stdout and shutil.disk_usage(self.dir).free > 2 << 30
        for threads in "1", "4":
            run("strace", "-f", "-qq", "-o", "calls", "-e", "trace=fallocate", QIMG, "convert", "-m", threads, "-f", "raw", "-O", "raw",
                "a.raw", "out", cwd=self.dir, env=plugin_env())
            told = re.search(r"\d, FALLOC_FL_KEEP_SIZE, ", pathlib.Path(self.path("calls")).read_text(encoding="utf-8"))
            self.assertTrue(told or not is_ext4)
            self.assertEqual(pathlib.Path(self.path("out")).read_bytes(), data)
            self.assertLessEqual(os.stat(self.path("out")).st_blocks * 512, len(data) - sum(n for _, n in zeroes) + 64 * KIB)
        run(QIMG, "convert", "-f", "raw", "-O", "raw", "-o", "preallocation=falloc", "a.raw", "out", cwd=self.dir)
        self.assertEqual(pathlib.Path(self.path("out")).read_bytes(), data)
        self.assertGreaterEqual(os.stat(self.path("out")).st_blocks * 512, len(data))

    def test_from_and_to_exports(self):
        source, image = self.source(), create(self.path("b.qcow2"), "qcow2", 64 * MIB)
        served, target = self.serve(source, "format=raw"), self.serve(image)
        run(QIMG, "convert", "-n", "-O", "raw", served.uri, target.uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", served.uri, target.uri)
        run(QIMG, "convert", "-O", "qed", served.uri, self.path("c.qed"))
        run("qemu-img", "compare", "-U", "-f", "raw", "-F", "qed", source, self.path("c.qed"))
        run(QIMG, "convert", self.path("c.qed"), target.uri)  # -n isn't needed: an export exists already
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", served.uri, target.uri)
        names = run(QIMG, "info", served.uri).stdout
        self.assertIn("file format: raw", names)
        self.assertIn('"start": 0', run(QIMG, "map", "--output=json", served.uri).stdout)

    def test_a_middle_layer_as_backing_file(self):
        """-B with a lower layer of the source: the layers in between are copied; qemu-img leaves them out."""
        run("qemu-img", "create", "-q", "-f", "raw", "base", "4M", cwd=self.dir)
        for name, below, fmt, at in (("mid", "base", "raw", "0"), ("top", "mid", "qcow2", "1M")):
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", fmt, name, cwd=self.dir)
            run("qemu-io", "-f", "qcow2", "-c", f"write -q -P 3 {at} 64k", name, cwd=self.dir)
        run(QIMG, "convert", "-O", "qcow2", "-B", "base", "-F", "raw", "top", "out", cwd=self.dir)
        run("qemu-img", "compare", "top", "out", cwd=self.dir)

    def test_an_overlay_that_is_there(self):
        """-n -B: data that the source has from the common backing file is copied only where the target has its own."""
        for fmt, words in (("qcow2", ()), ("qed", ()), ("qcow2", ("-c",))):
            with self.part(fmt=fmt, words=words):
                pathlib.Path(self.path("base")).write_bytes(pattern(1, 4 * MIB))
                for name, own in (("top", [(MIB, pattern(2, 128 * KIB))]), ("there", [(3 * MIB, pattern(3, 64 * KIB))])):
                    run("qemu-img", "create", "-q", "-f", fmt, "-b", "base", "-F", "raw", name, cwd=self.dir)
                    fill(self.path(name), fmt, own)
                run(QIMG, "convert", *words, "-n", "-f", fmt, "-O", fmt, "-B", "base", "-F", "raw", "top", "there", cwd=self.dir)
                run("qemu-img", "compare", "-f", fmt, "-F", fmt, "top", "there", cwd=self.dir)
                run("qemu-img", "check", "-q", "-f", fmt, "there", cwd=self.dir)
                self.assertEqual(self.own_ranges("there", fmt), [(MIB, 128 * KIB), (3 * MIB, 64 * KIB)])

    def test_an_overlay_is_not_zero(self):
        """--target-is-zero is refused for an overlay; qemu-img prints the same error, but exits with 0"""
        pathlib.Path(self.path("base")).write_bytes(pattern(1, MIB))
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "over", cwd=self.dir)
        done = run(QIMG, "convert", "-n", "--target-is-zero", "-O", "qcow2", "-B", "base", "-F", "raw", "base", "over", cwd=self.dir, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("Cannot use --target-is-zero when the destination image has a backing file", done.stderr)

    def own_ranges(self, name, fmt):
        runs = json.loads(run("qemu-img", "map", "-f", fmt, "--output=json", name, cwd=self.dir).stdout)
        return [(r["start"], r["length"]) for r in runs if r["depth"] == 0]

    def start(self, *words, stderr=subprocess.PIPE):
        return subprocess.Popen([str(QIMG), "convert", *words], cwd=self.dir, stdout=subprocess.PIPE, stderr=stderr, text=True,
                                env=plugin_env())

    def test_interrupted(self):
        """After a signal a new target doesn't exist and an old one is unchanged; if it was written in place, the message
        says that it is incomplete."""
        self.source()
        for number, old in ((signal.SIGINT, False), (signal.SIGTERM, True)):
            if old:
                pathlib.Path(self.path("out")).write_bytes(b"old")
            process = self.start("-r", "2M", "-O", "qcow2", "a.raw", "out")
            wait_until(lambda: any(name.startswith(".out.") for name in os.listdir(self.dir)), 10, "the temporary file")
            process.send_signal(number)
            _, errors = process.communicate(timeout=20)
            self.assertEqual(process.returncode, -number)
            self.assertRegex(errors, "out: is as it was before" if old else "out: was not made")
            self.assertEqual(sorted(os.listdir(self.dir)), ["a.raw", "out"] if old else ["a.raw"])
        self.assertEqual(pathlib.Path(self.path("out")).read_bytes(), b"old")
        create(self.path("there"), "qcow2", 64 * MIB)
        process = self.start("-r", "2M", "-n", "-O", "qcow2", "a.raw", "there")
        wait_until(lambda: os.path.getsize(self.path("there")) > 400 * KIB, 10, "the copy")
        process.send_signal(signal.SIGINT)
        self.assertRegex(process.communicate(timeout=20)[1], "there: is incomplete")
        run("qemu-img", "check", "-q", "there", cwd=self.dir)

    def test_nobody_reads_its_output(self):
        """With "| head" the command finishes its work, and its exit status tells of that alone."""
        self.source()
        for reader in ("head -c 1", "true"):
            shell = f'set -o pipefail; "{QIMG}" convert -p -r 32M -O qcow2 a.raw out | {reader} > /dev/null'
            done = subprocess.run(["bash", "-c", shell], cwd=self.dir, capture_output=True, text=True, check=False)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertEqual(sorted(os.listdir(self.dir)), ["a.raw", "out"])
            run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", "a.raw", "out", cwd=self.dir)
            os.unlink(self.path("out"))

    def test_nobody_reads_a_description(self):
        """The exit status doesn't depend on when the reader ends."""
        self.source()
        shell = f'set -o pipefail; for i in $(seq 20); do "{QIMG}" info a.raw | true || exit; done'
        done = subprocess.run(["bash", "-c", shell], cwd=self.dir, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_several_sources_over_one_backing_file(self):
        """Of all but the first the target would show its backing file's data."""
        self.source()
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "there", "128M", cwd=self.dir)
        for words in (["-n"], []):
            failed = subprocess.run([QIMG, "convert", *words, "-B", "a.raw", "-F", "raw", "-O", "qcow2", "a.raw", "a.raw",
                                     "there" if words else "new"], cwd=self.dir, capture_output=True, text=True, check=False)
            self.assertEqual(failed.returncode, 1)
            self.assertIn("makes no sense when concatenating", failed.stderr)

    def test_progress(self):
        self.source()
        shown = subprocess.run([QIMG, "convert", "-p", "a.raw", "out"], cwd=self.dir, capture_output=True, check=True).stdout.decode()
        self.assertRegex(shown, r"^    \(0\.00/100%\)\r(    \(\d+\.\d\d/100%\)\r)+\n$")
        self.assertTrue(shown.endswith("    (100.00/100%)\r\n"))
        process = self.start("-r", "8M", "a.raw", "out")
        wait_until(lambda: any(name.startswith(".out.") for name in os.listdir(self.dir)), 10, "the temporary file")
        time.sleep(0.2)  # the signal handler is installed right after the file is made
        for _ in range(20):
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.02)
        time.sleep(0.5)
        process.kill()
        self.assertRegex(process.communicate()[1], r"^(    \(\d+\.\d\d/100%\)\n)+$")

    def test_full_disk(self):
        """A file that couldn't be written is removed, and the message says why."""
        self.source()
        done = run("bash", "-c", f"ulimit -f 4096; trap '' XFSZ; {QIMG} convert -O qcow2 a.raw out", cwd=self.dir, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "error while writing at byte [0-9]+: File too large")
        self.assertEqual(os.listdir(self.dir), ["a.raw"])

    def test_compressed_by_all_threads(self):
        self.source()
        for kind in ("zlib", "zstd"):
            run(QIMG, "convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", "a.raw", "out", cwd=self.dir)
            run("qemu-img", "compare", "-F", "qcow2", "-f", "raw", "a.raw", "out", cwd=self.dir)
            found = json.loads(run("qemu-img", "check", "--output=json", "out", cwd=self.dir).stdout)
            self.assertEqual(found["compressed-clusters"], 256)
            self.assertLess(os.path.getsize(self.path("out")), 4 * MIB)

    def test_salvage(self):
        """--salvage: data that can't be read (here a damaged compressed cluster) becomes zeroes, with a warning."""
        create(self.path("a.qcow2"), "qcow2", MIB)
        fill(self.path("a.qcow2"), "qcow2", [(0, pattern(1, MIB))])
        run("qemu-img", "convert", "-c", "-O", "qcow2", "a.qcow2", "c.qcow2", cwd=self.dir)
        where = run("qemu-img", "map", "--output=json", "c.qcow2", cwd=self.dir).stdout
        self.assertIn('"data": true', where)
        with open(self.path("c.qcow2"), "r+b") as file:
            file.seek(5 * 64 * KIB + 100)
            file.write(b"\xff" * 200)
        self.assertEqual(run(QIMG, "convert", "c.qcow2", "out", cwd=self.dir, check=False).returncode, 1)
        done = run(QIMG, "convert", "--salvage", "c.qcow2", "out", cwd=self.dir)
        self.assertRegex(done.stderr, "warning: error while reading offset [0-9]+: ")
        whole, left = pattern(1, MIB), pathlib.Path(self.path("out")).read_bytes()
        lost = [i for i in range(0, MIB, 64 * KIB) if left[i:i + 64 * KIB] != whole[i:i + 64 * KIB]]
        self.assertTrue(0 < len(lost) < 16 and all(not any(left[i:i + 64 * KIB]) for i in lost), lost)

    def test_a_target_in_use(self):
        self.source()
        run(QIMG, "convert", "-O", "qcow2", "a.raw", "out", cwd=self.dir)
        before = os.stat(self.path("out"))
        self.serve(self.path("out"), "writable=now")
        done = run(QIMG, "convert", "-O", "qcow2", "a.raw", "out", cwd=self.dir, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("lock", done.stderr)
        self.assertEqual(before.st_ino, os.stat(self.path("out")).st_ino)

    def test_owner_and_links(self):
        """The new file gets the old one's mode; symbolic links and hard links to the old file stay."""
        self.source()
        pathlib.Path(self.path("real")).write_bytes(b"old")
        os.chmod(self.path("real"), 0o640)
        os.symlink("real", self.path("link"))
        run(QIMG, "convert", "-O", "qcow2", "a.raw", "link", cwd=self.dir)
        self.assertTrue(os.path.islink(self.path("link")))
        self.assertEqual(os.stat(self.path("real")).st_mode & 0o777, 0o640)
        os.link(self.path("real"), self.path("other"))
        run(QIMG, "convert", "-O", "raw", "a.raw", "real", cwd=self.dir)
        self.assertEqual(os.stat(self.path("real")).st_nlink, 2)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", "a.raw", "other", cwd=self.dir)

    def test_messages_name_the_target(self):
        """messages name the target, not the temporary file in its place"""
        self.source()
        for words in (("-B", "none", "-F", "raw"), ("-o", "backing_file=none,backing_fmt=raw")):
            done = run(QIMG, "convert", "-O", "qcow2", *words, "a.raw", "out", cwd=self.dir, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, "none: cannot be opened|'none': No such file")
            self.assertNotIn(".out.", done.stderr)
            self.assertEqual(os.listdir(self.dir), ["a.raw"])
        done = run(QIMG, "convert", "-c", "-O", "qcow2", "-o", "data_file=data", "a.raw", "out", cwd=self.dir, check=False)
        self.assertRegex(done.stderr, "^qimg: out: Compression not supported")
        done = run("bash", "-c", f"ulimit -f 1000; trap '' XFSZ; {QIMG} convert -O raw -o preallocation=full a.raw out", cwd=self.dir, check=False)
        self.assertRegex(done.stderr, "^qimg: out: cannot be")
        self.assertEqual(os.listdir(self.dir), ["a.raw"])

    def export(self, name, *options):
        """Serves the file as a raw export of qemu-nbd; returns the process and the URI."""
        sock = self.path("sock")
        if os.path.exists(sock):
            os.unlink(sock)
        process = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", sock, *options, name], cwd=self.dir)
        self.addCleanup(kill_quietly, process)
        await_listener(sock)
        return process, f"nbd+unix:///?socket={sock}"

    def test_onto_an_export(self):
        """An image is made inside an export, whatever was there before; raw data is written to it directly."""
        for words in ("-O qcow2", "-O qcow2 -c", "-O qcow2 -o cluster_size=4k", "-O qcow2 -o preallocation=metadata", "-O raw",
                      "-n -O raw"):
            with self.part(words=words):
                self.source()
                size = 64 * MIB if words.endswith("raw") else 72 * MIB
                with open(self.path("there"), "wb") as file:
                    file.write(b"\xff" * size)
                process, uri = self.export("there")
                run(QIMG, "convert", *words.split(), "a.raw", uri, cwd=self.dir)
                fmt = words.split("-O ")[1].split()[0]
                run(QIMG, "compare", "-f", "raw", "-F", fmt, "a.raw", uri, cwd=self.dir)
                if fmt != "raw":
                    self.assertIn("No errors", run(QIMG, "check", uri).stdout)
                kill_quietly(process)
                run("qemu-img", "compare", "-f", "raw", "-F", fmt, "a.raw", "there", cwd=self.dir)
                if fmt != "raw":
                    run("qemu-img", "check", "-q", "-f", fmt, "there", cwd=self.dir)
        self.source()
        with open(self.path("there"), "wb") as file:
            file.truncate(192 * KIB)
        for options, words in (((), "space"), (("-r",), "read-only|not permitted|Permission")):
            process, uri = self.export("there", *options)
            done = run(QIMG, "convert", "-O", "qcow2", "a.raw", uri, cwd=self.dir, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, words)
            kill_quietly(process)

    def test_an_export_that_ends_with_its_client(self):
        """qimg opens an export only once, also to probe its format: without -t qemu-nbd ends after the first client"""
        self.source()
        run("qemu-img", "convert", "-O", "qcow2", "a.raw", "a.qcow2", cwd=self.dir)
        sock = self.path("sock")
        for name in ("a.raw", "a.qcow2"):
            for words in (["info"], ["map"], ["measure", "-O", "qcow2"], ["convert", "-O", "raw"], ["convert", "-O", "qcow2"]):
                with self.subTest(name=name, words=words):
                    if os.path.exists(sock):
                        os.unlink(sock)
                    process = subprocess.Popen(["qemu-nbd", "-r", "-f", "raw", "-k", sock, name], cwd=self.dir)
                    self.addCleanup(kill_quietly, process)
                    await_listener(sock)
                    run(QIMG, *words, f"nbd+unix:///?socket={sock}", *(["out"] if words[0] == "convert" else []), cwd=self.dir, timeout=60)
                    self.assertEqual(process.wait(20), 0)

    def test_made_on_an_export(self):
        with open(self.path("there"), "wb") as file:
            file.truncate(MIB)
        _, uri = self.export("there")
        self.assertIn(f"Formatting '{uri}', fmt=qcow2", run(QIMG, "create", "-f", "qcow2", uri, "1G").stdout)
        self.assertIn("virtual size: 1 GiB", run("qemu-img", "info", uri).stdout)
        self.assertEqual(run(QIMG, "create", "-f", "raw", uri, "2M", check=False).returncode, 1)
        run(QIMG, "create", "-f", "raw", uri, "1M")

    def test_encrypted(self):
        self.source()
        secret = ("--object", "secret,id=s,data=sesame")
        opts = "driver=qcow2,file.filename=e.qcow2,encrypt.key-secret=s"
        run(QIMG, "convert", *secret, "-O", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            "a.raw", "e.qcow2", cwd=self.dir)
        run("qemu-img", "compare", *secret, "--image-opts", "driver=raw,file.filename=a.raw", opts, cwd=self.dir)
        run(QIMG, "convert", *secret, "--image-opts", "-O", "raw", opts, "out", cwd=self.dir)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", "a.raw", "out", cwd=self.dir)
        self.assertIn("passphrase", run(QIMG, "convert", "e.qcow2", "o", cwd=self.dir, check=False).stderr)


@unittest.skipUnless(os.geteuid() == 0 and shutil.which("setpriv"), "needs to be root, and setpriv")
class WhoMayWrite(Case):
    """An old target that can't be replaced: no file can be made beside it, or the owner can't be set."""

    def convert(self, capability):
        """Runs qimg convert as root without that capability."""
        words = [f"--bounding-set=-{capability}", f"--inh-caps=-{capability}", QIMG, "convert", "-f", "raw", "-O", "qcow2"]
        return run("setpriv", *words, self.path("a.raw"), self.path("folder/out"))

    def test_where_it_is(self):
        """like qemu-img, it writes to the old file itself, whose owner and mode stay"""
        with open(self.path("a.raw"), "wb") as file:
            file.write(b"a" * MIB)
        folder, out = self.path("folder"), self.path("folder/out")
        os.mkdir(folder)
        for capability, owner, folder_mode in (("dac_override", (0, 0), 0o555), ("chown", (0, 77), 0o755), ("chown", (77, 0), 0o777)):
            with self.subTest(capability=capability, owner=owner):
                pathlib.Path(out).write_bytes(b"old" * MIB)
                os.chown(out, *owner)
                os.chmod(out, 0o666)
                os.chmod(folder, folder_mode)
                before = os.stat(out)
                self.convert(capability)
                after = os.stat(out)
                self.assertEqual((after.st_ino, after.st_uid, after.st_gid, after.st_mode),
                                 (before.st_ino, before.st_uid, before.st_gid, before.st_mode))
                self.assertEqual(os.listdir(folder), ["out"])
                self.assertEqual(content(out, "qcow2"), b"a" * MIB)
                os.chmod(folder, 0o755)
