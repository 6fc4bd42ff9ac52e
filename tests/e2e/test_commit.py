# SPDX-License-Identifier: BSD-3-Clause
"""block-commit of the active image into one below it, while clients write."""

import json
import os
import pathlib
import random
import unittest

import harness
from harness import KIB, LONG, MIB, SEED, Case, create, fill, parametrised, run, wait_until
from peer import Peer
from qmp import Qmp
from test_mirror import MirrorCase
from writers import Writers

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 20 if LONG else 2))


class CommitCase(MirrorCase):
    """base <- middle <- top; each layer has its own data, some of which covers data of the layers below."""

    SIZE = 4 * MIB

    def setUp(self):
        Case.setUp(self)

    def chain(self, formats=("qcow2", "qed", "qcow2"), sizes=None):
        self.paths = [self.path(f"{n}.{f}") for n, f in zip(("base", "middle", "top"), formats)]
        self.formats, sizes = formats, sizes or [self.SIZE] * 3
        self.content = bytearray(sizes[0])
        for n, (path, fmt, size) in enumerate(zip(self.paths, formats, sizes)):
            create(path, fmt, size, backing=self.paths[n - 1] if n else None,
                   backing_fmt=formats[n - 1] if n else None)
            # Past the end of the image below this layer reads as zeroes.
            self.content = self.content[:size] + bytes(max(0, size - len(self.content)))
            step = (3, 5, 7)[n] * 64 * KIB
            pieces = [(off, self.rng.randbytes(min(40 * KIB, size - off))) for off in range(n * 64 * KIB, size, step)]
            fill(path, fmt, pieces)
            for off, payload in pieces:
                self.content[off:off + len(payload)] = payload
        self.image, self.fmt = self.paths[-1], formats[-1]

    def commit(self, base=None, **arguments):
        arguments = {"job_id": "job", **arguments, **({"base": base} if base else {})}
        self.assertEqual(self.client.cmd("block-commit", device="drive0", **arguments), {})

    def ends_as(self, path, fmt):
        """Stops the server; that image must have the disk's content, and all images must be clean."""
        self.disk.flush()
        self.server.stop()
        for checked, its_format in zip(self.paths, self.formats):
            harness.check(checked, its_format)
        self.expect_content(path, fmt)


@parametrised
class Rounds(CommitCase):
    TIMEOUT = 1000

    cases_end = {f"{formats[0]} {base} {end}": (formats, base, end)
                 for formats in (("qcow2", "qed", "qcow2"), ("raw", "qcow2", "qed"), ("qed", "qcow2", "qcow2"))
                 for base in (0, 1) for end in ("complete", "cancel", "forced")}

    def check_end(self, formats, base, end):
        """M-27, M-28: a commit to the image below or to the lowest one, while clients write, with each kind of end"""
        for number in range(ROUNDS):
            with self.part(round=number):
                rng = random.Random(f"{SEED} {formats} {base} {end} {number}")
                self.chain(formats)
                self.begin()
                writers = Writers(self.server, self.content, f"{SEED} {number}")
                try:
                    slow = end == "forced" and number % 2
                    self.commit(self.paths[base] if base or rng.random() < 0.5 else None,
                                speed=256 * KIB if slow else 0)
                    if not slow:
                        self.assertEqual(self.ready()["type"], "commit")
                    writers.some(60)
                    if end == "complete":
                        self.pivot()
                        writers.some(60)
                    elif end == "forced":
                        self.forced()
                        writers.some(20)
                finally:
                    writers.stop()
                getattr(self, f"after_{end}")(base)

    def after_complete(self, base):
        node = self.client.cmd("query-block")[0]["inserted"]
        self.assertEqual((node["file"], node["backing_file_depth"]), (self.paths[base], base))
        self.assertIs(node["ro"], False)
        self.ends_as(self.paths[base], self.formats[base])

    def after_cancel(self, base):
        """after a soft cancel the base has everything, and the overlay is still served"""
        self.softly()
        node = self.client.cmd("query-block")[0]["inserted"]
        self.assertEqual((node["file"], node["backing_file_depth"]), (self.image, 2))
        self.disk.flush()
        self.assertTrue(harness.content(self.paths[base], self.formats[base], served=True) == self.content)
        self.write(0, b"only in the overlay")
        self.ends_as(self.image, self.fmt)

    def after_forced(self, _base):
        self.ends_as(self.image, self.fmt)


