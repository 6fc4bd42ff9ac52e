# SPDX-License-Identifier: BSD-3-Clause
"""What an export offers, and what each NBD request does."""

import errno
import pathlib
import shutil
import threading
import unittest

from harness import *

FORMATS = ("qed", "qcow2")
SIZE = 4 * MIB
HOLE, ZERO = nbd.STATE_HOLE, nbd.STATE_ZERO


def extents(handle, off=0, length=None, flags=0):
    """base:allocation as a list of (offset, length, flags), with one request per GiB."""
    length = handle.get_size() - off if length is None else length
    found = []
    end = off + length
    while off < end:
        entries = []
        handle.block_status(min(end - off, GIB), off, lambda ctx, at, list_, err: entries.extend(list_) or 0, flags)
        assert entries, f"no extent for {off}"
        for step, state in zip(entries[::2], entries[1::2]):
            assert step > 0
            step = min(step, end - off)
            if found and found[-1][2] == state and off % GIB == 0:  # join what these requests have cut
                found[-1] = (found[-1][0], found[-1][1] + step, state)
            else:
                found.append((off, step, state))
            off += step
            if off >= end:
                break
    return found


class Offers(Case):
    def test_flags(self):
        """V-03: a writable export offers everything, multi-conn too."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                handle = self.serve(create(self.path("disk"), fmt, SIZE), fmt=fmt).connect()
                self.assertEqual(handle.get_size(), SIZE)
                self.assertFalse(handle.is_read_only())
                for can in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn"):
                    self.assertTrue(getattr(handle, f"can_{can}")(), can)

    def test_block_size_is_that_of_the_clusters(self):
        """The block sizes are 1, the cluster size (preferred) and 32 or 64 MiB (maximum)."""
        for fmt in FORMATS:
            for cluster in (4 * KIB, 64 * KIB, 2 * MIB):
                with self.part(fmt=fmt, cluster=cluster):
                    image = create(self.path("disk"), fmt, SIZE, f"cluster_size={cluster}")
                    handle = self.serve(image, fmt=fmt).connect()
                    self.assertEqual(handle.get_block_size(nbd.SIZE_MINIMUM), 1)
                    self.assertEqual(handle.get_block_size(nbd.SIZE_PREFERRED), cluster)
                    self.assertIn(handle.get_block_size(nbd.SIZE_MAXIMUM), (32 * MIB, 64 * MIB))

    def test_any_alignment_is_advertised(self):
        """In each cache mode the server accepts the alignment that it advertises."""
        for cache in ("writeback", "writethrough", "none", "directsync"):
            with self.part(cache=cache):
                server = self.serve(create(self.path("disk"), "qcow2", SIZE), f"cache={cache}")
                handle = server.connect()
                self.assertEqual(handle.get_block_size(nbd.SIZE_MINIMUM), 1)
                handle.pwrite(b"odd", 4095)
                self.assertEqual(bytes(handle.pread(5, 4094)), b"\0odd\0")
                handle.zero(1, 4096)
                handle.flush()
                server.stop()
                self.assertEqual(content(self.path("disk"), "qcow2")[4094:4099], b"\0o\0d\0")

    def test_unknown_export_is_refused(self):
        server = self.serve(create(self.path("disk"), "qcow2", SIZE), fmt="qcow2")
        for name in ("nonsense", "snapshot/none", "/etc/passwd", "x" * 4000):
            with self.assertRaises(nbd.Error, msg=name):
                server.connect(name)
        server.connect()
        server.stop()

    def test_a_bad_value_is_told_with_its_key(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        for key in ("control=", "backing=", "volatile-final-sync=maybe", "file="):
            with self.part(key=key):
                self.refused("" if key == "file=" else image, *[] if key == "file=" else [key],
                             words=[key], name=False)

    def test_every_documented_value_serves(self):
        """V-01: each parameter of the manual with each of its values: write, flush, read, clean end."""
        keys = {"format": ["auto", "qcow2"],
                "cache": ["writeback", "writethrough", "none", "directsync", "volatile", "unsafe"],
                "need-check-delay": ["5", "0", "0.25"], "lazy-refcounts": ["on", "off"],
                "backing": ["none"], "references": ["any", "dir", "none"], "discard": ["unmap", "ignore"],
                "metadata-cache": ["64M", "1M", "1048576"], "writable": ["on-connect", "now"]}
        later = {"repair": ["auto", "off"], "detect-zeroes": ["off", "on", "unmap"], "lock": ["on", "off"], "node-name": ["drive0"]}
        built = {key: values for key, values in later.items() if self.accepts(f"{key}={values[0]}")}
        for key, values in {**keys, **built}.items():
            for value in values:
                with self.part(key=key, value=value):
                    image = create(self.path("disk"), "qcow2", SIZE)
                    server = self.serve(image, f"{key}={value}", fmt="qcow2")
                    model = Model(bytes(SIZE))
                    exercise([server.connect()], model, self.rng, 30)
                    server.stop()
                    check(image, "qcow2")
                    model.expect(content(image, "qcow2"), "qemu-img convert")
        missing = sorted(set(later) - set(built))
        if missing:
            self.skipTest(f"keys that are not built yet: {', '.join(missing)}")


class Requests(Case):
    def test_odd_offsets_and_lengths(self):
        """All requests may begin and end at any byte."""
        for fmt in FORMATS:
            for cache in ("writeback", "none"):
                with self.part(fmt=fmt, cache=cache):
                    image = create(self.path("disk"), fmt, SIZE)
                    server = self.serve(image, f"cache={cache}", fmt=fmt)
                    # With O_DIRECT the server advertises sectors, but also accepts bytes.
                    handle, model = server.connect(strict=cache != "none"), Model(bytes(SIZE))
                    for off, length in ((0, 1), (1, 1), (511, 2), (65535, 2), (65536 - 7, 65536 + 14),
                                        (SIZE - 1, 1), (SIZE - 70001, 70001)):
                        model.write(handle, off, self.rng.randbytes(length))
                        model.zero(handle, off + length // 2, (length + 1) // 2)
                        model.trim(handle, off, max(1, length // 3))
                        model.compare(handle)
                    server.stop()
                    check(image, fmt)

    def test_requests_past_the_end_fail(self):
        """Requests past the end fail with EINVAL or ENOSPC, and the server goes on."""
        server = self.serve(create(self.path("disk"), "qcow2", SIZE), fmt="qcow2")
        handle = server.connect(strict=False)
        self.errno((errno.EINVAL, errno.ENOSPC), handle.pwrite, b"12", SIZE - 1)
        self.errno(errno.EINVAL, handle.pread, 2, SIZE - 1)
        self.errno((errno.EINVAL, errno.ENOSPC), handle.zero, SIZE, SECTOR)
        self.errno(errno.EINVAL, handle.trim, SIZE + SECTOR, 0)
        self.assertEqual(handle.pread(SECTOR, 0), bytes(SECTOR))
        server.stop()

    def test_fua(self):
        """A FUA write and its metadata survive kill -9 without a flush (Q, L)."""
        for fmt, options in (("qed", ""), ("qcow2", ""), ("qcow2", "lazy_refcounts=on")):
            with self.part(fmt=fmt, options=options):
                image = create(self.path("disk"), fmt, SIZE, options)
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                handle.pwrite(b"new" * 1000, 100000, nbd.CMD_FLAG_FUA)
                handle.pwrite(b"old" * 1000, 300000)
                handle.flush()
                handle.pwrite(b"NEW" * 1000, 300000, nbd.CMD_FLAG_FUA)
                handle.zero(1000, 300000, nbd.CMD_FLAG_FUA)
                server.kill()
                repair(image, fmt)
                data = content(image, fmt)
                self.assertEqual(data[100000:103000], b"new" * 1000)
                self.assertEqual(data[300000:303000], bytes(1000) + (b"NEW" * 1000)[1000:])

    def test_flush_covers_other_connections(self):
        """multi-conn: a flush on one connection makes durable what others wrote."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                server = self.serve(image, fmt=fmt)
                handles = [server.connect() for _ in range(4)]
                for number, handle in enumerate(handles[1:], 1):
                    handle.pwrite(bytes([number]) * 70000, number * MIB)
                for number, handle in enumerate(handles[1:], 1):  # connections see each other's writes
                    self.assertEqual(handles[number - 1].pread(70000, number * MIB), bytes([number]) * 70000)
                handles[0].flush()
                server.kill()
                repair(image, fmt)
                data = content(image, fmt)
                for number in (1, 2, 3):
                    self.assertEqual(data[number * MIB:number * MIB + 70000], bytes([number]) * 70000)

    def test_many_connections_at_once(self):
        """Threads with their own connections write their own parts of shared clusters."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                server = self.serve(image, fmt=fmt)
                lanes, stride = 6, 4 * KIB  # thread n owns every sixth 4 KiB, so that all clusters are shared
                expected, failures = bytearray(SIZE), []

                def lane(number, handle, rng):
                    try:
                        for _ in range(150):
                            slot = rng.randrange(SIZE // stride // lanes) * lanes + number
                            payload = rng.randbytes(stride)
                            handle.pwrite(payload, slot * stride)
                            expected[slot * stride:(slot + 1) * stride] = payload
                            if handle.pread(stride, slot * stride) != payload:
                                failures.append(f"lane {number}, slot {slot}")
                    except Exception as error:  # noqa: BLE001 - a thread's failure must be seen
                        failures.append(repr(error))

                threads = [threading.Thread(target=lane, args=(n, server.connect(), random.Random(f"{SEED} {n}")))
                           for n in range(lanes)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                self.assertEqual(failures, [])
                server.stop()
                check(image, fmt)
                Model(expected).expect(content(image, fmt), "qemu-img convert")

    def test_largest_requests(self):
        """One read and one write of the largest size; zeroes and trims of nearly 4 GiB."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, 5 * GIB)
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                largest = 32 * MIB
                payload = self.rng.randbytes(largest)
                handle.pwrite(payload, 3 * GIB - 12345)
                self.assertEqual(handle.pread(largest, 3 * GIB - 12345), payload)
                most = 4 * GIB - 64 * KIB
                handle.zero(most, 64 * KIB)
                self.assertEqual(handle.pread(largest, 3 * GIB - 12345), bytes(largest))
                handle.pwrite(payload, 3 * GIB - 12345)
                handle.trim(most, 0)
                after = handle.pread(largest, 3 * GIB - 12345)
                self.assertTrue(after in (payload, bytes(largest)))
                self.assertEqual(sum(length for _, length, _ in extents(handle)), 5 * GIB)
                server.stop()
                check(image, fmt)

    def test_zero_of_more_than_64_mib_without_zero_clusters(self):
        """qcow2 version 2 over a backing file has no zero clusters: all the zeroes must be written."""
        size = 100 * MIB
        base = self.path("base.raw")
        with open(base, "wb") as file:
            file.write(b"\xaa" * size)
        image = create(self.path("disk"), "qcow2", size, "compat=0.10", base, "raw")
        server = self.serve(image, fmt="qcow2")
        handle = server.connect()
        handle.zero(size - 2, 1)
        model = Model(b"\xaa" + bytes(size - 2) + b"\xaa")
        model.compare(handle)
        server.stop()
        check(image, "qcow2")
        model.expect(content(image, "qcow2"), "qemu-img convert")

    def test_fast_zero_decides_before_it_touches_anything(self):
        """A fast zero that fails with ENOTSUP has changed nothing; one that succeeds has zeroed everything."""
        base = self.path("base")
        for fmt, options, backing in (("qed", "", False), ("qed", "", True), ("qcow2", "", False),
                                      ("qcow2", "", True), ("qcow2", "compat=0.10", False),
                                      ("qcow2", "compat=0.10", True)):
            with self.part(fmt=fmt, options=options, backing=backing):
                data = self.rng.randbytes(SIZE) if backing else bytes(SIZE)
                pathlib.Path(base).write_bytes(data)
                image = create(self.path("disk"), fmt, SIZE, options, base if backing else None, "raw")
                server = self.serve(image, fmt=fmt)
                handle, model = server.connect(), Model(data)
                model.write(handle, MIB, self.rng.randbytes(MIB))
                for off, length in ((MIB + 1000, 300 * KIB), (MIB - 64 * KIB, MIB), (3, 2 * MIB), (0, SIZE),
                                    (SIZE - 100, 100)):
                    with self.subTest(off=off, length=length):
                        try:
                            handle.zero(length, off, nbd.CMD_FLAG_FAST_ZERO)
                        except nbd.Error as error:
                            self.assertEqual(error.errno, "ENOTSUP")
                        else:
                            model.data[off:off + length] = bytes(length)
                        model.compare(handle)
                server.stop()
                check(image, fmt)

    def test_fast_zero_of_whole_clusters(self):
        """Succeeds on QED and qcow2 version 3, with data or without, with a backing file or without, and where nothing
        is allocated."""
        base = self.path("base.raw")
        pathlib.Path(base).write_bytes(self.rng.randbytes(SIZE))
        for fmt, options, backing in (("qed", "", base), ("qed", "", None), ("qcow2", "", base),
                                      ("qcow2", "", None)):
            with self.subTest(fmt=fmt, backing=bool(backing)):
                image = create(self.path(f"disk{bool(backing)}.{fmt}"), fmt, SIZE, options, backing, "raw")
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                handle.pwrite(b"x" * MIB, MIB)
                handle.zero(2 * MIB, 512 * KIB, nbd.CMD_FLAG_FAST_ZERO)
                self.assertEqual(handle.pread(2 * MIB, 512 * KIB), bytes(2 * MIB))
                if not backing:
                    handle.zero(5000, 3 * MIB + 1, nbd.CMD_FLAG_FAST_ZERO)  # zero already
                server.stop()
                check(image, fmt)

    def test_no_hole_keeps_allocation(self):
        """WRITE_ZEROES with NO_HOLE: the data clusters stay allocated in the file."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                handle.pwrite(b"x" * MIB, 0)
                handle.zero(MIB, 0, nbd.CMD_FLAG_NO_HOLE)
                self.assertEqual(handle.pread(MIB, 0), bytes(MIB))
                server.stop()
                check(image, fmt)
                runs = json.loads(run("qemu-img", "map", "--output=json", "-f", fmt, image).stdout)
                self.assertEqual(sum(r["length"] for r in runs if r["start"] < MIB and "offset" in r), MIB)

    def test_trim_gives_space_back(self):
        """discard=unmap frees the clusters of the file, discard=ignore leaves them."""
        for how in ("unmap", "ignore"):
            with self.part(discard=how):
                image = create(self.path("disk"), "qcow2", 16 * MIB)
                server = self.serve(image, f"discard={how}", fmt="qcow2")
                handle = server.connect()
                handle.pwrite(b"x" * (8 * MIB), 0)
                handle.trim(8 * MIB, 0)
                handle.flush()
                handle.flush()
                server.stop()
                check(image, "qcow2")
                blocks = os.stat(image).st_blocks * 512
                (self.assertLess if how == "unmap" else self.assertGreater)(blocks, 4 * MIB)

    def test_freed_clusters_are_used_again(self):
        """A qcow2 file doesn't grow when the same amount of data is trimmed and written many times."""
        image = create(self.path("disk"), "qcow2", 64 * MIB)
        server = self.serve(image, fmt="qcow2")
        handle = server.connect()
        for turn in range(12):
            handle.pwrite(bytes([turn + 1]) * (4 * MIB), turn * 4 * MIB)
            handle.flush()
            handle.trim(4 * MIB, turn * 4 * MIB)
            handle.flush()
        server.stop()
        check(image, "qcow2")
        self.assertLess(os.path.getsize(image), 24 * MIB)

    def test_cache_request(self):
        """NBD_CMD_CACHE succeeds and changes nothing."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                fill(image, fmt, [(0, b"x" * MIB)])
                server = self.serve(image, fmt=fmt, nbdkit=["-r"])
                handle = server.connect()
                handle.cache(SIZE, 0)
                handle.cache(1, 12345)
                self.assertEqual(handle.pread(MIB, 0), b"x" * MIB)
                server.stop()


class Sizes(Case):
    def test_empty_disk(self):
        """A disk of 0 bytes: connect, flush and end."""
        for fmt in (*FORMATS, "raw"):
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, 0)
                server = self.serve(image, f"format={fmt}", fmt=fmt)
                handle = server.connect()
                self.assertEqual(handle.get_size(), 0)
                handle.flush()
                server.stop()
                check(image, fmt)

    def test_disk_of_one_sector(self):
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SECTOR)
                server = self.serve(image, fmt=fmt)
                handle, model = server.connect(), Model(bytes(SECTOR))
                model.write(handle, 0, self.rng.randbytes(SECTOR))
                model.write(handle, 511, b"z")
                model.zero(handle, 100, 100)
                model.trim(handle, 0, SECTOR)
                model.write(handle, 5, b"abc")
                model.compare(handle)
                server.stop()
                check(image, fmt)
                model.expect(content(image, fmt), "qemu-img convert")

    def test_sparse_giants(self):
        """Reads and writes at the far end of large disks: 64 TiB of QED (Q-02), 64 TiB of qcow2."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                size = 64 << 40
                image = create(self.path("disk"), fmt, size)
                server = self.serve(image, fmt=fmt)
                handle = server.connect()
                self.assertEqual(handle.get_size(), size)
                for off in (0, size // 2 - 5, size - 70000):
                    handle.pwrite(b"giant" * 14000, off)
                handle.flush()
                for off in (0, size // 2 - 5, size - 70000):
                    self.assertEqual(handle.pread(70000, off), b"giant" * 14000)
                server.stop()
                check(image, fmt)
                self.assertLess(os.stat(image).st_blocks * 512, 64 * MIB)


class Extents(Case):
    def test_extents_over_the_whole_chain(self):
        """Q-06: data and zeroes in all layers of a chain, with the same result as qemu-img map."""
        for fmt in FORMATS:
            for base_fmt in ("qed", "qcow2", "raw"):
                with self.part(fmt=fmt, base=base_fmt):
                    base = create(self.path("base"), base_fmt, 2 * MIB)
                    fill(base, base_fmt, [(0, self.rng.randbytes(256 * KIB)), (MIB, self.rng.randbytes(256 * KIB))])
                    image = create(self.path("disk"), fmt, SIZE, "", base, base_fmt)
                    fill(image, fmt, [(3 * MIB, self.rng.randbytes(128 * KIB)), (512 * KIB, b"q" * 64 * KIB)])
                    run("qemu-io", "-f", fmt, "-c", "write -z 64k 64k", image)
                    server = self.serve(image, fmt=fmt, nbdkit=["-r"])
                    handle = server.connect()
                    told = bytearray(SIZE // SECTOR)
                    for off, length, state in extents(handle):
                        self.assertIn(state, (0, ZERO, HOLE | ZERO))
                        if state & ZERO:
                            self.assertEqual(handle.pread(length, off), bytes(length))
                        told[off // SECTOR:(off + length) // SECTOR] = bytes([bool(state & ZERO)]) * (length // SECTOR)
                    server.stop()
                    expected = bytearray(SIZE // SECTOR)
                    for run_ in json.loads(run("qemu-img", "map", "--output=json", "-f", fmt, image).stdout):
                        off, length = run_["start"] // SECTOR, run_["length"] // SECTOR
                        expected[off:off + length] = bytes([run_["zero"]]) * length
                    self.assertEqual(told, expected)

    def test_nothing_allocated_is_one_hole(self):
        """An empty disk is one extent, hole and zero, merged across tables up to the end of the request."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, 600 * MIB, "cluster_size=4k")
                handle = self.serve(image, fmt=fmt, nbdkit=["-r"]).connect()
                self.assertEqual(extents(handle), [(0, 600 * MIB, HOLE | ZERO)])

    def test_adjacent_runs_are_merged(self):
        """Q-06: 4 MiB written is one extent of data, across L2 tables, too."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                options = "cluster_size=4k" + (",table_size=2" if fmt == "qed" else "")
                image = create(self.path("disk"), fmt, 16 * MIB, options)
                handle = self.serve(image, fmt=fmt).connect()
                handle.pwrite(b"x" * (4 * MIB), 3 * MIB)
                found = [(off, length) for off, length, state in extents(handle) if state == 0]
                self.assertEqual(found, [(3 * MIB, 4 * MIB)])

    def test_one_extent_on_request(self):
        """NBD_CMD_FLAG_REQ_ONE: exactly one extent in the reply, which begins at the requested offset."""
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.serve(image, fmt="qcow2")
        handle = server.connect()
        handle.pwrite(b"x" * 64 * KIB, MIB)
        replies = []
        for off in (0, MIB, MIB + 100, SIZE - 1):
            handle.block_status(SIZE - off, off, lambda ctx, at, list_, err: replies.append((at, list_)) or 0,
                                nbd.CMD_FLAG_REQ_ONE)
            at, entries = replies.pop()
            self.assertEqual((at, len(entries)), (off, 2))
        server.stop()

    def test_extents_after_writes_zeroes_and_trims(self):
        """Extents reported as zero read as zero, after any requests."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE, "cluster_size=4k")
                server = self.serve(image, fmt=fmt)
                handle, model = server.connect(), Model(bytes(SIZE))
                for _ in range(5):
                    exercise([handle], model, self.rng, 30, 4 * KIB)
                    runs = extents(handle)
                    self.assertEqual(sum(length for _, length, _ in runs), SIZE)
                    for off, length, state in runs:
                        if state & ZERO:
                            self.assertFalse(any(model.data[off:off + length]))
                server.stop()


class ReadOnly(Case):
    def image(self, fmt):
        """An image with data and everything that a writable session would change at once: dirty bits, unknown
        autoclear bits."""
        image = create(self.path(f"disk.{fmt}"), fmt, SIZE, "lazy_refcounts=on" if fmt == "qcow2" else "")
        fill(image, fmt, [(MIB, b"x" * MIB)])
        if fmt == "qed":
            patch(image, 16, (2).to_bytes(8, "little"))
            patch(image, 32, (1 << 50).to_bytes(8, "little"))
        else:
            patch(image, 72, (1).to_bytes(8, "big"))
            patch(image, 88, (1 << 50).to_bytes(8, "big"))
        return image

    def need_repair(self):
        if not self.accepts("repair=auto"):
            self.skipTest("repair is not built yet")

    def test_an_image_that_needs_a_check_is_never_written_unchecked(self):
        """Q-15, L-06: repaired, or refused for writing with a reason; never written as it is."""
        if self.accepts("repair=auto"):
            self.skipTest("repair is built: see the others")
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = self.image(fmt)
                before = sha256(image)
                self.refused(image, "writable=now", words=["check|repair|dirty"])
                server = self.serve(image, fmt=fmt)
                with self.assertRaises(nbd.Error):
                    server.connect()
                server.stop()
                self.assertEqual(sha256(image), before)

    def test_r_changes_no_byte(self):
        """-r: reads work (Q-15, L-06), writes are refused, the file stays as it is."""
        for fmt in FORMATS:
            for keys in ((), ("cache=none",), ("writable=now",)):
                with self.part(fmt=fmt, keys=keys):
                    image = self.image(fmt)
                    before = sha256(image), os.stat(image).st_mtime_ns
                    server = self.serve(image, *keys, fmt=fmt, nbdkit=["-r"])
                    handle = server.connect(strict=False)
                    self.assertTrue(handle.is_read_only())
                    self.assertEqual(handle.pread(MIB, MIB), b"x" * MIB)
                    extents(handle)
                    self.errno(errno.EPERM, handle.pwrite, b"y", 0)
                    self.errno(errno.EPERM, handle.zero, SECTOR, 0)
                    self.errno(errno.EPERM, handle.trim, SECTOR, 0)
                    server.stop()
                    self.assertEqual((sha256(image), os.stat(image).st_mtime_ns), before)

    def test_file_without_write_permission_serves_with_r(self):
        """A file without write permission can be served with -r."""
        image = self.image("qcow2")
        os.chmod(image, 0o444)
        server = self.serve(image, fmt="qcow2", nbdkit=["-r"])
        self.assertEqual(server.connect().pread(4, MIB), b"xxxx")
        server.stop()

    @contextlib.contextmanager
    def unwritable(self, image):
        """Makes the file unwritable, also for root."""
        if os.geteuid() != 0:
            os.chmod(image, 0o444)
        elif not shutil.which("chattr") or run("chattr", "+i", image, check=False).returncode:
            self.skipTest("no filesystem with immutable files")
        yield
        if os.geteuid() == 0:
            run("chattr", "-i", image)

    def test_a_file_that_can_not_be_written(self):
        """The disk is served read-only, and the reason is logged once, when a client wants to write."""
        image = self.image("qcow2")
        with self.unwritable(image):
            server = self.serve(image, fmt="qcow2")
            self.assertNotIn("read-only", server.errors)
            self.assertTrue(server.connect().is_read_only())
            server.connect()
            server.stop()
            self.assertRegex(server.errors, f"{image}: warning: is served read-only: .*(denied|permitted|Read-only)")
            self.assertEqual(server.errors.count("is served read-only"), 1)
            self.refused(image, "writable=now", words=["can't be opened for writing: .*(denied|permitted|Read-only)"])
            quiet = self.serve(image, fmt="qcow2", nbdkit=["-r"])
            quiet.connect()
            quiet.stop()
            self.assertNotIn("is served read-only", quiet.errors)

    def test_nothing_changes_before_a_writable_connection(self):
        """writable=on-connect: a server without clients changes no byte."""
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = self.image(fmt)
                before = sha256(image)
                self.serve(image, fmt=fmt).stop()
                self.assertEqual(sha256(image), before)

    def test_a_first_connection_repairs(self):
        """Q-15, Q-17, L-06: the first writable connection repairs, and clears the bits that it may clear."""
        self.need_repair()
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = self.image(fmt)
                server = self.serve(image, fmt=fmt)
                self.assertEqual(server.connect().pread(MIB, MIB), b"x" * MIB)
                server.stop()
                self.assertFalse((need_check if fmt == "qed" else dirty)(image))
                autoclear = header(image, *((32, 8, "little") if fmt == "qed" else (88, 8, "big")))
                self.assertEqual(autoclear, 0)
                check(image, fmt)

    def test_writable_now_repairs_before_it_listens(self):
        """writable=now: the same before there is any connection."""
        self.need_repair()
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = self.image(fmt)
                self.serve(image, "writable=now", fmt=fmt).stop()
                self.assertFalse((need_check if fmt == "qed" else dirty)(image))
                check(image, fmt)

    def test_repair_off_refuses_to_write(self):
        """Q-15, L-06: repair=off: an image that needs a check is refused for writing, served for reading."""
        self.need_repair()
        for fmt in FORMATS:
            with self.part(fmt=fmt):
                image = self.image(fmt)
                before = sha256(image)
                self.refused(image, "repair=off", "writable=now", words=["check|repair|dirty"])
                server = self.serve(image, "repair=off", fmt=fmt)
                with self.assertRaises(nbd.Error):
                    server.connect()
                run("qemu-img", "info", "-f", fmt, image)  # succeeds: the writer's lock is released
                server.stop()
                server = self.serve(image, "repair=off", fmt=fmt, nbdkit=["-r"])
                self.assertEqual(server.connect().pread(4, MIB), b"xxxx")
                server.stop()
                self.assertEqual(sha256(image), before)

    def test_unknown_compatible_bits_are_kept(self):
        """Q-17: a writable session ignores and keeps unknown compatible bits."""
        for fmt, place in (("qed", (24, 8, "little")), ("qcow2", (80, 8, "big"))):
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                patch(image, place[0], (1 << 40).to_bytes(8, place[2]))
                server = self.serve(image, fmt=fmt)
                server.connect().pwrite(b"x" * MIB, 0)
                server.stop()
                self.assertEqual(header(image, *place), 1 << 40)


if __name__ == "__main__":
    unittest.main()
