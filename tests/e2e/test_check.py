# SPDX-License-Identifier: BSD-3-Clause
"""qimg check, and the repair of images when they are made writable.  Ids: Q-11, Q-12, Q-15, L-06,
L-10.

The judge is qemu-img check: on hundreds of damaged images (damage.py) both must report the same exit
status and the same numbers of errors and leaks.  Where they differ on purpose, the damage has one of
these tags:

  unlooked  QEMU gives up (exit 1) where qimg reports an error (exit 2) and can repair it: a refcount
            table with an impossible offset or size in the header, refcount blocks that aren't aligned,
            snapshots with too much extra data, bitmaps that contradict the format.
  unread    A table at an impossible offset is one error.  QEMU reads what lies there as a table and
            counts each of its entries, so that its numbers have no meaning.
  overlap   Two uses of one cluster are an error even if the refcount is large enough for both.  QEMU
            doesn't notice that, so qimg may report more errors.
  v2-zero   The zero flag in a version 2 image: both refuse to read such a cluster, but QEMU's check
            doesn't report it.
  v2-name   With less extra data the snapshot's name is read from another offset, where there are zero
            bytes; QEMU accepts it.
  extended-zero  The zero flag in an extended L2 entry, for which the specification doesn't define it.
  header    A header_length that isn't a multiple of 8, as the specification asks for, is refused.
"""

import json
import os
import pathlib
import re
import shutil
import sys
import unittest

import nbd

import damage
import damage_features
import harness as h
from harness import KIB, MIB, QIMG, Case, run

FIGURES = ("check-errors", "image-end-offset", "total-clusters", "allocated-clusters",
           "fragmented-clusters", "compressed-clusters")
DIRTY, CORRUPT, NEED_CHECK = 1, 2, 2


class Verdict:
    def __init__(self, tool, path, fmt, *options):
        image = damage.opened(path, fmt) if tool == "qemu-img" else ("-f", fmt, path)
        done = run(tool, "check", "--output=json", *options, *image, check=False)
        self.code, self.errors = done.returncode, done.stderr
        self.fields = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        self.corruptions = self.fields.get("corruptions", 0)
        self.leaks = self.fields.get("leaks", 0)

    @property
    def counts(self):
        return self.code, self.corruptions, self.leaks

    def __str__(self):
        return f"exit {self.code}, {self.corruptions} errors, {self.leaks} leaks\n{self.errors[-2000:]}"


def theirs(path, fmt, *options):
    return Verdict("qemu-img", path, fmt, *options)


def ours(path, fmt, *options):
    return Verdict(QIMG, path, fmt, *options)


@unittest.skipIf(h.STANDIN, "it is qimg that is tested")
class Damaged(Case):
    TIMEOUT = 900

    def damages(self):
        folder = self.path("bases")
        os.mkdir(folder)
        found = [*damage.damages(folder), *damage_features.damages(folder)]
        self.assertGreater(len(found), 600)
        self.assertEqual(len(found), len({d.name for d in found}), "two of one name")
        return found

    def share(self):
        """All damages with QIMG_LONG=1, otherwise a third of them, which depends on the seed."""
        found = self.damages()
        return found if h.LONG else found[h.SEED % 3::3]

    def made(self, item):
        path = self.path(f"x.{item.base.fmt}")
        item.make(path)
        return path


class Agrees(Damaged):
    def judge(self, item, path):
        they, we = theirs(path, item.base.fmt), ours(path, item.base.fmt)
        what = f"{item.name}\nqemu-img: {they}\nqimg: {we}"
        self.assertIn(we.code, (0, 1, 2, 3), what)
        if "unlooked" in item.tags:
            self.assertEqual(we.code, 2, what)
            self.assertIn(they.code, (1, 2), what)
        elif "unread" in item.tags:
            self.assertEqual((we.code, they.code), (2, 2), what)
        elif "overlap" in item.tags:
            self.assertEqual((we.code, we.leaks), (they.code, they.leaks), what)
            self.assertGreaterEqual(we.corruptions, they.corruptions, what)
        elif "counted" in item.tags:  # qimg may count one reference more than QEMU
            self.assertEqual((we.code, we.leaks), (2, they.leaks), what)
        elif item.base.fmt == "qcow2" and item.base.external:
            # A cluster that isn't at its guest offset: QEMU finds this when the cluster is used, not in the check.
            self.assertEqual(we.leaks, they.leaks, what)
            self.assertIn(we.code, (they.code, 2), what)
            self.assertGreaterEqual(we.corruptions, they.corruptions, what)
        elif item.tags & {"v2-zero", "v2-name", "extended-zero"}:
            self.assertEqual((we.code, they.code), (2, 0), what)
        elif "header" in item.tags:
            self.assertEqual(we.code, 1, what)
        else:
            self.assertEqual(we.counts, they.counts, what)
            for key in FIGURES:
                self.assertEqual(we.fields.get(key), they.fields.get(key), f"{key}: {what}")
        if "refused" in item.tags:
            self.assertEqual(we.code, 1, what)
        return we

    def test_as_qemu_img(self):
        for item in self.damages():
            with self.subTest(damage=item.name):
                path = self.made(item)
                before = h.sha256(path)
                self.judge(item, path)
                self.assertEqual(h.sha256(path), before, "a check changed the image")


