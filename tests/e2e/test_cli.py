# SPDX-License-Identifier: BSD-3-Clause
"""qimg create, info and map compared with qemu-img, word for word; qimg serve as a program."""

import json
import os
import re
import pathlib
import signal
import socket
import stat
import subprocess
import unittest

import nbd

from harness import (BUILD, MIB, Case, check, parametrised, plugin_env, qemu_json, qemu_text, qemu_version, run,
                     wait_until)

QIMG = BUILD / "qimg"


def both(folder, *words):
    """Runs qemu-img and then qimg with the same arguments in the same folder."""
    return [run(tool, *words, check=False, cwd=folder) for tool in ("qemu-img", QIMG)]


class CliCase(Case):
    def qemu(self, *words):
        return run("qemu-img", *words, cwd=self.dir)

    def qimg(self, *words, **kwargs):
        return run(QIMG, *words, cwd=self.dir, **kwargs)

    def io(self, fmt, name, *commands):
        run("qemu-io", "-f", fmt, *[word for c in commands for word in ("-c", c)], name, cwd=self.dir)

    def same_output(self, *words):
        theirs, ours = both(self.dir, *words)
        self.assertEqual(theirs.returncode, ours.returncode, theirs.stderr + ours.stderr)
        self.assertEqual(qemu_text(theirs.stdout), ours.stdout, words)

    def same_json(self, *words):
        theirs, ours = both(self.dir, *words, "--output=json")
        self.assertEqual((ours.returncode, ours.stderr), (0, ""), words)
        self.assertEqual(qemu_json(theirs.stdout), json.loads(ours.stdout), words)

    def refuses(self, *words, says=()):
        """qimg must fail with exit code 1 and one line that says why; stdout may have only create's announcement."""
        done = self.qimg(*words, check=False)
        self.assertEqual(done.returncode, 1, f"{words}: {done.stdout}{done.stderr}")
        lines = done.stderr.splitlines()
        self.assertTrue(lines and lines[0].startswith("qimg: "), done.stderr)
        for line in lines[1:]:
            self.assertRegex(line, "^Try 'qimg ([a-z]+ )?--help' for more information$")
        for word in says:
            self.assertIn(word, lines[0])
        return lines[0]