@parametrised
class Sizes(CommitCase):
    """M-30"""

    def test_a_base_of_version_2(self):
        """the disk is served with lazy-refcounts=on, the base is of version 2, which doesn't have them"""
        self.paths = [create(self.path("base"), "qcow2", self.SIZE, "compat=0.10")]
        self.paths.append(create(self.path("top"), "qcow2", None, backing=self.paths[0], backing_fmt="qcow2"))
        self.formats, self.content = ("qcow2", "qcow2"), bytearray(self.SIZE)
        self.image, self.fmt = self.paths[-1], "qcow2"
        self.begin("lazy-refcounts=on")
        self.write(MIB, b"to be committed")
        self.commit()
        self.ready()
        self.pivot()
        self.write(2 * MIB, b"behind the switch")
        self.ends_as(self.paths[0], "qcow2")

    def test_a_shorter_base_is_grown(self):
        for formats in (("qcow2", "qed", "qcow2"), ("raw", "qcow2", "qed")):
            with self.part(formats=formats):
                self.chain(formats, [MIB + 512, 2 * MIB, 4 * MIB])
                self.begin()
                self.commit()
                self.ready()
                self.write(4 * MIB - 5000, b"\x77" * 5000)
                self.pivot()
                self.ends_as(self.paths[0], formats[0])
                self.assertEqual(harness.info(self.paths[0], formats[0])["virtual-size"], 4 * MIB)

    def test_a_base_is_not_grown_for_a_job_that_cant_be(self):
        """M-31"""
        self.chain(("qcow2", "qcow2", "qcow2"), [MIB, 2 * MIB, 4 * MIB])
        self.begin()
        self.mirror("target.raw", auto_dismiss=False)
        self.ready()
        self.client.cmd("block-job-cancel", device="job")
        wait_until(lambda: self.job()["status"] == "concluded", 20, "the end")
        before = harness.sha256(self.paths[0])
        for job, words in ("9bad", "well-formed"), ("job", "in use"):
            self.fails("GenericError", self.client, "block-commit", words, device="drive0", job_id=job)
            self.assertEqual(harness.sha256(self.paths[0]), before, words)

    def test_what_a_shorter_base_hides_stays_hidden(self):
        """a commit that would grow a base so that hidden parts of its own backing file show is refused"""
        self.chain(("qcow2", "qcow2", "qcow2"), [4 * MIB, MIB, 4 * MIB])
        self.begin()
        self.fails("GenericError", self.client, "block-commit", "middle.qcow2.*base.qcow2.*would show",
                   device="drive0", job_id="job", base=self.paths[1])
        self.assertIsNone(self.job())
        self.assertEqual(harness.info(self.paths[1], "qcow2")["virtual-size"], MIB)
        self.commit(self.paths[0])  # a commit past both is possible
        self.ready()
        self.pivot()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk after the switch")
        self.ends_as(self.paths[0], "qcow2")

    def test_a_larger_base(self):
        """a base that is larger than the disk keeps its size"""
        self.chain(sizes=[8 * MIB, 8 * MIB, 4 * MIB])
        self.begin()
        self.commit()
        self.ready()
        self.pivot()
        self.write(0, b"x")
        self.server.stop()
        harness.check(self.paths[0], "qcow2")
        self.assertEqual(harness.info(self.paths[0], "qcow2")["virtual-size"], 8 * MIB)
        self.same(harness.content(self.paths[0], "qcow2")[:self.SIZE])

    def test_no_bytes(self):
        """M-19: a disk of 0 bytes, with both kinds of ends"""
        for end in ("softly", "pivot"):
            with self.part(end=end):
                self.chain(sizes=[0, 0, 0])
                self.begin()
                self.commit()
                data = self.ready()
                self.assertEqual((data["len"], data["offset"]), (0, 0))
                getattr(self, end)()
                self.server.stop()


class Clusters(CommitCase):
    """a base whose clusters are larger than the overlay's"""

    def test_the_rest_of_a_cluster(self):
        """a part of a base's cluster that the overlay doesn't have is read correctly, even after the base's tables were
        evicted from the cache and loaded again"""
        for fmt in ("qcow2", "qed"):
            for end in ("ready", "cancelled"):
                with self.part(format=fmt, end=end):
                    self.rest_of_a_cluster(fmt, end)

    def rest_of_a_cluster(self, fmt, end):
        base = create(self.path("base"), fmt, 20 << 30, "cluster_size=2M")
        fill(base, fmt, [(100 * MIB, b"\x33" * (2 * MIB))])
        self.fmt = "qcow2"
        self.image = create(self.path("top"), self.fmt, None, backing=base, backing_fmt=fmt)
        pages = range(32 * MIB, 600 * 32 * MIB, 32 * MIB)
        fill(self.image, "qcow2", [(0, b"\x44" * 64 * KIB)])
        with open(self.path("commands"), "w+", encoding="ascii") as commands:
            commands.writelines(f"write -q -P 0x55 {off} 4k\n" for off in pages)
            commands.seek(0)
            run("qemu-io", "-f", "qcow2", self.image, stdin=commands)
        self.begin("metadata-cache=1M")
        self.commit()
        self.ready()
        if end == "cancelled":
            self.forced()
        for off in pages:  # these reads evict the pages of the base's tables
            self.assertEqual(self.disk.pread(1, off), b"\x55")
        for off, byte in ((0, 0x44), (64 * KIB, 0), (MIB, 0), (32 * MIB + 64 * KIB, 0), (100 * MIB, 0x33)):
            self.assertEqual(self.disk.pread(4096, off), bytes([byte]) * 4096, off)
        self.server.stop()
        self.assertNotIn("past the end", self.server.errors)


