# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-create: makes files and images on request, but never over something that is in use.  M-61"""

import fcntl
import json
import os
import pathlib
import resource
import struct

import harness
from harness import KIB, MIB, check, create
from test_mirror import MirrorCase

STATES = ["created", "running", "waiting", "pending", "concluded"]
FAILED = ["created", "running", "aborting", "concluded"]


class CreateCase(MirrorCase):
    def setUp(self):
        super().setUp()
        self.begin()

    def start_creation(self, job="x", **options):
        options = {key.replace("_", "-"): value for key, value in options.items()}
        self.assertEqual(self.client.cmd("blockdev-create", job_id=job, options=options), {})

    def states(self, job="x"):
        """the states that the job passes through, up to "concluded" """
        states = []
        while not states or states[-1] != "concluded":
            event = self.client.receive() if not self.client.events else self.client.events.pop(0)
            self.assertEqual((event["event"], event["data"]["id"]), ("JOB_STATUS_CHANGE", job))
            states.append(event["data"]["status"])
        return states

    def dismiss(self, job="x"):
        self.client.cmd("job-dismiss", id=job)
        self.client.event("JOB_STATUS_CHANGE", id=job, status="null")
        self.assertEqual(self.client.cmd("query-jobs"), [])

    def make(self, *args, **options):
        if args:
            return super().make(*args)
        self.start_creation(**options)
        self.assertEqual(self.states(), STATES)
        self.assertEqual(self.client.cmd("query-jobs"), [{
            "id": "x", "type": "create", "status": "concluded", "current-progress": 1, "total-progress": 1}])
        return self.dismiss()

    def fails_later(self, words, **options):
        """the command starts a job, and the job ends with an error"""
        self.start_creation(**options)
        self.assertEqual(self.states(), FAILED)
        job, = self.client.cmd("query-jobs")
        self.assertEqual((job["id"], job["type"], job["status"]), ("x", "create", "concluded"))
        self.assertRegex(job["error"], words)
        self.dismiss()

    def refused(self, words, **options):
        """the command itself fails, and there is no job"""
        options = {key.replace("_", "-"): value for key, value in options.items()}
        self.fails("GenericError", self.client, "blockdev-create", words, job_id="x", options=options)
        self.assertEqual(self.client.cmd("query-jobs"), [])

    def file(self, name, size=0):
        """makes a file, and a node of the same name over it"""
        path = self.path(name)
        self.make(driver="file", filename=path, size=size)
        self.client.cmd("blockdev-add", driver="file", node_name=name, filename=path)
        return path

    def size(self, path):
        return os.stat(path).st_size


class Making(CreateCase):
    def test_a_file(self):
        path = self.path("file")
        self.make(driver="file", filename=path, size=0)
        self.assertEqual(self.size(path), 0)
        self.make(driver="file", filename=path, size=12345, preallocation="off", nocow=False)
        self.assertEqual(self.size(path), 12345)
        for how in ("falloc", "full"):
            self.make(driver="file", filename=path, size=MIB, preallocation=how, extent_size_hint=MIB)
            self.assertEqual(self.size(path), MIB)
            self.assertGreaterEqual(os.stat(path).st_blocks * 512, MIB)
        self.assertFalse(any(pathlib.Path(path).read_bytes()))

    def test_qcow2(self):
        """over a file that is given by a node's name, or described in the command; judged by qemu-img"""
        path = self.file("q")
        self.make(driver="qcow2", file="q", size=self.SIZE)
        info = harness.info(path, "qcow2")
        self.assertEqual((info["virtual-size"], info["cluster-size"], info["format-specific"]["data"]["compat"]),
                         (self.SIZE, 64 * KIB, "1.1"))
        check(path, "qcow2")
        self.make(driver="qcow2", file={"driver": "file", "filename": path}, size=2 * MIB, version="v3",
                  backing_file=self.image, backing_fmt="qcow2", cluster_size=128 * KIB, lazy_refcounts=True,
                  refcount_bits=1, extended_l2=True, compression_type="zstd", preallocation="off")
        info = harness.info(path, "qcow2")
        data = info["format-specific"]["data"]
        self.assertEqual((info["virtual-size"], info["cluster-size"]), (2 * MIB, 128 * KIB))
        self.assertEqual((info["backing-filename"], info["backing-filename-format"]), (self.image, "qcow2"))
        self.assertEqual((data["lazy-refcounts"], data["refcount-bits"], data["extended-l2"], data["compression-type"]),
                         (True, 1, True, "zstd"))
        self.make(driver="qcow2", file="q", size=MIB, version="v2")
        self.assertEqual(harness.info(path, "qcow2")["format-specific"]["data"]["compat"], "0.10")
        for how in ("metadata", "falloc", "full"):
            self.make(driver="qcow2", file="q", size=MIB, preallocation=how)
            check(path, "qcow2")
            self.assertGreaterEqual(self.size(path), MIB)

    def test_qcow2_with_a_data_file(self):
        path, data = self.file("q"), self.file("data")
        self.make(driver="qcow2", file="q", data_file="data", data_file_raw=True, size=MIB)
        info = harness.info(path, "qcow2")["format-specific"]["data"]
        self.assertEqual((info["data-file"], info["data-file-raw"], self.size(data)), (data, True, MIB))
        self.refused("busy: node is part of another", driver="qcow2", file="q", data_file="q", size=MIB)
        self.make(driver="qcow2", file="q", size=MIB)  # the failed command has released the node

    def test_qed(self):
        path = self.file("e")
        self.make(driver="qed", file="e", size=self.SIZE, cluster_size=4 * KIB, table_size=2, backing_file=self.image,
                  backing_fmt="qcow2")
        info = harness.info(path, "qed")
        self.assertEqual((info["virtual-size"], info["cluster-size"], info["backing-filename"]),
                         (self.SIZE, 4 * KIB, self.image))
        self.server.stop()
        check(path, "qed")
        self.expect_content(path, "qed")

    def test_then_a_snapshot(self):
        """a snapshot onto the image that was made"""
        path = self.file("top-file")
        self.make(driver="qcow2", file="top-file", size=self.SIZE, backing_file=self.image, backing_fmt="qcow2")
        self.client.cmd("blockdev-add", driver="qcow2", node_name="top", file="top-file", backing=None)
        self.client.cmd("blockdev-snapshot", node="drive0", overlay="top")
        self.write(MIB, b"on top" * 1000)
        # Now the image is in use: neither its node nor its file can be overwritten.
        self.refused("Node 'top-file' is busy", driver="qcow2", file="top-file", size=MIB)
        self.fails_later("is part of the disk 'drive0'", driver="file", filename=path, size=0)
        self.server.stop()
        check(path, "qcow2")
        self.expect_content(path, "qcow2")


