# SPDX-License-Identifier: BSD-3-Clause
"""qimg create with each feature of qcow2, compared with qemu-img: its output, its images, what it refuses, and
what a failure leaves."""

import os
import pathlib
import subprocess
import unittest

from harness import KIB, MIB, BUILD, check, parametrised, qemu_json, qemu_text, run, wait_until
from test_cli import CliCase, QIMG

SECRET = ("--object", "secret,id=s,data=open sesame")
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
AES = "encrypt.format=aes,encrypt.key-secret=s"


class CreateCase(CliCase):
    def opts(self, name="image", encrypted=False):
        """The arguments with which QEMU's tools open the image."""
        key = ",encrypt.key-secret=s" if encrypted else ""
        return f"driver=qcow2,file.filename={self.path(name)}{key}"

    def create(self, tool, options, *words):
        return run(tool, "create", "-f", "qcow2", *SECRET, "-o", options, *words, cwd=self.dir)

    def qemu_io(self, options, *commands, name="image"):
        words = [word for c in commands for word in ("-c", c)]
        out = run("qemu-io", *SECRET, "--image-opts", self.opts(name, "encrypt" in options), *words,
                  cwd=self.dir)
        self.assertNotIn("failed", out.stdout)

    def assert_clean(self, options):
        run("qemu-img", "check", *SECRET, "--image-opts", self.opts(encrypted="encrypt" in options), cwd=self.dir)
        self.qimg("check", "image")

    def remove(self, *names):
        for name in names:
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))


def comparable(info):
    """Image information without random values, times and sizes on disk."""
    info.pop("actual-size", None)
    specific = info.get("format-specific", {}).get("data", {})
    encrypt = specific.get("encrypt", {})
    encrypt.pop("uuid", None)
    for slot in [encrypt, *encrypt.get("slots", [])]:
        for key in ("master-key-iters", "iters"):
            slot.pop(key, None)
    return info


