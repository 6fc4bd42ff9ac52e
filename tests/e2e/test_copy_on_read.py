# SPDX-License-Identifier: BSD-3-Clause
"""copy-on-read=on: data that clients read from a backing file is copied into the image."""

import json
import os
import random
import subprocess
import threading
import time
import unittest

from harness import KIB, MIB, Model, check, create, run, sha256, wait_until
from qmp import Qmp
from remote_base import RemoteBase

SIZE = 4 * MIB


class CopyOnRead(RemoteBase):
    """The base is a raw file behind nbdkit's log filter, which shows what was read from it."""

    def setUp(self):
        super().setUp()
        rng = random.Random(7)
        self.content = bytearray(rng.randbytes(SIZE))
        self.content[MIB:2 * MIB] = bytes(MIB)

    def serve_base(self, *filters, keys=()):
        self.write_base(self.content)
        self.start_base("--filter=log", *filters, keys=(f"logfile={self.path('log')}", *keys))

    def bytes_read(self):
        """The number of bytes read from the base since the last call."""
        with open(self.path("log")) as file:
            lines = file.readlines()
        os.truncate(self.path("log"), 0)
        total = 0
        for line in lines:
            if " Read " in line and "count=" in line:
                total += int(line.split("count=")[1].split()[0], 0)
        return total

    def overlay(self, fmt="qcow2", options="", name="overlay"):
        path = self.path(f"{name}.{fmt}")
        words = ["-o", options] if options else []
        run("qemu-img", "create", "-q", "-u", "-f", fmt, *words, "-b", self.uri, "-F", "raw", path, str(SIZE))
        return path

    def keep(self, path, *keys, **kwargs):
        return self.serve(path, "copy-on-read=on", *keys, **kwargs)

    @staticmethod
    def use(handle, model, rng, requests):
        for _ in range(requests):
            off = rng.randrange(SIZE - 70000)
            if rng.random() < 0.3:
                model.write(handle, off, rng.randbytes(rng.randrange(1, 70000)))
            else:
                model.compare(handle, off, rng.randrange(1, 70000))

    def test_what_was_read_is_there_without_the_base(self):
        for fmt, options in (("qcow2", ""), ("qcow2", "extended_l2=on"), ("qcow2", "compat=0.10"), ("qed", "")):
            with self.part(fmt=fmt, options=options):
                self.serve_base()
                path = self.overlay(fmt, options)
                server = self.keep(path)
                model = Model(self.content)
                handle = server.connect()
                model.compare(handle)
                server.stop()
                check(path, fmt)
                run("qemu-img", "rebase", "-u", "-f", fmt, "-b", "", path)
                run("qemu-img", "compare", "-f", fmt, "-F", "raw", path, self.path("base.raw"))
                os.unlink(path)

    def test_zeroes_take_no_space(self):
        self.serve_base()
        path = self.overlay()
        server = self.keep(path)
        Model(self.content).compare(server.connect(), MIB, MIB)
        server.stop()
        parts = json.loads(run("qemu-img", "map", "--output=json", "-f", "qcow2", path).stdout)
        kept = [p for p in parts if p["depth"] == 0]
        self.assertEqual([(p["start"], p["length"], p["zero"], p["data"]) for p in kept],
                         [(MIB, MIB, True, False)])

    def test_a_part_of_a_cluster_fetches_the_cluster_once(self):
        self.serve_base()
        server = self.keep(self.overlay())
        handle = server.connect()
        self.bytes_read()
        for off in 3 * MIB + 1000, 3 * MIB, 3 * MIB + 60 * KIB:
            self.assertEqual(handle.pread(512, off), self.content[off:off + 512])
        self.assertEqual(self.bytes_read(), 64 * KIB)
        handle.cache(4 * KIB, 64 * KIB)
        self.assertEqual(self.bytes_read(), 64 * KIB)
        self.assertEqual(handle.pread(64 * KIB, 64 * KIB), self.content[64 * KIB:128 * KIB])
        self.assertEqual(self.bytes_read(), 0)

    def test_readers_of_one_cluster_fetch_it_once(self):
        self.serve_base("--filter=delay", keys=["rdelay=200ms"])
        server = self.keep(self.overlay())
        handles = [server.connect() for _ in range(6)]
        found = [None] * len(handles)
        self.bytes_read()

        def read(i):
            found[i] = handles[i].pread(512, i * 512)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(len(handles))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, data in enumerate(found):
            self.assertEqual(data, self.content[i * 512:i * 512 + 512])
        self.assertEqual(self.bytes_read(), 64 * KIB)

    def test_off_and_read_only_keep_nothing(self):
        self.serve_base()
        path = self.overlay()
        before = open(path, "rb").read()
        for keys, nbdkit in (((), ()), (("copy-on-read=off",), ()), (("copy-on-read=on",), ("-r",))):
            server = self.serve(path, *keys, nbdkit=nbdkit)
            Model(self.content).compare(server.connect())
            server.stop()
            self.assertEqual(open(path, "rb").read(), before)

    def test_a_full_disk_is_told_once_and_reads_go_on(self):
        folder = self.path("small")
        os.mkdir(folder)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", folder],
                          stderr=subprocess.DEVNULL).returncode:
            self.skipTest("can't mount")
        self.addCleanup(subprocess.run, ["umount", "-l", folder])
        self.serve_base()
        path = self.overlay(name="small/overlay")
        server = self.keep(path)
        Model(self.content).compare(server.connect())
        server.stop()
        self.assertEqual(server.errors.count("aren't kept: No space left on device"), 1)
        check(path, "qcow2")

    def test_the_base_goes_away_and_comes_back(self):
        self.serve_base()
        server = self.keep(self.overlay())
        handle = server.connect()
        model = Model(self.content)
        model.compare(handle, 0, 128 * KIB)
        self.end_base()
        model.compare(handle, 0, 128 * KIB)
        self.serve_base()
        model.compare(handle)

    def test_a_stream_completes_it_beside_readers_and_writers(self):
        self.serve_base()
        path = self.overlay()
        server = self.keep(path, f"control={self.path('qmp')}")
        handle = server.connect()
        model = Model(self.content)
        client = Qmp(self.path("qmp"))
        self.addCleanup(client.close)
        client.cmd("block-stream", job_id="job", device="drive0", speed=8 * MIB)
        self.use(handle, model, random.Random(3), 150)
        wait_until(lambda: not client.cmd("query-block-jobs"), 60, "the stream's end")
        self.end_base()
        model.compare(handle)
        server.stop()
        check(path, "qcow2")

    def test_a_kill_amid_reads_loses_nothing(self):
        self.serve_base()
        path = self.overlay()
        model = Model(self.content)
        rng = random.Random(5)
        for _ in range(5):
            server = self.keep(path)
            handle = server.connect()
            self.use(handle, model, rng, 20)
            handle.flush()
            model.compare(handle, rng.randrange(SIZE - 64 * KIB), 64 * KIB)
            server.kill()
            check(path, "qcow2", allow_leaks=True)
        server = self.keep(path)
        model.compare(server.connect())
        server.stop()
        check(path, "qcow2", allow_leaks=True)

    def test_an_image_that_is_frozen_gets_nothing_more(self):
        self.serve_base("--filter=delay", keys=["rdelay=100ms"])
        path = self.overlay()
        server = self.keep(path, f"control={self.path('qmp')}")
        handle = server.connect()
        client = Qmp(self.path("qmp"))
        self.addCleanup(client.close)
        reader = threading.Thread(target=lambda: handle.pread(SIZE, 0))
        reader.start()
        time.sleep(0.25)
        client.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=self.path("top"), format="qcow2")
        frozen = sha256(path)
        reader.join()
        Model(self.content).compare(server.connect())
        self.assertEqual(sha256(path), frozen)
        server.stop()
        self.assertEqual(sha256(path), frozen)
        check(path, "qcow2")

    def test_values(self):
        path = self.path("plain.qcow2")
        create(path, "qcow2", MIB)
        self.refused(path, "copy-on-read=maybe", words=["copy-on-read", "off or on"], name=False)


if __name__ == "__main__":
    unittest.main()
