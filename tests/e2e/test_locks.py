# SPDX-License-Identifier: BSD-3-Clause
"""lock=on: image locks compatible with QEMU's, so that QEMU's tools and ours exclude each other like
QEMU's tools among themselves.

The judge is QEMU: the outcome between two of its processes, one that has an image open and one that
wants to open it, must be the same when one of them, or both, are ours.
"""

import fcntl
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import time
import unittest

from harness import *

SIZE = 4 * MIB
FORMATS = ("qcow2", "qed", "raw")
F_OFD_GETLK, F_OFD_SETLK = 36, 37  # Linux's values; older versions of Python have no names for them
DAEMON = shutil.which("qemu-storage-daemon")


class Holders(Case):
    """Starts servers that hold an image open: ours and QEMU's.  end() ends them."""

    def setUp(self):
        super().setUp()
        self.processes = []
        self.addCleanup(self.end)

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []
        self._end_servers()

    def spawn(self, *argv):
        """Starts a server of QEMU and waits for its pid file, which it writes when it has opened the image."""
        pidfile = self.path("pid")
        if os.path.exists(pidfile):
            os.unlink(pidfile)
        process = subprocess.Popen([*argv, f"--pid{'' if 'daemon' in argv[0] else '-'}file={pidfile}"],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        self.processes.append(process)
        limit = time.monotonic() + 30
        while not (os.path.exists(pidfile) and os.path.getsize(pidfile)):
            if process.poll() is not None:
                self.processes.remove(process)
                raise StartFailed(process.returncode, process.stderr.read().decode())
            self.assertLess(time.monotonic(), limit, f"{argv[0]} doesn't listen")
            time.sleep(0.005)
        return process

    def nbd(self, image, fmt, *options):
        sock = self.path(f"nbd{len(self.processes)}")
        return self.spawn("qemu-nbd", "-t", "-k", sock, "-f", fmt, *options, image)

    def daemon(self, image, fmt, writable):
        sock = self.path("daemon")
        on = "on" if writable else "off"
        return self.spawn(
            "qemu-storage-daemon", "--blockdev",
            f"driver={fmt},node-name=disk,read-only={'off' if writable else 'on'},"
            f"file.driver=file,file.filename={image}",
            "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", f"type=nbd,id=e,node-name=disk,name=e,writable={on}")

    def overlay(self, image, fmt):
        return create(self.path("overlay"), "qcow2", SIZE, "", image, fmt)

    # One of each kind, ours and QEMU's.

    def our_writer(self, image, fmt):
        self.serve(image, "writable=now", f"format={fmt}", fmt=fmt)

    def our_reader(self, image, fmt):
        self.serve(image, f"format={fmt}", fmt=fmt, nbdkit=["-r"]).connect().pread(512, 0)

    def our_overlay(self, image, fmt):
        self.serve(self.overlay(image, fmt), "writable=now", fmt="qcow2")

    def qemu_writer(self, image, fmt):
        self.nbd(image, fmt)

    def qemu_reader(self, image, fmt):
        self.nbd(image, fmt, "-r")

    def qemu_overlay(self, image, fmt):
        self.nbd(self.overlay(image, fmt), "qcow2")


@unittest.skipIf(STANDIN, "needs the plugin")
class Matrix(Holders):
    """Every kind of process that holds an image, and every kind that wants it."""

    TIMEOUT = 300

    @staticmethod
    def outcome(done):
        if done.returncode in (0, 3):
            return "has it"
        return "refused" if re.search("lock", done.stderr + done.stdout) else f"failed: {done.stderr}"

    def server_outcome(self, start):
        """The outcome of the start of a server."""
        try:
            start()
            return "has it"
        except (StartFailed, nbd.Error) as error:
            text = f"{error} {getattr(error, 'errors', '')} {' '.join(s.errors for s in self.servers[-1:])}"
            return "refused" if "lock" in text else f"failed: {text}"

    COMMANDS = {
        "info": ("info", "-f", "FMT", "IMAGE"),
        "map": ("map", "-f", "FMT", "IMAGE"),
        "check": ("check", "-f", "FMT", "IMAGE"),
        "info -U": ("info", "-U", "-f", "FMT", "IMAGE"),
        "map -U": ("map", "-U", "-f", "FMT", "IMAGE"),
        "check -U": ("check", "-U", "-f", "FMT", "IMAGE"),
        "create an overlay": ("create", "-q", "-f", "qcow2", "-b", "IMAGE", "-F", "FMT", "OTHER"),
        "check -r": ("check", "-r", "all", "-f", "FMT", "IMAGE"),
        "create": ("create", "-q", "-f", "FMT", "IMAGE", str(SIZE)),
    }

    def commands(self, tool, image, fmt):
        words = {"FMT": fmt, "IMAGE": image, "OTHER": self.path("other")}
        for name, argv in self.COMMANDS.items():
            if fmt == "raw" and argv[0] == "check":
                continue
            done = run(tool, *(words.get(word, word) for word in argv), check=False)
            yield name, self.outcome(done)

    def our_outcomes(self, image, fmt):
        held = len(self.servers)
        for name, start in (("a reader", self.our_reader), ("a writer", self.our_writer)):
            yield name, self.server_outcome(lambda start=start: start(image, fmt))
            for server in self.servers[held:]:
                server.kill()
            del self.servers[held:]
        yield from self.commands(QIMG, image, fmt)

    def qemu_outcomes(self, image, fmt):
        held = len(self.processes)
        yield "a reader", self.server_outcome(lambda: self.qemu_reader(image, fmt))
        while len(self.processes) > held:
            process = self.processes.pop()
            process.kill()
            process.wait()
        done = run("qemu-io", "-f", fmt, "-c", "write -q 0 512", image, check=False)
        yield "a writer", self.outcome(done)
        yield from self.commands("qemu-img", image, fmt)

    def outcomes(self, holder, seekers, fmt):
        image = create(self.path("disk"), fmt, SIZE)
        getattr(self, holder)(image, fmt)
        found = dict(seekers(image, fmt))
        self.end()
        return found

    def test_as_qemu(self):
        for fmt in ("qcow2", "qed"):
            for kind in ("writer", "reader", "overlay"):
                qemu, ours = f"qemu_{kind}", f"our_{kind}"
                expected = self.outcomes(qemu, self.qemu_outcomes, fmt)
                for holder, seekers, who in ((ours, self.qemu_outcomes, "ours, and QEMU's tools"),
                                             (qemu, self.our_outcomes, "QEMU's, and our tools"),
                                             (ours, self.our_outcomes, "ours, and our tools")):
                    with self.part(fmt=fmt, holder=f"a {kind} of {who}"):
                        self.assertEqual(self.outcomes(holder, seekers, fmt), expected)

    def test_raw(self):
        """QEMU's tools let others write to a raw image that they use.  Ours lock it like any other image: there is
        only one writer, and no backing file changes."""
        for kind in ("writer", "reader", "overlay"):
            with self.part(kind=kind, holder="ours, and our tools"):
                strict = self.outcomes(f"our_{kind}", self.our_outcomes, "qcow2")
                found = self.outcomes(f"our_{kind}", self.our_outcomes, "raw")
                self.assertEqual(found, {name: strict[name] for name in found})
            with self.part(kind=kind, holder="ours, and QEMU's tools"):
                found = self.outcomes(f"our_{kind}", self.qemu_outcomes, "raw")
                self.assertEqual((found["a reader"], found["a writer"], found["create"]),
                                 ("refused" if kind == "writer" else "has it", "refused", "refused"), found)
        with self.part(holder="QEMU's, and our tools"):
            found = self.outcomes("qemu_writer", self.our_outcomes, "raw")
            for name, outcome in found.items():
                free = "-U" in name or name == "create an overlay"
                self.assertEqual(outcome, "has it" if free else "refused", name)


@unittest.skipIf(STANDIN, "needs the plugin")
class Life(Holders):
    """When a lock is taken, and when it ends."""

    def writes(self, image, fmt="qcow2"):
        done = run("qemu-io", "-f", fmt, "-c", "write -q 0 512", image, check=False)
        if done.returncode:
            self.assertIn("lock", done.stdout + done.stderr)
        return done.returncode == 0

    def reads(self, image, fmt="qcow2"):
        done = run("qemu-io", "-r", "-f", fmt, "-c", "read -q 0 512", image, check=False)
        if done.returncode:
            self.assertIn("lock", done.stdout + done.stderr)
        return done.returncode == 0

    def image(self, fmt="qcow2", options=""):
        return create(self.path("disk"), fmt, SIZE, options)

    def test_ends_with_the_server(self):
        for fmt in FORMATS:
            for how in ("stop", "kill"):
                with self.part(fmt=fmt, how=how):
                    image = self.image(fmt)
                    server = self.serve(image, "writable=now", f"format={fmt}")
                    server.connect().pwrite(b"x" * 512, 0)
                    self.assertFalse(self.writes(image, fmt))
                    getattr(server, how)()
                    self.assertTrue(self.writes(image, fmt))

    def test_outlives_the_fork(self):
        for key in ("writable=now", "writable=on-connect"):
            with self.part(key=key):
                image, pidfile = self.image(), self.path("pid")
                run("nbdkit", "-U", self.path("sock"), "-P", pidfile, PLUGIN, f"file={image}", key,
                    env=plugin_env())
                wait_until(lambda: os.path.exists(pidfile) and os.path.getsize(pidfile), 30, "pid file")
                pid = int(pathlib.Path(pidfile).read_text(encoding="ascii"))
                try:
                    self.assertFalse(self.writes(image))
                    self.assertEqual(self.reads(image), key == "writable=on-connect")
                finally:
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda: self.writes(image), 30, "the end of the lock")

    def test_the_first_writer_takes_it(self):
        """until the first writer connects others may read; the lock stays when that client leaves"""
        image = self.image()
        server = self.serve(image)
        self.assertTrue(self.reads(image))
        self.assertFalse(self.writes(image))
        handle = server.connect()
        self.assertFalse(self.reads(image))
        handle.shutdown()
        server.handles.clear()
        self.assertFalse(self.reads(image))
        server.stop()
        self.assertTrue(self.writes(image))

    @staticmethod
    def held(image):
        """The lock bytes that the server holds, as another process sees them.  100 + n: it uses permission n;
        200 + n: nobody else may use it (0 read, 1 write, 3 resize)."""
        with open(image, "rb+") as file:
            def is_held(byte):
                asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
                return struct.unpack("hhqqi4x", fcntl.fcntl(file, F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK
            return {byte for base in (100, 200) for byte in range(base, base + 5) if is_held(byte)}

    def test_the_bytes_of_each_level(self):
        """a reader excludes writing and resizing; a server that can't get the writer's lock keeps the reader's"""
        reader, writer = {100, 201, 203}, {100, 101, 103, 201, 203}
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = self.image(fmt)
                server = self.serve(image, f"format={fmt}", nbdkit=["-r"])
                self.assertEqual(self.held(image), reader)
                server.stop()
                server = self.serve(image, f"format={fmt}")
                self.assertEqual(self.held(image), reader)
                with open(image, "rb") as other:  # another reader, which excludes writers
                    denies = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0)
                    fcntl.fcntl(other, F_OFD_SETLK, denies)
                    with self.assertRaises(nbd.Error):
                        server.connect()
                self.assertEqual(self.held(image), reader)
                server.connect()
                self.assertEqual(self.held(image), writer)
                server.stop()
                self.assertEqual(self.held(image), set())

    def test_a_reader_comes_before_the_first_writer(self):
        """while another program reads, the first writable connection is refused; later it succeeds"""
        image = self.image()
        server = self.serve(image)
        self.qemu_reader(image, "qcow2")
        with self.assertRaises(nbd.Error):
            server.connect()
        self.assertRegex(server.errors, "lock")
        process = self.processes.pop()
        process.kill()
        process.wait()
        server.connect().pwrite(b"x" * 512, 0)
        server.stop()

    def test_a_writer_was_there_before(self):
        """while another program writes, nbdkit doesn't start, not even read-only"""
        for start in (self.qemu_writer, *([self.daemon_writer] if DAEMON else [])):
            for keys, options in ((["writable=now"], ()), ([], ()), ([], ["-r"])):
                with self.part(holder=start.__name__, keys=keys, options=options):
                    image = self.image()
                    start(image, "qcow2")
                    self.refused(image, *keys, nbdkit=options, words=["lock"])
                    self.end()

    def daemon_writer(self, image, fmt):
        self.daemon(image, fmt, True)

    @unittest.skipUnless(DAEMON, "needs qemu-storage-daemon")
    def test_storage_daemon(self):
        """qemu-storage-daemon as the process that wants the image"""
        image = self.image()
        server = self.serve(image, "writable=now")
        for writable in (True, False):
            with self.assertRaises(StartFailed) as caught:
                self.daemon(image, "qcow2", writable)
            self.assertIn("lock", caught.exception.errors)
        server.stop()
        server = self.serve(image, nbdkit=["-r"])
        with self.assertRaises(StartFailed):
            self.daemon(image, "qcow2", True)
        self.daemon(image, "qcow2", False)
        self.assertEqual(server.connect().pread(4, 0), bytes(4))

    def test_lock_off(self):
        """with lock=off the server neither takes locks nor checks for them"""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = self.image(fmt)
                server = self.serve(image, "lock=off", "writable=now", f"format={fmt}")
                self.assertTrue(self.writes(image, fmt))
                server.stop()
                self.qemu_writer(image, fmt)
                server = self.serve(image, "lock=off", "writable=now", f"format={fmt}")
                server.connect().pread(512, 0)
                server.kill()
                self.serve(image, "lock=off", f"format={fmt}", nbdkit=["-r"]).connect().pread(512, 0)
                self.end()

    def test_the_whole_chain(self):
        """Others can read all layers below the image, but not write to them; with lock=off they can do both."""
        base = self.image()
        middle = create(self.path("middle"), "qcow2", SIZE, "", base, "qcow2")
        top = create(self.path("top"), "qcow2", SIZE, "", middle, "qcow2")
        for keys, free in ((["writable=now"], False), (["writable=now", "lock=off"], True)):
            server = self.serve(top, *keys)
            for layer in (middle, base):
                self.assertTrue(self.reads(layer))
                self.assertEqual(self.writes(layer), free)
            server.stop()
        # An image with a backing file that another program writes to is refused.
        self.qemu_writer(base, "qcow2")
        self.refused(top, words=["base|disk", "lock"], name=False)


if __name__ == "__main__":
    unittest.main()
