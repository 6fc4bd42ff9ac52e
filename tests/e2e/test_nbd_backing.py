# SPDX-License-Identifier: BSD-3-Clause
"""Backing files that are NBD exports, given with backing= or named by the image itself."""

import errno
import os
import unittest

import nbd

from harness import KIB, MIB, Model, run
from remote_base import RemoteBase


class NbdBacking(RemoteBase):
    """The base is nbdkit's own file plugin on a raw file."""

    def serve_base(self):
        content = bytearray(4 * MIB)
        content[:256 * KIB] = b"\x11" * (256 * KIB)
        content[MIB:2 * MIB] = b"\x22" * MIB
        content[-512:] = b"\x33" * 512
        self.write_base(content)
        self.start_base()
        return content

    def overlay(self, fmt, backing=None):
        path = self.path(f"overlay.{fmt}")
        words = ["create", "-q", "-u", "-f", fmt]
        if backing:
            words += ["-b", backing, "-F", "raw"]
        run("qemu-img", *words, path, "4M")
        return path

    def exercise(self, server, model):
        handle = server.connect()
        model.compare(handle)
        model.write(handle, 100 * KIB + 7, b"\x44" * 5000)
        model.zero(handle, MIB + 3000, 200 * KIB)
        model.write(handle, 3 * MIB, b"\x55" * 512)
        handle.flush()
        model.compare(handle)

    def test_given_or_named(self):
        """M-20"""
        for fmt in "qcow2", "qed":
            for named in False, True:
                with self.part(fmt=fmt, named=named):
                    model = Model(self.serve_base())
                    path = self.overlay(fmt, self.uri if named else None)
                    keys = [] if named else [f"backing={self.uri}", "backing-format=raw"]
                    server = self.serve(path, *keys)
                    self.exercise(server, model)
                    server.stop()
                    self.exercise(self.serve(path, *keys), model)
                    self.end_base()

    def test_policy(self):
        path = self.overlay("qcow2", "nbd+unix:///?socket=/nowhere/s")
        self.refused(path, "references=dir", words=["references=dir", r"nbd\+unix:"])
        self.refused(path, "references=none", words=["references=none"])
        self.refused(path, words=["/nowhere/s", "No such file"])
        path = self.overlay("qcow2", "nbd+unix:///?socket=relative")
        self.refused(path, words=["absolute"])
        for name in "nbd+ssh://host/x", "nbd+vsock:///":
            path = self.overlay("qcow2", name)
            self.refused(path, words=["protocol"])
        plain = self.overlay("qcow2")
        self.refused(plain, "backing=nbd+unix:///x", words=["socket="], name=False)
        self.refused(plain, "backing=ssh://host/x", words=["ssh:"], name=False)

    def test_raw_is_not_guessed(self):
        self.serve_base()
        self.refused(self.overlay("qcow2"), f"backing={self.uri}", words=["raw is never guessed"],
                     name=False)

    def test_relative_name_in_an_export(self):
        inner = self.path("inner.qcow2")
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "raw", inner, "4M")
        self.serve_base()
        os.replace(inner, self.path("base.raw"))
        self.end_base()
        self.start_base()
        self.refused(self.overlay("qcow2"), f"backing={self.uri}", "backing-format=qcow2",
                     words=["no folder"], name=False)

    def test_the_server_goes_and_comes_back(self):
        model = Model(self.serve_base())
        server = self.serve(self.overlay("qcow2"), f"backing={self.uri}", "backing-format=raw")
        handle = server.connect()
        model.compare(handle, 0, 64 * KIB)
        self.end_base()
        self.start_base()
        model.compare(handle)
        server.stop()

    def test_the_server_is_gone(self):
        """without a connection to the base's server reads fail with EIO: NBD has no better error"""
        self.serve_base()
        server = self.serve(self.overlay("qcow2"), f"backing={self.uri}", "backing-format=raw")
        handle = server.connect()
        handle.pread(512, 0)
        self.end_base()
        with self.assertRaises(nbd.Error) as caught:
            handle.pread(512, 0)
        self.assertEqual(caught.exception.errnum, errno.EIO)
        server.stop()


if __name__ == "__main__":
    unittest.main()
