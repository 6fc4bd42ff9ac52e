# SPDX-License-Identifier: BSD-3-Clause
"""The commands of libvirt and Proxmox, in their order and spelling, and what they read from the replies.  M-56, M-61

libvirt's commands are those of version 11.3 (qemu_block.c, qemu_blockjob.c, qemu_backup.c, qemu_snapshot.c), with
existing files (--reuse-external) or with files that it makes; Proxmox's those of qemu-server 9 (BlockJob.pm,
Blockdev.pm)."""

import json
import os
import socket
import subprocess

import nbd

import harness
from harness import KIB, MIB, PLUGIN, check, create, plugin_env, run, wait_until
from qmp import QmpError
from test_bitmap_exports import dirty_ranges
from test_mirror import MirrorCase


class Transcript(MirrorCase):
    """A tool's connection: JSON on one line, with ids like the tool's."""

    TOOL = "libvirt"

    def start_tool(self, name, *keys):
        self.control = self.path("control")
        self.server = self.serve(self.image, f"control={self.control}", f"node-name={name}", *keys)
        self.client = self.qmp()
        self.disk = self.server.connect()
        self.sent = 0

    def say(self, command, _refused=None, **arguments):
        """Sends a command; returns its value.  _refused: it must fail with a message like this, which is returned."""
        self.sent += 1
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        line = {"execute": command, **({"arguments": arguments} if arguments else {}), "id": f"{self.TOOL}-{self.sent}"}
        self.client.send_bytes(json.dumps(line).encode() + b"\r\n")
        reply = self.client.reply()
        self.assertEqual(reply.pop("id"), f"{self.TOOL}-{self.sent}")
        if _refused is None:
            self.assertNotIn("error", reply, line)
            return reply["return"]
        self.assertEqual(reply["error"]["class"], "GenericError")
        self.assertRegex(reply["error"]["desc"], _refused)
        return reply["error"]["desc"]

    def tell(self, command, **arguments):
        """Sends a command and ignores the reply."""
        self.client.send({"execute": command, "arguments": arguments})
        self.client.reply()

    def done(self, command, **arguments):
        self.assertEqual(self.say(command, **arguments), {})

    def states(self, job, *states):
        """Waits for JOB_STATUS_CHANGE events with these states, in this order."""
        for state in states:
            while (event := self.client.event("JOB_STATUS_CHANGE", id=job))["data"]["status"] != state:
                self.assertNotIn(event["data"]["status"], states[states.index(state) + 1:])

    def overlay(self, name, below, size=None):
        path = self.path(name)
        run("qemu-img", "create", "-f", "qcow2", "-b", below, "-F", "qcow2", path, *([size] if size else []))
        return path

    def content_is(self, path, fmt="qcow2"):
        self.server.stop()
        if fmt == "qcow2":
            check(path, fmt)
        expected = self.path("expected.raw")
        with open(expected, "wb") as file:
            file.write(self.content)
        run("qemu-img", "compare", "-f", "raw", "-F", fmt, expected, path)


