# SPDX-License-Identifier: BSD-3-Clause
"""An image that can't be served is refused before nbdkit listens, with exit status 1 and one message
that names the file, the field and the reason.  Damage that isn't found at the start fails the requests
that meet it with EIO, and the server goes on.  Nothing hangs.

Requirements: Q-02, Q-17, L-09, L-10, V-01 and the formats' specifications.  Each table row is a
test of its own.
"""

import contextlib
import errno
import os
import pathlib
import socket
import struct
import sys
import unittest

from harness import *

SIZE = 2 * MIB
FAR = 1 << 40  # aligned to clusters, and past the end of every file here

# name: (offset, bytes) of each header field
QCOW2 = {
    "magic": (0, 4), "version": (4, 4), "backing_file_offset": (8, 8), "backing_file_size": (16, 4),
    "cluster_bits": (20, 4), "size": (24, 8), "crypt_method": (32, 4), "l1_size": (36, 4),
    "l1_table_offset": (40, 8), "refcount_table_offset": (48, 8), "refcount_table_clusters": (56, 4),
    "nb_snapshots": (60, 4), "snapshots_offset": (64, 8), "incompatible_features": (72, 8),
    "refcount_order": (96, 4), "header_length": (100, 4), "compression_type": (104, 1),
}
QED = {
    "magic": (0, 4), "cluster_size": (4, 4), "table_size": (8, 4), "header_size": (12, 4),
    "features": (16, 8), "l1_table_offset": (40, 8), "image_size": (48, 8),
    "backing_filename_offset": (56, 4), "backing_filename_size": (60, 4),
}


def set_fields(path, fmt, **fields):
    table, order = (QCOW2, "big") if fmt == "qcow2" else (QED, "little")
    for name, value in fields.items():
        off, length = table[name]
        patch(path, off, value.to_bytes(length, order))


@unittest.skipIf(STANDIN, "needs the plugin")
@parametrised
class Parameters(Case):
    cases_bad_value = {
        "unknown key": ("frobnicate=1", "frobnicate=1: unknown parameter: there are: file, .*node-name, passphrase"),
        "mistyped key": ("chache=none", "chache=none: unknown parameter: did you mean 'cache'"),
        "format": ("format=vmdk", "format.*qcow2"),
        "format empty": ("format=", "format"),
        "cache": ("cache=sometimes", "cache.*(writethrough.*volatile|volatile.*writethrough)"),
        "need-check-delay negative": ("need-check-delay=-1", "need-check-delay"),
        "need-check-delay word": ("need-check-delay=soon", "need-check-delay"),
        "need-check-delay not a number": ("need-check-delay=nan", "need-check-delay"),
        "lazy-refcounts": ("lazy-refcounts=maybe", "lazy-refcounts"),
        "backing-format": ("backing-format=vmdk", "backing-format"),
        "references": ("references=some", "references.*any.*dir.*none"),
        "discard": ("discard=perhaps", "discard.*unmap.*ignore"),
        "detect-zeroes": ("detect-zeroes=maybe", "detect-zeroes"),
        "metadata-cache word": ("metadata-cache=lots", "metadata-cache"),
        "metadata-cache negative": ("metadata-cache=-1", "metadata-cache"),
        "metadata-cache overflow": ("metadata-cache=99999999999E", "metadata-cache"),
        "repair": ("repair=never", "repair"),
        "writable": ("writable=later", "writable.*on-connect.*now"),
        "lock": ("lock=perhaps", "lock"),
        "snapshot": ("snapshot=nosuch", "snapshot"),
        "control": ("control=/nonexistent/folder/socket", "control"),
    }

    def check_bad_value(self, key, message):
        """V-01: with a bad value nbdkit doesn't start; the message names the parameter and its legal values."""
        image = create(self.path("disk"), "qcow2", SIZE)
        self.refused(image, key, words=[message], name=False)

    def test_no_file(self):
        """Without file= nothing can be served."""
        done = run("nbdkit", "-f", "-U", "-", PLUGIN, check=False, env=plugin_env(), timeout=20)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "file")

    def test_missing_file(self):
        self.refused(self.path("nowhere"), words=["no such file"])

    def test_lazy_refcounts_on_version_2(self):
        """L-01: lazy refcounts need compat=1.1."""
        for keys in ([], ["writable=now"]):
            image = create(self.path("disk"), "qcow2", SIZE, "compat=0.10")
            self.refused(image, "lazy-refcounts=on", *keys, words=["lazy.refcounts", "1\\.1|version 3|v3"])
            self.serve(image, "lazy-refcounts=off", *keys).stop()

    def test_lazy_refcounts_of_other_formats(self):
        """L-01: other formats have no lazy refcounts; the server refuses at its start, not at the first connection."""
        for fmt in ("qed", "raw"):
            with self.subTest(format=fmt):
                image = create(self.path(f"disk.{fmt}"), fmt, SIZE)
                self.refused(image, f"format={fmt}", "lazy-refcounts=on", words=[f"lazy-refcounts=on: {fmt}: only qcow2 .* version 3"])
                self.serve(image, f"format={fmt}", "lazy-refcounts=off").stop()

    def test_wrong_format(self):
        """format=qed on a qcow2 image: the magic is checked."""
        self.refused(create(self.path("disk"), "qcow2", SIZE), "format=qed", words=["qed|magic"])

    def test_format_raw_serves_anything(self):
        """format=raw serves the bytes of a qcow2 file as a disk."""
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.serve(image, "format=raw")
        self.assertEqual(server.connect().pread(4, 0), b"QFI\xfb")
        server.stop()

    def test_image_names_are_no_urls(self):
        """file= is always a file name: "json:", "nbd:" and the like have no meaning in it."""
        for name in ("json:{}", "nbd:x", "a b%20c", "name=value", "ümläut"):
            with self.subTest(name=name):
                image = create(self.path("disk"), "qcow2", SIZE)
                odd = self.path(name)
                os.rename(image, odd)
                self.serve(odd).stop()


