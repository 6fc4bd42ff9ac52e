# SPDX-License-Identifier: BSD-3-Clause
"""Images whose file doesn't hold the data as the guest sees it: passphrases, data files and compression, as
users ask for them by parameters."""

import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import threading
import unittest

from harness import *
from qmp import Qmp

SIZE = 4 * MIB
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
AES = "encrypt.format=aes,encrypt.key-secret=s"
WORD = "sesame"  # the passphrase of create_encrypted


def unlocked(path, secret=WORD):
    """The arguments with which QEMU's tools open an encrypted image."""
    return ["--object", f"secret,id=s,data={secret}", "--image-opts", f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"]


def qemu_io(path, *commands):
    run("qemu-io", *[word for c in commands for word in ("-c", c)], *unlocked(path))


class CodedCase(Case):
    def setUp(self):
        super().setUp()
        self.password = self.path("password")
        pathlib.Path(self.password).write_text(WORD + "\n", encoding="utf-8")

    def encrypted(self, name="disk", options=LUKS, size=SIZE):
        """An encrypted image with 64 KiB of 0xa5 at 1 MiB."""
        path = self.path(name)
        create_encrypted(path, size, options)
        qemu_io(path, "write -P 0xa5 1M 64k")
        return path

    def expect(self, server, byte=b"\xa5", at=MIB):
        self.assertEqual(bytes(server.connect().pread(64 * KIB, at)), byte * 64 * KIB)
        server.stop()


    def commit(self):
        """Commits the top layer into its base; afterwards the base is served."""
        with Qmp(self.path("qmp")) as qmp:
            qmp.cmd("block-commit", device="drive0", job_id="j")
            qmp.event("BLOCK_JOB_READY")
            qmp.cmd("block-job-complete", device="j")
            qmp.event("BLOCK_JOB_COMPLETED")


@unittest.skipIf(STANDIN, "needs the plugin")
class Passphrases(CodedCase):
    def test_forms(self):
        """passphrase=+FILE, without the file's last newline, and passphrase=TEXT; for both methods of encryption."""
        for options in (LUKS, AES):
            with self.part(options=options):
                pathlib.Path(self.password).write_text(WORD + "\n", encoding="utf-8")
                disk = self.encrypted(options=options)
                for form in (f"passphrase=+{self.password}", f"passphrase={WORD}"):
                    self.expect(self.serve(disk, form))

    def test_descriptor(self):
        """passphrase=-FD: read from a descriptor, by nbdkit and by qimg serve, which uses descriptor 3 itself."""
        disk = self.encrypted()
        out, into = os.pipe()
        os.write(into, f"{WORD}\n".encode())
        os.close(into)
        with open(out, "rb") as file:
            done = subprocess.run(["nbdkit", "-U", "-", PLUGIN, disk, f"passphrase=-{file.fileno()}", "--run",
                                   "nbdinfo --size $uri"], capture_output=True, text=True, pass_fds=[file.fileno()],
                                  env=plugin_env(LSAN_OPTIONS="detect_leaks=0"), timeout=60)
        self.assertEqual(done.stdout.strip(), str(SIZE), done.stderr)
        done = run("bash", "-c", f'{QIMG} serve -s {self.path("sock")} {disk} passphrase=-3 3<{self.password}', check=False,
                   env=plugin_env(LSAN_OPTIONS="detect_leaks=0"))
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("passphrase=-3: descriptor 3 is the socket's", done.stderr)
        done = run("bash", "-c", f'{QIMG} serve --run "nbdinfo --size \\$uri" {disk} passphrase=-7 7<{self.password}',
                   env=plugin_env(LSAN_OPTIONS="detect_leaks=0"))
        self.assertEqual(done.stdout.strip(), str(SIZE), done.stderr)

    def test_wrong_or_missing(self):
        disk = self.encrypted()
        before = sha256(disk)
        self.refused(disk, words=["encrypted", "LUKS", "passphrase is needed"])
        self.refused(disk, "passphrase=secret", words=["passphrase opens none of the 1 key slots"])
        self.refused(disk, "passphrase=", words=["passphrase opens none"])
        self.refused(disk, f"passphrase=+{self.path('nothing')}", name=False, words=["nothing: No such file"])
        self.refused(disk, f"passphrase={WORD}", f"passphrase={WORD}", name=False, words=["passphrase: was given twice"])
        self.assertEqual(sha256(disk), before)

    def test_not_encrypted(self):
        """A passphrase for an image that isn't encrypted is refused: the user believes that it is."""
        plain = create(self.path("plain"), "qcow2", SIZE)
        self.refused(plain, "passphrase=x", words=["passphrase: the image isn't encrypted"])
        raw = create(self.path("raw"), "raw", SIZE)
        self.refused(raw, "format=raw", "passphrase=x", words=["passphrase: the image isn't encrypted"])

    def test_layers(self):
        """passphrase.N is for the N-th file below the image."""
        self.encrypted("base")
        middle = self.path("middle")
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "qcow2", middle, str(SIZE))
        top = self.path("top")
        create_encrypted(top, SIZE, f"{LUKS},backing_file=middle,backing_fmt=qcow2")
        keys = [f"passphrase=+{self.password}", f"passphrase.2=+{self.password}"]
        self.expect(self.serve(top, *keys))
        self.refused(top, keys[0], name=False, words=["middle: backing file: .*base", "passphrase is needed", r"passphrase\.2"])
        self.refused(top, keys[0], "passphrase.2=wrong", name=False, words=["middle: backing file: .*base", "opens none"])
        self.refused(top, *keys, "passphrase.1=x", name=False, words=["middle", r"passphrase\.1: the image isn't encrypted"])
        self.refused(top, *keys, "passphrase.3=x", words=[r"passphrase\.3: the image has 2 files below it"])
        self.refused(top, keys[0], "backing=none", keys[1], words=[r"passphrase\.2: the image has 0 files"])
        for key in ("passphrase.0", "passphrase.01", "passphrase.500", "passphrase.x", "passphrase.", "passphrase.1x"):
            self.refused(top, f"{key}=hidden", name=False, words=[re.escape(f"{key}: must be passphrase.N")])

    def test_writes_are_encrypted(self):
        disk = self.encrypted()
        server = self.serve(disk, f"passphrase=+{self.password}")
        handles = [server.connect() for _ in range(3)]
        model = Model(handles[0].pread(SIZE, 0))
        exercise(handles, model, self.rng, 150)
        handles[0].pwrite(b"plain text " * 6000, 2 * MIB)
        model.data[2 * MIB:2 * MIB + 66000] = b"plain text " * 6000
        server.stop()
        self.assertNotIn(b"plain text", pathlib.Path(disk).read_bytes())
        run("qemu-img", "check", *unlocked(disk))
        run("qemu-img", "convert", "-O", "raw", *unlocked(disk), self.path("flat"))
        model.expect(pathlib.Path(self.path("flat")).read_bytes(), "qemu-img convert")

    def test_is_told_to_nobody(self):
        """A passphrase that lies in a file or goes through qimg serve is neither in the log nor in the list of
        processes; and no message repeats one that is wrong, or that has a misspelled parameter."""
        disk = self.encrypted()
        server = self.serve(disk, f"passphrase=+{self.password}", nbdkit=["-v", "-D", "nbdkit.gnutls.log=9"])
        server.connect().pread(512, MIB)
        self.assertNotIn(WORD.encode(), pathlib.Path(f"/proc/{server.process.pid}/cmdline").read_bytes())
        server.stop()
        self.assertIn("passphrase", server.errors)
        self.assertNotIn(WORD, server.errors)
        self.assertNotIn("wrong-word", self.refused(disk, "passphrase=wrong-word"))
        done = run(QIMG, "serve", "--run", "cat /proc/$PPID/cmdline; nbdinfo --size $uri", disk, f"passphrase={WORD}",
                   "--", "-v", env=plugin_env(LSAN_OPTIONS="detect_leaks=0"))
        self.assertIn(str(SIZE), done.stdout)
        self.assertIn("passphrase=-", done.stdout)
        self.assertNotIn(WORD, done.stdout + done.stderr)
        for key in ("passphras", "passwd", "password", "passphrase.1st"):
            self.assertNotIn("hidden", self.refused(disk, f"{key}=hidden", name=False, words=[key, "passphrase"]))

    def test_commit(self):
        """A job that opens a layer once more has that layer's key."""
        base = self.encrypted("base")
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", self.path("top"), str(SIZE))
        server = self.serve(self.path("top"), f"passphrase.1=+{self.password}", f"control={self.path('qmp')}")
        handle = server.connect()
        handle.pwrite(b"\x5a" * 64 * KIB, 2 * MIB)
        self.commit()
        self.assertEqual(bytes(handle.pread(64 * KIB, MIB)), b"\xa5" * 64 * KIB)
        handle.pwrite(b"\x33" * 512, 3 * MIB)
        server.stop()
        qemu_io(base, "read -P 0x5a 2M 64k", "read -P 0xa5 1M 64k", "read -P 0x33 3M 512")


