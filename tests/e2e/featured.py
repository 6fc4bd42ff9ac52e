# SPDX-License-Identifier: BSD-3-Clause
"""qcow2 images with every property that QEMU's tools can give them, and with known contents.

    disk = Featured(folder, row, rng)     # made by qemu-img, filled by qemu-io
    disk.keys                             # the parameters with which it is served
    disk.content()                        # the disk as qemu-img reads it now
"""

import os
import pathlib
import random

from harness import KIB, MIB, SECTOR, run, sha256

PASSPHRASE = "sesame"
SECRET = ["--object", f"secret,id=s,data={PASSPHRASE}"]
AES, LUKS = "aes", "luks"
CIPHERS = {
    "luks-xts": "encrypt.cipher-alg=aes-256,encrypt.cipher-mode=xts,encrypt.ivgen-alg=plain64",
    "luks-cbc": "encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
                "encrypt.ivgen-hash-alg=sha256",
    AES: "",
}

SPACE = {
    "cluster": [1 << bits for bits in range(9, 22)],
    "compat": ["0.10", "1.1"],
    "refcount_bits": [1, 2, 4, 8, 16, 32, 64],
    "lazy": ["off", "on"],
    "compression": [None, "zlib", "zstd"],
    "encryption": [None, *CIPHERS],
    "extended": ["off", "on"],
    "data_file": [None, "plain", "raw"],
    "preallocation": ["off", "metadata", "falloc", "full"],
    "backing": [None, "raw", "qcow2", "compressed"],
    "snapshot": [False, True],
    "cache": ["writeback", "none", "writethrough"],
    "compress": ["off", "on"],
}


def legal(row):
    """Can QEMU's tools make an image with these properties?  A property that the row doesn't have yet fits any."""
    def has(name, *values):
        return row.get(name, values[0]) in values

    if row.get("compat") == "0.10" and not (
            has("refcount_bits", 16) and has("lazy", "off") and has("compression", None, "zlib")
            and has("extended", "off") and has("data_file", None)):
        return False
    if row.get("extended") == "on" and row.get("cluster", MIB) < 16 * KIB:
        return False
    if row.get("backing") and not (has("preallocation", "off") or has("extended", "on")):
        return False
    if row.get("data_file") and not (has("compression", None) and has("snapshot", False) and has("compress", "off")):
        return False
    if row.get("data_file") == "raw" and not has("backing", None):
        return False
    if row.get("encryption") and not (has("compress", "off") and has("compression", None)):
        return False
    if row.get("compression") and not has("preallocation", "off"):
        return False  # qemu-io can't write compressed data to a cluster that is allocated
    # A snapshot adds a reference to each cluster; a host cluster with several compressed ones has one for each.
    bits = row.get("refcount_bits", 16)
    return not (row.get("snapshot") and (bits < 2 or (row.get("compression") and bits < 8)))


