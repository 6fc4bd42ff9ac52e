# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots into new files (overlays) while clients write: the frozen point, the state of the old image,
and commits back.  M-52"""

import os
import pathlib
import random
import threading
import time
import unittest

import harness
from harness import KIB, MIB, SEED, check, create, parametrised, run
from qmp import QmpError
from test_nodes import NodeCase
from writers import Writers

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 40 if harness.LONG else 6))


class OverlayCase(NodeCase):
    SIZE = 4 * MIB

    def snapshot(self, name="over", fmt="qcow2", **more):
        path = self.path(f"{name}.{fmt}")
        self.client.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=path, format=fmt,
                        snapshot_node_name=name, **more)
        return path

    def top(self):
        return self.client.cmd("query-block")[0]["inserted"]

    def commit(self):
        """Commits the overlay into the image below it."""
        self.client.cmd("block-commit", job_id="fold", device="drive0", base=self.top()["backing_file"])
        self.ready()
        self.client.cmd("job-complete", id="fold")
        self.ended()


# A preloaded ftruncate that fails for the file BROKEN_IMAGE while the file named in BROKEN exists; if there is also
# one with the suffix ".once", it removes the first, so that only one call fails.
SHORTENING_FAILS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int ftruncate(int fd, off_t length)
{
    char link[64], path[PATH_MAX] = "";
    const char *image = getenv("BROKEN_IMAGE"), *switches = getenv("BROKEN");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) > 0 && strcmp(path, image) == 0 && access(switches, F_OK) == 0) {
        char once[PATH_MAX];
        snprintf(once, sizeof once, "%s.once", switches);
        if (access(once, F_OK) == 0)
            unlink(switches);
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_ftruncate, fd, length);
}
int ftruncate64(int fd, off_t length) __attribute__((alias("ftruncate")));
"""


@parametrised
@unittest.skipIf(harness.SANITIZER_ENV, "the sanitizers' library comes first")
class EndFails(OverlayCase):
    """A snapshot can't close the old image for writing: a commit or stream into it has to complete that first."""

    SIZE = 32 * MIB
    cases_commit = {f"{fmt} fails {'once' if once else 'on'}": (fmt, once)
                    for fmt in ("qcow2", "qed") for once in (True, False)}

    def begin_broken(self, *keys, once):
        self.broken = self.path("broken")
        shim = self.path("broken.so")
        run("gcc", "-shared", "-fPIC", "-o", shim, "-x", "c", "-", stdin=None, input=SHORTENING_FAILS)
        self.start(*keys, image=self.image,
                   env={"LD_PRELOAD": shim, "BROKEN": self.broken, "BROKEN_IMAGE": self.image})
        self.client, self.disk = self.qmp(), self.server.connect()
        self.write(0, self.rng.randbytes(4 * MIB))
        self.disk.flush()
        if once:
            pathlib.Path(f"{self.broken}.once").touch()
        pathlib.Path(self.broken).touch()

    def check_commit(self, fmt, once):
        self.make(fmt)
        self.begin_broken(once=once)
        self.snapshot()
        self.assertIn("ending its use for writing: Input/output error", self.server.errors)
        self.write(8 * MIB, self.rng.randbytes(16 * MIB))
        self.disk.flush()
        if not once:
            with self.assertRaises(QmpError) as failed:
                self.client.cmd("block-commit", job_id="fold", device="drive0", base=self.top()["backing_file"])
            self.assertIn("ending its use for writing: Input/output error", str(failed.exception))
            os.unlink(self.broken)
        self.commit()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.disk.shutdown()
        self.server.stop()
        check(self.image, fmt)
        self.same(harness.content(self.image, fmt), "the image")

    def test_stream(self):
        """a stream into a middle layer whose use for writing hadn't ended"""
        create(self.path("base"), "qcow2", self.SIZE)
        self.make("qcow2")
        run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", self.path("base"), self.image)
        self.begin_broken(once=True)
        self.snapshot()
        self.write(8 * MIB, self.rng.randbytes(16 * MIB))
        self.client.cmd("block-stream", job_id="job", device=self.names()[1])
        self.ended()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.disk.shutdown()
        self.server.stop()
        check(self.image, "qcow2")
        self.same(harness.content(self.path("over.qcow2"), "qcow2"), "the image")