class Described(CommitCase):
    """The user gives the backing file of the base by options; the base itself names another one."""

    def setUp(self):
        super().setUp()
        self.chain(("qcow2", "qcow2", "qcow2"))
        self.real, self.base, self.top = self.paths
        other = create(self.path("other.qcow2"), "qcow2", self.SIZE)
        fill(other, "qcow2", [(0, b"other" * (self.SIZE // 5))])
        run("qemu-img", "rebase", "-u", "-b", other, "-F", "qcow2", self.base)

    @staticmethod
    def layer(path, **more):
        return {"driver": "qcow2", "file": {"driver": "file", "filename": path}, **more}

    def described(self, *between):
        layer = self.layer(self.base, backing=self.layer(self.real))
        for path in between:
            layer = self.layer(path, backing=layer)
        return f"backing=json:{json.dumps(layer)}"

    def expect_base(self):
        """The base, over the given backing file, must have the disk's content."""
        flat = self.path("flat")
        run("qemu-img", "convert", "-O", "raw", f"json:{json.dumps(self.layer(self.base, backing=self.layer(self.real)))}", flat)
        self.same(pathlib.Path(flat).read_bytes(), "the base")

    def test_of_the_active_image(self):
        self.begin(self.described())
        self.commit(base=self.base)
        self.ready()
        self.write(5 * KIB, b"not a cluster")
        self.pivot()
        self.same(self.disk.pread(self.SIZE, 0), "the disk")
        self.write(700 * KIB, b"nor this")
        self.same(self.disk.pread(self.SIZE, 0), "the disk")
        self.server.stop()
        self.expect_base()

    def test_of_a_layer(self):
        self.image = create(self.path("over.qcow2"), "qcow2", self.SIZE, backing=self.top, backing_fmt="qcow2")
        self.begin(self.described(self.top))
        self.commit(base=self.base, top=self.top)
        self.ended()
        self.same(self.disk.pread(self.SIZE, 0), "the disk")
        self.server.stop()
        self.expect_base()

    def test_by_the_command(self):
        fine = create(self.path("fine.qcow2"), "qcow2", self.SIZE, "cluster_size=4k", backing=self.top, backing_fmt="qcow2")
        pieces = [(off, self.rng.randbytes(4 * KIB)) for off in range(100 * KIB, self.SIZE, 300 * KIB)]
        fill(fine, "qcow2", pieces)  # each covers a part of one of the base's clusters
        for off, payload in pieces:
            self.content[off:off + len(payload)] = payload
        words = [f"driver=qcow2,file.filename={fine}"]
        for depth, path in ((1, self.top), (2, self.base), (3, self.real)):
            words += [f"{'backing.' * depth}driver=qcow2", f"{'backing.' * depth}file.filename={path}"]
        run(harness.QIMG, "commit", "-b", self.base, "--image-opts", ",".join(words))
        self.expect_base()

    def test_a_copy_of_the_top(self):
        self.begin(self.described())
        self.mirror("copy.qcow2", format="qcow2", sync="top")
        self.ready()
        self.write(5 * KIB, b"not a cluster")
        self.pivot()
        self.same(self.disk.pread(self.SIZE, 0), "the disk")


@parametrised
class Killed(CommitCase):
    """kill -9 of the server: the chain has everything that was flushed"""

    cases_phase = {f"{base} {phase}": (base, phase) for base in (0, 1)
                   for phase in ("running", "ready", "completing")}

    def check_phase(self, base, phase):
        """M-28"""
        self.chain()
        self.begin()
        writers = Writers(self.server, self.content, f"{SEED} {base} {phase}")
        writers.some(20)
        self.commit(self.paths[base], speed=256 * KIB if phase == "running" else 0)
        if phase != "running":
            self.ready()
        if phase == "completing":
            self.client.cmd("block-job-complete", device="job")
        else:
            writers.some(30)
        self.server.kill()
        for path, fmt in zip(self.paths, self.formats):
            harness.repair(path, fmt)
            harness.check(path, fmt, allow_leaks=fmt == "qed")
        # The overlay has the disk while it is served, the base from the switch on.
        tried = [(self.image, self.fmt), *([(self.paths[base], self.formats[base])] if phase == "completing" else [])]
        found = [harness.content(path, fmt) for path, fmt in tried]
        self.assertTrue(any([writers.crashed(f) for f in found]), "a flushed byte is lost")


class Refused(CommitCase):
    """M-36, and other commits that are refused"""

    def setUp(self):
        super().setUp()
        self.chain()
        self.begin()

    def refused(self, words, **arguments):
        return self.fails("GenericError", self.client, "block-commit", words,
                          **{"device": "drive0", "job_id": "other", **arguments})

    def test_names(self):
        self.refused("nowhere", base="nowhere")
        self.refused("top.qcow2", base=self.image)
        self.refused("nowhere", top="nowhere")
        self.refused("well-formed", job_id="1")
        self.assertIsNone(self.job())
        self.ends_as(self.image, self.fmt)

    def test_names_that_are_no_images_to_say(self):
        """A backing name that the server would refuse at its next start isn't written into an image."""
        for name, says in (("nbds://me@localhost/", "may not choose a user"), ("rbd:p/i:id=me", "may not choose how Ceph is asked"),
                           ('json:{"driver":"nbd","host":"h","tls-creds":"t"}', "tls-creds: is not an image's to say")):
            self.refused(says, top=self.paths[1], backing_file=name)
            self.fails("GenericError", self.client, "block-stream", says, device="drive0", job_id="other", base=self.paths[0],
                       backing_file=name)
        self.ends_as(self.image, self.fmt)

    def test_an_nbd_export(self):
        """A layer that is an NBD export can't be committed to; the message says so, not that there is no such layer."""
        raw = pathlib.Path(self.path("exported"))
        raw.write_bytes(bytes(MIB))
        peer = Peer(self, "file", raw)
        middle = create(self.path("upon"), "qcow2", None, backing=peer.uri, backing_fmt="raw")
        image = create(self.path("top"), "qcow2", None, backing=middle, backing_fmt="qcow2")
        server = self.serve(image, f"control={self.path('nbd.qmp')}")
        with Qmp(self.path("nbd.qmp")) as client:
            for arguments in ({}, {"base": peer.uri}, {"top": str(middle), "base": peer.uri}):
                self.fails("GenericError", client, "block-commit", "is an NBD export: .*local files",
                           device="drive0", **arguments)
            client.cmd("block-commit", device="drive0", job_id="job", base=str(middle))
            client.event("BLOCK_JOB_READY")
            client.cmd("block-job-complete", device="job")
            client.event("BLOCK_JOB_COMPLETED")
        server.stop()

    def test_internal_snapshots(self):
        """a layer with internal snapshots can't be committed: they show the base below it"""
        self.client.cmd("blockdev-snapshot-internal-sync", device="drive0", name="s")
        before = harness.sha256(self.paths[0])
        for base in self.paths[:2]:
            self.refused("top.qcow2: has internal snapshots", base=base)
        self.assertEqual(harness.sha256(self.paths[0]), before)
        self.client.cmd("blockdev-snapshot-delete-internal-sync", device="drive0", name="s")
        self.commit()
        self.ready()
        self.pivot()
        self.ends_as(self.paths[0], self.formats[0])

    def test_another_process(self):
        """all layers are locked against other processes from the job's start"""
        self.commit()
        self.ready()
        for path, fmt in zip(self.paths, self.formats):
            done = run("qemu-io", "-f", fmt, "-c", "write 0 512", path, check=False)
            self.assertNotEqual(done.returncode, 0, path)
            self.assertRegex(done.stdout + done.stderr, "lock")
        self.softly()
        self.ends_as(self.image, self.fmt)

    def test_a_base_that_another_has(self):
        """a commit to a base that another server reads is refused"""
        holder = self.serve(self.paths[0], "format=qcow2", nbdkit=("-r",))
        reader = holder.connect()
        reader.pread(512, 0)
        before = harness.sha256(self.paths[0])
        try:
            self.refused("base.qcow2")
        finally:
            holder.stop()
        self.assertEqual(harness.sha256(self.paths[0]), before)

    def test_a_second_commit(self):
        self.commit()
        self.ready()
        for base in self.paths[:2]:
            self.refused("job|use", base=base)
        self.write(0, b"still good")
        self.pivot()
        self.ends_as(self.paths[0], self.formats[0])

    def test_a_mirror_over_a_base(self):
        self.fails("GenericError", self.client, "drive-mirror", "base.qcow2", device="drive0", sync="full",
                   target=self.paths[0], format="qcow2", mode="existing", job_id="m")
        self.assertIsNone(self.job())


if __name__ == "__main__":
    unittest.main()
