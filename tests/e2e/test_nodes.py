# SPDX-License-Identifier: BSD-3-Clause
"""Nodes are added, used by jobs under their names, and removed.  M-51"""

import os
import pathlib

import harness
from harness import KIB, MIB, check, create, run
from test_mirror import MirrorCase


class NodeCase(MirrorCase):
    def add(self, name, driver, **options):
        self.assertEqual(self.client.cmd("blockdev-add", driver=driver, node_name=name, **options), {})

    def delete(self, name):
        self.assertEqual(self.client.cmd("blockdev-del", node_name=name), {})

    def refused(self, words, **arguments):
        return self.fails("GenericError", self.client, "blockdev-add", words, **arguments)

    def image_of(self, name, fmt="qcow2", size=None):
        return create(self.path(name), fmt, size or self.SIZE)

    def names(self):
        return [node["node-name"] for node in self.client.cmd("query-named-block-nodes", flat=True)]

    def complete(self, job="job"):
        self.client.cmd("job-complete", id=job)
        self.ended()


class Adding(NodeCase):
    def test_every_driver(self):
        """a node of every driver, over a file node that is given by its name or in place"""
        self.begin()
        target = self.memory()
        for fmt in ("qcow2", "qed"):
            path = self.image_of(f"one.{fmt}", fmt)
            self.add(f"{fmt}-file", "file", filename=path, aio="native", cache={"direct": True, "no-flush": False})
            self.add(fmt, fmt, file=f"{fmt}-file", discard="unmap", backing=None)
            self.add(f"{fmt}-2", fmt, file={"driver": "file", "filename": path}, read_only=True)
        path = self.image_of("raw", "raw")
        self.add("raw", "raw", file={"driver": "file", "filename": path, "node-name": "raw-file", "locking": "off"})
        self.add("remote", "nbd", server={"type": "unix", "path": target.socket}, export="")
        self.add("raw-remote", "raw", file="remote")
        self.assertEqual(set(self.names()), {"drive0", "qcow2-file", "qcow2", "qcow2-2", "qed-file", "qed", "qed-2",
                                             "raw", "remote", "raw-remote"})
        for name in ("qcow2", "qcow2-file", "qcow2-2", "qed-2", "qed", "qed-file", "raw", "raw-remote", "remote"):
            self.delete(name)
        self.assertEqual(self.names(), ["drive0"])

    def test_what_is_told_of_one(self):
        self.begin()
        path = self.image_of("x.qcow2")
        self.add("x", "qcow2", file={"driver": "file", "filename": path})
        node = self.client.cmd("query-named-block-nodes")[1]
        self.assertEqual((node["node-name"], node["drv"], node["file"], node["ro"]), ("x", "qcow2", path, False))
        self.assertEqual((node["image"]["virtual-size"], node["image"]["format"]), (self.SIZE, "qcow2"))
        self.assertEqual(node["backing_file_depth"], 0)
        for depth in 1, 2:
            path = create(self.path(f"over{depth}"), "qcow2", None, backing=path, backing_fmt="qcow2")
            self.add(f"over{depth}", "qcow2", file={"driver": "file", "filename": path})
            self.assertEqual(self.client.cmd("query-named-block-nodes")[-1]["backing_file_depth"], depth)

    def test_refused(self):
        self.begin()
        path = self.image_of("x.qcow2")
        file = {"driver": "file", "filename": path}
        self.refused("'node-name' must be specified", driver="qcow2", file=file)
        self.refused("Invalid node-name: '9x'", driver="qcow2", node_name="9x", file=file)
        self.refused("Invalid node-name", driver="qcow2", node_name="x" * 32, file=file)
        self.refused("Duplicate nodes with node-name='drive0'", driver="qcow2", node_name="drive0", file=file)
        self.refused("'driver' does not accept value 'vmdk'", driver="vmdk", node_name="x", file=file)
        self.refused("'filename' is unexpected; qcow2 takes", driver="qcow2", node_name="x", filename=path)
        self.refused("'file' is missing", driver="qcow2", node_name="x")
        self.refused("node-name='nosuch'", driver="qcow2", node_name="x", file="nosuch")
        self.refused("Invalid parameter 'file'", driver="qcow2", node_name="x", file=1)
        self.refused("absolute path", driver="file", node_name="x", filename="x.qcow2")
        self.refused("No such file", driver="file", node_name="x", filename=self.path("none"))
        self.refused("not a qed image", driver="qed", node_name="x", file=file)
        self.refused("'server.host' is unexpected; unix takes type, path", driver="nbd", node_name="x", server={"type": "unix", "host": "h"})
        self.refused("type", driver="nbd", node_name="x", server={"type": "vsock"})
        self.refused("", driver="nbd", node_name="x", server={"type": "inet", "host": "localhost", "port": "99999"})
        for port in ("", "108091", "1/ab"):  # none of them is taken for another port
            self.refused("port", driver="nbd", node_name="x", server={"type": "inet", "host": "localhost", "port": port})
        self.refused("format over a format", driver="raw", node_name="x", file={"driver": "qcow2", "file": file})
        old = create(self.path("old"), "qcow2", self.SIZE, "compat=0.10")
        self.refused("old: lazy-refcounts: only .* version 3", driver="qcow2", node_name="x", lazy_refcounts=True,
                     file={"driver": "file", "filename": old})
        nested = file
        for _ in range(30):
            nested = {"driver": "qcow2", "file": file, "backing": nested}
        self.refused("nested too deeply", driver="qcow2", node_name="x", file=file, backing=nested)
        # The failed commands have left the name free.
        self.add("x", "qcow2", file=file)
        self.refused("Duplicate", driver="qcow2", node_name="x", file=file)
        self.fails("GenericError", self.client, "blockdev-del", "Failed to find node with node-name='y'", node_name="y")
        self.fails("GenericError", self.client, "blockdev-del", "Node drive0 is in use", node_name="drive0")

    def test_what_is_in_use_stays(self):
        self.begin()
        path = self.image_of("x.qcow2")
        self.add("x-file", "file", filename=path)
        self.add("x", "qcow2", file="x-file")
        self.fails("GenericError", self.client, "blockdev-del", "Node x-file is in use", node_name="x-file")
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="x", sync="full")
        self.ready()
        self.fails("GenericError", self.client, "blockdev-del", "Node x is in use", node_name="x")
        self.fails("GenericError", self.client, "blockdev-mirror", "in use", job_id="two", device="drive0", target="x",
                   sync="full")
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.delete("x")
        self.delete("x-file")

    def test_what_is_part_of_another_is_no_target(self):
        """a node below another one is no target, and can't be removed before that one"""
        self.begin()
        self.add("x-file", "file", filename=self.image_of("x.qcow2"))
        self.add("base-file", "file", filename=self.image_of("base.qcow2"))
        self.add("base", "qcow2", file="base-file", backing=None)
        self.add("x", "qcow2", file="x-file", backing="base")
        for name in ("x-file", "base", "base-file"):
            self.fails("GenericError", self.client, "blockdev-mirror", f"Node '{name}' is busy", job_id="job",
                       device="drive0", target=name, sync="full")
            self.fails("GenericError", self.client, "blockdev-backup", f"Node '{name}' is busy", job_id="job",
                       device="drive0", target=name, sync="full")
            self.fails("GenericError", self.client, "blockdev-snapshot", "busy|not support|backing image", node="drive0",
                       overlay=name)
            self.fails("GenericError", self.client, "block-export-add", f"Node '{name}' is busy", type="nbd", id="e",
                       node_name=name, writable=True)
            self.fails("GenericError", self.client, "blockdev-del", f"Node {name} is in use", node_name=name)
        self.delete("x")
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="base", sync="full")
        self.ready()
        self.fails("GenericError", self.client, "blockdev-del", "Node base is in use", node_name="base")
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        for name in ("base", "base-file", "x-file"):
            self.delete(name)

    def test_a_file_that_is_open_is_in_no_target(self):
        self.begin()
        target = self.memory()
        self.add("below", "nbd", server={"type": "unix", "path": target.socket})
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="below", sync="full")
        self.ready()
        self.add("x", "raw", file="below")
        self.fails("GenericError", self.client, "blockdev-mirror", "Node 'below' is busy", job_id="two",
                   device="drive0", target="x", sync="full")
        self.client.cmd("block-job-cancel", device="job")
        self.ended()

    def test_what_is_said_of_the_file(self):
        """cache and detect-zeroes of the file also hold for the image"""
        self.begin()
        file = {"driver": "file", "filename": self.image_of("x.qcow2")}
        cache = {}
        for name, own, below in (("none", {}, {"direct": True}), ("volatile", {}, {"no-flush": True}),
                                 ("writeback", {}, {"direct": False}), ("none", {"direct": True}, {"direct": False})):
            self.add(f"x-{len(cache)}", "qcow2", file={**file, "cache": below}, cache=own)
            cache[f"x-{len(cache)}"] = name
        nodes = {node["node-name"]: node for node in self.client.cmd("query-named-block-nodes")}
        self.assertEqual({name: nodes[name]["cache"]["mode"] for name in cache}, cache)
        for own, below in (({"direct": True}, {"no-flush": True}), ({"direct": True, "no-flush": True}, {})):
            self.refused("no-flush doesn't go with direct", driver="qcow2", node_name="x", cache=own,
                         file={**file, "cache": below})
        self.add("x", "qcow2", file={**file, "detect-zeroes": "unmap"})
        self.assertEqual(self.client.cmd("query-named-block-nodes")[-1]["detect_zeroes"], "unmap")

    def test_discard_and_locking_of_the_file(self):
        self.begin()
        for below, discards in (({}, True), ({"discard": "unmap"}, True), ({"discard": "ignore"}, False)):
            path = self.image_of("x.raw", "raw", MIB)
            self.add("x", "raw", discard="unmap", file={"driver": "file", "filename": path, **below})
            self.client.cmd("block-export-add", type="nbd", id="e", node_name="x", writable=True)
            disk = self.server.connect("x")
            disk.pwrite(b"x" * MIB, 0)
            disk.trim(MIB, 0)
            self.assertEqual(disk.pread(MIB, 0) == bytes(MIB), discards, below)
            self.server.disconnect()
            self.client.cmd("block-export-del", id="e", mode="hard")
            self.client.event("BLOCK_EXPORT_DELETED")
            self.delete("x")
        for locking, text in (("off", ""), ("on", "lock")):
            path = self.image_of(f"{locking}.raw", "raw", MIB)
            self.add(locking, "raw", file={"driver": "file", "filename": path, "locking": locking})
            self.client.cmd("block-export-add", type="nbd", id=locking, node_name=locking, writable=True)
            self.assertIn(text, run("qemu-io", "-f", "raw", "-c", "write 0 512", path, check=False).stderr)
            self.assertEqual(run("qemu-io", "-f", "raw", "-c", "write 0 512", path, check=False).returncode == 0,
                             locking == "off")

    def test_references(self):
        """references= also restricts the names in images that are added (M-51, R-10)"""
        folder = self.path("elsewhere")
        os.mkdir(folder)
        base = self.image_of("base.qcow2")
        overlay = os.path.join(folder, "over.qcow2")
        run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
        self.begin("references=dir")
        self.refused("references=dir", driver="qcow2", node_name="x", file={"driver": "file", "filename": overlay})
        self.add("x", "qcow2", file={"driver": "file", "filename": overlay}, backing=None)
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "rbd:pool/disk", "-F", "raw", overlay, str(self.SIZE))
        for policy in ("dir", "none"):
            self.server.stop()
            self.begin(f"references={policy}")
            self.refused(f"names rbd:pool/disk.*references={policy}", driver="qcow2", node_name="x",
                         file={"driver": "file", "filename": overlay})


