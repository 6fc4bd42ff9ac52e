# SPDX-License-Identifier: BSD-3-Clause
"""Another NBD server, as the target of a mirror: nbdkit with any plugin and filters, or qemu-nbd."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile

import nbd
from harness import freeze, wait_until


class Peer:
    """One such server.  Tests may kill, freeze and restart it; its URI stays the same."""

    def __init__(self, case, *argv, program="nbdkit", env=None):
        self.folder = tempfile.mkdtemp(prefix="p", dir=case.dir)
        self.socket = os.path.join(self.folder, "sock")
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.pidfile = os.path.join(self.folder, "pid")
        if program == "nbdkit":
            self.argv = ["nbdkit", "-f", "-U", self.socket, "-P", self.pidfile, *argv]
        else:
            self.argv = ["qemu-nbd", "-t", "-e8", "-k", self.socket, f"--pid-file={self.pidfile}", *argv]
        self.env = env
        self.start()
        case.addCleanup(self.kill)

    def start(self):
        for path in (self.socket, self.pidfile):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.process = subprocess.Popen([str(a) for a in self.argv], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.env)
        wait_until(lambda: os.path.exists(self.pidfile) and os.path.getsize(self.pidfile), 20, "the peer")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def freeze(self):
        freeze(self.process)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def content(self):
        """The whole disk that it serves now."""
        handle = nbd.NBD()
        handle.connect_unix(self.socket)
        size, out = handle.get_size(), bytearray()
        while len(out) < size:
            out += handle.pread(min(size - len(out), 1 << 20), len(out))
        handle.shutdown()
        return out


def changes(log):
    """(offset, length) of every write, zero and trim that nbdkit's log filter noted."""
    with open(log, encoding="ascii") as file:
        return [(int(off, 16), int(count, 16)) for off, count in
                re.findall(r" (?:Write|Zero|Trim) id=\d+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+)", file.read())]
