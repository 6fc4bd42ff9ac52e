# SPDX-License-Identifier: BSD-3-Clause
"""The servers and tools that are compared, and one running server."""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import time
from typing import Callable, Optional

from images import PASSPHRASE, SECRET
from processes import Failed, Unavailable, describe_end, wait_for_end

START_TIMEOUT = 30
STOP_TIMEOUT = 60
CONNECTIONS = 16  # the most that the peers accept


@dataclasses.dataclass(frozen=True)
class Place:
    """The files of one running server."""
    socket: str
    pidfile: str
    log: str
    control: str


@dataclasses.dataclass(frozen=True)
class Server:
    """One of the servers or tools that are compared, with the commands for what it can do."""
    name: str
    role: str                            # ours, peer or file
    serve: Optional[Callable] = None     # (image, place, control) -> command
    tool: Optional[str] = None           # the program of offline commands
    mirror: Optional[Callable] = None    # (qmp, URI of the target) -> id of the job
    overlay: Optional[Callable] = None   # (qmp, path, number of earlier ones): puts a new image on top

    def can(self, what):
        """Whether it serves, mirrors or is a tool."""
        return getattr(self, what) is not None


class Running:
    """A server that runs on an image."""

    def __init__(self, nursery, place, command):
        self.place = place
        self.uri = f"nbd+unix:///?socket={place.socket}"
        with open(place.log, "wb") as log:
            self.process = nursery.start(command, stdout=log, stderr=subprocess.STDOUT)

    def pid(self):
        """The server's process id: from its pid file, because the started process may be a tracer."""
        try:
            with open(self.place.pidfile, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            return self.process.pid

    def wait_until_it_listens(self):
        """Waits for the pid file, which each server writes when it listens."""
        deadline = time.monotonic() + START_TIMEOUT
        while not (os.path.exists(self.place.pidfile) and os.path.getsize(self.place.pidfile)):
            if self.process.poll() is not None:
                raise self.death()
            if time.monotonic() > deadline:
                raise Failed("hung", "did not start")
            time.sleep(0.002)

    def death(self):
        """The exception for a server that has ended."""
        with open(self.place.log, encoding="utf-8", errors="replace") as log:
            words = log.read().strip().splitlines()
        return Failed("died", ": ".join([describe_end(self.process)] + words[-1:]))

    def died(self):
        """Has it ended, or does it within two seconds?"""
        return wait_for_end(self.process, 2)

    def peak_memory(self):
        """The peak of its resident memory in bytes; 0 if unknown."""
        try:
            with open(f"/proc/{self.pid()}/status", encoding="ascii", errors="replace") as status:
                peak = [line.split()[1] for line in status if line.startswith("VmHWM:")]
        except OSError:
            peak = []
        return int(peak[0]) << 10 if peak else 0

    def stop(self):
        """Ends it by SIGTERM, as a user would; raises Failed if it doesn't end well."""
        if self.process.poll() is None:
            os.kill(self.pid(), signal.SIGTERM)
            if not wait_for_end(self.process, STOP_TIMEOUT):
                raise Failed("hung", "did not stop")
        if self.process.returncode != 0:
            raise self.death()

    def kill(self):
        """Kills it, if it still runs, and removes its files."""
        if self.process.poll() is None:
            for pid in {self.pid(), self.process.pid}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.wait()
        for path in dataclasses.astuple(self.place):
            if os.path.exists(path):
                os.unlink(path)


_numbers = itertools.count()


def start(nursery, server, image, control=False, wrapper=()):
    """Starts a server on an image."""
    stem = nursery.path(f"server{next(_numbers)}")
    place = Place(*(f"{stem}.{end}" for end in ("sock", "pid", "log", "qmp")))
    return Running(nursery, place, [*wrapper, *server.serve(image, place, control)])


def nbdkit(place, *words):
    """The command line of nbdkit with a plugin."""
    return ["nbdkit", "--foreground", "--unix", place.socket, "--pidfile", place.pidfile, *words]


def _ours(build):
    plugin, qimg = os.path.join(build, "nbdkit-qimg-plugin.so"), os.path.join(build, "qimg")

    def serve(image, place, control):
        more = [f"control={place.control}"] if control else []
        more += [f"passphrase={PASSPHRASE}"] if image.secret else []
        more += ["format=raw"] if image.format == "raw" else []
        more += ["cache=none"] if image.direct else []
        more += [f"snapshot={image.snapshot}"] if image.snapshot else []
        more += ["compress=on"] if image.compress else []
        return nbdkit(place, plugin, f"file={image.path}", *more)

    def mirror(qmp, target):
        qmp.command("drive-mirror", {"job-id": "mirror", "device": "drive0", "target": target,
                                     "format": "raw", "mode": "existing", "sync": "full"})
        return "mirror"

    def overlay(qmp, path, _number):
        qmp.command("blockdev-snapshot-sync", {"device": "drive0", "snapshot-file": path})

    return Server("ours", "ours", serve, qimg, mirror, overlay)


def _file_serve(image, place, _control):
    return nbdkit(place, "file", image.path)


def _qemu_nbd(aio):
    def serve(image, place, _control):
        if image.path.startswith("rbd:") and aio != "threads":
            raise Unavailable(f"{aio} is for files")
        if aio == "native" and not image.direct:
            raise Unavailable("native is for cache=none")
        what = ["-f", image.format, image.path]
        if image.secret:
            what = [*SECRET, "--image-opts", f"driver={image.format},encrypt.key-secret=s,"
                    f"file.driver=file,file.filename={image.path}"]
        elif image.compress:
            what = ["--image-opts", f"driver=compress,file.driver={image.format},"
                    f"file.file.driver=file,file.file.filename={image.path}"]
        elif image.snapshot:
            what = ["-l", image.snapshot, *what]
        return ["qemu-nbd", "-t", "-e", str(CONNECTIONS), "-k", place.socket,
                "--pid-file", place.pidfile, f"--cache={'none' if image.direct else 'writeback'}",
                f"--aio={aio}",
                "--discard=unmap", *what]

    return Server(f"qemu-nbd {aio}", "peer", serve)


def _qsd_serve(image, place, control):
    if image.path.startswith("rbd:"):
        raise Unavailable("qemu-nbd stands for QEMU's driver rbd")
    if image.snapshot or image.compress:
        raise Unavailable("qemu-nbd stands for snapshots and compression")
    more = [] if not control else [
        "--chardev", f"socket,id=c,path={place.control},server=on,wait=off", "--monitor", "c"]
    keys = SECRET if image.secret else []
    key = ",encrypt.format=luks,encrypt.key-secret=s" if image.secret else ""
    direct = ",cache.direct=on" if image.direct else ""
    return ["qemu-storage-daemon", "--pidfile", place.pidfile, *keys,
            "--blockdev", f"file,node-name=file,filename={image.path},discard=unmap{direct}",
            "--blockdev", f"{image.format},node-name=drive0,file=file,discard=unmap{key}",
            "--nbd-server",
            f"addr.type=unix,addr.path={place.socket},max-connections={CONNECTIONS}",
            "--export", "nbd,id=export,node-name=drive0,name=,writable=on", *more]


def _qsd_mirror(qmp, target):
    where = {"driver": "rbd", "pool": "rbd", "image": target.rpartition("/")[2]} \
        if target.startswith("rbd:") else \
        {"driver": "nbd", "server": {"type": "unix", "path": target.partition("socket=")[2]}}
    qmp.command("blockdev-add", {"node-name": "target", **where})
    qmp.command("blockdev-mirror", {"job-id": "mirror", "device": "drive0", "target": "target",
                                    "sync": "full"})
    return "mirror"


def _qsd_overlay(qmp, path, number):
    qmp.command("blockdev-snapshot-sync", {"node-name": f"top{number - 1}" if number > 0 else "drive0",
                                           "snapshot-node-name": f"top{number}", "snapshot-file": path})


def _starts(nursery, store, server):
    """Does the server start here?  Its build may lack a feature."""
    running = start(nursery, server, store.empty("qcow2", 1 << 20))
    try:
        running.wait_until_it_listens()
        running.stop()
    except Failed:
        return False
    finally:
        running.kill()
    return True


def competitors(nursery, store, build):
    """(the servers and tools that can run here, ours first; notes on what is missing)"""
    for tool in ("qemu-nbd", "qemu-img", "qemu-storage-daemon", "nbdkit", "fio", "nbdcopy"):
        if not shutil.which(tool):
            raise Unavailable(f"{tool} is not installed")
    uring = _qemu_nbd("io_uring")
    peers = [_qemu_nbd("threads"), uring, _qemu_nbd("native"),
             Server("qemu-storage-daemon", "peer", _qsd_serve, mirror=_qsd_mirror, overlay=_qsd_overlay),
             Server("qemu-img", "peer", tool="qemu-img")]
    missing = []
    if not _starts(nursery, store, uring):
        peers.remove(uring)
        missing.append("qemu-nbd has no io_uring here")
    return [_ours(build), *peers, Server("file", "file", _file_serve)], missing
