# SPDX-License-Identifier: BSD-3-Clause
"""Bases of several disks of one server: each base is open only once while disks are opened and closed.  E-12"""

import os
import random
import threading

from harness import KIB, MIB, SECTOR, SEED, check, content, create, fill, run
from qmp import Qmp, QmpError
from test_folder import SIZE, Folder, open_files, resident

MANY = int(os.environ.get("QIMG_OVERLAYS", "200"))


def descriptors(server, path):
    """The number of descriptors that the server has of a file."""
    real, folder, n = os.path.realpath(path), f"/proc/{server.process.pid}/fd", 0
    for number in os.listdir(folder):
        try:
            n += os.readlink(os.path.join(folder, number)) == real
        except FileNotFoundError:
            pass
    return n


class Bases(Folder):
    def bases(self, depth=3):
        """Makes a chain of bases outside the folder, each with its own data; self.bytes is the last one's content."""
        self.chain, below = [], None
        for number in range(depth):
            path = create(self.path(f"base{number}.qcow2"), "qcow2", SIZE, backing=below, backing_fmt="qcow2" if below else None)
            fill(path, "qcow2", [(number * 256 * KIB, bytes([100 + number]) * 200 * KIB)])
            self.chain.append(path)
            below = path
        self.bytes = content(below, "qcow2")

    def overlays(self, n):
        for number in range(n):
            self.image(f"{number}.qcow2", byte=1 + number % 99, backing=self.chain[-1], backing_fmt="qcow2")

    def disk(self, number):
        return bytes([1 + number % 99]) * SECTOR + self.bytes[SECTOR:]

    def commit(self, client):
        """Commits the first disk into its base.  Returns None, or the error when it is refused."""
        try:
            client.cmd("block-commit", job_id="job", device="0.qcow2")
        except QmpError as error:
            return error.desc
        client.event("BLOCK_JOB_READY")
        client.cmd("job-complete", id="job")
        self.assertNotIn("error", client.event("BLOCK_JOB_COMPLETED")["data"])
        return None

    def test_many_overlays(self):
        """one descriptor for each base, and little memory for each disk; everything is released at the end"""
        self.bases()
        self.overlays(MANY)
        server = self.serve_folder("linger=0")
        before = open_files(server)
        disks = [server.connect("0.qcow2")]
        self.assertEqual(bytes(disks[0].pread(SIZE, 0)), self.disk(0))
        one = resident(server)
        for number in range(1, MANY):
            disks.append(server.connect(f"{number}.qcow2"))
            self.assertEqual(bytes(disks[number].pread(MIB, 0)), self.disk(number)[:MIB])
        for path in self.chain:
            self.assertEqual(descriptors(server, path), 1, path)
        each = (resident(server) - one) / MANY
        print(f"{MANY} overlays on one chain: {each / KIB:.0f} KiB each, with its connection")
        self.assertLess(each, 2 * MIB)
        for disk in disks[:-1]:
            disk.shutdown()
        self.await_true(lambda: open_files(server) < before + 16, "the disks are closed")
        self.assertEqual(bytes(disks[-1].pread(SIZE, 0)), self.disk(MANY - 1))
        self.assertEqual(descriptors(server, self.chain[0]), 1)
        disks[-1].shutdown()
        for path in self.chain:
            self.await_true(lambda path=path: descriptors(server, path) == 0, "all is closed")
        server.stop()
        for path in self.chain:
            check(path, "qcow2")

    def test_come_and_go(self):
        """threads that open, read, write and close disks over the same bases"""
        self.bases(4)
        n = 12
        self.overlays(n)
        server = self.serve_folder("linger=0", "metadata-cache=1M")
        wrong = []

        def client(which):
            rng = random.Random(f"{SEED} {which}")
            for _ in range(15):
                number = which * 2 + rng.randrange(2)
                disk = server.connect(f"{number}.qcow2")
                expected = self.disk(number)
                for _ in range(20):
                    off = rng.randrange(SECTOR * 2, SIZE - 70 * KIB, SECTOR)
                    if bytes(disk.pread(64 * KIB, off)) != expected[off:off + 64 * KIB]:
                        wrong.append((number, off))
                disk.pwrite(bytes([1 + number % 99]) * SECTOR, 0)
                disk.shutdown()

        threads = [threading.Thread(target=client, args=(which,)) for which in range(n // 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        server.stop()
        for number in range(n):
            check(os.path.join(self.folder, f"{number}.qcow2"), "qcow2")
            self.assertEqual(content(os.path.join(self.folder, f"{number}.qcow2"), "qcow2"), self.disk(number))

    def test_a_writer_is_refused(self):
        """a commit into a base that another disk reads is refused until that disk is closed"""
        self.bases(2)
        self.overlays(2)
        control = self.path("control")
        server = self.serve_folder("linger=0", f"control={control}")
        first, second = server.connect("0.qcow2"), server.connect("1.qcow2")
        first.pwrite(b"\7" * 4096, MIB)
        client = Qmp(control)
        self.assertRegex(self.commit(client), "Permission conflict.*'write'")
        self.assertEqual(bytes(second.pread(SIZE, 0)), self.disk(1))
        second.shutdown()
        self.await_true(lambda: not self.commit(client), "the commit")
        expected = bytearray(self.disk(0))
        expected[MIB:MIB + 4096] = b"\7" * 4096
        self.assertEqual(bytes(first.pread(SIZE, 0)), bytes(expected))
        server.stop()
        self.assertEqual(content(self.chain[1], "qcow2"), bytes(expected))
        check(self.chain[1], "qcow2")