class Repairs(Damaged):
    def expect_content(self, item, path):
        """The disk must be as before, except for the ranges that the damage may have destroyed."""
        actual = bytearray(damage.content(path, item.base.fmt))
        if len(actual) != len(item.base.content):
            self.assertTrue(item.lost, "the size changed")
            return
        for start, end in item.lost:
            end = min(end, len(actual))
            actual[start:end] = item.base.content[start:end]
        h.Model(item.base.content).expect(bytes(actual), item.name)


class RepairsAll(Repairs):
    def expect_clean(self, item, path, repaired):
        fmt = item.base.fmt
        they, we = theirs(path, fmt), ours(path, fmt)
        what = f"{item.name}\nqemu-img: {they}\nqimg: {we}\nrepair: {repaired}"
        self.assertEqual(we.counts, repaired.counts, what)
        if fmt == "qed":
            # In QED a cluster in the middle of the file can't be freed, and nothing tells to which of two
            # entries a cluster belongs.
            self.assertEqual(we.counts, they.counts, what)
            self.assertIn(we.code, (0, 3) if "twice" not in item.tags else (0, 2, 3), what)
        else:
            self.assertEqual((we.code, they.code), (0, 0), what)
        if "twice" not in item.tags:
            self.expect_content(item, path)

    def test_repair_of_everything(self):
        for item in self.share():
            with self.subTest(damage=item.name):
                path = self.made(item)
                before, first = h.sha256(path), ours(path, item.base.fmt)
                repaired = ours(path, item.base.fmt, "-r", "all")
                if first.code == 1 or "hopeless" in item.tags:
                    # If a table can't be read, a repair would free the clusters that it references.
                    self.assertEqual(repaired.code, first.code, repaired)
                    self.assertEqual(h.sha256(path), before, "changed, though it can't be repaired")
                elif "any" not in item.tags:
                    self.expect_clean(item, path, repaired)
                    self.assertFalse(marks(path, item.base.fmt) and repaired.code in (0, 3))


class RepairsLeaks(Repairs):
    def test_repair_of_leaks(self):
        """frees leaked clusters and changes nothing else; frees nothing if there are invalid entries, which may
        have been the references to these clusters"""
        for item in self.share():
            path = self.made(item)
            fmt, first = item.base.fmt, ours(path, item.base.fmt)
            if not first.leaks or first.code == 1:
                continue
            with self.subTest(damage=item.name):
                second = ours(path, fmt, "-r", "leaks")
                self.assertLessEqual(second.corruptions, first.corruptions, second)
                self.assertEqual(second.counts, ours(path, fmt).counts)
                if first.code == 3 and fmt == "qcow2":
                    self.assertEqual(theirs(path, fmt).code, 0, second)
                    self.expect_content(item, path)


