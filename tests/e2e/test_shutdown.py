# SPDX-License-Identifier: BSD-3-Clause
"""The server's end while clients are connected, idle or busy, in every state of the server: it ends by
itself, requests in flight are answered, and everything that was acknowledged is in the image."""

import errno
import os
import pathlib
import signal
import socket
import struct
import threading
import time
import unittest

import harness
from harness import KIB, MIB, Case, Model, check, content, create, fill, nbd, run, wait_until
from peer import Peer
from qmp import Closed, Qmp

SIZE = 16 * MIB
FORMATS = {"qcow2": "", "qed": "", "lazy": "lazy_refcounts=on"}
PSK = "alice:0123456789abcdef0123456789abcdef"


class Writer(threading.Thread):
    """Writes until the server ends; the model gets every acknowledged write."""

    def __init__(self, handle, model, first, length, seed):
        super().__init__(daemon=True)
        self.handle, self.model, self.first, self.length = handle, model, first, length
        self.rng = harness.random.Random(seed)
        self.unanswered = None
        self.errors = []
        self.started = threading.Event()
        self.start()

    def run(self):
        while True:
            payload = self.rng.randbytes(self.rng.randrange(1, 30000))
            off = self.first + self.rng.randrange(self.length - len(payload))
            try:
                self.handle.pwrite(payload, off)
            except nbd.Error as error:
                self.unanswered = off, payload
                self.errors.append(error)
                return
            self.model.data[off:off + len(payload)] = payload
            self.started.set()


