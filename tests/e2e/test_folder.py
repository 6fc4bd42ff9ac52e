# SPDX-License-Identifier: BSD-3-Clause
"""One server with many images: the images of a folder (dir=), and named ones (export=)."""

import concurrent.futures
import contextlib
import ctypes
import os
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time

import nbd

from damage import damages
from harness import KIB, LONG, MIB, QIMG, SECTOR, SEED, Case, StartFailed, check, content, create, fill, freeze, nbdkit_version, run
from qmp import Qmp, QmpError

SIZE = 4 * MIB
ROUNDS = int(os.environ.get("QIMG_ROUNDS", "1"))
SECRET = b"outside" * 1000


def is_free(path, fmt="qcow2"):
    """Can qemu-io open the image for writing, which needs that nobody else has it open?"""
    return run("qemu-io", "-f", fmt, "-c", "read -q 0 512", path, check=False).returncode == 0


def open_files(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def resident(server):
    """The server's anonymous memory in bytes."""
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) * KIB


class Folder(Case):
    def setUp(self):
        super().setUp()
        self.folder = self.path("images")
        os.mkdir(self.folder)

    def refused_command(self, client, text, command, **arguments):
        with self.assertRaises(QmpError) as failed:
            client.cmd(command, **arguments)
        self.assertIn(text, str(failed.exception))

    def image(self, name, fmt="qcow2", byte=None, **kwargs):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        create(path, fmt, SIZE, **kwargs)
        if byte is not None:
            fill(path, fmt, [(0, bytes([byte]) * SECTOR)])
        return path

    def serve_folder(self, *keys, **kwargs):
        return self.serve(None, f"dir={self.folder}", *keys, **kwargs)

    def refused(self, server, name):
        with self.assertRaises(nbd.Error, msg=name):
            server.connect(name)

    def await_true(self, test, what):
        limit = time.monotonic() + 60
        while not test():
            self.assertLess(time.monotonic(), limit, what)
            time.sleep(0.01)