@unittest.skipIf(h.STANDIN, "it is the plugin that is tested")
class Served(Damaged):
    """Clients write to damaged images, as far as the server allows it, and nothing gets worse.

    Left out are images in which one host cluster belongs to two guest clusters, or will as soon as it
    is used: no single entry shows that, only a check of all of them does."""

    ALIASED = re.compile("refcount of (last )?data: . becomes 0|: other data|: another table|"
                         "L2 entry of a data cluster: past the end|"
                         "(extended|zstd).*: L2 entry of a data cluster: just past the end|"
                         "external.*: (just |far )?past the end|external.*: (only the copied flag|at 0$)|random")
    WRITES = (0, 4 * KIB + 100, MIB, 2 * MIB + 4 * KIB, 4 * MIB + 12 * KIB, 7 * MIB)
    LENGTH = 5000

    def write(self, handle, model):
        """Writes to several places; writes that were answered and flushed are put into the model.  True if all were."""
        answered = []
        for off in self.WRITES:
            payload = self.rng.randbytes(self.LENGTH)
            try:
                handle.pwrite(payload, off)
                answered.append((off, payload))
            except nbd.Error as error:
                self.assertEqual(error.errnum, 5, error)
        try:
            handle.flush()
        except nbd.Error as error:
            self.assertEqual(error.errnum, 5, error)
            return False
        for off, payload in answered:
            model[off:off + len(payload)] = payload
        return len(answered) == len(self.WRITES)

    def judge(self, item, path, model, known):
        """Repairs the image; the disk must equal the model, except where the damage was and where writes failed."""
        after = ours(path, item.base.fmt, "-r", "all")
        if "hopeless" in item.tags:
            return
        self.assertIn(after.code, (0, 2, 3), after)
        actual = bytearray(damage.content(path, item.base.fmt))
        self.assertEqual(len(actual), len(model))
        unknown = [] if known else [(off, off + self.LENGTH) for off in self.WRITES]
        for start, end in (*item.lost, *unknown):
            end = min(end, len(actual))
            actual[start:end] = model[start:end]
        h.Model(bytes(model)).expect(bytes(actual), item.name)

    def test_served(self):
        for item in self.share():
            if self.ALIASED.search(item.name) or "unopened" in item.tags:
                continue
            with self.subTest(damage=item.name):
                self.serve_and_judge(item)
            self._end_servers()

    def serve_and_judge(self, item):
        path, model = self.made(item), bytearray(item.base.content)
        try:
            secret = ["passphrase=sesame"] if damage.is_encrypted(path, item.base.fmt) else []
            server = self.serve(path, "writable=now", *secret)
        except h.StartFailed as failed:
            self.assertEqual(failed.code, 1, failed)
            self.assertNotIn("undamaged", item.name)
            return
        handle = server.connect()
        if handle.get_size() != len(model):
            return
        known = self.write(handle, model)
        handle.shutdown()
        server.process.terminate()
        server.process.wait(60)
        self.judge(item, path, model, known)


def marks(path, fmt):
    """The bits in the header that require a check."""
    if fmt == "qed":
        return h.header(path, 16, 8, "little") & NEED_CHECK
    return h.header(path, 72, 8, "big") & (DIRTY | CORRUPT) if h.header(path, 4, 4, "big") > 2 else 0