@parametrised
class Matrix(CreateCase):
    cases_made = {
        "extended": ("extended_l2=on", "10M"),
        "extended small": ("extended_l2=on,cluster_size=16k", "10M"),
        "extended large": ("extended_l2=on,cluster_size=2M,refcount_bits=64", "100M"),
        "extended metadata": ("extended_l2=on,preallocation=metadata", "10M"),
        "extended full": ("extended_l2=on,preallocation=full", "5M"),
        "zstd": ("compression_type=zstd", "10M"),
        "zlib v2": ("compression_type=zlib,compat=0.10", "10M"),
        "data file": ("data_file=data", "10M"),
        "data file odd": ("data_file=data", "1000000"),
        "data file, prefix": ("data_file=file:data", "10M"),
        "data file metadata": ("data_file=data,preallocation=metadata", "5M"),
        "data file falloc": ("data_file=data,preallocation=falloc", "5M"),
        "data file full": ("data_file=data,preallocation=full", "5M"),
        "data file extended": ("data_file=data,extended_l2=on,lazy_refcounts=on", "10M"),
        "raw": ("data_file=data,data_file_raw=on", "10M"),
        "raw falloc": ("data_file=data,data_file_raw=on,preallocation=falloc", "5M"),
        "raw extended": ("data_file=data,data_file_raw=on,extended_l2=on", "5M"),
        "raw off": ("data_file=data,data_file_raw=off", "5M"),
        "luks": (LUKS, "10M"),
        "luks small": (LUKS + ",cluster_size=512,refcount_bits=1", "3M"),
        "luks large": (LUKS + ",cluster_size=2M", "10M"),
        "luks v2": (LUKS + ",compat=0.10", "10M"),
        "luks aes-128": (LUKS + ",encrypt.cipher-alg=aes-128", "10M"),
        "luks aes-192": (LUKS + ",encrypt.cipher-alg=aes-192,encrypt.iter-time=0", "10M"),
        "luks cbc": (LUKS + ",encrypt.cipher-mode=cbc", "10M"),
        "luks essiv": (LUKS + ",encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv", "10M"),
        "luks plain": (LUKS + ",encrypt.ivgen-alg=plain,encrypt.ivgen-hash-alg=sha1,encrypt.hash-alg=sha512",
                       "10M"),
        "luks sha1": (LUKS + ",encrypt.hash-alg=sha1,encrypt.ivgen-hash-alg=sha256,encrypt.ivgen-alg=essiv",
                      "10M"),
        "luks metadata": (LUKS + ",preallocation=metadata", "5M"),
        "luks metadata v2": (LUKS + ",preallocation=metadata,compat=0.10", "5M"),
        "luks falloc": (LUKS + ",preallocation=falloc", "5M"),
        "luks full": (LUKS + ",preallocation=full,lazy_refcounts=on", "5M"),
        "luks extended zstd": (LUKS + ",extended_l2=on,compression_type=zstd,preallocation=metadata", "5M"),
        "luks data file": (LUKS + ",data_file=data", "5M"),
        "luks raw": (LUKS + ",data_file=data,data_file_raw=on", "5M"),
        "aes": (AES, "10M"),
        "aes v2": (AES + ",compat=0.10", "10M"),
        "aes by its old name": ("encryption=on,encrypt.key-secret=s", "10M"),
        "aes falloc": (AES + ",preallocation=falloc", "5M"),
        "aes data file": (AES + ",data_file=data,extended_l2=on", "5M"),
        "luks, alias off": (LUKS + ",encryption=off", "5M"),
    }

    def sizes(self, options):
        """The data file's length and whether it has blocks; and whether a preallocated image has blocks."""
        out = {}
        if "data_file" in options:
            stat = os.stat(self.path("data"))
            out["data"] = (stat.st_size, "encrypt" not in options and stat.st_blocks * 512 >= MIB)
        if "preallocation" in options:
            out["image"] = os.stat(self.path("image")).st_blocks * 512 >= MIB
        return out

    def check_made(self, options, size):
        """The output, the description and the sizes are qemu-img's; the image is clean and empty, and can be written"""
        results = []
        for tool in ("qemu-img", QIMG):
            done = self.create(tool, options, "image", size)
            info = comparable(qemu_json(self.qemu("info", "--output=json", "image").stdout))
            results.append((qemu_text(done.stdout), done.stderr, info, self.sizes(options)))
            if tool == "qemu-img":
                self.remove("image", "data")
        self.assertEqual(*results)
        self.assert_clean(options)
        disk = info["virtual-size"]
        self.qemu_io(options, f"read -P 0 0 {disk}")
        self.qemu_io(options, f"write -P 5 {disk // 2} 300k" if disk > MIB else f"write -P 5 {disk // 2} 3k",
                     f"write -P 6 {disk - 512} 512")
        self.qemu_io(options, f"read -P 5 {disk // 2} 3k", f"read -P 6 {disk - 512} 512",
                     f"read -P 0 0 {disk // 2}")
        self.assert_clean(options)

    def test_raw_data_file_is_the_disk(self):
        self.create(QIMG, "data_file=data,data_file_raw=on", "image", "5M")
        self.qemu_io("", "write -P 7 1M 2M")
        self.qemu("compare", "-f", "qcow2", "-F", "raw", "image", "data")

    def test_raw_data_file_ends_with_the_disk(self):
        """Unlike qemu-img, which rounds its length up to a cluster"""
        self.create(QIMG, "data_file=data,data_file_raw=on,cluster_size=2M", "image", "1000000")
        self.assertEqual(os.path.getsize(self.path("data")), 1000448)
        self.qemu_io("", "read -P 0 0 1000448", "write -P 1 1000000 448", "read -P 1 1000000 448")
        self.assert_clean("data_file")

    def test_encrypted_is_not_plain(self):
        self.create(QIMG, LUKS, "image", "5M")
        self.qemu_io(LUKS, "write -P 0x5a 0 1M")
        self.assertNotIn(b"\x5a" * 64, pathlib.Path(self.path("image")).read_bytes())

    def test_all_features_have_names(self):
        """L-09: the feature name table has the same rows as qemu-img's"""
        tables = []
        for tool in ("qemu-img", QIMG):
            self.create(tool, "extended_l2=on", "image", "1M")
            raw = pathlib.Path(self.path("image")).read_bytes()
            start = raw.index(bytes.fromhex("6803f857"))
            length = int.from_bytes(raw[start + 4:start + 8], "big")
            rows = raw[start + 8:start + 8 + length]
            tables.append(sorted(rows[i:i + 48] for i in range(0, length, 48)))
        self.assertEqual(*tables)

    def test_secret_forms(self):
        """Passphrases as text, in files and in base64: each opens the image"""
        for secret in ("secret,id=s,data=open sesame", "qom-type=secret,id=s,file=pass",
                       "secret,id=s,format=base64,data=b3BlbiBzZXNhbWU=",
                       "secret,file=pass64,format=base64,id=s", "secret,id=s,format=raw,file=/dev/stdin"):
            with self.part(secret=secret):
                pathlib.Path(self.path("pass")).write_text("open sesame", encoding="utf-8")
                pathlib.Path(self.path("pass64")).write_text("b3BlbiBzZXNhbWU=\n", encoding="utf-8")
                stdin = os.open(self.path("pass"), os.O_RDONLY)
                self.addCleanup(os.close, stdin)
                self.qimg("create", "-q", "-f", "qcow2", "--object", "secret,id=other,data=x", "--object",
                          secret, "-o", LUKS, "image", "1M", stdin=stdin)
                self.qemu_io(LUKS, "read -P 0 0 1M")

    def test_empty_passphrase(self):
        self.qimg("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=", "-o", LUKS, "image", "1M")
        run("qemu-io", "--object", "secret,id=s,data=", "--image-opts", self.opts(encrypted=True),
            "-c", "read -P 0 0 1M", cwd=self.dir)

    def test_another_passphrase_does_not_open_it(self):
        self.create(QIMG, LUKS, "image", "1M")
        done = run("qemu-io", "--object", "secret,id=s,data=wrong", "--image-opts", self.opts(encrypted=True),
                   "-c", "quit", cwd=self.dir, check=False)
        self.assertIn("Invalid password", done.stderr)


