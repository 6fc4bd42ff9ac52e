# SPDX-License-Identifier: BSD-3-Clause
"""Images on a real Ceph cluster: served, written, copied from and to, and while the cluster fails."""

import errno
import faulthandler
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import nbd

import ceph_cluster
import harness
from examples import Examples, pod_blocks
from harness import KIB, MIB, PLUGIN, QIMG, Model, StartFailed, create, exercise, fill, run, wait_until
from qmp import Qmp, QmpError
from test_control import ControlCase
from writers import Writers

SIZE = 24 * MIB


def reason_to_skip():
    if ceph_cluster.missing():
        return f"Ceph isn't installed (scripts/test --ceph): {', '.join(ceph_cluster.missing())}"
    if "qimg_rbd=yes" not in run("nbdkit", PLUGIN, "--dump-plugin", env=harness.plugin_env()).stdout:
        return "this build is without Ceph RBD"
    return None


WHY_NOT = reason_to_skip()


@unittest.skipIf(WHY_NOT, WHY_NOT)
class RbdCase(ControlCase):
    """Each class has its own cluster, whose images are removed after each test."""

    TIMEOUT = 300  # seconds; then the class ends, with the stacks of all threads in the log
    AUTH = "none"

    @classmethod
    def setUpClass(cls):
        cls.home = tempfile.mkdtemp(prefix="qimg-ceph-", dir=harness.tmp_root())
        cls.addClassCleanup(shutil.rmtree, cls.home, ignore_errors=True)
        faulthandler.dump_traceback_later(cls.TIMEOUT, exit=True)  # until a test sets its own
        try:
            cls.ceph = ceph_cluster.Cluster(cls.home, auth=cls.AUTH)
        finally:
            cls.addClassCleanup(lambda: cls.ceph.stop() if hasattr(cls, "ceph") else None)

    def setUp(self):
        super().setUp()
        os.environ["CEPH_CONF"] = str(self.ceph.conf)
        self.ceph.revive()
        self.addCleanup(self.purge)

    def purge(self):
        self._end_servers()
        self.ceph.revive()
        self.ceph.purge()

    def qimg(self, *argv, **kwargs):
        return run(QIMG, *argv, **kwargs)

    def command_fails(self, words, *argv):
        done = run(QIMG, *argv, check=False)
        self.assertIn(done.returncode, (1, 2), done)
        self.assertRegex(done.stderr, words)

    def begin(self, image, *keys):
        """Starts a server with a control socket, and connects a QMP and an NBD client."""
        self.start(*keys, image=image)
        self.client = self.qmp()
        self.disk = self.server.connect()

    def job_event(self, name):
        event = self.client.event(name, "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", timeout=200)
        self.assertEqual(event["event"], name, event)
        self.assertNotIn("error", event["data"], event)

    def pivot(self):
        self.job_event("BLOCK_JOB_READY")
        self.client.cmd("block-job-complete", device="job")
        self.job_event("BLOCK_JOB_COMPLETED")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="null")

    def serve_again(self, image, *keys):
        """Serves an image after kill -9 of its server: tries again until Ceph has noticed that."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.serve(image, *keys)
            except StartFailed as failed:
                if "another process is using the image" not in failed.errors or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


class Images(RbdCase):
    """Images are served, and used by commands (R-01, R-02, R-03, R-07)."""

    def test_raw(self):
        self.ceph.create("disk", SIZE)
        server = self.serve("rbd:rbd/disk", "format=raw")
        model = Model(bytes(SIZE))
        exercise([server.connect(), server.connect()], model, self.rng, 400)
        server.stop()
        model.expect(self.ceph.export("disk"), "rbd export")

    def check_format(self, fmt):
        name = f"rbd:rbd/disk.{fmt}"
        self.qimg("create", "-f", fmt, name, SIZE)
        server = self.serve(name)
        model = Model(bytes(SIZE))
        exercise([server.connect(), server.connect()], model, self.rng, 300)
        server.stop()
        run("qemu-img", "check", "-f", fmt, name)
        self.qimg("check", name)
        model.expect(harness.content(name, fmt), "qemu-img convert")
        # A second session on the same content, and then a crash, after which all flushed data must be there.
        server = self.serve(name)
        handle = server.connect()
        exercise([handle], model, self.rng, 100)
        handle.flush()
        server.kill()
        server = self.serve_again(name)
        model.compare(server.connect())
        server.stop()
        harness.check(name, fmt, allow_leaks=True)
        model.expect(harness.content(name, fmt), "qemu-img convert")

    def test_qcow2(self):
        self.check_format("qcow2")

    def test_qed(self):
        self.check_format("qed")

    def test_in_the_background(self):
        """nbdkit forks into the background after the image was opened."""
        self.ceph.create("disk", SIZE)
        folder = pathlib.Path(self.dir)
        run("nbdkit", "-U", folder / "sock", "-P", folder / "pid", PLUGIN, "rbd:rbd/disk", "format=raw", "writable=now",
            env=harness.plugin_env())
        wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text().strip(), 20, "a server")
        pid = int((folder / "pid").read_text())
        try:
            handle = nbd.NBD()
            handle.connect_unix(str(folder / "sock"))
            handle.pwrite(b"x" * 4096, 8192, nbd.CMD_FLAG_FUA)
            self.assertIn("client.", self.ceph.run("rbd", "lock", "ls", "rbd/disk"))
            handle.shutdown()
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not os.path.exists(f"/proc/{pid}") or
                       "Z" in pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0],
                       20, "the server's end")
        self.assertEqual(self.ceph.export("disk")[8192:12288], b"x" * 4096)

    def test_locks(self):
        self.ceph.create("disk", SIZE)
        server = self.serve("rbd:rbd/disk", "format=raw", "writable=now")
        server.connect()  # now it has the lock again, which it had given up for a possible fork
        self.refused("rbd:rbd/disk", "format=raw", words=["another process is using the image"], name=False)
        self.command_fails("another process is using", "compare", "-f", "raw", "-F", "raw", "rbd:rbd/disk", "rbd:rbd/disk")
        self.qimg("info", "-U", "-f", "raw", "rbd:rbd/disk")
        server.stop()
        self.qimg("info", "-f", "raw", "rbd:rbd/disk")
        # There can be several readers.
        first = self.serve("rbd:rbd/disk", "format=raw", nbdkit=["-r"])
        second = self.serve("rbd:rbd/disk", "format=raw", nbdkit=["-r"])
        self.assertEqual(first.connect().pread(512, 0), second.connect().pread(512, 0))
        first.stop()
        second.stop()
        # The lock of a server that died is removed.
        server = self.serve("rbd:rbd/disk", "format=raw")
        server.connect().pwrite(b"y" * 512, 0, nbd.CMD_FLAG_FUA)
        server.kill()
        server = self.serve_again("rbd:rbd/disk", "format=raw")
        handle = server.connect()
        self.assertEqual(handle.pread(512, 0), b"y" * 512)
        handle.pwrite(b"z" * 512, 0)
        server.stop()
        self.ceph.create("free", SIZE, "--image-feature", "layering")
        self.refused("rbd:rbd/free", "format=raw", "writable=now", words=["exclusive-lock"], name=False)
        self.serve("rbd:rbd/free", "format=raw", "lock=off").connect().pwrite(b"a", 0)

    def test_snapshots_are_only_read(self):
        self.ceph.create("disk", SIZE)
        server = self.serve("rbd:rbd/disk", "format=raw")
        handle = server.connect()
        handle.pwrite(b"1" * MIB, MIB, nbd.CMD_FLAG_FUA)
        self.ceph.run("rbd", "snap", "create", "--no-progress", "rbd/disk@s")
        handle.pwrite(b"2" * MIB, MIB, nbd.CMD_FLAG_FUA)
        old = self.serve("rbd:rbd/disk@s", "format=raw")  # served while the image is being written
        view = old.connect()
        self.assertTrue(view.is_read_only())
        self.assertEqual(view.pread(MIB, MIB), b"1" * MIB)
        self.assertEqual(handle.pread(MIB, MIB), b"2" * MIB)
        old.stop()
        server.stop()
        self.command_fails("is a snapshot", "resize", "-f", "raw", "rbd:rbd/disk@s", "32M")

    def test_status(self):
        """Missing objects are reported as holes, in images and in their snapshots."""
        self.ceph.create("disk", 10 * SIZE)
        server = self.serve("rbd:rbd/disk", "format=raw")
        handle = server.connect()
        handle.pwrite(b"x", 9 * MIB)
        handle.pwrite(b"x" * 5 * MIB, 99 * MIB)
        handle.flush()
        found = []
        handle.block_status(120 * MIB, 6 * MIB, lambda context, off, entries, error: found.extend(entries))
        runs, at = [], 6 * MIB
        for length, flags in zip(found[::2], found[1::2]):
            runs.append((at // MIB, (at + length) // MIB, flags))
            at += length
        merged = []
        for start, end, flags in runs:
            if merged and merged[-1][2] == flags:
                merged[-1] = (merged[-1][0], end, flags)
            else:
                merged.append((start, end, flags))
        self.assertEqual(merged, [(6, 8, 3), (8, 12, 0), (12, 96, 3), (96, 104, 0), (104, 126, 3)])
        server.stop()
        entries = harness.json.loads(self.qimg("map", "--output=json", "-f", "raw", "rbd:rbd/disk").stdout)
        self.assertEqual([e["start"] // MIB for e in entries if e["data"]], [8, 96])

    def test_backing_files(self):
        """A local overlay over an RBD image that is named by the overlay or by the user."""
        payload = self.rng.randbytes(2 * MIB)
        self.qimg("create", "-f", "qcow2", "rbd:rbd/base", SIZE)
        server = self.serve("rbd:rbd/base")
        server.connect().pwrite(payload, 3 * MIB)
        server.stop()
        overlay = self.path("overlay.qcow2")
        self.qimg("create", "-f", "qcow2", "-b", "rbd:rbd/base", "-F", "qcow2", overlay)
        server = self.serve(overlay)
        self.assertEqual(server.connect().pread(2 * MIB, 3 * MIB), payload)
        server.stop()
        for policy in ("dir", "none"):
            self.refused(overlay, f"references={policy}", words=[f"references={policy}"])
        for command in (("rebase", "-u", "-b", f"rbd:rbd/base:conf={self.ceph.conf}", "-F", "qcow2", overlay),
                        ("rebase", "-b", f"rbd:rbd/base:conf={self.ceph.conf}", "-F", "qcow2", overlay),
                        ("create", "-f", "qcow2", "-b", "rbd:rbd/base:key=AQsecret", "-F", "qcow2", self.path("new"))):
            done = self.qimg(*command, check=False)
            self.assertEqual(done.returncode, 1, done)
            self.assertIn("an image may not choose how Ceph is asked", done.stderr)
            self.assertNotIn("AQsecret", done.stderr)
        self.assertFalse(os.path.exists(self.path("new")))
        run("qemu-img", "rebase", "-u", "-b", f"rbd:rbd/base:conf={self.ceph.conf}", "-F", "qcow2", overlay)
        self.refused(overlay, words=["an image may not choose how Ceph is asked"])
        server = self.serve(overlay, f"backing=rbd:rbd/base:conf={self.ceph.conf}")  # but a user may choose it
        self.assertEqual(server.connect().pread(2 * MIB, 3 * MIB), payload)
        server.stop()

    def test_convert_and_compare(self):
        source = create(self.path("source.qcow2"), "qcow2", SIZE)
        fill(source, "qcow2", [(n * MIB, self.rng.randbytes(300 * KIB)) for n in range(0, 24, 3)])
        flat = harness.content(source, "qcow2")
        self.qimg("convert", "-f", "qcow2", "-O", "raw", source, "rbd:rbd/raw")
        self.assertEqual(self.ceph.export("raw"), flat)
        self.qimg("convert", "-f", "qcow2", "-O", "qcow2", source, "rbd:rbd/image")
        run("qemu-img", "check", "-f", "qcow2", "rbd:rbd/image")
        self.qimg("compare", "-f", "raw", "-F", "qcow2", "rbd:rbd/raw", "rbd:rbd/image")
        self.qimg("convert", "-f", "qcow2", "-O", "qcow2", "rbd:rbd/image", self.path("back.qcow2"))
        self.assertEqual(harness.content(self.path("back.qcow2"), "qcow2"), flat)
        # An existing image isn't created again, but can be written to.
        self.command_fails("File exists", "convert", "-f", "qcow2", "-O", "raw", source, "rbd:rbd/raw")
        self.assertEqual(self.ceph.export("raw"), flat)
        self.qimg("convert", "-n", "-f", "qcow2", "-O", "raw", source, "rbd:rbd/raw")
        self.qimg("resize", "-f", "raw", "rbd:rbd/raw", "+8M")
        self.assertEqual(self.ceph.export("raw"), flat + bytes(8 * MIB))
        options = f"driver=qcow2,file.driver=rbd,file.pool=rbd,file.image=image,file.conf={self.ceph.conf}"
        self.assertIn("qcow2", self.qimg("info", "--image-opts", options).stdout)

    def test_a_conversion_that_fails_leaves_nothing(self):
        """Neither an image nor a data file is left, on Ceph or local."""
        source = create(self.path("source.qcow2"), "qcow2", SIZE)
        fill(source, "qcow2", [(0, self.rng.randbytes(MIB)), (20 * MIB, self.rng.randbytes(MIB))])
        layout = harness.json.loads(self.qimg("map", "--output=json", source).stdout)
        with open(source, "r+b") as file:  # the second piece can't be read
            file.truncate([e["offset"] for e in layout if e["start"] == 20 * MIB][0])
        for target in (self.path("new.qcow2"), "rbd:rbd/new"):
            self.command_fails(".", "convert", "-f", "qcow2", "-O", "qcow2", "-o", "data_file=rbd:rbd/data,data_file_raw=on", source,
                               target)
            self.assertEqual(self.ceph.run("rbd", "ls", "rbd"), "")
        self.ceph.create("data", SIZE)  # an existing image stays
        self.command_fails(".", "convert", "-f", "qcow2", "-O", "qcow2", "-o", "data_file=rbd:rbd/data", source, "rbd:rbd/new")
        self.assertEqual(self.ceph.run("rbd", "ls", "rbd").split(), ["data"])

    def test_the_images_own_configuration(self):
        """Settings of an image or pool override ours: a cache is refused, because it could lose failed writes."""
        self.ceph.create("disk", SIZE)
        for key, value in (("rbd_cache", "true"), ("rbd_disable_zero_copy_writes", "false")):
            for level, name in (("image", "rbd/disk"), ("pool", "rbd")):
                self.ceph.run("rbd", "config", level, "set", name, key, value)
                try:
                    self.command_fails(f"{key}={value} is set for the {level}", "info", "-f", "raw", "rbd:rbd/disk")
                finally:
                    self.ceph.run("rbd", "config", level, "remove", name, key)
        self.ceph.run("rbd", "config", "image", "set", "rbd/disk", "rbd_cache", "false")
        self.qimg("info", "-f", "raw", "rbd:rbd/disk")

    def test_qimg_serve(self):
        """The socket lies in the current folder, and a second server takes over."""
        self.ceph.create("disk", SIZE)

        def begin(*words):
            process = subprocess.Popen([str(QIMG), "serve", *words, "control=qmp", "format=raw"], cwd=self.dir, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=harness.plugin_env())
            self.addCleanup(process.stdout.close)
            self.addCleanup(process.stderr.close)
            self.addCleanup(harness.kill_quietly, process)
            uri = process.stdout.readline().strip()
            self.assertTrue(uri, uri or process.communicate(timeout=60)[1])
            return process, uri

        first, uri = begin("rbd:rbd/disk:id=admin")
        self.assertTrue(os.path.exists(self.path("disk.sock")))
        handle = nbd.NBD()
        handle.connect_uri(uri)
        handle.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA)
        self.ceph.create("other", SIZE)
        done = run(QIMG, "serve", "--replace", "rbd:rbd/other", "control=qmp", "format=raw", cwd=self.dir, check=False,
                   env=harness.plugin_env())
        self.assertIn("is served, and not by the other server", done.stderr)
        with Qmp(self.path("qmp")) as client:  # an image of the same name in another cluster
            with self.assertRaisesRegex(QmpError, "is served, and not by the other server"):
                client.cmd("x-qimg-handover", exports=[{"name": "", "place": "rbd:rbd/disk", "device": 1, "inode": 1}])
        second, uri = begin("--replace", "rbd:rbd/disk")
        self.assertEqual(first.wait(60), 0)
        handle = nbd.NBD()
        handle.connect_uri(uri)
        self.assertEqual(handle.pread(512, 0), b"x" * 512)
        handle.pwrite(b"y" * 512, 0, nbd.CMD_FLAG_FUA)
        handle.shutdown()
        second.terminate()
        second.wait(60)
        self.assertEqual(self.ceph.export("disk")[:512], b"y" * 512)

    def test_what_cannot_be(self):
        self.command_fails("pool 'nowhere': No such file", "info", "rbd:nowhere/disk")
        self.command_fails("opening the image: No such file", "info", "rbd:rbd/nothing")
        self.command_fails("Ceph has no option 'nonsense'", "info", "rbd:rbd/disk:nonsense=1")
        self.command_fails("names no pool", "info", "rbd:disk")
        self.command_fails("reading Ceph's configuration", "info", "rbd:rbd/disk:conf=/does/not/exist")
        self.refused("rbd:rbd/nothing", "format=raw", words=["No such file"], name=False)
        self.ceph.create("disk", SIZE)
        self.refused("rbd:rbd/disk", words=["raw is never guessed"], name=False)

    def test_namespaces(self):
        self.ceph.run("rbd", "namespace", "create", "rbd/space")
        self.addCleanup(self.ceph.run, "rbd", "namespace", "rm", "rbd/space")
        self.addCleanup(self.ceph.run, "rbd", "rm", "--no-progress", "rbd/space/a:disk")
        self.qimg("create", "-f", "raw", "rbd:rbd/space/a\\:disk", SIZE)
        self.assertEqual(self.ceph.run("rbd", "ls", "rbd/space").split(), ["a:disk"])
        self.assertEqual(self.ceph.run("rbd", "ls", "rbd"), "")


class Jobs(RbdCase):
    """The disk of a running server moves to Ceph and back (R-03)."""

    def local_disk(self):
        image = create(self.path("disk.qcow2"), "qcow2", SIZE)
        content = bytearray(self.rng.randbytes(SIZE // 2) + bytes(SIZE // 2))
        fill(image, "qcow2", [(0, bytes(content[:SIZE // 2]))])
        return image, content

    def test_mirror_and_pivot(self):
        image, content = self.local_disk()
        self.begin(image)
        writers = Writers(self.server, content, self.id())
        self.client.cmd("drive-mirror", job_id="job", device="drive0", target="rbd:rbd/copy", format="raw", sync="full",
                        copy_mode="write-blocking")  # so that the job ends even if the cluster is slow
        writers.some(50)
        self.pivot()
        writers.some(100)
        content = writers.stop()
        self.disk.flush()
        self.assertEqual(self.ceph.export("copy"), bytes(content))
        self.server.stop()
        self.assertEqual(self.ceph.export("copy"), bytes(content))

    def test_mirror_to_a_qcow2_there_and_back(self):
        image, content = self.local_disk()
        self.qimg("create", "-f", "qcow2", "rbd:rbd/copy", SIZE)
        self.begin(image)
        writers = Writers(self.server, content, self.id(), count=2)
        self.client.cmd("blockdev-add", driver="qcow2", node_name="there",
                        file={"driver": "rbd", "pool": "rbd", "image": "copy", "conf": str(self.ceph.conf)})
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="there", sync="full",
                        copy_mode="write-blocking")
        self.pivot()
        writers.some(100)
        self.client.cmd("drive-mirror", job_id="job", device="drive0", target=self.path("back.qcow2"),
                        format="qcow2", sync="full", copy_mode="write-blocking")
        self.pivot()
        writers.some(20)
        content = writers.stop()
        self.server.stop()
        run("qemu-img", "check", "-f", "qcow2", "rbd:rbd/copy")
        self.assertEqual(harness.content(self.path("back.qcow2"), "qcow2"), bytes(content))

    def test_backup(self):
        image, content = self.local_disk()
        self.begin(image)
        self.client.cmd("drive-backup", job_id="job", device="drive0", target="rbd:rbd/copy", format="raw", sync="full")
        self.disk.pwrite(b"later" * 1000, 0)
        self.job_event("BLOCK_JOB_COMPLETED")
        self.assertEqual(self.ceph.export("copy"), bytes(content))

    def test_commit_into_a_base_there(self):
        self.qimg("create", "-f", "qcow2", "rbd:rbd/base", SIZE)
        overlay = self.path("overlay.qcow2")
        self.qimg("create", "-f", "qcow2", "-b", "rbd:rbd/base", "-F", "qcow2", overlay)
        self.begin(overlay)
        writers = Writers(self.server, bytearray(SIZE), self.id())
        writers.some(100)
        content = writers.stop()
        self.client.cmd("block-commit", job_id="job", device="drive0")
        self.job_event("BLOCK_JOB_READY")
        writers = Writers(self.server, content, self.id() + " again")
        writers.some(10)
        self.client.cmd("block-job-complete", device="job")
        self.job_event("BLOCK_JOB_COMPLETED")
        writers.some(50)
        content = writers.stop()
        self.server.stop()
        run("qemu-img", "check", "-f", "qcow2", "rbd:rbd/base")
        self.assertEqual(harness.content("rbd:rbd/base", "qcow2"), bytes(content))

    def test_commit_of_a_middle_layer(self):
        self.qimg("create", "-f", "qcow2", "rbd:rbd/base", SIZE)
        middle, top = self.path("middle.qcow2"), self.path("top.qcow2")
        self.qimg("create", "-f", "qcow2", "-b", "rbd:rbd/base", "-F", "qcow2", middle)
        payload = self.rng.randbytes(MIB)
        fill(middle, "qcow2", [(MIB, payload)])
        self.qimg("create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
        self.begin(top)
        self.client.cmd("block-commit", job_id="job", device="drive0", top=middle)
        self.job_event("BLOCK_JOB_COMPLETED")
        self.assertEqual(self.disk.pread(MIB, MIB), payload)
        self.server.stop()
        self.assertEqual(harness.content("rbd:rbd/base", "qcow2")[MIB:2 * MIB], payload)
        self.qimg("create", "-f", "qcow2", "-b", "rbd:rbd/base", "-F", "qcow2", middle)
        fill(middle, "qcow2", [(2 * MIB, payload)])
        self.qimg("commit", middle)
        self.assertEqual(harness.content("rbd:rbd/base", "qcow2")[2 * MIB:3 * MIB], payload)

    def test_snapshots_of_a_disk_with_options(self):
        """A snapshot is refused before anything changes if the server couldn't open the overlay's backing name at its
        next start.  Secrets in the name aren't shown."""
        self.qimg("create", "-f", "qcow2", "rbd:rbd/disk", SIZE)
        self.begin("rbd:rbd/disk:id=admin:key=AQDYSMpaAAAAABAA0YqwB3GMSYWeDyTbRaxklA==")
        shown = str(self.client.cmd("query-block")) + str(self.client.cmd("query-named-block-nodes"))
        self.assertIn("rbd:rbd/disk:id=admin", shown)
        self.assertNotIn("AQDYSMpa", shown)
        overlay = self.path("overlay.qcow2")
        with self.assertRaisesRegex(QmpError, "may not choose how Ceph is asked") as caught:
            self.client.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=overlay)
        self.assertNotIn("AQDYSMpa", str(caught.exception))
        with self.assertRaisesRegex(QmpError, "is part of the disk") as caught:
            self.client.cmd("drive-mirror", job_id="job", device="drive0", target="rbd:rbd/disk:key=AQDYSMpa", sync="full",
                            mode="existing", format="raw")
        self.assertNotIn("AQDYSMpa", str(caught.exception))
        self.assertFalse(os.path.exists(overlay))
        self.disk.pwrite(b"on" * 256, 0)
        self.server.stop()
        # A name without options can be opened from the overlay.
        self.begin("rbd:rbd/disk")
        self.client.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=overlay)
        self.server.stop()
        self.assertEqual(self.serve(overlay).connect().pread(512, 0), b"on" * 256)

    def test_copies_over_a_backing_file_with_options(self):
        """The same for a mirror with sync=top, whose target would name the backing file."""
        self.qimg("create", "-f", "qcow2", "rbd:rbd/base", SIZE)
        overlay, copy = self.path("overlay.qcow2"), self.path("copy.qcow2")
        self.qimg("create", "-f", "qcow2", "-b", "rbd:rbd/base", "-F", "qcow2", overlay)
        self.begin(overlay, "backing=rbd:rbd/base:id=admin")
        with self.assertRaisesRegex(QmpError, "may not choose how Ceph is asked"):
            self.client.cmd("drive-mirror", job_id="job", device="drive0", target=copy, sync="top", format="qcow2")
        self.assertFalse(os.path.exists(copy))

    def test_an_overlay_there_with_a_relative_name(self):
        """An overlay on Ceph with a relative backing name is refused: there is no folder that it is relative to."""
        self.qimg("create", "-f", "qcow2", "rbd:rbd/base", SIZE)
        run("qemu-img", "create", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", "rbd:rbd/overlay", str(SIZE))
        self.begin("rbd:rbd/base")
        self.client.cmd("blockdev-add", driver="qcow2", node_name="over", backing=None,
                        file={"driver": "rbd", "pool": "rbd", "image": "overlay"})
        with self.assertRaisesRegex(QmpError, "has no folder"):
            self.client.cmd("blockdev-snapshot", node="drive0", overlay="over")

    def test_a_disk_is_no_target_of_itself(self):
        self.ceph.create("disk", SIZE)
        self.begin("rbd:rbd/disk", "format=raw", "lock=off")
        for arguments in ({}, {"mode": "existing"}):
            with self.assertRaisesRegex(QmpError, "is part of the disk"):
                self.client.cmd("drive-mirror", job_id="job", device="drive0", target="rbd:rbd/disk", format="raw",
                                sync="full", **arguments)


class Trouble(RbdCase):
    """The cluster fails and recovers (R-04, R-05, R-06, R-11)."""

    TIMEOUT = 400  # seconds; an OSD may have to be started several times

    def kill_and_restart(self, writers, times):
        for _ in range(times):
            self.ceph.signal_osd(signal.SIGKILL)
            counts = [writer.count for writer in writers.all]
            time.sleep(0.5)  # requests are sent, but there is no OSD
            self.ceph.restart_osd()
            try:
                wait_until(lambda: all(w.error or w.count > n + 5 for w, n in zip(writers.all, counts)), 60,
                           "requests that go on")
            except AssertionError:
                print(f"{self.ceph.state()}\n{self.server.errors}", file=sys.stderr, flush=True)
                raise
            writers.some(20)

    def check_osd_dies(self, fmt):
        self.qimg("create", "-f", fmt, "rbd:rbd/disk", SIZE)
        self.begin("rbd:rbd/disk", f"format={fmt}")
        writers = Writers(self.server, bytearray(SIZE), self.id())
        self.kill_and_restart(writers, 3)
        content = writers.stop()
        self.server.stop()
        if fmt == "raw":
            self.assertEqual(self.ceph.export("disk"), bytes(content))
        else:
            run("qemu-img", "check", "-f", fmt, "rbd:rbd/disk")
            self.assertEqual(harness.content("rbd:rbd/disk", fmt), bytes(content))

    def test_osd_dies_under_a_raw_disk(self):
        self.check_osd_dies("raw")

    def test_osd_dies_under_a_qcow2_image(self):
        self.check_osd_dies("qcow2")

    def test_osd_dies_during_a_mirror(self):
        image = create(self.path("disk.qcow2"), "qcow2", SIZE)
        content = bytearray(self.rng.randbytes(SIZE))
        fill(image, "qcow2", [(0, bytes(content))])
        self.begin(image)
        writers = Writers(self.server, content, self.id())
        self.client.cmd("drive-mirror", job_id="job", device="drive0", target="rbd:rbd/copy", format="raw", sync="full",
                        speed=4 * MIB, copy_mode="write-blocking")
        wait_until(lambda: self.ceph.is_there("copy"), 20, "the target")
        self.kill_and_restart(writers, 2)
        self.client.cmd("block-job-set-speed", device="job", speed=0)
        self.pivot()
        writers.some(20)
        content = writers.stop()
        self.server.stop()
        self.assertEqual(self.ceph.export("copy"), bytes(content))

    def check_full(self, fmt):
        self.qimg("create", "-f", fmt, "rbd:rbd/disk", SIZE)
        server = self.serve("rbd:rbd/disk", f"format={fmt}")
        handle = server.connect()
        model = Model(bytes(SIZE))
        for off in range(0, 8 * MIB, MIB):
            model.write(handle, off, self.rng.randbytes(MIB))
        handle.flush()
        self.ceph.be_full(True)
        failed = 0
        for off in range(12 * MIB, 20 * MIB, MIB):
            payload = self.rng.randbytes(MIB)
            try:
                handle.pwrite(payload, off)
            except nbd.Error as error:
                self.assertEqual(error.errnum, errno.ENOSPC, error)
                failed += 1
            else:
                model.data[off:off + MIB] = payload
        self.assertGreater(failed, 0, "a full pool takes everything")
        model.compare(handle, 0, 12 * MIB)
        self.ceph.be_full(False)
        for off in range(12 * MIB, 20 * MIB, MIB):  # rewrite the ranges whose writes failed, so that their content is known
            model.write(handle, off, self.rng.randbytes(MIB))
        exercise([handle], model, self.rng, 50)
        server.stop()
        model.expect(harness.content("rbd:rbd/disk", fmt), "qemu-img convert")
        harness.check("rbd:rbd/disk", fmt, allow_leaks=True)

    def test_full_raw(self):
        self.check_full("raw")

    def test_full_qcow2(self):
        self.check_full("qcow2")

    def answered_early(self, *params):
        """Serves a raw disk whose writes are answered before the cluster has them; returns the server, a connection
        and bytes to write."""
        self.ceph.create("disk", SIZE)
        server = self.serve("rbd:rbd/disk:rados_osd_op_timeout=2", "format=raw", *params)
        handle, payload = server.connect(), self.rng.randbytes(64 * KIB)
        handle.pwrite(bytes(64 * KIB), 0)
        handle.flush()
        return server, handle, payload

    def test_full_for_what_was_answered(self):
        """A full cluster and a write that was answered early: the server keeps the data in memory and reads it from
        there, flushes fail, and the data is written when there is space."""
        server, handle, payload = self.answered_early()
        self.ceph.be_full(True)
        handle.pwrite(payload, MIB)
        for _ in range(2):
            self.errno(errno.ENOSPC, handle.flush)
            self.assertEqual(handle.pread(64 * KIB, MIB), payload)
            self.errno(errno.ENOSPC, handle.pwrite, payload, 2 * MIB)
        self.ceph.be_full(False)
        handle.pwrite(payload, 2 * MIB)
        handle.flush()
        self.assertEqual(self.ceph.export("disk")[MIB:2 * MIB + 64 * KIB],
                         payload + bytes(MIB - 64 * KIB) + payload)
        server.stop()

    def test_full_when_flushes_are_void(self):
        """cache=volatile: a flush doesn't have to make anything durable, but it reports a write that failed."""
        server, handle, payload = self.answered_early("cache=volatile")
        self.ceph.be_full(True)
        handle.pwrite(payload, MIB)
        self.errno(errno.ENOSPC, handle.flush)
        self.ceph.be_full(False)
        handle.flush()
        self.assertEqual(self.ceph.export("disk")[MIB:MIB + 64 * KIB], payload)
        server.stop()

    def check_full_at_the_end(self, fmt):
        """A conversion doesn't flush, but it only succeeds when the cluster has all its writes."""
        with open(self.path("source"), "wb") as file:
            file.write(self.rng.randbytes(64 * KIB))
        self.qimg("create", "-f", fmt, "rbd:rbd/disk", 64 * KIB)
        self.ceph.be_full(True)
        words = "convert", "-n", "-f", "raw", "-O", fmt, self.path("source"), "rbd:rbd/disk"
        self.command_fails("No space left on device", *words)
        self.ceph.be_full(False)
        self.qimg(*words)
        self.qimg("compare", "-f", "raw", "-F", fmt, self.path("source"), "rbd:rbd/disk")

    def test_full_at_the_end_raw(self):
        self.check_full_at_the_end("raw")

    def test_full_at_the_end_qcow2(self):
        self.check_full_at_the_end("qcow2")

    def test_a_cluster_that_hangs_for_what_was_answered(self):
        server, handle, payload = self.answered_early()
        self.hang()
        handle.pwrite(payload, MIB)
        self.errno((errno.ETIMEDOUT, errno.EIO), handle.flush)
        self.errno((errno.ETIMEDOUT, errno.EIO), handle.pread, 4096, MIB)
        self.errno((errno.ETIMEDOUT, errno.EIO), handle.pwrite, payload, 2 * MIB)  # fails at once
        self.ceph.signal_osd(signal.SIGCONT)
        handle.flush()
        self.assertEqual(self.ceph.export("disk")[MIB:MIB + 64 * KIB], payload)
        server.stop()

    def test_without_a_cache(self):
        """cache=none: a write is answered when the cluster has it."""
        server, handle, payload = self.answered_early("cache=none")
        self.hang()
        self.errno((errno.ETIMEDOUT, errno.EIO), handle.pwrite, payload, MIB)
        self.ceph.signal_osd(signal.SIGCONT)
        handle.pwrite(payload, MIB)
        self.assertEqual(self.ceph.export("disk")[MIB:MIB + 64 * KIB], payload)
        server.stop()

    def hang(self):
        harness.freeze(self.ceph.processes["osd"])
        self.addCleanup(self.ceph.signal_osd, signal.SIGCONT)

    def test_a_cluster_that_hangs(self):
        """Other disks aren't delayed, requests to the cluster fail at their deadline, and afterwards all goes on."""
        self.ceph.create("disk", SIZE)
        local = create(self.path("local.raw"), "raw", SIZE)
        server = self.serve(None, "format=raw", "export=a:rbd:rbd/disk:rados_osd_op_timeout=2", f"export=b:{local}")
        far, near = server.connect("a"), server.connect("b")
        far.pwrite(b"1" * 4096, 0)
        far.flush()
        self.hang()
        self.errno((errno.ETIMEDOUT, errno.EIO), far.pread, 4096, 0)
        near.pwrite(b"n" * 4096, 4 * MIB)
        near.flush()
        self.errno((errno.ETIMEDOUT, errno.EIO), far.pwrite, b"2" * 4096, 0)
        self.errno((errno.ETIMEDOUT, errno.EIO), far.pwrite, b"3" * 4096, 0)  # waits for the overlapping write
        self.ceph.signal_osd(signal.SIGCONT)
        far.pwrite(b"4" * 4096, 0)  # no older write may arrive after this one
        far.flush()
        self.assertEqual(far.pread(4096, 0), b"4" * 4096)
        server.stop()
        self.assertEqual(self.ceph.export("disk")[:4096], b"4" * 4096)

    def test_the_end_while_a_cluster_hangs(self):
        self.ceph.create("disk", SIZE)
        server = self.serve("rbd:rbd/disk:rados_osd_op_timeout=2", "format=raw")
        handle = server.connect()
        handle.pwrite(b"1" * 4096, 0)
        self.hang()
        self.errno((errno.ETIMEDOUT, errno.EIO), handle.pwrite, b"2" * 4096, 0, nbd.CMD_FLAG_FUA)
        self.errno((errno.ETIMEDOUT, errno.EIO), handle.pread, 4096, 0)
        server.disconnect()
        server.process.send_signal(signal.SIGTERM)
        self.assertIsNotNone(server.process.wait(harness.STOP_TIMEOUT))
        self.assertNotIn("Sanitizer", server.errors)
        self.assertGreaterEqual(server.process.returncode, 0, server.errors)

    def test_a_job_is_cancelled_while_its_target_hangs(self):
        image = create(self.path("disk.qcow2"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, self.rng.randbytes(SIZE))])
        self.ceph.create("copy", SIZE)
        self.begin(image)
        self.hang()
        self.client.send({"execute": "drive-mirror", "arguments": {
            "job-id": "job", "device": "drive0", "target": "rbd:rbd/copy", "mode": "existing", "format": "raw",
            "sync": "full"}})
        self.disk.pwrite(b"n" * 4096, 0)
        other = self.qmp()
        wait_until(lambda: other.cmd("query-jobs"), 20, "the job")
        other.cmd("job-cancel", id="job")
        wait_until(lambda: not other.cmd("query-jobs"), 20, "the job's end")
        self.disk.pwrite(b"m" * 4096, 0)


