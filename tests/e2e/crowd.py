# SPDX-License-Identifier: BSD-3-Clause
"""Threads that write at the same time, each to its own pieces of the disk.  The pieces of different
threads alternate, so that most clusters have several writers.  They share one model of the disk."""

import random
import threading

import nbd

from harness import KIB, SECTOR


def deal(rng, size, cluster, hands):
    """A list of pieces, (offset, length), for each of `hands` threads: small pieces of uneven lengths in turn
    in the first half of the disk, and one large piece each in the second half."""
    pieces, at, turn = [[] for _ in range(hands)], 0, 0
    while at < size // 2:
        length = rng.choice((rng.randint(1, cluster), rng.randint(1, 3000), rng.randint(1, 3 * cluster), cluster))
        length = min(length, size // 2 - at)
        pieces[turn % hands].append((at, length))
        at, turn = at + length, turn + 1
    large = (size - at) // hands
    for hand in range(hands):
        pieces[hand].append((at + hand * large, large))
    pieces[-1].append((at + hands * large, size - at - hands * large))
    return [[piece for piece in hand if piece[1]] for hand in pieces]


class Member(threading.Thread):
    """One of the threads, with its own connection."""

    def __init__(self, handle, model, pieces, seed, count, cluster):
        super().__init__(daemon=True)
        self.handle, self.model, self.pieces, self.count = handle, model, pieces, count
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.log, self.error = [], None

    def place(self):
        """A random range inside one of the pieces, often the whole piece or whole clusters."""
        start, length = self.rng.choice(self.pieces) if self.rng.random() < 0.7 else self.pieces[-1]
        shape = self.rng.random()
        if shape < 0.25 and length <= 512 * KIB:
            return start, length
        unit = self.cluster if shape < 0.5 else SECTOR if shape < 0.7 else 1
        first, last = -(-start // unit), (start + length) // unit
        if first >= last:
            unit, first, last = 1, start, start + length
        most = max(1, min(last - first, max(1, 96 * KIB // unit)))
        count = self.rng.randint(1, most)
        at = self.rng.randrange(first, last - count + 1)
        return at * unit, count * unit

    def payload(self, length):
        kind = self.rng.random()
        if kind < 0.2:
            return bytes(length)
        if kind < 0.6:
            return (self.rng.randbytes(13) * (length // 13 + 1))[:length]
        return self.rng.randbytes(length)

    def request(self):
        kind = self.rng.choices(("write", "zero", "zero-keep", "trim", "flush", "read"), (55, 9, 7, 9, 4, 16))[0]
        off, length = self.place()
        fua = nbd.CMD_FLAG_FUA if self.rng.random() < 0.1 else 0
        self.log = self.log[-11:] + [f"{kind} {off}+{length}{' fua' if fua else ''}"]
        if kind == "write":
            self.model.write(self.handle, off, self.payload(length), fua)
        elif kind.startswith("zero"):
            self.model.zero(self.handle, off, length, fua | (nbd.CMD_FLAG_NO_HOLE if kind == "zero-keep" else 0))
        elif kind == "trim":
            self.model.trim(self.handle, off, length, fua)
        elif kind == "read":
            self.model.expect(self.handle.pread(length, off), "read under load", off)
        else:
            self.handle.flush()

    def run(self):
        try:
            for _ in range(self.count):
                self.request()
        except Exception as error:  # pylint: disable=broad-except
            self.error = error


def work(server, model, rng, requests, cluster, threads=8):
    """Runs `threads` threads with `requests` requests each and fails if one of them failed.  Returns their
    connections."""
    handles = [server.connect() for _ in range(threads)]
    members = [Member(handles[n], model, pieces, rng.random(), requests, cluster)
               for n, pieces in enumerate(deal(rng, len(model), cluster, threads))]
    for member in members:
        member.start()
    for member in members:
        member.join(240)
        if member.is_alive():
            raise AssertionError(f"a request hangs: {member.log[-1]}")
    for member in members:
        if member.error:
            raise AssertionError(f"{type(member.error).__name__}: {member.error}\nits last requests: "
                                 + "; ".join(member.log) + "\nthe server's last words: "
                                 + server.errors[-600:]) from member.error
    return handles
