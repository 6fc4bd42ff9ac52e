# SPDX-License-Identifier: BSD-3-Clause
"""NBD exports with TLS as backing files and as targets of mirrors: certificates and pre-shared keys, from the
plugin's parameters and from URIs.  The exports are nbdkit's."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import unittest

from harness import *
from qmp import Qmp

SIZE = MIB


def certificates(folder, *parties):
    """Makes a certificate authority in the folder, and certificates that it has signed for each party."""
    os.mkdir(folder)

    def openssl(*words):
        run("openssl", *words, cwd=folder)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority",
            "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    for party in parties:
        pathlib.Path(folder, "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n", encoding="ascii")
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={party}", "-keyout", f"{party}-key.pem",
                "-out", "request.pem")
        openssl("x509", "-req", "-in", "request.pem", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-days", "2",
                "-set_serial", str(len(os.listdir(folder))), "-extfile", "names", "-out", f"{party}-cert.pem")


@unittest.skipIf(STANDIN, "needs the plugin")
class Tls(Case):
    @classmethod
    def setUpClass(cls):
        cls.keys = pathlib.Path(tempfile.mkdtemp(prefix="qimg-e2e-tls-", dir=tmp_root()))
        cls.addClassCleanup(shutil.rmtree, cls.keys)
        certificates(cls.keys / "pki", "server", "client")
        certificates(cls.keys / "other")
        (cls.keys / "psk").write_text("alice:" + "a1" * 32 + "\nbob:" + "b2" * 32 + "\n", encoding="ascii")
        (cls.keys / "wrong").write_text("alice:" + "c3" * 32 + "\n", encoding="ascii")

    def export(self, *options, tcp=False):
        """Serves a raw file with TLS; returns the URI without its scheme."""
        base = self.path("base")
        pathlib.Path(base).write_bytes(b"tls!" * (SIZE // 4))
        folder = tempfile.mkdtemp(dir=self.dir)
        pid, sock = os.path.join(folder, "pid"), os.path.join(folder, "sock")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        where = ["-i", "127.0.0.1", "-p", str(port)] if tcp else ["-U", sock]
        process = subprocess.Popen(["nbdkit", "-f", "-P", pid, "--tls=require", *options, *where, "file", base],
                                   stderr=subprocess.DEVNULL)
        self.addCleanup(kill_quietly, process)
        wait_until(lambda: os.path.exists(pid) and os.path.getsize(pid), 20, "the export")
        return f"localhost:{port}/" if tcp else f"/?socket={sock}"

    def certified(self, **kwargs):
        return self.export(f"--tls-certificates={self.keys}/pki", "--tls-verify-peer", **kwargs)

    def shared(self, **kwargs):
        return self.export(f"--tls-psk={self.keys}/psk", **kwargs)

    def overlay(self, uri=None, name="disk"):
        image = create(self.path(name), "qcow2", SIZE)
        if uri:
            run("qemu-img", "rebase", "-u", "-b", uri, "-F", "raw", image)
        return image

    def serves(self, image, *keys):
        server = self.serve(image, *keys)
        self.assertEqual(server.connect().pread(8, 0), b"tls!tls!")
        server.stop()

    def test_certificates(self):
        """Certificates from the parameter, for a backing file that is given or named by the image; and from the URI."""
        for tcp in (True, False):
            with self.subTest(tcp=tcp):
                uri = ("nbds://" if tcp else "nbds+unix://") + self.certified(tcp=tcp)
                param = f"tls-certificates={self.keys}/pki"
                self.serves(self.overlay(uri), param)
                self.serves(self.overlay(), f"backing={uri}", "backing-format=raw", param, "tls-verify=on")
                own = uri + ("&" if "?" in uri else "?") + param
                self.serves(self.overlay(), f"backing={own}", "backing-format=raw")
                self.refused(self.overlay(own), words=["an image may not choose keys"])

    def test_certificates_that_do_not_do(self):
        uri = "nbds://" + self.certified(tcp=True)
        self.refused(self.overlay(uri), f"tls-certificates={self.keys}/other", words=["localhost"])
        self.refused(self.overlay(uri), words=["localhost"])
        # Without --tls-verify-peer the server doesn't verify our certificate; we still verify the server's.
        lax = "nbds://" + self.export(f"--tls-certificates={self.keys}/pki", tcp=True)
        other = f"tls-certificates={self.keys}/other"
        self.refused(self.overlay(lax), other, words=["localhost"])
        self.serves(self.overlay(lax), other, "tls-verify=off")

    def test_pre_shared_keys(self):
        for tcp in (True, False):
            with self.subTest(tcp=tcp):
                scheme, rest = ("nbds://", "nbds+unix://")[not tcp], self.shared(tcp=tcp)
                uri, psk = scheme + rest, f"tls-psk={self.keys}/psk"
                self.serves(self.overlay(uri), psk, "tls-username=alice")
                self.serves(self.overlay(), f"backing={scheme}bob@{rest}", "backing-format=raw", psk)
                own = f"{scheme}bob@{rest}" + ("&" if "?" in rest else "?") + f"tls-psk-file={self.keys}/psk"
                self.serves(self.overlay(), f"backing={own}", "backing-format=raw")
                self.refused(self.overlay(f"{scheme}bob@{rest}"), psk, words=["an image may not choose a user"])
                for keys in ([f"tls-psk={self.keys}/wrong", "tls-username=alice"], [psk, "tls-username=carol"]):
                    self.refused(self.overlay(uri), *keys, words=["nbds"])

    def test_mirror(self):
        """A target with TLS, with the keys from parameters and from the URI."""
        psk = f"tls-psk={self.keys}/psk"
        for scheme, rest, keys, query in (
                ("nbds+unix://", self.certified(), [f"tls-certificates={self.keys}/pki"], ""),
                ("nbds+unix://", self.shared(), [psk, "tls-username=alice"], ""),
                ("nbds+unix://bob@", self.shared(), [], f"&tls-psk-file={self.keys}/psk")):
            with self.subTest(scheme=scheme, keys=keys):
                image = self.overlay()
                fill(image, "qcow2", [(0, b"mine" * 4096)])
                control = self.path("control")
                server = self.serve(image, f"control={control}", *keys)
                with Qmp(control) as qmp:
                    qmp.cmd("drive-mirror", **{"job-id": "job"}, device="drive0", target=scheme + rest + query,
                            sync="full", mode="existing", format="raw")
                    qmp.event("BLOCK_JOB_READY")
                    qmp.cmd("block-job-complete", device="job")
                    self.assertNotIn("error", qmp.event("BLOCK_JOB_COMPLETED")["data"])
                self.assertEqual(server.connect().pread(8, 0), b"minemine")
                server.stop()
                self.assertEqual(pathlib.Path(self.path("base")).read_bytes()[:8], b"minemine")

    def test_parameters(self):
        image = self.overlay()
        for key, says in (("tls-certificates=/nowhere", "tls-certificates=/nowhere: No such file"),
                          (f"tls-certificates={image}", "Not a directory"), ("tls-psk=/nowhere", "No such file"),
                          ("tls-psk=/", "Is a directory"), ("tls-username=", "the name of a user"),
                          ("tls-certificates=", "the name of a folder"), ("tls-verify=maybe", "on or off")):
            with self.subTest(key=key):
                self.refused(image, key, words=[re.escape(key.split("=")[0]), says], name=False)
        self.refused(image, f"tls-psk={self.keys}/psk", f"tls-certificates={self.keys}/pki", name=False,
                     words=["tls-psk=.*can't be used together with tls-certificates"])


if __name__ == "__main__":
    unittest.main()