@parametrised
class Sync(OverlayCase):
    cases_formats = {f"{old} under {new}": (old, new) for old in ("qcow2", "qed", "raw") for new in ("qcow2", "qed")}

    def check_formats(self, old, new):
        """the old image is left as at the server's end: others can read it, and it isn't written any more"""
        self.make(old)
        self.begin()
        self.write(MIB, b"before" * 5000)
        frozen = bytes(self.content)
        over = self.snapshot(fmt=new)
        self.assertEqual((self.top()["node-name"], self.top()["file"], self.top()["backing_file"]),
                         ("over", over, self.image))
        self.assertEqual(self.names()[1], "drive0")
        if old != "raw":
            check(self.image, old)  # without -U: it isn't locked against readers
            self.assertFalse(harness.info(self.image, old).get("dirty-flag"))
        digest = harness.sha256(self.image)
        self.write(MIB + 5, b"behind" * 5000)
        self.disk.zero(100 * KIB, 2 * MIB)
        self.content[2 * MIB:2 * MIB + 100 * KIB] = bytes(100 * KIB)
        self.disk.flush()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.assertEqual(harness.content(self.image, old), frozen)
        self.server.stop()
        self.assertEqual(harness.sha256(self.image), digest)
        check(over, new)
        self.expect_content(over, new)

    def test_a_chain_of_them(self):
        """several overlays, which are then committed, one after the other, into the first image"""
        self.begin()
        points = []
        for number in range(4):
            self.write(number * 64 * KIB, bytes([number + 1]) * 100 * KIB)
            points.append((self.top()["file"], self.top()["drv"], bytes(self.content)))
            self.snapshot(f"over{number}", "qed" if number % 2 else "qcow2")
        self.write(0, b"the end")
        for path, fmt, content in points:
            self.assertEqual(harness.content(path, fmt), content, path)
        for _ in range(4):
            self.client.cmd("block-commit", job_id="fold", device="drive0", top_node=self.names()[0],
                            base_node=self.names()[1])
            self.ready()
            self.complete("fold")
        self.assertEqual(self.names(), ["drive0"])
        self.server.stop()
        check(self.image, "qcow2")
        self.expect_content(self.image, "qcow2")

    def test_existing(self):
        """mode=existing: the new image names the disk's image, or nothing, and then the name is written into it"""
        self.begin()
        for number, backing in enumerate((True, False)):
            path = self.path(f"made{number}.qcow2")
            old = self.top()["file"]
            if backing:
                run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", old, "-F", "qcow2", path, str(self.SIZE))
            else:
                create(path, "qcow2", self.SIZE)
            self.client.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=path, mode="existing")
            self.assertEqual(harness.info(path, "qcow2")["full-backing-filename"], old)
            self.write(number * MIB, b"on it" * 999)
        self.server.stop()
        self.expect_content(path, "qcow2")

    def test_a_node(self):
        """blockdev-snapshot, as libvirt uses it; then block-commit, after which the overlay's node can be removed"""
        self.begin()
        path = self.path("over.qcow2")
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", self.image, "-F", "qcow2", path, str(self.SIZE))
        self.add("over-file", "file", filename=path)
        self.add("over", "qcow2", file="over-file", backing=None)
        self.client.cmd("blockdev-snapshot", node="drive0", overlay="over")
        self.assertEqual(self.names(), ["over", "drive0", "over-file"])
        self.fails("GenericError", self.client, "blockdev-del", "Node over is in use", node_name="over")
        self.write(0, b"in the overlay" * 1000)
        self.client.cmd("block-commit", job_id="job", device="over", top_node="over", base_node="drive0")
        self.ready()
        self.complete()
        self.delete("over")
        self.delete("over-file")
        self.assertEqual(self.names(), ["drive0"])
        self.server.stop()
        self.expect_content(self.image, "qcow2")

    def test_refused(self):
        self.begin()

        def refused(words, **arguments):
            arguments = {"device": "drive0", "snapshot_file": self.path("o.qcow2"), **arguments}
            self.fails("GenericError", self.client, "blockdev-snapshot-sync", words, **arguments)
            self.assertFalse(os.path.exists(self.path("o.qcow2")))
            self.assertEqual(self.names(), ["drive0"])

        refused("is part of the disk", snapshot_file=self.image)
        refused("is part of the disk", snapshot_file=self.image, mode="existing")
        refused("absolute path", snapshot_file="o.qcow2")
        refused("No such file", snapshot_file=self.path("no/folder/o"))
        refused("No such file", mode="existing")
        refused("Duplicate", snapshot_node_name="drive0")
        refused("Invalid node-name", snapshot_node_name="1")
        refused("raw images", format="raw")
        create(self.path("small.qcow2"), "qcow2", MIB)
        refused("smaller", snapshot_file=self.path("small.qcow2"), mode="existing")
        raw = create(self.path("raw.qcow2"), "qcow2", 64 * MIB, f"data_file={self.path('raw.data')},data_file_raw=on")
        refused("raw image of the disk", snapshot_file=raw, mode="existing")
        other = self.image_of("other.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", other, "-F", "qcow2", self.path("else.qcow2"))
        refused("names another backing file", snapshot_file=self.path("else.qcow2"), mode="existing")
        self.fails("DeviceNotFound", self.client, "blockdev-snapshot-sync", "nosuch", device="nosuch", snapshot_file="/x")
        self.fails("GenericError", self.client, "blockdev-snapshot-sync", "'device' is missing", snapshot_file="/x")
        self.add("plain", "raw", file={"driver": "file", "filename": self.image_of("p.raw", "raw")})
        self.fails("GenericError", self.client, "blockdev-snapshot", "does not support backing images", node="drive0",
                   overlay="plain")
        self.delete("plain")
        self.mirror(speed=64 * KIB)
        refused("a job uses it")
        self.client.cmd("job-cancel", id="job")
        self.ended("BLOCK_JOB_CANCELLED")
        self.write(0, b"goes on")

    def test_references(self):
        """an overlay whose backing file references= would refuse at the next start isn't made"""
        folder = self.path("inner")
        os.mkdir(folder)
        self.begin("references=dir")
        self.fails("GenericError", self.client, "blockdev-snapshot-sync", "references=dir", device="drive0",
                   snapshot_file=os.path.join(folder, "o.qcow2"))
        self.assertEqual(os.listdir(folder), [])
        self.snapshot()

    def test_read_only(self):
        self.begin()
        self.server.stop()
        self.start(image=self.image, nbdkit=["-r"])
        self.server.connect()
        self.client = self.qmp()
        self.fails("GenericError", self.client, "blockdev-snapshot-sync", "read-only", device="drive0",
                   snapshot_file=self.path("o.qcow2"))

    def test_all_or_none(self):
        """a transaction that fails makes no overlay and leaves no file"""
        self.begin()
        path = self.path("o.qcow2")
        actions = [{"type": "blockdev-snapshot-sync", "data": {"device": "drive0", "snapshot-file": path,
                                                               "snapshot-node-name": "o"}},
                   {"type": "block-dirty-bitmap-add", "data": {"node": "drive0", "name": "b"}}]
        self.fails("GenericError", self.client, "transaction", "Abort", actions=[*actions, {"type": "abort", "data": {}}])
        self.assertFalse(os.path.exists(path))
        self.assertEqual(self.names(), ["drive0"])
        self.assertNotIn("dirty-bitmaps", self.top())
        self.write(0, b"goes on")
        self.assertEqual(self.client.cmd("transaction", actions=actions[:1]), {})
        self.assertEqual(self.names(), ["o", "drive0"])

    def test_bitmaps_stay_with_the_old_image(self):
        self.begin()
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b", granularity=64 * KIB)
        self.write(0, b"x")
        self.snapshot()
        self.write(MIB, b"y" * 64 * KIB)
        over, old = self.client.cmd("query-named-block-nodes", flat=True)
        self.assertNotIn("dirty-bitmaps", over)
        self.assertEqual((old["node-name"], old["dirty-bitmaps"][0]["count"]), ("drive0", 64 * KIB))