@unittest.skipIf(STANDIN, "needs the plugin")
class DataFile(CodedCase):
    """External data files, whose names come from images or from data-file=."""

    def image(self, options="data_file=data", size=SIZE, name="disk"):
        """An image with a data file.  QEMU's tools look for a relative name in the folder where they are started."""
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, self.path(name), str(size), cwd=self.dir)
        return self.path(name)

    def test_as_the_image_says(self):
        for raw in ("off", "on"):
            with self.part(raw=raw):
                disk = self.image(f"data_file={self.path('data')},data_file_raw={raw}")
                server = self.serve(disk)
                handles = [server.connect() for _ in range(2)]
                model = Model(bytes(SIZE))
                exercise(handles, model, self.rng, 100)
                server.stop()
                check(disk, "qcow2")
                model.expect(content(disk, "qcow2"), "qemu-img convert")
                if raw == "on":
                    model.expect(pathlib.Path(self.path("data")).read_bytes(), "the data file")

    def test_given(self):
        """data-file= replaces the name in the image for this session; references= doesn't restrict it."""
        disk = self.image()
        os.mkdir(self.path("elsewhere"))
        os.rename(self.path("data"), self.path("elsewhere/moved"))
        self.refused(disk, words=["data file", "data: .*No such file"])
        for keys in ([], ["references=none"], ["references=dir"]):
            server = self.serve(disk, f"data-file={self.path('elsewhere/moved')}", *keys)
            server.connect().pwrite(b"\xa5" * 64 * KIB, MIB)
            server.stop()
        run("qemu-io", "-c", "read -P 0xa5 1M 64k", "--image-opts",
            f"driver=qcow2,file.filename={disk},data-file.filename={self.path('elsewhere/moved')}")
        self.assertIn("data file: data\n", run(QIMG, "info", disk).stdout)
        plain = create(self.path("plain"), "qcow2", SIZE)
        self.refused(plain, f"data-file={self.path('elsewhere/moved')}", words=["data-file=", "keeps its data in itself"])

    def test_references(self):
        """references= also restricts the name of a data file in an image."""
        disk = self.image()
        self.refused(disk, "references=none", words=["names data, but references=none"])
        self.serve(disk, "references=dir").stop()
        os.mkdir(self.path("in"))
        inner = self.image(f"data_file={self.path('outside')}", name="in/disk")
        self.refused(inner, "references=dir", words=["outside", "not below the image's folder"])
        self.serve(inner).stop()
        os.unlink(inner)
        os.symlink("../data", self.path("in/link"))
        os.rename(self.image("data_file=link", name="in/linked"), inner)
        self.refused(inner, "references=dir", words=["in/link", "not below the image's folder"])

    def test_bad_files(self):
        disk = self.image()
        os.unlink(self.path("data"))
        self.refused(disk, words=["data file: .*data: .*No such file"])
        os.mkdir(self.path("data"))
        self.refused(disk, words=["data: is a directory"])
        os.rmdir(self.path("data"))
        os.mkfifo(self.path("data"))
        self.refused(disk, words=["data: is a FIFO"])
        os.unlink(self.path("data"))
        os.symlink("disk", self.path("data"))
        self.refused(disk, words=["can't be a data file, too"])
        os.unlink(self.path("data"))
        os.symlink("/dev/zero", self.path("data"))
        self.refused(disk, words=["data: is a character device"])
        self.refused(disk, "data-file=ssh://host/data", words=["ssh://host/data"])

    def test_shorter_than_the_disk(self):
        """A data file that is shorter than the disk reads as zeroes behind its end, and writes make it longer."""
        for raw in ("off", "on"):
            with self.part(raw=raw):
                disk = self.image(f"data_file={self.path('data')},data_file_raw={raw}")
                fill(disk, "qcow2", [(0, b"a" * 64 * KIB), (3 * MIB, b"b" * 64 * KIB)])
                os.truncate(self.path("data"), MIB)
                server = self.serve(disk)
                handle = server.connect()
                self.assertEqual(bytes(handle.pread(64 * KIB, 0)), b"a" * 64 * KIB)
                self.assertEqual(bytes(handle.pread(64 * KIB, 3 * MIB)), bytes(64 * KIB))
                handle.pwrite(b"c" * 64 * KIB, 2 * MIB)
                self.assertEqual(bytes(handle.pread(64 * KIB, 2 * MIB)), b"c" * 64 * KIB)
                server.stop()
                self.assertEqual(content(disk, "qcow2")[2 * MIB:2 * MIB + 4], b"cccc")

    def test_read_only(self):
        """A data file that can't be written makes the disk read-only; -r changes neither file."""
        disk = self.image(f"data_file={self.path('data')}")
        fill(disk, "qcow2", [(0, b"a" * 64 * KIB)])
        before = sha256(disk), sha256(self.path("data"))
        server = self.serve(disk, nbdkit=["-r"])
        self.assertEqual(bytes(server.connect().pread(4, 0)), b"aaaa")
        server.stop()
        self.assertEqual((sha256(disk), sha256(self.path("data"))), before)

    def test_locks(self):
        """The data file is locked like the image: QEMU can't write to it while it is served."""
        disk = self.image()
        server = self.serve(disk, "writable=now")
        other = run("qemu-io", "-f", "raw", "-c", "write 0 512", self.path("data"), check=False)
        self.assertIn("lock", other.stderr)
        server.stop()

    def test_lock_of_one_file(self):
        """When the data file can't be locked, the image's lock is released, so that others can still read it."""
        disk = self.image(f"data_file={self.path('data')}")
        reader = self.serve(self.path("data"), "format=raw", nbdkit=["-r"])
        server = self.serve(disk)
        with self.assertRaises(nbd.Error):
            server.connect()
        run("qemu-img", "info", disk)
        reader.stop()
        server.connect().pwrite(b"c" * 512, 0)
        server.stop()

    def share_data(self):
        """Serves the data file by a qemu-nbd that ignores trims; returns the URI."""
        socket, pidfile = self.path("data.sock"), self.path("data.pid")
        run("qemu-nbd", "--discard=ignore", "-f", "raw", "-t", "--fork", "-k", socket, f"--pid-file={pidfile}", self.path("data"))
        self.addCleanup(os.kill, int(pathlib.Path(pidfile).read_text(encoding="ascii")), signal.SIGKILL)
        return f"nbd+unix:///?socket={socket}"

    def test_raw_trimmed(self):
        """Disk and raw data file stay equal even if the data file's server ignores a trim."""
        disk = self.image(f"data_file={self.path('data')},data_file_raw=on")
        server = self.serve(disk, f"data-file={self.share_data()}")
        handle = server.connect()
        handle.pwrite(b"a" * 128 * KIB, 0)
        handle.trim(64 * KIB, 0)
        handle.flush()
        seen = bytes(handle.pread(256 * KIB, 0))
        server.stop()
        self.assertEqual(seen, pathlib.Path(self.path("data")).read_bytes()[:256 * KIB])

    def test_raw_grows(self):
        """A commit grows the disk: the raw data file becomes as long and stays equal to it."""
        for behind in (b"", b"Z" * 64 * KIB):
            with self.part(behind=len(behind)):
                base = self.image(f"data_file={self.path('data')},data_file_raw=on", name="base")
                with open(self.path("data"), "ab") as file:
                    file.write(behind)
                top = self.path("top")
                run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top, str(2 * SIZE))
                server = self.serve(top, f"control={self.path('qmp')}")
                server.connect().pwrite(b"a" * 512, 0)
                self.commit()
                server.stop()
                self.assertEqual(os.path.getsize(self.path("data")), 2 * SIZE)
                run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", base, self.path("data"))

    def test_place_of_another(self):
        """An entry for another offset than its guest offset is refused: the cluster that belongs there would overwrite
        it."""
        for extended, other in (("off", 64 * KIB), ("on", 2 * KIB)):
            with self.part(extended=extended):
                disk = self.image(f"data_file={self.path('data')},extended_l2={extended}")
                run("qemu-io", "-c", "write 0 64k", disk)
                with open(disk, "r+b") as file:
                    file.seek(40)
                    file.seek(int.from_bytes(file.read(8), "big"))
                    file.seek(int.from_bytes(file.read(8), "big") & 0x00fffffffffffe00)
                    file.write(struct.pack(">QQ", 1 << 63 | 64 * KIB, extended == "on"))
                with open(self.path("data"), "r+b") as file:
                    file.seek(64 * KIB)
                    file.write(b"a" * 64 * KIB)
                before = sha256(self.path("data"))
                server = self.serve(disk)
                handle = server.connect()
                with self.assertRaises(nbd.Error):
                    handle.pread(512, 0)
                with self.assertRaises(nbd.Error):
                    handle.pwrite(b"b" * 512, other)
                server.stop()
                self.assertEqual(sha256(self.path("data")), before)