class Keys(RbdCase):
    """A cluster with authentication (R-01, R-07)."""

    AUTH = "cephx"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.ceph.run("ceph", "osd", "pool", "create", "vms", "8", "8")
        cls.ceph.run("rbd", "pool", "init", "vms")
        cls.rings = {
            "one": cls.ceph.user("one", "mon", "profile rbd", "osd", "profile rbd pool=vms"),
            "reader": cls.ceph.user("reader", "mon", "profile rbd", "osd", "profile rbd-read-only pool=vms"),
            "none": cls.ceph.user("none", "mon", "profile rbd"),
        }
        cls.wrong = cls.home + "/wrong.keyring"
        run("ceph-authtool", "--create-keyring", cls.wrong, "--gen-key", "-n", "client.one")

    def purge(self):
        super().purge()
        self.ceph.purge(pool="vms")

    def name(self, user, image="vms/disk", ring=None):
        return f"rbd:{image}:id={user}:conf={self.ceph.conf}:keyring={ring or self.rings[user]}"

    def test_a_user_of_one_pool(self):
        """a user with access to one pool: serve, convert, compare, and move a disk there"""
        self.ceph.create("disk", SIZE, pool="vms")
        name, model = self.name("one"), Model(bytes(SIZE))
        server = self.serve(name, "format=raw")
        exercise([server.connect(), server.connect()], model, self.rng, 100)
        server.stop()
        model.expect(self.ceph.export("disk", pool="vms"), "rbd export")
        copy = self.name("one", "vms/copy")
        self.qimg("convert", "-f", "raw", "-O", "qcow2", name, copy)
        self.qimg("compare", "-f", "raw", "-F", "qcow2", name, copy)
        overlay = self.path("overlay.qcow2")
        self.qimg("create", "-f", "qcow2", overlay, SIZE)
        self.begin(overlay, f"backing={copy}", "backing-format=qcow2")
        self.disk.pwrite(b"over" * 128, 0)
        self.client.cmd("drive-mirror", job_id="job", device="drive0", target=self.name("one", "vms/moved"), format="raw", sync="full")
        self.pivot()
        self.disk.pwrite(b"there" * 128, 4096, nbd.CMD_FLAG_FUA)
        self.server.stop()
        content = bytearray(model.data)
        content[:512], content[4096:4096 + 640] = b"over" * 128, b"there" * 128
        self.assertEqual(self.ceph.export("moved", pool="vms"), bytes(content))

    def test_by_options(self):
        """by options, like qemu-img: the key as a secret, the monitors by their addresses"""
        self.ceph.create("disk", SIZE, pool="vms")
        secret = f"secret,id=s,format=base64,data={self.ceph.key('one')}"
        rbd = {"driver": "rbd", "pool": "vms", "image": "disk", "user": "one", "key-secret": "s",
               "auth-client-required": ["cephx", "none"], "server": [{"host": "127.0.0.1", "port": str(self.ceph.port)}]}
        flat = (f"driver=rbd,pool=vms,image=disk,user=one,key-secret=s,conf={self.ceph.conf},auth-client-required.0=cephx")
        for tool in ("qemu-img", QIMG):
            for words in ((f"json:{harness.json.dumps({'driver': 'raw', 'file': rbd})}",), ("--image-opts", flat),
                          ("--image-opts", "driver=raw," + ",".join(f"file.{word}" for word in flat.split(",")))):
                with self.subTest(tool=tool, words=words):
                    env = {**os.environ, "CEPH_CONF": "/dev/null"}
                    self.assertIn("24 MiB", run(tool, "info", "--object", secret, *words, env=env).stdout)
        done = run(QIMG, "info", "--image-opts", flat, check=False)
        self.assertIn("key-secret: there is no secret of that id", done.stderr)
        self.assertNotIn(self.ceph.key("one"), run(QIMG, "info", "--object", secret, "--image-opts", flat).stdout)

    def test_in_a_node(self):
        """as a node added by blockdev-add"""
        self.ceph.create("copy", SIZE, pool="vms")
        image = create(self.path("disk.qcow2"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, b"node" * MIB)])
        conf = self.path("one.conf")
        pathlib.Path(conf).write_text(f"[client.one]\nkeyring = {self.rings['one']}\n")
        self.begin(image)
        rbd = {"driver": "rbd", "pool": "vms", "image": "copy", "user": "one", "conf": conf, "auth-client-required": ["cephx"],
               "server": [{"host": "127.0.0.1", "port": str(self.ceph.port)}]}
        self.client.cmd("blockdev-add", driver="raw", node_name="there", file=rbd)
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="there", sync="full")
        self.pivot()
        self.server.stop()
        self.assertEqual(self.ceph.export("copy", pool="vms")[:4 * MIB], b"node" * MIB)
        self.begin(image)
        with self.assertRaisesRegex(QmpError, "gss"):
            self.client.cmd("blockdev-add", driver="raw", node_name="there", file={**rbd, "auth-client-required": ["gss"]})

    def test_who_may_not(self):
        """a user without access gets an error with the reason, without a wait"""
        self.ceph.create("disk", SIZE, pool="vms")
        self.ceph.create("disk", SIZE)
        refused = "client.one: .*(Permission denied|Operation not permitted)"
        for name, says in ((self.name("one", ring=self.wrong), refused),
                           (f"rbd:vms/disk:id=one:key={self.ceph.key('reader')}", refused),
                           (f"rbd:vms/disk:id=nobody:keyring={self.rings['one']}", "client.nobody: Permission denied"),
                           (f"rbd:vms/disk:id=one:keyring={self.path('nowhere')}", "client.one: .*no key"),
                           (self.name("none"), "client.none: .*Operation not permitted"),
                           (self.name("one", "rbd/disk"), "client.one: .*Operation not permitted")):
            with self.subTest(name=name):
                done = run(QIMG, "info", "-f", "raw", name, check=False, timeout=60)
                self.assertEqual(done.returncode, 1, done)
                self.assertRegex(done.stderr, f"rbd:.*{says}")
                self.assertNotIn("AQ", done.stderr)
                self.refused(name, "format=raw", words=[says], name=False)

    def test_what_images_name(self):
        """images that other images name are opened as the process' user; an image can't choose the user"""
        overlay, upper = self.path("overlay.qcow2"), self.path("upper.qcow2")
        args = f"--id one --keyring={self.rings['one']}"
        self.addCleanup(os.environ.pop, "CEPH_ARGS")
        os.environ["CEPH_ARGS"] = args
        self.qimg("create", "-f", "qcow2", "rbd:vms/base", SIZE)
        self.qimg("create", "-f", "qcow2", "-b", "rbd:vms/base", "-F", "qcow2", overlay)
        self.begin(overlay)
        self.disk.pwrite(b"over" * 128, 0)
        self.client.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=upper)
        self.disk.pwrite(b"upper" * 100, 4096)
        self.client.cmd("block-commit", job_id="job", device="drive0", top=overlay)
        self.job_event("BLOCK_JOB_COMPLETED")
        self.server.stop()
        self.assertEqual(self.serve(upper).connect().pread(4096 + 500, 0), b"over" * 128 + bytes(4096 - 512) + b"upper" * 100)

    def test_who_may_only_read(self):
        self.ceph.create("disk", SIZE, pool="vms")
        name = self.name("reader")
        self.qimg("info", "-f", "raw", name)
        server = self.serve(name, "format=raw")
        handle = server.connect()
        self.assertTrue(handle.is_read_only())
        self.assertEqual(handle.pread(4096, 0), bytes(4096))
        server.stop()
        self.refused(name, "format=raw", "writable=now", words=["Operation not permitted"], name=False)
        self.command_fails("Operation not permitted", "resize", "-f", "raw", name, "+1M")


