# SPDX-License-Identifier: BSD-3-Clause
"""The server's system calls, seen by strace.

Requirements: V-02 (volatile never syncs), shared commits, L-07, and that each flush of new data causes
a sync.
"""

import re
import shutil
import unittest

from harness import *

SIZE = 64 * MIB
SYNCS = ("fsync", "fdatasync", "sync_file_range", "sync", "syncfs", "msync")
SECONDS = 10 if LONG else 3


@unittest.skipUnless(shutil.which("strace"), "strace isn't installed")
class Traced(Case):
    def traced(self, image, *keys, fmt, calls):
        """A server under strace, which only traces the system calls in `calls`."""
        self.log = self.path("strace")
        return self.serve(image, *keys, fmt=fmt, prefix=[
            "strace", "-D", "-f", "-ttt", "-y", "-o", self.log, "-e", f"trace={','.join(calls)}"])

    def calls(self, pattern, since=0.0, until=float("inf")):
        """The traced calls between two times that match a regular expression."""
        found = []
        with open(self.log, errors="replace") as log:
            for line in log:
                match = re.match(r"\d+ +(\d+\.\d+) (.*)", line)
                if match and since <= float(match[1]) <= until and re.search(pattern, match[2]) \
                        and "resumed" not in match[2]:
                    found.append(match[2])
        return found

    def storm(self, server, fmt, seconds, jobs=8):
        """fio: 4 KiB random writes, each with a flush, on `jobs` connections."""
        done = run("fio", "--name=storm", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bs=4k",
                   f"--size={SIZE // jobs}", f"--offset_increment={SIZE // jobs}", f"--numjobs={jobs}", "--thread",
                   "--fsync=1", "--group_reporting", "--time_based", f"--runtime={seconds}",
                   "--output-format=json", cwd=self.dir)
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        self.assertEqual(job["error"], 0)
        return job["write"]["total_ios"], job["sync"]["total_ios"]


class Holes(Traced):
    def test_data_is_looked_for_once(self):
        """SEEK_HOLE is called a few times only: on tmpfs each call scans all of the data"""
        for fmt in ("raw", "qcow2", "qed"):
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                fill(image, fmt, [(0, b"x" * SIZE)])
                server = self.traced(image, *(["format=raw"] if fmt == "raw" else []), fmt=fmt, calls=("lseek",))
                handle, found = server.connect(), []
                for off in range(0, SIZE, MIB):
                    handle.block_status(MIB, off, lambda _, _off, entries, _err: found.append(entries) or 0)
                server.stop()
                self.assertEqual({(entries[0], entries[1]) for entries in found}, {(MIB, 0)})
                self.assertLess(len(self.calls("SEEK_HOLE")), 10)


class Volatile(Traced):
    def test_no_sync_before_the_end(self):
        """V-02, V-03: many flushes cause no sync call, and no write or open with a sync flag."""
        for fmt in ("qed", "qcow2"):
            for cache in ("volatile", "unsafe"):
                with self.part(fmt=fmt, cache=cache):
                    image = create(self.path("disk"), fmt, SIZE, "lazy_refcounts=on" if fmt == "qcow2" else "")
                    server = self.traced(image, f"cache={cache}", fmt=fmt,
                                         calls=(*SYNCS, "pwritev2", "io_uring_enter", "io_submit", "openat"))
                    writes, flushes = self.storm(server, fmt, SECONDS if cache == "volatile" else 1)
                    end = time.time()
                    server.stop()
                    self.assertGreater(writes, 100)
                    self.assertGreater(flushes, 100)
                    self.assertEqual(self.calls(rf"^({'|'.join(SYNCS)})\(", until=end), [])
                    self.assertEqual(self.calls(r"^pwritev2.*RWF_D?SYNC", until=end), [])
                    self.assertEqual(self.calls(r"^openat.*disk.*(O_D?SYNC|O_DIRECT)"), [])
                    self.assertEqual(self.calls(r"^io_"), [])
                    # V-06: at the clean end the data is synced before the mark is cleared.
                    self.assertTrue(self.calls(r"^f(data)?sync\(", since=end))
                    check(image, fmt)