@unittest.skipIf(harness.STANDIN, "needs nbdkit")
class WithClients(Case):
    def ended_well(self, server, image, fmt, model, writers=()):
        """The server must end by itself, with status 0, and the image must have every acknowledged write."""
        server.wait()
        self.assertNotIn("must be checked", server.errors)
        check(image, fmt)
        got = bytearray(content(image, fmt))
        for writer in writers:
            writer.join()
            self.assertIn(writer.errors[0].errnum, (errno.ESHUTDOWN, errno.ENOTCONN, errno.EPIPE, errno.EIO, 0,
                                                   errno.ECONNRESET), writer.errors[0])
            off, payload = writer.unanswered  # the unanswered write may have been done or not
            got[off:off + len(payload)] = model.data[off:off + len(payload)]
        model.expect(got, "qemu-img convert")

    def image(self, fmt):
        return create(self.path("disk"), fmt if fmt == "qed" else "qcow2", SIZE, FORMATS[fmt])

    def write_some(self, handle, model):
        for _ in range(20):
            model.write(handle, self.rng.randrange(SIZE - 50000), self.rng.randbytes(self.rng.randrange(1, 50000)))

    def test_idle(self):
        """Q-14: idle clients, any number of them, and each of the signals."""
        for fmt in FORMATS:
            for sig, clients in ((signal.SIGTERM, 1), (signal.SIGINT, 5), (signal.SIGQUIT, 40)):
                with self.part(fmt=fmt, sig=sig.name, clients=clients):
                    image, model = self.image(fmt), Model(bytes(SIZE))
                    server = self.serve(image)
                    handles = [server.connect() for _ in range(clients)]
                    self.write_some(handles[0], model)
                    server.process.send_signal(sig)
                    self.ended_well(server, image, "qed" if fmt == "qed" else "qcow2", model)

    def test_cache_modes(self):
        for mode in ("writethrough", "none", "directsync", "volatile"):
            for fmt in ("qcow2", "qed"):
                with self.part(mode=mode, fmt=fmt):
                    image, model = self.image(fmt), Model(bytes(SIZE))
                    server = self.serve(image, f"cache={mode}")
                    self.write_some(server.connect(strict=False), model)
                    server.connect()
                    server.process.send_signal(signal.SIGTERM)
                    self.ended_well(server, image, fmt, model)

    def test_in_flight(self):
        """Clients that write without a pause, each to its own part of the disk."""
        for fmt in FORMATS:
            for clients in (1, 4):
                with self.part(fmt=fmt, clients=clients):
                    image, model = self.image(fmt), Model(bytes(SIZE))
                    server = self.serve(image)
                    part = SIZE // clients
                    writers = [Writer(server.connect(), model, n * part, part, self.rng.random())
                               for n in range(clients)]
                    for writer in writers:
                        writer.started.wait(20)
                    server.process.send_signal(signal.SIGTERM)
                    self.ended_well(server, image, "qed" if fmt == "qed" else "qcow2", model, writers)

    def test_requests_under_way_are_answered(self):
        """Slow requests, too: reads of a slow backing file."""
        peer = Peer(self, "--filter=delay", "pattern", str(SIZE), "rdelay=300ms")
        image = create(self.path("disk"), "qcow2", None, backing=peer.uri, backing_fmt="raw")
        server = self.serve(image)
        handle = server.connect()
        buffers = [nbd.Buffer(4096) for _ in range(8)]
        cookies = [handle.aio_pread(buffer, n * MIB) for n, buffer in enumerate(buffers)]
        handle.poll(100)
        server.process.send_signal(signal.SIGTERM)
        while cookies:
            cookies = [cookie for cookie in cookies if not handle.aio_command_completed(cookie)]
            if cookies:
                handle.poll(-1)
        for n, buffer in enumerate(buffers):
            expected = b"".join(struct.pack(">Q", n * MIB + i) for i in range(0, 4096, 8))
            self.assertEqual(bytes(buffer.to_bytearray()), expected)
        server.wait()

    def test_backing_file_that_does_not_answer(self):
        """A request that would hang for ever is failed, and the server ends."""
        peer = Peer(self, "pattern", str(SIZE))
        image = create(self.path("disk"), "qcow2", None, backing=peer.uri, backing_fmt="raw")
        server = self.serve(image)
        handle, other = server.connect(), server.connect()
        other.pwrite(b"kept" * 16 * KIB, 0)
        peer.freeze()
        handle.aio_pread(nbd.Buffer(4096), 8 * MIB)
        handle.poll(100)
        server.process.send_signal(signal.SIGTERM)
        server.wait()
        peer.thaw()
        check(image, "qcow2")
        self.assertEqual(content(image, "qcow2")[:64 * KIB], b"kept" * 16 * KIB)

    def test_client_that_takes_no_replies(self):
        """A client that has requested more than the socket's buffer holds, and doesn't read the replies."""
        for fmt in ("qcow2", "qed"):
            with self.part(fmt=fmt):
                image, model = self.image(fmt), Model(bytes(SIZE))
                server = self.serve(image)
                handle, other = server.connect(), server.connect()
                self.write_some(other, model)
                for _ in range(200):
                    handle.aio_pread(nbd.Buffer(MIB), 0)
                server.process.send_signal(signal.SIGTERM)
                self.ended_well(server, image, fmt, model)

    def test_read_only(self):
        image = self.image("qcow2")
        before = harness.sha256(image)
        server = self.serve(image, nbdkit=["-r"])
        server.connect(), server.connect()
        server.process.send_signal(signal.SIGTERM)
        server.wait()
        self.assertEqual(harness.sha256(image), before)

    def test_half_open_connections(self):
        """Clients that didn't finish the handshake, or sent half a request."""
        image, model = self.image("qcow2"), Model(bytes(SIZE))
        server = self.serve(image)
        self.write_some(server.connect(), model)
        mute = socket.socket(socket.AF_UNIX)
        mute.connect(server.socket)
        half = socket.socket(socket.AF_UNIX)
        half.connect(server.socket)
        half.recv(18)
        half.sendall(struct.pack(">I", 1) + b"IHAVEOPT\0\0")
        server.process.send_signal(signal.SIGTERM)
        self.ended_well(server, image, "qcow2", model)

    def test_tcp(self):
        """Connections over TCP."""
        image, model = self.image("qcow2"), Model(bytes(SIZE))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for address in ([], ["-i", "127.0.0.1"]):
            with self.subTest(address=address):
                pidfile = self.path("pid" + str(len(address)))
                process = harness.subprocess.Popen(
                    ["nbdkit", "-f", "-p", str(port), *address, "-P", pidfile, harness.PLUGIN, image],
                    env=harness.plugin_env())
                self.addCleanup(process.kill)
                wait_until(lambda: os.path.exists(pidfile) and os.path.getsize(pidfile), 20, "the server")
                handles = [nbd.NBD() for _ in range(3)]
                for handle in handles:
                    handle.connect_tcp("127.0.0.1", str(port))
                self.write_some(handles[0], model)
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(harness.STOP_TIMEOUT), 0)
                for handle in handles:
                    del handle
                check(image, "qcow2")
                model.expect(content(image, "qcow2"), "qemu-img convert")

    def test_tls(self):
        """An encrypted connection, idle and with requests in flight."""
        image, model = self.image("qcow2"), Model(bytes(SIZE))
        keys = self.path("keys.psk")
        pathlib.Path(keys).write_text(PSK + "\n")
        if not nbd.NBD().supports_tls():
            self.skipTest("this libnbd knows no TLS")
        server = self.serve(image, nbdkit=["--tls=require", f"--tls-psk={keys}"])
        handles = []
        for _ in range(3):
            handle = nbd.NBD()
            handle.set_tls(nbd.TLS_REQUIRE)
            handle.set_tls_psk_file(keys)
            handle.set_tls_username("alice")
            handle.connect_unix(server.socket)
            handles.append(handle)
        self.write_some(handles[0], model)
        writer = Writer(handles[1], model, 0, SIZE, self.rng.random())
        writer.started.wait(20)
        server.process.send_signal(signal.SIGTERM)
        self.ended_well(server, image, "qcow2", model, [writer])

    def test_socket_activation(self):
        """A server that got its listening socket, as from systemd."""
        image, model = self.image("qcow2"), Model(bytes(SIZE))
        pidfile = self.path("pid")
        handle = nbd.NBD()
        saved = dict(os.environ)
        os.environ.update(harness.SANITIZER_ENV)
        try:
            handle.connect_systemd_socket_activation(
                ["nbdkit", "-f", "-P", pidfile, str(harness.PLUGIN), image])
        finally:
            for name in harness.SANITIZER_ENV:
                os.environ.pop(name, None)
            os.environ.update(saved)
        self.write_some(handle, model)
        pid = int(pathlib.Path(pidfile).read_text())
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}") or
                   b") Z " in pathlib.Path(f"/proc/{pid}/stat").read_bytes(), harness.STOP_TIMEOUT, "the end")
        check(image, "qcow2")
        model.expect(content(image, "qcow2"), "qemu-img convert")

    @unittest.skipUnless(os.path.isdir("/run/systemd/system"), "systemd doesn't run here")
    def test_systemd(self):
        """systemctl stop while a client is connected."""
        image, model = self.image("qcow2"), Model(bytes(SIZE))
        unit, sock = f"qimg-test-{os.getpid()}", self.path("sock")
        run("systemd-run", f"--unit={unit}", "nbdkit", "-f", "-U", sock, harness.PLUGIN, image)
        harness.await_listener(sock)
        handle = nbd.NBD()
        handle.connect_unix(sock)
        self.write_some(handle, model)
        run("systemctl", "stop", unit)
        check(image, "qcow2")
        model.expect(content(image, "qcow2"), "qemu-img convert")


