# SPDX-License-Identifier: BSD-3-Clause
"""A Ceph cluster of one monitor and one OSD on the loopback address, with all its files below one
folder; by default without authentication.  Its daemons are children of the test and end with its
process group."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import uuid

from harness import GIB, free_port, run, wait_until

TOOLS = ("ceph-mon", "ceph-osd", "ceph", "rbd", "monmaptool", "ceph-authtool")
START = 60  # seconds until the cluster has reached an awaited state
ANSWER = 40  # seconds until a command has ended
SERVES = 20  # seconds until an OSD that was started answers a client; twice and three times that in later tries
TRIES = 3  # of a command that hangs, and of an OSD that doesn't come up

CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv4 = true
ms bind ipv6 = false
auth cluster required = {auth}
auth service required = {auth}
auth client required = {auth}
auth allow insecure global id reclaim = false
run dir = {folder}/run
log file = {folder}/log/$name.log
mon cluster log file = {folder}/log/cluster.log
crash dir = {folder}/log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 2
mon data avail crit = 1
# it is to start at once, to stay small, and to forget a client that died soon
mon osd min in ratio = 0
paxos propose interval = 0.05
paxos min wait = 0.01
osd client watch timeout = 5
osd memory target = 939524096
bluestore cache autotune = false
bluestore cache size = 67108864
mgr initial modules =

[client]
log to stderr = false
admin socket =

[client.admin]
keyring = {folder}/admin.keyring

[mon.a]
mon data = {folder}/mon

[osd.0]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = {size}
bluestore block create = true
"""


def missing():
    """The tools that aren't installed."""
    return [tool for tool in TOOLS if not shutil.which(tool)]


