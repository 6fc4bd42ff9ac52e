# SPDX-License-Identifier: BSD-3-Clause
"""Intermediate commit: layers of a chain are committed into one below them, under the active layer."""

import os
import threading
import time
import unittest

from harness import KIB, LONG, MIB, Case, Model, create, check, content, info, run, sha256
from qmp import Qmp, QmpError


class Fold(Case):
    """The chain base <- middle <- top <- active; each layer has its own data."""

    def chain(self, formats=("raw", "qcow2", "qed", "qcow2"), sizes=(4 * MIB,) * 4):
        names = "base", "middle", "top", "active"
        below, disk = None, bytearray(sizes[-1])
        for i, (name, fmt, size) in enumerate(zip(names, formats, sizes)):
            words = ["-b", below[0], "-F", below[1]] if below else []
            run("qemu-img", "create", "-q", "-f", fmt, *words, self.path(name), str(size), cwd=self.dir)
            for off, length in (i * 300 * KIB, 500 * KIB), (2 * MIB + i * 64 * KIB, 64 * KIB + 512):
                run("qemu-io", "-f", fmt, "-c", f"write -P {i + 1} {off} {length}",
                    self.path(name), cwd=self.dir)
                disk[off:off + length] = bytes([i + 1]) * length
            below = name, fmt
        run("qemu-io", "-f", formats[2], "-c", "write -z 3M 128k", self.path("top"))
        return Model(disk)

    def start(self, model, *keys):
        server = self.serve(self.path("active"), f"control={self.path('qmp')}", "need-check-delay=0", *keys)
        model.compare(server.connect())
        return server, self.control()

    def read_base(self, base="base", fmt="raw", **kwargs):
        return run("qemu-io", "-r", "-f", fmt, "-c", "read 0 512", self.path(base), **kwargs)

    def control(self):
        qmp = Qmp(self.path("qmp"))
        self.addCleanup(qmp.close)
        return qmp

    def files(self, qmp):
        return [node["file"] for node in qmp.cmd("query-named-block-nodes")]

    def expect_chain(self, *names):
        """The chain, as qemu-img reads it from the files after the server's end, must be these names."""
        for above, below in zip(names, names[1:]):
            said = info(self.path(above), "qed" if above == "top" else "qcow2")
            self.assertEqual(os.path.basename(said["full-backing-filename"]), below)

    def folded(self, top, base):
        model = self.chain()
        server, qmp = self.start(model)
        handle = server.handles[0]
        qmp.cmd("block-commit", device="drive0", top=self.path(top), base=self.path(base), **{"job-id": "c"})
        stop, failed = threading.Event(), []

        def write():
            rng, other = self.rng, server.connect()
            try:
                while not stop.is_set():
                    off = rng.randrange(len(model) // 512) * 512
                    length = min(rng.randrange(1, 100) * 512, len(model) - off)
                    model.write(other, off, bytes([rng.randrange(256)]) * length)
                    model.compare(other, off, length)
            except Exception as error:  # reported by the main thread
                failed.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        done = qmp.event("BLOCK_JOB_COMPLETED")
        stop.set()
        writer.join()
        self.assertEqual(failed, [])
        self.assertNotIn("error", done["data"], done)
        self.assertEqual(done["data"]["type"], "commit")
        self.assertEqual(done["data"]["offset"], done["data"]["len"])
        model.compare(handle)
        handle.flush()
        names = [os.path.basename(name) for name in self.files(qmp)]
        server.stop()
        for name in "middle", "active":
            check(self.path(name), "qcow2")
        return model, names

    def test_each_range(self):
        for top, base, left in (
            ("top", "middle", ["active", "middle", "base"]),
            ("top", "base", ["active", "base"]),
            ("middle", "base", ["active", "top", "base"]),
        ):
            with self.part(top=top, base=base):
                model, names = self.folded(top, base)
                self.assertEqual(names, left)
                self.expect_chain(*left)
                self.assertEqual(content(self.path("active"), "qcow2"), bytes(model.data), "as QEMU reads it")

    def hashes(self):
        return [sha256(self.path(name)) for name in ("base", "middle", "top", "active")]

    def test_read_only(self):
        """with nbdkit -r the job is refused and no image changes"""
        self.chain()
        before = self.hashes()
        for connected in (False, True):
            for option in ("-r", "-vr", "--readonly"):
                with self.subTest(option=option, connected=connected):
                    server = self.serve(self.path("active"), f"control={self.path('qmp')}", nbdkit=(option,))
                    if connected:
                        server.connect().pread(512, 0)
                    qmp = self.control()
                    for arguments in ({"top": self.path("top"), "base": self.path("middle")}, {}):
                        with self.assertRaisesRegex(QmpError, "active: .*-r"):
                            qmp.cmd("block-commit", device="drive0", **arguments)
                    self.read_base()
                    server.stop()
                    self.assertEqual(self.hashes(), before)

    def test_locks_afterwards(self):
        """after the job the server only has the locks that it had before, with or without a connected writer"""
        for base, top in ("middle", "top"), ("base", "middle"):
            for connected in (False, True):
                with self.part(base=base, top=top, connected=connected):
                    self.chain()
                    server = self.serve(self.path("active"), f"control={self.path('qmp')}")
                    if connected:
                        server.connect()
                    qmp = self.control()
                    qmp.cmd("block-commit", device="drive0", top=self.path(top), base=self.path(base))
                    qmp.event("JOB_STATUS_CHANGE", status="null")
                    for name, fmt in ("base", "raw"), ("middle", "qcow2"), ("top", "qed"):
                        self.read_base(name, fmt)
                    refused = self.read_base("active", "qcow2", check=False).returncode != 0
                    self.assertEqual(refused, connected)
                    server.stop()

    def test_names(self):
        """layers can be named as the images name them; relative names are relative to the image, not to the server's
        current folder"""
        other = self.path("other")
        os.mkdir(other)
        for name in "top", "middle":  # decoys in the server's current folder
            run("qemu-img", "create", "-q", "-f", "raw", os.path.join(other, name), MIB)
        for top, base in (("top", "middle"), ("./top", "../" + os.path.basename(self.dir) + "/middle"),
                          (self.path("other/../top"), self.path("middle"))):
            with self.subTest(top=top, base=base):
                model = self.chain()
                server = self.serve(self.path("active"), f"control={self.path('qmp')}",
                                    prefix=["env", f"--chdir={other}"])
                model.compare(server.connect())
                qmp = self.control()
                for wrong in os.path.join(other, "middle"), "other/middle", "nowhere":
                    with self.assertRaisesRegex(QmpError, "is not a backing file"):
                        qmp.cmd("block-commit", device="drive0", top=top, base=wrong)
                qmp.cmd("block-commit", device="drive0", top=top, base=base)
                self.assertNotIn("error", qmp.event("BLOCK_JOB_COMPLETED")["data"])
                self.assertEqual([os.path.basename(name) for name in self.files(qmp)], ["active", "middle", "base"])
                server.stop()

    def test_events_and_no_ready(self):
        """M-36"""
        model = self.chain()
        server, qmp = self.start(model)
        qmp.cmd("block-commit", device="drive0", top=self.path("top"), base=self.path("middle"),
                speed=1, **{"job-id": "c"})
        with self.assertRaises(QmpError):
            qmp.cmd("block-job-complete", device="c")
        with self.assertRaisesRegex(QmpError, "'c' uses the disk"):
            qmp.cmd("block-commit", device="drive0", **{"job-id": "d"})
        with self.assertRaisesRegex(QmpError, "'c' uses the disk"):
            qmp.cmd("drive-mirror", device="drive0", target=self.path("x"), sync="full", **{"job-id": "d"})
        # While the job runs no other program can read the base.
        self.assertIn("lock", self.read_base("middle", "qcow2", check=False).stderr)
        qmp.cmd("block-job-cancel", device="c")
        qmp.event("BLOCK_JOB_CANCELLED")
        self.read_base("middle", "qcow2")
        model.compare(server.handles[0])
        self.assertEqual(len(self.files(qmp)), 4)
        server.stop()
        self.expect_chain("active", "top", "middle", "base")
        self.assertEqual(content(self.path("active"), "qcow2"), bytes(model.data))

    def test_killed(self):
        """kill -9 at any moment: the disk's content is unchanged, whether the chain is the old or the new one."""
        for _ in range(40 if LONG else 6):
            with self.part():
                model = self.chain(("qcow2", "qcow2", "qed", "qcow2"))
                server, qmp = self.start(model)
                qmp.cmd("block-commit", device="drive0", top=self.path("top"), base=self.path("base"),
                        speed=self.rng.choice([0, 4 * MIB]), **{"job-id": "c"})
                time.sleep(self.rng.random() * 0.1)
                qmp.close()
                server.kill()
                for name in "base", "middle", "active":
                    check(self.path(name), "qcow2", allow_leaks=True)
                self.assertEqual(content(self.path("active"), "qcow2"), bytes(model.data))
                os.unlink(self.path("qmp"))
                again, _ = self.start(model)
                again.stop()

    def test_sizes(self):
        """M-30"""
        for sizes, works in (((2 * MIB, 3 * MIB, 4 * MIB, 4 * MIB), True),
                             ((4 * MIB, 2 * MIB, 2 * MIB, 2 * MIB), True),
                             ((4 * MIB, 1536 * KIB, 4 * MIB, 4 * MIB), True),
                             ((4 * MIB, 2 * MIB, 2 * MIB, 4 * MIB), False)):
            with self.part(sizes=sizes):
                for i, size in enumerate(sizes):
                    fmt = ("raw", "qcow2", "qed", "qcow2")[i]
                    back = ["-b", ("base", "middle", "top")[i - 1], "-F", ("raw", "qcow2", "qed")[i - 1]]
                    path = self.path(("base", "middle", "top", "active")[i])
                    run("qemu-img", "create", "-q", "-f", fmt, *(back if i else []), path, str(size), cwd=self.dir)
                    run("qemu-io", "-f", fmt, "-c", f"write -P {i + 1} {size - 64 * KIB} 64k",
                        "-c", f"write -P {i + 1} {i * 64 * KIB} 64k", path, cwd=self.dir)
                before = content(self.path("active"), "qcow2")
                server, qmp = self.start(Model(before))
                arguments = {"device": "drive0", "top": self.path("top"), "base": self.path("base"), "job-id": "c"}
                if works:
                    qmp.cmd("block-commit", **arguments)
                    qmp.event("BLOCK_JOB_COMPLETED")
                else:
                    with self.assertRaisesRegex(QmpError, "would show"):
                        qmp.cmd("block-commit", **arguments)
                Model(before).compare(server.connect())
                server.stop()
                self.assertEqual(content(self.path("active"), "qcow2"), before)

    def test_active_commit_into_a_larger_base(self):
        """M-30"""
        for fmt in "qcow2", "raw", "qed":
            with self.part(fmt=fmt):
                create(self.path("base"), fmt, 4 * MIB)
                run("qemu-io", "-f", fmt, "-c", "write -P 1 0 4M", self.path("base"))
                create(self.path("active"), "qcow2", 2 * MIB, backing=self.path("base"), backing_fmt=fmt)
                model = Model(bytearray(b"\1" * (2 * MIB)))
                server, qmp = self.start(model)
                handle = server.handles[0]
                model.write(handle, MIB, b"\2" * MIB)
                qmp.cmd("block-commit", device="drive0", **{"job-id": "c"})
                qmp.event("BLOCK_JOB_READY")
                qmp.cmd("block-job-complete", device="c")
                self.assertNotIn("error", qmp.event("BLOCK_JOB_COMPLETED")["data"])
                model.write(handle, 0, b"\3" * 512)
                model.compare(handle)
                self.assertEqual(server.connect().get_size(), 4 * MIB)
                server.stop()
                self.assertEqual(content(self.path("base"), fmt), bytes(model.data) + b"\1" * (2 * MIB))

    def test_bad_arguments(self):
        """M-31"""
        model = self.chain()
        _, qmp = self.start(model)
        for arguments, words in (
            ({"top": self.path("nothing")}, "top .*nothing"),
            ({"base": self.path("active")}, "base .*active"),
            ({"top": self.path("middle"), "base": self.path("top")}, "base .*top"),
            ({"top": self.path("base")}, "base"),
        ):
            with self.assertRaisesRegex(QmpError, words):
                qmp.cmd("block-commit", device="drive0", **{"job-id": "c"}, **arguments)
        self.read_base()
        self.assertEqual(qmp.cmd("query-block-jobs"), [])

    def test_a_base_that_others_read(self):
        """M-36"""
        model = self.chain()
        _, qmp = self.start(model)
        other = self.serve(self.path("middle"), nbdkit=["-r"])
        for base in "middle", "base":
            with self.assertRaisesRegex(QmpError, "lock"):
                qmp.cmd("block-commit", device="drive0", top=self.path("top"), base=self.path(base),
                        **{"job-id": "c"})
        other.stop()
        qmp.cmd("block-commit", device="drive0", top=self.path("top"), base=self.path("middle"), **{"job-id": "c"})
        self.assertNotIn("error", qmp.event("BLOCK_JOB_COMPLETED")["data"])


if __name__ == "__main__":
    unittest.main()
