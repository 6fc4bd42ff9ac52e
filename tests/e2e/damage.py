# SPDX-License-Identifier: BSD-3-Clause
"""Hundreds of damaged images: small base images made by QEMU's tools, and a list of ways to damage
every kind of entry in them.

    for damage in damages(folder):
        damage.make(path)            # a copy of its base with the damage done to it

Each damage lists the guest ranges that it may have destroyed (`lost`).  Everything else must read as
before when the image has been repaired.
"""

import dataclasses
import os
import pathlib
import random
import shutil
import tempfile

import harness as h

OFFSET = 0x00fffffffffffe00
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
EVERYTHING = ((0, 1 << 62),)
DATA_FILE, EXTENDED_L2 = 1 << 2, 1 << 4
DATA_FILE_NAME, LUKS_HEADER = 0x44415441, 0x0537be77


@dataclasses.dataclass
class Damage:
    name: str
    base: "Base"
    patches: list  # (offset, bytes)
    lost: tuple = ()
    tags: frozenset = frozenset()
    truncate: int = 0  # new size of the file; 0: as it was

    def make(self, path):
        shutil.copyfile(self.base.path, path)
        if self.base.data:  # all copies share the data file, and an earlier test may have changed it
            pathlib.Path(self.base.data).write_bytes(self.base.data_content)
        for off, payload in self.patches:
            h.patch(path, off, payload)
        if self.truncate:
            os.truncate(path, self.truncate)


def is_encrypted(path, fmt):
    return fmt == "qcow2" and h.header(path, 32, 4, "big") != 0


def opened(path, fmt):
    """The arguments with which QEMU's tools open an image, encrypted or not."""
    if is_encrypted(path, fmt):
        return ("--object", "secret,id=s,data=sesame",
                "--image-opts", f"driver={fmt},encrypt.key-secret=s,file.filename={path}")
    return "-f", fmt, path


def content(path, fmt):
    """The whole disk, with zeroes in place of what can't be read."""
    with tempfile.TemporaryDirectory(dir=h.tmp_root()) as folder:
        flat = os.path.join(folder, "flat")
        h.run("qemu-img", "convert", "--salvage", "-O", "raw", *opened(path, fmt), flat)
        return pathlib.Path(flat).read_bytes()


class Base:
    """An undamaged image file, of which each damage changes a copy."""

    data = None  # the path of its external data file

    def __init__(self, path, fmt):
        self.path, self.fmt, self.name = path, fmt, pathlib.Path(path).stem
        self.raw = pathlib.Path(path).read_bytes()
        self.content = content(path, fmt)

    def number(self, off, length, order):
        return int.from_bytes(self.raw[off:off + length], order)


def be(value, length=8):
    return value.to_bytes(length, "big")


def le(value, length=8):
    return value.to_bytes(length, "little")