class Cluster:
    def __init__(self, folder, size=3 * GIB, start=subprocess.Popen, auth="none"):
        """auth: "none" or "cephx".  start: starts a daemon; takes subprocess.Popen's arguments."""
        self.folder, self.start_process = pathlib.Path(folder), start
        self.keys = auth == "cephx"
        self.conf = self.folder / "ceph.conf"
        self.env = {**os.environ, "CEPH_CONF": str(self.conf)}
        for name in ("mon", "osd", "run", "log"):
            (self.folder / name).mkdir()
        fsid, port = str(uuid.uuid4()), free_port()
        self.port = port
        self.conf.write_text(CONF.format(fsid=fsid, port=port, folder=self.folder, size=size, auth=auth))
        self.processes = {}
        self.full = self.dead = False
        monmap = self.folder / "monmap"
        self.run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a",
                 f"[v2:127.0.0.1:{port}]", monmap)
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, *self.make_first_keys())
        self.start("mon", "a")
        self.run("ceph", "--connect-timeout", START, "mon", "stat")
        osd = str(uuid.uuid4())
        self.run("ceph", "osd", "new", osd, "0", *self.make_osd_key())
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.start("osd", "0")
        self.run("ceph", "osd", "pool", "create", "rbd", "8", "8")
        self.await_osd()
        self.run("rbd", "pool", "init", "rbd")

    def run(self, *argv, timeout=ANSWER, check=True, **kwargs):
        """Runs one of Ceph's commands and returns its output.  On a busy machine they hang now and then, before or
        after their work.  So a command that doesn't end in time is run again; then its failure is ignored, because the
        first run may have done the work already."""
        for left in reversed(range(TRIES)):
            try:
                return run(*argv, env=self.env, timeout=timeout, check=check, **kwargs).stdout
            except subprocess.TimeoutExpired as late:
                print(f"{late}; {left} tries left", file=sys.stderr, flush=True)
                check = False
                if left == 0:
                    raise

    # ---- keys ----

    def make_first_keys(self):
        """Makes the keys of the monitor and the administrator; returns ceph-mon's options for them."""
        if not self.keys:
            return []
        every, admin = self.folder / "mon.keyring", self.folder / "admin.keyring"
        allow = [word for daemon in ("mon", "osd", "mgr") for word in ("--cap", daemon, "allow *")]
        self.run("ceph-authtool", "--create-keyring", every, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self.run("ceph-authtool", "--create-keyring", admin, "--gen-key", "-n", "client.admin", *allow)
        self.run("ceph-authtool", every, "--import-keyring", admin)
        return ["--keyring", every]

    def make_osd_key(self):
        if not self.keys:
            return []
        key, told = self.run("ceph-authtool", "--gen-print-key").strip(), self.folder / "osd.json"
        told.write_text(json.dumps({"cephx_secret": key}))
        self.run("ceph-authtool", "--create-keyring", self.folder / "osd" / "keyring", "-n", "osd.0", "--add-key", key)
        return ["-i", told]

    def user(self, name, *caps):
        """Makes a user with these capabilities; returns the path of its keyring."""
        ring = self.folder / f"{name}.keyring"
        self.run("ceph", "auth", "get-or-create", f"client.{name}", *caps, "-o", ring)
        return ring

    def key(self, name):
        return self.run("ceph", "auth", "get-key", f"client.{name}").strip()

    # ---- daemons ----

    def start(self, kind, name):
        with open(self.folder / "log" / f"{kind}.out", "ab") as out:
            self.processes[kind] = self.start_process(
                [f"ceph-{kind}", "-i", name, "-f"], env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def await_osd(self):
        wait_until(lambda: "1 up" in self.run("ceph", "osd", "stat"), START, "an OSD that is up")

    # ---- failures ----

    def signal_osd(self, number):
        self.processes["osd"].send_signal(number)
        if number == signal.SIGKILL:
            self.processes["osd"].wait()

    def restart_osd(self):
        """Starts the OSD and waits until it serves.  One that was killed doesn't always come up at once: then it is
        killed and started again."""
        for number in range(TRIES):
            self.start("osd", "0")
            self.await_osd()
            if self.serves(SERVES * (number + 1)):
                return
            print(f"the OSD doesn't come up: {self.state()}", file=sys.stderr, flush=True)
            self.processes["osd"].kill()
            self.processes["osd"].wait()
        raise AssertionError("no OSD that serves, see above")

    def serves(self, timeout):
        """Does the OSD answer a client?"""
        try:
            return run("rbd", "ls", env=self.env, timeout=timeout, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def state(self):
        """The state of the daemons and the cluster, for the message of a failure."""
        lives = {kind: process.poll() for kind, process in self.processes.items()}
        status = run("ceph", "--connect-timeout", "5", "-s", env=self.env, check=False, timeout=30)
        tail = (self.folder / "log" / "osd.0.log").read_text(errors="replace")[-2000:]
        return f"{lives}\n{status.stdout}{status.stderr}{tail}"

    def be_full(self, full):
        """Makes the OSD's disk count as full, or no longer, and waits until the pools do."""
        self.full = True  # stays set if the change back fails, so that revive() repeats it
        ratios = ("0.0001", "0.0002", "0.0003") if full else ("0.85", "0.9", "0.95")
        for kind, ratio in zip(("nearfull", "backfillfull", "full"), ratios if full else ratios):
            self.run("ceph", "osd", f"set-{kind}-ratio", ratio)

        def is_full():
            pools = [line for line in self.run("ceph", "osd", "dump").splitlines() if line.startswith("pool ")]
            return any(word.split(",")[0] == "full" or ",full" in word for line in pools for word in line.split())
        wait_until(lambda: is_full() == full, START, f"pools that are{'' if full else ' not'} full")
        self.full = full

    def revive(self):
        """Makes the cluster serve again, whatever the last test has left.  With a full cluster or without an OSD, each
        request of the following tests would wait for minutes."""
        if self.dead:
            raise AssertionError("the cluster is dead: an earlier test says why")
        self.dead = True
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
        if self.processes["osd"].poll() is not None:
            self.restart_osd()
        if self.full:
            self.be_full(False)
        self.dead = False

    def stop(self):
        for kind in ("osd", "mon"):
            process = self.processes.get(kind)
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    # ---- images ----

    def create(self, name, size, *options, pool="rbd"):
        self.run("rbd", "create", f"{pool}/{name}", "--size", f"{size}B", *options)
        return f"rbd:{pool}/{name}:conf={self.conf}"

    def export(self, name, pool="rbd"):
        """The image's content as the rbd command reads it."""
        target = self.folder / "export"
        target.unlink(missing_ok=True)
        self.run("rbd", "export", "--no-progress", f"{pool}/{name}", target)
        return target.read_bytes()

    def is_there(self, name, pool="rbd"):
        return name in self.run("rbd", "ls", pool).split()

    def purge(self, *names, pool="rbd"):
        """Removes these images, or all.  Tries again while an image is refused: Ceph takes some seconds to notice that
        a client of it has died."""
        deadline = time.monotonic() + START
        for name in names or self.run("rbd", "ls", pool).split():
            self.run("rbd", "snap", "purge", f"{pool}/{name}", check=False)
            while self.is_there(name, pool):
                if time.monotonic() > deadline:
                    raise AssertionError(f"{name} can't be removed: {self.run('rbd', 'status', f'{pool}/{name}')}")
                self.run("rbd", "rm", "--no-progress", f"{pool}/{name}", check=False)
