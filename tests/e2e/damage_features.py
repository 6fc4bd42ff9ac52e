# SPDX-License-Identifier: BSD-3-Clause
"""Damage, as in damage.py, to images with extended L2 entries, external data files, encryption and
zstd."""

import random

import damage
import harness as h
from damage import COMPRESSED, COPIED, EVERYTHING, K, M, OFFSET, Damage, be

FILL = [("write", 0, 24 * K), ("write", 64 * K, 64 * K), ("write", 2 * M, 20 * K), ("zero", 3 * M, 64 * K),
        ("write", 3 * M + 18 * K, 2 * K), ("zero", 70 * K, 3 * K), ("write", 17 * M + 6 * K, 24 * K)]
PACKED = [("compressed", 4 * M, 64 * K), ("compressed", 4 * M + 64 * K, 64 * K), ("compressed", 5 * M, 64 * K)]
SNAPSHOT = [("snapshot", 0, 0), ("write", 2 * M + 2 * K, 3 * K), ("write", 6 * M, 20 * K)]
LUKS = "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"


def made_bases(folder):
    def make(name, options, script):
        return damage.make_qcow2(folder, name, "20M", options, script, seed=2)

    yield make("extended", "extended_l2=on,cluster_size=16k", FILL + PACKED)
    yield make("extended snapshots", "extended_l2=on,cluster_size=16k", FILL + PACKED + SNAPSHOT)
    yield make("external", f"data_file={folder}/external.raw,cluster_size=4k", FILL)
    yield make("external raw", f"data_file={folder}/external2.raw,data_file_raw=on", FILL)
    yield make("external extended", f"data_file={folder}/external3.raw,extended_l2=on,cluster_size=16k", FILL)
    yield make("luks", LUKS, FILL + SNAPSHOT)
    yield make("aes", "cluster_size=4k,encrypt.format=aes,encrypt.key-secret=s", FILL + SNAPSHOT)
    yield make("zstd", "compression_type=zstd", FILL + PACKED + SNAPSHOT)


# ---- subclusters ----

def entry_damages(q, guest, place, entry, kind):
    """Damage to the two words of an extended L2 entry."""
    bitmap, lost = q.u(place + 8), q.cluster_range(guest)
    used = bitmap & 0xffffffff
    values = {
        "none": (entry, 0),
        "all of both": (entry, (1 << 64) - 1),
        "one allocated and zero": (entry, bitmap | (used & -used) << 32),
        "all allocated": (entry, bitmap | 0xffffffff),
        "all zero": (entry, 0xffffffff << 32),
        "without a place": (0, bitmap | 1),
        "without a place, zero too": (COPIED, bitmap | 1 | 1 << 32),
        "misaligned, zero": (entry + 512, 0xffffffff << 32),
        "misaligned, of both": (entry + 512, (1 << 64) - 1),
        "past the end, of both": (q.end + 5 * q.cluster, (1 << 64) - 1),
        "reserved bit, of both": (entry | 4, (1 << 64) - 1),
        "compressed, none": (entry & ~COPIED | COMPRESSED, 0),
    }
    for name, (first, second) in values.items():
        yield Damage(f"{q.name}: subclusters of a {kind}: {name}", q,
                     [(place, be(first) + be(second))], lost)


def packed_damages(q, guest, place, entry):
    for name, first, second in (("allocated", entry, 1), ("zero", entry, 1 << 32), ("all", entry, (1 << 64) - 1),
                                ("copied flag and subclusters", entry | COPIED, 1)):
        yield Damage(f"{q.name}: subclusters of a compressed cluster: {name}", q,
                     [(place, be(first) + be(second))])


def unused_damages(q):
    """Damage to an entry that was empty."""
    table, per = next(q.l2_tables())[2], q.per_table
    index = next(i for i in range(per) if q.raw[table + 16 * i:table + 16 * i + 16] == bytes(16))
    for name, first, second in (("allocated", 0, 5), ("zero", 0, 5 << 32), ("both", 0, 5 | 5 << 32),
                                ("copied and allocated", COPIED, 5)):
        yield Damage(f"{q.name}: subclusters of an empty cluster: {name}", q,
                     [(table + 16 * index, be(first) + be(second))],
                     q.cluster_range(index * q.cluster))