class UnderWriters(OverlayCase):
    TIMEOUT = 1000

    def test_rounds(self):
        """overlays are made and committed while clients write: each frozen point is the disk at one moment"""
        for number in range(0, ROUNDS, 3):
            with self.subTest(round=number):
                self.some_rounds(number)

    def some_rounds(self, first):
        rng = random.Random(f"{SEED} {first}")
        self.make(rng.choice(["qcow2", "qed", "raw"]))
        self.begin()
        writers = Writers(self.server, self.content, f"{SEED} {first}")
        points = []
        try:
            for number in range(3):
                writers.some(40)
                old = self.top()
                writers.mark()
                over = self.snapshot(f"o{first}x{number}", rng.choice(["qcow2", "qed"]))
                writers.some(40)
                frozen = harness.content(old["file"], old["drv"])
                self.assertTrue(writers.is_a_moment(frozen), f"{SEED}: not a moment of the disk")
                points.append((over, old["file"]))
                if rng.random() < 0.7:
                    self.commit()
                    self.assertEqual(self.top()["file"], old["file"])
                    os.unlink(over)
        finally:
            self.content = writers.stop()
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        top = self.top()
        self.server.stop()
        self.expect_content(top["file"], top["drv"])
        if top["drv"] != "raw":
            check(top["file"], top["drv"])