class Qcow2(Base):
    """A qcow2 image, and where its tables and entries lie."""

    def __init__(self, path):
        super().__init__(path, "qcow2")
        self.encrypted = is_encrypted(path, "qcow2")
        self.version = self.u(4, 4)
        self.cluster_bits = self.u(20, 4)
        self.cluster = 1 << self.cluster_bits
        self.size = self.u(24)
        self.l1_size, self.l1 = self.u(36, 4), self.u(40)
        self.rt, self.rt_clusters = self.u(48), self.u(56, 4)
        self.nb_snapshots, self.snapshots = self.u(60, 4), self.u(64)
        self.order = self.u(96, 4) if self.version > 2 else 4
        self.bits = 1 << self.order
        self.blocks = [self.u(self.rt + 8 * i) for i in range(self.rt_clusters * self.cluster // 8)]
        self.end = -(-len(self.raw) // self.cluster) * self.cluster
        self.extensions = dict(self._extensions()) if self.version > 2 else {}
        features = self.u(72) if self.version > 2 else 0
        self.external, self.extended = bool(features & DATA_FILE), bool(features & EXTENDED_L2)
        self.per_table = self.cluster // (16 if self.extended else 8)
        if self.external:
            name, length = self.extensions[DATA_FILE_NAME]
            self.data = self.raw[name:name + length].decode()
            self.data_content = pathlib.Path(self.data).read_bytes()

    def u(self, off, length=8):
        return self.number(off, length, "big")

    def _extensions(self):
        at = self.u(100, 4)
        while (kind := self.u(at, 4)) != 0:
            length = self.u(at + 4, 4)
            yield kind, (at + 8, length)
            at += 8 + -(-length // 8) * 8

    def entries(self, table, count):
        return [(table + 8 * i, self.u(table + 8 * i)) for i in range(count)]

    def l2_tables(self, l1=None, l1_size=None):
        """Yields (index in the L1 table, offset of the L1 entry, offset of the L2 table)."""
        for i, (place, entry) in enumerate(self.entries(l1 or self.l1, l1_size or self.l1_size)):
            if entry & OFFSET:
                yield i, place, entry & OFFSET

    def l2_entries(self, l1=None, l1_size=None):
        """Yields (guest offset, offset of the L2 entry, its value) for each entry that isn't 0."""
        per, step = self.per_table, self.cluster // self.per_table
        for i, _, table in self.l2_tables(l1, l1_size):
            for j, place in enumerate(range(table, table + self.cluster, step)):
                if entry := self.u(place):
                    yield (i * per + j) * self.cluster, place, entry

    def table_range(self, index):
        span = self.cluster * self.per_table
        return ((index * span, (index + 1) * span),)

    def cluster_range(self, guest):
        return ((guest, guest + self.cluster),)

    def snapshot_entries(self):
        at = self.snapshots
        for _ in range(self.nb_snapshots):
            yield at, self.u(at), self.u(at + 8, 4), self.u(at + 36, 4)
            at += 40 + self.u(at + 36, 4) + self.u(at + 12, 2) + self.u(at + 14, 2)
            at = -(-at // 8) * 8

    def refcount(self, offset):
        """(offset in the file, number of bytes there, the refcount) of the cluster at `offset`."""
        index = offset // self.cluster
        per = self.cluster * 8 // self.bits
        block, in_block = self.blocks[index // per], index % per
        if self.bits >= 8:
            place = block + in_block * self.bits // 8
            return place, self.bits // 8, self.u(place, self.bits // 8)
        place = block + in_block * self.bits // 8
        shift = in_block * self.bits % 8
        return place, 1, self.raw[place] >> shift & ((1 << self.bits) - 1)

    def set_refcount(self, offset, value):
        place, length, old = self.refcount(offset)
        if self.bits >= 8:
            return place, be(value, length)
        shift = offset // self.cluster * self.bits % 8
        mask = (1 << self.bits) - 1
        return place, bytes([self.raw[place] & ~(mask << shift) & 0xff | value << shift])


# ---- base images ----

def payload(seed, length):
    return random.Random(seed).randbytes(length)


def make_qcow2(folder, name, size, options, script, seed=1):
    path = os.path.join(folder, f"{name}.qcow2")
    h.create_encrypted(path, size, options)
    for step, (verb, off, length) in enumerate(script):
        source = os.path.join(folder, "payload")
        words = {"compressed": "write -q -c", "zero": "write -q -z", "unmap": "write -q -z -u",
                 "write": "write -q"}
        if verb == "snapshot":
            image = opened(path, "qcow2") if is_encrypted(path, "qcow2") else (path,)
            h.run("qemu-img", "snapshot", "-c", f"snap{step}", *image)
            continue
        command = f"{words[verb]} {off} {length}"
        if verb in ("write", "compressed"):
            data = payload(seed * 1000 + step, length // 4) * 4
            pathlib.Path(source).write_bytes(data[:length])
            command = f"{words[verb]} -s {source} {off} {length}"
        h.run("qemu-io", "-c", command, *opened(path, "qcow2"))
    return Qcow2(path)


K, M = 1 << 10, 1 << 20
FILL = [("write", 0, 24 * K), ("write", 2 * M, 20 * K), ("write", 6 * M + 8 * K, 12 * K),
        ("zero", 64 * K, 16 * K), ("write", 96 * K, 16 * K), ("unmap", 96 * K, 8 * K)]


def qcow2_bases(folder):
    def make(name, options, script=None, size="8M", **kwargs):
        return make_qcow2(folder, name, size, options, FILL if script is None else script, **kwargs)

    compressed = [("compressed", 128 * K, 4 * K), ("compressed", 132 * K, 4 * K),
                  ("compressed", 4 * M, 8 * K)]
    snapshots = FILL + [("snapshot", 0, 0), ("write", 4 * K, 8 * K), ("write", 3 * M, 8 * K),
                        ("snapshot", 0, 0), ("write", 2 * M + 4 * K, 4 * K)]
    bases = {
        "plain": make("plain", "cluster_size=4k"),
        "compressed": make("compressed", "cluster_size=4k", FILL + compressed),
        "snapshots": make("snapshots", "cluster_size=4k", snapshots),
        "v2": make("v2", "cluster_size=4k,compat=0.10",
                   [s for s in snapshots if s[0] not in ("zero", "unmap")]),
        "large": make("large", "cluster_size=64k", [("write", 0, 200 * K), ("write", 5 * M, 70 * K)]),
    }
    for bits in (1, 2, 4, 8, 32, 64):
        script = FILL if bits == 1 else FILL + [("snapshot", 0, 0)]
        bases[f"bits{bits}"] = make(f"bits{bits}", f"cluster_size=4k,refcount_bits={bits}", script)
    path = shutil.copyfile(bases["plain"].path, os.path.join(folder, "bitmaps.qcow2"))
    h.run("qemu-img", "bitmap", "--add", "-g", "4k", path, "one")
    h.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 100k", path)
    h.run("qemu-img", "bitmap", "--add", "-g", "64k", path, "two")
    bases["bitmaps"] = Qcow2(path)
    return bases


# ---- qcow2 ----

def header_damages(q):
    c = q.cluster

    def field(name, off, length, value, tags="", lost=()):
        return Damage(f"{q.name}: header {name}", q, [(off, be(value, length))], lost,
                      frozenset(tags.split()))

    yield field("magic", 0, 4, 0x514649fc, "refused")
    yield field("version 1", 4, 4, 1, "refused")
    yield field("version 4", 4, 4, 4, "refused")
    yield field("cluster_bits 8", 20, 4, 8, "refused")
    yield field("cluster_bits 22", 20, 4, 22, "refused")
    yield field("size too large for L1", 24, 8, q.size * 1000, "refused")
    yield field("size smaller", 24, 8, q.size // 2, lost=EVERYTHING)
    yield field("crypt_method 3", 32, 4, 3, "refused")
    yield field("l1_size 0", 36, 4, 0, "refused")
    yield field("l1_size huge", 36, 4, 0xffffffff, "refused")
    yield field("l1_size larger", 36, 4, q.l1_size + 2, "")
    yield field("l1 misaligned", 40, 8, q.l1 + 512, "refused")
    yield field("l1 past the end", 40, 8, q.end + 16 * c, "hopeless", EVERYTHING)
    yield field("l1 on the header", 40, 8, 0, "hopeless overlap", EVERYTHING)
    yield field("refcount table misaligned", 48, 8, q.rt + 512, "unlooked")
    yield field("refcount table past the end", 48, 8, q.end + 16 * c)
    yield field("refcount table on the header", 48, 8, 0)
    yield field("refcount table on a block", 48, 8, q.blocks[0])
    yield field("refcount table on data", 48, 8, next(q.l2_entries())[2] & OFFSET,
                "unlooked" if q.name in ("large", "extended snapshots") else "")
    yield field("no refcount table", 56, 4, 0)
    yield field("refcount table too large", 56, 4, 0x7fffffff, "unlooked")
    yield field("refcount table larger", 56, 4, q.rt_clusters + 1)
    yield field("nb_snapshots huge", 60, 4, 0x10001, "refused")
    yield field("snapshots misaligned", 64, 8, q.snapshots + 512 if q.snapshots else 0,
                "refused" if q.nb_snapshots else "")
    if q.nb_snapshots:
        yield field("fewer snapshots", 60, 4, q.nb_snapshots - 1)
        yield field("no snapshots", 60, 4, 0)
        yield field("snapshots past the end", 64, 8, q.end + 16 * c, "hopeless")
        yield field("snapshots on the header", 64, 8, 0, "hopeless overlap")
        yield field("snapshots on the L1 table", 64, 8, q.l1, "hopeless overlap")
    if q.version < 3:
        return
    features = q.u(72)
    yield field("unknown incompatible bit", 72, 8, features | 1 << 40, "refused")
    yield field("dirty", 72, 8, features | 1)
    yield field("corrupt", 72, 8, features | 2)
    yield field("dirty and corrupt", 72, 8, features | 3)
    yield field("unknown compatible bit", 80, 8, 1 << 40)
    yield field("unknown autoclear bit", 88, 8, 1 << 40)
    yield field("refcount_order 7", 96, 4, 7, "refused")
    yield field("header_length 96", 100, 4, 96, "refused")
    yield field("header_length 108", 100, 4, 108, "header")
    yield field("header_length huge", 100, 4, 0x300000, "refused")


def refcount_table_damages(q):
    targets = {
        "0": 0,
        "reserved bit 0": q.blocks[0] | 1,
        "reserved bit 8": q.blocks[0] | 256,
        "misaligned": q.blocks[0] + 512,
        "past the end": q.end + 4 * q.cluster,
        "far past the end": 1 << 50,
        "all bits": (1 << 64) - 1,
        "the table itself": q.rt,
        "the L1 table": q.l1,
        "an L2 table": next(q.l2_tables())[2],
        "data": next(q.l2_entries())[2] & OFFSET,
    }
    for name, value in targets.items():
        tags = {"unlooked"} if name in ("misaligned", "all bits") else set()
        yield Damage(f"{q.name}: refcount table entry 0: {name}", q, [(q.rt, be(value))],
                     tags=frozenset(tags))
    last = len(q.blocks) - 1
    for name, value in (("past the end", q.end + 9 * q.cluster), ("block 0", q.blocks[0]),
                        ("misaligned", q.blocks[0] + 512), ("data", targets["data"])):
        tags = set()
        yield Damage(f"{q.name}: refcount table entry {last}: {name}", q,
                     [(q.rt + 8 * last, be(value))], tags=frozenset(tags))


def refcount_damages(q):
    top = (1 << q.bits) - 1
    standard = [e for _, _, e in q.l2_entries() if not e & COMPRESSED and e & OFFSET]
    places = {
        "header": 0,
        "refcount table": q.rt,
        "refcount block": q.blocks[0],
        "L1 table": q.l1,
        "L2 table": next(q.l2_tables())[2],
        "data": standard[0] & OFFSET,
        "last data": max(e & OFFSET for e in standard),
    }
    if q.external:
        del places["data"], places["last data"]
    if LUKS_HEADER in q.extensions:
        places["LUKS header"] = q.u(q.extensions[LUKS_HEADER][0])
    if q.nb_snapshots:
        places["snapshot table"] = q.snapshots
        places["snapshot's L1 table"] = next(q.snapshot_entries())[1]
    for name, offset in places.items():
        old = q.refcount(offset)[2]
        for value in sorted({0, old - 1, old + 1, top} - {old, -1}):
            if value <= top:
                yield Damage(f"{q.name}: refcount of {name}: {old} becomes {value}", q,
                             [q.set_refcount(offset, value)])
    free = q.end - q.cluster
    while free > 0 and q.refcount(free)[2] != 0:
        free -= q.cluster
    if free:
        yield Damage(f"{q.name}: refcount of a free cluster: 1", q, [q.set_refcount(free, 1)])
    yield Damage(f"{q.name}: refcount block all zero", q, [(q.blocks[0], bytes(q.cluster))])
    yield Damage(f"{q.name}: refcount block all ones", q, [(q.blocks[0], b"\xff" * q.cluster)])
    # Leaked clusters behind the last one in use, as a killed server leaves them.
    more = q.end + 8 * q.cluster
    if more // q.cluster < q.cluster * 8 // q.bits:
        patches = [q.set_refcount(off, 1) for off in range(q.end, more, q.cluster)]
        if q.bits < 8:  # one byte holds several refcounts, and each patch would undo the one before
            patches = [q.set_refcount(more - q.cluster, 1)]
        yield Damage(f"{q.name}: leaks behind the end", q, patches, truncate=more)


def l1_damages(q):
    tables = list(q.l2_tables())
    index, place, table = tables[0]
    entry = q.u(place)
    lost = q.table_range(index)
    other = tables[-1][2]
    data = next(q.l2_entries())[2] & OFFSET

    def case(name, value, tags="", lost=lost):
        return Damage(f"{q.name}: L1 entry {index}: {name}", q, [(place, be(value))], lost,
                      frozenset(tags.split()))

    yield case("0", 0)
    yield case("reserved bit 0", entry | 1, lost=())
    yield case("reserved bit 8", entry | 256, lost=())
    yield case("reserved bit 56", entry | 1 << 56, lost=())
    yield case("reserved bit 62", entry | 1 << 62, lost=())
    yield case("misaligned", entry + 512, "unread")
    yield case("past the end", COPIED | (q.end + 3 * q.cluster))
    yield case("far past the end", COPIED | 1 << 54)
    yield case("only the copied flag", COPIED, "overlap")
    yield case("the L1 table", COPIED | q.l1, "overlap")
    yield case("the refcount table", COPIED | q.rt, "overlap")
    yield case("a refcount block", COPIED | q.blocks[0], "overlap")
    yield case("data", COPIED | data, "overlap")
    yield case("another table", COPIED | other, lost=lost)
    yield case("copied flag flipped", entry ^ COPIED, lost=())
    if q.nb_snapshots:
        yield case("snapshot table", COPIED | q.snapshots, "overlap")
        yield case("snapshot's L1 table", COPIED | next(q.snapshot_entries())[1], "overlap")
    last = q.l1_size - 1
    if last != tables[-1][0]:
        yield Damage(f"{q.name}: L1 entry {last}: another table", q,
                     [(q.l1 + 8 * last, be(COPIED | table))], q.table_range(last))
        yield Damage(f"{q.name}: L1 entry {last}: past the end", q,
                     [(q.l1 + 8 * last, be(q.end + q.cluster))], q.table_range(last))


def l2_damages(q, guest, place, entry, kind):
    c, data = q.cluster, entry & OFFSET
    flag = entry & (COPIED | ZERO)
    others = [e & OFFSET for _, p, e in q.l2_entries() if p != place and e & OFFSET and not e & COMPRESSED]
    lost = q.cluster_range(guest)

    def case(name, value, tags="", lost=lost):
        return Damage(f"{q.name}: L2 entry of a {kind}: {name}", q, [(place, be(value))], lost,
                      frozenset(tags.split()))

    yield case("0", 0)
    for bit in (1, 8, 56, 61):
        yield case(f"reserved bit {bit}", entry | 1 << bit, lost=())
    yield case("misaligned", entry + 512)
    yield case("misaligned by half a cluster", entry + c // 2)
    yield case("past the end", q.end + 5 * c | flag)
    yield case("just past the end", q.end | flag)
    yield case("far past the end", 1 << 55 | flag)
    yield case("zero flag flipped", entry ^ ZERO,
               "v2-zero" if q.version < 3 else "extended-zero" if q.extended else "",
               () if q.extended else lost)
    # With an external data file, data may lie at offset 0: then the flag tells whether the entry is allocated.
    yield case("copied flag flipped", entry ^ COPIED, lost=() if data else lost)
    yield case("only the copied flag", COPIED)
    yield case("compressed flag", entry | COMPRESSED)
    yield case("compressed flag, not copied", (entry | COMPRESSED) & ~COPIED)
    yield case("other data", others[-1] | flag)
    if q.external:  # the data file contains no metadata that an entry could point at
        return
    for name, value in (("the L1 table", q.l1), ("the refcount table", q.rt),
                        ("a refcount block", q.blocks[0]), ("its own table", place // c * c)):
        yield case(name, value | flag)
    if LUKS_HEADER in q.extensions:
        yield case("the LUKS header", q.u(q.extensions[LUKS_HEADER][0]) | flag)
    if q.nb_snapshots:
        yield case("the snapshot table", q.snapshots | flag)
        yield case("a snapshot's L1 table", next(q.snapshot_entries())[1] | flag)


def kinds_of_l2(q):
    """One entry of each kind."""
    found = {}
    for guest, place, entry in q.l2_entries():
        if entry & COMPRESSED:
            kind = "compressed cluster"
        elif entry & ZERO:
            kind = "allocated zero cluster" if entry & OFFSET else "zero cluster"
        else:
            kind = "data cluster" if entry & COPIED else "shared cluster"
        found.setdefault(kind, (guest, place, entry))
    return found


def compressed_damages(q, guest, place, entry):
    shift = 62 - (q.cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    sectors = entry >> shift & ((1 << q.cluster_bits - 8) - 1)
    most = (1 << q.cluster_bits - 8) - 1
    lost = q.cluster_range(guest)

    def case(name, new_offset=offset, new_sectors=sectors, flags=COMPRESSED, tags="", lost=lost):
        value = flags | new_sectors << shift | new_offset
        return Damage(f"{q.name}: compressed cluster: {name}", q, [(place, be(value))], lost,
                      frozenset(tags.split()))

    yield case("copied flag", flags=COMPRESSED | COPIED, lost=())
    yield case("0", 0, 0, 0)
    yield case("past the end", q.end + 4 * q.cluster)
    yield case("just past the end", q.end)
    yield case("far past the end", (1 << 55) - 512)
    yield case("most sectors", new_sectors=most, lost=())
    yield case("no more sectors", new_sectors=0)
    yield case("at the end of its cluster", offset // q.cluster * q.cluster + q.cluster - 1, 0)
    yield case("over two clusters", offset // q.cluster * q.cluster + q.cluster - 1, most)
    yield case("other data", next(q.l2_entries())[2] & OFFSET)
    yield case("the L1 table", q.l1)
    yield case("an L2 table", place // q.cluster * q.cluster)
    yield case("the header", 0)
    yield case("a refcount block", q.blocks[0])


def snapshot_damages(q):
    c = q.cluster
    for number, (at, l1, l1_size, extra) in enumerate(q.snapshot_entries()):
        def case(name, off, length, value, tags=""):
            return Damage(f"{q.name}: snapshot {number}: {name}", q, [(at + off, be(value, length))],
                          tags=frozenset(tags.split()))

        yield case("L1 misaligned", 0, 8, l1 + 512)
        yield case("L1 past the end", 0, 8, q.end + 4 * c)
        yield case("L1 far past the end", 0, 8, 1 << 62, "")
        yield case("L1 on the active one", 0, 8, q.l1, "overlap")
        yield case("L1 on the header", 0, 8, 0, "overlap")
        yield case("L1 on an L2 table", 0, 8, next(q.l2_tables())[2], "overlap")
        yield case("L1 on data", 0, 8, list(q.l2_entries())[-1][2] & OFFSET, "overlap")
        guest, _, entry = list(q.l2_entries())[-1]
        yield Damage(f"{q.name}: snapshot {number}: L1 on data that begins with zeroes", q,
                     [(at, be(entry & OFFSET)), (entry & OFFSET, bytes(8 * l1_size))],
                     ((guest, guest + 8 * l1_size),), frozenset({"counted"}))
        yield case("L1 on the refcount table", 0, 8, q.rt, "overlap")
        yield case("L1 of size 0", 8, 4, 0)
        yield case("L1 shorter", 8, 4, l1_size - 1)
        yield case("L1 over the end", 8, 4, 0x20000, "unread")
        yield case("L1 too large", 8, 4, 0x800000)
        if number == q.nb_snapshots - 1:  # otherwise the next entry would be read from a wrong offset
            yield case("too little extra data", 36, 4, extra - 16 if extra >= 16 else 0,
                       "v2-name" if q.version < 3 else "")
            yield case("too much extra data", 36, 4, 2000, "unlooked")
        yield case("id reaches far", 12, 2, 0xffff, "any overlap")
        for name, value in (("reserved", 1), ("misaligned", 512), ("past the end", None)):
            index, place, table = next(q.l2_tables(l1, l1_size))
            old = q.u(place)
            value = old + value if value else q.end + 7 * c
            tags = {"misaligned": "unread"}.get(name, "")
            yield Damage(f"{q.name}: snapshot {number}: L1 entry {index}: {name}", q,
                         [(place, be(value))], tags=frozenset(tags.split()))
    active = {table for _, _, table in q.l2_tables()}
    for at, l1, l1_size, _ in q.snapshot_entries():
        for guest, place, entry in q.l2_entries(l1, l1_size):
            if place // c * c in active:
                continue
            for name, value in (("reserved", entry | 4), ("misaligned", entry + 512),
                                ("past the end", q.end + 2 * c), ("0", 0),
                                ("copied flag", entry ^ COPIED), ("the L1 table", q.l1),
                                ("active data", next(q.l2_entries())[2] & OFFSET)):
                yield Damage(f"{q.name}: L2 entry of a snapshot alone: {name}", q,
                             [(place, be(value))])
            return


def bitmap_damages(q):
    ext, _ = q.extensions[0x23852875]
    directory, directory_size = q.u(ext + 16), q.u(ext + 8)
    table, table_size = q.u(directory), q.u(directory + 8, 4)

    def case(name, off, length, value, tags="unlooked"):
        return Damage(f"{q.name}: bitmaps: {name}", q, [(off, be(value, length))],
                      tags=frozenset(tags.split()))

    yield case("the bit is gone", 88, 8, 0, "")
    yield case("extension: no bitmaps", ext, 4, 0)
    yield case("extension: one less", ext, 4, 1)
    yield case("extension: one more", ext, 4, 3)
    yield case("extension: too many", ext, 4, 0x10000)
    yield case("extension: reserved", ext + 4, 4, 1)
    yield case("extension: length", ext - 4, 4, 16, "unlooked unopened")
    yield case("directory: size 0", ext + 8, 8, 0)
    yield case("directory: smaller", ext + 8, 8, directory_size - 8)
    yield case("directory: larger", ext + 8, 8, directory_size + 8)
    yield case("directory: too large", ext + 8, 8, 1 << 40)
    yield case("directory: misaligned", ext + 16, 8, directory + 8)
    yield case("directory: past the end", ext + 16, 8, q.end + q.cluster)
    yield case("directory: on the L1 table", ext + 16, 8, q.l1)
    guest, _, data = next(q.l2_entries())
    data &= OFFSET
    yield case("directory: on data", ext + 16, 8, data)
    # Read as a bitmap table, zeroes mean a bitmap in which nothing is dirty.
    zeroes = bytes(8 * table_size)
    yield Damage(f"{q.name}: bitmaps: entry: table on data that begins with zeroes", q,
                 [(directory, be(data)), (data, zeroes)], ((guest, guest + len(zeroes)),),
                 frozenset({"unlooked"}))
    for i in range(table_size):
        yield case(f"table entry {i}: on data", table + 8 * i, 8, data)
        yield case(f"table entry {i}: on a refcount block", table + 8 * i, 8, q.blocks[0])
    yield case("entry: table misaligned", directory, 8, table + 8)
    yield case("entry: table at 0", directory, 8, 0)
    yield case("entry: table past the end", directory, 8, q.end + q.cluster)
    yield case("entry: table on an L2 table", directory, 8, next(q.l2_tables())[2])
    yield case("entry: no table", directory + 8, 4, 0)
    yield case("entry: table too large", directory + 8, 4, 0x7fffffff)
    yield case("entry: flags", directory + 12, 4, 8)
    yield case("entry: in use", directory + 12, 4, 1, "")
    yield case("entry: type", directory + 16, 1, 2)
    yield case("entry: granularity too small", directory + 17, 1, 8)
    yield case("entry: granularity too large", directory + 17, 1, 32)
    yield case("entry: no name", directory + 18, 2, 0)
    yield case("entry: long name", directory + 18, 2, 2000)
    yield case("entry: extra data", directory + 20, 4, 8)
    for i in range(table_size):
        entry = q.u(table + 8 * i)
        yield case(f"table entry {i}: reserved", table + 8 * i, 8, entry | 2)
        yield case(f"table entry {i}: misaligned", table + 8 * i, 8, (entry & OFFSET) + 512)
        yield case(f"table entry {i}: past the end", table + 8 * i, 8, q.end + q.cluster)
        yield case(f"table entry {i}: flipped", table + 8 * i, 8, 1 if not entry else 0, "")


def file_damages(q):
    c = q.cluster
    yield Damage(f"{q.name}: cut by half a cluster", q, [], tags=frozenset({"cut"}),
                 lost=EVERYTHING, truncate=len(q.raw) - c // 2)
    yield Damage(f"{q.name}: cut by two clusters", q, [], tags=frozenset({"cut"}), lost=EVERYTHING,
                 truncate=len(q.raw) // c * c - 2 * c)
    yield Damage(f"{q.name}: longer", q, [], truncate=q.end + 10 * c)
    yield Damage(f"{q.name}: longer by a part of a cluster", q, [], truncate=q.end + c // 2)


def qcow2_damages(folder):
    bases = qcow2_bases(folder)
    for name in ("plain", "snapshots", "v2", "large"):
        yield from header_damages(bases[name])
        yield from l1_damages(bases[name])
        yield from refcount_table_damages(bases[name])
    yield from refcount_table_damages(bases["bits1"])
    for name in ("plain", "snapshots", "v2", "bits1", "bits2", "bits4", "bits8", "bits32", "bits64"):
        yield from refcount_damages(bases[name])
    for name in ("plain", "snapshots", "v2", "compressed"):
        for kind, (guest, place, entry) in kinds_of_l2(bases[name]).items():
            if kind == "compressed cluster":
                yield from compressed_damages(bases[name], guest, place, entry)
            elif kind != "zero cluster":
                yield from l2_damages(bases[name], guest, place, entry, kind)
    yield from snapshot_damages(bases["snapshots"])
    yield from snapshot_damages(bases["v2"])
    yield from bitmap_damages(bases["bitmaps"])
    for name in ("plain", "compressed", "snapshots", "large"):
        yield from file_damages(bases[name])


# ---- QED ----

class Qed(Base):
    def __init__(self, path):
        super().__init__(path, "qed")
        self.cluster, self.table_size, self.header_size = (self.u(o, 4) for o in (4, 8, 12))
        self.l1 = self.u(40)
        self.per = self.cluster * self.table_size // 8
        self.end = len(self.raw)

    def u(self, off, length=8):
        return self.number(off, length, "little")

    def l2_tables(self):
        for i in range(self.per):
            if entry := self.u(self.l1 + 8 * i):
                yield i, self.l1 + 8 * i, entry

    def l2_entries(self):
        for i, _, table in self.l2_tables():
            for j in range(self.per):
                if entry := self.u(table + 8 * j):
                    yield (i * self.per + j) * self.cluster, table + 8 * j, entry


def qed_bases(folder):
    path = os.path.join(folder, "qed4k.qed")
    h.create(path, "qed", "16M", "cluster_size=4k,table_size=2")
    h.fill(path, "qed", [(0, payload(1, 40 * K)), (5 * M, payload(2, 20 * K)),
                         (12 * M, payload(3, 4 * K))])
    yield Qed(path)
    path = os.path.join(folder, "qed64k.qed")
    h.create(path, "qed", "8M", "cluster_size=64k,table_size=4")
    h.fill(path, "qed", [(0, payload(4, 100 * K)), (4 * M, payload(5, 300 * K))])
    yield Qed(path)


def qed_damages(folder):
    for q in qed_bases(folder):
        c, tables, entries = q.cluster, list(q.l2_tables()), list(q.l2_entries())
        span = q.per * c
        for word, (index, place, entry) in (("first", tables[0]), ("last", tables[-1])):
            lost = ((index * span, (index + 1) * span),)
            for name, value, tags in (
                    ("0", 0, ""), ("1", 1, ""), ("misaligned", entry + 512, ""),
                    ("past the end", q.end + c, ""), ("far past the end", 1 << 62, ""),
                    ("top bit", 1 << 63, ""), ("all bits", (1 << 64) - 1, ""),
                    ("reaches over the end", q.end - c, "twice"), ("the L1 table", q.l1, "twice"),
                    ("data", entries[0][2], "twice"), ("the header", c // 2, ""),
                    ("another table", tables[-1 if word == "first" else 0][2], "twice")):
                if len(tables) == 1 and name == "another table":
                    continue
                yield Damage(f"{q.name}: {word} L1 entry: {name}", q, [(place, le(value))], lost,
                             frozenset(tags.split()))
        for word, (guest, place, entry) in (("first", entries[0]), ("last", entries[-1])):
            for name, value, tags in (
                    ("0", 0, ""), ("zero", 1, ""), ("2", 2, ""), ("misaligned", entry + 512, ""),
                    ("past the end", q.end, ""), ("far past the end", 1 << 61, ""),
                    ("top bit", 1 << 63 | entry, ""), ("the L1 table", q.l1, "twice"),
                    ("an L2 table", tables[0][2], "twice"), ("other data", entries[1][2], "twice"),
                    ("the header", c // 2, "")):
                yield Damage(f"{q.name}: {word} L2 entry: {name}", q, [(place, le(value))],
                             ((guest, guest + c),), frozenset(tags.split()))
        for name, off, length, value, tags in (
                ("magic", 0, 4, 0, "refused"), ("cluster_size 0", 4, 4, 0, "refused"),
                ("cluster_size odd", 4, 4, 5000, "refused"), ("table_size 3", 8, 4, 3, "refused"),
                ("table_size 32", 8, 4, 32, "refused"), ("unknown feature", 16, 8, 1 << 30, "refused"),
                ("need check", 16, 8, 2, ""), ("unknown compatible feature", 24, 8, 1 << 9, ""),
                ("unknown autoclear feature", 32, 8, 1 << 9, ""),
                ("L1 misaligned", 40, 8, q.l1 + 512, "refused"),
                ("L1 past the end", 40, 8, q.end + c, "refused"),
                ("size too large", 48, 8, 1 << 62, "refused"),
                ("size odd", 48, 8, 12345, "refused")):
            yield Damage(f"{q.name}: header {name}", q, [(off, le(value, length))],
                         tags=frozenset(tags.split()))
        yield Damage(f"{q.name}: leaks at the end", q, [], truncate=q.end + 5 * c)
        yield Damage(f"{q.name}: leaks at the end, need check", q, [(16, le(2))],
                     truncate=q.end + 5 * c)
        yield Damage(f"{q.name}: a part of a cluster at the end", q, [], truncate=q.end + 700)
        yield Damage(f"{q.name}: last cluster cut", q, [], EVERYTHING, truncate=q.end - 700)
        yield Damage(f"{q.name}: two clusters cut", q, [], EVERYTHING, truncate=q.end - 2 * c)


def damages(folder):
    yield from qcow2_damages(folder)
    yield from qed_damages(folder)