@parametrised
class OverBacking(CreateCase):
    cases_made = {
        "extended metadata": ("extended_l2=on,preallocation=metadata",),
        "extended falloc": ("extended_l2=on,preallocation=falloc",),
        "extended full": ("extended_l2=on,preallocation=full",),
        "extended metadata, data file": ("extended_l2=on,preallocation=metadata,data_file=data",),
        "extended full, data file": ("extended_l2=on,preallocation=full,data_file=data",),
        "extended metadata, luks": (LUKS + ",extended_l2=on,preallocation=metadata",),
        "extended full, luks": (LUKS + ",extended_l2=on,preallocation=full",),
        "data file": ("data_file=data",),
        "zstd": ("compression_type=zstd",),
        "luks": (LUKS,),
        "aes": (AES,),
    }

    def check_made(self, options):
        """The backing file's data shows through a preallocated image until it is overwritten"""
        self.qemu("create", "-q", "-f", "qcow2", "base", "3M")
        self.io("qcow2", "base", "write -P 3 0 3M")
        results = []
        for tool in ("qemu-img", QIMG):
            done = self.create(tool, options, "-b", "base", "-F", "qcow2", "image", "5M")
            info = comparable(qemu_json(self.qemu("info", "--output=json", "image").stdout))
            blocks = os.stat(self.path("image")).st_blocks * 512 >= 4 * MIB
            results.append((qemu_text(done.stdout), info, blocks))
            if tool == "qemu-img":
                self.remove("image", "data")
        self.assertEqual(*results)
        self.qemu_io(options, "read -P 3 0 3M", "read -P 0 3M 2M", "write -P 4 1000k 3k", "write -P 5 4M 3k")
        self.qemu_io(options, "read -P 3 0 1000k", "read -P 4 1000k 3k", "read -P 3 1003k 2069k",
                     "read -P 5 4M 3k", "read -P 0 4099k 1021k")
        self.assert_clean(options)