class Names(Folder):
    def test_relative_names(self):
        """E-01"""
        self.image("disk.qcow2", byte=1)
        self.image("vm7/root.qed", "qed", byte=2)
        self.image("vm7/deep/er/a b.qcow2", byte=3)
        pathlib.Path(self.folder, "README").write_text("no image")
        server = self.serve_folder()
        self.assertEqual(sorted(server.exports()), ["disk.qcow2", "vm7/deep/er/a b.qcow2", "vm7/root.qed"])
        for name, byte in ("disk.qcow2", 1), ("vm7/root.qed", 2), ("vm7/deep/er/a b.qcow2", 3):
            self.assertEqual(server.connect(name).pread(1, 0)[0], byte, name)
        for name in "", "disk", "vm7", "vm7/", "README", "vm7/none.qcow2", "disk.qcow2/none", "x" * 4000:
            self.refused(server, name)
        self.assertIn("raw is never guessed", server.errors)
        server.stop()

    def test_snapshots_of_an_image(self):
        """E-01"""
        path = self.image("vm/disk.qcow2", byte=1)
        run("qemu-img", "snapshot", "-c", "first", path)
        fill(path, "qcow2", [(0, b"\2" * SECTOR)])
        server = self.serve_folder()
        self.assertEqual(server.connect("vm/disk.qcow2/snapshot/first").pread(1, 0)[0], 1)
        self.assertEqual(server.connect("vm/disk.qcow2").pread(1, 0)[0], 2)
        self.assertEqual(sorted(server.exports()), ["vm/disk.qcow2", "vm/disk.qcow2/snapshot/first"])
        self.refused(server, "vm/disk.qcow2/snapshot/second")
        server.stop()

    def test_hidden(self):
        self.image("disk.qcow2", byte=1)
        server = self.serve_folder("exports=hide")
        self.assertEqual(sorted(server.exports()), [])
        self.assertEqual(server.connect("disk.qcow2").pread(1, 0)[0], 1)

    def test_what_a_refused_client_is_told(self):
        """From version 1.42 on nbdkit sends the last error message to the client.  It must not tell where images lie,
        which others there are, or whether the host has a file that an image names; the log may."""
        self.image("disk.qcow2", byte=1)
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/none", "-F", "raw",
            os.path.join(self.folder, "odd.qcow2"), "1M")
        server = self.serve_folder("exports=hide")
        for name, logged in (("nope", "no image of that name is in"), ("odd.qcow2", "/etc/none: cannot be opened"),
                             ("disk.qcow2/snapshot/first", f"{self.folder}/disk.qcow2: there is no snapshot")):
            with self.assertRaises(nbd.Error) as caught:
                server.connect(name)
            self.assertIn(logged, server.errors)
            told = str(caught.exception)
            for secret in (self.folder, "/etc", *({"disk.qcow2"} - {name.split("/")[0]})):
                self.assertNotIn(secret, told)
            if nbdkit_version() >= (1, 42):
                self.assertIn(f"export '{name}': No such file or directory", told)

    def test_raw_images_when_told_so(self):
        path = os.path.join(self.folder, "disk.img")
        pathlib.Path(path).write_bytes(b"\5" * SIZE)
        server = self.serve_folder("format=raw")
        self.assertEqual(sorted(server.exports()), ["disk.img"])
        self.assertEqual(server.connect("disk.img").pread(1, 0)[0], 5)

    def test_names_that_lead_out(self):
        """E-02"""
        self.image("disk.qcow2", byte=1)
        outside = create(self.path("outside.qcow2"), "qcow2", SIZE)
        os.mkdir(self.path("other"))
        create(self.path("other/disk.qcow2"), "qcow2", SIZE)
        for name, target in (("link", "../outside.qcow2"), ("absolute", outside), ("folder", "../other"),
                             ("absolute-folder", self.path("other")), ("twice", "link"),
                             ("self", self.folder + "/disk.qcow2"), ("loop", "loop"), ("inside", "disk.qcow2"),
                             ("proc", f"/proc/self/root{outside}")):
            os.symlink(target, os.path.join(self.folder, name))
        for references in "any", "dir", "none":
            with self.subTest(references=references):
                server = self.serve_folder(f"references={references}")
                for name in ("../outside.qcow2", outside, "link", "absolute", "folder/disk.qcow2", "absolute-folder/disk.qcow2",
                             "twice", "self", "loop", "proc", "./disk.qcow2", "/disk.qcow2", "disk.qcow2/", "x/../disk.qcow2",
                             "vm//disk.qcow2", "..", ".", "/", "folder/../disk.qcow2", "../images/disk.qcow2"):
                    self.refused(server, name)
                if references == "none":
                    self.refused(server, "inside")
                else:
                    self.assertEqual(server.connect("inside").pread(1, 0)[0], 1)
                    self.assertIn("leads out of the folder", server.errors)
                self.assertEqual([name for name in sorted(server.exports()) if name not in ("disk.qcow2", "inside")], [])
                server.stop()

    def test_what_is_no_file(self):
        """E-02"""
        os.mkfifo(os.path.join(self.folder, "fifo"))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.join(self.folder, "socket"))
            os.mkdir(os.path.join(self.folder, "folder"))
            server = self.serve_folder("format=raw")
            self.assertEqual(sorted(server.exports()), [])
            for name in "fifo", "socket", "folder":
                self.refused(server, name)
        self.assertIn("fifo: is a FIFO, not a regular file or block device", server.errors)
        server.stop()

    def test_strange_names(self):
        """E-02: a file whose name has any bytes is served under that name or not at all, and output that contains the
        name is well-formed"""
        control = self.path("control")
        strange = ['a"b\\c', "line\nfeed", "tab\t", "\x1b[31mred", "\u00e4\u6f22", "{label=\"x\"}", "x" * 250, "-rf", "%s%n", "a b"]
        for name in strange:
            self.image(name, byte=len(name))
        with open(os.path.join(self.folder, strange[0]), "rb") as image:
            pathlib.Path(os.fsdecode(os.path.join(os.fsencode(self.folder), b"\xff\xfe"))).write_bytes(image.read())
        server = self.serve_folder(f"control={control}")
        seen = sorted(server.exports())
        self.assertEqual([name for name in seen if name in strange], sorted(strange))
        handles = []
        for name in strange:
            handles.append(server.connect(name))
            self.assertEqual(handles[-1].pread(1, 0)[0], len(name), name)
        client = Qmp(control)
        self.addCleanup(client.close)
        self.assertEqual(sorted(disk["device"] for disk in client.cmd("query-block")), sorted(strange))
        page = run(QIMG, "metrics", "--control", control).stdout
        for line in page.rstrip("\n").split("\n"):
            self.assertRegex(line, r'^(# .*|\w+(\{(\w+="([^"\\\n]|\\[\\"n])*",?)*\})? [-+.\deE]+)$')
        server.stop()

    def test_two_names_of_one_file(self):
        """E-02: a file can't be opened for writing by two names at once"""
        path = self.image("disk.qcow2", byte=1)
        os.link(path, os.path.join(self.folder, "other.qcow2"))
        os.symlink("disk.qcow2", os.path.join(self.folder, "link.qcow2"))
        server = self.serve_folder("linger=0")
        first = server.connect("disk.qcow2")
        for name in "other.qcow2", "link.qcow2":
            self.refused(server, name)
        first.pwrite(b"\2" * SECTOR, 0)
        first.shutdown()
        self.await_true(lambda: is_free(path), "it is closed")
        self.assertEqual(server.connect("other.qcow2").pread(1, 0)[0], 2)
        server.stop()
        check(path, "qcow2")

    def test_folders_that_change_places(self):
        """E-02: no file outside the folder is served while folders are renamed and links change."""
        vm = os.path.join(self.folder, "vm")
        os.mkdir(vm)
        pathlib.Path(vm, "disk").write_bytes(b"i" * 7000)
        os.mkdir(self.path("outside"))
        pathlib.Path(self.path("outside/disk")).write_bytes(SECRET)
        os.symlink("../outside", os.path.join(self.folder, "swap"))
        stop, libc = threading.Event(), ctypes.CDLL(None, use_errno=True)

        def exchange():
            while not stop.is_set():
                libc.renameat2(-100, vm.encode(), -100, os.path.join(self.folder, "swap").encode(), 2)

        server = self.serve_folder("format=raw", "linger=0", nbdkit=["-r"])
        thread = threading.Thread(target=exchange)
        thread.start()
        seen = {True: 0, False: 0}
        try:
            for _ in range(200 * ROUNDS):
                try:
                    handle = server.connect("vm/disk")
                except nbd.Error:
                    seen[False] += 1
                    continue
                self.assertEqual(handle.pread(7, 0), b"iiiiiii")
                handle.shutdown()
                seen[True] += 1
        finally:
            stop.set()
            thread.join()
        self.assertTrue(all(seen.values()), seen)


