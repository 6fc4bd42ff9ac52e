# SPDX-License-Identifier: BSD-3-Clause
"""Names and other texts inside images, all of which are hostile input.

A text must be exactly what is checked: one that continues after a NUL is refused by the server and by
every command, with a message that names the field.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import unittest

from harness import *

SIZE = 2 * MIB
BACKING_FORMAT, FEATURE_NAMES = 0xe2792aca, 0x6803f857


def add_extension(image, kind, payload):
    """Inserts a header extension in front of the others."""
    at = header(image, 100, 4, "big")
    with open(image, "rb") as file:
        file.seek(at)
        rest = file.read(2048)
    padded = payload + bytes(-len(payload) % 8)
    patch(image, at, struct.pack(">II", kind, len(payload)) + padded + rest)


@unittest.skipIf(STANDIN, "needs the plugin")
class HiddenText(Case):
    """A NUL in a text would hide what follows it."""

    def refused_by_all(self, image, words, commands=("info", "map", "check")):
        self.refused(image, "references=any", words=[words])
        for command in commands:
            done = run(QIMG, command, image, check=False)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertRegex(done.stderr, words)

    def test_backing_format(self):
        """A backing format that only begins with "raw" and a NUL."""
        secret = self.path("secret")
        pathlib.Path(secret).write_bytes(b"secret" * 1000)
        for payload in (b"raw\0", b"raw\0qcow2", b"\0raw"):
            with self.subTest(payload=payload):
                image = create(self.path("disk"), "qcow2", SIZE)
                add_extension(image, BACKING_FORMAT, payload)
                patch(image, 8, struct.pack(">QI", 4096, len(secret)))
                patch(image, 4096, os.fsencode(secret))
                self.refused_by_all(image, f"0xe2792aca: the backing format.*NUL byte at {payload.index(0)}")

    def test_backing_name(self):
        for fmt, field, order in (("qcow2", (8, 8), "big"), ("qed", (56, 4), "little")):
            with self.subTest(fmt=fmt):
                base = create(self.path("base"), fmt, SIZE)
                image = create(self.path("disk"), fmt, SIZE, backing=base, backing_fmt=fmt)
                patch(image, header(image, *field, order) + 1, b"\0")
                looking = ("info", "map") if fmt == "qed" else ("info", "map", "check")
                self.refused_by_all(image, "backing_file.*NUL byte at 1, after '/'", looking)

    def test_feature_name(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        add_extension(image, FEATURE_NAMES, bytes([0, 50]) + b"a\0b".ljust(46, b"\0"))
        self.refused_by_all(image, "0x6803f857: the feature name 'a' goes on after a NUL")

    def test_snapshots(self):
        """A NUL in the id or the name of an internal snapshot."""
        for what, place in (("id", 0), ("name", 1)):
            with self.subTest(what=what):
                image = create(self.path("disk"), "qcow2", SIZE)
                run("qemu-img", "snapshot", "-c", "monday", image)
                table = header(image, 64, 8, "big")
                patch(image, table + 40 + header(image, table + 36, 4, "big") + place, b"\0")
                self.refused_by_all(image, "snapshot table entry 0: .*(id|name)", ("info", "map"))
                done = run(QIMG, "check", image, check=False)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertIn("snapshot table entry 0: a NUL byte is in the id or the name", done.stderr)
                run(QIMG, "check", "-r", "all", image)
                self.assertEqual(info(image, "qcow2")["snapshots"][0][what], "?" if what == "id" else "?onday")
                self.serve(image).stop()

    def test_control_characters_are_not_printed(self):
        """A name can't add lines to a log or send control sequences to a terminal."""
        image = create(self.path("disk"), "qcow2", SIZE)
        run("qemu-img", "rebase", "-u", "-F", "raw", "-b", "/no\nwhere\x1b[31m", image)
        message = self.refused(image, words=["/no\\?where\\?"])
        self.assertNotIn("\x1b", message)