@parametrised
class Refused(CreateCase):
    cases_refused = {
        "extended, small clusters": (("-o", "extended_l2=on,cluster_size=8k"), ["extended_l2", "16384"]),
        "extended v2": (("-o", "extended_l2=on,compat=0.10"), ["extended_l2", "1.1"]),
        "zstd v2": (("-o", "compression_type=zstd,compat=0.10"), ["compression_type", "1.1"]),
        "compression type": (("-o", "compression_type=lzo"), ["compression_type", "lzo"]),
        "data file v2": (("-o", "data_file=data,compat=0.10"), ["data_file", "1.1"]),
        "raw alone": (("-o", "data_file_raw=on"), ["data_file_raw"]),
        "raw over backing": (("-o", "data_file=data,data_file_raw=on", "-b", "base", "-F", "raw"),
                             ["data_file_raw", "backing"]),
        "preallocated over backing": (("-o", "preallocation=metadata", "-b", "base", "-F", "raw"),
                                      ["preallocation", "extended_l2"]),
        "no data file's name": (("-o", "data_file="), ["data_file"]),
        "data file in no folder": (("-o", "data_file=missing/data"), ["missing/data"]),
        "data file a folder": (("-o", "data_file=."), ["a directory"]),
        "data file a protocol": (("-o", "data_file=ssh://host/x"), ["ssh"]),
        "data file the image": (("-o", "data_file=image"), ["data_file", "image"]),
        "no secret": (("-o", "encrypt.format=luks"), ["encrypt.key-secret"]),
        "no secret for aes": (("-o", "encryption=on"), ["encrypt.key-secret"]),
        "unknown secret": (("-o", "encrypt.format=luks,encrypt.key-secret=t"), ["No secret with id 't'"]),
        "no format": (("-o", "encrypt.key-secret=s"), ["encrypt.format"]),
        "no format, alias off": (("-o", "encryption=off,encrypt.key-secret=s"), ["encrypt.format"]),
        "cipher without format": (("-o", "encrypt.cipher-alg=aes-128"), ["encrypt.format"]),
        "format": (("-o", "encrypt.format=xor,encrypt.key-secret=s"), ["encrypt.format", "xor"]),
        "two formats": (("-o", "encryption=on," + LUKS), ["encryption"]),
        "aes with luks' option": (("-o", AES + ",encrypt.iter-time=10"), ["encrypt.iter-time"]),
        "cipher": (("-o", LUKS + ",encrypt.cipher-alg=rot13"), ["encrypt.cipher-alg", "rot13"]),
        "mode": (("-o", LUKS + ",encrypt.cipher-mode=xtc"), ["encrypt.cipher-mode", "xtc"]),
        "initial vectors": (("-o", LUKS + ",encrypt.ivgen-alg=none"), ["encrypt.ivgen-alg", "none"]),
        "hash": (("-o", LUKS + ",encrypt.hash-alg=crc32"), ["encrypt.hash-alg", "crc32"]),
        "hash of essiv": (("-o", LUKS + ",encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha512"),
                          ["encrypt.ivgen-hash-alg", "sha512"]),
        "iteration time": (("-o", LUKS + ",encrypt.iter-time=soon"), ["encrypt.iter-time", "soon"]),
        "object of another type": (("--object", "tls-creds-x509,id=x"), ["tls-creds-x509"]),
        "object without id": (("--object", "secret,data=x"), ["'id'"]),
        "object without type": (("--object", "id=x,data=x"), ["qom-type"]),
        "object with a bad id": (("--object", "secret,id=1x,data=x"), ["1x"]),
        "object twice": (("--object", "secret,id=s,data=x"), ["'s'"]),
        "object without data": (("--object", "secret,id=x"), ["data"]),
        "object with both": (("--object", "secret,id=x,data=x,file=y"), ["exclusive"]),
        "object with more": (("--object", "secret,id=x,data=x,color=red"), ["color"]),
        "object of a missing file": (("--object", "secret,id=x,file=missing"), ["missing", "No such file"]),
        "object in an unknown format": (("--object", "secret,id=x,data=x,format=hex"), ["hex"]),
    }

    def check_refused(self, words, says):
        """Refused like qemu-img does, with one line, and no file is made"""
        pathlib.Path(self.path("base")).write_bytes(bytes(MIB))
        words = ["-f", "qcow2", *SECRET, *words, "image", "3M"]
        theirs = run("qemu-img", "create", *words, check=False, cwd=self.dir)
        self.assertNotEqual(theirs.returncode, 0)
        self.remove("image", "data")
        line = self.refuses("create", *words, says=says)
        self.assertNotIn("open sesame", line)
        self.assertEqual(sorted(os.listdir(self.dir)), ["base"])

    cases_stricter = {
        "encrypted secret": (("--object", "secret,id=x,data=x,keyid=s,iv=AAAA"), ["keyid"]),
        "not base64": (("--object", "secret,id=x,data=a,format=base64"), ["base64"]),
        "not text": (("--object", "secret,id=b,data=/w==,format=base64", "-o",
                      "encrypt.format=luks,encrypt.key-secret=b"), ["UTF-8"]),
        "iteration time": (("-o", LUKS + ",encrypt.iter-time=31000"), ["encrypt.iter-time", "31000"]),
        # QEMU fails an assertion, because the key material isn't a whole number of sectors.
        "aes-192 cbc": (("-o", LUKS + ",encrypt.cipher-alg=aes-192,encrypt.cipher-mode=cbc"),
                        ["encrypt.cipher-alg", "aes-192"]),
        "serpent": (("-o", LUKS + ",encrypt.cipher-alg=serpent-256"), ["encrypt.cipher-alg"]),
        "empty element": (("--object", "secret,id=x,data=hush,"), ["--object"]),
    }

    def check_stricter(self, words, says):
        line = self.refuses("create", "-f", "qcow2", *SECRET, *words, "image", "3M", says=says)
        self.assertNotIn("hush", line)
        self.assertEqual(os.listdir(self.dir), [])

    def test_other_formats(self):
        """for raw and qed the message names the option that they don't have"""
        for fmt in ("raw", "qed"):
            for option in ("extended_l2=on", "compression_type=zstd", "data_file=data", "data_file_raw=on",
                           "encryption=on", *LUKS.split(",")):
                with self.subTest(fmt=fmt, option=option):
                    self.refuses("create", "-f", fmt, *SECRET, "-o", option, "image", "1M",
                                 says=[option.split("=", maxsplit=1)[0], fmt])
        self.assertEqual(os.listdir(self.dir), [])