@unittest.skipIf(h.STANDIN, "it is qimg that is tested")
class Words(Case):
    """The output and the exit status."""

    def both(self, *argv):
        return [run(tool, "check", *argv, check=False) for tool in ("qemu-img", QIMG)]

    def image(self, fmt="qcow2"):
        path = h.create(self.path(f"disk.{fmt}"), fmt, "8M")
        h.fill(path, fmt, [(0, bytes([1]) * 100 * KIB), (3 * MIB, bytes([2]) * 70 * KIB)])
        return path

    def leaky(self):
        path = self.image()
        h.patch(path, 0x20000 + 2 * 30, b"\0\1")  # the refcount of a cluster behind the last one
        os.truncate(path, 32 * 64 * KIB)
        return path

    def corrupt(self):
        path = self.image()
        h.patch(path, 0x20000 + 2 * 5, b"\0\0")
        return path

    def test_the_same_text(self):
        for make in (self.image, self.leaky, self.corrupt, lambda: self.image("qed")):
            path = make()
            for options in ([], ["--output=json"], ["-q"]):
                with self.subTest(image=make.__name__, options=options):
                    they, we = self.both(*options, path)
                    self.assertEqual(we.returncode, they.returncode)
                    if "--output=json" in options:
                        self.assertEqual(json.loads(we.stdout), json.loads(they.stdout))
                    else:
                        self.assertEqual(we.stdout, they.stdout)

    def test_the_same_text_of_a_repair(self):
        path = self.leaky()
        copy = shutil.copyfile(path, self.path("copy.qcow2"))
        they = run("qemu-img", "check", "-r", "leaks", path)
        we = run(QIMG, "check", "-r", "leaks", copy)
        self.assertEqual(we.stdout, they.stdout)
        self.assertLess(os.path.getsize(copy), os.path.getsize(path), "leaks at the end stay")
        h.check(copy, "qcow2")

    def test_fixed_counts(self):
        for make, option in ((self.leaky, "leaks"), (self.corrupt, "all")):
            path = make()
            copy = shutil.copy(path, self.path("copy.qcow2"))
            found = [check(image, "qcow2", "-r", option) for check, image in ((theirs, copy), (ours, path))]
            self.assertEqual([each.code for each in found], [0, 0])
            self.assertEqual(*[(each.fields.get("corruptions-fixed", 0), each.fields.get("leaks-fixed", 0)) for each in found])
            self.assertNotEqual(found[1].fields.get("corruptions-fixed", 0) + found[1].fields.get("leaks-fixed", 0), 0)

    def test_exit_status(self):
        raw = self.path("disk.raw")
        pathlib.Path(raw).write_bytes(bytes(MIB))
        for argv, code in (([raw], 63), (["-f", "raw", raw], 63), ([self.path("none")], 1),
                           (["-f", "vmdk", raw], 1), (["-r", "some", raw], 1), ([], 1),
                           (["--output=xml", raw], 1), (["-f", "qcow2", raw], 1),
                           (["-f", "qed", raw], 1), ([self.dir], 1)):
            with self.subTest(argv=argv):
                they, we = self.both(*argv)
                self.assertEqual((we.returncode, they.returncode), (code, code))
                self.assertRegex(we.stderr, "^qimg: ")

    def test_refcounts_that_allow_for_an_overlap(self):
        """a snapshot's L1 table is the active one, with a refcount of 2: a write to such an image would damage it"""
        path = h.create(self.path("x.qcow2"), "qcow2", "8M", "cluster_size=4k")
        run("qemu-img", "snapshot", "-c", "s", path)
        q = damage.Qcow2(path)
        (at, l1, _, _), = q.snapshot_entries()
        h.patch(path, at, damage.be(q.l1))
        h.patch(path, q.blocks[0] + 2 * (q.l1 // q.cluster), b"\0\2")
        h.patch(path, q.blocks[0] + 2 * (l1 // q.cluster), b"\0\0")
        self.assertEqual(theirs(path, "qcow2").code, 0)
        self.assertEqual(ours(path, "qcow2").code, 2)
        self.assertEqual(ours(path, "qcow2", "-r", "all").code, 0)
        h.check(path, "qcow2")
        self.serve(path, "writable=now").stop()

    def test_bitmaps_that_others_were_written_over(self):
        """bitmaps whose tables lie over something else are dropped: they may miss changes"""
        path = self.image()
        run("qemu-img", "bitmap", "--add", path, "b")
        q = damage.Qcow2(path)
        directory = q.u(q.extensions[0x23852875][0] + 16)
        for name, place in (("refcounts", q.blocks[0]), ("data", next(q.l2_entries())[2] & damage.OFFSET)):
            with self.subTest(others=name):
                copy = shutil.copyfile(path, self.path(f"{name}.qcow2"))
                h.patch(copy, q.u(directory), damage.be(place))
                self.assertEqual(ours(copy, "qcow2").code, 2)
                self.assertEqual(ours(copy, "qcow2", "-r", "all").code, 0)
                h.check(copy, "qcow2")
                self.assertNotIn("bitmaps", json.loads(run("qemu-img", "info", "--output=json", copy).stdout)
                                 ["format-specific"]["data"])
                self.assertEqual(h.content(copy, "qcow2"), h.content(path, "qcow2"))

    def test_without_the_data_file(self):
        """an image can be checked when its data file is missing: it has no refcounts of the data"""
        path = h.create(self.path("x.qcow2"), "qcow2", "8M", f"data_file={self.path('data')}")
        h.fill(path, "qcow2", [(0, b"x" * 200 * KIB)])
        they = theirs(path, "qcow2")
        os.unlink(self.path("data"))
        self.assertEqual(ours(path, "qcow2").fields, they.fields)

    def test_features_that_change_no_table(self):
        for options in ("compression_type=zstd", "compression_type=zlib"):
            with self.subTest(options=options):
                path = h.create(self.path("x.qcow2"), "qcow2", "8M", options)
                run("qemu-io", "-f", "qcow2", "-c", "write -q -c 0 1M", path)
                self.assertEqual(ours(path, "qcow2").fields, theirs(path, "qcow2").fields)
        path = self.path("luks.qcow2")
        h.create_encrypted(path, "4M", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
        self.assertEqual(ours(path, "qcow2").fields | {"filename": None},
                         theirs(path, "qcow2").fields | {"filename": None})

    def test_progress(self):
        done = run(QIMG, "check", "-p", self.image())
        shown = [float(word.split("/")[0]) for word in done.stdout.split("(")[1:] if "/100%" in word]
        self.assertEqual(shown, sorted(shown))
        self.assertEqual(shown[-1], 100)

    @unittest.skipIf(h.SANITIZER_ENV, "a sanitizer takes memory of its own")
    def test_memory(self):
        """a check of a large file needs less memory than QEMU's"""
        path = h.create(self.path("large.qcow2"), "qcow2", "512G", "preallocation=metadata")
        they, we = [self.peak(tool, "check", "-q", path) for tool in ("qemu-img", QIMG)]
        self.assertLess(we, they)

    @staticmethod
    def peak(*argv):
        """Peak memory in KiB.  The kernel's figure starts with the parent's size, so the parent is a small process."""
        script = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
                  "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
        return int(run(sys.executable, "-S", "-c", script, *argv).stdout)

    def test_locks(self):
        """an image that is being written to is checked only with -U"""
        path = self.image()
        server = self.serve(path, "writable=now")
        handle = server.connect()
        handle.pwrite(bytes(512), 0)
        self.assertEqual(ours(path, "qcow2").code, 1)
        self.assertEqual(ours(path, "qcow2", "-r", "all").code, 1)
        self.assertIn(ours(path, "qcow2", "-U").code, (0, 2, 3))
        self.assertEqual(ours(path, "qcow2", "-U", "-r", "all").code, 1)
        server.stop()
        self.assertEqual(ours(path, "qcow2").code, 0)

    def test_locks_of_readers(self):
        """an image that is being read isn't repaired"""
        path = self.image()
        self.serve(path, nbdkit=["-r"]).connect()
        self.assertEqual(ours(path, "qcow2").code, 0)
        self.assertEqual(ours(path, "qcow2", "-r", "all").code, 1)


@unittest.skipIf(h.STANDIN, "it is the plugin that is tested")
class OnOpen(Case):
    """L-06, Q-15: images that were not closed cleanly."""

    SIZE = 16 * MIB
    MARKED = {"qcow2": (72, "big", DIRTY), "qed": (16, "little", NEED_CHECK)}

    def killed(self, fmt, options=""):
        """An image whose server was killed while it was in use, and the model of its content."""
        path = h.create(self.path(f"disk.{fmt}"), fmt, self.SIZE, options)
        server = self.serve(path)
        handle, model = server.connect(), h.Model(bytes(self.SIZE))
        for i in range(40):
            model.write(handle, self.rng.randrange(self.SIZE - 90000), self.rng.randbytes(80000))
        handle.flush()
        server.kill()
        self.assertTrue(marks(path, fmt), "the server left no mark")
        return path, model

    def cases(self):
        yield "qcow2", "lazy_refcounts=on"
        yield "qcow2", "lazy_refcounts=on,cluster_size=4k,refcount_bits=8"
        yield "qcow2", "lazy_refcounts=on,extended_l2=on"
        yield "qcow2", f"lazy_refcounts=on,data_file={self.path('data')}"
        yield "qed", ""
        yield "qed", "cluster_size=4k,table_size=2"

    def test_repaired_when_made_writable(self):
        for fmt, options in self.cases():
            for when in ("writable=now", "writable=on-connect"):
                with self.part(fmt=fmt, options=options, when=when):
                    path, model = self.killed(fmt, options)
                    server = self.serve(path, when)
                    handle = server.connect()
                    model.compare(handle)
                    model.write(handle, MIB, self.rng.randbytes(300000))
                    server.stop()
                    self.assertFalse(marks(path, fmt))
                    h.check(path, fmt)
                    model.expect(h.content(path, fmt), "after the repair")

    def test_leftovers_are_given_back(self):
        """Clusters that the killed server had reserved in advance are leaks, or a longer file; a repair frees them."""
        given_back = 0
        for fmt, options in (*self.cases(), ("qcow2", "")):
            with self.part(fmt=fmt, options=options):
                if options or fmt == "qed":
                    path, model = self.killed(fmt, options)
                else:  # with eager refcounts the header has no mark
                    path = h.create(self.path("eager.qcow2"), fmt, self.SIZE)
                    server = self.serve(path)
                    handle, model = server.connect(), h.Model(bytes(self.SIZE))
                    model.write(handle, 0, self.rng.randbytes(MIB))
                    handle.flush()
                    server.kill()
                size = os.path.getsize(path)
                done = ours(path, fmt, "-r", "all")
                self.assertEqual(done.code, 0, done)
                h.check(path, fmt)
                given_back += size - os.path.getsize(path)
                model.expect(h.content(path, fmt), "after qimg check -r all")
        # Summed over all images: in a single one the reserve may have been used up.
        self.assertGreater(given_back, MIB)

    def test_read_only_changes_nothing(self):
        for fmt, options in self.cases():
            with self.part(fmt=fmt, options=options):
                path, model = self.killed(fmt, options)
                before = h.sha256(path)
                server = self.serve(path, nbdkit=["-r"])
                model.compare(server.connect())
                server.stop()
                self.assertEqual(h.sha256(path), before)

    def test_repair_off(self):
        for fmt, options in self.cases():
            with self.part(fmt=fmt, options=options):
                path, model = self.killed(fmt, options)
                before = h.sha256(path)
                self.refused(path, "repair=off", "writable=now", words=["repair"])
                server = self.serve(path, "repair=off")
                with self.assertRaises(nbd.Error):
                    server.connect()
                server.kill()
                server = self.serve(path, "repair=off", nbdkit=["-r"])
                model.compare(server.connect())
                server.stop()
                self.assertEqual(h.sha256(path), before)

    def unrepairable(self, fmt):
        """An image with a mark in the header and an entry that can't be repaired."""
        path = h.create(self.path(f"bad.{fmt}"), fmt, "8M", "cluster_size=4k")
        h.fill(path, fmt, [(0, self.rng.randbytes(64 * KIB))])
        if fmt == "qcow2":
            image = damage.Qcow2(path)
            entries = list(image.l2_entries())
            h.patch(path, entries[3][1], damage.be(entries[3][2] + 512))
        else:
            image = damage.Qed(path)
            entries = list(image.l2_entries())
            h.patch(path, entries[3][1], damage.le(entries[5][2]))
        off, order, bit = self.MARKED[fmt]
        h.patch(path, off, bit.to_bytes(8, order))
        return path

    def test_what_cannot_be_repaired(self):
        """an image that can't be repaired is refused for writing, and keeps its mark"""
        for fmt in ("qcow2", "qed"):
            with self.part(fmt=fmt):
                path = self.unrepairable(fmt)
                self.refused(path, "writable=now", words=["can't be repaired"])
                self.assertTrue(marks(path, fmt))
                server = self.serve(path, nbdkit=["-r"])
                handle = server.connect()
                handle.pread(4 * KIB, 0)
                server.stop()
                self.assertTrue(marks(path, fmt))

    def test_corrupt_bit(self):
        """refused for writing, served read-only, and good again after qimg check -r all"""
        path = h.create(self.path("disk.qcow2"), "qcow2", "8M")
        h.fill(path, "qcow2", [(0, b"x" * 64 * KIB)])
        h.patch(path, 72, damage.be(CORRUPT))
        before = h.sha256(path)
        self.refused(path, "writable=now", words=["corrupt"])
        server = self.serve(path, nbdkit=["-r"])
        self.assertEqual(server.connect().pread(4, 0), b"xxxx")
        server.stop()
        self.assertEqual(h.sha256(path), before)
        self.assertEqual(ours(path, "qcow2", "-r", "all").code, 0)
        self.assertFalse(marks(path, "qcow2"))
        self.serve(path, "writable=now").stop()


@unittest.skipIf(h.STANDIN, "it is the plugin that is tested")
class Corruption(Case):
    """L-10: the server meets an impossible entry while it serves."""

    def damaged(self, change, options="cluster_size=4k"):
        path = h.create(self.path("disk.qcow2"), "qcow2", "16M", options)
        h.fill(path, "qcow2", [(0, b"a" * 32 * KIB), (4 * MIB, b"b" * 32 * KIB)])
        image = damage.Qcow2(path)
        entries = [e for e in image.l2_entries() if e[0] < 32 * KIB]
        h.patch(path, *change(image, entries[2][1], entries[2][2]))
        return path

    CHANGES = {
        "misaligned": lambda q, place, entry: (place, damage.be(entry + 512)),
        "past the end": lambda q, place, entry: (place, damage.be(1 << 45)),
        "reserved": lambda q, place, entry: (place, damage.be(entry | 2)),
        "on the L1 table": lambda q, place, entry: (place, damage.be(q.l1 | damage.COPIED)),
        "L1 entry": lambda q, place, entry: (q.l1, damage.be(q.u(q.l1) + 512)),
    }

    def test_marked_and_no_more_writes(self):
        def write(handle):
            handle.pwrite(b"c" * 100, 8 * KIB + 10)

        def read(handle):
            handle.pread(100, 8 * KIB)

        def zero(handle):
            handle.zero(4 * KIB, 8 * KIB)

        for name, change in self.CHANGES.items():
            for request in (read, write, zero):
                with self.part(damage=name, request=request.__name__):
                    path = self.damaged(change)
                    server = self.serve(path, "writable=now")
                    handle = server.connect()
                    handle.pwrite(b"d" * 100, 9 * MIB)
                    handle.flush()
                    self.errno(5, request, handle)
                    self.assertEqual(marks(path, "qcow2") & CORRUPT, CORRUPT)
                    self.errno(5, handle.pwrite, b"e" * 512, 4 * MIB)
                    self.errno(5, handle.pwrite, b"e" * 512, 12 * MIB)
                    self.errno(5, handle.zero, 4096, 4 * MIB)
                    self.assertEqual(handle.pread(100, 4 * MIB), b"b" * 100)
                    self.assertEqual(handle.pread(100, 9 * MIB), b"d" * 100)
                    self.assertRegex(server.errors, "corrupt")
                    server.disconnect()
                    server.process.terminate()
                    server.process.wait(60)
                    self.assertEqual(marks(path, "qcow2") & CORRUPT, CORRUPT)
                    self.refused(path, "writable=now", words=["corrupt"])
                    self.assertEqual(ours(path, "qcow2", "-r", "all").code, 0)
                    self.assertEqual(h.content(path, "qcow2")[4 * MIB:4 * MIB + 100], b"b" * 100)

    def test_both_marks(self):
        """Corruption found while the image is dirty: both bits stay, writes are refused until the image is repaired,
        and then everything that was flushed is there."""
        path = self.damaged(self.CHANGES["misaligned"], "cluster_size=4k,lazy_refcounts=on")
        server = self.serve(path, "writable=now")
        handle = server.connect()
        handle.pwrite(b"d" * 8192, 9 * MIB)
        handle.flush()
        handle.pwrite(b"e" * 8192, 12 * MIB)
        self.errno(5, handle.pread, 100, 8 * KIB)
        self.assertEqual(marks(path, "qcow2"), DIRTY | CORRUPT)
        self.errno(5, handle.flush)
        server.disconnect()
        server.process.terminate()
        server.process.wait(60)
        self.assertEqual(marks(path, "qcow2"), DIRTY | CORRUPT)
        self.refused(path, "writable=now", words=["corrupt"])
        self.refused(path, "writable=now", "repair=off", words=["corrupt"])
        self.assertNotEqual(run("qemu-io", "-f", "qcow2", "-c", "write 0 512", path, check=False).returncode, 0)
        self.assertEqual(ours(path, "qcow2", "-r", "all").code, 0)
        self.assertEqual(marks(path, "qcow2"), 0)
        h.check(path, "qcow2")
        disk = h.content(path, "qcow2")
        self.assertEqual(disk[9 * MIB:9 * MIB + 8192], b"d" * 8192)
        self.assertEqual(disk[:8192] + disk[4 * MIB:4 * MIB + 32 * KIB], b"a" * 8192 + b"b" * 32 * KIB)

    def test_read_only_marks_nothing(self):
        path = self.damaged(self.CHANGES["misaligned"])
        before = h.sha256(path)
        server = self.serve(path, nbdkit=["-r"])
        handle = server.connect()
        self.errno(5, handle.pread, 100, 8 * KIB)
        self.assertEqual(handle.pread(100, 0), b"a" * 100)
        server.stop()
        self.assertEqual(h.sha256(path), before)


if __name__ == "__main__":
    unittest.main()
