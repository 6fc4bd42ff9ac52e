# SPDX-License-Identifier: BSD-3-Clause
"""O-04: `qimg rebase` and `qimg commit` compared with qemu-img's."""

import itertools
import os
import pathlib

from harness import KIB, MIB, QIMG, Case, content, create, fill, run
from side_by_side import SideBySide, pattern


class Beside(SideBySide):
    def test_rebase(self):
        self.rows([(f"rebase {words} {name}.{fmt}", f"{name}.{fmt}:{fmt}")
                   for words in ("-b b.raw -F raw", "-u -b b.raw -F raw", "-b a.qcow2 -F qcow2", "-b a.qed -F qed", "-b odd.raw -F raw",
                                 "-p -b small.qcow2 -F qcow2", "-q -b comp.qcow2 -F qcow2")
                   for name, fmt in (("over", "qcow2"), ("over", "qed"))])
        self.rows([(f"rebase {words}", f"{words.split()[-1]}:qcow2") for words in (
            "-b b.raw -F raw long.qcow2", "-b a.raw -F raw top.qcow2", "-b over.qed -F qed top.qcow2", "-b b.raw -F raw top.qcow2",
            "-t none -T none -b b.raw -F raw over.qcow2", "-U -b b.raw -F raw over.qcow2", "-b a.raw -F raw a.qcow2", "-b b.raw -F raw ext.qcow2",
            "-b b.raw -F raw small.qcow2")], text=False)

    def test_to_no_backing_file(self):
        for name, fmt in (("over.qcow2", "qcow2"), ("over.qed", "qed"), ("top.qcow2", "qcow2"), ("long.qcow2", "qcow2"), ("a.qcow2", "qcow2")):
            for words in ([], ["-u"]):
                with self.subTest(name=name, words=words):
                    theirs, ours = self.both(["rebase", *words, "-b", "", name])
                    self.assertEqual((theirs.returncode, ours.returncode), (0, 0), ours.stderr)
                    self.same_image(name, fmt)

    def test_commit(self):
        self.rows([(f"commit {words}", images) for words, images in (
            ("over.qcow2", "over.qcow2:qcow2 a.raw:raw"), ("over.qed", "over.qed:qed a.raw:raw"), ("-d over.qcow2", "over.qcow2:qcow2 a.raw:raw"),
            ("-p top.qcow2", "top.qcow2:qcow2 over.qcow2:qcow2"), ("-q -b a.raw top.qcow2", "top.qcow2:qcow2 a.raw:raw"),
            ("-b over.qcow2 top.qcow2", "top.qcow2:qcow2 over.qcow2:qcow2"), ("long.qcow2", "long.qcow2:qcow2 a.raw:raw"),
            ("-r 100M over.qcow2", "over.qcow2:qcow2 a.raw:raw"), ("-r 0 over.qcow2", "over.qcow2:qcow2 a.raw:raw"), ("-t none over.qcow2", "over.qcow2:qcow2 a.raw:raw"),
            ("-f qcow2 over.qcow2", "over.qcow2:qcow2 a.raw:raw"), ("--image-opts driver=qcow2,file.filename=top.qcow2", "over.qcow2:qcow2"))])

    def test_raw_data_files(self):
        """an image with a raw data file can't have a backing file"""
        self.rows([(f"rebase {words} -b b.raw -F raw data.qcow2", "data.qcow2:qcow2") for words in ("", "-u")])

    def test_refused(self):
        self.rows([(words, "over.qcow2:qcow2 a.raw:raw") for words in (
            "rebase over.qcow2", "rebase", "rebase -b none -F raw over.qcow2", "rebase -b b.raw over.qcow2", "rebase -u -b b.raw over.qcow2",
            "rebase -b b.raw -F foo over.qcow2", "rebase -f raw -b b.raw a.raw", "rebase -b b.raw -F qcow2 over.qcow2", "rebase -t foo -b b.raw -F raw over.qcow2",
            "rebase -b b.raw -F raw none", "rebase --bogus over.qcow2", "commit", "commit none", "commit -b none over.qcow2", "commit a.qcow2",
            "commit a.raw", "commit -t foo over.qcow2", "commit -r foo over.qcow2", "commit --bogus over.qcow2", "commit over.qcow2 top.qcow2")])


