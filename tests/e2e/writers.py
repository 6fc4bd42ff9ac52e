# SPDX-License-Identifier: BSD-3-Clause
"""Clients that write all the time, each to its own part of the disk, and keep a model of what it must contain."""

import contextlib
import random
import threading
import time

from harness import KIB, SECTOR, wait_until

MOST = 96 * KIB


class Writer(threading.Thread):
    """Sends random requests, one after the other, on one connection, to [base, base + len(content))."""

    def __init__(self, handle, base, content, seed, unit=1, pause=0):
        super().__init__(daemon=True)
        self.handle, self.base, self.unit, self.pause = handle, base, unit, pause
        self.rng = random.Random(seed)
        self.lock = threading.RLock()  # held while a request runs
        self.content = bytearray(content)  # what the answered requests have made of it
        self.flushed = bytes(content)
        self.unflushed = []  # (offset, bytes) of the requests since the last flush
        self.marked, self.since = None, []
        self.changed = []  # (offset on the disk, length) of all requests that change something
        self.count, self.error, self.over = 0, None, False

    def place(self):
        length = self.rng.choice([self.rng.randint(1, 4 * KIB), SECTOR, 4 * KIB, self.rng.randint(1, MOST), 64 * KIB])
        length = min(length, len(self.content))
        off = self.rng.randrange(len(self.content) - length + 1)
        if self.rng.random() < 0.5:
            off = off // (4 * KIB) * 4 * KIB
        return off // self.unit * self.unit, max(self.unit, length // self.unit * self.unit)

    def put(self, off, payload):
        self.content[off:off + len(payload)] = payload
        if self.marked is not None:  # without a mark the list isn't used, and would grow without end
            self.since.append((off, payload))

    def request(self):
        kind = self.rng.choices(["write", "zero", "trim", "flush", "read"], [60, 12, 12, 4, 12])[0]
        off, length = self.place()
        at = self.base + off
        if kind in ("write", "zero", "trim"):
            self.changed.append((at, length))
        if kind == "write":
            payload = self.rng.randbytes(length)
            self.unflushed.append((off, payload))
            self.handle.pwrite(payload, at)
            self.put(off, payload)
        elif kind == "zero":
            self.unflushed.append((off, bytes(length)))
            self.handle.zero(length, at)
            self.put(off, bytes(length))
        elif kind == "trim":
            self.unflushed.append((off, bytes(length)))
            self.handle.trim(length, at)
            now = bytes(self.handle.pread(length, at))
            old = self.content[off:off + length]
            if any(a != b and a for a, b in zip(now, old)):
                raise AssertionError(f"trim of {at}+{length}: neither what it was nor zero")
            self.put(off, now)
        elif kind == "flush":
            self.handle.flush()
            self.flushed, self.unflushed = bytes(self.content), []
        elif self.handle.pread(length, at) != self.content[off:off + length]:
            raise AssertionError(f"{at}+{length}: not what was written")

    def run(self):
        try:
            while not self.over:
                with self.lock:
                    self.request()
                    self.count += 1
                if self.pause:
                    time.sleep(self.pause)
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def mark(self):
        """Records every change from now on, for is_a_moment()."""
        with self.lock:
            self.marked, self.since = bytes(self.content), []

    def is_a_moment(self, found):
        """Was this part of the disk equal to `found` between two requests, at some time since mark()?"""
        state = bytearray(self.marked)
        if state == found:
            return True
        for off, payload in self.since:
            state[off:off + len(payload)] = payload
            if state == found:
                return True
        return False

    def survived(self, found):
        """After a crash: is each byte of `found` as it was at the last flush, or as a request since then made it?"""
        for at in range(0, len(found), SECTOR):
            now, old = found[at:at + SECTOR], self.flushed[at:at + SECTOR]
            if now == old:
                continue
            touched = [(off, new) for off, new in self.unflushed if off < at + SECTOR and at < off + len(new)]
            if any(off <= at and new[at - off:at + SECTOR - off] == now for off, new in touched):
                continue
            if any(now[i] != old[i] and not any(off <= at + i < off + len(new) and new[at + i - off] == now[i]
                                                for off, new in touched) for i in range(len(now))):
                return False
        return True


class Writers:
    """`count` writers, one for each equal part of the disk.  pause: seconds between a writer's requests, so that a job
    that doesn't hold them up can keep up with them."""

    def __init__(self, server, content, seed, count=4, unit=1, pause=0):
        size = len(content) // count // unit * unit
        self.content = content
        self.all = [Writer(server.connect(), n * size, content[n * size:(n + 1) * size], f"{seed} {n}", unit, pause)
                    for n in range(count)]
        for writer in self.all:
            writer.start()

    @contextlib.contextmanager
    def still(self):
        """A context in which no request is in flight."""
        with contextlib.ExitStack() as stack:
            for writer in self.all:
                stack.enter_context(writer.lock)
            yield

    def changed(self, begin=False):
        """(offset, length) of all changes so far, to be called inside still().  begin: forget them."""
        found = [change for writer in self.all for change in writer.changed]
        for writer in self.all if begin else []:
            writer.changed = []
        return found

    def some(self, requests=100):
        """Waits until so many more requests have been answered."""
        until = sum(w.count for w in self.all) + requests

        def enough():
            for writer in self.all:
                if writer.error:
                    raise writer.error
            return sum(w.count for w in self.all) >= until
        wait_until(enough, 60, "clients' requests")

    def stop(self):
        """Ends the writers; returns what the disk must read as."""
        for writer in self.all:
            writer.over = True
        for writer in self.all:
            writer.join(60)
            if writer.error:
                raise writer.error
            self.content[writer.base:writer.base + len(writer.content)] = writer.content
        return self.content

    def mark(self):
        for writer in self.all:
            writer.mark()

    def part(self, writer, found):
        return found[writer.base:writer.base + len(writer.content)]

    def is_a_moment(self, found):
        return all(w.is_a_moment(self.part(w, found)) for w in self.all)

    def crashed(self, found):
        """After the server was killed: is every byte of the disk as flushed, or newer?  Ends the writers."""
        for writer in self.all:
            writer.over = True
            writer.join(60)
        return all(w.survived(self.part(w, found)) for w in self.all)