class Commanded(Folder):
    """Changes that commands made to an image of the folder aren't lost when its last client leaves."""

    def start(self, *keys):
        self.path_of = self.image("disk.qcow2", byte=1)
        server = self.serve_folder("linger=0.1", f"control={self.path('control')}", *keys)
        client = Qmp(self.path("control"))
        self.addCleanup(client.close)
        return server, client

    def test_another_file_is_served(self):
        """E-08: after a snapshot the export can't be removed: the next client would get the file of that name, which
        is now a backing file, and write to it"""
        server, client = self.start()
        handle = server.connect("disk.qcow2")
        client.cmd("blockdev-snapshot-sync", device="disk.qcow2", snapshot_file=self.path("over.qcow2"))
        handle.pwrite(b"2" * SECTOR, 0, nbd.CMD_FLAG_FUA)
        for mode in "safe", "hard":
            self.refused_command(client, "another file is served than the one of that name", "block-export-del",
                                 id="disk.qcow2", mode=mode)
        server.disconnect()
        time.sleep(0.5)  # longer than linger=
        self.assertEqual(server.connect("disk.qcow2").pread(1, 0), b"2")
        server.stop()
        self.assertEqual(content(self.path_of, "qcow2")[:1], b"\x01")

    def test_removed_and_still_in_use(self):
        """E-08: an export that was removed but is still in use isn't opened a second time, with or without locks"""
        for lock in "on", "off":
            with self.subTest(lock=lock):
                server, client = self.start(f"lock={lock}")
                handle = server.connect("disk.qcow2")
                handle.pwrite(b"a" * SECTOR, MIB)
                client.cmd("block-export-del", id="disk.qcow2", mode="hard")
                self.refused(server, "disk.qcow2")
                self.assertIn("export 'disk.qcow2' is on its way out: clients still use it", server.errors)
                handle.pwrite(b"b" * SECTOR, 0)
                server.disconnect()
                self.await_true(lambda: is_free(self.path_of), "it is closed")  # pylint: disable=cell-var-from-loop
                self.assertEqual(server.connect("disk.qcow2").pread(1, 0), b"b")
                server.stop()
                client.close()

    def test_what_a_command_said_is_remembered(self):
        """E-03: an image with a bitmap in memory stays open as long as the server runs"""
        server, client = self.start()
        handle = server.connect("disk.qcow2")
        client.cmd("block-dirty-bitmap-add", node="disk.qcow2", name="b", granularity=65536)
        handle.pwrite(b"2" * SECTOR, 0)
        server.disconnect()
        time.sleep(0.5)
        self.assertFalse(is_free(self.path_of))
        (bitmap,) = client.cmd("query-block")[0]["inserted"]["dirty-bitmaps"]
        self.assertEqual((bitmap["name"], bitmap["count"]), ("b", 65536))
        server.stop()

    def test_a_bitmap_that_was_removed_keeps_nothing_open(self):
        """E-03"""
        server, client = self.start()
        server.connect("disk.qcow2")
        for name in "a", "b":
            client.cmd("block-dirty-bitmap-add", node="disk.qcow2", name=name)
        with self.assertRaises(QmpError):
            client.cmd("transaction", actions=[{"type": "block-dirty-bitmap-add", "data": {"node": "disk.qcow2", "name": "c"}},
                                               {"type": "abort", "data": {}}])
        client.cmd("block-dirty-bitmap-remove", node="disk.qcow2", name="a")
        server.disconnect()
        time.sleep(0.5)
        self.assertFalse(is_free(self.path_of))
        client.cmd("block-dirty-bitmap-remove", node="disk.qcow2", name="b")
        self.await_true(lambda: is_free(self.path_of), "it is closed")
        server.stop()

    def test_what_is_remembered_of_a_file_that_is_gone(self):
        """E-03: an image with a bitmap in memory was replaced by another file: a new client gets neither of them until
        the export is removed"""
        server, client = self.start()
        server.connect("disk.qcow2")
        client.cmd("block-dirty-bitmap-add", node="disk.qcow2", name="b")
        server.disconnect()
        os.rename(self.image("new", byte=2), self.path_of)
        self.refused(server, "disk.qcow2")
        self.assertIn("another file has its name by now", server.errors)
        client.cmd("block-export-del", id="disk.qcow2")
        self.assertEqual(server.connect("disk.qcow2").pread(1, 0)[0], 2)
        server.stop()

    def test_what_the_image_keeps_needs_no_server(self):
        """E-03"""
        server, client = self.start()
        server.connect("disk.qcow2")
        client.cmd("block-dirty-bitmap-add", node="disk.qcow2", name="b", persistent=True)
        server.disconnect()
        self.await_true(lambda: is_free(self.path_of), "it is closed")
        server.stop()