@unittest.skipIf(STANDIN, "needs the plugin")
class RecordedNames(Case):
    """A backing name that the server would refuse in an image isn't written into one, not even on request."""

    NAMES = {
        "nbds://me@localhost/": "may not choose a user",
        "nbds+unix:///e?socket=/run/s&tls-psk-file=/etc/keys": "may not choose keys",
        "nbd+unix:///?socket=here": "absolute path only",
        'json:{"driver":"nbd","host":"h","tls-creds":"t0"}': "is not an image's to say",
        "rbd:pool/disk:id=me": "may not choose how Ceph is asked",
    }

    def test_by_commands(self):
        new, source = self.path("new.qcow2"), create(self.path("source.qcow2"), "qcow2", SIZE)
        image = create(self.path("disk.qcow2"), "qcow2", SIZE)
        before = sha256(image)
        for name, says in self.NAMES.items():
            for words in (("create", "-u", "-f", "qcow2", "-b", name, "-F", "raw", new, SIZE),
                          ("create", "-f", "qcow2", "-b", name, "-F", "raw", new),
                          ("create", "-u", "-f", "qed", "-b", name, "-F", "raw", new, SIZE),
                          ("create", "-u", "-f", "qcow2", "-o", f"backing_file={name.replace(',', ',,')},backing_fmt=raw", new, SIZE),
                          ("convert", "-O", "qcow2", "-B", name, "-F", "raw", source, new),
                          ("rebase", "-u", "-b", name, "-F", "raw", image), ("rebase", "-b", name, "-F", "raw", image)):
                with self.subTest(words=words):
                    done = run(QIMG, *words, check=False)
                    self.assertEqual(done.returncode, 1, done)
                    self.assertIn(says, done.stderr)
                    self.assertFalse(os.path.exists(new))
        self.assertEqual(sha256(image), before)
        # Names with unknown protocols are recorded unchanged.
        run(QIMG, "rebase", "-u", "-b", "ssh://host/base", "-F", "raw", image)
        self.assertIn("ssh://host/base", run(QIMG, "info", image).stdout)

    def test_a_relative_name_where_there_is_no_folder(self):
        done = run(QIMG, "create", "-u", "-f", "qcow2", "-b", "base", "-F", "raw", "rbd:pool/disk", SIZE, check=False)
        self.assertIn("no folder", done.stderr)