def random_damages(q, count):
    """Random damage to the flags and subcluster bitmaps of several L2 entries at a time."""
    rng = random.Random(h.SEED)
    entries = [e for e in q.l2_entries() if not e[2] & COMPRESSED]
    for number in range(count):
        patches = []
        for _, place, entry in rng.sample(entries, min(5, len(entries))):
            bitmap = q.u(place + 8)
            for _ in range(rng.randrange(3)):
                bitmap ^= 1 << rng.randrange(64)
            entry ^= rng.choice((0, 0, COPIED, 4, 1 << 60, COMPRESSED if bitmap else 0))
            patches.append((place, be(entry) + be(bitmap)))
        yield Damage(f"{q.name}: random {number}", q, patches, EVERYTHING)


def subcluster_damages(q):
    for kind, (guest, place, entry) in damage.kinds_of_l2(q).items():
        if kind == "compressed cluster":
            yield from packed_damages(q, guest, place, entry)
        else:
            yield from entry_damages(q, guest, place, entry, kind)
    yield from unused_damages(q)
    yield from random_damages(q, 12)


# ---- the others ----

def external_damages(q):
    guest, place, entry = next(e for e in q.l2_entries() if e[2] & OFFSET)
    for name, value in (("compressed", COMPRESSED | 0x5000), ("compressed and copied", COMPRESSED | COPIED | 0x5000),
                        ("at 0", COPIED), ("at 0, not copied", 0)):
        yield Damage(f"{q.name}: {name}", q, [(place, be(value))], q.cluster_range(guest))


def luks_damages(q):
    place, _ = q.extensions[damage.LUKS_HEADER]
    offset, length = q.u(place), q.u(place + 8)

    def case(name, off, value, tags):
        return Damage(f"{q.name}: LUKS header: {name}", q, [(off, be(value))], tags=frozenset(tags.split()))

    yield case("misaligned", place, offset + 512, "refused")
    yield case("past the end", place, q.end + 5 * q.cluster, "unlooked hopeless unopened")
    yield case("on the L1 table", place, q.l1, "unlooked hopeless unopened")
    yield case("on the header", place, 0, "unlooked hopeless unopened")
    yield case("without bytes", place + 8, 0, "refused")
    snapshot = next(q.snapshot_entries())[0]
    yield Damage(f"{q.name}: snapshot 0: L1 on the LUKS header", q, [(snapshot, be(offset))],
                 tags=frozenset({"overlap"}))
    yield Damage(f"{q.name}: refcount table on the LUKS header", q, [(48, be(offset))],
                 tags=frozenset({"overlap"}))
    index, place, entry = next(q.l2_tables())
    yield Damage(f"{q.name}: L1 entry {index} leads to the LUKS header", q, [(place, be(COPIED | offset))],
                 q.table_range(index), frozenset({"overlap"}))


def damages(folder):
    for q in made_bases(folder):
        yield Damage(f"{q.name}: undamaged", q, [])
        for kind, (guest, place, entry) in damage.kinds_of_l2(q).items():
            if kind == "compressed cluster":
                yield from damage.compressed_damages(q, guest, place, entry)
            elif kind != "zero cluster":
                yield from damage.l2_damages(q, guest, place, entry, kind)
        if q.extended:
            yield from subcluster_damages(q)
        if q.external:
            yield from external_damages(q)
        if q.name in ("extended snapshots", "external", "luks"):
            yield from damage.l1_damages(q)
            yield from damage.refcount_damages(q)
            yield from damage.refcount_table_damages(q)
        if q.name == "extended snapshots":
            yield from damage.header_damages(q)
            yield from damage.snapshot_damages(q)
        if damage.LUKS_HEADER in q.extensions:
            yield from luks_damages(q)
        if not q.external:  # such an image file ends with its tables
            yield from damage.file_damages(q)
