# SPDX-License-Identifier: BSD-3-Clause
"""What the server says of the requests it has served: query-blockstats."""

import random
import threading

import nbd

from harness import KIB, MIB, QIMG, SECTOR, Case, create, run
from qmp import Qmp

SIZE = 8 * MIB


class Counting(Case):
    def start(self, *keys, backing=None):
        image = create(self.path("disk"), "qcow2", SIZE, backing=backing, backing_fmt=backing and "qcow2")
        server = self.serve(image, f"control={self.path('control')}", *keys)
        self.client = Qmp(self.path("control"))
        self.addCleanup(self.client.close)
        return server

    def stats(self):
        return self.client.cmd("query-blockstats")[0]["stats"]

    def counts(self, *names):
        stats = self.stats()
        return [stats[name] for name in names]


class Stats(Counting):
    def test_as_the_client_counted(self):
        """E-09"""
        server = self.start()
        self.assertEqual(self.counts("rd_operations", "wr_operations", "flush_operations", "unmap_operations"), [0, 0, 0, 0])
        handles = [server.connect() for _ in range(4)]
        counted = {"rd": [0, 0], "wr": [0, 0], "unmap": [0, 0], "flush": [0, 0]}
        lock, top = threading.Lock(), [0]

        def work(handle, rng):
            for _ in range(300):
                kind = rng.choice(("rd", "wr", "wr", "zero", "unmap", "flush"))
                length = rng.randint(1, 40) * SECTOR
                off = rng.randrange((SIZE - length) // SECTOR) * SECTOR
                {"rd": lambda: handle.pread(length, off), "wr": lambda: handle.pwrite(bytes([7]) * length, off),
                 "zero": lambda: handle.zero(length, off), "unmap": lambda: handle.trim(length, off),
                 "flush": handle.flush}[kind]()
                with lock:
                    count = counted["wr" if kind == "zero" else kind]
                    count[0] += 1
                    count[1] += length
                    if kind == "wr":
                        top[0] = max(top[0], off + length)

        threads = [threading.Thread(target=work, args=(handle, random.Random(self.rng.random())))
                   for handle in handles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = self.stats()
        for kind, (operations, moved) in counted.items():
            self.assertEqual(stats[f"{kind}_operations"], operations, kind)
            self.assertEqual(stats[f"failed_{kind}_operations"], 0)
            if kind != "flush":
                self.assertEqual(stats[f"{kind}_bytes"], moved, kind)
            self.assertGreater(stats[f"{kind}_total_time_ns"], 0)
        self.assertLessEqual(stats["wr_highest_offset"], top[0])
        self.assertGreater(stats["wr_highest_offset"], SIZE // 2)
        for kind in "rd", "wr", "flush":
            histogram = stats[f"{kind}_latency_histogram"]
            self.assertEqual(len(histogram["bins"]), len(histogram["boundaries"]) + 1)
            self.assertEqual(histogram["boundaries"], sorted(histogram["boundaries"]))
            self.assertAlmostEqual(sum(histogram["bins"]), counted[kind][0], delta=32 * 16)
        work_ = self.client.cmd("query-blockstats")[0]["x-qimg"]
        self.assertEqual(work_["in-flight"], 0)
        self.assertGreater(work_["commits"], 0)
        self.assertLessEqual(work_["commits"] + work_["shared-commits"], counted["flush"][0] + 8)
        self.assertGreater(work_["allocated"], MIB)
        server.stop()

    def test_failures(self):
        """E-09"""
        server = self.start()
        handle = server.connect(strict=False)
        for request in (lambda: handle.pread(SECTOR, SIZE), lambda: handle.pwrite(b"x" * SECTOR, SIZE)):
            with self.assertRaises(nbd.Error):
                request()
        # nbdkit itself refuses what lies behind the end
        self.assertEqual(self.counts("rd_operations", "failed_rd_operations", "wr_operations"), [0, 0, 0])
        server.stop()

    def test_layers(self):
        """E-09: those below have no users of their own"""
        base = create(self.path("base"), "qcow2", SIZE)
        server = self.start(backing=base)
        server.connect().pread(64 * KIB, 0)
        top = self.client.cmd("query-blockstats")[0]
        self.assertEqual((top["device"], top["node-name"]), ("drive0", "drive0"))
        self.assertEqual(top["backing"]["node-name"], "drive0#1")
        self.assertEqual(top["backing"]["stats"]["rd_operations"], 0)
        self.assertNotIn("backing", top["backing"])
        server.stop()

    def test_qemus_members(self):
        """E-09: BlockDeviceStats has them all"""
        server = self.start()
        stats = self.stats()
        for name in ("rd_bytes", "wr_bytes", "zone_append_bytes", "unmap_bytes", "rd_operations", "wr_operations",
                     "zone_append_operations", "flush_operations", "unmap_operations", "rd_total_time_ns", "wr_total_time_ns",
                     "zone_append_total_time_ns", "flush_total_time_ns", "unmap_total_time_ns", "wr_highest_offset",
                     "rd_merged", "wr_merged", "zone_append_merged", "unmap_merged", "failed_rd_operations",
                     "failed_wr_operations", "failed_zone_append_operations", "failed_flush_operations",
                     "failed_unmap_operations", "invalid_rd_operations", "invalid_wr_operations",
                     "invalid_zone_append_operations", "invalid_flush_operations", "invalid_unmap_operations",
                     "account_invalid", "account_failed", "timed_stats"):
            self.assertIn(name, stats)
        server.stop()


class Commands(Counting):
    def test_table(self):
        """E-10"""
        server = self.start()
        handle = server.connect()
        for _ in range(3):
            handle.pread(64 * KIB, 0)
        handle.pwrite(bytes(MIB), 0)
        handle.flush()
        lines = run(QIMG, "stats", f"--control={self.path('control')}").stdout.splitlines()
        self.assertEqual(lines[0].split(), ["DISK", "READS", "BYTES", "WRITES", "BYTES", "TRIMS", "FLUSHES", "ACTIVE", "FAILED"])
        self.assertEqual(lines[1].split(), ["drive0", "3", "192", "KiB", "1", "1", "MiB", "0", "1", "0", "0"])
        self.assertEqual(len(lines), 2)
        self.assertEqual(run(QIMG, "stats", f"--control={self.path('control')}", "--once").stdout.splitlines(), lines)
        server.stop()

    def test_metrics(self):
        """E-10"""
        image = create(self.path("disk"), "qcow2", SIZE)
        name = 'a "b"\\c'
        server = self.serve(None, f"export={name}:{image}", f"control={self.path('control')}")
        handle = server.connect(name)
        handle.pwrite(bytes(MIB), 0)
        text = run(QIMG, "metrics", f"--control={self.path('control')}").stdout
        self.assertTrue(text.endswith("\n# EOF\n"))
        label = 'export="a \\"b\\"\\\\c"'
        self.assertIn(f'qimg_operations_total{{{label},op="write"}} 1\n', text)
        self.assertIn(f'qimg_bytes_total{{{label},op="write"}} {MIB}\n', text)
        self.assertIn(f'qimg_operation_seconds_bucket{{{label},op="write",le="+Inf"}} 1\n', text)
        families = set()
        for line in text.splitlines()[:-1]:
            if line.startswith("# TYPE "):
                family = line.split()[2]
                self.assertNotIn(family, families)  # each is in one piece
                families.add(family)
            else:
                self.assertTrue(line.removeprefix("# HELP ").startswith(family), line)
        buckets = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if line.startswith("qimg_operation_seconds_bucket") and 'op="write"' in line]
        self.assertEqual(buckets, sorted(buckets))
        server.stop()

    def test_without_a_server(self):
        """E-10"""
        for command in "stats", "metrics":
            for argv in ((f"--control={self.path('none')}",), (), ("--control=x", "more")):
                done = run(QIMG, command, *argv, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertTrue(done.stderr.startswith("qimg: "), done.stderr)
