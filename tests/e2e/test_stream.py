# SPDX-License-Identifier: BSD-3-Clause
"""block-stream: data from layers below is copied into a layer while clients write.  M-53"""

import os
import random
import time

import harness
from harness import KIB, MIB, SEED, check, create, fill, run
from test_overlays import OverlayCase, ROUNDS
from writers import Writers


class StreamCase(OverlayCase):
    def chain(self, depth=3, formats=("qcow2", "qed"), sizes=None):
        """Makes the disk over `depth` images, each with its own data; self.files has the active layer first."""
        rng = self.rng
        self.make(rng.choice(["qcow2", "qed", "raw"]))
        self.files = [(self.image, self.fmt)]
        for number in range(depth):
            fmt = rng.choice(formats)
            path = self.path(f"layer{number}.{fmt}")
            below, below_fmt = self.files[0]
            create(path, fmt, self.SIZE, backing=below, backing_fmt=below_fmt)
            pieces = [(off, rng.randbytes(20 * KIB)) for off in range(number * 30 * KIB, self.SIZE - 20 * KIB, 430 * KIB)]
            fill(path, fmt, pieces)
            for off, payload in pieces:
                self.content[off:off + len(payload)] = payload
            self.files.insert(0, (path, fmt))
        self.image, self.fmt = self.files[0]

    def stream(self, device="drive0", **arguments):
        self.client.cmd("block-stream", job_id="job", device=device, **arguments)
        self.ended()

    def good(self):
        """The disk must have the right content, over NBD and after the server's end."""
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.server.stop()
        check(self.image, self.fmt)
        self.expect_content(self.image, self.fmt)

    def backing(self, path=None, fmt=None):
        return harness.info(path or self.image, fmt or self.fmt).get("full-backing-filename")


class Stream(StreamCase):
    def test_all(self):
        """a stream of everything: the disk has no backing file, and the other files can be deleted"""
        self.chain()
        self.begin()
        self.write(MIB, b"before" * 1000)
        self.client.cmd("block-stream", job_id="job", device="drive0")
        data = self.expect_event("BLOCK_JOB_COMPLETED")
        self.assertEqual((data["type"], data["len"], data["offset"]), ("stream", self.SIZE, self.SIZE))
        self.assertEqual(self.names(), ["drive0"])
        self.assertNotIn("backing-filename", self.client.cmd("query-block")[0]["inserted"]["image"])
        for path, _ in self.files[1:]:
            os.unlink(path)
        self.write(3 * MIB, b"behind" * 1000)
        self.disk.zero(64 * KIB, MIB)
        self.content[MIB:MIB + 64 * KIB] = bytes(64 * KIB)
        self.disk.flush()
        self.good()
        self.assertIsNone(self.backing())

    def test_to_a_base(self):
        """a stream down to a base that is given by file name, by node name, or as the layer above it (bottom)"""
        for arguments in ({"base": None}, {"base_node": "drive0#2"}, {"bottom": "drive0#1"}):
            with self.subTest(arguments=str(arguments)):
                self.chain()
                if "base" in arguments:
                    arguments["base"] = self.files[2][0]
                self.begin()
                self.stream(**arguments)
                self.assertEqual(self.names(), ["drive0", "drive0#1", "drive0#2"])
                self.good()
                self.assertEqual(self.backing(), self.files[2][0])

    def test_the_written_name(self):
        self.chain()
        self.begin()
        self.stream(base_node="drive0#3", backing_file=os.path.basename(self.files[3][0]))
        self.good()
        self.assertEqual(harness.info(self.image, self.fmt)["backing-filename"], os.path.basename(self.files[3][0]))

    def test_into_another_layer(self):
        """streams into the second of four layers: first down to the last one, then everything"""
        self.chain()
        self.begin()
        self.stream("drive0#1", base_node="drive0#3")
        self.assertEqual(self.names(), ["drive0", "drive0#1", "drive0#2"])
        self.same(bytes(self.disk.pread(self.SIZE, 0)), "the disk")
        self.assertEqual(self.backing(*self.files[1]), self.files[3][0])
        self.write(0, b"goes on")
        self.stream("drive0#1")
        self.assertEqual(self.names(), ["drive0", "drive0#1"])
        check(*self.files[1])
        os.unlink(self.files[2][0])
        os.unlink(self.files[3][0])
        self.good()
        self.assertEqual(self.backing(), self.files[1][0])

    def test_shorter_layers(self):
        """data that a shorter layer hid stays hidden when that layer is removed"""
        for fmt, options in (("qcow2", ""), ("qcow2", "compat=0.10"), ("qed", "")):
            with self.subTest(format=fmt, options=options):
                self.make("raw")
                base = self.image
                middle = create(self.path(f"m.{fmt}"), fmt, MIB + 512, backing=base, backing_fmt="raw")
                self.image, self.fmt = self.path(f"t.{fmt}"), fmt
                create(self.image, fmt, self.SIZE, options, backing=middle, backing_fmt=fmt)
                self.content[MIB + 512:] = bytes(self.SIZE - MIB - 512)
                self.begin()
                self.stream(base=base)
                self.good()
                self.assertEqual(self.backing(), base)

    def test_nothing_to_do(self):
        self.begin()
        self.stream()
        self.good()

    def test_a_cancel(self):
        """a cancelled stream leaves the chain unchanged"""
        self.chain()
        self.begin()
        self.client.cmd("block-stream", job_id="job", device="drive0", speed=64 * KIB)
        self.client.cmd("job-cancel", id="job")
        self.ended("BLOCK_JOB_CANCELLED")
        self.assertEqual(len(self.names()), 4)
        self.good()
        self.assertEqual(self.backing(), self.files[1][0])

    def test_pause_and_finalize(self):
        self.chain()
        self.begin()
        self.client.cmd("block-stream", job_id="job", device="drive0", speed=256 * KIB, auto_finalize=False)
        self.client.cmd("job-pause", id="job")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="paused")
        self.client.cmd("block-job-set-speed", device="job", speed=0)
        self.client.cmd("job-resume", id="job")
        self.expect_event("BLOCK_JOB_PENDING")
        self.assertEqual(len(self.names()), 4)
        self.client.cmd("job-finalize", id="job")
        self.ended()
        self.assertEqual(len(self.names()), 1)
        self.good()

    def test_refused(self):
        self.chain()
        self.begin()

        def refused(words, kind="GenericError", **arguments):
            arguments = {"device": "drive0", "job_id": "job", **arguments}
            self.fails(kind, self.client, "block-stream", words, **arguments)

        refused("Cannot find device 'nosuch'", "DeviceNotFound", device="nosuch")
        refused("not in the backing chain", base="/nowhere")
        refused("node-name='nosuch'", base_node="nosuch")
        refused("mutually exclusive", base_node="drive0#1", base=self.files[1][0])
        refused("same time", base_node="drive0#2", bottom="drive0#1")
        refused("not in the backing chain", bottom="drive0")
        refused("streaming the entire chain", backing_file="x")
        self.client.cmd("block-commit", job_id="other", device="drive0", speed=1)
        refused("'other' uses the disk")
        self.client.cmd("job-cancel", id="other")
        self.ended("BLOCK_JOB_CANCELLED")
        self.good()

    def test_internal_snapshots(self):
        """an image with internal snapshots can't be streamed into: they show the layers below"""
        self.chain(formats=("qcow2",))
        run("qemu-img", "snapshot", "-c", "s", self.image)
        self.begin()
        self.fails("GenericError", self.client, "block-stream", "has internal snapshots", job_id="job", device="drive0")

    def test_no_space(self):
        """a full disk stops the job, which continues when there is space again"""
        self.chain(formats=("qcow2",))
        self.begin()
        with open(self.image, "rb") as file:
            size = os.fstat(file.fileno()).st_size
        run("prlimit", f"--fsize={size + 64 * KIB}:", "--pid", str(self.server.process.pid))
        self.client.cmd("block-stream", job_id="job", device="drive0", on_error="stop")
        self.client.event("BLOCK_JOB_ERROR")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="paused")
        run("prlimit", "--fsize=unlimited:", "--pid", str(self.server.process.pid))
        self.client.cmd("job-resume", id="job")
        self.ended()
        self.good()


