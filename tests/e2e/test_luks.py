# SPDX-License-Identifier: BSD-3-Clause
"""The format luks (LUKS containers): made and read by QEMU's tools and by ours, served, described; and
containers that were tampered with."""

import json
import os
import pathlib
import random
import struct
import unittest

from featured import PASSPHRASE, SECRET
from harness import *
from qmp import Qmp
from writers import Writers

SIZE = 8 * MIB
PAYLOAD = 104  # offset of the field with the disk's first sector
MATERIAL = 208 + 40  # offset of the field with the first sector of slot 0's key material
CIPHERS = ["", "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256", "cipher-alg=aes-256,hash-alg=sha1"]


class Luks(Case):
    made = {}  # (tool, options) -> bytes: a cache, because qemu-img takes seconds to make one

    def make(self, options="", tool="qemu-img"):
        path = self.path("disk.luks")
        words = f"key-secret=s,iter-time=10{',' if options else ''}{options}"
        if (tool, options) in self.made:
            pathlib.Path(path).write_bytes(self.made[tool, options])
            return path
        if tool == "qemu-img":
            create_encrypted(path, str(SIZE), words, fmt="luks")
        else:
            run(QIMG, "create", "-q", *SECRET, "-f", "luks", "-o", words, path, str(SIZE))
        self.made[tool, options] = pathlib.Path(path).read_bytes()
        return path

    def opts(self, path):
        return f"driver=luks,key-secret=s,file.filename={path}"

    def content(self, path):
        flat = self.path("flat")
        run("qemu-img", "convert", *SECRET, "--image-opts", self.opts(path), "-O", "raw", flat)
        return pathlib.Path(flat).read_bytes()

    def open(self, path, *keys):
        return self.serve(path, f"passphrase={PASSPHRASE}", *keys)

    def random_requests(self, path, seed):
        """Random requests; QEMU must read the content before and after them."""
        model = Model(self.content(path))
        server = self.open(path)
        exercise([server.connect() for _ in range(3)], model, random.Random(seed), 150)
        server.stop()
        self.assertEqual(self.content(path), bytes(model.data))

    def test_both_ways(self):
        for tool in ("qemu-img", "qimg"):
            for seed, options in enumerate(CIPHERS):
                with self.part(tool=tool, options=options):
                    self.random_requests(self.make(options, tool=tool), seed)

    def test_many_writers(self):
        """Eight writers whose ranges don't overlap, but end inside of shared sectors: no write is lost."""
        path = self.make()
        server = self.open(path)
        writers = Writers(server, bytearray(self.content(path))[:SIZE - 100], "luks", 8)
        writers.some(800)
        wanted = writers.stop()
        server.stop()
        self.assertEqual(self.content(path)[:len(wanted)], bytes(wanted))

    def test_an_overlay(self):
        """An overlay of a container, opened with passphrase.1."""
        below, top = self.make(), self.path("top.qcow2")
        run("qemu-io", *SECRET, "--image-opts", self.opts(below), "-c", "write -q -P 7 100000 300000")
        create(top, "qcow2", SIZE, backing=below, backing_fmt="luks")
        server = self.serve(top, f"passphrase.1={PASSPHRASE}")
        handle = server.connect()
        self.assertEqual(handle.pread(300000, 100000), b"\7" * 300000)
        handle.pwrite(b"\1" * 10, 100005)
        self.assertEqual(handle.pread(20, 100000), b"\7" * 5 + b"\1" * 10 + b"\7" * 5)

    def test_an_image_goes_on_top(self):
        """After a snapshot the container is a backing file that doesn't change."""
        path, top = self.make(), self.path("top.qcow2")
        before = self.content(path)
        server = self.open(path, f"control={self.path('control')}")
        handle = server.connect()
        with Qmp(self.path("control")) as client:
            client.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=top, format="qcow2")
        handle.pwrite(b"\5" * 5000, 123)
        server.stop()
        self.assertEqual(self.content(path), before)
        handle = self.serve(top, f"passphrase.1={PASSPHRASE}").connect()
        self.assertEqual(handle.pread(6000, 0), before[:123] + b"\5" * 5000 + before[5123:6000])

    def test_converted(self):
        """convert writes zeroes, too, because a new container reads as noise."""
        source, target = create(self.path("source.qcow2"), "qcow2", SIZE), self.path("target.luks")
        run("qemu-io", "-c", f"write -q -P 3 {MIB} 100000", source)
        run(QIMG, "convert", *SECRET, "-O", "luks", "-o", "key-secret=s,iter-time=10", source, target)
        found = self.content(target)
        self.assertEqual(found, bytes(MIB) + b"\3" * 100000 + bytes(SIZE - MIB - 100000))
        run(QIMG, "convert", *SECRET, "--image-opts", "-O", "raw", self.opts(target), self.path("back"))
        self.assertEqual(pathlib.Path(self.path("back")).read_bytes(), found)

    def test_described(self):
        path = self.make()
        ours, theirs = (json.loads(run(tool, "info", "--output=json", path).stdout) for tool in (QIMG, "qemu-img"))
        self.assertEqual(ours, qemu_json(theirs))
        done = run(QIMG, "create", *SECRET, "-f", "luks", "-o", "key-secret=s,iter-time=10", self.path("new"), "1M")
        self.assertEqual(done.stdout, f"Formatting '{self.path('new')}', fmt=luks size=1048576 key-secret=s iter-time=10\n")

    def test_refused(self):
        path = self.make()
        self.refused(path, words=["encrypted", "passphrase is needed"])
        self.refused(path, "passphrase=wrong", words=["passphrase opens none"])
        for options, word in (("", "key-secret"), ("key-secret=s,cipher-alg=rot13", "cipher-alg 'rot13'"),
                              ("key-secret=s,encrypt.format=luks", "encrypt.format")):
            done = run(QIMG, "create", *SECRET, "-f", "luks", *(["-o", options] if options else []),
                       self.path("none"), "1M", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn(word, done.stderr)
            self.assertFalse(os.path.exists(self.path("none")))

    def test_tampered_with(self):
        """Impossible offsets in the header, and truncated headers, are refused before the server listens."""
        for what, off, value in (("payload past the end", PAYLOAD, 0xffffffff), ("payload over the header", PAYLOAD, 1),
                                 ("material past the end", MATERIAL, 0x7fffffff), ("material over the header", MATERIAL, 0)):
            with self.part(what=what):
                path = self.make()
                patch(path, off, struct.pack(">I", value))
                self.refused(path, f"passphrase={PASSPHRASE}")
        for length in (4, 591, 4096):
            with self.part(length=length):
                path = self.make()
                os.truncate(path, length)
                self.refused(path, f"passphrase={PASSPHRASE}")

    def test_cut_off(self):
        """The disk in a truncated container ends with the last whole sector that is there."""
        path = self.make()
        os.truncate(path, os.path.getsize(path) - MIB - 100)
        handle = self.open(path).connect()
        self.assertEqual(handle.get_size(), SIZE - MIB - SECTOR)
        handle.pwrite(b"x" * 700, SIZE - MIB - SECTOR - 700)
        with self.assertRaises(nbd.Error):
            handle.set_strict_mode(0)
            handle.pread(512, handle.get_size())

    def test_killed(self):
        """After kill -9 everything that was flushed is there."""
        path = self.make()
        server = self.open(path)
        handle = server.connect()
        handle.pwrite(b"\xaa" * 100000, 777)
        handle.flush()
        server.kill()
        self.assertEqual(self.content(path)[777:100777], b"\xaa" * 100000)


if __name__ == "__main__":
    unittest.main()