class Mirrors(NodeCase):
    def test_a_mirror_to_a_node(self):
        """after the pivot the target node is the disk, under its own name, which no other node can have"""
        self.begin()
        path = self.image_of("x.qcow2")
        self.add("x-file", "file", filename=path)
        self.add("x", "qcow2", file="x-file", backing=None)
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="x", sync="full", replaces="drive0",
                        filter_node_name="filter", copy_mode="write-blocking", auto_finalize=True)
        self.ready()
        self.complete()
        inserted = self.client.cmd("query-block")[0]["inserted"]
        self.assertEqual((inserted["node-name"], inserted["file"]), ("x", path))
        self.assertEqual(self.client.cmd("query-block-exports"),
                         [{"id": "drive0", "node-name": "x", "type": "nbd", "shutting-down": False, "name": ""}])
        self.write(0, b"on the target")
        self.fails("GenericError", self.client, "blockdev-del", "Node x is in use", node_name="x")
        # A second mirror, whose device is given by the node's name.
        self.add("back", "raw", file={"driver": "file", "filename": self.image_of("back.raw", "raw")})
        self.client.cmd("blockdev-mirror", job_id="job", device="x", target="back", sync="full", target_is_zero=True)
        self.ready()
        self.complete()
        self.delete("x")
        self.delete("x-file")
        self.server.stop()
        check(path, "qcow2")
        self.expect_content(path, "qcow2")
        self.expect_content(self.path("back.raw"), "raw")

    def test_over_nbd(self):
        self.begin()
        target = self.memory()
        self.add("x", "nbd", server={"type": "unix", "path": target.socket})
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="x", sync="full")
        self.ready()
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.same(target.content(), "the target")

    def test_over_a_layer_that_is_an_export(self):
        """a layer that is an NBD export can be referenced by its node's name, like a file"""
        raw = pathlib.Path(self.path("exported"))
        raw.write_bytes(self.rng.randbytes(self.SIZE))
        peer = self.peer("file", raw)
        self.content = bytearray(raw.read_bytes())
        self.image = create(self.path("over.qcow2"), "qcow2", None, backing=peer.uri, backing_fmt="raw")
        self.begin()
        self.write(5 * KIB, b"in the top")
        layer = self.client.cmd("query-named-block-nodes", flat=True)[1]
        self.assertEqual((layer["file"], layer["drv"]), (peer.uri, "raw"))
        self.add("x", "qcow2", file={"driver": "file", "filename": self.image_of("x.qcow2")}, backing=layer["node-name"])
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="x", sync="top")
        self.ready()
        self.write(900 * KIB, b"meanwhile")
        self.complete()
        self.same(self.disk.pread(self.SIZE, 0), "the disk")
        self.server.stop()

    def test_target_is_zero(self):
        """with target-is-zero no zeroes are written: a target that wasn't zero keeps its content there"""
        self.begin()
        path = self.image_of("x.raw", "raw")
        with open(path, "r+b") as file:
            file.write(b"\xff" * self.SIZE)
        self.add("x", "raw", file={"driver": "file", "filename": path})
        self.fails("GenericError", self.client, "blockdev-mirror", "goes with sync=full", job_id="job", device="drive0",
                   target="x", sync="top", target_is_zero=True)
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="x", sync="full", target_is_zero=True)
        self.ready()
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.assertIn(b"\xff" * 64 * KIB, harness.content(path, "raw"))


