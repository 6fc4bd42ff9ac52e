# SPDX-License-Identifier: BSD-3-Clause
"""The systemd units: checked by systemd's own tools, and a server that runs under their restrictions."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import unittest

import nbd
from harness import (BUILD, KIB, MIB, PLUGIN, QIMG, ROOT, SANITIZER_ENV, STANDIN, Case, check, create, create_encrypted,
                     kill_quietly, plugin_env, run)
from nbdkit_by_name import nbdkit_by_name
from qmp import Qmp

UNIT = ROOT / "packaging" / "systemd" / "qimg@.service.in"
SERVE = ROOT / "packaging" / "systemd" / "serve-instance"
ANALYZE = shutil.which("systemd-analyze")


@unittest.skipIf(STANDIN, "needs the plugin")
@unittest.skipUnless(ANALYZE, "no systemd-analyze")
class Units(Case):
    def setUp(self):
        super().setUp()
        run("cmake", "--install", BUILD, "--prefix", self.path("usr"))
        self.units = pathlib.Path(self.path("usr/lib/systemd/system"))

    def test_systemd_understands_them(self):
        # systemd-analyze also complains about a user that doesn't exist, so the units get one that does.
        service = self.units / "qimg@.service"
        for unit in (service, self.units / "qimg@.socket"):
            unit.write_text(unit.read_text().replace("User=qimg", "User=root").replace("Group=qimg", "Group=root"))
        done = run(ANALYZE, "verify", "--man=no", f"{self.units}/qimg@disk.qcow2.service",
                   f"{self.units}/qimg@disk.qcow2.socket", check=False,
                   env={**os.environ, "SYSTEMD_UNIT_PATH": f"{self.units}:"})
        ours = [line for line in (done.stdout + done.stderr).splitlines() if "qimg" in line]
        self.assertEqual((done.returncode, ours), (0, []), done.stderr)

    def test_exposure(self):
        """systemd's exposure level of the service is at most 2.0 (10 is the worst)"""
        done = run(ANALYZE, "security", "--offline=true", "--threshold=20", self.units / "qimg@.service", check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


@unittest.skipIf(STANDIN, "needs the plugin")
@unittest.skipUnless(ANALYZE, "no systemd-analyze")
@unittest.skipIf(SANITIZER_ENV, "a sanitizer makes system calls of its own")
class Service(Case):
    """The command that the unit starts, with its system call filter, a passed socket, and a notification
    socket."""

    def setUp(self):
        super().setUp()
        for folder in ("etc", "images", "run"):
            os.mkdir(self.path(folder))
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.manager.close)
        self.manager.bind(self.path("run/notify"))
        self.manager.settimeout(0.1)
        self.path_of_nbdkit = nbdkit_by_name(self.path("bin"))

    def configure(self, name, *lines):
        pathlib.Path(self.path(f"etc/{name}.conf")).write_text("".join(line + "\n" for line in lines))

    def start(self, name):
        env = plugin_env(CONFIGURATION_DIRECTORY=self.path("etc"), STATE_DIRECTORY=self.path("images"),
                         NOTIFY_SOCKET=self.path("run/notify"), PATH=f"{self.path_of_nbdkit}:{os.environ['PATH']}")
        self.log = open(self.path("log"), "w+", encoding="utf-8")
        self.addCleanup(self.log.close)
        process = subprocess.Popen([sys.executable, ROOT / "tests/e2e/confined.py", UNIT, self.path(f"run/{name}.sock"),
                                    SERVE, name], env=env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.addCleanup(kill_quietly, process)
        return process

    def told(self, process):
        """The next notification for the service manager, or "nothing: ..." if the process ends without one."""
        limit = time.monotonic() + 60
        while True:
            ended = process.poll() is not None
            try:
                return self.manager.recv(100).decode()
            except TimeoutError:
                if ended or time.monotonic() > limit:
                    return f"nothing: {process.returncode}: {self.logged()}"

    def logged(self):
        self.log.seek(0)
        return self.log.read()

    def connect(self, name, export=""):
        handle = nbd.NBD()
        handle.set_export_name(export)
        handle.connect_unix(self.path(f"run/{name}.sock"))
        return handle

    def stop(self, process):
        process.terminate()
        self.assertEqual(self.told(process), "STOPPING=1")
        self.assertEqual(process.wait(60), 0, self.logged())

    def use(self, handle):
        payload = os.urandom(MIB)
        handle.pwrite(payload, 0)
        handle.pwrite(payload[:100], 3 * MIB + 17, nbd.CMD_FLAG_FUA)
        handle.zero(64 * KIB, 0)
        handle.trim(64 * KIB, 128 * KIB)
        handle.cache(MIB, 0)
        handle.flush()
        self.assertEqual(handle.pread(MIB, 0)[256 * KIB:], payload[256 * KIB:])

    def test_image_of_that_name(self):
        """The notifications: ready when the server is, and stopping, with a client still connected."""
        create(self.path("images/disk.qcow2"), "qcow2", 64 * MIB)
        process = self.start("disk.qcow2")
        self.assertEqual(self.told(process), "READY=1")
        self.use(self.connect("disk.qcow2"))
        self.stop(process)
        check(self.path("images/disk.qcow2"), "qcow2")

    def test_folder_of_that_name(self):
        os.mkdir(self.path("images/vms"))
        create(self.path("images/vms/a.qcow2"), "qcow2", 64 * MIB)
        process = self.start("vms")
        self.assertEqual(self.told(process), "READY=1")
        self.use(self.connect("vms", "a.qcow2"))
        self.stop(process)
        check(self.path("images/vms/a.qcow2"), "qcow2")

    def test_the_filter_is_one(self):
        done = run(sys.executable, ROOT / "tests/e2e/confined.py", UNIT, self.path("run/sock"), "nice", "true",
                   check=False)
        self.assertEqual(done.returncode, -signal.SIGSYS)

    def test_refused(self):
        process = self.start("none.qcow2")
        self.assertRegex(self.told(process), "^nothing: 1: .*none.qcow2: cannot be opened: No such file or directory")

    def test_configured(self):
        """A configuration file with the plugin's parameters and nbdkit's options: an encrypted image, and a mirror to
        an NBD export."""
        create_encrypted(self.path("images/secret.qcow2"), 64 * MIB, "encrypt.format=luks,encrypt.key-secret=s")
        pathlib.Path(self.path("etc/key")).write_text("sesame")
        create(self.path("target.raw"), "raw", 64 * MIB)
        target = self.serve(self.path("target.raw"), "format=raw")
        self.configure("vm", "# a comment", "", "file=secret.qcow2", f"passphrase=+{self.path('etc/key')}", "writable=now",
                       f"control={self.path('run/vm.qmp')}", "need-check-delay=0.1", "--threads=4")
        process = self.start("vm")
        self.assertEqual(self.told(process), "READY=1")
        handle = self.connect("vm")
        self.use(handle)
        with Qmp(self.path("run/vm.qmp")) as client:  # connected before the job starts, whose event may come at once
            done = run(QIMG, "job", f"--control={self.path('run/vm.qmp')}", "mirror", target.uri, "--job-id=m")
            client.event("BLOCK_JOB_READY")
            client.cmd("block-job-complete", device="m")
            client.event("BLOCK_JOB_COMPLETED")
        self.assertEqual(done.returncode, 0)
        self.use(handle)
        self.stop(process)

    def test_read_only(self):
        create(self.path("images/disk.qed"), "qed", 64 * MIB)
        self.configure("vm", "-r", "file=disk.qed")
        process = self.start("vm")
        self.assertEqual(self.told(process), "READY=1")
        self.assertTrue(self.connect("vm").is_read_only())
        self.stop(process)

    def test_example(self):
        """All lines of the example configuration, also those commented out, are known parameters and options."""
        known = run("nbdkit", PLUGIN, "--help", env=plugin_env()).stdout
        text = (ROOT / "packaging/systemd/example.conf").read_text(encoding="utf-8")
        lines = [line.lstrip("#") for line in text.splitlines() if line and not line.startswith("# ")]
        self.assertGreater(len(lines), 5)
        for line in lines:
            self.assertIn(line.split("=")[0], known)


if __name__ == "__main__":
    unittest.main()
