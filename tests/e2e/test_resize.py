# SPDX-License-Identifier: BSD-3-Clause
"""O-03: `qimg resize` compared with `qemu-img resize`; and interrupted by kill -9."""

import os
import random
import subprocess
import time

from harness import KIB, MIB, QIMG, Case, content, create, fill, plugin_env, run
from side_by_side import SideBySide, pattern

ROUNDS = int(os.environ.get("QIMG_ROUNDS", "3"))


class Resize(SideBySide):
    def test_growing(self):
        self.rows([(f"resize -f {fmt} {name} {size}", f"{name}:{fmt}")
                   for name, fmt in (("a.raw", "raw"), ("a.qcow2", "qcow2"), ("a.qed", "qed"), ("small.qcow2", "qcow2"),
                                     ("ext.qcow2", "qcow2"), ("v2.qcow2", "qcow2"), ("comp.qcow2", "qcow2"), ("over.qcow2", "qcow2"),
                                     ("data.qcow2", "qcow2"))
                   for size in ("+1M", "2G")])
        self.rows([("resize -f raw odd.raw +1k", "odd.raw:raw"), ("resize -f raw a.raw +100", "a.raw:raw"), ("resize a.raw +1M", "a.raw:raw"),
                   ("resize -q a.qcow2 6M", "a.qcow2:qcow2"), ("resize a.qcow2 4M", "a.qcow2:qcow2"),
                   ("resize --image-opts driver=qcow2,file.filename=a.qcow2 5M", "a.qcow2:qcow2")])

    def test_data_file(self):
        """An external data file, raw or not, is resized like qemu-img does."""
        for options in ("", ",data_file_raw=on"):
            for words in ("resize disk.qcow2 6M", "resize --shrink disk.qcow2 2M"):
                with self.subTest(words=words, options=options):
                    self.same((words, "disk.qcow2:qcow2", f"qemu-img create -q -f qcow2 -o data_file=disk.data{options} disk.qcow2 4M"))
                    theirs, ours = [os.path.getsize(os.path.join(self.path(folder), "disk.data")) for folder in ("theirs", "ours")]
                    self.assertEqual(theirs, ours)

    def test_shrinking(self):
        self.rows([(f"resize --shrink -f {fmt} {name} {size}", f"{name}:{fmt}")
                   for name, fmt in (("a.raw", "raw"), ("a.qcow2", "qcow2"), ("small.qcow2", "qcow2"), ("ext.qcow2", "qcow2"),
                                     ("v2.qcow2", "qcow2"), ("comp.qcow2", "qcow2"), ("over.qcow2", "qcow2"), ("lazy.qcow2", "qcow2"))
                   for size in ("-3M", "512", "2110976")])
        self.rows([("resize --shrink data.qcow2 100k", "data.qcow2:qcow2")])

    def test_snapshots(self):
        self.rows([(f"resize {words} {name}.qcow2 {size}", f"{name}.qcow2:qcow2", f"qemu-img snapshot -c one {name}.qcow2")
                   for words, size in (("", "6M"), ("--shrink", "1M")) for name in ("a", "v2", "ext")])

    def test_preallocation(self):
        self.rows([(f"resize -f {fmt} --preallocation={mode} {name} 6M", f"{name}:{fmt}")
                   for name, fmt in (("a.raw", "raw"), ("a.qcow2", "qcow2"), ("over.qcow2", "qcow2"), ("a.qed", "qed"))
                   for mode in ("off", "metadata", "falloc", "full")])

    def test_preallocation_inside_of_clusters(self):
        """old and new sizes that aren't multiples of the cluster size"""
        self.rows([(f"resize -f qcow2 --preallocation={mode} odd.qcow2 +{more}k", "odd.qcow2:qcow2",
                    f"qemu-img create -q -f qcow2 -o cluster_size={cluster},{options} odd.qcow2 2000k")
                   for mode in ("metadata", "falloc", "full") for more in (16, 48, 80)
                   for cluster, options in (("64k", "preallocation=off"), ("64k", "preallocation=metadata"), ("512", "preallocation=off"),
                                            ("64k", "extended_l2=on"), ("64k", "data_file=odd.data"))])

    def test_refused(self):
        self.rows([(f"resize {words}", "a.qcow2:qcow2 a.qed:qed a.raw:raw") for words in (
            "a.qcow2", "a.qcow2 2M", "a.qcow2 -1M", "--shrink a.qcow2 -4M", "--shrink a.qcow2 0", "--shrink a.qed 2M", "a.qcow2 x",
            "a.qcow2 +", "a.qcow2 1000001", "a.qcow2 8000001", "--preallocation=foo a.qcow2 8M", "--preallocation=full --shrink a.qcow2 1M",
            "--preallocation=falloc a.qcow2 4M", "a.qcow2 17E", "none 5M", "-f qcow2 a.raw 5M", "--bogus a.qcow2 5M", "a.qcow2 7E", "a.qed 100T")])