class Alone(Case):
    def chain(self, fmt="qcow2"):
        """Makes base <- top, and another base; returns what top reads as."""
        base, other, top = (bytearray(pattern(i, 4 * MIB)) for i in (1, 2, 3))
        other[MIB:2 * MIB] = base[MIB:2 * MIB]
        base[2 * MIB:3 * MIB] = bytes(MIB)
        for name, data in (("base", base), ("other", other)):
            pathlib.Path(self.path(name)).write_bytes(data)
        create(self.path("top"), fmt, 4 * MIB, backing="base", backing_fmt="raw")
        expected = base[:]
        for at in range(0, 4 * MIB, 512 * KIB):
            expected[at:at + 100 * KIB] = top[at:at + 100 * KIB]
        fill(self.path("top"), fmt, [(at, bytes(top[at:at + 100 * KIB])) for at in range(0, 4 * MIB, 512 * KIB)])
        return bytes(expected)

    def test_compressed(self):
        expected = self.chain()
        run(QIMG, "rebase", "-c", "-b", "other", "-F", "raw", "top", cwd=self.dir)
        self.assertEqual(content(self.path("top"), "qcow2"), expected)
        self.assertIn('"compressed-clusters"', run("qemu-img", "check", "--output=json", "top", cwd=self.dir).stdout)

    def test_of_an_image_without_one(self):
        """Holes of an image without a backing file must still be zeroes over the new one.  (With qemu-img they show the
        new backing file in version 2.)"""
        data = bytes(MIB) + pattern(1, 100 * KIB) + bytes(3 * MIB - 100 * KIB)
        pathlib.Path(self.path("base")).write_bytes(pattern(2, 4 * MIB))
        for fmt, options in (("qcow2", "compat=0.10"), ("qcow2", "compat=1.1"), ("qcow2", "extended_l2=on"), ("qed", "")):
            create(self.path("i"), fmt, 4 * MIB, options)
            fill(self.path("i"), fmt, [(MIB, data[MIB:MIB + 100 * KIB])])
            run(QIMG, "rebase", "-f", fmt, "-b", "base", "-F", "raw", "i", cwd=self.dir)
            self.assertEqual(content(self.path("i"), fmt), data, (fmt, options))

    def test_zeroes_take_no_place(self):
        """holes become zero clusters, which need no space in the file"""
        for fmt, options in (("qcow2", ""), ("qcow2", "extended_l2=on"), ("qed", "")):
            with self.part(fmt=fmt, options=options):
                image = create(self.path("i"), fmt, 4 * MIB, options)
                fill(image, fmt, [(0, pattern(1, 64 * KIB))])
                create(self.path("base"), "raw", 4 * MIB)
                fill(self.path("base"), "raw", [(0, pattern(2, 3 * MIB))])
                before, size = content(image, fmt), os.path.getsize(image)
                run(QIMG, "rebase", "-f", fmt, "-b", "base", "-F", "raw", image)
                self.assertEqual(content(image, fmt), before)
                run("qemu-img", "check", "-q", "-f", fmt, image)
                self.assertLess(os.path.getsize(image), size + MIB)

    def test_zeroes_behind_a_short_backing_file(self):
        """the zeroes stay over a longer file, also if they begin inside a cluster whose first part both files share"""
        rows = [("qcow2", "compat=0.10"), ("qcow2", ""), ("qcow2", "extended_l2=on"), ("qed", ""),
                ("qcow2", "cluster_size=2M,compat=0.10"), ("qcow2", "cluster_size=2M")]
        for end, (fmt, options) in itertools.product((MIB, MIB + 512, MIB + 70 * KIB), rows):
            with self.part(end=end, fmt=fmt, options=options):
                longer = pattern(1, 4 * MIB)
                pathlib.Path(self.path("short")).write_bytes(longer[:end])
                pathlib.Path(self.path("long")).write_bytes(longer)
                image = create(self.path("i"), fmt, 4 * MIB, options, backing=self.path("short"), backing_fmt="raw")
                run(QIMG, "rebase", "-f", fmt, "-b", self.path("long"), "-F", "raw", image)
                self.assertEqual(content(image, fmt), longer[:end] + bytes(4 * MIB - end))
                run("qemu-img", "check", "-q", "-f", fmt, image)

    def test_holes_of_the_backing_file(self):
        """holes of the old backing file, where the new one has data, must still be zeroes"""
        for options in ("compat=0.10", "cluster_size=2M,compat=0.10", "cluster_size=2M"):
            with self.part(options=options):
                data = pattern(1, 100 * KIB) + bytes(4 * MIB - 100 * KIB)
                create(self.path("sparse"), "raw", 4 * MIB)
                fill(self.path("sparse"), "raw", [(0, data[:100 * KIB])])
                new = bytearray(pattern(2, 4 * MIB))
                new[MIB:MIB + 4 * KIB] = bytes(4 * KIB)
                pathlib.Path(self.path("full")).write_bytes(new)
                image = create(self.path("i"), "qcow2", 4 * MIB, options, backing=self.path("sparse"), backing_fmt="raw")
                run(QIMG, "rebase", "-b", self.path("full"), "-F", "raw", image)
                self.assertEqual(content(image, "qcow2"), data)

    def test_what_both_have_is_not_copied(self):
        expected = self.chain()
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "mid", cwd=self.dir)
        before = os.path.getsize(self.path("top"))
        run(QIMG, "rebase", "-b", "mid", "-F", "qcow2", "top", cwd=self.dir)
        self.assertEqual(content(self.path("top"), "qcow2"), expected)
        self.assertEqual(os.path.getsize(self.path("top")), before)

    def test_on_itself(self):
        self.chain()
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top", "-F", "qcow2", "over", cwd=self.dir)
        done = run(QIMG, "rebase", "-b", "over", "-F", "qcow2", "top", cwd=self.dir, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "itself|lock")
