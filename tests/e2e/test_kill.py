"""kill -9 while eight requests are in flight; then every sector is looked at.

Each sector that is written says where it belongs and which request wrote it.  After the crash a
sector must be at least as new as the last flush (or its own FUA write) made durable, never newer
than what was sent, and never anything else.  The image is repaired by `qemu-img check -r all` or
by the server itself, in turn, and goes on into the next round.

Requirements: Q-10, Q-14 to Q-16, L-04 to L-06, V-04.  QIMG_ROUNDS: rounds per format (10).
"""

import os
import pathlib
import select
import struct
import threading
import unittest

from harness import *

ROUNDS = int(os.environ.get("QIMG_ROUNDS", "100" if LONG else "10"))
SIZE = 24 * MIB
SECTORS = SIZE // SECTOR
IN_FLIGHT = 8
STAMP = struct.Struct("<QQ")
NOTHING = 0  # the version of a sector of zeroes


def stamped(sector, version):
    """A sector that says where it belongs and who wrote it."""
    return STAMP.pack(sector * SECTOR, version) * (SECTOR // STAMP.size)


def read_stamp(sector, data):
    """The version of a sector, NOTHING for zeroes, None for garbage."""
    if not any(data):
        return NOTHING
    off, version = STAMP.unpack_from(data)
    return version if off == sector * SECTOR and data == stamped(sector, version) else None


class Sector:
    """What one sector may read as: versions[0] is the oldest that is still possible."""

    __slots__ = ("versions", "acked")

    def __init__(self, version):
        self.versions, self.acked = [version], 0  # acked: how many of them may a flush drop


class History:
    """What was sent, answered and flushed, as a set of possible versions per sector.

    Requests in flight never overlap, so a sector's versions are in the order of its list."""

    def __init__(self):
        self.possible = [[NOTHING] for _ in range(SECTORS)]
        self.answered = {}  # sector -> index in possible up to which a flush settles it

    def sent(self, first, count, version):
        for sector in range(first, first + count):
            self.possible[sector].append(version)

    def done(self, first, count, settles, durable):
        """Answered: the next flush settles it (a trim settles nothing), FUA does at once."""
        for sector in range(first, first + count):
            if settles:
                self.answered[sector] = len(self.possible[sector]) - 1
                if durable:
                    self.settle(sector, self.answered.pop(sector))

    def settle(self, sector, index):
        del self.possible[sector][:index]

    def flush_begins(self):
        """What a flush that is sent now will have settled: sector -> version."""
        return {sector: self.possible[sector][index] for sector, index in self.answered.items()}

    def flush_done(self, covered):
        for sector, version in covered.items():
            if version in self.possible[sector]:
                keep = len(self.possible[sector]) - self.possible[sector].index(version)
                self.settle(sector, len(self.possible[sector]) - keep)
                if sector in self.answered:
                    self.answered[sector] = max(0, self.answered[sector] - (len_before(self, sector, keep)))

    def judge(self, data):
        """The complaints about a disk; adopts what it is."""
        complaints = []
        for sector in range(SECTORS):
            got = read_stamp(sector, data[sector * SECTOR:(sector + 1) * SECTOR])
            if got is None or got not in self.possible[sector]:
                complaints.append(f"sector {sector}: {'garbage' if got is None else got}, "
                                  f"possible {self.possible[sector]}")
            self.possible[sector] = [got if got is not None else NOTHING]
        self.answered = {}
        return complaints