class Libvirt(Transcript):
    def begin(self):
        self.start_tool("libvirt-1-format", "references=any")

    def add(self, number, path, driver="qcow2", **options):
        """Adds the storage node and the format node of an image."""
        self.done("blockdev-add", driver="file", filename=path, node_name=f"libvirt-{number}-storage",
                  auto_read_only=True, discard="unmap", cache={"direct": True, "no-flush": False})
        self.done("blockdev-add", node_name=f"libvirt-{number}-format", read_only=False, discard="unmap",
                  cache={"direct": True, "no-flush": False}, driver=driver, file=f"libvirt-{number}-storage", **options)

    def remove(self, number):
        self.done("blockdev-del", node_name=f"libvirt-{number}-format")
        self.done("blockdev-del", node_name=f"libvirt-{number}-storage")

    def node(self, name):
        """Checks the members of a node that libvirt reads; returns the node."""
        nodes = {node["node-name"]: node for node in self.say("query-named-block-nodes", flat=True)}
        image = nodes[name]["image"]
        self.assertEqual(image["virtual-size"], self.SIZE)
        self.assertEqual(image["format-specific"]["data"]["compat"], "1.1")
        self.assertIn("actual-size", image)
        return nodes[name]

    def snapshot(self, number):
        """Makes an external snapshot."""
        below = self.image
        self.image = self.overlay(f"snapshot-{number}.qcow2", below)
        self.node(f"libvirt-{number - 1}-format")
        self.add(number, self.image, backing=None)
        self.done("transaction", actions=[{"type": "blockdev-snapshot", "data": {
            "node": f"libvirt-{number - 1}-format", "overlay": f"libvirt-{number}-format"}}])
        self.write(number * MIB, self.rng.randbytes(100 * KIB))

    def create(self, number, name, storage_bytes=0, backing=None, **image):
        """How libvirt makes an image: create the file, add the storage node, format it, add the format node."""
        storage = {"driver": "file", "filename": self.path(name)}
        self.create_one(f"create-libvirt-{number}-storage", {**storage, "size": storage_bytes})
        self.done("blockdev-add", **storage, node_name=f"libvirt-{number}-storage", auto_read_only=True, discard="unmap",
                  cache={"direct": True, "no-flush": False})
        if image:
            self.create_one(f"create-libvirt-{number}-format", {"file": f"libvirt-{number}-storage", **image})
        self.done("blockdev-add", node_name=f"libvirt-{number}-format", read_only=False, discard="unmap",
                  cache={"direct": True, "no-flush": False}, driver=image.get("driver", "raw"),
                  file=f"libvirt-{number}-storage", **({"backing": backing} if image else {}))

    def create_one(self, job, options):
        self.done("blockdev-create", job_id=job, options=options)
        self.states(job, "created", "running", "waiting", "pending")
        self.concluded(job)

    def test_what_it_makes(self):
        """into files made by blockdev-create: an external snapshot, a full backup, and copies that become the disk"""
        base = self.image
        qcow2 = {"driver": "qcow2", "size": self.SIZE, "version": "v3"}
        self.begin()
        self.create(2, "snapshot.qcow2", **qcow2, **{"backing-file": base, "backing-fmt": "qcow2"})
        self.done("transaction", actions=[{"type": "blockdev-snapshot", "data": {
            "node": "libvirt-1-format", "overlay": "libvirt-2-format"}}])
        self.image = self.path("snapshot.qcow2")
        self.node("libvirt-2-format")
        self.write(2 * MIB, self.rng.randbytes(100 * KIB))
        self.create(3, "backup.qcow2", **qcow2)
        self.done("transaction", actions=[{"type": "blockdev-backup", "data": {
            "device": "libvirt-2-format", "job-id": "backup-vda", "target": "libvirt-3-format", "sync": "full",
            "auto-finalize": True, "auto-dismiss": False}}])
        self.concluded("backup-vda")
        self.remove(3)
        self.assertTrue(harness.content(self.path("backup.qcow2"), "qcow2") == self.content)
        for number, name, image in ((4, "copy.raw", {}), (5, "copy.qcow2", {
                **qcow2, "cluster-size": 128 * KIB, "extended-l2": True, "lazy-refcounts": True})):
            below, job = f"libvirt-{2 if number == 4 else 4}-format", f"copy-vda-{number}"
            self.create(number, name, 0 if image else self.SIZE, **image)
            self.done("blockdev-mirror", job_id=job, device=below, target=f"libvirt-{number}-format", sync="full",
                      auto_finalize=True, auto_dismiss=False)
            self.states(job, "ready")
            self.done("job-complete", id=job)
            self.concluded(job)
            self.write(number * MIB, b"on the copy")
        self.content_is(self.path("copy.qcow2"))
        self.assertEqual(harness.info(self.image, "qcow2")["full-backing-filename"], base)

    def progress(self, job):
        """virsh blockjob --info"""
        info = next(j for j in self.say("query-block-jobs") if j["device"] == job)
        for member in ("type", "speed", "offset", "len", "ready"):
            self.assertIn(member, info)
        return info

    def concluded(self, job):
        self.states(job, "concluded")
        info = next(j for j in self.say("query-jobs") if j["id"] == job)
        self.assertEqual((info["status"], info.get("error")), ("concluded", None))
        self.assertEqual(info["current-progress"], info["total-progress"])
        self.done("job-dismiss", id=job)

    def test_blockcopy(self):
        self.begin()
        self.add(2, self.overlay("copy.qcow2", self.image), backing=None)
        self.done("blockdev-mirror", job_id="copy-vda-libvirt-1-format", device="libvirt-1-format",
                  target="libvirt-2-format", sync="full", auto_finalize=True, auto_dismiss=False)
        self.states("copy-vda-libvirt-1-format", "created", "running", "ready")
        self.write(MIB, b"while it is mirrored" * 1000)
        self.assertEqual(self.progress("copy-vda-libvirt-1-format")["ready"], True)
        # Before the pivot libvirt adds a bitmap to the target, and ignores an error.
        self.tell("transaction", actions=[{"type": "block-dirty-bitmap-add", "data": {
            "node": "libvirt-2-format", "name": "libvirt-tmp-activewrite", "persistent": False, "disabled": False}}])
        self.done("job-complete", id="copy-vda-libvirt-1-format")
        self.states("copy-vda-libvirt-1-format", "waiting", "pending")
        self.concluded("copy-vda-libvirt-1-format")
        self.node("libvirt-2-format")
        self.write(0, b"on the copy")
        # A second copy, of the new disk.
        self.add(3, create(self.path("second.raw"), "raw", self.SIZE), "raw")
        self.done("blockdev-mirror", job_id="copy-vda-libvirt-2-format", device="libvirt-2-format",
                  target="libvirt-3-format", sync="full", speed=1 << 30, granularity=64 * KIB, buf_size=MIB,
                  copy_mode="write-blocking", auto_finalize=True, auto_dismiss=False)
        self.states("copy-vda-libvirt-2-format", "ready")
        self.done("job-complete", id="copy-vda-libvirt-2-format")
        self.concluded("copy-vda-libvirt-2-format")
        self.remove(2)
        self.content_is(self.path("second.raw"), "raw")

    def test_a_shallow_blockcopy(self):
        """a copy of the top alone, over the existing layer below"""
        base = self.image
        self.begin()
        self.snapshot(2)
        self.create(3, "copy.qcow2", backing="libvirt-1-format", driver="qcow2", size=self.SIZE,
                    **{"backing-file": base, "backing-fmt": "qcow2"})
        self.done("blockdev-mirror", job_id="copy-vda", device="libvirt-2-format", target="libvirt-3-format",
                  sync="top", auto_finalize=True, auto_dismiss=False)
        self.states("copy-vda", "ready")
        self.write(3 * MIB, b"while it is copied")
        self.done("job-complete", id="copy-vda")
        self.concluded("copy-vda")
        self.write(MIB, b"on the copy")
        self.assertEqual([node["file"] for node in self.say("query-named-block-nodes", flat=True)][:2],
                         [self.path("copy.qcow2"), base])
        self.assertLess(os.stat(self.path("copy.qcow2")).st_blocks * 512, 2 * MIB)
        self.content_is(self.path("copy.qcow2"))

    def test_blockcopy_that_is_given_up(self):
        self.begin()
        self.add(2, create(self.path("copy.raw"), "raw", self.SIZE), "raw")
        self.done("blockdev-mirror", job_id="copy-vda-libvirt-1-format", device="libvirt-1-format",
                  target="libvirt-2-format", sync="full", auto_finalize=True, auto_dismiss=False)
        self.states("copy-vda-libvirt-1-format", "ready")
        self.done("block-job-set-speed", device="copy-vda-libvirt-1-format", speed=100 * MIB)
        self.done("block-job-cancel", device="copy-vda-libvirt-1-format", force=False)
        self.concluded("copy-vda-libvirt-1-format")
        self.remove(2)
        with self.assertRaises(QmpError) as caught:
            self.client.cmd("block-job-cancel", device="copy-vda-libvirt-1-format", force=True)
        self.assertEqual(caught.exception.kind, "DeviceNotActive")
        self.content_is(self.path("copy.raw"), "raw")

    def test_snapshots_and_active_blockcommit(self):
        base = self.image
        self.begin()
        self.snapshot(2)
        self.snapshot(3)
        self.done("block-commit", device="libvirt-3-format", job_id="commit-vda-libvirt-3-format",
                  top_node="libvirt-3-format", base_node="libvirt-1-format", auto_dismiss=False,
                  backing_mask_protocol=True)
        self.states("commit-vda-libvirt-3-format", "running", "ready")
        self.assertEqual(self.progress("commit-vda-libvirt-3-format")["type"], "commit")
        self.tell("transaction", actions=[{"type": "block-dirty-bitmap-add", "data": {
            "node": "libvirt-1-format", "name": "libvirt-tmp-activewrite", "persistent": False, "disabled": False}}])
        self.done("job-complete", id="commit-vda-libvirt-3-format")
        self.concluded("commit-vda-libvirt-3-format")
        self.remove(3)
        self.remove(2)
        self.assertEqual(self.node("libvirt-1-format")["file"], base)
        self.write(0, b"in the base")
        self.content_is(base)

    def reopen(self, number, read_only, **options):
        self.done("blockdev-reopen", options=[{
            "node-name": f"libvirt-{number}-format", "driver": "qcow2", "read-only": read_only,
            "file": f"libvirt-{number}-storage", "backing": None, **options}])

    def removal(self, number, name):
        return {"type": "block-dirty-bitmap-remove", "data": {"node": f"libvirt-{number}-format", "name": name}}

    def stored(self, path):
        found = harness.info(path, "qcow2")["format-specific"]["data"].get("bitmaps", [])
        self.assertFalse([bitmap for bitmap in found if "in-use" in bitmap["flags"]])
        return [bitmap["name"] for bitmap in found]

    def known(self, number):
        return sorted(bitmap["name"] for bitmap in self.node(f"libvirt-{number}-format").get("dirty-bitmaps", []))

    def checkpoints(self):
        """Makes a chain of three with stored and in-memory bitmaps on the lower two; returns these layers' files."""
        self.begin()
        files = [self.image]
        for number in (1, 2):
            if number == 2:
                self.snapshot(2)
                files.append(self.image)
            for name, persistent in (("first", True), ("second", True), ("memory", False)):
                self.done("block-dirty-bitmap-add", node=f"libvirt-{number}-format", name=name, persistent=persistent)
            self.write(number * 3 * MIB, b"recorded" * 10000)
        self.snapshot(3)
        return files

    def test_a_checkpoint_is_deleted_below_a_snapshot(self):
        """libvirt reopens the layers for writing before it removes their bitmaps; the disk goes on, and nothing else
        changes"""
        files = self.checkpoints()
        self.reopen(2, False, **{"detect-zeroes": "on"})
        self.reopen(1, False)
        self.done("transaction", actions=[self.removal(1, "first"), self.removal(2, "first"), self.removal(2, "memory")])
        self.reopen(1, True)
        self.write(5 * MIB, b"after" * 10000)
        self.assertEqual(self.known(1), ["memory", "second"])
        self.assertEqual(self.known(2), ["second"])
        for path in files:
            self.assertEqual(self.stored(path), ["second"])
            check(path, "qcow2", served=True)
        # One more by a command of its own, which fails when it is repeated.
        self.done("block-dirty-bitmap-remove", node="libvirt-1-format", name="second")
        self.say("block-dirty-bitmap-remove", "'second' not found", node="libvirt-1-format", name="second")
        self.assertEqual(self.stored(files[0]), [])
        # The layers can still be used: a commit into the lowest one is complete.
        self.done("block-commit", device="libvirt-3-format", job_id="commit", top_node="libvirt-3-format",
                  base_node="libvirt-1-format", auto_dismiss=False)
        self.states("commit", "running", "ready")
        self.done("job-complete", id="commit")
        self.concluded("commit")
        self.content_is(files[0])

    def test_a_checkpoint_that_isnt_deleted(self):
        """a transaction of removals that fails changes nothing; removals are refused while a job may move the layers'
        bitmaps"""
        files = self.checkpoints()
        for actions, text in (
                ([self.removal(1, "first"), self.removal(2, "nosuch")], "'nosuch' not found"),
                ([self.removal(1, "first"), self.removal(2, "first"), {"type": "abort", "data": {}}], "Abort action"),
                ([self.removal(1, "first"), self.removal(1, "first")], "in use|busy"),
                ([self.removal(9, "first")], "'libvirt-9-format' not found")):
            self.say("transaction", text, actions=actions)
            self.assertEqual(self.known(1), ["first", "memory", "second"])
            self.assertEqual(self.known(2), ["first", "memory", "second"])
        self.done("block-commit", device="libvirt-3-format", job_id="commit", top_node="libvirt-3-format",
                  base_node="libvirt-1-format", auto_dismiss=False)
        self.states("commit", "running", "ready")
        self.say("block-dirty-bitmap-remove", "a job uses it", node="libvirt-2-format", name="first")
        self.done("block-job-cancel", device="commit", force=True)
        self.states("commit", "concluded")
        self.done("job-dismiss", id="commit")
        for path in files:
            self.assertEqual(self.stored(path), ["first", "second"])
        self.content_is(self.image)

    def test_intermediate_blockcommit(self):
        base = self.image
        self.begin()
        for number in (2, 3, 4):
            self.snapshot(number)
        self.assertEqual([node["node-name"] for node in self.say("query-named-block-nodes", flat=True)],
                         ["libvirt-4-format", "libvirt-3-format", "libvirt-2-format", "libvirt-1-format"] + [
                             f"libvirt-{number}-storage" for number in (2, 3, 4)])
        self.done("block-commit", device="libvirt-4-format", job_id="commit-vda-libvirt-3-format",
                  top_node="libvirt-3-format", base_node="libvirt-2-format", backing_file=self.path("snapshot-2.qcow2"),
                  auto_finalize=True, auto_dismiss=False, backing_mask_protocol=True)
        self.concluded("commit-vda-libvirt-3-format")
        self.remove(3)
        self.done("block-commit", device="libvirt-4-format", job_id="commit-vda-libvirt-2-format",
                  top_node="libvirt-2-format", base_node="libvirt-1-format", backing_file=base,
                  auto_finalize=True, auto_dismiss=False, backing_mask_protocol=True)
        self.concluded("commit-vda-libvirt-2-format")
        self.remove(2)
        self.content_is(self.image)
        self.assertEqual(harness.info(self.image, "qcow2")["backing-filename"], base)

    def test_blockpull(self):
        base = self.image
        self.begin()
        for number in (2, 3):
            self.snapshot(number)
        self.done("block-stream", device="libvirt-3-format", job_id="pull-vda-libvirt-3-format",
                  base_node="libvirt-1-format", backing_file=base, auto_finalize=True, auto_dismiss=False,
                  backing_mask_protocol=True)
        self.concluded("pull-vda-libvirt-3-format")
        self.remove(2)
        self.done("block-stream", device="libvirt-3-format", job_id="pull-vda-libvirt-3-format", speed=1 << 30,
                  auto_finalize=True, auto_dismiss=False, backing_mask_protocol=True)
        self.concluded("pull-vda-libvirt-3-format")
        self.content_is(self.image)
        self.assertNotIn("backing-filename", harness.info(self.image, "qcow2"))

    def backup(self, number, *actions, **arguments):
        job = "backup-vda-libvirt-1-format"
        self.done("transaction", actions=[*actions, {"type": "blockdev-backup", "data": {
            "device": "libvirt-1-format", "job-id": job, "target": f"libvirt-{number}-format",
            **arguments, "auto-finalize": True, "auto-dismiss": False}}])
        self.concluded(job)
        self.remove(number)

    def test_backup_begin(self):
        """push mode: a full backup with a checkpoint, and an incremental one from that checkpoint"""
        bitmap = {"node": "libvirt-1-format", "persistent": True, "disabled": False}
        self.begin()
        self.add(2, create(self.path("full.qcow2"), "qcow2", self.SIZE), backing=None)
        self.backup(2, {"type": "block-dirty-bitmap-add", "data": {**bitmap, "name": "first"}}, sync="full")
        self.write(2 * MIB, b"since the first" * 10000)
        info = self.node("libvirt-1-format")["dirty-bitmaps"][0]
        self.assertEqual({key: info[key] for key in ("name", "recording", "persistent", "busy", "granularity")},
                         {"name": "first", "recording": True, "persistent": True, "busy": False, "granularity": 65536})
        self.add(3, self.copy(self.path("full.qcow2"), "both.raw"), "raw")
        self.backup(3, {"type": "block-dirty-bitmap-add", "data": {**bitmap, "name": "second"}},
                    {"type": "block-dirty-bitmap-add", "data": {
                        "node": "libvirt-1-format", "name": "backup-vda", "persistent": False, "disabled": True,
                        "granularity": 65536}},
                    {"type": "block-dirty-bitmap-merge", "data": {
                        "node": "libvirt-1-format", "target": "backup-vda",
                        "bitmaps": [{"node": "libvirt-1-format", "name": "first"}]}},
                    sync="incremental", bitmap="backup-vda")
        self.done("transaction", actions=[{"type": "block-dirty-bitmap-remove", "data": {
            "node": "libvirt-1-format", "name": "backup-vda"}}])
        self.content_is(self.path("both.raw"), "raw")
        check(self.image, "qcow2")

    def on_disk(self, number, name, **image):
        """Makes an overlay of the served disk, whose node is its backing node."""
        self.create(number, name, backing="libvirt-1-format", driver="qcow2", size=self.SIZE,
                    **{"backing-file": self.image, "backing-fmt": "qcow2"}, **image)

    def merged(self, node, name):
        """The actions that copy the bitmap "first" into a new bitmap on this node."""
        return [{"type": "block-dirty-bitmap-add", "data": {
            "node": node, "name": name, "persistent": False, "disabled": True, "granularity": 65536}},
                {"type": "block-dirty-bitmap-merge", "data": {
                    "node": node, "target": name, "bitmaps": [{"node": "libvirt-1-format", "name": "first"}]}}]

    def test_backup_begin_to_a_file_that_lies_on_the_disk(self):
        """push mode: the overlay that libvirt makes itself as the target of an incremental backup"""
        bitmap = {"node": "libvirt-1-format", "persistent": True, "disabled": False}
        for options in ({}, {"cluster-size": 2 * MIB}, {"extended-l2": True}):
            with self.subTest(**options):
                self.setUp()
                self.begin()
                self.create(2, "full.qcow2", driver="qcow2", size=self.SIZE)
                self.backup(2, {"type": "block-dirty-bitmap-add", "data": {**bitmap, "name": "first"}}, sync="full")
                self.write(2 * MIB, b"since the first" * 10000)
                self.write(MIB, bytes(128 * KIB))  # zeroes over old data
                self.on_disk(3, "increment.qcow2", **options)
                self.backup(3, {"type": "block-dirty-bitmap-add", "data": {**bitmap, "name": "second"}},
                            *self.merged("libvirt-1-format", "backup-vda"), sync="incremental", bitmap="backup-vda")
                self.done("transaction", actions=[{"type": "block-dirty-bitmap-remove", "data": {
                    "node": "libvirt-1-format", "name": "backup-vda"}}])
                self.assertEqual(harness.info(self.path("increment.qcow2"), "qcow2")["backing-filename"], self.image)
                run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", self.path("full.qcow2"), self.path("increment.qcow2"))
                self.content_is(self.path("increment.qcow2"))

    def test_backup_begin_to_another_host_s_file_that_lies_on_the_disk(self):
        """push mode to an export that prefers small blocks: partly written clusters are completed from the disk"""
        self.begin()
        full, increment, sock = (self.path(name) for name in ("full.raw", "increment.qcow2", "sock"))
        self.done("block-dirty-bitmap-add", node="libvirt-1-format", name="first")
        run("qemu-img", "convert", "-U", "-O", "raw", self.image, full)
        self.write(2 * MIB, b"since the first" * 100)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "-b", self.image, "-F", "qcow2", increment)
        os.truncate(increment, 64 * MIB)  # large enough: an export can't grow
        nbd_server = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", sock, increment])
        self.addCleanup(nbd_server.kill)
        harness.await_listener(sock)
        self.done("blockdev-add", driver="nbd", server={"type": "unix", "path": sock}, node_name="libvirt-2-storage")
        self.done("blockdev-add", driver="qcow2", file="libvirt-2-storage", backing="libvirt-1-format",
                  node_name="libvirt-2-format")
        self.backup(2, sync="incremental", bitmap="first")
        nbd_server.terminate()
        nbd_server.wait()
        run("qemu-img", "rebase", "-u", "-F", "raw", "-b", full, increment)
        self.content_is(increment)

    def test_a_file_that_lies_on_the_disk_is_for_its_backups(self):
        self.begin()
        self.on_disk(2, "over.qcow2")
        for command, arguments in (
                ("blockdev-mirror", {"job_id": "m", "device": "libvirt-1-format", "target": "libvirt-2-format", "sync": "full"}),
                ("block-export-add", {"type": "nbd", "id": "e", "node_name": "libvirt-2-format"})):
            self.say(command, "lies on 'libvirt-1-format', which is being served", **arguments)
        self.say("blockdev-snapshot", "already has a backing image", node="libvirt-1-format", overlay="libvirt-2-format")
        self.remove(2)
        self.content_is(self.image)

    def copy(self, path, name):
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, self.path(name))
        return self.path(name)

    def address(self):
        return {"type": "unix", "data": {"path": self.server.socket}}

    def pull(self, number, *actions, bitmaps=()):
        """virsh backup-begin in pull mode: starts the backup to a scratch file, and exports that"""
        self.done("nbd-server-start", addr=self.address())
        self.done("transaction", actions=[*actions, {"type": "blockdev-backup", "data": {
            "device": "libvirt-1-format", "job-id": "backup-vda-libvirt-1-format",
            "target": f"libvirt-{number}-format", "sync": "none", "auto-finalize": True, "auto-dismiss": False}}])
        self.done("block-export-add", type="nbd", id=f"libvirt-nbd-libvirt-{number}-format",
                  node_name=f"libvirt-{number}-format", writable=False, name="vda",
                  **({"bitmaps": list(bitmaps)} if bitmaps else {}))

    def end_of_pull(self, number):
        """virsh domjobabort: ends a backup in pull mode"""
        job = "backup-vda-libvirt-1-format"
        self.done("block-job-cancel", device=job, force=True)
        self.states(job, "concluded")
        self.assertEqual(self.say("query-jobs")[0]["status"], "concluded")
        self.done("nbd-server-stop")
        self.remove(number)  # the target is free, although the job isn't dismissed
        self.done("job-dismiss", id=job)

    def test_backup_begin_in_pull_mode(self):
        """a client reads the point, and, with a bitmap, what has changed since the last one"""
        bitmap = {"node": "libvirt-1-format", "persistent": True, "disabled": False}
        self.begin()
        self.on_disk(2, "scratch.qcow2")
        self.pull(2, {"type": "block-dirty-bitmap-add", "data": {**bitmap, "name": "first"}})
        full = self.content[:]
        self.write(2 * MIB, b"since the first" * 10000)
        self.write(MIB, bytes(128 * KIB))
        copy = self.server.connect("vda")
        self.assertTrue(copy.is_read_only())
        self.assertTrue(copy.pread(self.SIZE, 0) == full)
        self.end_of_pull(2)
        with self.assertRaises(nbd.Error):
            self.server.connect("vda")
        self.on_disk(3, "second.qcow2", **{"cluster-size": 2 * MIB})  # with clusters larger than the job's steps
        self.pull(3, {"type": "block-dirty-bitmap-add", "data": {**bitmap, "name": "second"}},
                  *self.merged("libvirt-3-format", "backup-vda"), bitmaps=["backup-vda"])
        point = self.content[:]
        self.write(3 * MIB, b"since the second" * 10000)
        self.write(2 * MIB, b"since the second" * 10000)
        self.assertEqual([name for name in self.server.exports() if name.startswith("vda")],
                         ["vda", "vda/bitmap/backup-vda"])
        dirty = self.server.connect("vda/bitmap/backup-vda")
        for offset, length in dirty_ranges(dirty):
            full[offset:offset + length] = dirty.pread(length, offset)
        self.assertTrue(full == point)
        self.assertLess(sum(length for _, length in dirty_ranges(dirty)), MIB)
        self.end_of_pull(3)
        self.content_is(self.image)

    def test_an_nbd_server(self):
        """nbd-server-start succeeds if the address is where nbdkit listens already"""
        self.begin()
        for address in ({"type": "unix", "data": {"path": self.path("nbd")}},
                        {"type": "unix", "data": {"path": self.control}},
                        {"type": "unix", "data": {"path": "/" + "x" * 200}},
                        {"type": "inet", "data": {"host": "localhost", "port": "10809"}},
                        {"type": "inet", "data": {"host": "192.0.2.1", "port": "1"}},
                        {"type": "inet", "data": {"host": "a.name.invalid", "port": "x"}}):
            self.say("nbd-server-start", "^NBD server already running, and not at this address", addr=address)
        self.say("nbd-server-start", "^No TLS credentials with id 'libvirt_backup_tls0'", addr=self.address(),
                 tls_creds="libvirt_backup_tls0")
        self.say("nbd-server-stop", "^NBD server not running")
        self.done("nbd-server-start", addr=self.address())
        self.say("nbd-server-start", "^NBD server already running$", addr=self.address())
        self.done("nbd-server-stop")
        self.content_is(self.image)

    def test_an_nbd_server_with_a_port(self):
        """an NBD server with a numeric address of this machine and a port"""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = {"port": str(probe.getsockname()[1])}
        self.control = self.path("control")
        server = subprocess.Popen(["nbdkit", "-f", "-p", port["port"], "-P", self.path("pid"), PLUGIN, self.image,
                                   f"control={self.control}"], env=plugin_env())
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        wait_until(lambda: os.path.exists(self.path("pid")) and os.path.getsize(self.path("pid")), 20, "it")
        self.client, self.sent = self.qmp(), 0
        for host in ("localhost", "127.0.0.1"):
            self.done("nbd-server-start", addr={"type": "inet", "data": {"host": host, **port}})
            self.done("nbd-server-stop")
        self.say("nbd-server-start", "not at this address", addr={"type": "inet", "data": {"host": "192.0.2.1", **port}})

    def test_pull_mode_of_before_block_export_add(self):
        """nbd-server-add and nbd-server-remove, and nodes that can't be exported"""
        self.begin()
        self.on_disk(2, "scratch.qcow2")
        self.done("transaction", actions=[
            {"type": "block-dirty-bitmap-add", "data": {
                "node": "libvirt-2-format", "name": "enabled", "persistent": False}},
            {"type": "block-dirty-bitmap-add", "data": {
                "node": "libvirt-2-format", "name": "changes", "persistent": False, "disabled": True}},
            {"type": "blockdev-backup", "data": {"device": "libvirt-1-format", "job-id": "b",
                                                 "target": "libvirt-2-format", "sync": "none"}}])
        add = {"type": "nbd", "id": "e", "node_name": "libvirt-2-format", "name": "vda"}
        for change, text in (({"writable": True}, "it can only be read"), ({"bitmaps": ["no"]}, "'no'.*not found"),
                             ({"bitmaps": ["enabled"]}, "Enabled bitmap 'enabled' incompatible with readonly export"),
                             ({"allocation_depth": True}, "allocation-depth"), ({"name": ""}, "one of that name")):
            self.say("block-export-add", text, **{**add, **change})
        self.done("nbd-server-add", device="libvirt-2-format", name="vda", bitmap="changes")
        self.say("nbd-server-add", "'vda' is already in use", device="libvirt-2-format", name="vda")
        self.assertEqual(self.say("query-block-exports")[1], {
            "id": "vda", "type": "nbd", "node-name": "libvirt-2-format", "shutting-down": False, "name": "vda"})
        self.write(0, b"changed")
        client = self.server.connect("vda/bitmap/changes")
        self.assertEqual(dirty_ranges(client), [])
        self.say("nbd-server-remove", "still in use", name="vda")
        self.done("block-job-cancel", device="b", force=True)
        self.client.event("BLOCK_JOB_CANCELLED", device="b")
        with self.assertRaises(nbd.Error):
            client.pread(512, 0)
        self.done("nbd-server-remove", name="vda", mode="hard")
        self.say("nbd-server-remove", "Export 'vda' is not found", name="vda")
        client.shutdown()
        self.client.event("BLOCK_EXPORT_DELETED", id="vda")
        self.remove(2)
        self.content_is(self.image)

    def test_a_transaction_that_fails_leaves_no_bitmap(self):
        """a bitmap on the target of a job, in a transaction that fails"""
        self.begin()
        self.on_disk(2, "scratch.qcow2")
        self.say("transaction", "aborted", actions=[
            *self.merged("libvirt-2-format", "backup-vda")[:1],
            {"type": "blockdev-backup", "data": {"device": "libvirt-1-format", "job-id": "b",
                                                 "target": "libvirt-2-format", "sync": "none"}},
            {"type": "abort", "data": {}}])
        self.remove(2)
        self.content_is(self.image)

    def test_an_export(self):
        """an export of a separate node, as libvirt makes NBD exports"""
        self.begin()
        self.add(2, create(self.path("other.qcow2"), "qcow2", self.SIZE), backing=None)
        self.done("block-export-add", type="nbd", id="libvirt-nbd-libvirt-2-format", node_name="libvirt-2-format",
                  writable=False, name="vdb")
        self.done("block-export-del", id="libvirt-nbd-libvirt-2-format")
        self.done("nbd-server-start", addr=self.address())
        self.done("block-export-add", type="nbd", id="libvirt-nbd-libvirt-2-format", node_name="libvirt-2-format",
                  writable=True, name="vdb")
        self.say("block-export-add", "exported already", type="nbd", id="libvirt-nbd-libvirt-1-format",
                 node_name="libvirt-1-format", writable=False, name="vda")
        self.assertEqual(self.server.connect("vdb").get_size(), self.SIZE)
        self.done("nbd-server-stop")
        with self.assertRaises(nbd.Error):
            self.server.connect("vdb")
        self.assertEqual(self.disk.pread(512, 0), self.content[:512])
        self.content_is(self.image)

    def test_blockresize(self):
        self.begin()
        self.done("block_resize", node_name="libvirt-1-format", size=self.SIZE + MIB)
        self.content += bytes(MIB)
        self.content_is(self.image)


