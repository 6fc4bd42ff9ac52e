# SPDX-License-Identifier: BSD-3-Clause
"""qimg serve --replace: a new server takes over from a running one, and clients that reconnect go on.  Every
flushed byte is there, no connection is refused, and if the new server can't take over the old one goes on.  E-21"""

import errno
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
import unittest

import nbd

import harness
from harness import BUILD, KIB, MIB, QIMG, SEED, Case, check, content, create, plugin_env, run, wait_until
from qmp import Qmp, QmpError

SIZE = 16 * MIB
GONE = "connect|Connection refused|No such file"


class Reconnecting(threading.Thread):
    """A client like QEMU with reconnect-delay: requests that weren't answered when the connection was lost are sent
    again on a new one.  It writes, and remembers what it has flushed.  An error reply ends it."""

    def __init__(self, uri, first, length, seed):
        super().__init__(daemon=True)
        self.uri, self.first, self.length = uri, first, length
        self.rng = random.Random(seed)
        self.written, self.flushed = bytearray(length), bytearray(length)
        self.stopping = threading.Event()
        self.connections, self.flushes = 0, 0
        self.failure = None
        self.handle = None
        self.start()

    def connect(self):
        """An accepted connection may be lost during the handshake, and is tried again; a refused one is a failure."""
        while True:
            self.handle = nbd.NBD()
            try:
                self.handle.connect_uri(self.uri)
            except nbd.Error as error:
                if error.errnum in (errno.ECONNREFUSED, errno.ENOENT) or "server replied" in str(error):
                    raise
                continue
            self.connections += 1
            return

    def ask(self, request):
        while True:
            try:
                return request(self.handle)
            except nbd.Error as error:
                # An error reply would be an error for the guest; a lost connection isn't.
                if self.handle.aio_is_ready():
                    raise AssertionError(f"the server answered {error}") from error
                self.connect()

    def step(self):
        payload = self.rng.randbytes(self.rng.randrange(1, 20000))
        off = self.rng.randrange(self.length - len(payload))
        self.ask(lambda handle: handle.pwrite(payload, self.first + off))
        self.written[off:off + len(payload)] = payload
        if self.rng.random() < 0.2:
            self.ask(lambda handle: handle.flush())
            self.flushed[:] = self.written
            self.flushes += 1
        if self.rng.random() < 0.2:
            off = self.rng.randrange(self.length - 5000)
            got = self.ask(lambda handle: handle.pread(5000, self.first + off))
            assert bytes(got) == bytes(self.written[off:off + 5000]), "a read after a write"

    def run(self):
        try:
            self.connect()
            while not self.stopping.is_set():
                self.step()
            self.ask(lambda handle: handle.flush())
            self.handle.shutdown()
        except BaseException as error:
            self.failure = error

    def stop(self):
        self.stopping.set()
        self.join(60)
        if self.failure:
            raise self.failure
        assert not self.is_alive(), "hangs"


