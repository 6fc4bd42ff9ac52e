# SPDX-License-Identifier: BSD-3-Clause
"""Statistics of requests: query-blockstats and qimg metrics."""

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import threading
import urllib.parse

import nbd

from harness import KIB, MIB, QIMG, SECTOR, Case, create, plugin_env, run
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
        # nbdkit itself refuses requests past the end.
        self.assertEqual(self.counts("rd_operations", "failed_rd_operations", "wr_operations"), [0, 0, 0])
        server.stop()

    def test_layers(self):
        """E-09: layers below the active one have no requests of their own"""
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
        """E-09: all members of QEMU's BlockDeviceStats are there"""
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
                self.assertNotIn(family, families)  # the lines of a family are together
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


class Scrapes(Counting):
    """`qimg metrics --listen`: metrics over HTTP"""

    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    def listen(self, address="127.0.0.1:0"):
        """Starts the command; returns the process, and the URL or path that it printed."""
        command = subprocess.Popen([QIMG, "metrics", f"--control={self.path('control')}", f"--listen={address}"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=plugin_env())
        self.addCleanup(command.communicate)
        self.addCleanup(command.kill)
        return command, command.stdout.readline().rstrip("\n")

    def end(self, command, number=signal.SIGTERM):
        command.send_signal(number)
        errors = command.communicate(timeout=60)[1]
        self.assertEqual(command.returncode, 0, errors)
        return errors

    def connect(self, url):
        """A socket that is connected to the host and port of a URL, or to the path of a Unix socket."""
        if url.startswith("/"):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(url)
            return sock
        parts = urllib.parse.urlsplit(url)
        return socket.create_connection((parts.hostname, parts.port), timeout=60)

    def ask(self, url, method="GET", page="/metrics", body=None):
        """Sends an HTTP request; returns (status, headers, text)."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connect(url)
        with contextlib.closing(connection):
            connection.request(method, page, body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def test_scrape(self):
        """E-11: each scrape queries the server again"""
        server = self.start()
        command, url = self.listen()
        self.assertRegex(url, r"^http://127\.0\.0\.1:[1-9][0-9]*/metrics$")
        handle = server.connect()
        for n in range(1, 4):
            handle.pwrite(bytes(SECTOR), 0)
            status, headers, text = self.ask(url)
            self.assertEqual((status, headers["Content-Type"]), (200, self.OPENMETRICS))
            self.assertIn(f'qimg_operations_total{{export="drive0",op="write"}} {n}\n', text)
            self.assertEqual(text, run(QIMG, "metrics", f"--control={self.path('control')}").stdout)
        self.assertEqual(self.ask(url, page="/metrics?a=b")[0], 200)
        self.assertEqual(self.end(command, signal.SIGINT), "")
        server.stop()

    def test_what_else_is_asked_for(self):
        """E-11"""
        server = self.start()
        command, url = self.listen()
        for page in "/", "/metrics/", "/metric", "/%2e%2e/etc/passwd", "//metrics":
            self.assertEqual(self.ask(url, page=page)[0], 404, page)
        for method, body in ("POST", b"x" * MIB), ("PUT", b"x"), ("HEAD", None), ("DELETE", None), ("STRANGE", None):
            with contextlib.suppress(ConnectionError):  # the connection may be closed while the body is sent
                status, headers, _ = self.ask(url, method, body=body)
                self.assertEqual((status, headers["Allow"]), (405, "GET"), method)
        self.assertEqual(self.ask(url)[0], 200)
        self.assertEqual(self.end(command), "")
        server.stop()

    def test_server_goes_and_comes(self):
        """E-11: status 503 while there is no server"""
        command, url = self.listen()
        for _ in range(2):
            status, headers, text = self.ask(url)
            self.assertEqual((status, headers["Content-Type"]), (503, "text/plain; charset=utf-8"))
            self.assertIn("does not answer on its control socket", text)
            server = self.start()
            self.assertEqual(self.ask(url)[0], 200)
            self.client.close()
            server.kill()
        self.assertEqual(self.ask(url)[0], 503)
        self.assertIn(f"qimg: {self.path('control')}: cannot connect: ", self.end(command))

    def test_server_that_hangs(self):
        """E-11: a server that hangs: a scrape ends after a timeout, and the command can be ended at once"""
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(self.path("control"))
            control.listen()
            command, url = self.listen()
            self.assertEqual(self.ask(url)[0], 503)
            with self.connect(url) as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                control.accept()[0].close()  # the first scrape's connection
                connection = control.accept()[0]
                errors = self.end(command)
                connection.close()
            self.assertIn("qimg: the server doesn't answer\n", errors)

    def test_addresses(self):
        """E-11"""
        server = self.start()
        path = self.path("http")
        places = [("localhost:0", "http://"), (":0", "http://"), (path, path)]
        if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
            places.append(("[::1]:0", "http://[::1]:"))
        for address, start in places:
            for _ in range(2):
                command, url = self.listen(address)
                self.assertTrue(url.startswith(start), url)
                self.assertEqual(self.ask(url)[0], 200)
                if address == ":0":
                    self.assertEqual(self.ask(f"http://127.0.0.1:{urllib.parse.urlsplit(url).port}")[0], 200)
                self.end(command)
                self.assertFalse(os.path.exists(path))
        command, _ = self.listen(path)
        command.kill()
        command.wait()
        command, url = self.listen(path)  # the socket that the killed command left is replaced
        self.assertEqual(self.ask(url)[0], 200)
        other, _ = self.listen(path)
        self.assertIn(f"{path}: cannot listen: ", other.communicate(timeout=60)[1])
        self.assertEqual(other.returncode, 1)
        self.assertEqual(self.ask(url)[0], 200)
        self.end(command)
        server.stop()

    def test_bad_addresses(self):
        """E-11"""
        for address in ("", "9100", "x:", ":", "x:y", "x:65536", "x:-1", "x: 1", "::1:80", "[]:80", "[:80", "[::1]", "[::1]80",
                        "[x]:1", "no-such-host.invalid:80", "x" * 300 + ":80", "/" + "x" * 200, "/no/such/folder"):
            done = run(QIMG, "metrics", f"--control={self.path('none')}", f"--listen={address}", check=False, timeout=60)
            self.assertEqual((done.returncode, done.stdout), (1, ""), address)
            self.assertTrue(done.stderr.startswith("qimg: "), done.stderr)
            self.assertIn(address, done.stderr)

    def test_hostile_clients(self):
        """E-11: clients that hold connections, send junk or send very slowly don't keep others out"""
        server = self.start()
        command, url = self.listen()
        held = [self.connect(url) for _ in range(60)]  # more than it accepts
        for junk in (b"\r\n" * 1000, b"\x00\xff" * 50000, b"GET /metrics", b"GET " + b"/" * 100000 + b" HTTP/1.1\r\n\r\n",
                     b"GET /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                     b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                     b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 20000):
            with contextlib.suppress(OSError), held.pop() as sock:
                sock.settimeout(10)
                sock.sendall(junk)
        stop = threading.Event()

        def dribble():
            while not stop.wait(0.2):
                for sock in held:
                    with contextlib.suppress(OSError):
                        sock.send(b"x")

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            while True:  # until a scrape succeeds
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if self.ask(url)[0] == 200:
                        break
            self.assertLess(len(os.listdir(f"/proc/{command.pid}/fd")), 50)
        finally:
            stop.set()
            thread.join()
        for sock in held:
            sock.close()
        self.assertEqual(self.ask(url)[0], 200)
        self.assertEqual(self.end(command), "")
        server.stop()