@unittest.skipIf(STANDIN, "needs the plugin")
@parametrised
class BadQcow2(Case):
    """Each header field of qcow2 with illegal values."""

    cases_header = {
        "version 1": (dict(version=1), "version"),
        "version 4": (dict(version=4), "version"),
        "cluster_bits 8": (dict(cluster_bits=8), "cluster"),
        "cluster_bits 22": (dict(cluster_bits=22), "cluster"),
        "cluster_bits huge": (dict(cluster_bits=0xffffffff), "cluster"),
        "size larger than l1": (dict(size=1 << 50), "L1|size"),
        "size huge": (dict(size=(1 << 64) - 512), "L1|size"),
        "crypt_method aes": (dict(crypt_method=1), "encrypt|crypt|AES"),
        "crypt_method luks": (dict(crypt_method=2), "encrypt|crypt|LUKS"),
        "crypt_method unknown": (dict(crypt_method=7), "encrypt|crypt"),
        "l1_size zero": (dict(l1_size=0), "L1"),
        "l1_size huge": (dict(l1_size=0xffffffff), "L1"),
        "l1_size past the file": (dict(l1_size=0x400000), "L1"),
        "l1_table_offset misaligned": (dict(l1_table_offset=0x30200), "L1"),
        "l1_table_offset outside": (dict(l1_table_offset=FAR), "L1"),
        "l1_table_offset over 56 bits": (dict(l1_table_offset=1 << 60), "L1"),
        "l1_table_offset in the header": (dict(l1_table_offset=0), "L1"),
        "refcount_table_offset misaligned": (dict(refcount_table_offset=0x10200), "refcount"),
        "refcount_table_offset outside": (dict(refcount_table_offset=FAR), "refcount"),
        "refcount_table_offset in the header": (dict(refcount_table_offset=0), "refcount"),
        "refcount_table_offset over 63 bits": (dict(refcount_table_offset=1 << 63), "refcount"),
        "refcount_table_clusters zero": (dict(refcount_table_clusters=0), "refcount"),
        "refcount_table_clusters huge": (dict(refcount_table_clusters=0xffffffff), "refcount"),
        "nb_snapshots huge": (dict(nb_snapshots=0xffffffff, snapshots_offset=0x30000), "snapshot"),
        "snapshots_offset misaligned": (dict(nb_snapshots=1, snapshots_offset=0x30100), "snapshot"),
        "snapshots_offset outside": (dict(nb_snapshots=1, snapshots_offset=FAR), "snapshot"),
        "refcount_order 7": (dict(refcount_order=7), "refcount"),
        "refcount_order huge": (dict(refcount_order=0xffffffff), "refcount"),
        "header_length short": (dict(header_length=80), "header"),
        "header_length past the cluster": (dict(header_length=0x10008), "header"),
        "header_length huge": (dict(header_length=0xfffffff8), "header"),
        "backing_file_offset outside": (dict(backing_file_offset=FAR, backing_file_size=10), "backing"),
        "backing_file_offset at the cluster's end": (dict(backing_file_offset=65530, backing_file_size=10), "backing"),
        "backing_file_size too long": (dict(backing_file_offset=0x400, backing_file_size=1024), "backing"),
        "backing_file_size huge": (dict(backing_file_offset=0x400, backing_file_size=0xffffffff), "backing"),
        "data file without one": (dict(incompatible_features=4), "data.file"),
        "compression type bit alone": (dict(incompatible_features=8), "compression"),
        "extended L2": (dict(incompatible_features=16, cluster_bits=9), "extended.L2|subcluster"),
        "unknown feature": (dict(incompatible_features=1 << 40), "feature.*(0x10000000000|40)"),
        "unknown features": (dict(incompatible_features=3 << 40), "feature.*(0x30000000000|40.*41)"),
    }

    def check_header(self, fields, word):
        """refused by the field's name, also for reading only"""
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, b"data" * 128)])
        set_fields(image, "qcow2", **fields)
        before = sha256(image)
        self.refused(image, words=[word])
        self.refused(image, words=[word], nbdkit=["-r"])
        self.assertEqual(sha256(image), before, "a refused image was changed")

    cases_truncated = {f"{length} bytes": (length,) for length in (3, 4, 23, 71, 100, 111)}

    def check_truncated(self, length):
        """A file that ends inside the header is refused; no missing field is guessed."""
        image = create(self.path("disk"), "qcow2", SIZE)
        os.truncate(image, length)
        self.refused(image, "format=qcow2")

    def test_empty_file(self):
        """An empty file has no magic."""
        pathlib.Path(self.path("disk")).touch()
        self.refused(self.path("disk"), words=["format=raw"])

    def test_file_ends_inside_the_l1_table(self):
        image = create(self.path("disk"), "qcow2", 64 * GIB, "cluster_size=512")
        os.truncate(image, header(image, 40, 8, "big") + 512)
        self.refused(image, words=["L1"])

    def test_header_extension_past_the_header_cluster(self):
        """A header extension whose length reaches past the header area."""
        image = create(self.path("disk"), "qcow2", SIZE)
        patch(image, header(image, 100, 4, "big"), struct.pack(">II", 0x12345678, 0x7ffffff0))
        self.refused(image, words=["extension"])

    def test_l1_table_over_other_tables(self):
        """An L1 table that lies on the refcount table or a refcount block."""
        image = create(self.path("disk"), "qcow2", SIZE)
        table = header(image, *QCOW2["refcount_table_offset"], "big")
        for victim in (table, header(image, table, 8, "big")):
            with self.subTest(victim=victim):
                set_fields(image, "qcow2", l1_table_offset=victim)
                self.refused(image, "writable=now")

    def test_features_are_called_by_the_images_own_names(self):
        """L-09: messages use the names of feature bits from the image's own feature name table."""
        image = create(self.path("disk"), "qcow2", SIZE)
        head = bytearray(pathlib.Path(image).read_bytes()[:4096])
        at = head.index(struct.pack(">I", 0x6803f857)) + 8
        head[at:at + 48] = struct.pack("BB46s", 0, 45, b"quantum clusters")
        patch(image, 0, head)
        set_fields(image, "qcow2", incompatible_features=1 << 45)
        self.refused(image, words=["quantum clusters"])

    def test_snapshot_table_is_checked(self):
        """An entry of the snapshot table that reaches past the table."""
        image = create(self.path("disk"), "qcow2", SIZE)
        run("qemu-img", "snapshot", "-c", "one", image)
        patch(image, header(image, 64, 8, "big") + 12, b"\xff\xff\xff\xff")
        self.refused(image, words=["snapshot"])

    cases_unsupported = {
        "luks": ("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "encrypt|LUKS"),
        "aes": ("encrypt.format=aes,encrypt.key-secret=s", "encrypt|AES"),
        "extended L2": ("extended_l2=on", "extended.L2|subcluster"),
        "zstd": ("compression_type=zstd", "zstd|compression type"),
        "data file": ("data_file=data.raw", "data.file"),
    }

    def check_unsupported(self, options, word):
        """An optional feature is served, or refused by its name when it isn't built; it is never misread."""
        image = self.path("disk")
        create_encrypted(image, SIZE, options, cwd=self.dir)
        try:
            server = self.serve(image)
        except StartFailed as failed:
            self.assertEqual(failed.code, 1)
            self.assertRegex(failed.errors, re.compile(word, re.I))
            self.assertIn(os.path.basename(image), failed.errors)
        else:
            self.assertEqual(server.connect().pread(SIZE, 0), bytes(SIZE))
            server.stop()

    def test_corrupt_bit(self):
        """L-10: refused for writing, served for reading."""
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, b"data" * 128)])
        set_fields(image, "qcow2", incompatible_features=2)
        self.refused(image, "writable=now", words=["corrupt"])
        server = self.serve(image, nbdkit=["-r"])
        self.assertEqual(server.connect().pread(4, 0), b"data")
        server.stop()