@parametrised
class Create(CliCase):
    cases_create = {
        "raw": ("raw", "", "10M"),
        "raw odd": ("raw", "", "1000"),
        "raw empty": ("raw", "", "0"),
        "raw full": ("raw", "preallocation=full", "3M"),
        "raw falloc": ("raw", "preallocation=falloc", "3M"),
        "raw off": ("raw", "preallocation=off,nocow=on", "3M"),
        "qed": ("qed", "", "1G"),
        "qed odd": ("qed", "", "1.1k"),
        "qed small": ("qed", "cluster_size=4k,table_size=2", "1G"),
        "qed large": ("qed", "cluster_size=1M,table_size=16", "8T"),
        "qed empty": ("qed", "", "0"),
        "qcow2": ("qcow2", "", "1G"),
        "qcow2 odd": ("qcow2", "", "1.1k"),
        "qcow2 empty": ("qcow2", "", "0"),
        "qcow2 v2": ("qcow2", "compat=0.10", "1G"),
        "qcow2 by name": ("qcow2", "compat=v3", "1G"),
        "qcow2 lazy": ("qcow2", "lazy_refcounts=on", "1G"),
        "qcow2 bare key": ("qcow2", "lazy_refcounts", "1G"),
        "qcow2 negated key": ("qcow2", "nolazy_refcounts", "1G"),
        "qcow2 small clusters": ("qcow2", "cluster_size=512", "64M"),
        "qcow2 large clusters": ("qcow2", "cluster_size=2M", "64G"),
        "qcow2 narrow refcounts": ("qcow2", "refcount_bits=1", "1G"),
        "qcow2 wide refcounts": ("qcow2", "refcount_bits=64", "1G"),
        "qcow2 metadata": ("qcow2", "preallocation=metadata", "100M"),
        "qcow2 falloc": ("qcow2", "preallocation=falloc", "5M"),
        "qcow2 full": ("qcow2", "preallocation=full,cluster_size=4k", "5M"),
        "qcow2 size as option": ("qcow2", "size=1.5G", None),
    }

    def check_create(self, fmt, options, size):
        """Q-03: same announcement, same description, clean by qemu-img"""
        words = ["create", "-f", fmt, *(["-o", options] if options else []), "image",
                 *([size] if size is not None else [])]
        results = []
        for tool in ("qemu-img", QIMG):
            done = run(tool, *words, cwd=self.dir)
            info = qemu_json(self.qemu("info", "-f", fmt, "--output=json", "image").stdout)
            check(self.path("image"), fmt)
            # An empty file has no blocks, or one that qemu-img writes to find out the alignment.
            if fmt != "raw" or "full" not in options and "falloc" not in options:
                del info["actual-size"]
            results.append((done.stdout, done.stderr, info))
            os.unlink(self.path("image"))
        self.assertEqual(*results)

    def test_backing_file(self):
        """The size is taken from the backing file, in all combinations of formats"""
        for base in ("raw", "qed", "qcow2"):
            for fmt in ("qed", "qcow2"):
                with self.part(base=base, fmt=fmt):
                    self.qemu("create", "-q", "-f", base, "base", "12345678")
                    results = []
                    for tool in ("qemu-img", QIMG):
                        done = run(tool, "create", "-f", fmt, "-b", "base", "-F", base, "image",
                                   cwd=self.dir)
                        info = qemu_json(self.qemu("info", "--output=json", "image").stdout)
                        del info["actual-size"]
                        results.append((done.stdout, info))
                    self.assertEqual(*results)

    def test_backing_name_is_relative_to_the_image(self):
        os.mkdir(self.path("sub"))
        self.qimg("create", "-q", "-f", "qed", "sub/base", "5M")
        self.qimg("create", "-q", "-f", "qed", "-b", "base", "-F", "qed", "sub/image")
        self.same_output("info", "--backing-chain", "sub/image")
        self.refuses("create", "-f", "qed", "-b", "sub/base", "-F", "qed", "sub/image2",
                     says=["sub/sub/base"])

    def test_backing_options(self):
        """-b and -F override -o"""
        self.qimg("create", "-q", "-f", "raw", "a,b", "5M")
        self.qimg("create", "-q", "-f", "qed", "base", "6M")
        for words in (("-o", "backing_file=a,,b,backing_fmt=raw"),
                      ("-o", "backing_file=a,,b", "-o", "backing_fmt=raw"),
                      ("-o", "backing_file=a,,b,backing_fmt=raw", "-b", "base", "-F", "qed"),
                      ("-b", "a,b", "-F", "raw", "-o", "cluster_size=4k,cluster_size=8k")):
            with self.subTest(words=words):
                self.same_output("create", "-f", "qed", *words, "image")

    def test_unchecked_backing(self):
        self.same_output("create", "-u", "-f", "qed", "-b", "missing", "-F", "qcow2", "image", "1G")
        self.refuses("create", "-u", "-f", "qed", "-b", "missing", "-F", "qcow2", "image",
                     says=["size"])
        self.refuses("create", "-f", "qed", "-b", "missing", "-F", "qcow2", "image", "1G",
                     says=["missing", "No such file"])

    def test_sizes(self):
        """Every spelling of a size gives the file that qemu-img makes, or the same refusal"""
        for size in ("1", "513", "1k", "1K", "1.5k", "1.k", "0.0001k", "1.1M", "3b", "3B", "0x10",
                     "0x10k", "010", "+5", " 7", ".5k", "1.5", "1.5b", "-5", "7 ", "1e2k", "1.2.3k",
                     "1,5k", "k", "", "1kk", "1KB", "1Z", "8E", "18446744073709551616",
                     "9223372036854775808"):
            if size in ("0x10k", ".5k") and qemu_version() >= (8, 0):
                continue  # newer versions refuse it
            with self.part(size=size):
                results = []
                for tool in ("qemu-img", QIMG):
                    done = run(tool, "create", "-q", "-f", "raw", "--", "image", size, check=False,
                               cwd=self.dir)
                    made = os.path.exists(self.path("image"))
                    results.append((done.returncode, made and os.path.getsize(self.path("image"))))
                    if made:
                        os.unlink(self.path("image"))
                self.assertEqual(*results)

    def test_quiet(self):
        done = self.qimg("create", "-q", "-f", "qed", "image", "1G")
        self.assertEqual(done.stdout, "")

    def test_option_help(self):
        """The list has qemu-img's options of the same name, and each works"""
        for fmt in ("raw", "qed", "qcow2"):
            words = ["create", "-f", fmt, "-o", "help", "image", "1M"]
            names = []
            for tool in ("qemu-img", QIMG):
                done = run(tool, *words, cwd=self.dir)
                names.append({line.split("=")[0].strip() for line in done.stdout.splitlines()
                              if line.startswith("  ")})
            self.assertLessEqual(names[1], names[0] | {"nocow"})
            self.assertIn("size", names[1])
            self.assertFalse(os.path.exists(self.path("image")))

    def test_overwriting(self):
        """An existing file's content is replaced"""
        for fmt in ("raw", "qed", "qcow2"):
            with self.part(fmt=fmt):
                pathlib.Path(self.path("image")).write_bytes(b"\xaa" * 3 * MIB)
                self.qimg("create", "-q", "-f", fmt, "image", "1M")
                self.qemu("create", "-q", "-f", "raw", "zeroes", "1M")
                self.qemu("compare", "-f", fmt, "-F", "raw", "image", "zeroes")

    cases_refused = {
        "no operand": ((), ["Expecting image file name"]),
        "three operands": (("image", "1G", "2G"), ["2G"]),
        "unknown option": (("-Z", "image", "1G"), ["-Z"]),
        "unknown option before another": (("-xq", "image", "1G"), ["'-x'"]),
        "unknown long option": (("--zero", "image", "1G"), ["--zero"]),
        "missing argument": (("image", "1G", "-f"), ["-f"]),
        "unknown format": (("-f", "xyz", "image", "1G"), ["xyz"]),
        "no size": (("-f", "qed", "image"), ["size"]),
        "size twice": (("-f", "qed", "-o", "size=1G", "image", "1G"), ["only once"]),
        "unknown key": (("-f", "qed", "-o", "foo=1", "image", "1G"), ["foo"]),
        "other format's key": (("-f", "raw", "-o", "cluster_size=4k", "image", "1G"),
                               ["cluster_size"]),
        "empty list": (("-f", "qed", "-o", "", "image", "1G"), ["option list"]),
        "empty element": (("-f", "qed", "-o", "cluster_size=4k,", "image", "1G"), ["option list"]),
        "not a size": (("-f", "qed", "-o", "cluster_size=x", "image", "1G"), ["cluster_size", "x"]),
        "not a number": (("-f", "qcow2", "-o", "refcount_bits=8k", "image", "1G"),
                         ["refcount_bits"]),
        "not a switch": (("-f", "qcow2", "-o", "lazy_refcounts=2", "image", "1G"),
                         ["lazy_refcounts", "2"]),
        "cluster size": (("-f", "qed", "-o", "cluster_size=5k", "image", "1G"), ["5120"]),
        "cluster size of qcow2": (("-f", "qcow2", "-o", "cluster_size=4M", "image", "1G"), ["image"]),
        "table size": (("-f", "qed", "-o", "table_size=32", "image", "1G"), ["32"]),
        "lazy v2": (("-f", "qcow2", "-o", "compat=0.10,lazy_refcounts=on", "image", "1G"), ["1.1"]),
        "compat": (("-f", "qcow2", "-o", "compat=2.0", "image", "1G"), ["2.0"]),
        "refcount width": (("-f", "qcow2", "-o", "refcount_bits=7", "image", "1G"), ["7"]),
        "preallocation": (("-f", "raw", "-o", "preallocation=metadata", "image", "1G"), ["metadata"]),
        "preallocation of qcow2": (("-f", "qcow2", "-o", "preallocation=some", "image", "1G"),
                                   ["some"]),
        "too large for qed": (("-f", "qed", "image", "1P"), ["image"]),
        "too large for qcow2": (("-f", "qcow2", "image", "1E"), ["image"]),
        "format without file": (("-f", "qcow2", "-F", "raw", "image", "1G"), ["backing file"]),
        "file without format": (("-f", "qed", "-b", "base", "image", "1G"), ["format"]),
        "unknown backing format": (("-f", "qed", "-b", "base", "-F", "xyz", "image"), ["xyz"]),
        "wrong backing format": (("-f", "qed", "-b", "base", "-F", "qed", "image"), ["base"]),
        "backing of raw": (("-f", "raw", "-b", "base", "-F", "raw", "image"), ["raw"]),
        "itself": (("-f", "qed", "-b", "image", "-F", "raw", "image"), ["image"]),
        "empty backing name": (("-f", "qed", "-b", "", "-F", "raw", "image", "1G"), ["empty"]),
        "protocol": (("-f", "qed", "-b", "nbd://localhost", "-F", "raw", "image", "1G"), ["nbd://"]),
        "json": (("-f", "qed", "-b", 'json:{"file":"base"}', "-F", "raw", "image", "1G"), ["json:"]),
        "missing folder": (("-f", "qed", "missing/image", "1G"), ["missing/image"]),
        "a folder": (("-f", "qed", ".", "1G"), ["."]),
    }

    def check_refused(self, words, says):
        """Refused as by qemu-img, with nothing left behind"""
        pathlib.Path(self.path("base")).write_bytes(bytes(MIB))
        self.refuses("create", *words, says=says)
        self.assertNotEqual(run("qemu-img", "create", *words, check=False, cwd=self.dir).returncode, 0)
        self.qimg("create", *words, check=False)
        if os.path.exists(self.path("image")):
            os.unlink(self.path("image"))
            self.qimg("create", *words, check=False)
        self.assertFalse(os.path.exists(self.path("image")))

    def test_not_over_its_own_chain(self):
        """Stricter than qemu-img, which destroys the base"""
        self.qimg("create", "-q", "-f", "qed", "base", "1M")
        self.qimg("create", "-q", "-f", "qed", "-b", "base", "-F", "qed", "top")
        for name in ("./base", "top"):
            before = pathlib.Path(self.path("base")).read_bytes()
            self.refuses("create", "-f", "qed", "-b", name, "-F", "qed", "base", says=["base"])
            self.assertEqual(pathlib.Path(self.path("base")).read_bytes(), before)

    def test_no_space(self):
        """A failed creation leaves nothing, and says what failed"""
        limit = ["prlimit", "--fsize=1048576", QIMG, "create", "-f"]
        for words in (["raw", "-o", "preallocation=full"], ["qed", "-o", "cluster_size=4M"]):
            with self.subTest(words=words):
                done = subprocess.run([*map(str, limit), *words, "image", "8M"], cwd=self.dir,
                                      capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn("File too large", done.stderr)
                self.assertFalse(os.path.exists(self.path("image")))


class Look(CliCase):
    """Images of every kind for info and map."""

    def make(self, fmt, options="", *words):
        self.qemu("create", "-q", "-f", fmt, *(["-o", options] if options else []), "image", *words)

    def images(self):
        """Makes one image after the other, always called "image"; yields a description of each."""
        for options in ("", "cluster_size=4k,table_size=2", "cluster_size=1M"):
            self.make("qed", options, "40M")
            self.io("qed", "image", "write 3M 200k", "write 9M 1k", "write 39M 1M",
                    "write -z 20M 1M")
            yield f"qed {options}"
        for options in ("", "cluster_size=512", "cluster_size=2M", "compat=0.10",
                        "lazy_refcounts=on", "preallocation=metadata", "preallocation=falloc",
                        "refcount_bits=1"):
            self.make("qcow2", options, "40M")
            self.io("qcow2", "image", "write 3M 200k", "write 9M 1k", "write 39M 1M",
                    "write -z 20M 1M", "write -z -u 21M 1M", "discard 39M 128k")
            yield f"qcow2 {options}"
        self.make("raw", "", "40M")
        self.io("raw", "image", "write 3M 200k", "write 39M 1M")
        yield "raw"
        for fmt in ("qed", "qcow2"):
            for size in ("0", "512", "1.5M"):
                self.make(fmt, "", size)
                yield f"{fmt} of {size}"

    def chains(self):
        """Chains of all formats: the top is "image"; sizes grow and shrink on the way."""
        for base in ("raw", "qed", "qcow2"):
            for fmt in ("qed", "qcow2"):
                for base_size, top_size in (("8M", "8M"), ("5M", "8M"), ("8M", "5M"), ("1000k", "4M")):
                    self.qemu("create", "-q", "-f", base, "base", base_size)
                    self.io(base, "base", "write 0 500k", "write 900k 50k")
                    self.qemu("create", "-q", "-f", fmt, "-b", "base", "-F", base, "middle", top_size)
                    self.io(fmt, "middle", "write 100k 64k", "write -z 256k 64k")
                    self.qemu("create", "-q", "-f", fmt, "-b", "middle", "-F", fmt, "image", "9M")
                    self.io(fmt, "image", "write 1M 64k", "write -z 0 64k")
                    yield f"{base} {base_size} below {fmt} {top_size}"


class Info(Look):
    def test_images(self):
        for what in self.images():
            with self.subTest(image=what):
                self.same_output("info", "image")
                self.same_json("info", "image")
                self.same_output("info", "--backing-chain", "image")

    def test_chains(self):
        for what in self.chains():
            with self.subTest(chain=what):
                self.same_output("info", "image")
                self.same_output("info", "--backing-chain", "image")
                self.same_json("info", "image")
                self.same_json("info", "--backing-chain", "image")

    def test_formats(self):
        """A given format is used; unknown content is raw"""
        self.make("qed", "", "1M")
        self.same_output("info", "-f", "raw", "image")
        self.same_output("info", "-f", "qed", "image")
        self.refuses("info", "-f", "qcow2", "image", says=["image"])
        self.refuses("info", "-f", "vmdk", "image", says=["vmdk"])
        self.same_json("info", "-U", "file:image")

    def test_backing_file_is_not_opened(self):
        self.qemu("create", "-q", "-u", "-f", "qcow2", "-b", "missing", "-F", "qed", "image", "1M")
        self.same_output("info", "image")
        self.same_json("info", "image")
        self.refuses("info", "--backing-chain", "image", says=["missing"])
        os.mkdir(self.path("sub"))
        os.rename(self.path("image"), self.path("sub/image"))
        self.same_output("info", "sub/image")
        self.same_json("info", "sub/image")
        self.qemu("create", "-q", "-u", "-f", "qcow2", "-b", "nbd://h/x", "-F", "raw", "image", "1M")
        self.same_output("info", "image")
        self.same_json("info", "image")

    def test_loop(self):
        for name, base in (("image", "other"), ("other", "image")):
            self.qemu("create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", name, "1M")
        self.refuses("info", "--backing-chain", "image", says=["image"])
        self.same_output("info", "image")

    def test_name_that_is_not_text(self):
        """The JSON is valid even for a name that isn't UTF-8"""
        name = os.fsencode(self.dir) + b"/\xff\xfe"
        subprocess.run([b"qemu-img", b"create", b"-q", b"-f", b"raw", name, b"1M"], check=True)
        done = subprocess.run([os.fsencode(QIMG), b"info", b"--output=json", name], check=True,
                              capture_output=True)
        self.assertEqual(json.loads(done.stdout)["virtual-size"], MIB)

    def test_changes_nothing(self):
        for fmt in ("raw", "qed", "qcow2"):
            self.make(fmt, "", "1M")
            os.chmod(self.path("image"), stat.S_IRUSR)
            before = pathlib.Path(self.path("image")).read_bytes()
            self.qimg("info", "image")
            self.qimg("map", "image")
            self.assertEqual(pathlib.Path(self.path("image")).read_bytes(), before)
            os.unlink(self.path("image"))

    def test_refused(self):
        self.make("qed", "", "1M")
        os.mkfifo(self.path("fifo"))
        self.refuses("info", says=["one image"])
        self.refuses("info", "image", "image", says=["one image"])
        self.refuses("info", "--output=xml", "image", says=["--output"])
        self.refuses("info", "--output", says=["--output"])
        self.refuses("info", "missing", says=["missing", "No such file"])
        self.refuses("info", ".", says=["directory"])
        self.refuses("info", "fifo", says=["FIFO"])
        self.refuses("info", "-f", "raw", "fifo", says=["FIFO"])

    def test_full_output(self):
        """Output that can't be written is an error"""
        self.make("qed", "", "1M")
        for words, code in ((["info", "image"], 1), (["compare", "image", "image"], 2)):  # compare exits with 1 if they differ
            with self.subTest(words=words), open("/dev/full", "w", encoding="ascii") as full:
                done = subprocess.run([QIMG, *words], cwd=self.dir, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
                self.assertEqual(done.returncode, code)
                self.assertIn("No space left", done.stderr)


def places(text):
    """The runs of a map, joined where only zero and data differ: (start, length, depth, present, offset)."""
    runs = []
    for run_ in json.loads(text):
        now = [run_["start"], run_["length"], run_["depth"], run_["present"], run_.get("offset")]
        if runs and now[2:4] == runs[-1][2:4] and (
                now[4] is None and runs[-1][4] is None
                or None not in (now[4], runs[-1][4]) and now[4] == runs[-1][4] + runs[-1][1]):
            runs[-1][1] += now[1]
        else:
            runs.append(now)
    return runs


class Map(Look):
    def same_map(self, *words):
        self.same_output("map", *words)
        self.same_output("map", "--output=json", *words)

    def same_places(self, *words):
        theirs, ours = both(self.dir, "map", "--output=json", *words)
        self.assertEqual(places(theirs.stdout), places(ours.stdout))

    def test_images(self):
        """The same runs as qemu-img's.  For preallocated images only the places are compared: qemu-img looks for
        holes in the file only in some of them, and by other units"""
        for what in self.images():
            with self.subTest(image=what):
                if "preallocation" in what:
                    self.same_places("image")
                else:
                    self.same_map("image")

    def test_chains(self):
        for what in self.chains():
            with self.subTest(chain=what):
                self.same_map("image")

    def test_ranges(self):
        """All kinds of starts and lengths, also past the end"""
        self.make("qcow2", "", "10M")
        self.io("qcow2", "image", "write 1M 200k", "write 9M 1M")
        for start in ("0", "1", "1M", "1049k", "1.1M", "9.5M", "10M", "11M", "1T"):
            for length in ("0", "1", "100", "64k", "5M", "100G"):
                with self.subTest(start=start, length=length):
                    self.same_map(f"--start-offset={start}", f"--max-length={length}", "image")
        self.same_map("-s", "1M", "-l", "1M", "-U", "-f", "qcow2", "image")

    def test_refused(self):
        self.make("qed", "", "1M")
        self.refuses("map", says=["one image"])
        self.refuses("map", "missing", says=["missing"])
        self.refuses("map", "-s", "x", "image", says=["start offset", "x"])
        self.refuses("map", "-s", "-1", "image", says=["start offset"])
        self.refuses("map", "-l", "8E", "image", says=["max length"])
        self.refuses("map", "--output=xml", "image", says=["--output"])
        self.qemu("create", "-q", "-u", "-f", "qcow2", "-b", "missing", "-F", "qed", "image", "1M")
        self.refuses("map", "image", says=["missing"])


class Program(CliCase):
    def test_words(self):
        self.refuses(says=["Not enough arguments"])
        self.refuses("frobnicate", says=["frobnicate", "create, info, check"])
        self.refuses("inof", says=["did you mean 'info'?"])
        self.refuses("info", "--outptu=json", "image", says=["'--outptu=json': did you mean --output?"])
        self.refuses("create", "-f", "qcow", "image", "1M", says=["did you mean 'qcow2'? There are: qcow2, qed, luks, raw"])
        self.refuses("create", "-f", "qcow2", "-o", "clustersize=4k", "image", "1M",
                     says=["'clustersize' of qcow2: did you mean 'cluster_size'?", "lazy_refcounts"])
        self.assertIn("Try 'qimg map --help'", self.qimg("map", check=False).stderr)
        self.refuses("--frobnicate", says=["--frobnicate"])
        self.assertRegex(self.qimg("--version").stdout, r"^qimg version \d")
        self.assertEqual(self.qimg("-V").stdout, self.qimg("--version").stdout)
        self.assertEqual(self.qimg("-h").stdout, self.qimg("--help").stdout)
        self.assertRegex(self.qimg("--help").stdout, r"(?m)^Supported formats: qcow2 qed luks raw file nbd null-co( rbd)?$")
        self.assertEqual(self.qimg("help").stdout, self.qimg("--help").stdout)
        self.refuses("help", "convrt", says=["did you mean 'convert'?"])
        commands = re.findall(r"^  ([a-z]+) ", self.qimg("--help").stdout.split("Commands;")[1], re.M)
        self.assertIn("convert", commands)
        for command in commands:
            self.assertEqual(self.qimg("help", command).stdout, self.qimg(command, "--help").stdout)
            self.assertIn(command, self.qimg("--help").stdout)
            self.assertTrue(self.qimg(command, "--help").stdout.startswith(f"usage: qimg {command}"))


class ClosedDescriptors(CliCase):
    """When standard descriptors are closed, no image may get their numbers: messages would be written into it."""

    def run_without(self, closed, *words):
        script = f'exec "$@" {" ".join(f"{fd}>&-" for fd in closed)}'
        return run("sh", "-c", script, "sh", QIMG, *words, cwd=self.dir, check=False)

    def test_images_stay_as_they_are(self):
        """commands that fail after they have opened the image for writing"""
        self.qimg("create", "-q", "-f", "qcow2", "image", "8M")
        before = pathlib.Path(self.path("image")).read_bytes()
        for words in (["resize", "image", "1M"], ["amend", "-f", "qcow2", "-o", "compat=0.10,lazy_refcounts=on", "image"],
                      ["snapshot", "-a", "none", "image"], ["bitmap", "--remove", "image", "none"],
                      ["rebase", "-b", "none", "-F", "qcow2", "image"], ["commit", "image"]):
            for closed in ("2", "012"):
                with self.subTest(words=words, closed=closed):
                    self.assertEqual(self.run_without(closed, *words).returncode, 1)
                    self.assertEqual(pathlib.Path(self.path("image")).read_bytes(), before)

    def test_copies_are_whole(self):
        """progress is printed while the target is open"""
        pathlib.Path(self.path("raw")).write_bytes(self.rng.randbytes(2 * MIB))
        for closed in ("1", "01", "012"):
            for fmt in ("raw", "qcow2", "qed"):
                with self.subTest(closed=closed, fmt=fmt):
                    done = self.run_without(closed, "convert", "-p", "-f", "raw", "-O", fmt, "raw", "copy")
                    self.assertEqual(done.returncode, 1, done.stderr)  # the progress couldn't be printed
                    self.qemu("compare", "-f", "raw", "-F", fmt, "raw", "copy")

    def test_nothing_to_print(self):
        """closed descriptors are no error for a command that prints nothing"""
        done = self.run_without("012", "create", "-q", "-f", "qcow2", "image", "8M")
        self.assertEqual(done.returncode, 0)
        check(self.path("image"), "qcow2")


class ServeCase(CliCase):
    def start(self, *words):
        """Starts qimg serve; returns the process and the URI that it printed."""
        process = subprocess.Popen([str(QIMG), "serve", *words], cwd=self.dir, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=plugin_env())
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        return process, process.stdout.readline().strip()

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(30), 0, process.stderr.read())

    @staticmethod
    def connect(uri):
        handle = nbd.NBD()
        handle.connect_uri(uri)
        return handle

    def image(self, fmt="qed"):
        self.qimg("create", "-q", "-f", fmt, "image", "4M")


class Serve(ServeCase):
    def test_default_socket(self):
        """The socket lies beside the image and exists when the URI is printed"""
        self.image()
        process, uri = self.start("image")
        self.assertEqual(uri, f"nbd+unix:///?socket={self.path('image.sock')}")
        handle = self.connect(uri)
        handle.pwrite(b"x" * 512, MIB)
        handle.shutdown()
        self.stop(process)
        check(self.path("image"), "qed")
        self.assertIs(json.loads(self.qimg("info", "--output=json", "image").stdout)["dirty-flag"],
                      False)
        # A socket file that nobody listens at is replaced.
        process, uri = self.start("image")
        handle = self.connect(uri)
        self.assertEqual(bytes(handle.pread(512, MIB)), b"x" * 512)
        handle.shutdown()
        self.stop(process)

    def test_read_only(self):
        self.image()
        before = pathlib.Path(self.path("image")).read_bytes()
        process, uri = self.start("-r", "-s", "a b%", "image")
        self.assertTrue(uri.endswith("a%20b%25"), uri)
        handle = self.connect(uri)
        self.assertTrue(handle.is_read_only())
        handle.pread(512, 0)
        handle.shutdown()
        self.stop(process)
        self.assertEqual(pathlib.Path(self.path("image")).read_bytes(), before)

    def test_tcp(self):
        self.image()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # "localhost", if it can be resolved: not every machine has an /etc/hosts.
        try:
            socket.getaddrinfo("localhost", port)
            words, host = [], "localhost"
        except OSError:
            words, host = ["-a", "127.0.0.1"], "127.0.0.1"
        process, uri = self.start("-p", str(port), *words, "image")
        self.assertEqual(uri, f"nbd://{host}:{port}")
        handles = []

        def connected():
            try:
                handles.append(self.connect(uri))
            except nbd.Error:
                self.assertIsNone(process.poll())
            return bool(handles)

        wait_until(connected, 20, "a connection")
        handles[0].shutdown()
        self.stop(process)

    def test_run(self):
        self.image()
        done = run(QIMG, "serve", "--run", 'nbdinfo --size "$uri"; exit 3', "image", check=False,
                   cwd=self.dir, env=plugin_env())
        self.assertEqual((done.returncode, done.stdout.strip()), (3, str(4 * MIB)), done.stderr)

    def test_settings_and_nbdkit_options(self):
        self.image("raw")
        process, uri = self.start("-t", "2", "image", "format=raw", "cache=writethrough", "--",
                                  "--filter=log", "-v")
        handle = self.connect(uri)
        handle.shutdown()
        process.send_signal(signal.SIGTERM)
        errors = process.stderr.read()
        self.assertEqual(process.wait(30), 0, errors)
        self.assertIn("log: ", errors)

    def test_an_image_in_use(self):
        """While the image is served for writing, info and map need -U, and create doesn't overwrite it"""
        for fmt in ("raw", "qed", "qcow2"):
            with self.part(fmt=fmt):
                self.image(fmt)
                process, uri = self.start("image", f"format={fmt}")
                handle = self.connect(uri)
                handle.pwrite(b"x" * 512, MIB)
                handle.flush()
                for command in ("info", "map"):
                    self.refuses(command, "image", says=["image", "lock", "with -U"])
                    self.qimg(command, "-U", "image")
                self.refuses("create", "-q", "-f", fmt, "image", "1M", says=["image", "lock"])
                self.qimg("create", "-q", "-f", "qed", "-b", "image", "-F", fmt, "top")
                handle.shutdown()
                self.stop(process)
                self.qimg("info", "image")
                self.io(fmt, "image", "read -P 0x78 1M 512")

    def test_refused(self):
        self.image()
        self.refuses("serve", says=["image file name"])
        self.refuses("serve", "-s", "a", "-p", "1", "image", says=["exclude"])
        self.refuses("serve", "-a", "127.0.0.1", "image", says=["-a 127.0.0.1: goes with -p"])
        self.refuses("serve", "image", "word", says=["word"])
        self.refuses("serve", "-s", "x" * 200, "image", says=["bytes"])
        self.refuses("serve", "-s", "missing/sock", "image", says=["missing/sock"])
        # Neither a regular file nor the socket of a running server is replaced.
        pathlib.Path(self.path("file")).write_text("keep", encoding="ascii")
        self.refuses("serve", "-s", "file", "image", says=["file", "in use"])
        self.assertEqual(pathlib.Path(self.path("file")).read_text(encoding="ascii"), "keep")
        with socket.socket(socket.AF_UNIX) as living:
            living.bind(self.path("living"))
            living.listen()
            self.refuses("serve", "-s", "living", "image", says=["living", "in use"])

    def test_unservable_image(self):
        """qimg serve passes on nbdkit's exit status and message"""
        os.mkdir(self.path("folder"))
        process, _ = self.start("folder")
        errors = process.stderr.read()
        self.assertEqual(process.wait(30), 1)
        self.assertIn("folder", errors)


if __name__ == "__main__":
    unittest.main()