class Commits(NodeCase):
    def chain(self):
        """a chain of base, middle and the disk"""
        self.base = self.image
        self.middle = self.path("middle.qcow2")
        run("qemu-img", "create", "-f", "qcow2", "-b", self.base, "-F", "qcow2", self.middle)
        self.image = self.path("top.qcow2")
        run("qemu-img", "create", "-f", "qcow2", "-b", self.middle, "-F", "qcow2", self.image)
        self.begin()
        self.write(MIB, b"in the top" * 1000)

    def test_by_nodes(self):
        """an intermediate commit by node names, and the backing name that is written into the overlay"""
        self.chain()
        self.assertEqual(self.names(), ["drive0", "drive0#1", "drive0#2"])
        self.client.cmd("block-commit", job_id="job", device="drive0", top_node="drive0#1", base_node="drive0#2",
                        backing_file="disk.qcow2", filter_node_name="f")
        self.ended()
        self.assertEqual(self.names(), ["drive0", "drive0#1"])
        self.server.stop()
        info = harness.info(self.image, "qcow2")
        self.assertEqual(info["backing-filename"], "disk.qcow2")
        self.expect_content(self.image, "qcow2")

    def test_active(self):
        self.chain()
        self.fails("GenericError", self.client, "block-commit", "'backing-file' specified, but 'top' is the active layer",
                   job_id="job", device="drive0", base_node="drive0#2", backing_file="x")
        self.fails("GenericError", self.client, "block-commit", "mutually exclusive", job_id="job", device="drive0",
                   base_node="drive0#2", base=self.base)
        self.fails("GenericError", self.client, "block-commit", "node-name='nosuch'", job_id="job", device="drive0",
                   base_node="nosuch")
        self.client.cmd("block-commit", job_id="job", device="drive0", top_node="drive0", base_node="drive0#2")
        self.ready()
        self.complete()
        self.server.stop()
        check(self.base, "qcow2")
        self.expect_content(self.base, "qcow2")