@unittest.skipIf(STANDIN, "needs the plugin")
class DescribedNames(Case):
    """Backing names in JSON, as QEMU records chains from its command line, and NBD exports in their old
    spelling."""

    def base(self, fmt, name="base"):
        base = create(self.path(name), fmt, SIZE)
        fill(base, fmt, [(MIB, b"base" * 1024)])
        return base

    def overlay(self, name, fmt="qcow2", backing_fmt="qcow2"):
        image = self.path(f"disk.{fmt}")
        run("qemu-img", "create", "-q", "-u", "-f", fmt, "-b", name, "-F", backing_fmt, image, SIZE)
        return image

    def serves(self, image, *keys):
        server = self.serve(image, *keys)
        self.assertEqual(server.connect().pread(8, MIB), b"basebase")
        server.stop()

    def same_for_qemu(self, image):
        self.assertEqual(content(image, "qcow2")[MIB:MIB + 4], b"base")
        for command in ("info", "map"):
            ours, theirs = (run(tool, command, image).stdout for tool in (QIMG, "qemu-img"))
            self.assertEqual(ours, qemu_text(theirs))
            ours, theirs = (qemu_json(run(tool, command, "--output=json", image).stdout) for tool in (QIMG, "qemu-img"))
            self.assertEqual(ours, theirs)

    def test_files(self):
        for fmt in ("qcow2", "qed", "raw"):
            base = self.base(fmt)
            for name in (json_name(driver=fmt, file=dict(driver="file", filename=base)),
                         json_name(driver=fmt, file=dict(driver="file", filename="base")),
                         json_name(driver="file", filename=base),
                         json_name(**{"driver": fmt, "file.driver": "file", "file.filename": base,
                                      "read-only": True, "file.locking": "auto", "node-name": "x"})):
                for top in ("qcow2", "qed"):
                    if top == "qed" and fmt == "raw":
                        continue  # QED records raw by a flag
                    with self.subTest(fmt=fmt, name=name, top=top):
                        image = self.overlay(name, top, fmt)
                        self.serves(image)
                        self.serves(image, "references=dir")
                        self.refused(image, "references=none", words=["references=none"])
                        if top == "qcow2" and self.path("") in name and f'"driver": "{fmt}"' in name:
                            self.same_for_qemu(image)

    def test_what_qemu_wrote(self):
        """A json: backing name that QEMU's tools have recorded is understood."""
        base = self.base("qcow2")
        image = self.path("snap")
        name = json_name(driver="qcow2", file=dict(driver="file", filename=base))
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", image)
        run("qemu-img", "rebase", "-u", "-b", name, "-F", "qcow2", image)
        self.serves(image)

    def test_references_dir(self):
        os.mkdir(self.path("inner"))
        base = self.base("qcow2")
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", json_name(driver="file", filename=base), "-F", "qcow2",
            self.path("inner/disk"), SIZE)
        self.refused(self.path("inner/disk"), "references=dir", words=["not below the image's folder"])
        self.serves(self.path("inner/disk"))

    def test_two_formats(self):
        """The recorded backing format contradicts the one in the name."""
        base = self.base("qcow2")
        image = self.overlay(json_name(driver="raw", file=dict(driver="file", filename=base)))
        self.refused(image, words=["records the backing format 'qcow2', but the name says 'raw'"])
        self.serves(image, "backing-format=qcow2")

    def test_refused(self):
        """Unknown options in a name aren't ignored: they are refused, and the message names them."""
        base = self.base("qcow2")
        file = dict(driver="file", filename=base)
        for words, name in {
                "driver: is neither file nor nbd": json_name(driver="ssh", host="h", path="/x"),
                "file.driver: is missing": json_name(driver="qcow2", file="node"),
                "offset: is not supported": json_name(driver="raw", offset=512, file=file),
                "driver: is neither file nor nbd nor rbd": json_name(driver="qcow2", file=file, backing=dict(driver="null")),
                "foo: is not supported": json_name(driver="qcow2", file=file, backing=dict(driver="raw", file=file, foo=1)),
                "backing: is not supported": json_name(driver="qcow2", file=file, backing="node"),
                "encrypt.key-secret": json_name(driver="qcow2", file=file, encrypt={"key-secret": "s"}),
                "JSON: ": 'json:{"driver"'}.items():
            with self.subTest(words=words):
                self.refused(self.overlay(name), words=["backing name 'json:", re.escape(words)])

    def test_given_by_the_user(self):
        base = self.base("qcow2")
        image = create(self.path("disk"), "qcow2", SIZE)
        name = json_name(driver="qcow2", file=dict(driver="file", filename=base))
        self.serves(image, f"backing={name}")
        run(QIMG, "create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", self.path("new"))
        self.assertEqual(info(self.path("new"), "qcow2")["virtual-size"], SIZE)
        done = run(QIMG, "create", "-q", "-f", "qcow2", "-b", name, "-F", "raw", self.path("new"), check=False)
        self.assertRegex(done.stderr, "'raw' is not the one in the name, 'qcow2'")

    def test_nbd(self):
        """An export whose name has all special characters, in each spelling of a backing name."""
        export, path = "a b/c:d?e%20", self.path("so:ck")
        base = self.base("raw")
        port = free_port()
        with contextlib.ExitStack() as stack:
            for where in (["-k", path], ["-b", "127.0.0.1", "-p", str(port)]):
                nbd_server = subprocess.Popen(["qemu-nbd", "-t", "-e8", "-r", "-f", "raw", "-x", export, *where, base])
                stack.callback(nbd_server.wait)
                stack.callback(nbd_server.kill)
            await_listener(path)
            wait_until(lambda: accepts(port), 20, "qemu-nbd's port")
            for name in (f"nbd:unix:{path}:exportname={export}", f"nbd:127.0.0.1:{port}:exportname={export}",
                         json_name(driver="nbd", path=path, export=export),
                         json_name(driver="nbd", host="127.0.0.1", port=str(port), export=export),
                         json_name(driver="raw", file=dict(driver="nbd", export=export,
                                                           server=dict(type="unix", path=path))),
                         json_name(driver="nbd", export=export, server=dict(type="inet", host="127.0.0.1", port=str(port)))):
                with self.subTest(name=name):
                    image = self.overlay(name, backing_fmt="raw")
                    self.serves(image)
                    if not name.startswith('json:{"driver": "nbd"'):  # QEMU needs the format driver in the name
                        self.assertEqual(content(image, "qcow2")[MIB:MIB + 4], b"base")
                    self.refused(image, "references=dir", words=["references=dir"])
                    self.refused(image, "references=none", words=["references=none"])
                    bare = create(self.path("bare"), "qcow2", SIZE)
                    self.serves(bare, f"backing={name}", "backing-format=raw")

    def test_rbd(self):
        """R-10: references= restricts images on Ceph like exports, before Ceph is contacted: in each form of the name,
        as a backing file, a backing file's backing file, and a data file."""
        top = create(self.path("top"), "qcow2", SIZE)
        for number, name in enumerate(("rbd:pool/disk", json_name(driver="rbd", pool="pool", image="disk"),
                                       json_name(driver="raw", file=dict(driver="rbd", pool="pool", image="disk")))):
            image = self.path(f"over{number}.qcow2")
            os.rename(self.overlay(name, backing_fmt="raw"), image)
            for policy in ("dir", "none"):
                with self.subTest(name=name, policy=policy):
                    self.refused(image, f"references={policy}", words=[f"references={policy}", "pool"])
                    self.refused(top, f"backing={image}", f"references={policy}", words=[f"references={policy}", "pool"],
                                 name=False)
        data = self.path("data")
        disk = self.path("disk")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", disk, SIZE)
        header = pathlib.Path(disk).read_bytes()
        pathlib.Path(disk).write_bytes(header.replace(data.encode(), b"rbd:pool/data".ljust(len(data), b"x")))
        for policy in ("dir", "none"):
            with self.subTest(policy=policy):
                self.refused(disk, f"references={policy}", words=[f"names rbd:pool/data.*references={policy}"])

    def test_hosts_that_are_none(self):
        for host in ("a/b", "h?socket=/x", "u@h", "a%2fb", ""):
            with self.subTest(host=host):
                image = self.overlay(json_name(driver="nbd", host=host, port="1"), backing_fmt="raw")
                self.refused(image, words=["the host is not a name" if host else "nbd://"])

    def test_sockets_of_images_are_absolute(self):
        for name in ("nbd:unix:relative", json_name(driver="nbd", path="relative")):
            self.refused(self.overlay(name, backing_fmt="raw"), words=["absolute"])


def json_name(**description):
    return "json:" + json.dumps(description)


def accepts(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    unittest.main()