class Others(RbdCase):
    """Other clients and administrators change an image while it is served (R-08, R-09)."""

    def admin(self, *words):
        return self.ceph.run("rbd", words[0], *(["--no-progress"] if words[0] in ("rm", "resize") else []), *words[1:])

    def refuses_removal(self, name):
        done = run("rbd", "rm", "--no-progress", name, env=self.ceph.env, check=False)
        self.assertNotEqual(done.returncode, 0, done)
        self.assertIn("watchers", done.stderr)

    def test_an_image_that_is_read_stays(self):
        """An image that is served read-only, or is a backing file, can't be removed: it would read as zeroes."""
        self.qimg("create", "-f", "qcow2", "rbd:rbd/base", SIZE)
        server = self.serve("rbd:rbd/base")
        server.connect().pwrite(b"b" * MIB, MIB)
        server.stop()
        overlay = self.path("overlay.qcow2")
        self.qimg("create", "-f", "qcow2", "-b", "rbd:rbd/base", "-F", "qcow2", overlay)
        for server in (self.serve("rbd:rbd/base", nbdkit=["-r"]), self.serve(overlay)):
            handle = server.connect()
            self.refuses_removal("rbd/base")
            self.assertEqual(handle.pread(MIB, MIB), b"b" * MIB)
            server.stop()

    def test_a_snapshot_is_removed(self):
        """A reader of a removed snapshot gets errors, not zeroes; clients of the image itself go on."""
        self.ceph.create("disk", SIZE)
        server = self.serve("rbd:rbd/disk", "format=raw")
        handle = server.connect()
        handle.pwrite(b"1" * MIB, 0, nbd.CMD_FLAG_FUA)
        self.admin("snap", "create", "--no-progress", "rbd/disk@s")
        handle.pwrite(b"2" * MIB, 0, nbd.CMD_FLAG_FUA)
        old = self.serve("rbd:rbd/disk@s", "format=raw")
        view = old.connect()
        self.assertEqual(view.pread(MIB, 0), b"1" * MIB)
        self.admin("snap", "rm", "--no-progress", "rbd/disk@s")

        def fails():
            try:
                view.pread(4096, 0)
            except nbd.Error as error:
                return error.errnum == errno.EIO
            return False
        wait_until(fails, 30, "an error of the reader's")
        self.assertRegex(old.errors, "rbd:rbd/disk@s: read of 4096 bytes at 0: No such file")
        self.assertEqual(handle.pread(MIB, 0), b"2" * MIB)
        old.stop()
        server.stop()

    def test_what_others_wrote_before_the_first_client(self):
        """Before its first writable connection a server doesn't exclude other writers; with that connection it drops
        everything that it has read before."""
        for fmt in ("qcow2", "qed"):
            with self.subTest(fmt=fmt):
                name, model = f"rbd:rbd/disk.{fmt}", Model(bytes(SIZE))
                self.qimg("create", "-f", fmt, name, SIZE)
                if fmt == "qcow2":
                    self.qimg("bitmap", "--add", name, "b")
                idle = self.serve(name, f"format={fmt}", f"control={self.path('qmp')}")
                other = self.serve(name, f"format={fmt}")
                exercise([other.connect()], model, self.rng, 100)
                other.stop()
                handle = idle.connect()
                model.compare(handle)
                exercise([handle], model, self.rng, 100)
                idle.stop()
                harness.check(name, fmt)
                model.expect(harness.content(name, fmt), "qemu-img convert")
                if fmt == "qcow2":
                    self.expect_all_recorded(name, model)

    def expect_all_recorded(self, name, model):
        """The bitmap was added when the disk was empty: everything that isn't zero must be dirty."""
        with tempfile.TemporaryDirectory(dir=self.dir) as folder:
            sock = os.path.join(folder, "s")
            server = subprocess.Popen(["qemu-nbd", "-t", "-r", "-f", "qcow2", "-k", sock, "-B", "b", name])
            self.addCleanup(harness.kill_quietly, server)
            harness.await_listener(sock)
            marks = harness.json.loads(run("qemu-img", "map", "--output=json", "--image-opts",
                                           f"driver=nbd,server.type=unix,server.path={sock},x-dirty-bitmap=qemu:dirty-bitmap:b").stdout)
            server.terminate()
            server.wait(20)
        self.assertTrue(any(not mark["data"] for mark in marks), "nothing is recorded")
        for mark in marks:
            if mark["data"]:  # qemu-img shows clean ranges as data
                start, end = mark["start"], mark["start"] + mark["length"]
                self.assertFalse(any(model.data[start:end]), f"{start} to {end} isn't recorded")

    def test_one_that_has_become_another(self):
        """Another client changes the size before the first connection: the server refuses to write."""
        self.qimg("create", "-f", "qcow2", "rbd:rbd/disk", SIZE)
        idle = self.serve("rbd:rbd/disk")
        self.qimg("resize", "-f", "qcow2", "rbd:rbd/disk", "+8M")
        for _ in range(2):
            with self.assertRaises(nbd.Error):
                idle.connect()
        self.assertIn("another client has changed its size", idle.errors)
        idle.stop()
        self.serve("rbd:rbd/disk").connect().pwrite(b"new" * 1024, SIZE)

    def test_an_image_is_made_in_one_that_is_there(self):
        """blockdev-create makes an image inside an existing RBD image, but not in one that is served"""
        self.ceph.create("disk", SIZE)
        self.ceph.create("there", 2 * SIZE)
        self.begin("rbd:rbd/disk", "format=raw", "lock=off")
        self.disk.pwrite(b"d" * 4096, 0, nbd.CMD_FLAG_FUA)
        for image, error in (("disk", "is part of the disk 'drive0'"), ("there", None)):
            self.client.cmd("blockdev-create", job_id="x", options={
                "driver": "qcow2", "size": SIZE, "file": {"driver": "rbd", "pool": "rbd", "image": image}})
            self.client.event("JOB_STATUS_CHANGE", id="x", status="concluded")
            job, = self.client.cmd("query-jobs")
            self.assertRegex(job.get("error", ""), error or "^$")
            self.client.cmd("job-dismiss", id="x")
        self.assertEqual(self.disk.pread(4096, 0), b"d" * 4096)
        self.assertEqual(harness.info("rbd:rbd/there", "qcow2")["virtual-size"], SIZE)
        self.client.cmd("blockdev-add", driver="qcow2", node_name="there", file={"driver": "rbd", "pool": "rbd", "image": "there"})
        self.client.cmd("blockdev-mirror", job_id="job", device="drive0", target="there", sync="full")
        self.pivot()
        self.server.stop()
        self.assertEqual(harness.content("rbd:rbd/there", "qcow2")[:4096], b"d" * 4096)

    def test_an_image_is_resized(self):
        """Writes past the end of an image that somebody has shrunk aren't lost: the server grows it again."""
        self.ceph.create("disk", SIZE)
        server = self.serve("rbd:rbd/disk", "format=raw", "writable=now")
        handle = server.connect()
        handle.pwrite(b"1" * 4096, 4 * MIB)
        handle.flush()
        reader = self.serve("rbd:rbd/disk", "format=raw", "lock=off", nbdkit=["-r"]).connect()
        self.admin("resize", "-s", "48M", "rbd/disk")
        handle.pwrite(b"2" * 4096, 20 * MIB)
        self.assertEqual(handle.pread(4096, 20 * MIB), b"2" * 4096)
        self.admin("resize", "--allow-shrink", "-s", "8M", "rbd/disk")
        self.assertEqual(reader.pread(4096, 20 * MIB), bytes(4096))
        self.assertEqual(reader.pread(4096, 4 * MIB), b"1" * 4096)
        handle.pwrite(b"3" * 8192, 8 * MIB - 4096)
        handle.pwrite(b"4" * 4096, 16 * MIB)
        handle.flush()
        self.assertEqual(handle.pread(4096, 20 * MIB), bytes(4096))
        self.assertIn("rbd:rbd/disk: somebody has made it smaller: from", server.errors)
        self.resize_under_writers(server)
        handle.pwrite(b"3" * 8192, 8 * MIB - 4096)
        handle.pwrite(b"4" * 4096, 16 * MIB)
        server.stop()
        content = self.ceph.export("disk")
        self.assertEqual(content[8 * MIB - 4096:8 * MIB + 4096], b"3" * 8192)
        self.assertEqual(content[16 * MIB:16 * MIB + 4096], b"4" * 4096)

    def resize_under_writers(self, server):
        """Resizes the image many times while clients write; none of them may get an error."""
        errors, over = [], threading.Event()

        def write(handle, rng):
            while not over.is_set() and not errors:
                try:
                    handle.pwrite(b"w" * 4096, rng.randrange(SIZE // 4096) * 4096)
                except nbd.Error as error:
                    errors.append(error)
        writers = [threading.Thread(target=write, args=(server.connect(), self.rng), daemon=True) for _ in range(4)]
        for writer in writers:
            writer.start()
        for size in (8, 32, 4, 16, 8, 12, 8, 4, 32, 8):
            self.admin("resize", "--allow-shrink", "-s", f"{size}M", "rbd/disk")
        over.set()
        for writer in writers:
            writer.join()
        self.assertEqual(errors, [])

    def test_a_client_that_is_blocklisted(self):
        self.ceph.create("disk", SIZE)
        server = self.serve("rbd:rbd/disk", "format=raw", "writable=now")
        handle = server.connect()
        handle.pwrite(b"1" * 4096, 0, nbd.CMD_FLAG_FUA)
        address = harness.json.loads(self.admin("lock", "ls", "--format=json", "rbd/disk"))[0]["address"]
        self.ceph.run("ceph", "osd", "blocklist", "add", address)
        self.addCleanup(self.ceph.run, "ceph", "osd", "blocklist", "clear")

        def is_refused():  # the OSD may get the new blocklist a moment later
            try:
                handle.pread(4096, 0)
            except nbd.Error:
                return True
            return False
        wait_until(is_refused, 30, "an error of the client's")
        # A flush isn't tried: it may succeed, as all answered writes are in the cluster.
        for call in ((handle.pwrite, b"2" * 4096, 0), (handle.pread, 4096, 0)):
            self.errno((errno.ESHUTDOWN, errno.EIO), *call)
        self.assertIn("rbd:rbd/disk: the cluster has blocklisted this client", server.errors)
        server.stop()
        # Another client can use the image at once.
        handle = self.serve("rbd:rbd/disk", "format=raw", "writable=now").connect()
        self.assertEqual(handle.pread(4096, 0), b"1" * 4096)
        handle.pwrite(b"3" * 4096, 0, nbd.CMD_FLAG_FUA)

    def test_a_monitor_that_hangs(self):
        """Existing connections don't need the monitor; new ones fail at their timeout."""
        self.ceph.create("disk", SIZE)
        handle = self.serve("rbd:rbd/disk", "format=raw", "writable=now").connect()
        harness.freeze(self.ceph.processes["mon"])
        self.addCleanup(self.ceph.processes["mon"].send_signal, signal.SIGCONT)
        handle.pwrite(b"1" * 4096, 0, nbd.CMD_FLAG_FUA)
        self.assertEqual(handle.pread(4096, 0), b"1" * 4096)
        name = "rbd:rbd/disk:client_mount_timeout=2:rados_mon_op_timeout=2"
        self.command_fails("rbd:rbd/disk: .*timed out", "info", "-U", "-f", "raw", name)
        self.refused(name, "format=raw", "lock=off", words=["rbd:rbd/disk: .*timed out"], name=False)
        self.ceph.processes["mon"].send_signal(signal.SIGCONT)
        self.qimg("info", "-U", "-f", "raw", name)

    def test_locks_with_long_names(self):
        """Many locks with long names, set by people: readers ignore them, writers are refused."""
        self.ceph.create("disk", SIZE)
        for n in range(6):
            self.admin("lock", "add", "--shared", "tag", "rbd/disk", f"{n}" * 1000)
        for lock in harness.json.loads(self.admin("lock", "ls", "--format=json", "rbd/disk")):  # otherwise the image can't be removed
            self.addCleanup(self.admin, "lock", "rm", "rbd/disk", lock["id"], lock["locker"])
        self.qimg("info", "-f", "raw", "rbd:rbd/disk")
        self.serve("rbd:rbd/disk", "format=raw", nbdkit=["-r"]).stop()
        self.refused("rbd:rbd/disk", "format=raw", "writable=now", words=[r"lock: client\.\d+ at .* has one that somebody set"],
                     name=False)

    def test_who_asks(self):
        """Options in CEPH_ARGS are used, also --id, like in Ceph's own programs, unless the name has an id.  (QEMU
        ignores --id.)"""
        self.ceph.create("disk", SIZE)
        for number, (args, name, who) in enumerate((
                ("", "rbd:rbd/disk", "admin"), ("--id nobody", "rbd:rbd/disk", "nobody"), ("--id=nobody", "rbd:rbd/disk", "nobody"),
                ("-n client.nobody", "rbd:rbd/disk", "nobody"), ("--name=osd.0", "rbd:rbd/disk", "admin"),
                ("--id nobody", "rbd:rbd/disk:id=someone", "someone"))):
            run(QIMG, "info", "-f", "raw", name, env={**os.environ, "CEPH_ARGS": f"{args} --log-file={self.dir}/{number}-$name.log"})
            self.assertEqual([file for file in os.listdir(self.dir) if file.startswith(f"{number}-")], [f"{number}-client.{who}.log"])


class Guide(RbdCase, Examples):
    def test_examples(self):
        """The examples of qimg-guide(7) that need Ceph: a disk moves there while it is used."""
        self.ceph.run("ceph", "osd", "pool", "create", "vms", "8", "8")
        self.ceph.run("rbd", "pool", "init", "vms")
        guide = (harness.ROOT / "server" / "qimg-guide.pod").read_text(encoding="utf-8")
        stop = [block for block in pod_blocks(guide) if block.startswith("stop() {")][0].split("\n}\n")[0] + "\n}"
        image, content = self.path("work/disk.qcow2"), self.rng.randbytes(MIB)
        os.mkdir(self.path("work"))
        create(image, "qcow2", SIZE)
        fill(image, "qcow2", [(5 * MIB, content)])
        log = self.run_script("\n".join([*pod_blocks(guide, "ceph"), "stop disk"]), before=stop)
        self.assertRegex(log, r"client\.\d+ +auto")
        self.assertEqual(self.ceph.export("disk", pool="vms"), bytes(5 * MIB) + content + bytes(SIZE - 6 * MIB))


if __name__ == "__main__":
    unittest.main()