@unittest.skipIf(harness.STANDIN, "needs nbdkit")
class Handover(Case):
    def begin(self, *words, env=None):
        """Starts `qimg serve`; returns the process and its URI, which it has printed."""
        process = subprocess.Popen([str(QIMG), "serve", *words], cwd=self.dir, text=True, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env or plugin_env())
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(harness.kill_quietly, process)
        return process, process.stdout.readline().strip()

    def replace(self, *words, **kwargs):
        process, uri = self.begin("--replace", *words, **kwargs)
        self.assertTrue(uri, uri or process.communicate(timeout=60)[1])
        return process, uri

    def ended(self, process):
        self.assertEqual(process.wait(60), 0, process.stderr.read())
        self.assertNotIn("must be checked", process.stderr.read())

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        self.ended(process)

    def control(self):
        return f"control={self.path('qmp')}"

    def image(self, fmt="qcow2", name="disk"):
        return create(self.path(name), fmt, SIZE)

    def many(self, rounds, where, *words):
        fmt = "qed" if "qed" in words else "qcow2"
        image = self.image(fmt)
        words = ["disk", self.control(), *[word for word in words if word != "qed"]]
        process, uri = self.begin(*where, *words)
        part = SIZE // 3
        clients = [Reconnecting(uri, n * part, part, SEED + n) for n in range(3)]
        for _ in range(rounds):
            before = [client.flushes for client in clients]
            wait_until(lambda: all(client.failure or client.flushes > n + 3 for client, n in zip(clients, before)),
                       60, "clients go on")
            new, its_uri = self.replace(*words)
            self.assertEqual(its_uri, uri)
            self.ended(process)
            process = new
        for client in clients:
            client.stop()
            self.assertGreater(client.connections, rounds // 2)
        self.stop(process)
        check(image, fmt)
        got = content(image, fmt)
        for n, client in enumerate(clients):
            self.assertTrue(got[n * part:(n + 1) * part] == client.written, "what was flushed")
        return uri

    def test_ten_times_under_writers(self):
        """E-21: ten handovers while clients write: nothing is lost, and the last server removes the socket"""
        self.many(10, [])
        wait_until(lambda: not os.path.exists(self.path("disk.sock")), 20, "the end of the socket")
        self.assertEqual(sorted(os.listdir(self.dir)), ["disk"])

    def test_over_tcp(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.many(4, ["-p", port, "-a", "127.0.0.1"], "qed")

    def test_another_build(self):
        """an upgrade: the new program and plugin lie in another folder"""
        folder = pathlib.Path(self.path("new"))
        folder.mkdir()
        for file in ("qimg", "nbdkit-qimg-plugin.so"):
            shutil.copy2(BUILD / file, folder)
        self.image()
        process, uri = self.begin("disk", self.control())
        new = subprocess.Popen([str(folder / "qimg"), "serve", "--replace", "disk", self.control()], cwd=self.dir, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=plugin_env())
        self.addCleanup(new.stderr.close)
        self.addCleanup(new.stdout.close)
        self.addCleanup(harness.kill_quietly, new)
        self.assertEqual(new.stdout.readline().strip(), uri)
        self.ended(process)
        self.assertIn(str(folder), pathlib.Path(f"/proc/{new.pid}/maps").read_text())
        self.stop(new)

    def test_of_a_plain_nbdkit(self):
        """the old server is an nbdkit that wasn't started by qimg serve, with sockets for NBD and for commands"""
        image = self.image()
        server = self.serve(image, self.control())
        client = Reconnecting(server.uri, 0, SIZE, SEED)
        wait_until(lambda: client.failure or client.flushes > 2, 60, "the client goes on")
        process, uri = self.replace("disk", self.control())
        self.assertEqual(uri, server.uri)
        server.wait()
        flushes = client.flushes
        wait_until(lambda: client.failure or client.flushes > flushes + 3, 60, "the client goes on")
        client.stop()
        self.stop(process)
        self.assertTrue(content(image, "qcow2") == client.written)

    def test_qemu(self):
        """a QEMU client with reconnect-delay gets no error"""
        self.image()
        process, uri = self.begin("disk", self.control())
        argv = ["qemu-io", "--image-opts",
                f"driver=nbd,server.type=unix,server.path={self.path('disk.sock')},reconnect-delay=60"]
        for n in range(1, 201):
            argv += ["-c", f"write -q -P {n} {n * 64}k 64k", "-c", "flush", "-c", f"read -q -P {n} {n * 64}k 64k", "-c", "sleep 10"]
        with subprocess.Popen(argv, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as qemu:
            self.addCleanup(harness.kill_quietly, qemu)
            handovers = 0
            while qemu.poll() is None:
                new, _ = self.replace("disk", self.control())
                self.ended(process)
                process = new
                handovers += 1
            said = qemu.stdout.read()
            self.assertEqual((qemu.returncode, "fail" in said), (0, False), said)
        self.assertGreater(handovers, 2)
        self.stop(process)
        got = content(self.path("disk"), "qcow2")
        self.assertTrue(got[64 * KIB:201 * 64 * KIB] == b"".join(bytes([n]) * 64 * KIB for n in range(1, 201)))

    def test_folder(self):
        os.mkdir(self.path("images"))
        for name in "ab":
            self.image(name=f"images/{name}.qcow2")
        process, uri = self.begin("dir=images", self.control())
        self.assertIn("images.sock", uri)
        uri = uri.replace("///", "///a.qcow2")
        client = Reconnecting(uri, 0, SIZE, SEED)
        for _ in range(3):
            flushes = client.flushes
            wait_until(lambda: client.failure or client.flushes > flushes + 2, 60, "the client goes on")
            new, _ = self.replace("dir=images", self.control(), "linger=1")
            self.ended(process)
            process = new
        client.stop()
        self.stop(process)
        self.assertTrue(content(self.path("images/a.qcow2"), "qcow2") == client.written)

    def test_requests_under_limits_are_done(self):
        """requests that a limit would delay for years don't delay the handover, and don't fail"""
        self.image()
        process, uri = self.begin("disk", self.control())
        client = Reconnecting(uri, 0, SIZE, SEED)
        wait_until(lambda: client.failure or client.flushes > 2, 60, "the client goes on")
        with Qmp(self.path("qmp")) as qmp:
            qmp.send({"execute": "block_set_io_throttle", "arguments": {
                "device": "drive0", "bps": 1, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}})
            self.assertEqual(qmp.reply()["return"], {})
        new, _ = self.replace("disk", self.control())
        self.ended(process)
        flushes = client.flushes
        wait_until(lambda: client.failure or client.flushes > flushes + 3, 60, "the client goes on")
        client.stop()
        self.stop(new)

    def test_who_waits_for_the_new_one(self):
        """a client that connects while there is no server is served by the next"""
        self.image()
        process, uri = self.begin("disk", self.control())
        path = self.path("disk.sock")
        with Qmp(self.path("qmp")) as asking:
            stat = os.stat(self.path("disk"))
            asking.send({"execute": "x-qimg-handover",
                         "arguments": {"exports": [{"name": "", "device": stat.st_dev, "inode": stat.st_ino}]}})
            data, fds, _, _ = socket.recv_fds(asking.socket, 1, 4)
            self.assertEqual((data, len(fds)), (b" ", 1))
            self.assertEqual(asking.reply()["return"], {})
            waiting = socket.socket(socket.AF_UNIX)
            waiting.settimeout(20)
            waiting.connect(path)
            # Now no server has the image open, and it is clean; the control socket is removed.
            run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", self.path("disk"))
            check(self.path("disk"), "qcow2")
            self.assertFalse(os.path.exists(self.path("qmp")))
            for fd in fds:
                os.close(fd)
        # When that connection ends, the old server goes on and accepts the waiting client.
        self.assertEqual(waiting.recv(8), b"NBDMAGIC")
        waiting.close()
        handle = nbd.NBD()
        handle.connect_uri(uri)
        handle.pwrite(b"once more", 0)
        handle.flush()
        with Qmp(self.path("qmp")) as qmp:
            self.assertEqual(qmp.cmd("query-status")["status"], "running")
        handle.shutdown()
        self.stop(process)
        check(self.path("disk"), "qcow2")
        self.assertEqual(content(self.path("disk"), "qcow2")[:9], b"once more")

    def fails(self, *words, says=(), env=None):
        done = run(QIMG, "serve", "--replace", *words, check=False, cwd=self.dir, env=env or plugin_env(), timeout=120)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        for word in says:
            self.assertIn(word, done.stderr)

    def test_failures_leave_the_old_one(self):
        """whatever is wrong with the new server, the old one goes on, and its client gets no error"""
        self.image()
        self.image(name="other")
        process, uri = self.begin("disk", self.control())
        client = Reconnecting(uri, 0, SIZE, SEED)
        wait_until(lambda: client.failure or client.flushes > 0, 60, "the client goes on")
        for words, says in (
                (["missing", self.control()], ["missing", "nothing was replaced"]),
                (["disk", self.control(), "chache=none"], ["chache", "nothing was replaced"]),
                (["disk", self.control(), "format=qed"], ["nothing was replaced"]),
                (["disk", self.control(), "--", "--filter=nosuch"], ["nothing was replaced"]),
                (["other", self.control()], ["is served, and not by the other server"]),
                (["disk", "control=nowhere"], ["nowhere: cannot connect"]),
                (["disk"], ["needs control=PATH"]),
                (["disk", self.control(), "passphrase=-"], ["can't be asked for"]),
                (["-s", "x", "disk", self.control()], ["can't be used with it"]),
                (["disk", self.control(), "--", "-P", "pid"], ["-P itself"])):
            with self.subTest(words=words):
                before = client.connections
                self.fails(*words, says=says)
                self.assertIsNone(client.failure)
                self.assertEqual(client.connections, before)
        # A failure that only shows when the old server has given up the disk: the control socket can't be made.
        os.link(self.path("qmp"), self.path("twin"))
        for _ in range(3):
            before = client.connections
            self.fails("disk", f"control={self.path('twin')}", says=["the other server goes on", "cannot listen"])
            wait_until(lambda before=before: client.failure or client.connections > before, 60, "a new connection")
        flushes = client.flushes
        wait_until(lambda: client.failure or client.flushes > flushes + 3, 60, "the client goes on")
        client.stop()
        with Qmp(self.path("qmp")) as qmp:
            self.assertEqual(qmp.cmd("query-status")["status"], "running")
        self.stop(process)
        self.assertTrue(content(self.path("disk"), "qcow2") == client.written)

    def test_killed_amid(self):
        """the new server is killed at any moment: one of the two serves"""
        self.image()
        process, uri = self.begin("disk", self.control())
        client = Reconnecting(uri, 0, SIZE, SEED)
        for n in range(12):
            new = subprocess.Popen([str(QIMG), "serve", "--replace", "disk", self.control()], cwd=self.dir,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env=plugin_env(), start_new_session=True)
            time.sleep(0.03 * n)
            os.killpg(new.pid, signal.SIGKILL)
            new.wait()
            if process.poll() is not None:
                break
            flushes = client.flushes
            wait_until(lambda: client.failure or client.flushes > flushes or process.poll() is not None, 60, "somebody serves")
        if process.poll() is None:
            client.stop()
            self.stop(process)
            self.assertTrue(content(self.path("disk"), "qcow2") == client.written)
        # Otherwise the new server had taken over before it was killed.

    def test_what_is_refused(self):
        """a handover is refused while a job runs, and when the new server would serve other images"""
        self.image()
        target = create(self.path("target"), "raw", SIZE)
        process, uri = self.begin("disk", self.control())
        handle = nbd.NBD()
        handle.connect_uri(uri)
        handle.pwrite(b"x" * MIB, 0)
        with Qmp(self.path("qmp")) as qmp:
            qmp.cmd("drive-mirror", job_id="m", device="drive0", target=target, sync="full", format="raw", mode="existing", speed=1)
            self.fails("disk", self.control(), says=["job 'm' would be lost"])
            qmp.cmd("block-job-cancel", device="m", force=True)
            qmp.event("BLOCK_JOB_CANCELLED")
            qmp.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=self.path("over"), format="qcow2")
            handle.pwrite(b"y" * MIB, 0)
            self.fails("disk", self.control(), says=["over is served, and not by the other server"])
        handle.shutdown()
        new, its = self.replace("over", self.control())
        self.assertEqual(its, uri)
        self.ended(process)
        self.stop(new)
        self.assertEqual(content(self.path("over"), "qcow2")[:MIB], b"y" * MIB)

    def test_after_a_snapshot_and_back(self):
        """after a failed handover the old server serves the same image as before, not that of its start"""
        self.image()
        process, uri = self.begin("disk", self.control())
        with Qmp(self.path("qmp")) as qmp:
            qmp.cmd("blockdev-snapshot-sync", device="drive0", snapshot_file=self.path("over"), format="qcow2")
        handle = nbd.NBD()
        handle.connect_uri(uri)
        handle.pwrite(b"z" * MIB, 0)
        stat = os.stat(self.path("over"))
        with Qmp(self.path("qmp")) as asking:
            asking.cmd("x-qimg-handover", exports=[{"name": "", "device": stat.st_dev, "inode": stat.st_ino}])
        handle = nbd.NBD()
        handle.connect_uri(uri)
        self.assertEqual(bytes(handle.pread(MIB, 0)), b"z" * MIB)
        handle.shutdown()
        self.stop(process)
        check(self.path("over"), "qcow2")

    def given_back(self, *keys, changed=False):
        """A handover that fails, after commands have set limits, options and bitmaps: all must be as before.  Returns
        the bitmap's dirty bytes.  changed: another program writes to the image in between."""
        path = self.path("folder/disk") if "dir=folder" in keys else self.path("disk")
        stat = os.stat(path)
        folder = os.stat(self.path("folder")) if "dir=folder" in keys else None
        device = "disk" if folder else "drive0"
        process, uri = self.begin(*keys, self.control())
        handle = nbd.NBD()
        handle.connect_uri(uri.replace("///", f"///{device}") if folder else uri)
        with Qmp(self.path("qmp")) as qmp:
            qmp.cmd("block-dirty-bitmap-add", node=device, name="b", granularity=65536)
            qmp.cmd("block-dirty-bitmap-add", node=device, name="still", granularity=65536, disabled=True)
            handle.pwrite(b"x" * 10, 0, nbd.CMD_FLAG_FUA)
            qmp.send({"execute": "blockdev-reopen", "arguments": {"options": [
                {"node-name": device, "driver": "qcow2", "file": "x", "detect-zeroes": "on"}]}})
            self.assertIn("return", qmp.reply())
            limits = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 4000, "iops_wr": 0, "group": "g"}
            qmp.send({"execute": "block_set_io_throttle", "arguments": {"device": device, **limits}})
            self.assertIn("return", qmp.reply())
            described = {"device": stat.st_dev, "inode": stat.st_ino, "name": ""}
            with Qmp(self.path("qmp")) as asking:
                if folder:
                    asking.cmd("x-qimg-handover", folder={"device": folder.st_dev, "inode": folder.st_ino})
                else:
                    asking.cmd("x-qimg-handover", exports=[described])
                if changed:  # with the old modification time, as after a restored backup
                    before = os.stat(path)
                    harness.fill(path, "qcow2", [(0, b"y" * 10)])
                    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            handle = nbd.NBD()
            handle.connect_uri(uri.replace("///", f"///{device}") if folder else uri)
            handle.pwrite(b"z" * 10, 65536)

            def goes_on():
                try:
                    return qmp.cmd("query-status")
                except QmpError:
                    return False
            wait_until(goes_on, 60, "commands are taken")
            (disk,) = qmp.cmd("query-block")
            told = disk["inserted"]
            self.assertEqual((told["iops_rd"], told["group"], told["detect_zeroes"]), (4000, "g", "on"))
            bitmaps = {bitmap["name"]: bitmap for bitmap in told["dirty-bitmaps"]}
            self.assertEqual([(name, bitmap["recording"]) for name, bitmap in bitmaps.items()], [("b", True), ("still", False)])
            self.assertEqual(bitmaps["still"]["count"], 0)
        handle.shutdown()
        self.stop(process)
        check(path, "qcow2")
        return bitmaps["b"]["count"]

    def test_what_commands_said_is_given_back(self):
        """limits, options and bitmaps in memory survive; the bitmaps contain what others changed in between"""
        self.image()
        self.assertEqual(self.given_back("disk"), 2 * 65536)
        self.assertEqual(self.given_back("disk", "writable=on-connect"), 2 * 65536)
        self.assertEqual(self.given_back("disk", "writable=on-connect", changed=True), SIZE)
        os.mkdir(self.path("folder"))
        create(self.path("folder/disk"), "qcow2", SIZE)
        self.assertEqual(self.given_back("dir=folder"), 2 * 65536)

    def test_bitmaps_of_a_disk_that_is_served_read_only(self):
        """a bitmap of a read-only disk is all dirty after a failed handover if the image was changed in between"""
        for changed in (False, True):
            with self.part(changed=changed):
                self.image()
                process, _ = self.begin("-r", "disk", self.control())
                stat = os.stat(self.path("disk"))
                with Qmp(self.path("qmp")) as qmp:
                    qmp.cmd("block-dirty-bitmap-add", node="drive0", name="b", granularity=65536)
                    with Qmp(self.path("qmp")) as asking:
                        asking.cmd("x-qimg-handover", exports=[{"name": "", "device": stat.st_dev, "inode": stat.st_ino}])
                        if changed:
                            harness.fill(self.path("disk"), "qcow2", [(0, b"y" * 10)])

                    def taken():
                        try:
                            return qmp.cmd("query-block")
                        except QmpError:
                            return False
                    wait_until(taken, 60, "commands are taken")
                    (bitmap,) = taken()[0]["inserted"]["dirty-bitmaps"]
                    self.assertEqual((bitmap["name"], bitmap["recording"], bitmap["count"]), ("b", True, SIZE if changed else 0))
                self.stop(process)

    def test_passphrases(self):
        """passphrases are read twice: by the new server's trial run, and by the server itself"""
        harness.create_encrypted(self.path("disk"), SIZE, "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
        process, uri = self.begin("disk", self.control(), "passphrase=sesame")
        new, its = self.replace("disk", self.control(), "passphrase=sesame")
        self.assertEqual(its, uri)
        self.ended(process)
        for word in "-{}", "+/dev/fd/{}":
            new = self.replace_with_pipe(uri, new, word)
        new.send_signal(signal.SIGTERM)
        self.assertEqual(new.wait(60), 0)

    def replace_with_pipe(self, uri, old, word):
        read, write = os.pipe()
        os.write(write, b"sesame\n")
        os.close(write)
        new = subprocess.Popen([str(QIMG), "serve", "--replace", "disk", self.control(), f"passphrase={word.format(read)}"], cwd=self.dir,
                               text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[read],
                               env=plugin_env())
        self.addCleanup(new.stdout.close)
        self.addCleanup(new.stderr.close)
        self.addCleanup(harness.kill_quietly, new)
        os.close(read)
        self.assertEqual(new.stdout.readline().strip(), uri)
        self.ended(old)
        return new


if __name__ == "__main__":
    unittest.main()
