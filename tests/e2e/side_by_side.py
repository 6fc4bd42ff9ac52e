# SPDX-License-Identifier: BSD-3-Clause
"""Compares qimg with qemu-img: both run each row of a table in copies of the same folder.  The exit
status, the output and the content of the images must be the same."""

import json
import os
import random
import re
import shutil
import subprocess

from harness import KIB, MIB, QIMG, Case, create, fill, qemu_json, qemu_text, run

SIZE = 4 * MIB
# icount: qemu-img stores 0 in the snapshots that it makes.
VOLATILE = {"actual-size", "date-sec", "date-nsec", "uuid", "icount"}


def pattern(seed, length):
    """Bytes that can be compressed, but aren't zero."""
    piece = random.Random(seed).randbytes(2039).replace(b"\0", b"\1")
    return (piece * (length // len(piece) + 1))[:length]


def make_fixture(folder):
    """Makes small images of each kind, which the rows use."""
    def path(name):
        return os.path.join(folder, name)

    head, middle = pattern(1, 200 * KIB), pattern(2, 100 * KIB)
    with open(path("a.raw"), "wb") as file:
        file.truncate(SIZE)
        file.write(head)
        file.seek(2 * MIB + 4 * KIB)
        file.write(middle)
    with open(path("odd.raw"), "wb") as file:
        file.write(pattern(3, 70001))
    for name, fmt, options in (("a.qcow2", "qcow2", ""), ("a.qed", "qed", ""), ("v2.qcow2", "qcow2", "compat=0.10"),
                               ("lazy.qcow2", "qcow2", "lazy_refcounts=on"), ("ext.qcow2", "qcow2", "extended_l2=on"),
                               ("small.qcow2", "qcow2", "cluster_size=4k,refcount_bits=1")):
        create(path(name), fmt, SIZE, options)
        fill(path(name), fmt, [(0, head), (2 * MIB + 4 * KIB, middle)])
    run("qemu-img", "convert", "-c", "-O", "qcow2", path("a.raw"), path("comp.qcow2"))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "data.qcow2", SIZE, cwd=folder)
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 9 64k 128k", "data.qcow2", cwd=folder)
    for name, fmt in (("over.qcow2", "qcow2"), ("over.qed", "qed")):
        run("qemu-img", "create", "-q", "-f", fmt, "-b", "a.raw", "-F", "raw", name, cwd=folder)
        run("qemu-io", "-f", fmt, "-c", "write -q -P 5 64k 192k", "-c", "write -q -P 6 3M 10k", "-c", "write -q -z 2M 128k",
            name, cwd=folder)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "over.qcow2", "-F", "qcow2", "top.qcow2", cwd=folder)
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 64k", "top.qcow2", cwd=folder)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "long.qcow2", "5M", cwd=folder)
    run("qemu-io", "-f", "qcow2", "-c", "write -q -P 8 4500k 64k", "long.qcow2", cwd=folder)
    shutil.copy(path("a.raw"), path("b.raw"))
    with open(path("b.raw"), "r+b") as file:
        file.seek(3 * MIB + 1000)
        file.write(b"x")


def strip(value):
    """JSON without the values that differ from run to run."""
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items() if k not in VOLATILE}
    return [strip(v) for v in value] if isinstance(value, list) else value


def printed(text):
    """Output in a form that can be compared."""
    try:
        return strip(qemu_json(json.loads(text)))
    except (ValueError, TypeError, AttributeError):
        text = re.sub(r"    \([\d.]+/100%\)[\r\n]", "", qemu_text(text))
        text = re.sub(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b", "YYYY-MM-DD hh:mm:ss", text)
        return re.sub(r"(?m)^disk size: .*$", "disk size: -", text)


def flat(path):
    """The content of an image that names its data file relative to its own folder."""
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", os.path.basename(path), "flat", cwd=os.path.dirname(path))
    with open(os.path.join(os.path.dirname(path), "flat"), "rb") as file:
        return file.read()


class SideBySide(Case):
    """A row is (words, images, commands...): the arguments of the command; the images that are compared afterwards,
    as "name:format"; and commands that are run before, in both folders."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        import tempfile
        from harness import tmp_root
        cls.fixture = tempfile.mkdtemp(prefix="qimg-side-", dir=tmp_root())
        cls.addClassCleanup(shutil.rmtree, cls.fixture, ignore_errors=True)
        make_fixture(cls.fixture)

    def both(self, words, before=(), ours=None):
        """Runs the commands of `before`, and then qemu-img with these words and qimg with the same, or with `ours`;
        returns both results."""
        done = []
        for tool, folder, words in (("qemu-img", "theirs", words), (QIMG, "ours", ours or words)):
            there = self.path(folder)
            shutil.rmtree(there, ignore_errors=True)
            subprocess.run(["cp", "-r", "--sparse=always", self.fixture, there], check=True)
            for argv in before:
                run(*argv.split(), cwd=there)
            done.append(run(tool, *words, cwd=there, check=False))
        return done

    def same(self, row, text=True, ours=None):
        words, images, *before = row
        theirs, ours = self.both(words.split(), before, ours)
        said = f"\n--- qemu-img\n{theirs.stdout}{theirs.stderr}\n--- qimg\n{ours.stdout}{ours.stderr}"
        self.assertEqual(theirs.returncode, ours.returncode, said)
        if text:
            self.assertEqual(printed(theirs.stdout), printed(ours.stdout), said)
        self.assertEqual(bool(theirs.stderr), bool(ours.stderr), said)
        for image in images.split():
            name, fmt = image.rsplit(":", 1)
            self.same_image(name, fmt)

    def same_image(self, name, fmt):
        theirs, ours = os.path.join(self.path("theirs"), name), os.path.join(self.path("ours"), name)
        self.assertEqual(os.path.exists(theirs), os.path.exists(ours), f"{name}: made by one only")
        if not os.path.exists(theirs):
            return
        infos = [strip(qemu_json(run("qemu-img", "info", "--output=json", "-f", fmt, name, cwd=os.path.dirname(path)).stdout))
                 for path in (theirs, ours)]
        self.assertEqual(*infos)
        if "data-file" in infos[0].get("format-specific", {}).get("data", {}):
            self.assertEqual(*[flat(path) for path in (theirs, ours)])
        else:
            run("qemu-img", "compare", "-q", "-f", fmt, "-F", fmt, theirs, ours)
        if fmt != "raw":
            run("qemu-img", "check", "-q", "-f", fmt, name, cwd=self.path("ours"))

    def rows(self, table, **kwargs):
        for row in table:
            with self.subTest(row=row[0]):
                self.same(row, **kwargs)