class DataFiles(CreateCase):
    def test_name_is_relative_to_the_image(self):
        """A relative name is relative to the image, as names in images are.  qemu-img makes the file in its current
        folder"""
        os.mkdir(self.path("sub"))
        self.create(QIMG, "data_file=data", "sub/image", "1M")
        self.assertEqual(sorted(os.listdir(self.path("sub"))), ["data", "image"])
        run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "image", cwd=self.path("sub"))

    def test_absolute_name(self):
        os.mkdir(self.path("sub"))
        self.create(QIMG, f"data_file={self.path('sub/data')}", "image", "1M")
        self.qemu_io("", "write -P 1 0 1M")
        self.assertEqual(os.path.getsize(self.path("sub/data")), MIB)

    def test_what_was_in_it_is_gone(self):
        """An existing data file is emptied, as qemu-img does"""
        pathlib.Path(self.path("data")).write_bytes(b"\xaa" * 3 * MIB)
        self.create(QIMG, "data_file=data,data_file_raw=on", "image", "1M")
        self.assertEqual(pathlib.Path(self.path("data")).read_bytes(), bytes(MIB))

    def test_not_a_file_of_the_chain(self):
        self.create(QIMG, "data_file=data", "base", "1M")
        self.qemu_io("", "write -P 1 0 1M", name="base")
        before = {name: pathlib.Path(self.path(name)).read_bytes() for name in ("base", "data")}
        for name in ("base", "data", "./data"):
            self.refuses("create", "-f", "qcow2", "-o", f"data_file={name}", "-b", "base", "-F", "qcow2",
                         "image", says=[name])
        self.refuses("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "data", says=["data"])
        for name, content in before.items():
            self.assertEqual(pathlib.Path(self.path(name)).read_bytes(), content)

    def test_not_the_image_by_another_name(self):
        pathlib.Path(self.path("image")).write_bytes(b"\xaa" * KIB)
        os.symlink("image", self.path("link"))
        os.link(self.path("image"), self.path("hard"))
        for name in ("link", "hard", "./image"):
            self.refuses("create", "-f", "qcow2", "-o", f"data_file={name}", "image", "1M",
                         says=["the image itself"])
        self.assertEqual(pathlib.Path(self.path("image")).read_bytes(), b"\xaa" * KIB)

    def test_dangling_link_to_the_image(self):
        os.symlink("image", self.path("link"))
        self.refuses("create", "-f", "qcow2", "-o", "data_file=link", "image", "1M", says=["the image itself"])
        self.assertEqual(os.listdir(self.dir), ["link"])

    def test_in_use(self):
        self.create(QIMG, "data_file=data", "image", "1M")
        with subprocess.Popen(["qemu-io", "-f", "qcow2", "-c", "sleep 60000", "image"], cwd=self.dir,
                              stdout=subprocess.DEVNULL) as writer:
            try:
                wait_until(lambda: run("qemu-img", "info", "image", check=False, cwd=self.dir).returncode != 0, 30,
                           "qemu-io has the image")
                self.refuses("create", "-f", "qcow2", "-o", "data_file=data", "other", "1M",
                             says=["data", "lock"])
            finally:
                writer.kill()
        self.assertEqual(sorted(os.listdir(self.dir)), ["data", "image"])

    def limited(self, options, size):
        """qimg create, which must fail because files may have at most 3 MiB."""
        done = subprocess.run(["prlimit", f"--fsize={3 * MIB}", QIMG, "create", "-f", "qcow2", *SECRET, "-o", options,
                               "image", size], cwd=self.dir, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("File too large", done.stderr)

    def test_failure_leaves_nothing(self):
        for options in ("data_file=data", "data_file=data,data_file_raw=on,preallocation=full",
                        "preallocation=full," + LUKS, "preallocation=full,extended_l2=on"):
            with self.subTest(options=options):
                self.limited(options, "8M")
                self.assertEqual(os.listdir(self.dir), [])

    def test_failure_leaves_what_was_there(self):
        pathlib.Path(self.path("data")).write_bytes(b"\xaa")
        self.limited("data_file=data", "8M")
        self.assertEqual(os.listdir(self.dir), ["data"])


if __name__ == "__main__":
    unittest.main()
