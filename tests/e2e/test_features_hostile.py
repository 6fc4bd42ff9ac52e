# SPDX-License-Identifier: BSD-3-Clause
"""Compressed clusters, LUKS headers, subclusters and data files with hostile content: each is refused
before the server listens, or fails the requests that meet it with EIO, quickly and without much memory.
Other clusters are served as usual."""

import errno
import os
import pathlib
import struct
import time
import unittest
import zlib

import damage
from featured import PASSPHRASE, Featured
from harness import *

CLUSTER = 64 * KIB
SIZE = 4 * MIB
SOON = 20  # seconds; enough for everything here, even with sanitizers on a busy machine
MUCH = 400 * MIB
COMPRESSED = 1 << 62
BOMB = 2 * MIB  # the largest cluster


def deflated(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


def compressed_entry(cluster, host, length):
    """The L2 entry of a compressed cluster with `length` bytes at the offset `host`."""
    shift = 62 - (cluster.bit_length() - 1 - 8)
    sectors = (host + length - 1) // 512 - host // 512
    return COMPRESSED | sectors << shift | host


def first_table(raw):
    """The offset of the first L2 table."""
    l1 = struct.unpack_from(">Q", raw, 40)[0]
    return struct.unpack_from(">Q", raw, l1)[0] & damage.OFFSET


def peak(server):
    """The server's peak memory in bytes."""
    text = pathlib.Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii", errors="replace")
    return int(text.split("VmHWM:")[1].split()[0]) * KIB


class Hostile(Case):
    def good_neighbours(self, image, bad, data, keys=()):
        """Serves the image: reads of the cluster at `bad` and writes to a part of it must fail; all other clusters
        are unchanged and can be written.  Returns the server and a connection."""
        began = time.monotonic()
        server = self.serve(image, *keys)
        handle = server.connect()
        cluster = self.cluster
        self.errno(errno.EIO, handle.pread, cluster, bad)
        self.errno(errno.EIO, handle.pread, 100, bad + cluster // 2)
        for off in range(0, len(data), cluster):
            if off != bad:
                self.assertEqual(handle.pread(min(cluster, len(data) - off), off), data[off:off + cluster], off)
        self.assertTrue(server.alive)
        self.assertLess(time.monotonic() - began, SOON)
        if not SANITIZER_ENV:
            self.assertLess(peak(server), MUCH)
        return server, handle


class Streams(Hostile):
    """Hostile bytes in a compressed cluster."""

    cluster = CLUSTER

    def image(self, kind="zlib", cluster=CLUSTER):
        """An image with three compressed clusters; the stream of the second one lies alone at the end of the file."""
        self.cluster = cluster
        path = create(self.path("disk"), "qcow2", 8 * cluster, f"cluster_size={cluster},compression_type={kind}")
        words = [word for n in range(3) for word in ("-c", f"write -q -c -P {n + 1} {n * cluster} {cluster}")]
        run("qemu-io", "-f", "qcow2", *words, "-c", f"write -q -P 9 {6 * cluster} {cluster}", path)
        self.data = content(path, "qcow2")
        self.where = {guest: place for guest, place, _ in damage.Qcow2(path).l2_entries()}
        return path

    def plant(self, path, stream):
        """Replaces the second cluster's stream."""
        cluster = self.cluster
        end = -(-os.path.getsize(path) // cluster) * cluster
        stream += bytes(-len(stream) % 512)
        patch(path, end, stream)
        os.truncate(path, end + -(-len(stream) // cluster) * cluster)
        patch(path, self.where[cluster], struct.pack(">Q", compressed_entry(cluster, end, len(stream))))

    def streams(self, kind, cluster):
        rng = self.rng
        good = deflated(bytes(cluster)) if kind == "zlib" else b"\x28\xb5\x2f\xfd" + rng.randbytes(40)
        yield "zeroes", bytes(512)
        yield "noise", rng.randbytes(4096)
        yield "ones", b"\xff" * 1024
        if kind == "zlib":
            full = deflated(rng.randbytes(cluster // 2) + bytes(cluster // 2))
            yield "too short for the cluster", deflated(b"short")
            yield "cut", full[:cluster // 4 // 512 * 512]
            yield "a stored block without its bytes", b"\x01\xff\xff\x00\x00"
            yield "a distance before the start", bytes([0b01011, 0x02, 0x00]) + bytes(400)
        else:
            yield "a magic and noise", good
            # A frame that says it holds 2^62 bytes, of blocks that repeat a byte.
            yield "a frame of 2^62 bytes", b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 62) + b"\x02\x00\x00x" * 100
            # A window of 2^41 bytes.
            yield "a window of terabytes", b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x02\x00\x00x" * 100
            yield "a skippable frame without end", b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(504)
            yield "a dictionary that nobody has", b"\x28\xb5\x2f\xfd\x03\x01\x02\x03\x04" + bytes(503)

    def test_streams(self):
        for kind, cluster in (("zlib", CLUSTER), ("zstd", CLUSTER), ("zlib", BOMB), ("zstd", BOMB)):
            path = self.image(kind, cluster)
            pristine = pathlib.Path(path).read_bytes()
            for what, stream in self.streams(kind, cluster):
                with self.subTest(kind=kind, cluster=cluster, stream=what):
                    pathlib.Path(path).write_bytes(pristine)
                    self.plant(path, stream)
                    server, handle = self.good_neighbours(path, cluster, self.data)
                    handle.pwrite(b"x" * cluster, cluster)
                    self.assertEqual(handle.pread(cluster, cluster), b"x" * cluster)
                    server.stop()
            self._end_servers()
            os.unlink(path)

    def test_bombs(self):
        """Streams that would expand to a gigabyte fill their cluster, as in QEMU, or fail."""
        path = self.image()
        self.plant(path, deflated(b"B" * (32 * MIB)))
        began = time.monotonic()
        server = self.serve(path)
        handle = server.connect()
        for _ in range(200):
            try:
                self.assertEqual(handle.pread(CLUSTER, CLUSTER), b"B" * CLUSTER)
            except nbd.Error as failed:
                self.assertEqual(failed.errnum, errno.EIO)
        self.assertEqual(handle.pread(CLUSTER, 0), self.data[:CLUSTER])
        self.assertLess(time.monotonic() - began, SOON)
        if not SANITIZER_ENV:
            self.assertLess(peak(server), MUCH)
        server.stop()

    def test_places(self):
        """Streams that reach past the end of the file or lie in metadata."""
        path = self.image()
        pristine, image = pathlib.Path(path).read_bytes(), damage.Qcow2(path)
        table = next(image.l2_tables())[2]
        last = len(pristine)
        places = {
            "behind the file": compressed_entry(CLUSTER, last + MIB, 512),
            "over the file's end": compressed_entry(CLUSTER, last - 512, CLUSTER),
            "far away": compressed_entry(CLUSTER, (1 << 53) - CLUSTER, 512),
            "the header": compressed_entry(CLUSTER, 0, 4096),
            "the refcount table": compressed_entry(CLUSTER, image.rt, 512),
            "a refcount block": compressed_entry(CLUSTER, image.blocks[0], 512),
            "the L1 table": compressed_entry(CLUSTER, image.l1, 512),
            "its own L2 table": compressed_entry(CLUSTER, table + 17, 512),
            "the copied flag": compressed_entry(CLUSTER, 5 * CLUSTER, 512) | 1 << 63,
        }
        for what, entry in places.items():
            with self.subTest(place=what):
                pathlib.Path(path).write_bytes(pristine)
                patch(path, self.where[CLUSTER], struct.pack(">Q", entry))
                server, handle = self.good_neighbours(path, CLUSTER, self.data)
                # Clusters of metadata must not be freed or overwritten.
                for request in (lambda: handle.pwrite(b"y" * CLUSTER, CLUSTER), lambda: handle.zero(CLUSTER, CLUSTER),
                                lambda: handle.trim(CLUSTER, CLUSTER), lambda: handle.pwrite(b"z", 6 * CLUSTER)):
                    with contextlib.suppress(nbd.Error):
                        request()
                self.assertEqual(handle.pread(CLUSTER, 0), self.data[:CLUSTER])
                self.assertEqual(handle.pread(CLUSTER, 2 * CLUSTER), self.data[2 * CLUSTER:3 * CLUSTER])
                with contextlib.suppress(AssertionError):
                    server.stop()
                self.assertIn(server.returncode, (0, 1), server.errors)
                now = pathlib.Path(path).read_bytes()
                self.assertEqual(now[:4], pristine[:4])
                self.assertEqual(now[image.l1:image.l1 + 8], pristine[image.l1:image.l1 + 8])

    def test_shared_sectors(self):
        """Two entries share a stream: when one cluster is written, the other must not change."""
        for also in ("same place", "in the middle"):
            with self.subTest(also=also):
                path = self.image()
                image = damage.Qcow2(path)
                first = image.u(self.where[0])
                shift = 62 - 8
                host = first & ((1 << shift) - 1)
                entry = first if also == "same place" else compressed_entry(CLUSTER, host + 5, 512)
                patch(path, self.where[CLUSTER], struct.pack(">Q", entry))
                expected = self.data[:CLUSTER]
                server = self.serve(path)
                handle = server.connect()
                handle.pwrite(b"n" * 1000, CLUSTER * 2 + 10)
                for _ in range(3):
                    with contextlib.suppress(nbd.Error):
                        handle.pwrite(b"m" * CLUSTER, CLUSTER)
                    with contextlib.suppress(nbd.Error):
                        handle.flush()
                    for off in range(3 * CLUSTER, 6 * CLUSTER, CLUSTER):
                        with contextlib.suppress(nbd.Error):
                            handle.pwrite(self.rng.randbytes(CLUSTER), off)
                try:
                    self.assertEqual(handle.pread(CLUSTER, 0), expected)
                except nbd.Error as failed:  # the refcount was too low, so its cluster may have been reused
                    self.assertEqual(failed.errnum, errno.EIO)
                self.assertTrue(server.alive)
                server.kill()
                os.unlink(path)


class Luks(Hostile):
    """Damage to the LUKS header of an encrypted image."""

    cluster = CLUSTER
    # Fields of the LUKS header: name -> (offset, bytes)
    FIELDS = {"version": (6, 2), "cipher": (8, 32), "mode": (40, 32), "hash": (72, 32), "payload": (104, 4),
              "key bytes": (108, 4), "digest iterations": (164, 4), "slot 0 active": (208, 4),
              "slot 0 iterations": (212, 4), "slot 0 material": (248, 4), "slot 0 stripes": (252, 4),
              "slot 1 active": (256, 4), "slot 1 iterations": (260, 4), "slot 1 material": (296, 4),
              "slot 1 stripes": (300, 4)}
    IN_USE = 0x00ac71f3

    def image(self):
        disk = Featured(self.dir, {"encryption": "luks-xts"}, self.rng, size=SIZE)
        raw = pathlib.Path(disk.path).read_bytes()
        at = struct.unpack_from(">I", raw, 100)[0]
        while True:
            kind, length = struct.unpack_from(">II", raw, at)
            if kind == 0x0537be77:
                self.pointer = at + 8
                self.luks, self.luks_bytes = struct.unpack_from(">QQ", raw, at + 8)
                break
            self.assertNotEqual(kind, 0, "no pointer to a LUKS header")
            at += 8 + -(-length // 8) * 8
        return disk

    def set(self, path, **fields):
        for name, value in fields.items():
            off, length = self.FIELDS[name.replace("_", " ")]
            body = value.to_bytes(length, "big") if isinstance(value, int) else value.ljust(length, b"\0")
            patch(path, self.luks + off, body)

    cases = {
        "version 0": dict(version=0),
        "version 2": dict(version=2),
        "cipher without end": dict(cipher=b"a" * 32),
        "unknown cipher": dict(cipher=b"rot13"),
        "unknown mode": dict(mode=b"ecb-plain"),
        "mode of escapes": dict(mode=b"xts-\x1b[31m\n"),
        "unknown hash": dict(hash=b"crc32"),
        "hash without end": dict(hash=b"sha256".ljust(32, b"6")),
        "no key": dict(key_bytes=0),
        "a key of gigabytes": dict(key_bytes=0xffffffff),
        "a key of 20 bytes": dict(key_bytes=20),
        "digest of 0 iterations": dict(digest_iterations=0),
        "digest of 2^32-1 iterations": dict(digest_iterations=0xffffffff),
        "slot of 0 iterations": dict(slot_0_iterations=0),
        "slot of 2^32-1 iterations": dict(slot_0_iterations=0xffffffff),
        "2^32-1 iterations in another slot": dict(slot_1_active=IN_USE, slot_1_iterations=0xffffffff),
        "no stripes": dict(slot_0_stripes=0),
        "2^32-1 stripes": dict(slot_0_stripes=0xffffffff),
        "material over the header": dict(slot_0_material=0),
        "material in the header": dict(slot_0_material=1),
        "material behind everything": dict(slot_0_material=0xffffffff),
        "material of another slot": dict(slot_1_active=IN_USE, slot_1_iterations=1000, slot_1_stripes=4000,
                                         slot_1_material=8),
        "material over the payload": dict(slot_0_material=16380),
        "no slot in use": dict(slot_0_active=0xdead),
        "a slot that is neither": dict(slot_0_active=0x12345678),
    }

    def test_fields(self):
        disk = self.image()
        pristine = pathlib.Path(disk.path).read_bytes()
        for what, fields in self.cases.items():
            with self.subTest(what=what):
                pathlib.Path(disk.path).write_bytes(pristine)
                self.set(disk.path, **fields)
                began = time.monotonic()
                line = self.refused(disk.path, *disk.keys)
                self.assertLess(time.monotonic() - began, SOON)
                self.assertNotIn(PASSPHRASE, line)
                self.assertNotRegex(line, r"[^\x20-\x7e]")

    def test_pointer(self):
        """Wrong offsets and lengths of the LUKS header in the image's header extension."""
        disk = self.image()
        pristine = pathlib.Path(disk.path).read_bytes()
        for what, place, length in (
                ("behind the file", 1 << 40, self.luks_bytes), ("wrapping around", (1 << 64) - CLUSTER, 1 << 20),
                ("not aligned", self.luks + 512, self.luks_bytes), ("over the header", 0, self.luks_bytes),
                ("no bytes", self.luks, 0), ("too few", self.luks, 591), ("only the header", self.luks, 4096),
                ("2^63 bytes", self.luks, 1 << 63), ("not LUKS", 3 * CLUSTER, 2 * CLUSTER)):
            with self.subTest(what=what):
                pathlib.Path(disk.path).write_bytes(pristine)
                patch(disk.path, self.pointer, struct.pack(">QQ", place, length))
                self.refused(disk.path, *disk.keys)

    def test_noise(self):
        """Random bytes in the LUKS header or the key material: the image is refused quickly."""
        disk = self.image()
        pristine = pathlib.Path(disk.path).read_bytes()
        for number in range(60 if LONG else 12):
            with self.subTest(number=number):
                pathlib.Path(disk.path).write_bytes(pristine)
                if number % 3 == 0:
                    patch(disk.path, self.luks + 4096 + self.rng.randrange(32 * 4000), b"\x55" * 100)
                else:
                    off = self.rng.choice((6, 104, 132, 208))
                    patch(disk.path, self.luks + off, self.rng.randbytes(self.rng.randint(1, 40)))
                began = time.monotonic()
                try:
                    server = self.serve(disk.path, *disk.keys)
                except StartFailed as failed:
                    self.assertEqual(failed.code, 1, failed.errors)
                else:  # these bytes didn't matter
                    self.assertEqual(server.connect().pread(SIZE, 0), disk.data)
                    server.stop()
                self.assertLess(time.monotonic() - began, SOON)

    def test_entries_into_the_header(self):
        """L2 entries that point into the LUKS header: these clusters are neither read nor written."""
        disk = self.image()
        raw = pathlib.Path(disk.path).read_bytes()
        table = first_table(raw)
        bad = next(n for n in range(SIZE // CLUSTER) if any(raw[table + 8 * n:table + 8 * n + 8]))
        for where in (self.luks, self.luks + CLUSTER):
            with self.subTest(where=where):
                pathlib.Path(disk.path).write_bytes(raw)
                patch(disk.path, table + 8 * bad, struct.pack(">Q", where | 1 << 63))
                server, handle = self.good_neighbours(disk.path, bad * CLUSTER, bytes(disk.data), disk.keys)
                self.errno((errno.EIO, errno.EROFS), handle.pwrite, b"k" * CLUSTER, bad * CLUSTER)
                with contextlib.suppress(AssertionError):
                    server.stop()
                now = pathlib.Path(disk.path).read_bytes()
                self.assertEqual(now[self.luks:self.luks + self.luks_bytes], raw[self.luks:self.luks + self.luks_bytes])


class Extended(Hostile):
    """Impossible subcluster bitmaps."""

    cluster = CLUSTER

    def test_bitmaps(self):
        disk = Featured(self.dir, {"extended": "on"}, self.rng, size=SIZE)
        raw = pathlib.Path(disk.path).read_bytes()
        table = first_table(raw)
        used = [n for n in range(SIZE // CLUSTER) if any(raw[table + 16 * n:table + 16 * n + 8])]
        for what, entry, bitmap in (
                ("allocated and zero", None, 1 << 32 | 1), ("allocated nowhere", 0, 1),
                ("zero flag", "zero", 0), ("not aligned", "odd", 1), ("behind the file", 1 << 50 | 1 << 63, 1),
                ("the L2 table", table | 1 << 63, 0xffffffff),
                ("a compressed one with a bitmap", COMPRESSED | 4 * CLUSTER, 1)):
            with self.subTest(what=what):
                pathlib.Path(disk.path).write_bytes(raw)
                place = table + 16 * used[0]
                old = struct.unpack_from(">Q", raw, place)[0]
                value = {None: old, "zero": old | 1, "odd": old | 512}.get(entry, entry)
                patch(disk.path, place, struct.pack(">QQ", value, bitmap))
                server, handle = self.good_neighbours(disk.path, used[0] * CLUSTER, bytes(disk.data))
                self.errno((errno.EIO, errno.EROFS), handle.pwrite, b"k" * 100, used[0] * CLUSTER + 7)
                with contextlib.suppress(AssertionError):
                    server.stop()


class DataFile(Hostile):
    """External data files that don't fit the image."""

    cluster = CLUSTER

    def disk(self, how="plain"):
        return Featured(self.dir, {"data_file": how}, self.rng, size=SIZE)

    def test_files(self):
        disk = self.disk()
        moved = self.path("moved")
        os.rename(disk.data_path, moved)

        def check(what, make, words):
            with self.subTest(what=what):
                make()
                self.refused(disk.path, words=words)
                if os.path.isdir(disk.data_path):
                    os.rmdir(disk.data_path)
                elif os.path.lexists(disk.data_path):
                    os.unlink(disk.data_path)
        check("missing", lambda: None, ["data file", "disk.data"])
        check("a folder", lambda: os.mkdir(disk.data_path), ["data"])
        check("a FIFO", lambda: os.mkfifo(disk.data_path), ["data"])
        check("the image", lambda: os.symlink(disk.path, disk.data_path), ["data"])
        check("a loop", lambda: os.symlink(disk.data_path, disk.data_path), ["data"])

    def test_short_file(self):
        """Behind the end of a short data file the disk reads as zeroes."""
        disk = self.disk()
        os.truncate(disk.data_path, CLUSTER + 100)
        server = self.serve(disk.path)
        data = bytearray(disk.data)
        data[CLUSTER + 100:] = bytes(len(data) - CLUSTER - 100)
        Model(data).compare(server.connect())
        server.stop()

    def test_entries(self):
        disk = self.disk()
        raw = pathlib.Path(disk.path).read_bytes()
        table = first_table(raw)
        used = [n for n in range(SIZE // CLUSTER) if any(raw[table + 8 * n:table + 8 * n + 8])][0]
        for what, entry in (("compressed", COMPRESSED | 4 * CLUSTER), ("not aligned", 1 << 63 | CLUSTER + 512)):
            with self.subTest(what=what):
                pathlib.Path(disk.path).write_bytes(raw)
                patch(disk.path, table + 8 * used, struct.pack(">Q", entry))
                server, _ = self.good_neighbours(disk.path, used * CLUSTER, bytes(disk.data))
                with contextlib.suppress(AssertionError):
                    server.stop()


if __name__ == "__main__":
    unittest.main()
