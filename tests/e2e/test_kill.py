# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 while eight requests are in flight; then every sector is checked.

Each sector that is written contains its own number and the number of the request.  After the crash a
sector must be at least as new as the last flush (or its own FUA write) made durable, not newer than
the last request sent, and never anything else.  The image is repaired by `qemu-img check -r all` and
by the server itself, in turn, and is used in the next round.

Requirements: Q-10, Q-14 to Q-16, L-04 to L-06, V-04.  QIMG_ROUNDS: rounds per format (10).
"""

import errno
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
NOTHING, BACKING = 0, 1  # the stamps of a sector of zeroes and of one of the backing file
GONE = {errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN, errno.ECANCELED, errno.EBADF}


def stamped(sector, stamp):
    """The content of a sector: its offset and the stamp of the request that wrote it."""
    return STAMP.pack(sector * SECTOR, stamp) * (SECTOR // STAMP.size)


def read_stamp(sector, data):
    """The stamp in a sector; None for garbage."""
    if not any(data):
        return NOTHING
    stamp = STAMP.unpack_from(data)[1]
    return stamp if data == stamped(sector, stamp) else None


class History:
    """The versions that each sector may have after a crash, oldest first, as (request, stamp).

    Requests in flight never overlap, so the requests on one sector have an order."""

    def __init__(self, stamp):
        self.possible = [[(0, stamp)] for _ in range(SECTORS)]
        self.answered = {}  # sector -> the last answered request, which the next flush makes durable

    def sent(self, sectors, request, stamp):
        for sector in sectors:
            self.possible[sector].append((request, stamp))

    def done(self, sectors, request, durable):
        """The request was answered.  Not called for trims, which may leave sectors unchanged."""
        for sector in sectors:
            self.answered[sector] = request
        if durable:
            self.settle(dict.fromkeys(sectors, request))

    def settle(self, until):
        """Sectors can't be older than these requests any more.  until: sector -> request."""
        for sector, request in until.items():
            versions = self.possible[sector]
            while versions[0][0] < request:
                versions.pop(0)

    def judge(self, data):
        """Returns the errors in a disk; its content is the start of the next round."""
        complaints = []
        for sector, versions in enumerate(self.possible):
            got = read_stamp(sector, data[sector * SECTOR:(sector + 1) * SECTOR])
            if got not in [stamp for _, stamp in versions]:
                complaints.append(f"sector {sector} is {'garbage' if got is None else got}, "
                                  f"may be {[stamp for _, stamp in versions]}")
            versions[:] = [(0, NOTHING if got is None else got)]
        self.answered = {}
        return complaints


