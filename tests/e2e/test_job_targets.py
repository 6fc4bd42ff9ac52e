# SPDX-License-Identifier: BSD-3-Clause
"""What can be the target of a mirror, and what a job leaves behind."""

import os
import pathlib
import socket
import subprocess
import unittest

from harness import PLUGIN, create, fill, plugin_env, wait_until
from qmp import QmpError
from test_mirror import MirrorCase


class Refused(MirrorCase):
    """targets that are refused, with the reason"""

    def refused(self, words, target, **arguments):
        before = set(os.listdir(self.dir))
        self.fails("GenericError", self.client, "drive-mirror", words,
                   **{"device": "drive0", "job_id": "refused", "sync": "full", "target": target, **arguments})
        self.assertEqual(set(os.listdir(self.dir)), before, "a file is left")

    def test_the_servers_own_export(self):
        """the server's own export, on a Unix socket and on a port"""
        self.begin()
        self.refused("export of this server", self.server.uri)
        self.source_is_good()
        self.control = self.path("control")
        for address in "127.0.0.1", "localhost":
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            server = subprocess.Popen(["nbdkit", "-f", "-p", str(port), "-P", self.path("pid"), PLUGIN, self.image,
                                       f"control={self.control}"], env=plugin_env())
            try:
                wait_until(lambda: os.path.exists(self.path("pid")) and os.path.getsize(self.path("pid")), 20, "it")
                self.client = self.qmp()
                self.refused("export of this server", f"nbd://{address}:{port}")
            finally:
                server.terminate()
                server.wait()
                os.unlink(self.path("pid"))

    def test_another_server_isnt_taken_for_it(self):
        self.begin()
        self.mirror(self.memory().uri)
        self.ready()
        self.softly()

    def test_names(self):
        self.begin()
        self.refused("json:.*only NBD URIs, RBD names and local files", 'json:{"driver":"raw"}')
        self.refused("ssh:.*only NBD URIs, RBD names and local files", "ssh://host/x")
        self.client.cmd("drive-mirror", device="drive0", job_id="job", sync="full", target="file:" + self.path("a:b"))
        self.ready()
        self.softly()
        self.expect_content(self.path("a:b"), "raw")

    def test_odd_sizes(self):
        """M-35"""
        self.SIZE = 100001  # pylint: disable=invalid-name
        self.fmt, self.image, self.content = "raw", self.path("odd.raw"), bytearray(self.rng.randbytes(self.SIZE))
        with open(self.image, "wb") as disk:
            disk.write(self.content)
        self.begin()
        for fmt in "qcow2", "qed":
            self.refused("100001 bytes.*format=raw", self.path("new"), format=fmt)
        for end in "softly", "pivot":
            self.mirror("target.raw")
            self.ready()
            getattr(self, end)()
            self.assertEqual(os.path.getsize(self.path("target.raw")), self.SIZE)
        self.server.stop()
        with open(self.path("target.raw"), "rb") as target:
            self.same(target.read())

    def test_what_a_target_names(self):
        """references= also restricts the backing file that an existing target names (M-51)"""
        secret, folder = pathlib.Path(self.path("secret")), pathlib.Path(self.path("folder"))
        secret.write_bytes(b"secret" * (self.SIZE // 6))
        folder.mkdir()
        target = create(str(folder / "there.qcow2"), "qcow2", self.SIZE, backing=secret, backing_fmt="raw")
        for policy in ("none", "dir"):
            self.begin(f"references={policy}")
            for command in ("drive-mirror", "drive-backup"):
                self.fails("GenericError", self.client, command, f"references={policy}", device="drive0", job_id="job", sync="full",
                           target=target, format="qcow2", mode="existing")
            self.server.stop()
        self.begin()
        self.client.cmd("drive-mirror", device="drive0", job_id="job", sync="full", target=target, format="qcow2", mode="existing")
        self.ready()
        self.pivot()

    def test_a_data_file(self):
        """the disk's external data file, under its own name, by a hard link, or as the data file of the target"""
        data, other = self.path("data"), self.path("other.data")
        self.image = create(self.path("external.qcow2"), "qcow2", self.SIZE, options=f"data_file={data},data_file_raw=on")
        self.content = bytearray(self.rng.randbytes(self.SIZE))
        fill(self.image, "qcow2", [(0, bytes(self.content))])
        target = create(self.path("target.qcow2"), "qcow2", self.SIZE, options=f"data_file={other}")
        os.unlink(other)
        os.link(data, other)
        self.begin("lock=off")
        for arguments in ({"format": "raw"}, {"format": "raw", "mode": "existing"}, {"format": "qcow2"}):
            self.refused("is part of the disk", data, **arguments)
            self.refused("is part of the disk", other, **arguments)
        self.refused("is part of the disk", target, format="qcow2", mode="existing")
        self.client.cmd("blockdev-add", driver="qcow2", node_name="x", file={"driver": "file", "filename": target})
        self.fails("GenericError", self.client, "blockdev-mirror", "is part of the disk", device="drive0", job_id="job", sync="full",
                   target="x")
        self.same(self.disk.pread(self.SIZE, 0), "the disk")
        self.source_is_good()

    def test_too_many_write_blocking_jobs(self):
        self.begin()
        for number in range(4):
            self.mirror(f"t{number}.raw", job_id=f"j{number}", copy_mode="write-blocking")
        with self.assertRaisesRegex(QmpError, "'fifth'.*only 4 jobs"):
            self.mirror("t4.raw", job_id="fifth", copy_mode="write-blocking")
        self.source_is_good()

    def test_what_is_left_of_a_job_that_is_shown(self):
        """M-10: a concluded job that is still listed has at most one thread, and no buffers"""
        self.begin()
        tasks, before = f"/proc/{self.server.process.pid}/task", None
        for number in range(4):
            self.mirror(f"t{number}.raw", job_id=f"j{number}", auto_dismiss=False)
            self.ready()
            self.client.cmd("block-job-cancel", device=f"j{number}")
            self.client.event("JOB_STATUS_CHANGE", id=f"j{number}", status="concluded")
            before = before or len(os.listdir(tasks))
        self.assertLessEqual(len(os.listdir(tasks)) - before, 3)
        self.server.stop()


if __name__ == "__main__":
    unittest.main()