class Killed(OverlayCase):
    def test_at_any_moment(self):
        """kill -9 during a snapshot: everything that was flushed is there, in the overlay if it was made"""
        for number in range(ROUNDS):
            with self.subTest(round=number):
                self.one(random.Random(f"{SEED} {number}"), number)

    def one(self, rng, number):
        self.make(rng.choice(["qcow2", "qed"]))
        self.begin()
        writers = Writers(self.server, self.content, f"{SEED} k{number}")
        writers.some(30)
        path = self.path(f"k{number}.qcow2")
        self.client.send({"execute": "blockdev-snapshot-sync",
                          "arguments": {"device": "drive0", "snapshot-file": path}})
        time.sleep(rng.random() * 0.05)
        self.server.kill()
        for writer in writers.all:
            writer.over = True
            writer.join(60)
        image, fmt = self.image, self.fmt
        if os.path.exists(path) and run("qemu-img", "info", "-f", "qcow2", path, check=False).returncode == 0:
            image, fmt = path, "qcow2"
        check_ok = run(harness.QIMG, "check", "-q", "-r", "all", "-f", fmt, image, check=False).returncode
        self.assertIn(check_ok, (0, 3))
        self.assertTrue(writers.crashed(harness.content(image, fmt)), f"{SEED} {number}: {image}")


class ManyDisks(NodeCase):
    """a server with several disks"""

    def serve_two(self, *keys):
        self.folder = self.path("images")
        os.mkdir(self.folder)
        for name in ("a", "b"):
            create(os.path.join(self.folder, name), "qcow2", MIB)
        self.control = self.path("control")
        self.server = self.serve(None, f"dir={self.folder}", f"control={self.control}", *keys)
        self.client = self.qmp()

    def over(self, name):
        return {"type": "blockdev-snapshot-sync",
                "data": {"device": name, "snapshot-file": self.path(f"over-{name}"), "snapshot-node-name": f"over-{name}"}}

    def test_one_point_of_two_disks(self):
        """each number is written to one disk and then to the other: no frozen point has it only on the second"""
        self.serve_two()
        first, second = (self.server.connect(name) for name in ("a", "b"))
        over, errors = threading.Event(), []

        def write():
            try:
                for number in range(1, 100000):
                    for handle in (first, second):
                        handle.pwrite(number.to_bytes(8, "big"), 0)
                    if over.is_set():
                        return
            except Exception as error:  # pylint: disable=broad-except
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.05)
        self.client.cmd("transaction", actions=[self.over("b"), self.over("a")])
        over.set()
        thread.join()
        self.assertEqual(errors, [])
        a, b = (int.from_bytes(harness.content(os.path.join(self.folder, name), "qcow2")[:8], "big") for name in "ab")
        self.assertIn(a - b, (0, 1), (a, b))
        # If one overlay can't be made, none is.
        actions = [self.over("a"), {"type": "blockdev-snapshot-sync", "data": {"device": "b", "snapshot-file": "/no/where"}}]
        actions[0]["data"].update({"snapshot-file": self.path("third"), "snapshot-node-name": "third"})
        self.fails("GenericError", self.client, "transaction", "No such file", actions=actions)
        self.assertFalse(os.path.exists(self.path("third")))

    def test_it_stays_open(self):
        """after the last client has left, the export's name still leads to the overlay, not to the file of that name"""
        self.serve_two("linger=0")
        disk = self.server.connect("a")
        disk.pwrite(b"below", 0)
        self.client.cmd("transaction", actions=[self.over("a")])
        disk.pwrite(b"above", 512)
        self.server.disconnect()
        time.sleep(0.3)
        disk = self.server.connect("a")
        self.assertEqual(bytes(disk.pread(517, 0))[::512][:1] + bytes(disk.pread(5, 512)), b"babove")
        self.server.stop()
        self.assertEqual(harness.content(self.path("over-a"), "qcow2")[512:517], b"above")