class UnderWriters(StreamCase):
    TIMEOUT = 1000

    def test_rounds(self):
        """streams into the active and other layers, with and without a base, while clients write"""
        for number in range(ROUNDS):
            with self.subTest(round=number):
                self.round(number)

    def round(self, number):
        rng = self.rng = random.Random(f"{SEED} {number}")
        self.chain()
        self.begin()
        writers = Writers(self.server, self.content, f"{SEED} {number}")
        try:
            writers.some(20)
            layer, base = rng.choice([("drive0", None), ("drive0", "drive0#2"), ("drive0", "drive0#3"),
                                      ("drive0#1", None), ("drive0#1", "drive0#3"), ("drive0#2", None)])
            self.stream(layer, **({"base_node": base} if base else {}))
            writers.some(20)
        finally:
            self.content = writers.stop()
        self.good()


class Killed(StreamCase):
    TIMEOUT = 1000

    def test_at_any_moment(self):
        for number in range(ROUNDS):
            with self.subTest(round=number):
                self.one(number)

    def one(self, number):
        rng = self.rng = random.Random(f"{SEED} k{number}")
        self.chain()
        self.begin()
        writers = Writers(self.server, self.content, f"{SEED} k{number}")
        writers.some(20)
        layer, base = rng.choice([("drive0", None), ("drive0", "drive0#2"), ("drive0#1", None), ("drive0#1", "drive0#3")])
        self.client.cmd("block-stream", job_id="job", device=layer, **({"base_node": base} if base else {}))
        time.sleep(rng.random() * 0.15)
        self.server.kill()
        for writer in writers.all:
            writer.over = True
            writer.join(60)
        for path, fmt in self.files:
            if fmt != "raw":
                self.assertIn(run(harness.QIMG, "check", "-q", "-r", "all", "-f", fmt, path, check=False).returncode, (0, 3))
        self.assertTrue(writers.crashed(harness.content(self.image, self.fmt)), f"{SEED} {number}")
