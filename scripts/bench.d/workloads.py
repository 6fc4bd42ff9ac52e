# SPDX-License-Identifier: BSD-3-Clause
"""The workloads, one row each, and their targets."""

import dataclasses
from typing import Callable, Optional

import clients
from images import GIB, TIB, Store

EVERYONE = ("ours", "peer", "file")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A row.  A ratio says how many times better we are, for figures where more or less is better."""
    name: str
    title: str
    image: Callable             # (store, format) -> image
    measure: Callable           # measurement -> figure
    unit: str = "k/s"
    peer: Optional[float] = None    # target of the ratio to the best peer
    file: Optional[float] = None    # target of the ratio to the limit, `nbdkit file`
    format: str = "qcow2"
    better: str = "higher"
    uses: str = "serve"         # what a server must be able to do
    roles: tuple = EVERYONE
    grows: bool = False         # whether it writes a new file of the common size

    def image_for(self, store, server):
        """The image that this server gets."""
        return self.image(store, "raw" if server.role == "file" else self.format)

    def takes(self, server):
        """Whether this server can take part."""
        return server.role in self.roles and server.can(self.uses)


@dataclasses.dataclass(frozen=True)
class Growth:
    """How much worse our figure may be in one workload than in another."""
    title: str
    base: str
    other: str
    least: float


FULL, FRESH, COPY, CHAIN = Store.full, Store.fresh, Store.full_copy, Store.chain
LUKS, DIRECT = Store.luks, Store.direct
# The plugin `file` of older nbdkits has no such mode.
NO_FILE = {"peer": 1.2, "roles": ("ours", "peer")}


def places(size, count):
    """Sparse images with data at `count` places, at most one for each L2 table."""
    return lambda store, form: store.places(size, count)(form)


def deep_chain(store, form):
    return store.chain(form, 30)


def preallocated(size, direct=False):
    """All metadata and no data."""
    return lambda store, form: store.preallocated(size, direct)(form)


def compressed(kind):
    """Every cluster is compressed."""
    return lambda store, form: store.compressed(kind)(form)


def clusters(size):
    """Full, with clusters of this size."""
    return lambda store, form: store.clusters(size)(form)


def fresh_clusters(size):
    """Empty, with clusters of this size."""
    return lambda store, form: store.fresh_clusters(size)(form)


READ, WRITE = "randread", "randwrite"
offline = clients.offline
random_io, sequential_io = clients.random_io, clients.sequential_io
allocate = random_io(WRITE, 32, once=True)
allocate_flush = random_io(WRITE, 8, once=True, fsync=8)
allocate_flush_4 = random_io(WRITE, 8, once=True, fsync=8, numjobs=4)
MBS = "MB/s"
TIME = {"unit": "s", "better": "lower"}
TOOL = {**TIME, "uses": "tool"}

WORKLOADS = [
    Workload("read-4k-d1", "random read 4 KiB, depth 1", FULL, random_io(READ, 1),
             peer=0.97, file=0.97),
    Workload("read-4k-d32", "random read 4 KiB, depth 32", FULL, random_io(READ, 32),
             peer=1.05, file=0.95),
    Workload("write-4k-d32", "random overwrite 4 KiB, depth 32", FULL, random_io(WRITE, 32),
             peer=1.5, file=0.9),
    Workload("read-1m-d8", "sequential read 1 MiB, depth 8", FULL, sequential_io("read"), MBS,
             peer=1.3, file=0.95),
    Workload("write-1m-d8", "sequential overwrite 1 MiB, depth 8", FULL, sequential_io("write"),
             MBS, peer=1.15, file=0.95),
    Workload("write-fsync-d1", "overwrite 4 KiB and fsync, depth 1", FULL,
             random_io(WRITE, 1, fsync=1), peer=1.2, file=0.95),
    Workload("alloc-4k-d32", "allocating random 4 KiB, depth 32", FRESH, allocate,
             grows=True, peer=1.6, file=0.8),
    Workload("alloc-1m-d8", "allocating sequential 1 MiB, depth 8", FRESH,
             sequential_io("write", once=True), MBS, grows=True, peer=2.0, file=0.85),
    Workload("alloc-fsync-d8", "allocating 4 KiB, fsync every 8, depth 8", FRESH, allocate_flush,
             grows=True, peer=1.7, file=0.8),
    Workload("alloc-fsync-4x8", "allocating 4 KiB, fsync every 8, 4 connections", FRESH,
             allocate_flush_4, grows=True, peer=2.5, file=0.8),

    Workload("qed-read-4k-d32", "QED: random read 4 KiB, depth 32", FULL, random_io(READ, 32),
             peer=1.1, file=0.95, format="qed"),
    Workload("qed-write-4k-d32", "QED: random overwrite 4 KiB, depth 32", FULL,
             random_io(WRITE, 32), peer=1.6, file=0.9, format="qed"),
    Workload("qed-alloc-4k-d32", "QED: allocating random 4 KiB, depth 32", FRESH, allocate,
             grows=True, peer=5.0, file=0.75, format="qed"),
    Workload("qed-alloc-1m-d8", "QED: allocating sequential 1 MiB, depth 8", FRESH,
             sequential_io("write", once=True), MBS, grows=True, format="qed"),
    Workload("qed-alloc-fsync-d8", "QED: allocating 4 KiB, fsync every 8, depth 8", FRESH,
             allocate_flush, grows=True, peer=1.3, file=0.85, format="qed"),
    Workload("qed-alloc-fsync-4x8", "QED: allocating 4 KiB, fsync every 8, 4 connections", FRESH,
             allocate_flush_4, grows=True, format="qed"),

    Workload("trim-64k-d8", "trim 64 KiB, depth 8", COPY,
             clients.once_everywhere("aio_trim"), peer=1.5, file=1.5),
    Workload("zero-64k-d8", "write zeroes 64 KiB, depth 8", COPY,
             clients.once_everywhere("aio_zero"), peer=1.5, file=1.5),
    Workload("qed-trim-64k-d8", "QED: trim 64 KiB, depth 8", COPY,
             clients.once_everywhere("aio_trim"), file=1.5, format="qed"),
    Workload("trim-fsync-p99", "99th percentile of 4 KiB and fsync beside scattered trims",
             COPY, clients.fsync_beside_trims, "ms", better="lower", peer=1.0, roles=("ours", "peer")),
    Workload("qed-trim-fsync-p99", "QED: the same", COPY, clients.fsync_beside_trims, "ms",
             better="lower", roles=("ours", "peer"), format="qed"),
    Workload("beside-read-p999", "99.9th percentile of 4 KiB reads beside an allocating writer",
             Store.half_full, clients.worst_beside_writer(READ, "read"), "ms", better="lower", peer=1.0,
             grows=True),
    Workload("beside-fsync-p999", "99.9th percentile of fsyncs beside an allocating writer",
             Store.half_full, clients.worst_beside_writer(WRITE, "sync", fsync=1), "ms", better="lower",
             peer=1.0, grows=True),
    Workload("beside-mirror-p999", "99.9th percentile of 4 KiB reads beside a mirror", FULL,
             clients.read_beside_mirror, "ms", better="lower", peer=1.0, uses="mirror", grows=True,
             roles=("ours", "peer")),
    Workload("copy", "nbdcopy of a full image", FULL, clients.copy_all, MBS, peer=1.3, file=0.95),
    Workload("chain-4k-d32", "random read 4 KiB through a chain of 5", CHAIN, random_io(READ, 32),
             peer=1.3, file=0.9),
    Workload("chain-30-4k-d32", "random read 4 KiB through a chain of 30", deep_chain,
             random_io(READ, 32), file=0.9),

    Workload("deflate-copy", "deflate: nbdcopy of a compressed image",
             compressed("zlib"), clients.copy_all, MBS),
    Workload("deflate-4k-d32", "deflate: random read 4 KiB, depth 32",
             compressed("zlib"), random_io(READ, 32)),
    Workload("deflate-hot-4k-d32", "deflate: random read 4 KiB in 16 MiB, depth 32",
             compressed("zlib"), random_io(READ, 32, size="16M")),
    Workload("zstd-copy", "zstd: nbdcopy of a compressed image",
             compressed("zstd"), clients.copy_all, MBS),
    Workload("zstd-4k-d32", "zstd: random read 4 KiB, depth 32",
             compressed("zstd"), random_io(READ, 32)),
    Workload("luks-read-4k-d32", "LUKS: random read 4 KiB, depth 32", LUKS, random_io(READ, 32)),
    Workload("luks-write-4k-d32", "LUKS: random overwrite 4 KiB, depth 32",
             LUKS, random_io(WRITE, 32)),
    Workload("luks-read-1m-d8", "LUKS: sequential read 1 MiB, depth 8",
             LUKS, sequential_io("read"), MBS),
    Workload("luks-write-1m-d8", "LUKS: sequential overwrite 1 MiB, depth 8",
             LUKS, sequential_io("write"), MBS),
    Workload("luks-alloc-4k-d32", "LUKS: allocating random 4 KiB, depth 32",
             Store.fresh_luks, allocate, grows=True),
    Workload("ext-alloc-4k-d32", "extended L2: allocating random 4 KiB, depth 32",
             Store.fresh_extended, allocate, grows=True),
    Workload("data-alloc-4k-d32", "data file: allocating random 4 KiB, depth 32",
             Store.fresh_with_data_file, allocate, grows=True),

    Workload("read-4k-4x8", "random read 4 KiB, 4 connections of depth 8", FULL,
             random_io(READ, 8, numjobs=4), peer=1.2, file=0.97),
    Workload("read-4k-16x2", "random read 4 KiB, 16 connections of depth 2", FULL,
             random_io(READ, 2, numjobs=16), peer=1.2, file=0.97),
    Workload("clusters-16k-read", "clusters of 16 KiB: random read 4 KiB, depth 32", clusters("16k"),
             random_io(READ, 32), peer=1.2, file=0.97),
    Workload("clusters-16k-alloc", "clusters of 16 KiB: allocating random 4 KiB, depth 32",
             fresh_clusters("16k"), allocate, grows=True, peer=1.2),
    Workload("clusters-256k-read", "clusters of 256 KiB: random read 4 KiB, depth 32", clusters("256k"),
             random_io(READ, 32), peer=1.2, file=0.97),
    Workload("clusters-256k-alloc", "clusters of 256 KiB: allocating random 4 KiB, depth 32",
             fresh_clusters("256k"), allocate, grows=True, peer=1.2),
    Workload("clusters-2m-read", "clusters of 2 MiB: random read 4 KiB, depth 32", clusters("2M"),
             random_io(READ, 32), peer=1.2, file=0.97),
    Workload("clusters-2m-alloc", "clusters of 2 MiB: allocating random 4 KiB, depth 32",
             fresh_clusters("2M"), allocate, grows=True, peer=1.2),
    Workload("bitmap-write-4k-d32", "with a stored bitmap: random overwrite 4 KiB, depth 32",
             Store.with_bitmap, random_io(WRITE, 32), peer=1.2, file=0.95),
    Workload("snapshot-read-4k-d32", "an internal snapshot: random read 4 KiB, depth 32",
             Store.with_snapshot, random_io(READ, 32), peer=1.2, roles=("ours", "peer")),
    Workload("compress-write-1m-d8", "compress=on: sequential write 1 MiB that can't be made smaller",
             Store.fresh_compressing, sequential_io("write", once=True), MBS, grows=True, peer=1.2,
             roles=("ours", "peer")),

    Workload("direct-read-4k-d1", "cache=none: random read 4 KiB, depth 1", DIRECT,
             random_io(READ, 1), **NO_FILE),
    Workload("direct-read-4k-d32", "cache=none: random read 4 KiB, depth 32", DIRECT,
             random_io(READ, 32), **NO_FILE),
    Workload("direct-read-4k-4x32", "cache=none: random read 4 KiB, 4 connections of depth 32", DIRECT,
             random_io(READ, 32, numjobs=4), **NO_FILE),
    Workload("direct-write-4k-d1", "cache=none: random overwrite 4 KiB, depth 1", DIRECT,
             random_io(WRITE, 1), **NO_FILE),
    Workload("direct-write-4k-d32", "cache=none: random overwrite 4 KiB, depth 32", DIRECT,
             random_io(WRITE, 32), **NO_FILE),
    Workload("direct-write-4k-4x32", "cache=none: random overwrite 4 KiB, 4 connections of depth 32",
             DIRECT, random_io(WRITE, 32, numjobs=4), **NO_FILE),
    Workload("direct-read-1m-d8", "cache=none: sequential read 1 MiB, depth 8", DIRECT,
             sequential_io("read"), MBS, **NO_FILE),
    Workload("direct-read-1m-p999", "cache=none: 99.9th percentile of those reads", DIRECT,
             clients.worst_latency("read"), "ms", better="lower", **NO_FILE),
    Workload("direct-write-1m-d8", "cache=none: sequential overwrite 1 MiB, depth 8", DIRECT,
             sequential_io("write"), MBS, **NO_FILE),
    Workload("direct-alloc-4k-d32", "cache=none: allocating random 4 KiB, depth 32",
             Store.fresh_direct, allocate, **NO_FILE),
    Workload("direct-alloc-fsync-d8", "cache=none: allocating 4 KiB, fsync every 8, depth 8",
             Store.fresh_direct, allocate_flush, **NO_FILE),

    Workload("start", "start, first reply and stop", FULL, clients.start_and_stop, "ms",
             peer=1.0, better="lower"),
    Workload("start-1t", "start, first reply and stop, 1 TiB", preallocated(TIB),
             clients.start_and_stop, "ms", peer=1.0, better="lower"),
    Workload("check-1t", "check of a preallocated 1 TiB image", preallocated(TIB),
             offline("check IMAGE"), peer=2.0, **TOOL),
    Workload("mirror", "mirror until ready", FULL, clients.mirror, peer=1.5,
             uses="mirror", grows=True, **TIME),
    Workload("qed-mirror", "QED: mirror until ready", FULL, clients.mirror, peer=1.5,
             format="qed", uses="mirror", grows=True, **TIME),

    Workload("rbd-read-4k-d16", "RBD, raw: random read 4 KiB, depth 16", Store.rbd,
             random_io(READ, 16), peer=1.0, format="raw", roles=("ours", "peer")),
    Workload("rbd-write-4k-d16", "RBD, raw: random overwrite 4 KiB, depth 16", Store.rbd,
             random_io(WRITE, 16), peer=1.0, format="raw", roles=("ours", "peer")),
    Workload("rbd-write-fsync-d1", "RBD, raw: random overwrite 4 KiB, depth 1, fsync every 32", Store.rbd,
             random_io(WRITE, 1, fsync=32), peer=1.0, format="raw", roles=("ours", "peer")),
    Workload("rbd-write-fsync-d16", "RBD, raw: random overwrite 4 KiB, depth 16, fsync every 256", Store.rbd,
             random_io(WRITE, 16, fsync=256), peer=1.0, format="raw", roles=("ours", "peer")),
    Workload("rbd-read-1m-d8", "RBD, raw: sequential read 1 MiB, depth 8", Store.rbd,
             sequential_io("read"), MBS, peer=1.0, format="raw", roles=("ours", "peer")),
    Workload("rbd-write-1m-d8", "RBD, raw: sequential overwrite 1 MiB, depth 8", Store.rbd,
             sequential_io("write"), MBS, peer=1.0, format="raw", roles=("ours", "peer")),
    Workload("rbd-mirror", "mirror to a new image on RBD until ready", FULL,
             clients.mirror_to_rbd, peer=1.0, uses="mirror", roles=("ours", "peer"), **TIME),

    Workload("backup-4k-d32", "random overwrite 4 KiB, depth 32, beside a backup to 1 MB/s", FULL,
             clients.write_beside_backup, uses="mirror", grows=True, roles=("ours",)),

    Workload("overlay-p999", "99.9th percentile of write latency beside new images on top", COPY,
             clients.write_latency_beside_overlays, "ms", better="lower", peer=1.0, uses="overlay",
             grows=True, roles=("ours", "peer")),
    Workload("snapshot-p999", "99.9th percentile of write latency beside internal snapshots", COPY,
             clients.write_latency_beside_snapshots, "ms", better="lower", peer=1.0, uses="mirror",
             grows=True, roles=("ours", "peer")),
    Workload("check-p999", "99.9th percentile of 4 KiB reads of a preallocated 1 TiB image beside its checks",
             preallocated(TIB),
             clients.read_beside_check, "ms", better="lower", peer=1.0, roles=("ours", "peer")),

    Workload("convert-raw-qcow2", "convert: raw to qcow2", FULL,
             offline("convert -f raw -O qcow2 IMAGE OUT"), peer=1.2, format="raw", grows=True, **TOOL),
    Workload("convert-qcow2-raw", "convert: qcow2 to raw", FULL,
             offline("convert -f qcow2 -O raw IMAGE OUT"), peer=1.2, grows=True, **TOOL),
    Workload("convert-qcow2-qcow2", "convert: qcow2 to qcow2", FULL,
             offline("convert -f qcow2 -O qcow2 IMAGE OUT"), peer=1.2, grows=True, **TOOL),
    Workload("convert-sparse", "convert: 4096 places in 64 GiB, qcow2 to qcow2",
             places(64 * GIB, 4096), offline("convert -f qcow2 -O qcow2 IMAGE OUT"), peer=1.2, **TOOL),
    Workload("convert-deflate", "convert -c: deflate", Store.programs,
             offline("convert -c -f raw -O qcow2 IMAGE OUT"), peer=1.5, format="raw", **TOOL),
    Workload("convert-zstd", "convert -c: zstd", Store.programs,
             offline("convert -c -f raw -O qcow2 -o compression_type=zstd IMAGE OUT"), peer=1.5,
             format="raw", **TOOL),
    Workload("compare", "compare: a full qcow2 image with its raw twin", Store.full_twice,
             offline("compare -q -f qcow2 -F raw IMAGE OTHER"), peer=1.2, **TOOL),
    Workload("commit", "commit of every fourth cluster", Store.overlay,
             offline("commit -q -f qcow2 IMAGE"), peer=1.2, **TOOL),
    Workload("rebase", "rebase to no backing file", Store.empty_overlay,
             offline("rebase -q -f qcow2 -b NONE IMAGE"), peer=1.2, grows=True, **TOOL),
    Workload("measure-1t", "measure of a preallocated 1 TiB image", preallocated(TIB),
             offline("measure -f qcow2 -O qcow2 IMAGE"), peer=2.0, **TOOL),
    Workload("info-1t", "info of a preallocated 1 TiB image", preallocated(TIB),
             offline("info IMAGE"), peer=2.0, **TOOL),
    Workload("map-1t", "map of a preallocated 1 TiB image", preallocated(TIB),
             offline("map --output=json IMAGE"), peer=2.0, **TOOL),

    Workload("futex", "futex calls in 1000 random reads", FULL, clients.futexes, "calls",
             file=1.0, better="lower", roles=("ours", "file")),
    Workload("scale-1g", "random read of 512 places in 1 GiB", places(GIB, 512),
             random_io(READ, 32)),
    Workload("scale-64g", "random read of 512 places in 64 GiB", places(64 * GIB, 512),
             random_io(READ, 32)),
    Workload("scale-1t", "random read of 512 places in 1 TiB", places(TIB, 512),
             random_io(READ, 32)),
    Workload("huge-64t", "random read of 4096 places in 64 TiB: tables of 256 MiB",
             places(64 * TIB, 4096), random_io(READ, 32), peer=1.2),
    Workload("cold-1t", "random read over a preallocated 1 TiB image: tables of 128 MiB",
             preallocated(TIB), random_io(READ, 32), peer=1.2),
    Workload("cold-direct-1t", "cache=none: the same", preallocated(TIB, direct=True),
             random_io(READ, 32), **NO_FILE),
]

GROWTHS = [
    Growth("overwrites beside a backup to 1 MB/s, to those alone", "write-4k-d32", "backup-4k-d32",
           0.5),
    Growth("random reads, 64 GiB to 1 GiB", "scale-1g", "scale-64g", 0.9),
    Growth("random reads, 1 TiB to 1 GiB", "scale-1g", "scale-1t", 0.9),
    Growth("start, 1 TiB to the common size", "start", "start-1t", 0.9),
]