class Events(CreateCase):
    def test_no_block_job(self):
        """the job is listed by query-jobs only, and commands for block jobs don't know it"""
        self.start_creation(driver="file", filename=self.path("file"), size=0)
        self.assertEqual(self.states(), STATES)
        self.assertEqual(self.client.cmd("query-block-jobs"), [])
        for verb in ("cancel", "pause", "resume", "complete"):
            self.fails("DeviceNotActive", self.client, f"block-job-{verb}", "Block job 'x' not found", device="x")
        for verb in ("finalize", "dismiss"):
            self.fails("DeviceNotActive", self.client, f"block-job-{verb}", "Block job 'x' not found", id="x")
        self.fails("DeviceNotActive", self.client, "block-job-set-speed", "not found", device="x", speed=1)
        self.fails("DeviceNotActive", self.client, "block-job-change", "not found", id="x", type="mirror",
                   copy_mode="background")
        self.fails("GenericError", self.client, "job-cancel", "in state 'concluded' cannot accept", id="x")
        self.fails("GenericError", self.client, "blockdev-create", "job-id 'x': is in use", job_id="x",
                   options={"driver": "file", "filename": self.path("other"), "size": 0})
        self.assertFalse(os.path.exists(self.path("other")))
        self.dismiss()

    def test_a_node_is_free_before_the_job_is_dismissed(self):
        self.file("q")
        self.start_creation(driver="qcow2", file="q", size=MIB)
        self.states()
        self.client.cmd("blockdev-add", driver="qcow2", node_name="image", file="q")
        self.client.cmd("blockdev-del", node_name="image")
        self.client.cmd("blockdev-del", node_name="q")
        self.dismiss()

    def test_a_job_beside_it(self):
        """a job of the disk doesn't prevent it"""
        self.mirror()
        self.ready()
        self.client.events.clear()
        self.start_creation(driver="file", filename=self.path("file"), size=0)
        self.client.event("JOB_STATUS_CHANGE", id="x", status="concluded")
        self.assertEqual([(j["id"], j["type"]) for j in self.client.cmd("query-jobs")],
                         [("job", "mirror"), ("x", "create")])
        self.client.cmd("job-dismiss", id="x")
        self.pivot()

    def test_cancelled(self):
        """a large file that is cancelled is removed, and the server's end doesn't wait until it is complete"""
        path = self.path("large")
        for end in (lambda: self.client.cmd("job-cancel", id="x"), self.server.stop):
            self.start_creation(driver="file", filename=path, size=1 << 40, preallocation="full")
            harness.wait_until(lambda: os.path.exists(path) and os.stat(path).st_blocks > 0, 20, "its beginning")
            end()
            if end != self.server.stop:
                self.assertEqual(self.states(), FAILED)
                self.dismiss()
            self.assertFalse(os.path.exists(path))


