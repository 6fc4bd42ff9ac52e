# SPDX-License-Identifier: BSD-3-Clause
"""NBD exports in --image-opts, compared with qemu-img: with the keys of --object, and with the map of another
meta context (x-dirty-bitmap)."""

import json
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from harness import *
from test_names import accepts
from test_tls import certificates

SIZE = 4 * MIB
KINDS = ("x509", "psk")


class Beside(Case):
    """Runs both programs with the same arguments; their results must be the same."""

    def both(self, *words, check=True):
        found = []
        for tool in ("qemu-img", QIMG):
            done = run(tool, *words, check=False, cwd=self.dir)
            self.assertEqual(done.returncode == 0, check, f"{tool}: {done.stdout}{done.stderr}")
            found.append(done)
        return found

    def same_map(self, *words):
        theirs, ours = self.both("map", "--output=json", *words)
        self.assertEqual(json.loads(theirs.stdout), json.loads(ours.stdout))
        return json.loads(ours.stdout)


@unittest.skipIf(STANDIN, "needs libnbd's TLS")
class TlsCreds(Beside):
    @classmethod
    def setUpClass(cls):
        cls.keys = pathlib.Path(tempfile.mkdtemp(prefix="qimg-e2e-creds-", dir=tmp_root()))
        cls.addClassCleanup(shutil.rmtree, cls.keys)
        certificates(cls.keys / "pki", "server", "client")
        certificates(cls.keys / "other", "client")
        for folder, key in (("psk", "a1"), ("wrong", "c3")):
            (cls.keys / folder).mkdir()
            (cls.keys / folder / "keys.psk").write_text(f"qemu:{key * 32}\nbob:{key * 32}\n", encoding="ascii")

    def setUp(self):
        super().setUp()
        pathlib.Path(self.path("disk")).write_bytes(b"tls!" * (SIZE // 4))
        self.port = {}
        for kind, words in (("x509", [f"--tls-certificates={self.keys}/pki", "--tls-verify-peer"]),
                            ("psk", [f"--tls-psk={self.keys}/psk/keys.psk"])):
            self.port[kind] = str(free_port())
            server = subprocess.Popen(["nbdkit", "-f", "-i", "127.0.0.1", "-p", self.port[kind], "--tls=require", *words, "file",
                                       self.path("disk")], stderr=subprocess.DEVNULL)
            self.addCleanup(kill_quietly, server)
            wait_until(lambda kind=kind: accepts(int(self.port[kind])), 20, "nbdkit's port")

    def words(self, kind, folder=None, object_more="", more=""):
        """The arguments --object and --image-opts for a server with this kind of keys."""
        folder = folder or {"x509": "pki", "psk": "psk"}[kind]
        return ["--object", f"tls-creds-{kind},id=t0,dir={self.keys}/{folder},endpoint=client{object_more}", "--image-opts",
                f"driver=raw,file.driver=nbd,file.host=localhost,file.port={self.port[kind]},file.tls-creds=t0{more}"]

    def test_each_command(self):
        for kind in KINDS:
            with self.subTest(kind=kind, command="measure"):
                theirs, ours = self.both("measure", "-O", "qcow2", *self.words(kind))
                self.assertEqual(theirs.stdout, ours.stdout)
            with self.subTest(kind=kind, command="map"):
                self.assertEqual(sum(run["length"] for run in self.same_map(*self.words(kind))), SIZE)
            with self.subTest(kind=kind, command="info"):
                theirs, ours = (json.loads(done.stdout) for done in self.both("info", "--output=json", *self.words(kind)))
                for key in ("virtual-size", "format"):
                    self.assertEqual(theirs[key], ours[key])
            with self.subTest(kind=kind, command="convert"):
                self.both("convert", "-O", "raw", *self.words(kind), self.path("copy"))
                self.assertEqual(sha256(self.path("copy")), sha256(self.path("disk")))
            with self.subTest(kind=kind, command="compare"):
                opts = self.words(kind)
                self.both("compare", *opts, opts[-1])

    def test_written_to(self):
        pathlib.Path(self.path("new")).write_bytes(b"new!" * (SIZE // 4))
        for kind in KINDS:
            with self.subTest(kind=kind):
                words = self.words(kind)
                run(QIMG, "convert", "-n", "-f", "raw", *words[:2], "--target-image-opts", self.path("new"), words[-1])
                self.assertEqual(sha256(self.path("new")), sha256(self.path("disk")))
                pathlib.Path(self.path("disk")).write_bytes(b"tls!" * (SIZE // 4))

    def test_in_json(self):
        """Object and image are given in JSON."""
        name = "json:" + json.dumps({"driver": "raw", "file": {"driver": "nbd", "server": {
            "type": "inet", "host": "localhost", "port": self.port["x509"]}, "tls-creds": "t0"}})
        creds = json.dumps({"qom-type": "tls-creds-x509", "id": "t0", "dir": f"{self.keys}/pki", "endpoint": "client", "verify-peer": True})
        self.both("convert", "-O", "raw", "--object", creds, name, self.path("copy"))
        self.assertEqual(sha256(self.path("copy")), sha256(self.path("disk")))

    def test_whose_keys(self):
        for kind, folder in (("x509", "other"), ("psk", "wrong")):
            with self.subTest(kind=kind):
                self.both("info", *self.words(kind, folder), check=False)
        self.both("info", *self.words("psk", object_more=",username=bob"))
        self.both("info", *self.words("psk", object_more=",username=eve"), check=False)
        self.both("info", *self.words("x509")[2:], check=False)

    def test_whether_the_server_is_verified(self):
        """verify-peer and tls-hostname; the server's certificate is for localhost."""
        words = self.words("x509")
        as_address = words[-1].replace("localhost", "127.0.0.1")
        self.both("info", *words[:3], as_address)
        lax = self.words("x509", object_more=",verify-peer=off")
        self.both("info", *lax)
        self.both("info", *self.words("x509", more=",file.tls-hostname=localhost"))
        self.both("info", *self.words("x509", more=",file.tls-hostname=elsewhere.example"), check=False)
        self.both("info", *self.words("x509", object_more=",verify-peer=off", more=",file.tls-hostname=elsewhere.example"))

    def test_a_server_on_a_unix_socket(self):
        """A Unix socket has no host name to verify the certificate against, so verify-peer has to be off."""
        sock = self.path("sock")
        server = subprocess.Popen(["nbdkit", "-f", "-U", sock, "--tls=require", f"--tls-certificates={self.keys}/pki", "file",
                                   self.path("disk")], stderr=subprocess.DEVNULL)
        self.addCleanup(kill_quietly, server)
        await_listener(sock)
        opts = f"driver=nbd,path={sock},tls-creds=t0"
        creds = f"tls-creds-x509,id=t0,dir={self.keys}/"
        for words, good in ((f"{creds}pki", False), (f"{creds}other", False), (f"{creds}pki,verify-peer=off", True)):
            with self.subTest(words=words):
                done = self.both("info", "--object", words, "--image-opts", opts, check=good)[1]
                self.assertEqual("no host's name" in done.stderr, not good)

    def test_refused(self):
        image = self.words("x509")[2:]
        for words, says in (("tls-creds-x509,id=t0", "dir: is missing"), (f"tls-creds-x509,id=t0,dir={self.keys}/none", "No such file"),
                            (f"tls-creds-x509,id=t0,dir={self.keys}/pki,endpoint=server", "endpoint: must be client"),
                            (f"tls-creds-x509,id=t0,dir={self.keys}/pki,verify-peer=maybe", "verify-peer: must be on or off"),
                            (f"tls-creds-x509,id=t0,dir={self.keys}/pki,color=red", "color: is not supported"),
                            (f"tls-creds-x509,id=t0,dir={self.keys}/pki,username=x", "username: is not supported"),
                            (f"tls-creds-psk,id=t0,dir={self.keys}/pki", "keys.psk: No such file"),
                            (f"tls-creds-x509,dir={self.keys}/pki", "'id' is missing"), ('{"qom-type":1}', "must be a string"),
                            ("{", "must be an object in JSON"), ("tls-creds-anon,id=t0", "does not accept value 'tls-creds-anon'"),
                            (f"tls-creds-x509,id=t1,dir={self.keys}/pki", "tls-creds: there are no TLS credentials of that id")):
            with self.subTest(words=words):
                done = self.both("info", "--object", words, *image, check=False)[1]
                self.assertIn(says, done.stderr)
        one = self.words("x509")
        self.assertIn("'t0' already", self.both("info", *one[:2], *one, check=False)[1].stderr)

    def test_no_image_says_it(self):
        """tls-creds in an image's backing name is refused: only the user chooses keys."""
        name = "json:" + json.dumps({"driver": "nbd", "host": "localhost", "port": self.port["x509"], "tls-creds": "t0"})
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", self.path("top"), str(SIZE))
        done = run(QIMG, "map", *self.words("x509")[:2], self.path("top"), check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("tls-creds: is not an image's to say", done.stderr)


class Marks(Beside):
    """x-dirty-bitmap: the map shows a dirty bitmap or allocation depths instead of data and holes."""

    def setUp(self):
        super().setUp()
        image = create(self.path("base"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, b"b" * MIB)])
        image = create(self.path("disk"), "qcow2", SIZE, backing="base", backing_fmt="qcow2")
        run("qemu-img", "bitmap", "--add", image, "b0")
        fill(image, "qcow2", [(MIB // 2, b"d" * MIB), (3 * MIB, bytes(64 * 1024))])
        run("qemu-img", "bitmap", "--add", "--disable", image, "none")
        self.sock = self.path("s")
        server = subprocess.Popen(["qemu-nbd", "-t", "-e8", "-r", "-f", "qcow2", "-k", self.sock, "-A", "-B", "b0", "-B", "none",
                                   image])
        self.addCleanup(kill_quietly, server)
        await_listener(self.sock)
        self.opts = f"driver=nbd,server.type=unix,server.path={self.sock}"

    def test_map(self):
        for context in ("qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:none", "qemu:allocation-depth", "base:allocation"):
            alone = f"{self.opts},x-dirty-bitmap={context}"
            for opts in (alone, "driver=raw,file." + alone.replace(",", ",file.")):
                with self.subTest(opts=opts):
                    self.same_map("--image-opts", opts)
                    theirs, ours = self.both("map", "--image-opts", opts)
                    self.assertEqual(*[[line.split()[:2] for line in done.stdout.splitlines()] for done in (theirs, ours)])
        self.assertEqual([run["data"] for run in self.same_map("--image-opts", f"{self.opts},x-dirty-bitmap=qemu:dirty-bitmap:b0")],
                         [True, False, True, False, True])

    def test_its_content_is_what_it_is(self):
        """The disk's content doesn't depend on x-dirty-bitmap; qemu-img would take clean ranges for zeroes."""
        flat = content(self.path("disk"), "qcow2")
        for context in ("qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:none", "qemu:allocation-depth"):
            opts = f"{self.opts},x-dirty-bitmap={context}"
            with self.subTest(context=context):
                run(QIMG, "convert", "-O", "raw", "--image-opts", opts, self.path("copy"))
                self.assertEqual(pathlib.Path(self.path("copy")).read_bytes(), flat)
                self.both("info", "--image-opts", opts)
                run(QIMG, "compare", "--image-opts", opts, self.opts)

    def test_refused(self):
        done = self.both("map", "--image-opts", f"{self.opts},x-dirty-bitmap=qemu:dirty-bitmap:b9", check=False)[1]
        self.assertIn("the server has no meta context 'qemu:dirty-bitmap:b9'", done.stderr)