class Shared(Traced):
    def test_concurrent_flushes_share_commits(self):
        """Eight connections that flush after each write: fewer syncs than flushes."""
        for fmt in ("qed", "qcow2"):
            for what in ("in place", "allocating"):
                with self.part(fmt=fmt, what=what):
                    image = create(self.path("disk"), fmt, SIZE)
                    if what == "in place":
                        fill(image, fmt, [(0, b"x" * SIZE)])
                    server = self.traced(image, fmt=fmt, calls=(*SYNCS, "pwritev2"))
                    began = time.time()
                    _, flushes = self.storm(server, fmt, 2)
                    syncs = len(self.calls(rf"^({'|'.join(SYNCS)})\(", began, time.time()))
                    server.stop()
                    check(image, fmt)
                    print(f"{fmt} {what}: {flushes} flushes, {syncs} syncs")
                    self.assertGreater(syncs, 0)
                    self.assertLess(syncs, flushes)

    def test_flush_with_nothing_new_costs_nothing(self):
        """A flush right after a flush causes no sync."""
        for fmt in ("qed", "qcow2"):
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                server = self.traced(image, fmt=fmt, calls=SYNCS)
                handle = server.connect()
                handle.pwrite(b"x" * 5000, 0)
                handle.flush()
                quiet = time.time()
                for _ in range(50):
                    handle.flush()
                self.assertEqual(self.calls(rf"^({'|'.join(SYNCS)})\(", quiet, time.time()), [])
                server.stop()

    def test_every_flush_after_a_write_syncs(self):
        """One connection: a sync between each write and the reply to its flush."""
        for fmt in ("qed", "qcow2", "raw"):
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                server = self.traced(image, f"format={fmt}", fmt=fmt, calls=SYNCS)
                handle = server.connect()
                for turn in range(10):
                    handle.pwrite(b"x" * 5000, turn * MIB)
                    before = time.time()
                    handle.flush()
                    self.assertTrue(self.calls(r"^f(data)?sync\(", before, time.time()), f"flush {turn}")
                server.stop()


class Lazy(Traced):
    @staticmethod
    def place_of(call):
        """The offset of a traced write: the last argument, or the one before the flags."""
        flags = ", [A-Z_0-9]+" if call.startswith("pwritev2") else ""
        return int(re.search(rf", (\d+){flags}(\)| <unfinished)", call)[1])

    def refcount_writes(self, cache, lazy):
        """Makes 50 allocating writes of 4 KiB and a flush; returns the number of the server's write calls, and how many
        of them write refcounts."""
        image = create(self.path("disk"), "qcow2", SIZE, f"lazy_refcounts={lazy}")
        block = header(image, header(image, 48, 8, "big"), 8, "big")
        server = self.traced(image, f"cache={cache}", fmt="qcow2", calls=("pwrite64", "pwritev", "pwritev2"))
        handle = server.connect()
        began = time.time()
        for turn in range(50):
            handle.pwrite(b"x" * 4096, turn * 64 * KIB)
        handle.flush()
        calls = self.calls("^pwrite.*disk", began, time.time())
        server.stop()
        check(image, "qcow2")
        places = [self.place_of(call) for call in calls]
        return len(places), sum(block <= place < block + 64 * KIB for place in places)

    def test_refcounts_are_not_written(self):
        """L-07: with lazy refcounts no cache mode writes refcounts; without they are written, but not for each
        allocation."""
        for cache in ("writeback", "writethrough", "directsync", "none"):
            with self.part(cache=cache):
                eager, lazy = (self.refcount_writes(cache, lazy) for lazy in ("off", "on"))
                self.assertEqual(lazy[1], 0)
                self.assertIn(eager[1], range(1, 50))
                if cache in ("writethrough", "directsync"):
                    self.assertGreaterEqual(lazy[0], 100)  # data and L2 entries


class Direct(Traced):
    def test_o_direct(self):
        """cache=none and directsync open the image with O_DIRECT, the others don't."""
        for cache in ("none", "directsync", "writeback", "writethrough"):
            with self.part(cache=cache):
                image = create(self.path("disk"), "qcow2", SIZE)
                server = self.traced(image, f"cache={cache}", fmt="qcow2", calls=("openat", "fcntl"))
                server.connect().pwrite(b"x" * 5120, 512)
                server.stop()
                direct = self.calls(r"(openat.*disk.*|F_SETFL.*)O_DIRECT")
                self.assertEqual(bool(direct), cache in ("none", "directsync"))

    def test_writethrough_syncs_before_the_reply(self):
        """A write without FUA is answered only when it is durable."""
        for fmt in ("qed", "qcow2"):
            for cache in ("writethrough", "directsync"):
                with self.part(fmt=fmt, cache=cache):
                    image = create(self.path("disk"), fmt, SIZE)
                    server = self.traced(image, f"cache={cache}", fmt=fmt, calls=(*SYNCS, "pwritev2", "openat"))
                    handle = server.connect()
                    handle.pwrite(b"x" * 4096, 0)
                    for turn in range(5):
                        before = time.time()
                        handle.pwrite(b"y" * 4096, turn * 4096)
                        durable = self.calls(r"^f(data)?sync\(|RWF_D?SYNC", before, time.time())
                        self.assertTrue(durable or self.calls(r"openat.*disk.*O_D?SYNC"), f"write {turn}")
                    server.stop()

    def test_fua_in_place_is_one_durable_write(self):
        """FUA on an allocated cluster: there is a write with RWF_DSYNC, or a sync, before the reply."""
        for fmt in ("qed", "qcow2"):
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                fill(image, fmt, [(0, b"x" * MIB)])
                server = self.traced(image, fmt=fmt, calls=(*SYNCS, "pwritev2"))
                handle = server.connect()
                handle.flush()
                before = time.time()
                handle.pwrite(b"y" * 4096, 8192, nbd.CMD_FLAG_FUA)
                self.assertTrue(self.calls(r"^f(data)?sync\(|RWF_D?SYNC", before, time.time()))
                server.stop()


if __name__ == "__main__":
    unittest.main()