class Client:
    """Keeps eight requests in flight over two connections until the server dies."""

    def __init__(self, server, history, rng, first_request):
        self.handles = [server.connect(), server.connect()]
        self.history, self.rng, self.request = history, rng, first_request
        self.busy = {}  # request in flight -> its sectors
        self.counts = {"sent": 0, "answered": 0, "flushes": 0}
        self.unexpected = []

    def choose(self):
        """A random range of sectors that no request in flight uses."""
        while True:
            count = self.rng.choice((1, 1, 3, 8, 16, self.rng.randint(1, 300), 128))
            region = SECTORS if self.rng.random() < 0.5 else SECTORS // 8
            first = self.rng.randrange(region - count)
            if self.rng.random() < 0.3:
                first = first // 128 * 128
            sectors = range(first, first + count)
            if all(sectors.stop <= other.start or other.stop <= first for other in self.busy.values()):
                return sectors

    def answer(self, request, settle):
        """The callback of a request; settle() records its success in the history."""
        def callback(error):
            del self.busy[request]
            if error.value == 0:
                self.counts["answered"] += 1
                settle()
            elif error.value not in GONE:
                self.unexpected.append(errno.errorcode.get(error.value, error.value))
            return 1
        return callback

    def launch(self):
        handle = self.rng.choice(self.handles)
        self.request += 1
        self.counts["sent"] += 1
        request, history = self.request, self.history
        kind = self.rng.choices(("write", "fua", "zero", "trim", "flush"), (60, 8, 10, 7, 15))[0]
        if kind == "flush":
            self.busy[request] = range(0)
            covered = dict(history.answered)

            def settle():
                self.counts["flushes"] += 1
                history.settle(covered)
            handle.aio_flush(self.answer(request, settle))
            return
        sectors = self.choose()
        off, length = sectors.start * SECTOR, len(sectors) * SECTOR
        self.busy[request] = sectors
        if kind == "trim":
            history.sent(sectors, request, NOTHING)
            handle.aio_trim(length, off, self.answer(request, lambda: None))
        elif kind == "zero":
            history.sent(sectors, request, NOTHING)
            handle.aio_zero(length, off, self.answer(request, lambda: history.done(sectors, request, False)))
        else:
            history.sent(sectors, request, request + BACKING)
            payload = nbd.Buffer.from_bytearray(
                bytearray(b"".join(stamped(sector, request + BACKING) for sector in sectors)))
            handle.aio_pwrite(payload, off,
                              self.answer(request, lambda: history.done(sectors, request, kind == "fua")),
                              nbd.CMD_FLAG_FUA if kind == "fua" else 0)

    def run(self, timeout):
        limit = time.monotonic() + timeout
        try:
            while time.monotonic() < limit:
                while len(self.busy) < IN_FLIGHT:
                    self.launch()
                self.turn()
        except nbd.Error:
            return  # the server is gone
        raise AssertionError("the server did not die")

    def turn(self):
        poller = select.poll()
        for handle in self.handles:
            direction = handle.aio_get_direction()
            poller.register(handle.aio_get_fd(),
                            (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0)
                            | (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0))
        ready = dict(poller.poll(5000))
        for handle in self.handles:
            events = ready.get(handle.aio_get_fd(), 0)
            direction = handle.aio_get_direction()
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and direction & nbd.AIO_DIRECTION_READ:
                handle.aio_notify_read()
            elif events & select.POLLOUT and direction & nbd.AIO_DIRECTION_WRITE:
                handle.aio_notify_write()