@unittest.skipIf(harness.STANDIN, "needs nbdkit")
class WithControl(Case):
    def start(self, image, *keys):
        control = self.path("qmp")
        server = self.serve(image, f"control={control}", *keys)
        client = Qmp(control)
        self.addCleanup(client.close)
        return server, client

    def test_quit(self):
        """Q-14: `quit` is answered, closes NBD connections, and the image is clean."""
        for fmt in ("qcow2", "qed"):
            with self.part(fmt=fmt):
                image, model = create(self.path("disk"), fmt, SIZE), Model(bytes(SIZE))
                server, client = self.start(image)
                handle = server.connect()
                model.write(handle, 5000, self.rng.randbytes(200000))
                self.assertEqual(client.cmd("quit"), {})
                client.event("SHUTDOWN")
                with self.assertRaises(Closed):
                    while True:
                        client.receive()
                server.wait()
                check(image, fmt)
                model.expect(content(image, fmt), "qemu-img convert")

    def test_in_a_mirror(self):
        """The end while a mirror copies, when it is ready, and when its target hangs."""
        for state in ("copying", "ready", "target stopped"):
            for mode in ("background", "write-blocking"):
                with self.part(state=state, mode=mode):
                    image, model = create(self.path("disk"), "qcow2", SIZE), Model(bytes(SIZE))
                    peer = Peer(self, "memory", str(SIZE))
                    server, client = self.start(image)
                    handle, other = server.connect(), server.connect()
                    model.write(handle, 0, self.rng.randbytes(4 * MIB))
                    client.cmd("drive-mirror", device="drive0", job_id="job", target=peer.uri, sync="full",
                               format="raw", mode="existing", copy_mode=mode,
                               speed=1 * MIB if state == "copying" else 0)
                    if state != "copying":
                        client.event("BLOCK_JOB_READY")
                    if state == "target stopped":
                        peer.freeze()
                        other.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4096)), 8 * MIB)
                        other.poll(100)
                    server.process.send_signal(signal.SIGTERM)
                    server.wait()
                    peer.thaw()
                    check(image, "qcow2")
                    model.expect(content(image, "qcow2"), "qemu-img convert")
                    peer.kill()

    def ends_soon(self, server):
        """The server must end long before the timeout of a server that doesn't answer."""
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.wait()
        self.assertLess(time.monotonic() - began, 8)

    def over_a_server(self):
        """Serves a chain of three images over an NBD export, whose server a test can freeze."""
        peer = Peer(self, "pattern", str(SIZE))
        base = create(self.path("base"), "qcow2", None, backing=peer.uri, backing_fmt="raw")
        middle = create(self.path("middle"), "qcow2", None, backing=base, backing_fmt="qcow2")
        fill(middle, "qcow2", [(MIB, b"middle" * 1000)])
        image = create(self.path("disk"), "qcow2", None, backing=middle, backing_fmt="qcow2")
        server, client = self.start(image)
        handle = server.connect()
        handle.pwrite(b"kept" * 16 * KIB, 0)
        return peer, base, middle, image, server, client

    def hanging_read(self, server):
        handle = server.connect()
        handle.aio_pread(nbd.Buffer(4096), 8 * MIB)
        handle.poll(100)

    def test_a_mirror_that_reads_from_a_server_that_does_not_answer(self):
        peer, _, _, image, server, client = self.over_a_server()
        peer.freeze()
        client.cmd("drive-mirror", device="drive0", target=self.path("copy"), format="qcow2", sync="full")
        self.ends_soon(server)
        peer.thaw()
        check(image, "qcow2")
        self.assertEqual(content(image, "qcow2")[:64 * KIB], b"kept" * 16 * KIB)

    def test_a_read_of_an_image_that_was_replaced(self):
        """A read hangs in an image that a mirror has replaced, so nothing that is served depends on it any more."""
        peer, _, _, _, server, client = self.over_a_server()
        copy = self.path("copy")
        client.cmd("drive-mirror", device="drive0", job_id="job", target=copy, format="qcow2", sync="full")
        client.event("BLOCK_JOB_READY")
        peer.freeze()
        self.hanging_read(server)
        client.cmd("block-job-complete", device="job")
        wait_until(lambda: client.cmd("query-block")[0]["inserted"]["file"] == copy, 20, "the switch")
        server.connect().pwrite(b"more" * KIB, 2 * MIB)
        self.ends_soon(server)
        peer.thaw()
        check(copy, "qcow2")
        got = content(copy, "qcow2")
        self.assertEqual((got[:64 * KIB], got[2 * MIB:2 * MIB + 4 * KIB]), (b"kept" * 16 * KIB, b"more" * KIB))

    def test_a_commit_that_puts_images_together(self):
        """The end of an intermediate commit, which opens the base again and waits for reads in flight."""
        for reads in (False, True):
            with self.part(reads=reads):
                peer, base, middle, image, server, client = self.over_a_server()
                client.cmd("block-commit", device="drive0", job_id="job", top=str(middle), base=str(base),
                           auto_finalize=False)
                client.event("BLOCK_JOB_PENDING")
                peer.freeze()
                if reads:
                    self.hanging_read(server)
                client.cmd("block-job-finalize", id="job")
                time.sleep(0.3)
                self.ends_soon(server)
                peer.thaw()
                check(base, "qcow2")
                check(image, "qcow2")
                got = content(image, "qcow2")
                self.assertEqual((got[:64 * KIB], got[MIB:MIB + 6000]), (b"kept" * 16 * KIB, b"middle" * 1000))

    def test_in_a_commit(self):
        """The end during a commit: overlay and base together have everything that was acknowledged."""
        for state in ("copying", "ready"):
            for fmt in ("qcow2", "qed"):
                with self.part(state=state, fmt=fmt):
                    base = create(self.path("base"), fmt, SIZE)
                    model = Model(bytes(SIZE))
                    payload = self.rng.randbytes(MIB)
                    fill(base, fmt, [(3 * MIB, payload)])
                    model.data[3 * MIB:4 * MIB] = payload
                    image = create(self.path("disk"), fmt, None, backing=base, backing_fmt=fmt)
                    server, client = self.start(image)
                    handle = server.connect()
                    model.write(handle, 0, self.rng.randbytes(4 * MIB - 777))
                    client.cmd("block-commit", device="drive0", job_id="job",
                               speed=1 * MIB if state == "copying" else 0)
                    if state == "ready":
                        client.event("BLOCK_JOB_READY")
                    model.write(handle, 5 * MIB, self.rng.randbytes(MIB))
                    server.process.send_signal(signal.SIGTERM)
                    server.wait()
                    check(base, fmt)
                    check(image, fmt)
                    model.expect(content(image, fmt), "qemu-img convert")


if __name__ == "__main__":
    unittest.main()
