# SPDX-License-Identifier: BSD-3-Clause
"""A full filesystem: the client gets ENOSPC, nothing that was acknowledged is lost, and writes succeed
again when there is space (Q-10)."""

import errno
import json
import os
import pathlib
import unittest

from harness import *
from qmp import Qmp

ROOM = 24 * MIB
SIZE = 64 * MIB


class Full(Case):
    def setUp(self):
        super().setUp()
        self.room = self.path("room")
        os.mkdir(self.room)
        done = run("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "qimg-e2e", self.room, check=False)
        if done.returncode != 0:
            self.skipTest(f"a small tmpfs can't be mounted here: {done.stderr.strip()}")
        self.addCleanup(run, "umount", "-l", self.room)
        self.filler = os.path.join(self.room, "filler")

    def take_space(self, leave):
        """Fills the filesystem except for `leave` bytes."""
        free = os.statvfs(self.room).f_bavail * os.statvfs(self.room).f_frsize
        with open(self.filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - leave)

    def empty_room(self):
        self._end_servers()
        for name in os.listdir(self.room):
            os.unlink(os.path.join(self.room, name))

    def test_one_image_of_a_folder(self):
        """E-05: writes to the image on the full filesystem fail; other images of the folder aren't affected"""
        for fmt in ("qcow2", "qed"):
            with self.subTest(fmt=fmt):
                full, good = os.path.join(self.room, f"full.{fmt}"), self.path(f"good.{fmt}")
                for image in (full, good):
                    create(image, fmt, SIZE)
                server = self.serve(None, f"dir={self.dir}", "linger=0")
                narrow, wide = server.connect(f"room/full.{fmt}"), server.connect(f"good.{fmt}")
                models = {narrow: Model(bytes(SIZE)), wide: Model(bytes(SIZE))}
                for handle, model in models.items():
                    model.write(handle, 0, self.rng.randbytes(300000))
                    handle.flush()
                self.take_space(leave=MIB)
                failed, off = 0, 4 * MIB
                while failed < 5:
                    self.assertLess(off, SIZE, "the filesystem never became full")
                    payload = self.rng.randbytes(500000)
                    models[wide].write(wide, off, payload)
                    wide.flush()
                    try:
                        narrow.pwrite(payload, off)
                    except nbd.Error as error:
                        self.assertEqual(error.errnum, errno.ENOSPC, error)
                        failed += 1
                        models[narrow].data[off:off + len(payload)] = narrow.pread(len(payload), off)
                    else:
                        models[narrow].data[off:off + len(payload)] = payload
                    off += 600000
                narrow.flush()
                # The same after the image was closed and opened again on the full filesystem.
                narrow.shutdown()
                models[wide].write(wide, 0, self.rng.randbytes(1000))
                narrow, model = server.connect(f"room/full.{fmt}"), models[narrow]
                model.compare(narrow, what="after opening it anew")
                os.unlink(self.filler)
                model.write(narrow, 4 * MIB, self.rng.randbytes(3 * MIB))
                server.stop()
                for image, expected in ((full, model), (good, models[wide])):
                    check(image, fmt, allow_leaks=image == full)
                    expected.expect(content(image, fmt), "qemu-img convert")
                self.empty_room()

    def fill_up(self, fmt, options, step, backing=None, keys=()):
        image = os.path.join(self.room, "disk")
        create(image, fmt, SIZE, options, backing, "raw")
        model = Model(pathlib.Path(backing).read_bytes() if backing else bytes(SIZE))
        server = self.serve(image, *keys, fmt=fmt)
        handle, other = server.connect(), server.connect()
        for turn in range(10):
            model.write(handle, turn * 300000, self.rng.randbytes(200000))
        handle.flush()
        self.take_space(leave=2 * MIB)
        errors, off = 0, 8 * MIB
        while errors < 5 and off < SIZE - step:
            payload = self.rng.randbytes(step)
            try:
                handle.pwrite(payload, off)
            except nbd.Error as error:
                self.assertEqual(error.errnum, errno.ENOSPC, error)
                errors += 1
                got = handle.pread(step, off)
                self.assertTrue(all(byte in old_or_new for byte, *old_or_new in
                                    zip(got, model.data[off:off + step], payload)), "neither old nor new")
                model.data[off:off + step] = got
            else:
                model.data[off:off + step] = payload
            off += step
        self.assertEqual(errors, 5, "the filesystem never became full")
        handle.flush()  # succeeds: acknowledged writes have their blocks
        model.compare(other, what="while full")
        model.write(handle, 300000, self.rng.randbytes(100000))  # in place: needs no space
        return image, server, handle, model

    def test_goes_on_with_new_space(self):
        """ENOSPC, then space: the same server writes, flushes and ends cleanly."""
        for fmt, options, step in (("qed", "", 100000), ("qed", "cluster_size=4k", 4096), ("qcow2", "", 100000),
                                   ("qcow2", "cluster_size=512", 4096), ("qcow2", "lazy_refcounts=on", 65536)):
            with self.subTest(fmt=fmt, options=options):
                image, server, handle, model = self.fill_up(fmt, options, step)
                os.unlink(self.filler)
                handle.flush()
                for _ in range(20):
                    model.write(handle, self.rng.randrange(12 * MIB), self.rng.randbytes(30000))
                handle.flush()
                model.compare(handle, what="with new space")
                server.stop()
                check(image, fmt)
                model.expect(content(image, fmt), "qemu-img convert")
            self.empty_room()

    def test_ends_while_full(self):
        """SIGTERM while there is no space, with or without a flush before: the image is clean and has everything that
        was acknowledged, in every cache mode."""
        for fmt, options in (("qed", ""), ("qcow2", ""), ("qcow2", "lazy_refcounts=on")):
            for mode in ("writeback", "writethrough", "volatile"):  # a tmpfs has no O_DIRECT
                with self.subTest(fmt=fmt, options=options, mode=mode):
                    image, server, handle, model = self.fill_up(fmt, options, 50000, keys=[f"cache={mode}"])
                    if mode == "writeback":
                        handle.flush()
                    server.stop()
                    check(image, fmt)
                    model.expect(content(image, fmt), "qemu-img convert")
                self.empty_room()

    def test_as_a_client_fills_it(self):
        """Writes of 1 MiB until there is no space, a flush, and the end of the server."""
        for fmt in ("qed", "qcow2"):
            with self.subTest(fmt=fmt):
                image = create(os.path.join(self.room, "disk"), fmt, SIZE)
                model, written = Model(bytes(SIZE)), 0
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                with self.assertRaises(nbd.Error) as caught:
                    while True:
                        model.write(handle, written, self.rng.randbytes(MIB))
                        written += MIB
                self.assertEqual(caught.exception.errnum, errno.ENOSPC)
                self.assertGreaterEqual(written, ROOM - 3 * MIB)
                handle.flush()
                model.data[written:written + MIB] = handle.pread(MIB, written)
                server.stop(disconnect=False)
                check(image, fmt)
                model.expect(content(image, fmt), "qemu-img convert")
            self.empty_room()

    def test_a_bitmap_has_no_place(self):
        """The command gets an error; the bitmap has rather too many dirty bits than too few, and the image is clean."""
        image = os.path.join(self.room, "disk")
        create(image, "qcow2", SIZE, "cluster_size=4k")
        for name in ("full", "empty"):
            run(QIMG, "bitmap", "--add", "-g", "512", image, name)
        run(QIMG, "bitmap", "--disable", image, "empty")
        run("qemu-io", "-c", f"write -q -z 0 {SIZE}", image)
        self.take_space(leave=0)
        done = run(QIMG, "bitmap", "--merge", "full", image, "empty", check=False)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("bitmap empty could not be stored", done.stderr)
        self.assertRegex(done.stderr, "bitmap 'empty': there is no space for its bits: [0-9]+ clusters of them count as set")
        check(image, "qcow2", allow_leaks=True)
        bitmaps = json.loads(run(QIMG, "info", "--output=json", image).stdout)["format-specific"]["data"]["bitmaps"]
        self.assertEqual({bitmap["name"]: bitmap["flags"] for bitmap in bitmaps}, {"full": ["auto"], "empty": []})

    def test_bitmaps_are_stored_while_full(self):
        """A server ends without a free block: no bitmap is lost, and none misses a write."""
        image, control = os.path.join(self.room, "disk"), self.path("control")
        create(image, "qcow2", SIZE)
        server = self.serve(image, f"control={control}")
        handle, qmp = server.connect(), Qmp(control)
        self.addCleanup(qmp.close)
        handle.pwrite(self.rng.randbytes(8 * MIB), 0)
        for name, granularity in (("fine", 512), ("coarse", 65536)):
            qmp.cmd("block-dirty-bitmap-add", node="drive0", name=name, granularity=granularity, persistent=True)
        handle.flush()
        self.take_space(leave=0)
        handle.pwrite(self.rng.randbytes(MIB), MIB)
        handle.flush()
        server.stop()
        check(image, "qcow2")
        bitmaps = json.loads(run(QIMG, "info", "--output=json", image).stdout)["format-specific"]["data"]["bitmaps"]
        self.assertEqual([bitmap["flags"] for bitmap in bitmaps], [["auto"], ["auto"]])
        os.unlink(self.filler)
        server = self.serve(image)
        for name in ("fine", "coarse"):
            reader, dirty = server.connect(f"bitmap/{name}"), []
            reader.block_status(MIB, MIB, lambda context, off, entries, err: dirty.extend(entries[1::2]))
            self.assertFalse(any(flags & nbd.STATE_HOLE for flags in dirty), f"{name} misses a write")
        server.stop()

    def snapshots_without_space(self, handle, model, snapshot):
        """Makes three snapshots with data of their own, and then fills the filesystem completely."""
        for name in ("first", "second", "third"):
            for turn in range(8):
                model.write(handle, turn * 500000, self.rng.randbytes(200000))
            snapshot(name)
        model.write(handle, 0, self.rng.randbytes(4 * MIB))
        handle.flush()
        self.take_space(leave=0)
        with self.assertRaises(nbd.Error) as caught:
            handle.pwrite(self.rng.randbytes(8 * MIB), 32 * MIB)
        self.assertEqual(caught.exception.errnum, errno.ENOSPC)
        model.data[32 * MIB:40 * MIB] = handle.pread(8 * MIB, 32 * MIB)

    def test_deleting_snapshots_makes_space(self):
        """Snapshots are deleted on a full filesystem, the oldest first: while a client writes, and by qimg snapshot."""
        image, control = os.path.join(self.room, "disk"), self.path("control")
        create(image, "qcow2", SIZE)
        model = Model(bytes(SIZE))
        server = self.serve(image, f"control={control}", "need-check-delay=0.1")
        handle, qmp = server.connect(), Qmp(control)
        self.addCleanup(qmp.close)
        self.snapshots_without_space(handle, model, lambda name: qmp.cmd(
            "blockdev-snapshot-internal-sync", device="drive0", name=name))
        qmp.cmd("blockdev-snapshot-delete-internal-sync", device="drive0", name="first")
        handle.flush()

        def has_space():
            try:
                model.write(handle, 48 * MIB, self.rng.randbytes(MIB))
            except nbd.Error:
                return False
            return True
        wait_until(has_space, 20, "there is space again")
        handle.flush()
        server.stop()
        self.assertEqual(run("qemu-img", "check", image, check=False).returncode & ~3, 0)
        os.truncate(self.filler, 0)
        self.take_space(leave=0)
        for name in ("second", "third"):
            run(QIMG, "snapshot", "-d", name, image)
        os.unlink(self.filler)
        check(image, "qcow2")
        model.expect(content(image, "qcow2"), "qemu-img convert")

    def test_overlay(self):
        """When a copy-on-write finds no space, the backing file's content can still be read."""
        backing = self.path("base.raw")
        pathlib.Path(backing).write_bytes(self.rng.randbytes(SIZE))
        for fmt in ("qed", "qcow2"):
            with self.subTest(fmt=fmt):
                image, server, handle, model = self.fill_up(fmt, "", 4096, backing)
                os.unlink(self.filler)
                model.compare(handle, what="with new space")
                server.stop()
                check(image, fmt)
                model.expect(content(image, fmt), "qemu-img convert")
            self.empty_room()


@parametrised
class SizeLimit(Case):
    """RLIMIT_FSIZE limits the size of the image file, which is reported like a full filesystem"""

    LIMIT = 8 * MIB

    def limited(self):
        """The command that runs the server with the limit; Python ignores SIGXFSZ, the server gets the default."""
        return ["env", "--default-signal=XFSZ", "prlimit", f"--fsize={self.LIMIT}:unlimited"]

    cases_writes = {"qcow2": ("qcow2", ""), "qcow2 4k": ("qcow2", "cluster_size=4k"), "qed": ("qed", ""), "raw": ("raw", "")}

    def check_writes(self, fmt, options):
        """writes past the limit fail with ENOSPC, the server goes on, and what was acknowledged is there"""
        image = create(self.path("disk"), fmt, SIZE, options)
        server = self.serve(image, *(["format=raw"] if fmt == "raw" else []), fmt=fmt, prefix=self.limited())
        handle, other = server.connect(), server.connect()
        model, failed = Model(bytes(SIZE)), 0
        for off in range(0, SIZE, MIB // 4):
            payload = self.rng.randbytes(MIB // 4)
            try:
                handle.pwrite(payload, off)
            except nbd.Error as error:
                self.assertEqual(error.errnum, errno.ENOSPC, error)
                failed += 1
                payload = handle.pread(len(payload), off)
            model.data[off:off + len(payload)] = payload
        self.assertGreater(failed, 0)
        handle.flush()
        model.write(handle, 0, self.rng.randbytes(MIB))  # in place
        model.compare(other)
        server.stop()
        check(image, fmt)
        model.expect(content(image, fmt), "qemu-img convert")


    def fill_up(self, image, *keys):
        """A server and a client whose last write has just failed because the file can't grow."""
        server = self.serve(image, *keys, prefix=self.limited())
        handle, model, off = server.connect(), Model(bytes(SIZE)), 0
        with self.assertRaises(nbd.Error) as caught:
            while True:
                model.write(handle, off, self.rng.randbytes(MIB // 4))
                off += MIB // 4
        self.assertEqual(caught.exception.errnum, errno.ENOSPC)
        model.data[off:off + MIB // 4] = handle.pread(MIB // 4, off)
        return server, handle, model

    def test_what_is_trimmed_is_used_again(self):
        """clusters that were trimmed can be allocated again at once"""
        for options in ("", "cluster_size=4k", "cluster_size=512"):
            with self.part(options=options):
                image = create(self.path("disk"), "qcow2", SIZE, options)
                server, handle, model = self.fill_up(image)
                handle.flush()
                model.trim(handle, 0, 2 * MIB)
                for turn in range(4):
                    model.write(handle, 32 * MIB + turn * MIB, self.rng.randbytes(MIB // 4))
                server.stop()
                check(image, "qcow2")
                model.expect(content(image, "qcow2"), "qemu-img convert")

    def test_deleting_snapshots_makes_space(self):
        """although the snapshot table can't grow, either"""
        image, control = create(self.path("disk"), "qcow2", SIZE), self.path("control")
        run("qemu-io", "-c", "write -q -P 1 0 2M", image)
        for name in ("first", "second"):
            run("qemu-img", "snapshot", "-c", name, image)
            run("qemu-io", "-c", f"write -q -P {len(name)} 0 2M", image)
        os.truncate(image, 8 * MIB)  # the file can't grow any more
        self.LIMIT = os.path.getsize(image)  # pylint: disable=invalid-name
        server = self.serve(image, f"control={control}", prefix=self.limited())
        handle, qmp = server.connect(), Qmp(control)
        self.addCleanup(qmp.close)
        off = 8 * MIB
        with self.assertRaises(nbd.Error):
            while True:
                handle.pwrite(b"x" * MIB, off)
                off += MIB
        for name in ("second", "first"):  # deleting the last of the list needs no new table
            qmp.cmd("blockdev-snapshot-delete-internal-sync", device="drive0", name=name)
        handle.flush()
        handle.pwrite(b"y" * MIB, 48 * MIB)
        self.assertEqual(handle.pread(2 * MIB, 0), bytes([6]) * (2 * MIB))
        server.stop()
        check(image, "qcow2")

    def test_a_job_waits_for_more(self):
        """a job with on-target-error=enospc pauses until the target can grow"""
        image, control = self.path("disk"), self.path("control")
        for fmt in ("raw", "qcow2", "qed"):
            with self.part(fmt=fmt):
                pathlib.Path(image).write_bytes(self.rng.randbytes(2 * self.LIMIT))
                server = self.serve(image, "format=raw", f"control={control}", prefix=self.limited())
                qmp, target = Qmp(control), self.path("target")
                if fmt == "raw":  # a raw file is as long as the disk from the beginning
                    create(target, fmt, 2 * self.LIMIT)
                qmp.cmd("drive-mirror", job_id="job", device="drive0", target=target, format=fmt, sync="full",
                        on_target_error="enospc", mode="existing" if fmt == "raw" else "absolute-paths")
                event = qmp.event("BLOCK_JOB_ERROR")
                self.assertEqual((event["data"]["operation"], event["data"]["action"]), ("write", "stop"), event)
                run("prlimit", f"--pid={server.process.pid}", "--fsize=unlimited")
                qmp.event("JOB_STATUS_CHANGE", id="job", status="paused")
                self.assertEqual(qmp.cmd("query-block-jobs")[0]["io-status"], "nospace")
                qmp.cmd("job-resume", id="job")
                qmp.event("BLOCK_JOB_READY", timeout=60)
                qmp.cmd("block-job-cancel", device="job")
                self.assertNotIn("error", qmp.event("BLOCK_JOB_COMPLETED")["data"])
                qmp.close()
                server.stop()
                run("qemu-img", "compare", "-f", "raw", "-F", fmt, image, target)


class FullExt4(Case):
    def test_zeroes_need_no_space(self):
        """Zeroing allocated blocks must not fail on a full filesystem, and acknowledged writes must not be lost."""
        room, disk = self.path("room"), self.path("fs")
        os.mkdir(room)
        with open(disk, "wb") as file:
            file.truncate(80 * MIB)
        if run("mkfs.ext4", "-q", "-F", "-m", "0", disk, check=False).returncode != 0 or \
                run("mount", "-o", "loop", disk, room, check=False).returncode != 0:
            self.skipTest("an ext4 can't be mounted here")
        self.addCleanup(run, "umount", "-l", room)
        self.addCleanup(self._end_servers)
        image = os.path.join(room, "disk.raw")
        with open(image, "wb") as file:
            file.truncate(48 * MIB)
        server = self.serve(image, "format=raw")
        handle, blocks = server.connect(), 48 * MIB // (4 * KIB) - 256
        for off in range(0, blocks * 4 * KIB, MIB):
            handle.pwrite(b"A" * MIB, off)
        handle.flush()
        with open(os.path.join(room, "filler"), "wb") as filler:
            step, end = 64 * MIB, 0
            while step >= 4 * KIB:
                try:
                    os.posix_fallocate(filler.fileno(), end, step)
                    end += step
                except OSError:
                    step //= 2
            os.fsync(filler.fileno())
        for n in range(0, blocks, 2):  # every second block, so that the filesystem has to split extents
            handle.pwrite(b"B" * 4 * KIB, n * 4 * KIB)
            handle.zero(4 * KIB, n * 4 * KIB, nbd.CMD_FLAG_NO_HOLE)
            self.assertEqual(handle.pread(4 * KIB, n * 4 * KIB), bytes(4 * KIB))
        for n in range(1, blocks, 2):
            handle.pwrite(b"C" * 4 * KIB, n * 4 * KIB)
            handle.trim(4 * KIB, n * 4 * KIB)
            self.assertIn(handle.pread(1, n * 4 * KIB), (b"C", b"\0"))


class GrowingDevice(Case):
    def test_a_device_that_is_extended(self):
        """Thin volumes as oVirt uses them: a full device is extended, and writes succeed again without a restart."""
        disk = self.path("backing")
        with open(disk, "wb") as file:
            file.truncate(8 * MIB)
        made = run("losetup", "-f", "--show", disk, check=False)
        if made.returncode != 0:
            self.skipTest(f"no loop device can be had here: {made.stderr.strip()}")
        device = made.stdout.strip()
        self.addCleanup(run, "losetup", "-d", device)
        self.addCleanup(self._end_servers)
        for keys in ([], ["cache=none"]):
            with self.subTest(keys=keys):
                os.truncate(disk, 8 * MIB)
                run("losetup", "-c", device)
                run("qemu-img", "create", "-q", "-f", "qcow2", device, SIZE)
                server, model = self.serve(device, *keys), Model(bytes(SIZE))
                handle, written, payload = server.connect(), 0, self.rng.randbytes(MIB)
                for larger in (16, 23, 40):
                    with self.assertRaises(nbd.Error) as caught:
                        while True:
                            model.write(handle, written, payload)
                            written += MIB
                    self.assertEqual(caught.exception.errnum, errno.ENOSPC)
                    handle.flush()
                    os.truncate(disk, larger * MIB)
                    run("losetup", "-c", device)
                self.assertGreaterEqual(written, 20 * MIB)
                model.write(handle, written, payload)
                model.compare(handle)
                server.stop()
                check(device, "qcow2")
                model.expect(content(device, "qcow2"), "qemu-img convert")


if __name__ == "__main__":
    unittest.main()