class Refused(CreateCase):
    def test_values(self):
        path = self.path("new")
        self.refused("absolute path", driver="file", filename="new", size=0)
        self.refused("driver' does not accept value 'vmdk'", driver="vmdk", size=0)
        self.refused("size' is missing", driver="file", filename=path)
        self.refused("does not accept value 'metadata'", driver="file", filename=path, size=0, preallocation="metadata")
        self.refused("Extent size hint is too large", driver="file", filename=path, size=0, extent_size_hint=1 << 32)
        self.refused("file' is unexpected", driver="file", filename=path, size=0, file="x")
        self.assertFalse(os.path.exists(path))
        self.file("q")
        fmt = {"driver": "qcow2", "file": "q"}
        self.refused("Image size must be a multiple of 512 bytes", **fmt, size=513)
        self.refused("size", **fmt, size=(1 << 63) - 512)
        self.refused("size', expected", **fmt, size=-512)
        self.refused("Backing format cannot be used without backing file", **fmt, size=MIB, backing_fmt="qcow2")
        self.refused("preallocation", **fmt, size=MIB, backing_file=self.image, preallocation="full")
        self.refused("cluster_size '12345'", **fmt, size=MIB, cluster_size=12345)
        self.refused("refcount_bits '7'", **fmt, size=MIB, refcount_bits=7)
        self.refused("does not accept value 'v1'", **fmt, size=MIB, version="v1")
        self.refused("version 3", **fmt, size=MIB, version="v2", lazy_refcounts=True)
        self.refused("version 3", **fmt, size=MIB, version="v2", refcount_bits=1)
        self.refused("does not accept value 'lzo'", **fmt, size=MIB, compression_type="lzo")
        self.refused("needs a data_file", **fmt, size=MIB, data_file_raw=True)
        self.refused("encrypt' is unexpected", **fmt, size=MIB, encrypt={"format": "luks"})
        self.refused("table_size 3", driver="qed", file="q", size=MIB, table_size=3)
        self.assertEqual(self.size(self.path("q")), 0)
        self.fails("GenericError", self.client, "blockdev-create", "not a well-formed id", job_id="9",
                   options={"driver": "file", "filename": path, "size": 0})
        self.assertFalse(os.path.exists(path))
        self.make(**fmt, size=MIB)  # none of the failed commands still uses the node

    def test_nodes(self):
        self.file("q")
        self.refused("Cannot find device='' nor node-name='nosuch'", driver="qcow2", file="nosuch", size=MIB)
        self.refused("Node 'drive0' is busy: node is in use", driver="qcow2", file="drive0", size=MIB)
        self.client.cmd("blockdev-add", driver="file", node_name="fixed", filename=self.path("q"), read_only=True)
        self.refused("Block node is read-only", driver="qcow2", file="fixed", size=MIB)
        self.client.cmd("blockdev-add", driver="raw", node_name="raw", file="q")
        self.refused("a format over a format", driver="qcow2", file="raw", size=MIB)
        self.refused("Node 'q' is busy: node is part of another", driver="qcow2", file="q", size=MIB)
        target = self.memory()
        self.client.cmd("blockdev-add", driver="nbd", node_name="remote", export="",
                        server={"type": "unix", "path": target.socket})
        self.make(driver="qcow2", file="remote", size=MIB)
        self.assertEqual(json.loads(harness.run("qemu-img", "info", "--output=json", target.uri).stdout)["virtual-size"], MIB)
        os.unlink(self.path("q"))
        self.client.cmd("blockdev-del", node_name="raw")
        self.fails_later("No such file", driver="qcow2", file="q", size=MIB)
        self.assertFalse(os.path.exists(self.path("q")))

    def test_what_is_in_use(self):
        """a file isn't changed when it is served, with or without a lock, or locked by another program"""
        before = pathlib.Path(self.image).read_bytes()
        other = create(self.path("other.raw"), "raw", MIB)
        for options in ({"driver": "file", "filename": self.image}, {"driver": "qcow2", "file": {
                "driver": "file", "filename": self.image}}):
            self.fails_later("is part of the disk 'drive0'", **options, size=0)
        link = self.path("link")
        os.symlink(self.image, link)
        self.fails_later("is part of the disk 'drive0'", driver="file", filename=link, size=0)
        with open(other, "r+b") as file:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0))
            self.fails_later('lock: Failed to get "write" lock. Is another process using the image', driver="file",
                             filename=other, size=0)
            self.assertEqual(self.size(other), MIB)
        self.make(driver="file", filename=other, size=0)
        self.assertEqual(self.size(other), 0)
        self.server.stop()
        self.assertEqual(pathlib.Path(self.image).read_bytes(), before)
        self.expect_content(self.image, "qcow2")
        self.begin("lock=off")
        self.fails_later("is part of the disk 'drive0'", driver="file", filename=self.image, size=0)
        self.server.stop()
        self.expect_content(self.image, "qcow2")

    def test_no_half_file(self):
        """after a failure a new file is removed; a node's file, which existed before, is empty"""
        path = self.file("q")
        new = self.path("new")
        resource.prlimit(self.server.process.pid, resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))
        self.fails_later("File too large", driver="file", filename=new, size=8 * MIB)
        self.assertFalse(os.path.exists(new))
        self.fails_later("File too large", driver="qcow2", file="q", size=8 * MIB, preallocation="metadata")
        self.assertEqual(self.size(path), 0)
        self.fails_later("No such file", driver="file", filename=self.path("none/file"), size=0)
        self.fails_later("is a directory", driver="file", filename=self.path("."), size=0)


if __name__ == "__main__":
    harness.main()
