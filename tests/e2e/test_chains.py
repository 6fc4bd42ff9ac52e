# SPDX-License-Identifier: BSD-3-Clause
"""Long chains while they change: what the server has cached about frozen layers is never used after it
has become wrong.  E-13"""

import random
import threading

import nbd

from harness import KIB, SEED
from test_overlays import ROUNDS
from test_stream import StreamCase

READERS = 3


class Readers:
    """Connections that read at random places and compare with the content that the case expects."""

    def __init__(self, case):
        self.case, self.stop, self.wrong = case, threading.Event(), []
        self.threads = [threading.Thread(target=self.read, args=(number,)) for number in range(READERS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def read(self, number):
        rng = random.Random(f"{SEED} reader {number}")
        disk = self.case.server.connect()
        while not self.stop.is_set() and not self.wrong:
            length = rng.choice([512, 4 * KIB, 100 * KIB])
            off = rng.randrange(0, self.case.SIZE - length, 512)
            try:
                with self.case.unchanged:
                    if bytes(disk.pread(length, off)) != bytes(self.case.content[off:off + length]):
                        self.wrong.append((off, length))
            except nbd.Error as error:
                self.wrong.append(str(error))
        disk.shutdown()


class Jobs(StreamCase):
    def change(self):
        off = self.rng.randrange(0, self.SIZE - 100 * KIB, 512)
        with self.unchanged:
            self.write(off, self.rng.randbytes(self.rng.choice([512, 70 * KIB])))

    def job(self, number):
        layers, rng = len(self.names()), self.rng
        name = self.names()
        if layers < 4 or rng.random() < 0.3:
            self.fmt = rng.choice(["qcow2", "qed"])
            self.image = self.snapshot(f"over{number}", self.fmt)
            return
        upper = rng.randrange(0, layers - 2)
        lower = rng.randrange(upper + 2, layers)
        if rng.random() < 0.5:
            self.stream(name[upper], base_node=name[lower])
            return
        upper += 1
        if upper < lower:
            self.client.cmd("block-commit", job_id="job", device="drive0", top_node=name[upper], base_node=name[lower])
            self.ended()

    def test_under_readers(self):
        """snapshots, commits between layers and streams, in any order"""
        for number in range(ROUNDS):
            with self.subTest(number=number, seed=SEED):
                self.rng = random.Random(f"{SEED} chains {number}")
                self.unchanged = threading.Lock()
                self.chain(depth=5)
                self.begin()
                with Readers(self) as readers:
                    for turn in range(8):
                        self.change()
                        self.job(f"{number}x{turn}")
                self.assertEqual(readers.wrong, [])
                self.good()