@unittest.skipIf(STANDIN, "needs the plugin")
class Compress(CodedCase):
    def test_several_clients(self):
        """Several clients write with compress=on: the image is smaller than its content, correct and clean."""
        for kind in ("zlib", "zstd"):
            with self.part(kind=kind):
                disk = create(self.path("disk"), "qcow2", 16 * MIB, f"compression_type={kind}")
                server = self.serve(disk, "compress=on", "writable=now")
                text = [bytes(f"{i} compressible ", "ascii") * 8192 for i in range(16)]

                def write(client):
                    handle = server.connect()
                    for i in range(client, 16, 4):
                        handle.pwrite(text[i][:64 * KIB], i * MIB)
                        handle.pwrite(text[i][:64 * KIB], i * MIB + 64 * KIB)
                    handle.flush()

                threads = [threading.Thread(target=write, args=(client,)) for client in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                model = Model(server.connect().pread(16 * MIB, 0))
                for i in range(16):
                    self.assertEqual(model.data[i * MIB:i * MIB + 64 * KIB], text[i][:64 * KIB])
                server.stop()
                check(disk, "qcow2")
                model.expect(content(disk, "qcow2"), "qemu-img convert")
                self.assertLess(os.path.getsize(disk), MIB + 512 * KIB)
                checked = json.loads(run(QIMG, "check", "--output=json", disk).stdout)
                self.assertEqual(checked["compressed-clusters"], 32)

    def test_any_requests(self):
        disk = create(self.path("disk"), "qcow2", 8 * MIB)
        server = self.serve(disk, "compress=on")
        handles = [server.connect() for _ in range(3)]
        model = Model(bytes(8 * MIB))
        exercise(handles, model, self.rng, 200)
        server.stop()
        check(disk, "qcow2")
        model.expect(content(disk, "qcow2"), "qemu-img convert")

    def test_refused(self):
        """compress=on is refused for images that can't have compressed clusters."""
        for fmt in ("raw", "qed"):
            disk = create(self.path(fmt), fmt, SIZE)
            self.refused(disk, f"format={fmt}", "compress=on", words=[f"compress=on: {fmt}", "no compressed clusters"])
        self.refused(self.encrypted(), f"passphrase={WORD}", "compress=on", words=["compress=on", "encrypted"])
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={self.path('data')}", self.path("ext"), "1M")
        self.refused(self.path("ext"), "compress=on", words=["compress=on", "data lies in another file"])
        self.refused(self.path("raw"), "format=raw", "compress=yes", name=False, words=["compress=yes: must be off or on"])

    def test_base_is_written_and_read(self):
        """A commit writes to parts of the base's compressed clusters, and clients still read the other parts."""
        before = b"".join(bytes([1 + i % 255]) * 64 * KIB for i in range(SIZE // (64 * KIB)))
        for extended in ("off", "on"):
            with self.part(extended=extended):
                pathlib.Path(self.path("content")).write_bytes(before)
                base, top = self.path("base"), self.path("top")
                run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", f"extended_l2={extended}", self.path("content"), base)
                run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", "-o", "cluster_size=4k", top)
                model = Model(before)
                server = self.serve(top, f"control={self.path('qmp')}")
                handle = server.connect()
                self.assertEqual(bytes(handle.pread(SIZE, 0)), bytes(model.data))
                with Qmp(self.path("qmp")) as qmp:
                    for at in (0, 8 * KIB):
                        for off in range(at, SIZE, 64 * KIB):
                            model.write(handle, off, b"\xa5" * 4 * KIB)
                        handle.flush()
                        if at == 0:
                            qmp.cmd("block-commit", device="drive0", job_id="j")
                            qmp.event("BLOCK_JOB_READY")
                        self.assertEqual(bytes(handle.pread(SIZE, 0)), bytes(model.data))
                    qmp.cmd("block-job-cancel", device="j", force=True)
                    qmp.event("BLOCK_JOB_CANCELLED")
                self.assertEqual(bytes(handle.pread(SIZE, 0)), bytes(model.data))
                self.commit()
                self.assertEqual(bytes(handle.pread(SIZE, 0)), bytes(model.data))
                server.stop()
                check(base, "qcow2")
                model.expect(content(base, "qcow2"), "qemu-img convert")

    def test_base_that_can_not_compress(self):
        """compress=on doesn't apply to a layer of another format that a job writes to."""
        base = create(self.path("base"), "raw", SIZE)
        top = create(self.path("top"), "qcow2", None, backing=base, backing_fmt="raw")
        server = self.serve(top, "compress=on", f"control={self.path('qmp')}")
        handle = server.connect()
        handle.pwrite(b"\x5a" * 128 * KIB, MIB)
        self.commit()
        handle.pwrite(b"\x33" * 64 * KIB, 2 * MIB)
        server.stop()
        data = pathlib.Path(base).read_bytes()
        self.assertEqual(data[MIB:MIB + 128 * KIB] + data[2 * MIB:2 * MIB + 64 * KIB],
                         b"\x5a" * 128 * KIB + b"\x33" * 64 * KIB)


@unittest.skipIf(STANDIN, "needs the plugin")
class Features(Case):
    def test_dump_plugin(self):
        dump = run("nbdkit", PLUGIN, "--dump-plugin", env=plugin_env(LSAN_OPTIONS="detect_leaks=0")).stdout
        for line in ("qimg_zstd=yes", "qimg_luks=yes"):
            self.assertIn(line + "\n", dump)