def texture(rng, length):
    """Bytes that can be compressed, some better than others."""
    unit = rng.randbytes(rng.choice((1, 16, 100, 700)))
    body = bytearray((unit * (length // len(unit) + 1))[:length])
    for _ in range(length // 512):
        body[rng.randrange(length)] = rng.randrange(256)
    return bytes(body)


class Featured:
    """One image, and what it must read as (`data`).  extra: more options for its creation; fill=False: leave
    it empty."""

    def __init__(self, folder, row, rng, extra="", size=None, fill=True):
        self.folder, self.row, self.rng = folder, row, rng
        self.cluster = row.get("cluster", 64 * KIB)
        self.size = size or self._size()
        self.path = self._path("disk.qcow2")
        self.data_path = self._path("disk.data") if row.get("data_file") else None
        self.encrypted = bool(row.get("encryption"))
        self.below, self.snapshots = None, {}
        self.data = bytearray(self.size)
        self._create(extra)
        if fill:
            self._fill()

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _size(self):
        """A few clusters; the disk ends inside a cluster."""
        least = MIB if self.cluster < 4 * KIB else 4 * MIB
        return max(least, 3 * self.cluster) + self.rng.randrange(1, 40) * SECTOR

    # ---- arguments for the tools ----

    def _target(self):
        """The image, as the last argument of a tool."""
        if not self.encrypted:
            return [self.path]
        return [f"driver=qcow2,encrypt.key-secret=s,file.filename={self.path}"]

    def _how(self):
        return [*SECRET, "--image-opts"] if self.encrypted else ["-f", "qcow2"]

    @property
    def keys(self):
        """The plugin's parameters besides the file."""
        return [f"passphrase={PASSPHRASE}"] if self.encrypted else []

    def tool(self, name, *words, **kwargs):
        """Runs this command of qemu-img, or qemu-io, on the image."""
        argv = ["qemu-io"] if name == "qemu-io" else ["qemu-img", name]
        return run(*argv, *self._how(), *words, *self._target(), **kwargs)

    def convert(self, *words):
        flat = self._path("flat")
        run("qemu-img", "convert", *self._how(), *words, "-O", "raw", *self._target(), flat)
        try:
            return pathlib.Path(flat).read_bytes()
        finally:
            os.unlink(flat)

    def content(self):
        return self.convert()

    def check(self, allow_leaks=False):
        done = self.tool("check", check=False)
        if done.returncode not in ((0, 3) if allow_leaks else (0,)):
            raise AssertionError(f"qemu-img check: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def repair(self):
        self.tool("check", "-r", "all")
        self.check()

    def check_rest(self):
        """Checks what writes to the disk must not change: snapshots and the backing file."""
        for name, (size, data) in self.snapshots.items():
            found = self.convert("-l", name)
            if len(found) != size or found != data:
                raise AssertionError(f"snapshot {name} has changed")
        if self.below and sha256(self.below[0]) != self.below[1]:
            raise AssertionError("the backing file has changed")

    def check_data_file(self, data):
        """A raw data file must be equal to the disk.  Not checked for an encrypted one."""
        if self.row.get("data_file") == "raw" and not self.encrypted:
            found = pathlib.Path(self.data_path).read_bytes()
            if found[:self.size] != data[:len(found)] or any(data[len(found):]):
                raise AssertionError("the raw data file isn't the disk")

    # ---- making it ----

    def _options(self):
        row = self.row
        words = [f"cluster_size={self.cluster}", f"preallocation={row.get('preallocation', 'off')}",
                 f"compat={row.get('compat', '1.1')}"]
        if row.get("compat") != "0.10":
            words += [f"refcount_bits={row.get('refcount_bits', 16)}", f"lazy_refcounts={row.get('lazy', 'off')}",
                      f"extended_l2={row.get('extended', 'off')}"]
        if row.get("compression") == "zstd":
            words.append("compression_type=zstd")
        if self.data_path:
            words += [f"data_file={self.data_path}", f"data_file_raw={'on' if row['data_file'] == 'raw' else 'off'}"]
        if self.encrypted:
            method = AES if row["encryption"] == AES else LUKS
            words += [f"encrypt.format={method}", "encrypt.key-secret=s"]
            words += [CIPHERS[row["encryption"]], "encrypt.iter-time=10"] if method == LUKS else []
        return words

    def _create(self, extra):
        words = self._options() + ([extra] if extra else [])
        if self.row.get("backing"):
            words += self._make_backing()
        run("qemu-img", "create", "-q", *(SECRET if self.encrypted else []), "-f", "qcow2", "-o", ",".join(words),
            self.path, self.size)
        # QEMU preallocates a raw data file in any case.
        if self.encrypted and (self.row.get("preallocation", "off") != "off" or self.row.get("data_file") == "raw"):
            self.data[:] = self.content()  # preallocated zeroes were never encrypted, so they read as noise

    def _make_backing(self):
        """Makes a backing file, shorter or longer than the disk and half of it compressible; returns the options."""
        length = self.rng.choice((self.size * 2 // 3 // SECTOR * SECTOR, self.size + 3 * SECTOR))
        body = bytearray(texture(self.rng, length // 2) + self.rng.randbytes(length - length // 2))
        hole = length // 5 // SECTOR * SECTOR
        body[hole:2 * hole] = bytes(hole)
        flat, form = self._path("below.raw"), "raw"
        pathlib.Path(flat).write_bytes(body)
        path = flat
        if self.row["backing"] != "raw":
            path, form = self._path("below.qcow2"), "qcow2"
            how = ["-c", "-o", f"compression_type={self.rng.choice(('zlib', 'zstd'))}"]
            run("qemu-img", "convert", *(how if self.row["backing"] == "compressed" else []), "-f", "raw", "-O", form,
                flat, path)
        self.below = path, sha256(path)
        self.data[:] = body[:self.size] + bytes(max(0, self.size - length))
        return [f"backing_file={path}", f"backing_fmt={form}"]

    def _put(self, pieces):
        """Writes pieces, (how, offset, bytes), by one qemu-io.  how: options of qemu-io's write."""
        argv, pieces = [], list(pieces)
        for number, (how, off, payload) in enumerate(pieces):
            source = self._path(f"piece{number}")
            pathlib.Path(source).write_bytes(payload)
            argv += ["-c", f"write -q {how} -s {source} {off} {len(payload)}"]
            self.data[off:off + len(payload)] = payload
        done = self.tool("qemu-io", *argv)
        if "failed" in done.stdout + done.stderr:
            raise AssertionError(done.stdout + done.stderr)
        for number in range(len(pieces)):
            os.unlink(self._path(f"piece{number}"))

    def _compressed_pieces(self):
        clusters, run_length = self.size // self.cluster, 1 if self.cluster > 4 * KIB else 8
        firsts = range(0, clusters, run_length)
        for first in self.rng.sample(firsts, min(len(firsts), 24)):
            for n in range(first, min(clusters, first + run_length)):
                yield "-c", n * self.cluster, (self.rng.randbytes(self.cluster) if self.rng.random() < 0.1
                                               else texture(self.rng, self.cluster))

    def _plain_pieces(self, count):
        for _ in range(count):
            length = self.rng.choice((1, 3, 9, 70, 130)) * SECTOR
            off = self.rng.randrange((self.size - length) // SECTOR) * SECTOR
            yield "", off, self.rng.randbytes(length)

    def _fill(self):
        compressed = self._compressed_pieces() if self.row.get("compression") else ()
        self._put([*compressed, *self._plain_pieces(4), ("", self.size - SECTOR, self.rng.randbytes(SECTOR))])
        if not self.row.get("snapshot"):
            return
        self.tool_snapshot("first")
        self._put(self._plain_pieces(3))

    def tool_snapshot(self, name):
        how = [*SECRET, "--image-opts"] if self.encrypted else []
        run("qemu-img", "snapshot", *how, "-c", name, *self._target())
        self.snapshots[name] = self.size, bytes(self.data)


def rng_of(*words):
    return random.Random(" ".join(map(str, words)))
