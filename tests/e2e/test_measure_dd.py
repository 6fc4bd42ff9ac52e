# SPDX-License-Identifier: BSD-3-Clause
"""O-06: `qimg measure`, `dd` and `bench` compared with qemu-img's."""

import os
import re

from harness import MIB, QIMG, Case, create, fill, run
from side_by_side import SideBySide, pattern

OPTIONS = ("", "-o cluster_size=4k", "-o cluster_size=2M", "-o compat=0.10", "-o lazy_refcounts=on", "-o refcount_bits=1",
           "-o refcount_bits=64", "-o extended_l2=on", "-o preallocation=metadata", "-o preallocation=falloc", "-o preallocation=full",
           "-o compression_type=zstd", "-o data_file=x", "-o data_file=x,data_file_raw=on", "-o size=9G")


class Measure(SideBySide):
    def test_by_options(self):
        self.rows([(f"measure --output={output} -O qcow2 {options} {what}", "") for output in ("human", "json")
                   for options in OPTIONS for what in ("a.raw", "--size 3G")])

    def test_sizes(self):
        self.rows([(f"measure -O {fmt} --size {size}", "") for fmt in ("raw", "qcow2") for size in ("0", "100", "1M", "1T", "10P")])

    def test_sources(self):
        self.rows([(f"measure --output=json -O {fmt} {name}", "") for fmt in ("raw", "qcow2") for name in (
            "a.qcow2", "a.qed", "odd.raw", "comp.qcow2", "ext.qcow2", "over.qcow2", "top.qcow2", "long.qcow2", "over.qed", "v2.qcow2", "-U a.qcow2",
            "-f qcow2 a.qcow2", "--image-opts driver=qcow2,file.filename=a.qcow2")])
        self.rows([("measure -O qcow2 -o backing_file=a.raw,backing_fmt=raw over.qcow2", ""), ("measure -O qcow2 -o compat=0.10 a.qcow2", ""),
                   ("measure -O qcow2 a.qcow2", "", "qemu-img bitmap --add a.qcow2 one", "qemu-img bitmap --add -g 4k a.qcow2 another"),
                   ("measure -O qcow2 -l one a.qcow2", "", "qemu-img snapshot -c one a.qcow2", "qemu-img convert -n -O qcow2 b.raw a.qcow2"),
                   ("convert -O raw -l one a.qcow2 out", "out:raw", "qemu-img snapshot -c one a.qcow2", "qemu-img convert -n -O qcow2 b.raw a.qcow2"),
                   ("convert -O qcow2 -l snapshot.name=one a.qcow2 out", "out:qcow2", "qemu-img snapshot -c one a.qcow2",
                    "qemu-img convert -n -O qcow2 b.raw a.qcow2"),
                   ("convert -O qcow2 -l snapshot.id=1 a.qcow2 out", "out:qcow2", "qemu-img snapshot -c one a.qcow2"),
                   # The second snapshot's name, "1", is the first one's id.
                   *[(f"convert -O raw -l {which} a.qcow2 out", "out:raw", "qemu-img snapshot -c one a.qcow2", "qemu-img convert -n -O qcow2 b.raw a.qcow2",
                      "qemu-img snapshot -c 1 a.qcow2") for which in ("1", "2", "snapshot.id=1", "snapshot.name=1")],
                   ("convert -O qcow2 -l two a.qcow2 out", "", "qemu-img snapshot -c one a.qcow2"), ("convert -l one a.raw out", ""),
                   ("convert -l snapshot.foo=1 a.qcow2 out", "")])

    def test_encrypted(self):
        """the size of a LUKS container: its header and the whole disk"""
        key = "--object secret,id=s,data=abc"
        self.rows([(f"measure {key} --output={output} -O luks -o {options}key-secret=s {what}", "") for output in ("human", "json")
                   for options in ("", "cipher-alg=aes-128,", "cipher-mode=cbc,ivgen-alg=essiv,") for what in ("a.raw", "odd.raw", "--size 3G", "--size 1M")])
        self.rows([(f"measure {words}", "") for words in ("-O luks a.raw", f"{key} -O luks -o key-secret=t a.raw", f"{key} -O luks -o foo=1,key-secret=s a.raw")])

    def test_refused(self):
        self.rows([(f"measure {words}", "") for words in (
            "", "--size 1G a.raw", "-O qed a.raw", "-O qed --size 1G", "-O foo a.raw", "-f foo a.raw", "a.raw b.raw", "none", "--size x",
            "-O qcow2 -o cluster_size=3 a.raw", "-O qcow2 -o foo=1 a.raw", "--output=xml a.raw")])

    def test_what_is_measured_is_taken(self):
        """A new image is never larger than the measured size."""
        image = self.path("a")
        with open(image, "wb") as file:
            file.truncate(64 * MIB)
            file.write(pattern(1, 10 * MIB))
        said = int(re.search(r"required size: (\d+)", run(QIMG, "measure", "-O", "qcow2", image).stdout)[1])
        run(QIMG, "convert", "-O", "qcow2", image, self.path("b"))
        self.assertLessEqual(os.path.getsize(self.path("b")), said)