@unittest.skipIf(STANDIN, "needs the plugin")
@parametrised
class BadQed(Case):
    """Each header field of QED with illegal values (Q-02, Q-17)."""

    cases_header = {
        "cluster_size small": (dict(cluster_size=2048), "cluster.?size"),
        "cluster_size large": (dict(cluster_size=128 * MIB), "cluster.?size"),
        "cluster_size zero": (dict(cluster_size=0), "cluster.?size"),
        "cluster_size no power of two": (dict(cluster_size=65537), "cluster.?size"),
        "table_size zero": (dict(table_size=0), "table.?size"),
        "table_size 3": (dict(table_size=3), "table.?size"),
        "table_size 32": (dict(table_size=32), "table.?size"),
        "table_size huge": (dict(table_size=0x80000000), "table.?size"),
        "header_size zero": (dict(header_size=0), "header.?size"),
        "header_size too large": (dict(header_size=0x10000), "header.?size"),
        "header_size huge": (dict(header_size=0xffffffff), "header.?size"),
        "unknown feature": (dict(features=1 << 40), "feature.*0x10000000000"),
        "two unknown features": (dict(features=3 << 33), "feature.*0x600000000"),
        "l1_table_offset misaligned": (dict(l1_table_offset=0x10200), "L1"),
        "l1_table_offset outside": (dict(l1_table_offset=FAR), "L1"),
        "l1_table_offset half outside": (dict(l1_table_offset=0x40000), "L1"),
        "l1_table_offset overflows": (dict(l1_table_offset=(1 << 64) - 65536), "L1"),
        "l1_table_offset in the header": (dict(l1_table_offset=0), "L1"),
        "image_size not of sectors": (dict(image_size=SIZE + 1), "image.?size|size"),
        "image_size too large": (dict(image_size=(64 << 40) + 512), "image.?size|size"),
        "image_size huge": (dict(image_size=(1 << 64) - 512), "image.?size|size"),
        "backing_filename_offset outside": (dict(features=1, backing_filename_offset=65536,
                                                 backing_filename_size=10), "backing"),
        "backing_filename_offset huge": (dict(features=1, backing_filename_offset=0xffffffff,
                                              backing_filename_size=10), "backing"),
        "backing_filename_size past the header": (dict(features=1, backing_filename_offset=64,
                                                       backing_filename_size=65536), "backing"),
    }

    def check_header(self, fields, word):
        """refused by the field's name, also for reading only"""
        image = create(self.path("disk"), "qed", SIZE)
        fill(image, "qed", [(0, b"data" * 128)])
        set_fields(image, "qed", **fields)
        if "half outside" in self.id().replace("_", " "):
            os.truncate(image, 0x40000 + 65536)
        before = sha256(image)
        self.refused(image, words=[word])
        self.refused(image, words=[word], nbdkit=["-r"])
        self.assertEqual(sha256(image), before, "a refused image was changed")

    cases_truncated = {f"{length} bytes": (length,) for length in (4, 10, 63, 64, 65536, 65536 * 2)}

    def check_truncated(self, length):
        """A file that ends inside the header or the L1 table."""
        image = create(self.path("disk"), "qed", SIZE)
        os.truncate(image, length)
        self.refused(image, "format=qed")

    def test_block_device_is_refused_for_writing(self):
        """Q-04: a QED image grows by growing its file, which a block device can't."""
        if os.geteuid() != 0:
            self.skipTest("loop devices need root")
        image = create(self.path("disk"), "qed", SIZE)
        loop = run("losetup", "-f", "--show", image, check=False)
        if loop.returncode != 0:
            self.skipTest(f"no loop device: {loop.stderr.strip()}")
        device = loop.stdout.strip()
        try:
            self.refused(device, "writable=now", words=["can't be opened for writing", "block device"])
            server = self.serve(device)
            self.assertTrue(server.connect().is_read_only())
            server.connect()
            server.stop()
            self.assertEqual(server.errors.count("is served read-only: a QED image on a block device"), 1)
            server = self.serve(device, nbdkit=["-r"])
            self.assertEqual(server.connect().pread(4, 0), bytes(4))
            server.stop()
            self.assertEqual(run(QIMG, "create", "-f", "qed", device, SIZE, check=False).returncode, 1)
        finally:
            run("losetup", "-d", device)

    def test_read_only_device(self):
        """A device that was set read-only is noticed when it is opened, not by the first write."""
        if os.geteuid() != 0:
            self.skipTest("loop devices need root")
        create(self.path("disk"), "raw", SIZE)
        loop = run("losetup", "-r", "-f", "--show", self.path("disk"), check=False)
        if loop.returncode != 0:
            self.skipTest(f"no loop device: {loop.stderr.strip()}")
        device = loop.stdout.strip()
        try:
            for words in (["convert", "-n", self.path("disk"), device], ["convert", "-O", "qcow2", self.path("disk"), device],
                          ["create", "-f", "qcow2", device, "64k"], ["resize", "-f", "raw", device, SIZE]):
                done = run(QIMG, *words, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn("cannot be opened for writing: the device is read-only", done.stderr)
                self.assertNotIn("incomplete", done.stderr)
            self.refused(device, "format=raw", "writable=now", words=["can.t be opened for writing"])
            server = self.serve(device, "format=raw")
            self.assertTrue(server.connect().is_read_only())
            server.stop()
        finally:
            run("losetup", "-d", device)

    def test_damage_that_repair_leaves_is_refused(self):
        """Q-15: a cluster that is referenced twice keeps the image from being written."""
        image = create(self.path("disk"), "qed", SIZE)
        fill(image, "qed", [(0, b"a" * 65536), (65536, b"b" * 65536)])
        l1 = header(image, 40, 8, "little")
        l2 = header(image, l1, 8, "little")
        patch(image, l2 + 8, header(image, l2, 8, "little").to_bytes(8, "little"))
        set_fields(image, "qed", features=2)
        self.refused(image, "writable=now", words=["corrupt|twice|repair|check"])
        self.assertTrue(need_check(image))
        server = self.serve(image, nbdkit=["-r"])
        self.assertEqual(server.connect().pread(4, 0), b"aaaa")
        server.stop()


@unittest.skipIf(STANDIN, "needs the plugin")
@parametrised
class BadTables(Case):
    """Damage below the header: the server refuses the image, or the request fails with EIO."""

    # format: (L1 entry offset field, flags of an entry, byte order)
    cases_entry = {
        f"{fmt} {table} {what}": (fmt, table, value)
        for fmt in ("qcow2", "qed") for table in ("L1", "L2")
        for what, value in (("misaligned", 0x50200), ("outside", FAR), ("reserved bits", 1 << 60))
        if not (fmt == "qcow2" and table == "L2" and what == "outside")  # such a cluster reads as zeroes, as in QEMU
        if not (what == "reserved bits" and (fmt, table) != ("qcow2", "L2"))  # these bits are ignored, as in QEMU
    }
    cases_entry["qcow2 L1 over the end"] = ("qcow2", "L1", "end")
    cases_entry["qed L1 over the end"] = ("qed", "L1", "end")
    cases_entry["qed L2 over the end"] = ("qed", "L2", "end")
    cases_entry["qed L2 in the header"] = ("qed", "L2", "header")

    second = 48 * MIB

    def make(self, fmt):
        """An image with two L2 tables and data in both.  Returns its path, its byte order, and the offsets of the L1
        table and the first L2 table."""
        order = "big" if fmt == "qcow2" else "little"
        image = create(self.path("disk"), fmt, 64 * MIB, "cluster_size=4k" + (",table_size=2" if fmt == "qed" else ""))
        fill(image, fmt, [(0, b"A" * 8192), (self.second, b"B" * 8192)])
        l1 = header(image, 40, 8, order)
        l2 = header(image, l1, 8, order) & 0x00fffffffffffe00
        return image, order, l1, l2

    def check_entry(self, fmt, table, value):
        """the cluster behind a bad entry is refused, never misread; other clusters can be read"""
        image, order, l1, l2 = self.make(fmt)
        if value == "end":
            value = os.path.getsize(image) // 4096 * 4096 + (0 if table == "L2" or fmt == "qcow2" else -4096)
        elif value == "header":
            value = 2048  # inside cluster 0 (and misaligned); offset 0 itself means unallocated
        if fmt == "qcow2":
            value |= 1 << 63
        patch(image, l1 if table == "L1" else l2, value.to_bytes(8, order))
        for options in (["-r"], []):
            try:
                server = self.serve(image, nbdkit=options)
            except StartFailed as failed:
                self.assertEqual(failed.code, 1)
                self.assertIn("disk", failed.errors)
                continue
            try:
                handle = server.connect()
            except nbd.Error:
                self.assertTrue(server.alive)  # the connection was refused, because it could write
            else:
                self.errno(errno.EIO, handle.pread, 4096, 0)
                self.assertEqual(handle.pread(8192, self.second), b"B" * 8192)
                if not options:
                    self.errno(errno.EIO, handle.pwrite, b"x" * 100, 0)
            server.stop()

    def test_qcow2_data_over_metadata_is_not_written(self):
        """L-10: a write to a cluster whose L2 entry points at a table of the image doesn't overwrite the table."""
        for what in ("refcount table", "refcount block", "L1", "L2"):
            with self.part(victim=what):
                image, order, l1, l2 = self.make("qcow2")
                table = header(image, *QCOW2["refcount_table_offset"], order)
                cluster = {"refcount table": table, "refcount block": header(image, table, 8, order),
                           "L1": l1, "L2": l2}[what]
                patch(image, l2, (cluster | 1 << 63).to_bytes(8, order))
                with open(image, "rb") as file:
                    file.seek(cluster)
                    before = file.read(4096)
                server = self.serve(image)
                handle = server.connect()
                with self.assertRaises(nbd.Error):
                    handle.pwrite(b"x" * 4096, 0)
                with open(image, "rb") as file:
                    file.seek(cluster)
                    self.assertEqual(file.read(4096), before)
                server.stop()

    def test_impossible_entry_marks_the_image_corrupt(self):
        """L-10: the corrupt bit is set, and all later writes fail."""
        image, order, _, l2 = self.make("qcow2")
        patch(image, l2, (0x50200 | 1 << 63).to_bytes(8, order))
        server = self.serve(image)
        handle = server.connect()
        self.errno(errno.EIO, handle.pwrite, b"x", 0)
        self.errno(errno.EIO, handle.pwrite, b"x", self.second)
        self.assertEqual(handle.pread(4, self.second), b"BBBB")
        server.stop()
        self.assertTrue(header(image, 72, 8, "big") & 2)

    def test_data_that_is_cut_off(self):
        """Clusters past the end of a truncated file read as zeroes or fail with EIO; they never read as other data."""
        for fmt in ("qcow2", "qed"):
            with self.part(fmt=fmt):
                image, *_ = self.make(fmt)
                os.truncate(image, os.path.getsize(image) - 4096)
                try:
                    server = self.serve(image, nbdkit=["-r"])
                except StartFailed as failed:
                    self.assertEqual(failed.code, 1)
                    continue
                handle = server.connect()
                try:
                    self.assertEqual(handle.pread(4096, self.second + 4096), bytes(4096))
                except nbd.Error as error:
                    self.assertEqual(error.errnum, errno.EIO)
                self.assertEqual(handle.pread(4096, 0), b"A" * 4096)
                server.stop()

    def test_compressed_clusters(self):
        """Compressed clusters are read correctly, or refused with EIO or ENOTSUP, and never damaged by a write."""
        source = self.path("source")
        data = b"compressible " * 80000
        data = data[:len(data) // SECTOR * SECTOR]
        pathlib.Path(source).write_bytes(data)
        image = self.path("disk")
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", source, image)
        before = sha256(image)
        try:
            server = self.serve(image)
        except StartFailed as failed:
            self.assertRegex(failed.errors, "compress")
            return
        handle = server.connect()
        for call, args in ((handle.pread, (SECTOR, 0)), (handle.pwrite, (b"x" * 100, 65536))):
            try:
                got = call(*args)
            except nbd.Error as error:
                self.assertIn(error.errnum, (errno.EIO, errno.ENOTSUP))
            else:
                if got is not None:
                    self.assertEqual(got, data[:SECTOR])
        self.assertTrue(server.alive)
        server.stop()
        check(image, "qcow2")
        if sha256(image) != before:
            self.assertEqual(content(image, "qcow2")[:65536], data[:65536])


@unittest.skipIf(STANDIN, "needs the plugin")
class BadFiles(Case):
    """Q-04: anything but a regular file or a block device is refused at once."""

    def test_unknown_magic(self):
        """Raw is never guessed; the message says how to ask for it."""
        image = self.path("disk")
        pathlib.Path(image).write_bytes(b"\x55" * MIB)
        self.refused(image, words=["format=raw"])

    def special(self, kind):
        path = self.path(kind)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            os.mkdir(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(path)
        else:
            os.symlink("/dev/zero", path)
        return path

    def test_special_files(self):
        for kind in ("fifo", "folder", "socket", "device"):
            for fmt in ("auto", "raw"):
                with self.part(kind=kind, fmt=fmt):
                    began = time.monotonic()
                    self.refused(self.special(kind), f"format={fmt}", name=False)
                    self.assertLess(time.monotonic() - began, 10)

    def test_special_files_as_backing_file(self):
        for kind in ("fifo", "folder", "socket", "device"):
            with self.part(kind=kind):
                image = self.path("disk")
                run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", self.special(kind), "-F", "raw", image, SIZE)
                self.refused(image, name=False, words=[kind])

    def test_qimg_create_on_a_character_device(self):
        """Q-04: EINVAL or ENOTSUP, and a reason."""
        for fmt in ("qed", "qcow2"):
            done = run(QIMG, "create", "-f", fmt, "/dev/null", "1M", check=False, timeout=20)
            self.assertEqual(done.returncode, 1)
            self.assertIn("/dev/null", done.stderr)


@unittest.skipIf(STANDIN, "needs the plugin")
class BadReferences(Case):
    """Names of other files inside images are hostile input."""

    def overlay(self, backing, backing_fmt="qcow2", fmt="qcow2", name="disk"):
        path = self.path(name)
        run("qemu-img", "create", "-q", "-u", "-f", fmt, "-b", backing, "-F", backing_fmt, path, SIZE)
        return path

    def test_missing_backing_file(self):
        """The message names the file that is missing."""
        self.refused(self.overlay("gone.qcow2"), words=["gone\\.qcow2", "no such file"], name=False)

    loop = "loop|itself|cycle|comes back"

    def test_loops(self):
        for fmt in ("qcow2", "qed"):
            with self.part(fmt=fmt):
                self.refused(self.overlay("disk", fmt, fmt), words=[self.loop])
                self.overlay("b", fmt, fmt, "a")
                self.overlay("c", fmt, fmt, "b")
                self.overlay("a", fmt, fmt, "c")
                self.refused(self.path("a"), words=[self.loop], name=False)
                os.link(self.path("a"), self.path("alias"))
                self.overlay("alias", fmt, fmt, "c")
                self.refused(self.path("a"), words=[self.loop], name=False)

    def test_loops_through_links(self):
        """Loops are found by the file's identity, not by its name."""
        os.mkdir(self.path("folder"))
        os.symlink("../disk", self.path("folder/link"))
        os.symlink("folder", self.path("other"))
        for name in ("folder/link", "other/link", "./folder/../disk", self.path("other/../folder/link")):
            with self.subTest(name=name):
                self.refused(self.overlay(name), words=[self.loop])
        os.symlink("b", self.path("a"))
        os.symlink("a", self.path("b"))
        self.refused(self.overlay("a"), words=["symbolic"], name=False)

    def chain(self, depth):
        """A chain of `depth` images; returns the path of the active one."""
        create(self.path("0"), "qcow2", SIZE, "cluster_size=512")
        fill(self.path("0"), "qcow2", [(MIB, b"deep" * 128)])
        template = self.path("template")
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=512", "-b", "000", "-F", "qcow2",
            template, SIZE)
        data = pathlib.Path(template).read_bytes()
        at = int.from_bytes(data[8:16], "big")
        for number in range(1, depth):
            name = str(number - 1).encode()
            data = data[:16] + len(name).to_bytes(4, "big") + data[20:at] + name.ljust(3, b"\0") + data[at + 3:]
            pathlib.Path(self.path(str(number))).write_bytes(data)
        return self.path(str(depth - 1))

    def test_deep_chains(self):
        """500 images are served, the 501st is refused."""
        top = self.chain(501)
        self.refused(top, words=["deeper than 500"], name=False)
        server = self.serve(self.path("499"))
        self.assertEqual(server.connect().pread(8, MIB), b"deepdeep")
        server.stop()

    def test_other_protocols(self):
        """No image makes the server open anything but a local file, an NBD export or, by the server's own configuration, Ceph RBD."""
        for name in ('json:{"driver":"ssh","path":"/etc/passwd","host":"h"}', "ssh://h/x", 'json:{"driver":"host_device",'
                     '"filename":"/dev/null"}', 'json:{"driver":"file","filename":"/etc/passwd","x":1}',
                     "blkdebug::/etc/passwd", "http://localhost/x", "fat:/etc", "data:x", "rbd:pool/x:conf=/etc/passwd"):
            for fmt in ("qcow2", "qed"):
                with self.part(name=name, fmt=fmt):
                    image = self.overlay(name, "raw", fmt)
                    began = time.monotonic()
                    self.refused(image, words=["protocol|local file|neither file nor nbd|not supported|may not choose|not a regular file"], name=False)
                    self.assertLess(time.monotonic() - began, 10)

    def test_file_protocol_and_colons_after_a_slash(self):
        """"file:" is a local file; a colon after the first slash is part of a name."""
        with open(self.path("a:b"), "wb") as file:
            file.write(b"x" * SIZE)
        for name in ("./a:b", "file:" + self.path("a:b"), self.path("a:b")):
            with self.subTest(name=name):
                server = self.serve(self.overlay(name, "raw"))
                self.assertEqual(server.connect().pread(4, 0), b"xxxx")
                server.stop()

    def test_references_none(self):
        create(self.path("base"), "qcow2", SIZE)
        image = self.overlay("base")
        self.refused(image, "references=none", words=["references|backing"], name=False)
        self.serve(self.path("base"), "references=none").stop()
        self.serve(image, "references=none", "backing=none").stop()

    def test_references_dir(self):
        """references=dir allows only files below the image's folder, after symbolic links are resolved."""
        os.mkdir(self.path("inner"))
        os.mkdir(self.path("inner/sub"))
        create(self.path("outside"), "qcow2", SIZE)
        create(self.path("inner/beside"), "qcow2", SIZE)
        create(self.path("inner/sub/below"), "qcow2", SIZE)
        os.mkdir(self.path("inner2"))
        create(self.path("inner2/sibling"), "qcow2", SIZE)
        os.symlink(self.path("outside"), self.path("inner/link"))
        os.symlink(self.path("inner2"), self.path("inner/linked"))
        for name, fine in (("beside", True), ("sub/below", True), ("./sub/../beside", True),
                           (self.path("inner/beside"), True), ("../outside", False),
                           (self.path("outside"), False), ("link", False), ("linked/sibling", False),
                           ("../inner2/sibling", False), (self.path("inner2/sibling"), False)):
            with self.subTest(name=name):
                image = self.overlay(name, name="inner/disk")
                self.serve(image).stop()
                if fine:
                    self.serve(image, "references=dir").stop()
                else:
                    self.refused(image, "references=dir", words=["references|folder|director"], name=False)

    def forget_format(self, image, fmt):
        """Removes the recorded backing format from an image."""
        if fmt == "qed":
            patch(image, 16, (header(image, 16, 8, "little") & ~4).to_bytes(8, "little"))
        else:
            head = pathlib.Path(image).read_bytes()[:4096]
            patch(image, head.index(b"\xe2\x79\x2a\xca"), b"\x12\x34\x56\x78")

    def test_raw_is_never_guessed_for_a_backing_file(self):
        """Without a recorded format qcow2 and QED are recognised; raw must be given by backing-format=."""
        flat = self.path("flat")
        pathlib.Path(flat).write_bytes(b"raw!" * (SIZE // 4))
        for fmt in ("qcow2", "qed"):
            with self.subTest(fmt=fmt):
                image = self.overlay("flat", "raw", fmt)
                self.forget_format(image, fmt)
                self.refused(image, words=["flat", "backing-format"], name=False)
                server = self.serve(image, "backing-format=raw")
                self.assertEqual(server.connect().pread(4, 0), b"raw!")
                server.stop()
                create(self.path("known"), fmt, SIZE)
                image = self.overlay("known", fmt, fmt)
                self.forget_format(image, fmt)
                self.serve(image).stop()

    def test_zeroes_written_without_the_backing_file_hide_it_later(self):
        """Zeroes written in a session with backing=none must still be zeroes when the backing file is back."""
        for fmt, options in (("qcow2", ""), ("qcow2", "compat=0.10"), ("qed", "")):
            with self.part(fmt=fmt, options=options):
                fill(create(self.path("base"), "raw", MIB), "raw", [(0, b"\xbb" * MIB)])
                image = create(self.path("top"), fmt, MIB, options, backing="base", backing_fmt="raw")
                fill(image, fmt, [(0, bytes([0x11]) * (128 * KIB))])
                zeroed = [(0, 64 * KIB, 0), (64 * KIB, 64 * KIB, nbd.CMD_FLAG_NO_HOLE),
                          (128 * KIB, 64 * KIB, 0), (300 * KIB + 5, 1000, 0)]
                server = self.serve(image, "backing=none")
                handle = server.connect()
                for off, length, flags in zeroed:
                    handle.zero(length, off, flags)
                server.stop()
                found = content(image, fmt)
                for off, length, _ in zeroed:
                    self.assertEqual(found[off:off + length], bytes(length), off)
                self.assertEqual(found[200 * KIB], 0xbb)
                check(image, fmt)

    def test_backing_key_replaces_the_reference(self):
        """M-20: backing=PATH and backing=none."""
        pathlib.Path(self.path("flat")).write_bytes(b"raw!" * (SIZE // 4))
        image = self.overlay("gone.qcow2")
        server = self.serve(image, f"backing={self.path('flat')}", "backing-format=raw")
        self.assertEqual(server.connect().pread(4, 0), b"raw!")
        server.stop()
        server = self.serve(image, "backing=none")
        self.assertEqual(server.connect().pread(4, 0), bytes(4))
        server.stop()


@unittest.skipIf(STANDIN, "needs the plugin")
class HugeClaims(Case):
    """Memory use doesn't depend on sizes that an image claims, only on what the file contains."""

    PEAK = 100 * MIB  # far below each claim, far above what anything here needs

    @staticmethod
    def extension(kind, length, payload=b""):
        return struct.pack(">II", kind, length) + payload

    def claims(self):
        """Yields (name, patches that make a qcow2 image claim something huge)."""
        bitmaps = struct.pack(">IIQQ", 65535, 0, 65535 * 1024, 65536)
        snapshot = struct.pack(">QIHHIIQII", 0x30000, 0x400000, 65535, 65535, 0, 0, 0, 0, 0xffffffff)
        yield "snapshots", [(60, struct.pack(">IQ", 65536, 0x30000))]
        yield "a snapshot", [(60, struct.pack(">IQ", 1, 0x30000)), (0x30000, snapshot)]
        yield "refcount table", [(56, struct.pack(">I", 0x80))]
        for length in (0xffffffff, 0xfffffff8, 0x80000000, 0x7ffffff9):
            for kind in (0x12345678, 0xe2792aca, 0x6803f857, 0x23852875, 0x0537be77, 0x44415441):
                yield f"extension {kind:x} of {length:x}", [(112, self.extension(kind, length))]
        yield "bitmaps", [(112, self.extension(0x23852875, 24, bitmaps)), (88, struct.pack(">Q", 1))]
        yield "backing name", [(8, struct.pack(">QI", 0x10000 - 8, 0xffffffff))]
        yield "size", [(24, struct.pack(">Q", (1 << 63) - 512))]

    def peak(self, *argv):
        """Runs a command; returns its exit status and its peak memory in bytes."""
        script = ("import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], timeout=60, "
                  "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
                  "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
        code, kib = run(sys.executable, "-S", "-c", script, *argv).stdout.split()
        return int(code), int(kib) * 1024

    def expect_small(self, image, fmt):
        for command in (("info",), ("map",), ("check",), ("info", "-U", "--output=json")):
            code, size = self.peak(QIMG, *command, "-f", fmt, image)
            self.assertIn(code, (0, 1, 2, 3), command)
            self.assertLess(size, self.PEAK, command)
        for options in ([], ["-r"]):
            try:
                server = self.serve(image, f"format={fmt}", nbdkit=options)
            except StartFailed as failed:
                self.assertEqual(failed.code, 1, failed)
                continue
            with contextlib.suppress(nbd.Error):
                server.connect().pread(512, 0)
            self.assertLess(self.peak_of(server), self.PEAK)
            server.kill()

    @staticmethod
    def peak_of(server):
        """The server's peak memory so far, in bytes."""
        status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024

    def test_qcow2(self):
        for name, patches in self.claims():
            with self.part(claim=name):
                image = create(self.path("disk"), "qcow2", SIZE)
                for off, payload in patches:
                    patch(image, off, payload)
                self.expect_small(image, "qcow2")

    def test_snapshots_whose_tables_are_holes(self):
        """400 snapshots with L1 tables of the largest size: 13 GB of holes in 26 million clusters."""
        image, count, table = create(self.path("disk"), "qcow2", MIB, "cluster_size=512"), 400, 32 * MIB
        list_at = -(-os.path.getsize(image) // 512) * 512
        tables_at = list_at + count * 48
        tables_at += -tables_at % 512
        for i in range(count):
            entry = struct.pack(">QIHHIIQII", tables_at + i * table, table // 8, 1, 1, 0, 0, 0, 0, 0)
            patch(image, list_at + i * 48, entry + b"1n")
        patch(image, 60, struct.pack(">IQ", count, list_at))
        os.truncate(image, tables_at + count * table)
        server = self.serve(image)
        with contextlib.suppress(nbd.Error):  # it may fail: the clusters of these tables have no refcounts
            server.connect().pwrite(b"x" * 512, 0)
        self.assertLess(self.peak_of(server), self.PEAK)
        server.kill()

    def test_sparse_giants(self):
        """Tables of the largest size, and a file of 8 TiB that is one hole."""
        for fmt, options, size in (("qcow2", "cluster_size=2M", "1E"), ("qcow2", "cluster_size=64k", "16T"),
                                   ("qed", "cluster_size=64k,table_size=16", "64T")):
            with self.part(fmt=fmt, options=options):
                image = create(self.path("disk"), fmt, size, options)
                os.truncate(image, 8 << 40)
                self.expect_small(image, fmt)

    def test_qed(self):
        for name, off, payload in (("backing name", 56, struct.pack("<II", 64, 0xffffffff)),
                                   ("size", 48, struct.pack("<Q", 1 << 62)),
                                   ("table", 8, struct.pack("<I", 16)),
                                   ("header", 12, struct.pack("<I", 0xffffffff))):
            with self.part(claim=name):
                image = create(self.path("disk"), "qed", SIZE)
                patch(image, off, payload)
                patch(image, 16, struct.pack("<Q", 1) if name == "backing name" else b"")
                self.expect_small(image, "qed")


if __name__ == "__main__":
    unittest.main()
