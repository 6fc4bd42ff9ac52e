# SPDX-License-Identifier: BSD-3-Clause
"""Child processes and a folder for files, neither of which outlives the bench.

Every child belongs to the process group of a guardian, a shell that waits for the end of its input.
Its input ends when the bench does, in any way.  Then the guardian kills the rest of the group and
removes the folder.
"""

import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

TMPFS_MAGIC = 0x01021994
# The killing is done in a session of its own, so that it doesn't kill itself.
GUARDIAN = '''read -r _
exec setsid sh -c 'kill -KILL -- "-$1"; rm -rf "$2"' guardian "$$" "$1"'''


class Unavailable(Exception):
    """This can't be measured here; the message is the reason."""


class Failed(Exception):
    """A measurement failed.  `outcome` is the word for it in the tables."""

    def __init__(self, outcome, message):
        super().__init__(message)
        self.outcome = outcome


def image_root():
    """The folder below which images go: the first writable one that isn't in memory."""
    wished = os.environ.get("QIMG_TMPDIR")
    for folder in [wished] if wished else ["/var/tmp", "/tmp", "."]:
        kind = subprocess.run(["stat", "-f", "-c", "%t", folder], capture_output=True, text=True)
        on_disk = kind.returncode == 0 and int(kind.stdout, 16) != TMPFS_MAGIC
        if on_disk and os.access(folder, os.W_OK):
            return os.path.abspath(folder)
    raise SystemExit("bench: no folder on a real filesystem; set QIMG_TMPDIR")


def wait_for_end(process, timeout):
    """Waits without polling, which would add to the measured time; True if it has ended."""
    if process.poll() is not None:
        return True
    fd = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll(timeout * 1000)
    finally:
        os.close(fd)
    return process.poll() is not None


def describe_end(process):
    """Describes how a process has ended."""
    code = process.returncode
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class Nursery:
    """The folder, and the child processes, which are started in it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="qimg-bench.", dir=image_root())
        self.guardian = subprocess.Popen(
            ["sh", "-c", GUARDIAN, "guardian", self.folder],
            stdin=subprocess.PIPE, process_group=0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.killpg(self.guardian.pid, signal.SIGKILL)
        self.guardian.stdin.close()
        self.guardian.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name):
        """The path of a file in the folder."""
        return os.path.join(self.folder, name)

    def start(self, command, **how):
        """Starts a child; `how` goes to Popen."""
        how.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([str(word) for word in command], cwd=self.folder,
                                process_group=self.guardian.pid, **how)

    def run(self, command, timeout=600, server=None):
        """Runs a child to its end and returns its output.  If the server that it uses ends before, the child
        is killed two seconds later.  Raises Failed."""
        child = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + timeout
        while True:
            try:
                out, err = child.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if server and server.process.poll() is not None:
                    deadline = min(deadline, time.monotonic() + 2)
                if time.monotonic() > deadline:
                    child.kill()
                    child.communicate()
                    raise Failed("hung", f"{command[0]} did not end") from None
        if child.returncode != 0:
            lines = (err or out).strip().splitlines() or [describe_end(child)]
            raise Failed("failed", f"{command[0]}: {lines[-1]}")
        return out