class Proxmox(Transcript):
    TOOL = "21542"  # Proxmox's ids are its process id and a number

    def begin(self):
        self.start_tool("drive-scsi0")

    def poll(self, job, until):
        """Repeats query-block-jobs until until(job's info) is true; the info is None when the job is gone."""
        for _ in range(100000):
            info = next((j for j in self.say("query-block-jobs") if j["device"] == job and j["type"] == "mirror"), None)
            if until(info):
                return info
            self.assertTrue(info, "it vanished")
            self.assertNotIn("error", info)
        return self.fail("it takes too long")

    def is_ready(self, info):
        return info["ready"] and not info["busy"]

    def move(self, job):
        """Proxmox's loop for a move: wait until ready, complete, wait until concluded, dismiss."""
        info = self.poll(job, self.is_ready)
        self.assertEqual(info["offset"], info["len"])
        self.write(MIB, b"while it moves" * 1000)
        self.done("job-complete", id=job)
        self.poll(job, lambda info: info["status"] == "concluded")
        self.done("job-dismiss", id=job)
        self.poll(job, lambda info: info is None)
        self.write(0, b"moved")

    def test_a_drive_is_moved(self):
        """with drive-mirror, to files and over NBD, as versions before -blockdev do"""
        self.begin()
        file = create(self.path("target.qcow2"), "qcow2", self.SIZE)
        options = {"device": "drive-scsi0", "sync": "full", "auto_dismiss": False, "mode": "existing"}
        self.done("drive-mirror", target=file, format="qcow2", speed=1024 * MIB, **options)
        self.move("drive-scsi0")
        raw = create(self.path("target.raw"), "raw", self.SIZE)
        self.done("drive-mirror", target=f"zeroinit:{raw}", format="raw", **options)
        self.move("drive-scsi0")
        target = self.memory()
        self.done("drive-mirror", target=f"nbd:unix:{target.socket}:exportname=drive-scsi0", format="nbd", **options)
        self.poll("drive-scsi0", self.is_ready)
        self.done("block-job-change", id="drive-scsi0", type="mirror", copy_mode="write-blocking")
        self.poll("drive-scsi0", lambda info: info["actively-synced"])
        self.done("block-job-cancel", device="drive-scsi0")
        self.poll("drive-scsi0", lambda info: info["status"] == "concluded")
        self.done("job-dismiss", id="drive-scsi0")
        self.same(target.content())
        self.content_is(raw, "raw")
        check(file, "qcow2")

    def blockdev(self, path, **options):
        """The arguments of blockdev-add for a format node over a file node, with all of Proxmox's options."""
        common = {"cache": {"direct": True, "no-flush": False}, "discard": "unmap", "detect-zeroes": "unmap",
                  "read-only": False}
        return {"node_name": "f" + "1" * 30, "driver": "qcow2", **common, **options, "file": {
            "driver": "file", "filename": path, "aio": "io_uring", "node-name": "e" + "1" * 30, **common}}

    def test_a_drive_is_moved_to_a_node(self):
        self.begin()
        target = create(self.path("target.qcow2"), "qcow2", self.SIZE)
        self.done("blockdev-add", **self.blockdev(target))
        self.assertEqual(self.say("query-named-block-nodes")[0]["node-name"], "drive-scsi0")
        self.done("blockdev-mirror", job_id="mirror-scsi0", device="drive-scsi0", target="f" + "1" * 30, sync="full",
                  auto_dismiss=False, replaces="drive-scsi0", speed=1024 * MIB)
        self.move("mirror-scsi0")
        # Proxmox would remove the source's node, if it still existed.
        self.assertEqual([node["node-name"] for node in self.say("query-named-block-nodes")], ["f" + "1" * 30])
        self.done("block_resize", node_name=self.say("query-block")[0]["inserted"]["node-name"], size=self.SIZE + MIB)
        self.content += bytes(MIB)
        self.content_is(target)

    def test_a_drive_is_moved_to_a_node_that_is_zero(self):
        """a thin volume behind a zeroinit node: no zeroes are written to it"""
        self.begin()
        target = create(self.path("target.raw"), "raw", self.SIZE)
        below = self.blockdev(target, driver="raw")
        zero = {"node_name": "z" + "1" * 30, "driver": "zeroinit", "file": {
            "node-name" if key == "node_name" else key: value for key, value in below.items()}}
        self.done("blockdev-add", **zero)
        self.say("blockdev-add", "a filter over a filter", node_name="zz", driver="zeroinit", file=zero["node_name"])
        self.say("blockdev-add", "a format over a format", node_name="ff", driver="qcow2", file=zero["node_name"])
        nodes = {node["node-name"]: node for node in self.say("query-named-block-nodes")}
        self.assertEqual((nodes[zero["node_name"]]["drv"], nodes[zero["node_name"]]["file"]), ("zeroinit", target))
        self.done("blockdev-mirror", job_id="mirror-scsi0", device="drive-scsi0", target=zero["node_name"], sync="full",
                  auto_dismiss=False, replaces="drive-scsi0")
        self.move("mirror-scsi0")
        self.assertEqual(self.say("query-block")[0]["inserted"]["node-name"], zero["node_name"])
        self.assertLess(os.stat(target).st_blocks * 512, self.SIZE)
        self.content_is(target, "raw")

    def test_what_goes_wrong(self):
        self.begin()
        target = create(self.path("target.raw"), "raw", self.SIZE)
        options = {"device": "drive-scsi0", "sync": "full", "auto_dismiss": False, "mode": "existing"}
        self.done("drive-mirror", target=target, format="raw", speed=1, **options)
        self.say("job-complete", "Job 'drive-scsi0' in state '.*' cannot accept command verb 'complete'",
                 id="drive-scsi0")
        self.say("drive-mirror", "already exists|in use|busy", target=target, format="raw", **options)
        self.done("block-job-cancel", device="drive-scsi0")
        self.poll("drive-scsi0", lambda info: info is None or info["status"] == "concluded")
        self.done("job-dismiss", id="drive-scsi0")
        self.poll("drive-scsi0", lambda info: info is None)
        with self.assertRaises(QmpError) as caught:
            self.client.cmd("block-job-cancel", device="drive-scsi0")
        self.assertEqual(caught.exception.kind, "DeviceNotActive")
        # A target that was added and isn't used.
        self.done("blockdev-add", **self.blockdev(create(self.path("x.qcow2"), "qcow2", self.SIZE)))
        self.done("blockdev-del", node_name="f" + "1" * 30)
        self.say("blockdev-del", "Failed to find node with node-name", node_name="e" + "1" * 30)
        self.content_is(self.image)


if __name__ == "__main__":
    harness.main()