class Life(Folder):
    def test_opened_by_the_first_and_closed_after_the_last(self):
        """E-03"""
        path = self.image("disk.qed", "qed")
        server = self.serve_folder("linger=0.2")
        self.refused(server, "none")  # an answer shows that the server has started completely
        before = open_files(server)
        self.assertTrue(is_free(path, "qed"))
        for round_ in range(3):
            first, second = server.connect("disk.qed"), server.connect("disk.qed")
            first.pwrite(bytes([round_ + 1]) * SECTOR, round_ * 64 * KIB)
            first.shutdown()
            self.assertEqual(second.pread(1, round_ * 64 * KIB)[0], round_ + 1)
            self.assertFalse(is_free(path, "qed"))
            second.shutdown()
            self.await_true(lambda: is_free(path, "qed"), "it is closed")
            check(path, "qed")  # the mark is cleared, too
        self.await_true(lambda: open_files(server) <= before, "its files are closed")
        server.stop()

    def test_stays_open_while_it_lingers(self):
        """E-03"""
        path = self.image("disk.qcow2")
        server = self.serve_folder("linger=1000")
        server.connect("disk.qcow2").pwrite(b"a" * SECTOR, 0)
        server.disconnect()
        self.assertFalse(is_free(path))
        self.assertEqual(server.connect("disk.qcow2").pread(1, 0), b"a")
        server.stop()
        check(path, "qcow2")

    def test_another_file_takes_the_name(self):
        """E-03: the file is replaced: clients get the old file until it has been closed, and then the new one"""
        path = self.image("disk.qcow2", byte=1)
        self.image("new", byte=2)
        server = self.serve_folder("linger=0.1")
        first = server.connect("disk.qcow2")
        os.link(path, self.path("old"))
        os.rename(os.path.join(self.folder, "new"), path)
        self.assertEqual(first.pread(1, 0)[0], 1)
        self.assertEqual(server.connect("disk.qcow2").pread(1, 0)[0], 1)
        server.disconnect()
        self.await_true(lambda: is_free(self.path("old")), "it is closed")
        self.assertEqual(server.connect("disk.qcow2").pread(1, 0)[0], 2)
        os.rename(path, self.path("new"))
        server.disconnect()
        self.await_true(lambda: is_free(self.path("new")), "it is closed")
        self.refused(server, "disk.qcow2")
        server.stop()

    def test_another_file_takes_the_name_of_one_that_lingers(self):
        """E-03: an image that is open without clients is replaced: a new client gets the new file"""
        path = self.image("disk.qcow2", byte=1)
        server = self.serve_folder("linger=1000")
        server.connect("disk.qcow2").pwrite(b"old", MIB)
        server.disconnect()
        os.link(path, self.path("old"))
        os.rename(self.image("new", byte=2), path)
        with concurrent.futures.ThreadPoolExecutor(8) as several:
            handles = list(several.map(lambda _: server.connect("disk.qcow2"), range(8)))
        self.assertEqual({bytes(handle.pread(1, 0)) for handle in handles}, {b"\2"})
        self.assertTrue(is_free(self.path("old")))
        handles[0].pwrite(b"new", MIB, nbd.CMD_FLAG_FUA)
        server.disconnect()
        os.unlink(path)
        self.refused(server, "disk.qcow2")
        self.image("disk.qcow2", byte=3)
        self.assertEqual(server.connect("disk.qcow2").pread(1, 0)[0], 3)
        server.stop()
        check(self.path("old"), "qcow2")
        self.assertEqual(content(self.path("old"), "qcow2")[MIB:MIB + 3], b"old")

    def test_many_at_once(self):
        """E-04: clients of an image that is just being opened wait for that, instead of opening it again."""
        self.image("base.qcow2", byte=7)
        log = self.path("log")
        base = self.serve_nbd("--filter=log", "--filter=delay", "file", os.path.join(self.folder, "base.qcow2"),
                              f"logfile={log}", "rdelay=200ms")
        for name in "one.qcow2", "crowd.qcow2":
            self.image(name)
            run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", f"nbd+unix:///?socket={base}",
                os.path.join(self.folder, name))
        server = self.serve_folder()

        def connections():
            return pathlib.Path(log).read_text().count(" Connect ")

        self.assertEqual(server.connect("one.qcow2").pread(1, 0)[0], 7)
        of_one = connections()
        seen = []
        threads = [threading.Thread(target=lambda: seen.append(server.connect("crowd.qcow2").pread(1, 0)[0]))
                   for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(seen, [7] * 8)
        self.assertLess(connections(), of_one + len(threads))

    def serve_nbd(self, *argv):
        """Starts another nbdkit, the server of a base; returns its socket."""
        path = self.path(f"nbd{random.getrandbits(40):x}")
        process = subprocess.Popen(["nbdkit", "-f", "-U", path, *argv], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.await_true(lambda: os.path.exists(path), "it listens")
        self.nbd_process = process
        return path

    def test_a_server_below_that_hangs(self):
        """E-05"""
        self.image("good.qcow2", byte=1)
        base = self.serve_nbd("memory", "16M")
        for name in "slow.qcow2", "late.qcow2":
            self.image(name)
            run("qemu-img", "rebase", "-u", "-F", "raw", "-b", f"nbd+unix:///?socket={base}",
                os.path.join(self.folder, name))
        server = self.serve_folder()
        slow = server.connect("slow.qcow2")
        freeze(self.nbd_process)
        cookie = slow.aio_pread(nbd.Buffer(SECTOR), 0)  # one request hangs in a read
        threading.Thread(target=lambda: contextlib.suppress(nbd.Error) and self.try_connect(server, "late.qcow2"),
                         daemon=True).start()  # and one client in the opening of an image
        for _ in range(20):
            handle = server.connect("good.qcow2")
            handle.pwrite(b"x" * SECTOR, 64 * KIB)
            handle.flush()
            self.assertEqual(handle.pread(1, 0)[0], 1)
            handle.shutdown()
        self.assertFalse(slow.aio_command_completed(cookie))
        server.stop(disconnect=False)
        self.assertEqual(content(os.path.join(self.folder, "good.qcow2"), "qcow2")[64 * KIB:64 * KIB + 1], b"x")

    @staticmethod
    def try_connect(server, name):
        with contextlib.suppress(nbd.Error):
            server.connect(name)

    def test_a_locked_one(self):
        """E-05"""
        path = self.image("locked.qcow2")
        self.image("good.qcow2", byte=1)
        server = self.serve_folder()
        other = self.serve(path, "writable=now")
        self.refused(server, "locked.qcow2")
        self.assertIn("locked.qcow2", server.errors)
        self.assertEqual(server.connect("good.qcow2").pread(1, 0)[0], 1)
        other.stop()
        server.connect("locked.qcow2").pwrite(b"a" * SECTOR, 0)
        server.stop()

    def test_short_of_files(self):
        """E-03: when file descriptors run short, images without clients are closed early."""
        for number in range(40):
            self.image(f"{number}.qcow2", byte=number)
        server = self.serve_folder("linger=1000", nbdkit=["-t", "1"], prefix=["prlimit", "--nofile=60:60"])
        for number in range(40):
            handle = server.connect(f"{number}.qcow2")
            self.assertEqual(handle.pread(1, 0)[0], number)
            handle.shutdown()
        server.stop()


class Crowd(Folder):
    TIMEOUT = 900
    IMAGES = 100 if ROUNDS == 1 and not LONG else 1000

    def test_damaged_ones_among_them(self):
        """E-05"""
        good = self.image("good.qcow2", byte=9)
        made = []
        for number, damage in enumerate(damages(self.path("."))):
            if "data-file" in damage.name or number % (1 if ROUNDS > 1 else 9):
                continue
            made.append(f"{number}")
            damage.make(os.path.join(self.folder, made[-1]))
        server = self.serve_folder("linger=0", "passphrase=sesame")
        opened = 0
        for name in made:
            with contextlib.suppress(nbd.Error):
                handle = server.connect(name)
                opened += 1
                with contextlib.suppress(nbd.Error):
                    handle.pread(64 * KIB, 0)
                    handle.pwrite(b"x" * SECTOR, 0)
                    handle.flush()
                handle.shutdown()
            fine = server.connect("good.qcow2")
            self.assertEqual(fine.pread(1, 0)[0], 9)
            fine.pwrite(b"\x09", 0)
            fine.shutdown()
        self.assertTrue(0 < opened < len(made), (opened, len(made)))
        server.stop()
        check(good, "qcow2")

    def make_crowd(self, n):
        first = self.image("0.qcow2")
        for number in range(1, n):
            run("cp", "--sparse=always", first, os.path.join(self.folder, f"{number}.qcow2"))

    def connect(self, server, name):
        handle = nbd.NBD()
        handle.set_export_name(name)
        handle.connect_unix(server.socket)
        return handle

    def test_a_thousand(self):
        """E-06: a thousand images and connections: memory is bounded, and is given back."""
        n, rng = self.IMAGES, random.Random(SEED)
        self.make_crowd(n)
        server = self.serve_folder("linger=0", nbdkit=["-t", "1"])
        self.refused(server, "none")  # an answer shows that the server has started completely
        files, closed = open_files(server), resident(server)
        handles = [self.connect(server, f"{number}.qcow2") for number in range(n)]
        opened = resident(server)
        written = {}
        for _ in range(4):
            for number in rng.sample(range(n), min(n, 50)):
                off, data = rng.randrange(SIZE // SECTOR) * SECTOR, rng.randbytes(SECTOR)
                handles[number].pwrite(data, off)
                written.setdefault(number, {})[off] = data
                handles[number].flush()
        for number, sectors in written.items():
            for off, data in sectors.items():
                self.assertEqual(handles[number].pread(SECTOR, off), data)
        for handle in handles:
            handle.shutdown()
        self.await_true(lambda: open_files(server) <= files, "all files are closed")
        self.assertLess((opened - closed) / n, 2 * MIB)

        def given_back():  # the server gives memory back when it has closed its last image
            self.connect(server, "0.qcow2").shutdown()
            return (resident(server) - closed) / n < 16 * KIB + 2 * MIB / n

        self.await_true(given_back, "their memory is given back")
        print(f"{n} images: {(opened - closed) / n / KIB:.1f} KiB for each that is open, with its connection, "
              f"{(resident(server) - closed) / n / KIB:.1f} KiB for each that isn't any more")
        server.stop()
        for number in rng.sample(sorted(written), 10):
            check(os.path.join(self.folder, f"{number}.qcow2"), "qcow2")

    def test_killed(self):
        """E-06: after kill -9 every image has what was flushed."""
        n, rng = 20, random.Random(SEED)
        self.make_crowd(n)
        server = self.serve_folder(nbdkit=["-t", "1"])
        handles = [self.connect(server, f"{number}.qcow2") for number in range(n)]
        for number, handle in enumerate(handles):
            handle.pwrite(bytes([number + 1]) * SECTOR, 0)
            handle.flush()
            handle.pwrite(b"?" * SECTOR, rng.randrange(1, 16) * 64 * KIB)
        server.kill()
        for number in range(n):
            path = os.path.join(self.folder, f"{number}.qcow2")
            check(path, "qcow2", allow_leaks=True)
            self.assertEqual(content(path, "qcow2")[:SECTOR], bytes([number + 1]) * SECTOR)


class Named(Folder):
    def test_by_name(self):
        """E-07"""
        first, second = self.image("first.qcow2", byte=1), self.image("second.qed", "qed", byte=2)
        server = self.serve(None, f"export=:{first}", f"export=data/b:{second}")
        self.assertEqual(sorted(server.exports()), ["", "data/b"])
        self.assertEqual(server.connect().pread(1, 0)[0], 1)
        self.assertEqual(server.connect("data/b").pread(1, 0)[0], 2)
        self.refused(server, "second.qed")
        server.stop()

    def test_words_that_are_refused(self):
        """E-07"""
        first = self.image("first.qcow2")
        for keys, message in (((f"export=a:{first}", f"export=a:{self.image('x.qcow2')}"), "there is one of that name already"),
                              (("export=first.qcow2",), "must be NAME:IMAGE"), (("export=a:",), "must be NAME:IMAGE"),
                              (("export=a:/nowhere",), "/nowhere: cannot be opened"),
                              ((f"file={first}", f"dir={self.folder}"), "only one of them"),
                              ((f"export=a:{first}", f"dir={self.folder}"), "only one of them"),
                              ((f"dir={first}",), "Not a directory"), (("dir=/nowhere/at/all",), "No such file"),
                              (("dir=",), "the name of a folder"),
                              ((f"dir={self.folder}", "node-name=x"), "node-name: is about one image"),
                              ((f"dir={self.folder}", "snapshot=x"), "snapshot: is about one image"),
                              ((f"dir={self.folder}", "linger=-1"), "linger=-1: must be a number of seconds"),
                              ((f"dir={self.folder}", "exports=no"), "must be list or hide")):
            with self.subTest(keys=keys), self.assertRaises(StartFailed) as failed:
                self.serve(None, *keys)
            self.assertIn(message, failed.exception.errors)
