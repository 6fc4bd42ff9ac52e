# SPDX-License-Identifier: BSD-3-Clause
"""Exports that are added and removed by commands of the control socket."""

import concurrent.futures
import threading

import nbd

from harness import MIB, QIMG, SECTOR, check, content, run
from qmp import Qmp, QmpError
from test_folder import Folder, is_free


class Commands(Folder):
    def start(self, *keys):
        self.image("first.qcow2", byte=1)
        server = self.serve(None, f"export=first:{self.folder}/first.qcow2", f"control={self.path('control')}", *keys)
        client = Qmp(self.path("control"))
        self.addCleanup(client.close)
        return server, client

    def add_node(self, client, name, byte):
        path = self.image(f"{name}.qcow2", byte=byte)
        client.cmd("blockdev-add", **{"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": path}})
        return path

    def ids(self, client):
        return sorted(export["id"] for export in client.cmd("query-block-exports"))

    def test_added_and_removed(self):
        """E-08"""
        server, client = self.start()
        path = self.add_node(client, "second", 2)
        self.assertEqual(self.ids(client), ["first"])
        client.cmd("block-export-add", **{"type": "nbd", "id": "e2", "node-name": "second", "name": "some/where",
                                          "writable": True, "description": "words"})
        self.assertEqual(client.cmd("query-block-exports")[1], {"id": "e2", "type": "nbd", "node-name": "second",
                                                                "shutting-down": False, "name": "some/where"})
        self.assertEqual(sorted(server.exports()), ["first", "some/where"])
        done = run(QIMG, "job", "--control", self.path("control"), "commit", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("2 disks: --device=NAME has to say which", done.stderr)
        handle = server.connect("some/where")
        self.assertEqual(handle.pread(1, 0)[0], 2)
        handle.pwrite(b"x" * SECTOR, MIB)
        self.assertFalse(is_free(path))
        self.refused_command(client, "export 'e2' still in use", "block-export-del", id="e2")
        self.refused_command(client, "Node second is in use", "blockdev-del", **{"node-name": "second"})
        handle.shutdown()
        self.remove_when_free(client, "e2")
        self.assertEqual(client.event("BLOCK_EXPORT_DELETED")["data"], {"id": "e2"})
        self.assertTrue(is_free(path))
        with self.assertRaises(nbd.Error):
            server.connect("some/where")
        client.cmd("block-export-add", **{"type": "nbd", "id": "e2", "node-name": "second"})
        handle = server.connect("second")
        self.assertTrue(handle.is_read_only())
        self.assertEqual(handle.pread(1, MIB), b"x")
        server.stop()
        check(path, "qcow2")

    def remove_when_free(self, client, name):
        """Removes an export after its client has left, which the server notices a moment later."""
        def tried():
            try:
                client.cmd("block-export-del", id=name)
                return True
            except QmpError as error:
                self.assertIn("still in use", str(error))
                return False
        self.await_true(tried, "it is free")

    def test_removed_while_somebody_looks(self):
        """E-08: queries don't count as users of an export: it can be removed meanwhile"""
        server, client = self.start()
        self.add_node(client, "second", 2)
        stop = threading.Event()

        def look():
            with Qmp(self.path("control")) as looking:
                while not stop.is_set():
                    looking.cmd("query-block")
                    looking.cmd("query-blockstats")

        with concurrent.futures.ThreadPoolExecutor(4) as several:
            lookers = [several.submit(look) for _ in range(4)]
            try:
                for _ in range(1500):
                    client.cmd("block-export-add", **{"type": "nbd", "id": "e2", "node-name": "second"})
                    client.cmd("block-export-del", id="e2")
            finally:
                stop.set()
            for looker in lookers:
                looker.result()
        server.stop()

    def test_removed_under_a_client(self):
        """E-08"""
        server, client = self.start()
        handle = server.connect("first")
        client.cmd("block-export-del", id="first", mode="hard")
        self.assertEqual(self.ids(client), [])
        self.assertEqual(sorted(server.exports()), [])
        handle.pwrite(b"y" * SECTOR, 0)
        self.assertEqual(handle.pread(1, 0), b"y")
        handle.shutdown()
        client.event("BLOCK_EXPORT_DELETED", id="first")
        self.assertTrue(is_free(f"{self.folder}/first.qcow2"))
        server.stop()

    def test_a_job_of_an_added_one(self):
        """E-08: a disk that was added can have a job, and can't be removed while it runs"""
        server, client = self.start()
        self.add_node(client, "second", 2)
        client.cmd("block-export-add", **{"type": "nbd", "id": "e2", "node-name": "second", "writable": True})
        server.connect("second").pwrite(b"z" * SECTOR, MIB)
        client.cmd("drive-mirror", **{"job-id": "j", "device": "second", "target": self.path("copy"), "sync": "full",
                                      "format": "raw", "mode": "absolute-paths"})
        client.event("BLOCK_JOB_READY", device="j")
        self.refused_command(client, "a job uses it", "block-export-del", id="e2", mode="hard")
        client.cmd("block-job-cancel", device="j")
        client.event("BLOCK_JOB_COMPLETED", device="j")
        with open(self.path("copy"), "rb") as copy:
            copy.seek(MIB)
            self.assertEqual(copy.read(1), b"z")
        server.stop()

    def test_what_is_refused(self):
        """E-08"""
        server, client = self.start()
        self.add_node(client, "second", 2)
        export = {"type": "nbd", "id": "e2", "node-name": "second"}
        for change, text in (({"id": "-"}, "Invalid block export id"), ({"id": "first"}, "is already in use"),
                             ({"node-name": "none"}, "Cannot find device='' nor node-name='none'"),
                             ({"node-name": "first"}, "is exported already, as 'first'"),
                             ({"name": "first"}, "there is one of that name already"), ({"name": "n" * 4097}, "too long"),
                             ({"type": "fuse"}, "expected: nbd")):
            with self.subTest(change=change):
                self.refused_command(client, text, "block-export-add", **{**export, **change})
        self.refused_command(client, "Export 'e2' is not found", "block-export-del", id="e2")
        self.assertEqual(self.ids(client), ["first"])
        client.cmd("block-export-add", **export)
        self.refused_command(client, "in use", "block-export-add", **{**export, "id": "e3", "name": "other"})
        server.stop()

    def test_writethrough(self):
        """With writethrough, answered writes are in the image even after kill -9; without, they may be lost."""
        for through in True, False:
            with self.part(writethrough=through):
                server, client = self.start()
                path = self.add_node(client, "second", 2)
                client.cmd("block-export-add", **{"type": "nbd", "id": "e2", "node-name": "second", "writable": True,
                                                  "writethrough": through, "fixed-iothread": False})
                self.assertEqual([node["cache"]["writeback"] for node in client.cmd("query-named-block-nodes")
                                  if node["node-name"] == "second"], [not through])
                server.connect("second").pwrite(b"w" * SECTOR, 3 * MIB)
                server.kill()
                self.assertEqual(content(path, "qcow2")[3 * MIB:][:1] == b"w", through)

    def test_choices_for_the_servers_own_images(self):
        """compress=on and lazy-refcounts=on don't apply to an added image, whose format may not support them"""
        _, client = self.start("compress=on", "lazy-refcounts=on")
        path = self.image("added.qed", "qed", byte=2)
        client.cmd("blockdev-add", **{"driver": "qed", "node-name": "added", "file": {"driver": "file", "filename": path}})
        client.cmd("block-export-add", **{"type": "nbd", "id": "e2", "node-name": "added", "writable": True})

    def test_images_of_a_folder(self):
        """E-08: images of a folder are exports while they are open; removing one closes it at once"""
        path = self.image("vm/disk.qcow2", byte=1)
        server = self.serve_folder("linger=1000", f"control={self.path('control')}")
        client = Qmp(self.path("control"))
        self.addCleanup(client.close)
        self.assertEqual(self.ids(client), [])
        server.connect("vm/disk.qcow2").pwrite(b"a" * SECTOR, 0)
        self.assertEqual(self.ids(client), ["vm/disk.qcow2"])
        self.assertEqual(client.cmd("query-block")[0]["device"], "vm/disk.qcow2")
        server.disconnect()
        self.remove_when_free(client, "vm/disk.qcow2")
        self.assertTrue(is_free(path))
        self.assertEqual(server.connect("vm/disk.qcow2").pread(1, 0), b"a")
        server.stop()