class Alone(Case):
    def test_what_was_cut_off_stays_away(self):
        """A disk that shrinks and grows again reads as zeroes behind the smaller end, even inside a cluster."""
        for fmt, options in (("qcow2", ""), ("qcow2", "extended_l2=on"), ("qcow2", "compat=0.10"), ("raw", "")):
            with self.part(fmt=fmt, options=options):
                image, data = create(self.path("i"), fmt, 4 * MIB, options), pattern(1, 4 * MIB)
                fill(image, fmt, [(0, data)])
                run(QIMG, "resize", "--shrink", "-f", fmt, image, 1000 * 512)
                run(QIMG, "resize", "-f", fmt, image, "4M")
                self.assertEqual(content(image, fmt), data[:512000] + bytes(4 * MIB - 512000))

    def test_space_is_given_back(self):
        image = create(self.path("i"), "qcow2", 64 * MIB)
        fill(image, "qcow2", [(0, pattern(1, 64 * MIB))])
        run(QIMG, "resize", "--shrink", image, "1M")
        self.assertLess(os.path.getsize(image), 2 * MIB)
        run("qemu-img", "check", "-q", image)

    def test_space_of_refcount_blocks_is_given_back(self):
        """With small clusters refcount blocks lie all over the file."""
        for options in ("cluster_size=512", "cluster_size=512,refcount_bits=32", "cluster_size=1k,preallocation=metadata",
                        "cluster_size=512,lazy_refcounts=on", "cluster_size=512,compat=0.10"):
            with self.part(options=options):
                image, data = self.path("i"), pattern(1, 2 * MIB)
                run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, 2 * MIB)
                fill(image, "qcow2", [(0, data)])
                run(QIMG, "resize", "--shrink", image, "64k")
                self.assertLess(os.path.getsize(image), 160 * KIB)
                run("qemu-img", "check", "-q", image)
                self.assertEqual(content(image, "qcow2"), data[:64 * KIB])
                run(QIMG, "resize", image, "2M")
                fill(image, "qcow2", [(64 * KIB, data[64 * KIB:])])
                run("qemu-img", "check", "-q", image)
                self.assertEqual(content(image, "qcow2"), data)

    def test_a_backing_file_that_is_longer(self):
        """Data of a longer backing file doesn't show when the disk grows over it."""
        for fmt in ("qcow2", "qed"):
            with self.part(fmt=fmt):
                create(self.path("base"), "qcow2", 4 * MIB)
                fill(self.path("base"), "qcow2", [(0, pattern(1, 4 * MIB))])
                create(self.path("top"), fmt, MIB, backing="base", backing_fmt="qcow2")
                run(QIMG, "resize", "-f", fmt, self.path("top"), "6M")
                self.assertEqual(content(self.path("top"), fmt), pattern(1, MIB) + bytes(5 * MIB))

    def test_killed(self):
        """kill -9 at any moment: the image opens, and the part that both sizes have is unchanged."""
        rng = random.Random(f"{self.rng.random()}")
        data = pattern(1, 8 * MIB)
        for _ in range(ROUNDS):
            for fmt, first, words in (("qcow2", "", ("--shrink", "1M")), ("qcow2", "", ("64G",)), ("qed", "", ("2T",)),
                                      ("qcow2", "-o cluster_size=512", ("--shrink", "1M")), ("qcow2", "-o cluster_size=512", ("20G",)),
                                      ("qcow2", "snapshot", ("--shrink", "1M"))):
                with self.part(fmt=fmt, first=first, words=words):
                    image = create(self.path("i"), fmt, 8 * MIB, first[3:] if first.startswith("-o") else "")
                    fill(image, fmt, [(0, data)])
                    if first == "snapshot":
                        run("qemu-img", "snapshot", "-c", "one", image)
                    process = subprocess.Popen([QIMG, "resize", "-q", "-f", fmt, *words[:-1], image, words[-1]], env=plugin_env())
                    time.sleep(rng.random() * 0.03)
                    process.kill()
                    process.wait()
                    done = run("qemu-img", "check", "-r", "leaks", "-f", fmt, image, check=False)
                    self.assertIn(done.returncode, (0, 3) if fmt == "qed" else (0,), done.stdout + done.stderr)
                    run("qemu-img", "dd", "-f", fmt, "-O", "raw", "bs=1M", "count=1", f"if={image}", f"of={self.path('head')}")
                    with open(self.path("head"), "rb") as file:
                        self.assertEqual(file.read(), data[:MIB])
                    if first == "snapshot":
                        run("qemu-img", "convert", "-l", "one", "-O", "raw", image, self.path("then"))
                        with open(self.path("then"), "rb") as file:
                            then = file.read()  # as long as the disk is now, old or new size
                            self.assertGreaterEqual(len(then), MIB)
                            self.assertEqual(then, data[:len(then)])