class Dd(SideBySide):
    def test_parts(self):
        self.rows([(f"dd -O {fmt} {words} of=out", f"out:{fmt}") for fmt in ("raw", "qcow2", "qed") for words in (
            "if=a.raw", "bs=1M count=2 if=a.raw", "bs=1M skip=2 if=a.qcow2", "bs=64k count=40 skip=30 if=a.qed", "bs=1000 count=3 if=a.raw")])
        self.rows([(f"dd {words}", "out:raw") for words in (
            "-f qcow2 bs=4k if=a.qcow2 of=out", "if=odd.raw of=out", "bs=1000 if=odd.raw of=out", "-U if=a.qcow2 of=out", "count=1000000 if=a.raw of=out",
            "--image-opts if=driver=qcow2,file.filename=over.qcow2 of=out", "bs=1M skip=1 if=a.raw of=b.raw")])

    def test_refused(self):
        self.rows([(f"dd {words}", "") for words in (
            "", "if=a.raw", "of=out", "bs=0 if=a.raw of=out", "bs=x if=a.raw of=out", "foo=3 if=a.raw of=out", "if=none of=out", "-O foo if=a.raw of=out",
            "bs=3G if=a.raw of=out", "bs=1M skip=9 if=a.raw of=out", "-f qed if=a.qcow2 of=out", "if=a.raw of=nodir/out")])


class Bench(SideBySide):
    def bench(self, words):
        theirs, ours = self.both(["bench", *words.split()])
        said = theirs.stdout + theirs.stderr + ours.stdout + ours.stderr
        self.assertEqual(theirs.returncode, ours.returncode, said)
        self.assertEqual(*[re.sub(r"in [0-9.]+ seconds", "", done.stdout) for done in (theirs, ours)])
        self.assertEqual(bool(theirs.stderr), bool(ours.stderr), said)

    def test_words(self):
        for words in ("-c 100 -f raw b.raw", "-c 100 -d 4 -s 64k -S 4k -o 1M a.qcow2", "-c 100 -w a.qcow2", "-c 20 -w --pattern=3 -s 8k a.qed",
                      "-c 20 -w --flush-interval=4 -d 2 a.qcow2", "-c 20 -w --flush-interval=4 -d 4 --no-drain a.qcow2", "-c 10 -q -t none a.qcow2",
                      "-c 10 -U a.qcow2", "-c 3 -w -U a.qcow2", "-c x a.qcow2", "--flush-interval=2 -c 3 a.qcow2", "-w --flush-interval=2 -d 4 -c 3 a.qcow2",
                      "-c 3 -f raw -o 10M b.raw", "-t foo a.qcow2", "none", "", "--image-opts -c 3 driver=qcow2,file.filename=a.qcow2"):
            with self.subTest(words=words):
                self.bench(words)

    def test_what_is_written(self):
        run(QIMG, "bench", "-w", "-c", "256", "-s", "4k", "--pattern", "7", create(self.path("i"), "qcow2", 2 * MIB))
        run("qemu-io", "-f", "qcow2", "-c", "read -P 7 0 1M", "-c", "read -P 0 1M 1M", self.path("i"))
        self.assertNotIn("failed", run("qemu-io", "-f", "qcow2", "-c", "read -P 7 0 1M", self.path("i")).stdout)
