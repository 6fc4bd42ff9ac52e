# SPDX-License-Identifier: BSD-3-Clause
"""Targets, backing files and requests that hang: only the client that asked for them waits, and other
clients of the control socket are served meanwhile."""

import contextlib
import socket
import threading
import unittest

import nbd

import harness
from harness import KIB, MIB, create, wait_until
from peer import Peer
from qmp import Closed, QmpError
from test_mirror import MirrorCase

SOON = 3  # seconds: less than any timeout for something that hangs


class Waits(MirrorCase):
    def mute(self):
        """The URI of a Unix socket at which a connection succeeds but never gets an answer."""
        path = self.path("mute")
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(path)
        listener.listen(64)
        return f"nbd+unix:///?socket={path}"

    def ask(self, client, command, **arguments):
        """Sends a command without waiting for the reply."""
        client.send({"execute": command, "id": command,
                     "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}})

    def start_mute(self, client, job):
        self.ask(client, "drive-mirror", device="drive0", job_id=job, target=self.mute_uri, sync="full")

    def open_jobs(self, client):
        return {job["device"]: job["status"] for job in client.cmd("query-block-jobs")}

    def test_mute_targets(self):
        """M-21: other clients are served at once, events go on, and a cancel ends the wait"""
        self.begin()
        self.mute_uri, other = self.mute(), self.qmp()
        waiting = [self.qmp() for _ in range(6)]
        for number, client in enumerate(waiting):
            self.start_mute(client, f"j{number}")
        wait_until(lambda: len(self.open_jobs(other)) == 6, SOON, "the jobs")
        self.assertEqual(set(self.open_jobs(other).values()), {"created"})
        self.assertEqual(other.cmd("query-block")[0]["device"], "drive0")
        with self.assertRaisesRegex(QmpError, "in use"):
            other.cmd("drive-mirror", device="drive0", job_id="j1", target=self.path("x.raw"), sync="full")
        self.client.cmd("drive-mirror", device="drive0", job_id="job", target=self.path("t.raw"), sync="full")
        self.ready()
        self.softly()
        for number, client in enumerate(waiting[1:], 1):
            other.cmd("block-job-cancel", device=f"j{number}", force=True)
            reply = client.reply(SOON)
            self.assertEqual((reply["id"], reply["error"]["errno"]), ("drive-mirror", 125))
            self.assertRegex(reply["error"]["desc"], f"'j{number}'.*cancelled")
        self.assertNotIn("j1", self.open_jobs(other))
        # There are no events of jobs that never began.  The first one wasn't cancelled and ends by its timeout.
        other.cmd("query-status")
        self.assertEqual({event["data"].get("id", "job") for event in other.events if event["event"].startswith("JOB")},
                         {"job"})
        self.assertRegex(waiting[0].reply()["error"]["desc"], "timed out")
        self.source_is_good()

    def test_what_a_waiting_client_sends_is_answered_in_order(self):
        self.begin()
        self.mute_uri = self.mute()
        client = self.qmp()
        self.start_mute(client, "j")
        client.send_bytes(b"".join(b'{"execute": "query-status", "id": %d}' % number for number in range(500)))
        self.ask(client, "drive-mirror", device="drive0", job_id="second", target=self.path("t.raw"), sync="full")
        client.send({"execute": "query-status", "id": "last"})
        wait_until(lambda: self.open_jobs(self.client) == {"j": "created"}, SOON, "the job")
        self.client.cmd("block-job-cancel", device="j")
        self.assertEqual(client.reply()["id"], "drive-mirror")
        self.assertEqual([client.reply()["id"] for _ in range(500)], list(range(500)))
        self.assertEqual(client.reply(), {"return": {}, "id": "drive-mirror"})
        self.assertEqual(client.reply()["id"], "last")
        self.source_is_good()

    def test_a_client_that_leaves(self):
        """a client that disconnects while it waits: its job is started all the same"""
        self.begin()
        self.mute_uri = self.mute()
        for number in range(20):
            client = self.qmp()
            self.start_mute(client, f"j{number}")
            client.close()
        for number in range(20):
            wait_until(lambda: f"j{number}" in self.open_jobs(self.client), SOON, "the job")  # pylint: disable=W0640
        self.source_is_good()

    def test_the_end_of_the_server(self):
        """the server's end doesn't wait for the target; the client that waits gets an error"""
        self.begin()
        self.mute_uri = self.mute()
        client = self.qmp()
        self.start_mute(client, "j")
        wait_until(lambda: self.open_jobs(self.client) == {"j": "created"}, SOON, "the job")
        self.server.disconnect()
        self.client.cmd("quit")
        self.assertRegex(client.reply(SOON)["error"]["desc"], "'j'.*cancelled")
        with self.assertRaises(Closed):
            client.receive()
        self.server.wait()

    def test_a_commit_over_a_backing_file_that_hangs(self):
        """a commit opens a layer again, which hangs because its backing file does"""
        peer = Peer(self, "memory", str(self.SIZE))
        base = self.path("base.qcow2")
        harness.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", peer.uri, "-F", "raw", base)
        self.image = create(self.path("top.qcow2"), "qcow2", None, backing=base, backing_fmt="qcow2")
        self.begin()
        peer.freeze()
        self.addCleanup(peer.thaw)
        client = self.qmp()
        self.ask(client, "block-commit", device="drive0", job_id="c", base=base)
        wait_until(lambda: self.open_jobs(self.client) == {"c": "created"}, SOON, "the job")
        self.assertEqual(self.client.cmd("query-block")[0]["device"], "drive0")
        self.client.cmd("block-job-cancel", device="c", force=True)
        self.assertRegex(client.reply(SOON)["error"]["desc"], "'c'.*cancelled")
        peer.thaw()
        self.client.cmd("block-commit", device="drive0", job_id="c", base=base)
        self.ready()
        self.pivot("c")
        self.server.stop()

    def over_a_server(self):
        """Serves an overlay of an NBD export whose reads hang until its server is killed; returns that server."""
        self.log = self.path("log")
        peer = Peer(self, "--filter=log", "--filter=delay", "memory", str(self.SIZE), f"logfile={self.log}",
                    "delay-read=3600")
        self.image = self.path("top.qcow2")
        harness.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", peer.uri, "-F", "raw", self.image)
        self.begin()
        return peer

    def hangs(self, call, *arguments):
        """Runs a request in a thread; returns the thread when the request hangs in a read of the server below."""
        def request():
            with contextlib.suppress(nbd.Error):
                call(*arguments)

        def has_come():
            with open(self.log, encoding="ascii") as log:
                return " Read id=" in log.read()

        thread = threading.Thread(target=request)
        thread.start()
        wait_until(has_come, SOON, "the request")
        return thread

    def test_the_end_of_a_mirror_over_a_read_that_hangs(self):
        """M-09: other writes go on, and the job ends when the read has ended"""
        for end in "complete", "cancel":
            with self.part(end=end):
                peer = self.over_a_server()
                target = self.memory()
                self.mirror(target.uri, sync="none", mode="existing", auto_dismiss=False)
                self.ready()
                reader, other = self.hangs(self.disk.pread, 4096, MIB), self.server.connect()
                self.client.cmd(f"block-job-{end}", device="job")
                wait_until(lambda: self.job()["status"] not in ("ready", "waiting"), SOON, "the end")
                for off in range(0, MIB, 64 * KIB):
                    other.pwrite(b"w" * 64 * KIB, off)
                self.assertTrue(reader.is_alive())
                peer.kill()
                self.expect_event("BLOCK_JOB_COMPLETED")
                reader.join()
                self.assertEqual(self.client.cmd("query-block")[0]["inserted"]["file"],
                                 target.uri if end == "complete" else self.image)
                self.server.stop()

    def test_a_bitmap_over_a_write_that_hangs(self):
        """a bitmap is added when the write has ended; other clients are served meanwhile"""
        peer = self.over_a_server()
        writer, client = self.hangs(self.disk.pwrite, b"part of a cluster", MIB), self.qmp()
        for name in ("one", "two"):
            self.ask(client, "block-dirty-bitmap-add", node="drive0", name=name)
        for _ in range(20):
            self.assertEqual(self.client.cmd("query-block")[0]["device"], "drive0")
            self.assertTrue(self.client.cmd("query-status")["running"])
        self.assertTrue(writer.is_alive())
        peer.kill()
        self.assertEqual(client.reply(), {"return": {}, "id": "block-dirty-bitmap-add"})
        self.assertEqual(client.reply(), {"return": {}, "id": "block-dirty-bitmap-add"})
        writer.join()
        self.assertEqual({bitmap["name"] for bitmap in self.client.cmd("query-block")[0]["inserted"]["dirty-bitmaps"]},
                         {"one", "two"})
        self.server.stop()

    def test_a_bitmap_over_a_read_that_hangs(self):
        """a bitmap is added without a wait for the read"""
        peer = self.over_a_server()
        reader = self.hangs(self.disk.pread, 4096, MIB)
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b")
        self.client.cmd("block-dirty-bitmap-remove", node="drive0", name="b")
        self.assertTrue(reader.is_alive())
        peer.kill()
        reader.join()
        self.server.stop()


if __name__ == "__main__":
    unittest.main()