class Rounds(Case):
    TIMEOUT = 600

    def base(self):
        """A raw file whose sectors have the stamp of the backing file."""
        base = self.path("base.raw")
        pathlib.Path(base).write_bytes(b"".join(stamped(sector, BACKING) for sector in range(SECTORS)))
        return base

    def rounds(self, fmt, options="", keys=(), backing=False, leaks=True, consistent=False):
        """Rounds on a new image that is empty, or shows its backing file."""
        image = create(self.path("disk"), fmt, SIZE, options, self.base() if backing else None, "raw")
        self.rounds_on(image, fmt, BACKING if backing else NOTHING, keys, leaks, consistent)

    def judged(self, image, fmt, leaks):
        check(image, fmt, allow_leaks=leaks)

    def repaired(self, image, fmt):
        """Repairs the image by QEMU; returns the disk's content."""
        repair(image, fmt)
        return content(image, fmt)

    def rounds_on(self, image, fmt, stamp, keys=(), leaks=True, consistent=False, rounds=ROUNDS):
        """`rounds` times: serve, write, kill, repair, judge.  stamp: that of all sectors at the beginning; leaks: a
        repair may leave leaks; consistent: the image never needs a repair."""
        history = History(stamp)
        request, answered, flushes, repairs = 1, 0, 0, self.accepts("repair=auto")
        for number in range(rounds):
            where = f"QIMG_SEED={SEED}, round {number}"
            server = self.serve(image, *keys, fmt=fmt)
            client = Client(server, history, self.rng, request)
            killer = threading.Timer(self.rng.choice((0.02, 0.1, 0.3, 1)) * self.rng.uniform(0.5, 1), server.process.kill)
            killer.start()
            client.run(60)
            killer.join()
            server.kill()
            self.assertEqual(client.unexpected, [], where)
            request, answered = client.request + 1, answered + client.counts["answered"]
            flushes += client.counts["flushes"]
            if consistent:
                self.judged(image, fmt, True)
            if number % 2 == 0 and repairs:
                server = self.serve(image, *keys, "writable=now", fmt=fmt)
                handle = server.connect()
                data = b"".join(bytes(handle.pread(4 * MIB, off)) for off in range(0, SIZE, 4 * MIB))
                server.stop()
            else:
                data = self.repaired(image, fmt)
            self.judged(image, fmt, leaks)
            complaints = history.judge(data)
            self.assertFalse(complaints, f"{where}: {len(complaints)} sectors; {complaints[:8]}")
        print(f"{rounds} rounds, {answered} requests answered, {flushes} flushes, QIMG_SEED={SEED}")
        self.assertGreater(answered, rounds * 5)
        self.assertGreater(flushes, rounds // 2)


class KillQed(Rounds):
    def test_qed(self):
        self.rounds("qed", "cluster_size=16k,table_size=2")


class KillQedBacking(Rounds):
    def test_qed_with_backing_file(self):
        """Q-16: NEED_CHECK is never set, there are no errors at any time, and no sector of the backing file is lost."""
        self.rounds("qed", "cluster_size=16k,table_size=2", backing=True, consistent=True)


class KillQcow2(Rounds):
    def test_qcow2(self):
        """Eager refcounts: at any time leaks are the only errors."""
        self.rounds("qcow2", "cluster_size=4k", consistent=True)


class KillQcow2Backing(Rounds):
    def test_qcow2_with_backing_file(self):
        self.rounds("qcow2", "", backing=True, consistent=True)


class KillQcow2Lazy(Rounds):
    def test_qcow2_with_lazy_refcounts(self):
        self.rounds("qcow2", "cluster_size=4k,lazy_refcounts=on,refcount_bits=1", leaks=False)


class KillQcow2Version2(Rounds):
    def test_qcow2_version_2(self):
        self.rounds("qcow2", "compat=0.10,cluster_size=512", consistent=True)


class KillWriteThrough(Rounds):
    def test_writethrough(self):
        self.rounds("qed", "", keys=["cache=writethrough"])


class KillDirect(Rounds):
    def test_o_direct(self):
        self.rounds("qcow2", "", keys=["cache=none"], consistent=True)


class KillVolatile(Rounds):
    def test_volatile(self):
        """V-04: only a crash of the host loses flushed data."""
        self.rounds("qcow2", "lazy_refcounts=on", keys=["cache=volatile"], leaks=False)


class Fua(Case):
    """Each kind of request with FUA, and kill -9 right after its reply."""

    def check_kind(self, fmt, kind):
        image = create(self.path("disk"), fmt, 16 * MIB)
        fill(image, fmt, [(0, b"x" * MIB)])
        server = self.serve(image, fmt=fmt)
        handle, expected = server.connect(), bytes(256 * KIB)
        if kind == "trim":
            handle.trim(256 * KIB, 256 * KIB, nbd.CMD_FLAG_FUA)
        elif kind == "zero":
            handle.zero(256 * KIB, 256 * KIB, nbd.CMD_FLAG_FUA)
        elif kind == "zero-keep":
            handle.zero(256 * KIB, 256 * KIB, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
        else:
            expected = b"y" * 256 * KIB
            off = 256 * KIB if kind == "overwrite" else 8 * MIB
            handle.pwrite(expected, off, nbd.CMD_FLAG_FUA)
            if kind == "allocate":
                server.kill()
                self.assertEqual(self.disk(image, fmt)[off:off + 256 * KIB], expected)
                return
        server.kill()
        self.assertEqual(self.disk(image, fmt)[256 * KIB:512 * KIB], expected)

    def disk(self, image, fmt):
        repair(image, fmt)
        return content(image, fmt)

    def test_kinds(self):
        for fmt in ("qcow2", "qed"):
            for kind in ("trim", "zero", "zero-keep", "overwrite", "allocate"):
                with self.part(fmt=fmt, kind=kind):
                    self.check_kind(fmt, kind)


if __name__ == "__main__":
    unittest.main()
