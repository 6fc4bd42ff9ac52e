# SPDX-License-Identifier: BSD-3-Clause
"""qimg info describes every qcow2 image like qemu-img, even if it can't be served; images of other
formats are recognised and named."""

import json
import os
import pathlib
import re
import struct
import subprocess
import unittest

from harness import *
from test_cli import QIMG, CliCase, both

UNDER_STRACE = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # both need ptrace
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"


class Described(CliCase):
    """Compared with qemu-img, word for word."""

    def same(self, *words):
        self.same_output("info", *words)
        self.same_json("info", *words)

    def bitmap(self, *words):
        self.qemu("bitmap", *words)

    def test_bitmaps(self):
        self.qemu("create", "-q", "-f", "qcow2", "image", "10M")
        self.bitmap("--add", "image", "one")
        self.same("image")
        self.bitmap("--add", "--disable", "-g", "4096", "image", "two")
        self.bitmap("--add", "-g", "1M", "image", "n\u00e4me with spaces")
        self.same("image")
        with open(self.path("image"), "rb") as file:
            raw = file.read()
        at = int.from_bytes(raw[raw.index(bytes.fromhex("23852875")) + 24:][:8], "big")
        patch(self.path("image"), at + 12, struct.pack(">I", 3))
        self.same("-U", "image")  # with the marks of a killed server
        self.bitmap("--remove", "image", "two")
        self.same("image")

    def test_bitmaps_that_are_invalid(self):
        """The image was written by a program that doesn't know bitmaps, so they are invalid."""
        self.qemu("create", "-q", "-f", "qcow2", "image", "10M")
        self.bitmap("--add", "image", "one")
        patch(self.path("image"), 88, bytes(8))
        self.same("image")

    def test_compression(self):
        self.qemu("create", "-q", "-f", "raw", "raw", "1M")
        for kind in ("zlib", "zstd"):
            self.qemu("convert", "-q", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", "raw", "image")
            self.same("image")

    def test_extended_l2(self):
        for cluster in ("16k", "128k", "2M"):
            self.qemu("create", "-q", "-f", "qcow2", "-o", f"extended_l2=on,cluster_size={cluster}", "image", "10G")
            self.same("image")

    def test_data_file(self):
        for raw in ("off", "on"):
            self.qemu("create", "-q", "-f", "qcow2", "-o", f"data_file=data,data_file_raw={raw}", "image", "10M")
            self.same("image")

    def test_data_file_that_is_missing(self):
        """qimg doesn't open the data file, so it can describe the image, which qemu-img can't."""
        self.qemu("create", "-q", "-f", "qcow2", "-o", "data_file=data", "image", "10M")
        os.unlink(self.path("data"))
        self.assertIn("data file: data\n", self.qimg("info", "image").stdout)

    def test_encryption(self):
        for options in (LUKS, LUKS + ",encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
                        "encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha512",
                        LUKS + ",encrypt.cipher-alg=serpent-256,encrypt.ivgen-alg=plain",
                        "encrypt.format=aes,encrypt.key-secret=s"):
            with self.subTest(options=options):
                create_encrypted("image", "10M", options, cwd=self.dir)
                self.same("image")

    def test_a_luks_header_that_is_none(self):
        """A damaged LUKS header is reported, and the rest of the image is described."""
        create_encrypted("image", "10M", LUKS, cwd=self.dir)
        with open(self.path("image"), "rb") as file:
            at = file.read(1 << 20).index(b"LUKS\xba\xbe")
        for off, value in ((0, b"SKUL"), (6, b"\0\2")):
            patch(self.path("image"), at + off, value)
            done = self.qimg("info", "image")
            self.assertIn("encrypt:\n        format: luks\n    corrupt: false", done.stdout)
            self.assertIn("no LUKS header of version 1", done.stderr)

    def test_chain(self):
        """All layers of a chain are described, even if some can't be served."""
        create_encrypted("base", "10M", "encrypt.format=aes,encrypt.key-secret=s", cwd=self.dir)
        self.qemu("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-F", "qcow2", "-b", "base", "-u", "mid", "10M")
        self.qemu("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid", "-u", "image", "10M")
        self.same("--backing-chain", "image")

    def test_unknown_features(self):
        """An image with unknown incompatible features is refused: they may change the meaning of everything else."""
        self.qemu("create", "-q", "-f", "qcow2", "image", "10M")
        patch(self.path("image"), 72, struct.pack(">Q", 1 << 40))
        self.refuses("info", "image", says=["image", "incompatible_features", "unknown feature bit 40"])

    def test_nothing_is_changed(self):
        self.qemu("create", "-q", "-f", "qcow2", "image", "10M")
        self.bitmap("--add", "image", "one")
        before = sha256(self.path("image"))
        self.qimg("info", "image")
        self.assertEqual(sha256(self.path("image")), before)


class Coded(CliCase):
    """qimg map, compared with qemu-img's, of images whose file doesn't hold the data as the guest sees it."""

    SECRET = ("--object", "secret,id=s,data=sesame")

    def same_map(self, *words, json_only=False):
        """Both maps must be the same.  "compressed" is ignored if this qemu-img doesn't print it.  Returns the map."""
        theirs, ours = both(self.dir, "map", "--output=json", *words)
        self.assertEqual(ours.returncode, 0, ours.stderr)
        if qemu_version() < (8, 2):
            self.assertEqual(ours.stdout.replace(', "compressed": true', ""), theirs.stdout)
        else:
            self.assertEqual(json.loads(ours.stdout), qemu_json(theirs.stdout))
        if not json_only:
            self.same_output("map", *words)
        return json.loads(ours.stdout)

    def unlocked(self, name, *more):
        return *self.SECRET, "--image-opts", ",".join(["driver=qcow2,encrypt.key-secret=s", f"file.filename={name}", *more])

    def test_compressed(self):
        self.qemu("create", "-q", "-f", "raw", "raw", "4M")
        self.io("raw", "raw", "write -P 5 0 256k", "write -P 7 512k 64k")
        self.qemu("convert", "-c", "-O", "qcow2", "raw", "image")
        self.io("qcow2", "image", "write 128k 64k", "write -z 192k 64k")
        told = self.same_map("image")
        self.assertEqual([(run["start"], run["length"]) for run in told if run.get("compressed")],
                         [(0, 128 << 10), (512 << 10, 64 << 10)])
        self.assertFalse([run for run in told if run.get("compressed") and "offset" in run])

    def test_data_file(self):
        self.qemu("create", "-q", "-f", "qcow2", "-o", "data_file=data", "image", "4M")
        self.io("qcow2", "image", "write 64k 128k", "write -z 1M 64k", "write -z -u 2M 64k", "write 3M 1000")
        self.same_map("image")

    def test_extended_l2(self):
        """The offsets that qemu-img prints for unallocated subclusters are ignored."""
        self.qemu("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "image", "4M")
        self.io("qcow2", "image", "write 64k 6k", "write -z 1M 2k", "write -z -u 2M 4k", "write 130k 64k")
        mapped = []
        for done in both(self.dir, "map", "--output=json", "image"):
            mapped.append([])
            for one in qemu_json(done.stdout):
                if not one["present"]:
                    one.pop("offset", None)
                last = mapped[-1][-1] if mapped[-1] else {}
                if not one["present"] and not last.get("present", True):
                    last["length"] += one["length"]
                else:
                    mapped[-1].append(one)
        self.assertEqual(*mapped)
        self.same_output("map", "image")

    def test_encrypted(self):
        """The map is the same as qemu-img's with a key; qimg needs none, as it reads no data."""
        for options in (LUKS, "encrypt.format=aes,encrypt.key-secret=s"):
            with self.subTest(options=options):
                create_encrypted("image", "4M", options, cwd=self.dir)
                run("qemu-io", "-c", "write 0 128k", "-c", "write -z 256k 64k", *self.unlocked("image"), cwd=self.dir)
                told = self.same_map(*self.unlocked("image"))
                self.assertEqual(json.loads(self.qimg("map", "--output=json", "image").stdout), told)
                for command in ("info", "check"):
                    self.qimg(command, *self.unlocked("image"))
                    self.qimg(command, "--image-opts", "driver=qcow2,encrypt.key-secret=none,file.filename=image")

    def test_encrypted_layers(self):
        create_encrypted("base", "4M", LUKS, cwd=self.dir)
        run("qemu-io", "-c", "write 0 128k", *self.unlocked("base"), cwd=self.dir)
        self.qimg("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", "image")
        self.same_map(*self.unlocked("image", "backing.encrypt.key-secret=s"))
        self.qimg("map", "--output=json", "image")
        self.refuses("map", *self.SECRET, "--object", "secret,id=t,data=x", "--image-opts",
                     "driver=qcow2,file.filename=image,backing.encrypt.key-secret=t", says=["base", "passphrase opens none"])

    def test_keys(self):
        """All forms of keys; a wrong or missing key has its own error message."""
        create_encrypted("image", "4M", LUKS, cwd=self.dir)
        for name, text in (("plain", "sesame"), ("newline", "sesame\n"), ("base64", "c2Vz\nYW1l\n"), ("large", "x" * 65537)):
            with open(self.path(name), "w", encoding="utf-8") as file:
                file.write(text)
        opts = ("--image-opts", "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=image")
        for good in ("data=sesame", "data=sesame,format=raw", "data=c2VzYW1l,format=base64", "file=plain",
                     "file=base64,format=base64"):
            self.same_output("map", "--object", f"secret,id=s,{good}", *opts)
        for bad in ("data=Sesame", "file=newline", "data=", "data=c2VzYW1l"):
            self.refuses("map", "--object", f"secret,id=s,{bad}", *opts, says=["Could not open 'image': the passphrase opens none"])
        self.refuses("map", *opts, says=["No secret with id 's'"])
        aes = opts[1].replace("=luks", "=aes")
        self.refuses("map", *self.SECRET, "--image-opts", aes, says=["image: is encrypted by LUKS", "'aes'"])
        self.qemu("create", "-q", "-f", "qcow2", "bare", "4M")
        self.refuses("map", *self.SECRET, "--image-opts", opts[1].replace("=image", "=bare"), says=["No encryption"])
        self.same_output("map", *self.unlocked("bare"))

    def test_bad_objects(self):
        """No message contains the secret's data."""
        self.qemu("create", "-q", "-f", "qcow2", "image", "4M")
        for text, says in {
                "": "'qom-type' is missing", "secret": "'id' is missing", "secret,data=hidden": "'id' is missing",
                "secret,id=1s,data=hidden": "'1s'", "secret,id=s": "must be provided",
                "secret,id=s,data=hidden,file=x": "mutually exclusive", "secret,id=s,data=hidden,": "Invalid option list",
                "secret,id=s,data=hidden!,format=base64": "base64", "secret,id=s,data=hidde,format=base64": "base64",
                "secret,id=s,data=A===,format=base64": "base64", "secret,id=s,data=AA=A,format=base64": "base64",
                "secret,id=s,data=hidden,format=hex": "'hex'", "secret,id=s,data=hidden,keyid=k,iv=aa": "keyid",
                "secret,id=s,file=nothing": "nothing: No such file", "secret,id=s,file=.": "directory",
                "secret,id=s,data=hidden,loaded=on": "'loaded' is unexpected", "tls-creds-anon,id=s": "'tls-creds-anon'",
                "secret,id=s,file=/dev/zero": "has more than"}.items():
            for command in ("info", "map", "check"):
                with self.subTest(text=text, command=command):
                    self.assertNotIn("hidden", self.refuses(command, "--object", text, "image", says=[says]))
            self.refuses("create", "--object", text, "-f", "raw", "new", "1M", says=[says])
        self.refuses("info", *self.SECRET, *self.SECRET, "image", says=["already"])
        self.same_output("info", *self.SECRET, "--object", "secret,id=t,data=,,x", "image")


class Options(CliCase):
    """Options of qemu-img that say how an image is opened or made."""

    def test_image_opts(self):
        self.qemu("create", "-q", "-f", "qed", "image", "4M")
        self.io("qed", "image", "write 1M 64k")
        for opts in ("driver=qed,file.filename=image", "driver=qed,file.driver=file,file.filename=image",
                     "driver=raw,file.driver=file,file.filename=image", "driver=qed,read-only=on,file.filename=image"):
            for command in ("info", "map", "check"):
                theirs, ours = (run(tool, command, "--image-opts", opts, check=False, cwd=self.dir)
                                for tool in ("qemu-img", QIMG))
                self.assertEqual((theirs.returncode, qemu_text(theirs.stdout)), (ours.returncode, ours.stdout),
                                 (opts, command))
        for opts, says in (("driver=ssh,host=h,path=x", "driver: is neither file nor nbd"), ("image", "image': is not"),
                           ("driver=qed,file.filename=image,offset=1", "offset: is not supported"), ("", "option list")):
            for command in ("info", "map", "check"):
                self.refuses(command, "--image-opts", opts, says=[says] if "image" != opts else [])
        self.refuses("info", "--image-opts", "-f", "qed", "driver=qed,file.filename=image", says=["mutually exclusive"])

    def test_image_opts_nbd(self):
        """info, map and check work on an NBD export as on a file."""
        self.qemu("create", "-q", "-f", "qcow2", "image", "4M")
        process = subprocess.Popen(["qemu-nbd", "-r", "-t", "-e8", "-f", "raw", "-x", "a b", "-k", self.path("sock"), "image"],
                                   cwd=self.dir)
        self.addCleanup(kill_quietly, process)
        await_listener(self.path("sock"))
        opts = f"driver=qcow2,file.driver=nbd,file.path={self.path('sock')},file.export=a b"
        self.assertIn("virtual size: 4 MiB", self.qimg("info", "--image-opts", opts).stdout)
        self.assertEqual(self.qimg("map", "--output=json", "--image-opts", opts).stdout,
                         qemu_text(self.qemu("map", "--output=json", "--image-opts", opts).stdout))
        uri = f"nbd+unix:///a%20b?socket={self.path('sock')}"
        for words in (["--image-opts", opts], [uri], ["--output=json", uri], ["-f", "raw", uri], ["-f", "qed", uri]):
            ours, theirs = (run(tool, "check", *words, check=False, cwd=self.dir) for tool in (QIMG, "qemu-img"))
            self.assertEqual(ours.returncode, theirs.returncode, words)
            self.assertEqual(ours.stdout, theirs.stdout, words)

    def test_long_format(self):
        self.qemu("create", "-q", "-f", "qcow2", "image", "4M")
        for command in ("info", "map", "check"):
            self.same_output(command, "--format", "qcow2", "image")
            self.same_output(command, "--format=qcow2", "image")

    def test_cache_of_check(self):
        self.qemu("create", "-q", "-f", "qcow2", "image", "4M")
        for mode in ("none", "writeback", "directsync", "unsafe", "writethrough"):
            self.same_output("check", "-T", mode, "image")
        self.refuses("check", "-T", "sometimes", "image", says=["-T sometimes: must be", "writeback"])
        traced = run("strace", "-f", "-o", "/dev/stdout", "-e", "trace=fcntl", QIMG, "check", "-T", "none", "image",
                     cwd=self.dir, env=UNDER_STRACE)
        self.assertIn("O_DIRECT", traced.stdout)

    def test_wishes_for_the_file(self):
        """Options for the file (nocow, extent_size_hint) are printed as by qemu-img, and not passed to the format."""
        for options in ("nocow=on", "extent_size_hint=64k", "nocow=off,extent_size_hint=0"):
            for fmt in ("qcow2", "qed", "raw"):
                self.same_output("create", "-f", fmt, "-o", options, "image", "1M")
        self.same_output("create", "-f", "qcow2", "-o", "encryption=off", "image", "1M")
        self.refuses("create", "-q", "-f", "qcow2", "-o", "encryption=on", "new", "1M", says=["encrypt.key-secret"])
        self.refuses("create", "-q", "-f", "qed", "-o", "extent_size_hint=5G", "new", "1M", says=["extent_size_hint"])
        self.assertFalse(os.path.exists(self.path("new")))

    def test_space_on_a_filesystem_that_reserves_none(self):
        """On a filesystem without fallocate, preallocation writes zeroes."""
        for fmt in ("raw", "qcow2"):
            for how in ("falloc", "full"):
                with self.subTest(fmt=fmt, how=how):
                    run("strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=fallocate:error=EOPNOTSUPP", QIMG,
                        "create", "-q", "-f", fmt, "-o", f"preallocation={how}", "image", "4M", cwd=self.dir, env=UNDER_STRACE)
                    self.assertGreaterEqual(os.stat(self.path("image")).st_blocks * 512, 4 << 20)
                    check(self.path("image"), fmt)

    def test_the_hint_reaches_the_file(self):
        calls = run("strace", "-f", "-o", "/dev/stdout", "-e", "trace=ioctl", QIMG, "create", "-f", "qcow2", "-o",
                    "extent_size_hint=64k,nocow=on", "image", "1M", cwd=self.dir, env=UNDER_STRACE).stdout
        self.assertRegex(calls, "FS_IOC_FSSETXATTR, .*fsx_extsize=65536")
        self.assertIn("FS_IOC_SETFLAGS", calls)

    def test_raw_of_odd_size(self):
        with open(self.path("image"), "wb") as file:
            file.truncate(1000)
        self.same_output("info", "-f", "raw", "image")
        self.same_json("info", "-f", "raw", "image")


class Foreign(CliCase):
    """Images of other formats aren't mistaken for raw disks."""

    FORMATS = {"vmdk": "a VMDK image", "vdi": "a VDI image", "vhdx": "a VHDX image", "vpc": "a VPC",
               "parallels": "a Parallels image", "qcow": "a qcow image of version 1"}

    def images(self):
        for fmt, name in self.FORMATS.items():
            self.qemu("create", "-q", "-f", fmt, "image", "10M")
            yield name
        self.qemu("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "image", "10M")
        yield "the descriptor of a VMDK image"
        pathlib.Path(self.path("image")).write_bytes(b"LUKS\xba\xbe\0\2" + bytes(MIB))
        yield "a LUKS volume of version 2"

    def test_they_are_named(self):
        for name in self.images():
            with self.subTest(format=name):
                says = ["image", name, "not a format of qimg, which has qcow2, qed, luks, raw", "qemu-img convert"]
                self.refuses("info", "image", says=says)
                self.refuses("map", "image", says=says)
                done = self.qimg("check", "image", check=False)
                self.assertEqual(done.returncode, 63)
                self.assertIn(name, done.stderr)
                self.refused(self.path("image"), words=[re.escape(name), "not a format of qimg"])
                for fmt in ("qcow2", "qed"):
                    self.refuses("info", "-f", fmt, "image", says=["image", "magic", f"not a {fmt} image, but {name}"])
                self.assertIn("file format: raw", self.qimg("info", "-f", "raw", "image").stdout)

    def test_as_backing_files(self):
        self.qemu("create", "-q", "-f", "vmdk", "base", "10M")
        self.qemu("create", "-q", "-f", "qcow2", "image", "10M")
        self.refused(self.path("image"), f"backing={self.path('base')}", words=["base", "is a VMDK image"])

    def test_the_wrong_one_of_ours(self):
        for fmt, other in (("qcow2", "qed"), ("qed", "qcow2")):
            self.qemu("create", "-q", "-f", fmt, "image", "10M")
            self.refuses("info", "-f", other, "image", says=[f"magic: not a {other} image, but a {fmt} image"])
            self.refuses("check", "-f", other, "image", says=[f"not a {other} image, but a {fmt} image"])
            self.refused(self.path("image"), f"format={other}", words=[f"not a {other} image, but a {fmt} image"])


if __name__ == "__main__":
    unittest.main()
