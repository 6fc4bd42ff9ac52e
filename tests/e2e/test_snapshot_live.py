# SPDX-License-Identifier: BSD-3-Clause
"""Internal snapshots are made and deleted while clients use the disk.

I-02, I-04, I-05, I-07, I-08, I-09, I-11.
"""

import json
import os
import threading
import time
import unittest

import nbd

from crowd import work
from featured import Featured
from harness import KIB, LONG, MIB, SANITIZER_ENV, SECTOR, Case, Model, check, content, create, fill, run, sha256, wait_until
from qmp import Qmp, QmpError

SIZE = 8 * MIB
ROUNDS = int(os.environ.get("QIMG_ROUNDS", "0")) or 1


class Live(Case):
    def start(self, image, *keys, **how):
        control = self.path("control")
        server = self.serve(image, f"control={control}", *keys, **how)
        self.qmp = Qmp(control)
        self.addCleanup(self.qmp.close)
        return server

    def make(self, name):
        return self.qmp.cmd("blockdev-snapshot-internal-sync", device="drive0", name=name)

    def delete(self, name):
        return self.qmp.cmd("blockdev-snapshot-delete-internal-sync", device="drive0", name=name)

    def refuse(self, words, command, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.qmp.cmd(command, **arguments)
        self.assertRegex(caught.exception.desc, words)
        self.assertEqual(caught.exception.kind, "GenericError")


class Commands(Live):
    def test_results_as_qmp_has_them(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.start(image)
        before = time.time()
        self.assertEqual(self.make("first"), {})
        node, = self.qmp.cmd("query-named-block-nodes")
        made, = node["image"]["snapshots"]
        self.assertAlmostEqual(made.pop("date-sec"), before, delta=10)
        self.assertLess(made.pop("date-nsec"), 10**9)
        self.assertEqual(made, {"id": "1", "name": "first", "vm-state-size": 0, "vm-clock-sec": 0, "vm-clock-nsec": 0})
        device, = self.qmp.cmd("query-block")
        self.assertEqual(device["inserted"]["image"]["snapshots"][0]["name"], "first")
        self.assertEqual(self.delete("first")["id"], "1")
        node, = self.qmp.cmd("query-named-block-nodes")
        self.assertNotIn("snapshots", node["image"])
        self.make("second")
        self.assertEqual(self.qmp.cmd("blockdev-snapshot-delete-internal-sync", device="drive0", id="1", name="second")["name"],
                         "second")
        server.stop()
        check(image, "qcow2")

    def test_refusals(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.start(image)
        make, delete = "blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync"
        self.make("first")
        self.refuse("Cannot find device='other'", make, device="other", name="x")
        self.refuse("Name is empty", make, device="drive0", name="")
        self.refuse("'first' already exists on device 'drive0'", make, device="drive0", name="first")
        self.refuse("over 255 bytes", make, device="drive0", name="x" * 256)
        self.refuse("Name or id must be provided", delete, device="drive0")
        self.refuse("id 'null' and name 'x' does not exist on device 'drive0'", delete, device="drive0", name="x")
        self.refuse("id '2' and name 'first' does not exist", delete, device="drive0", name="first", id="2")
        reader = server.connect("snapshot/first")
        self.refuse("a client reads it", delete, device="drive0", name="first")
        reader.shutdown()
        server.handles.remove(reader)
        wait_until(lambda: self.delete_quietly("first"), 10, "the snapshot is let go of")
        self.qmp.cmd("drive-mirror", device="drive0", target=self.path("copy"), sync="full", **{"job-id": "j"})
        self.qmp.event("BLOCK_JOB_READY")
        self.refuse("busy", make, device="drive0", name="x")
        self.qmp.cmd("block-job-cancel", device="j", force=True)
        self.qmp.event("BLOCK_JOB_CANCELLED")
        self.make("x")

    def delete_quietly(self, name):
        try:
            return self.delete(name)
        except QmpError:
            return None

    def test_formats_without_snapshots_and_r(self):
        self.start(create(self.path("disk.qed"), "qed", SIZE))
        self.refuse("Block format 'qed' used by device 'drive0' does not support internal snapshots",
                    "blockdev-snapshot-internal-sync", device="drive0", name="x")

    def test_r_changes_nothing(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        before = sha256(image)
        self.start(image, nbdkit=("-r",)).connect()
        self.refuse("read-only|-r", "blockdev-snapshot-internal-sync", device="drive0", name="x")
        self.assertEqual(sha256(image), before)

    def test_refcounts_that_cant_count_it(self):
        image = create(self.path("disk"), "qcow2", SIZE, "refcount_bits=2")
        server = self.start(image)
        handle = server.connect()
        handle.pwrite(b"a" * MIB, 0)
        for name in ("one", "two"):
            self.make(name)
        self.refuse("refcount_bits=2 can count", "blockdev-snapshot-internal-sync", device="drive0", name="three")
        handle.pwrite(b"b" * MIB, 0)
        self.make("three")  # the overwritten clusters are new and have few references
        self.assertEqual(handle.pread(MIB, 0), b"b" * MIB)
        server.stop()
        check(image, "qcow2")

    def test_with_the_default_snapshot(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        run("qemu-img", "snapshot", "-c", "first", image)
        self.start(image, "snapshot=first")
        self.refuse("a client reads it", "blockdev-snapshot-delete-internal-sync", device="drive0", name="first")


class Often(Live):
    """Snapshots that are made and deleted again and again, as a schedule does"""

    def some(self, server, count):
        for number in range(count):
            self.make("s")
            self.disk.pwrite(bytes([number % 256]) * 4096, number % 16 * 64 * KIB)
            self.disk.flush()
            self.delete("s")
        with open(f"/proc/{server.process.pid}/status", encoding="ascii") as status:
            resident = next(int(line.split()[1]) * KIB for line in status if line.startswith("VmRSS:"))
        return resident, os.path.getsize(self.image)

    def test_neither_the_file_nor_the_server_grows(self):
        for options in ("", "cluster_size=4k", "cluster_size=2M", "refcount_bits=64"):
            with self.part(options=options):
                self.image = create(self.path("disk"), "qcow2", 8 * MIB, options)
                fill(self.image, "qcow2", [(0, bytes([7]) * (8 * MIB))])
                server = self.start(self.image, env={"MALLOC_ARENA_MAX": "1"})
                self.disk = server.connect()
                resident, size = self.some(server, 20)
                resident_now, size_now = self.some(server, 80)
                self.assertLessEqual(size_now, size + 4 * (2 * MIB if "2M" in options else 64 * KIB))
                if not SANITIZER_ENV:  # sanitizers keep freed memory
                    self.assertLess(resident_now, resident + 4 * MIB)
                server.stop()
                check(self.image, "qcow2")


class Transactions(Live):
    def run_actions(self, *actions):
        return self.qmp.cmd("transaction", actions=[{"type": kind, "data": data} for kind, data in actions])

    SNAPSHOT = "blockdev-snapshot-internal-sync"

    def test_with_bitmaps_at_one_point(self):
        """Snapshots and bitmaps at one point: a bitmap records what differs from its snapshot."""
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.start(image)
        model, stop = Model(bytes(SIZE)), threading.Event()

        def churn():
            while not stop.is_set():
                work(server, model, self.rng, 5, 64 * KIB, threads=8)

        writer = threading.Thread(target=churn)
        writer.start()
        for number in range(4):
            self.run_actions((self.SNAPSHOT, {"device": "drive0", "name": f"s{number}"}),
                             ("block-dirty-bitmap-add", {"node": "drive0", "name": f"b{number}", "granularity": 512}))
            time.sleep(0.05)
        stop.set()
        writer.join()
        node, = self.qmp.cmd("query-named-block-nodes")
        counts = {bitmap["name"]: bitmap["count"] for bitmap in node["dirty-bitmaps"]}
        live = server.connect().pread(SIZE, 0)
        for number in range(4):
            then = server.connect(f"snapshot/s{number}").pread(SIZE, 0)
            differing = sum(SECTOR for at in range(0, SIZE, SECTOR) if then[at:at + SECTOR] != live[at:at + SECTOR])
            self.assertLessEqual(differing, counts[f"b{number}"])
        server.stop()
        check(image, "qcow2")

    def test_with_a_bitmap_that_is_kept(self):
        """A snapshot and a stored bitmap in one transaction, in any order: the bitmap's entry gets its clusters before
        the snapshot stops allocations."""
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.start(image)
        handle = server.connect()
        handle.pwrite(b"a" * MIB, 0)
        for number in range(4):
            actions = [(self.SNAPSHOT, {"device": "drive0", "name": f"s{number}"}),
                       ("block-dirty-bitmap-add", {"node": "drive0", "name": f"b{number}", "persistent": True})]
            wanted = actions if number % 2 else actions[::-1]
            with self.assertRaises(QmpError):
                self.run_actions(*wanted, ("abort", {}))
            self.run_actions(*wanted)
            handle.pwrite(b"b" * 512, number * MIB)
        server.stop()
        check(image, "qcow2")
        info = json.loads(run("qemu-img", "info", "--output=json", image).stdout)
        self.assertEqual([s["name"] for s in info["snapshots"]], ["s0", "s1", "s2", "s3"])
        bitmaps = info["format-specific"]["data"]["bitmaps"]
        self.assertEqual([(b["name"], b["flags"]) for b in bitmaps], [(f"b{n}", ["auto"]) for n in range(4)])

    def test_all_or_nothing(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.start(image)
        handle = server.connect()
        handle.pwrite(b"a" * MIB, 0)
        before = self.qmp.cmd("query-named-block-nodes")[0]["image"].get("snapshots")
        for rest in ((("abort", {}),), (("block-dirty-bitmap-clear", {"node": "drive0", "name": "none"}),)):
            with self.assertRaises(QmpError):
                self.run_actions((self.SNAPSHOT, {"device": "drive0", "name": "x"}), *rest)
            handle.pwrite(b"b" * MIB, 2 * MIB)
            self.assertEqual(self.qmp.cmd("query-named-block-nodes")[0]["image"].get("snapshots"), before)
        self.run_actions((self.SNAPSHOT, {"device": "drive0", "name": "x"}))
        handle.pwrite(b"c" * MIB, 0)
        self.assertEqual(server.connect("snapshot/x").pread(MIB, 0), b"a" * MIB)
        server.stop()
        check(image, "qcow2")


class Load(Live):
    """Writers on the live disk, and readers that check the content of snapshots."""

    def read_until(self, stop, server, moments, failed):
        try:
            while not stop.is_set():
                for name, data in list(moments.items()):
                    handle = server.connect(f"snapshot/{name}")
                    Model(data).compare(handle, what=f"snapshot {name}")
                    handle.shutdown()
        except (AssertionError, nbd.Error) as error:
            failed.append(error)

    def check_load(self, row, snapshots, requests):
        """Snapshots are made between bursts of writes, read during writes, and deleted."""
        disk = Featured(self.dir, row, self.rng, size=SIZE)
        server = self.start(disk.path, *disk.keys, "detect-zeroes=unmap")
        model, moments, failed, stop = Model(disk.data), {}, [], threading.Event()
        readers = [threading.Thread(target=self.read_until, args=(stop, server, moments, failed)) for _ in range(4)]
        for reader in readers:
            reader.start()
        for number in range(snapshots):
            work(server, model, self.rng, requests, disk.cluster, threads=8)
            self.make(f"s{number}")
            moments[f"s{number}"] = bytes(model.data)
        work(server, model, self.rng, requests, disk.cluster, threads=8)
        stop.set()
        for reader in readers:
            reader.join()
        self.assertEqual(failed, [])
        model.compare(server.connect())
        server.stop()
        self.qmp.close()
        disk.check()
        disk.data[:] = model.data
        disk.snapshots.update({name: (SIZE, data) for name, data in moments.items()})
        disk.check_rest()
        self.assertEqual(disk.content(), model.data)
        server = self.start(disk.path, *disk.keys)
        for name in self.rng.sample(list(moments), len(moments)):
            work(server, model, self.rng, 4, disk.cluster, threads=8)
            self.delete(name)
        model.compare(server.connect())
        server.stop()
        self.qmp.close()
        disk.check()
        if "snapshot" not in row:
            self.assertEqual(run("qemu-img", "snapshot", "-l", disk.path).stdout if not disk.encrypted else "", "")

    def test_plain(self):
        self.check_load({}, 6, 20)

    def test_features(self):
        for row in ({"compression": "zlib", "cluster": 16 * KIB, "compress": "on"},
                    {"encryption": "luks-xts", "backing": "qcow2"},
                    {"extended": "on", "refcount_bits": 64, "lazy": "on"},
                    {"compat": "0.10", "cluster": 4 * KIB},
                    {"refcount_bits": 8, "cluster": 512}):
            with self.part(**row):
                self.check_load(row, 3, 8)

    def test_many_under_load(self):
        """Many snapshots are made and deleted while eight threads write; their content isn't checked."""
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, self.rng.randbytes(SIZE))])
        server = self.start(image)
        model, stop = Model(content(image, "qcow2", served=True)), threading.Event()
        rounds = 200 if LONG or ROUNDS > 1 else 24

        def churn():
            while not stop.is_set():
                work(server, model, self.rng, 5, 64 * KIB, threads=8)

        writer = threading.Thread(target=churn)
        writer.start()
        there = []
        for number in range(rounds):
            self.make(f"s{number}")
            there.append(f"s{number}")
            if len(there) > 5:
                self.delete(there.pop(self.rng.randrange(len(there))))
        for name in there:
            self.delete(name)
        stop.set()
        writer.join()
        model.compare(server.connect())
        server.stop()
        check(image, "qcow2")
        self.assertEqual(content(image, "qcow2"), model.data)

    def test_a_write_may_not_change_a_snapshot_of_a_moment_in_between(self):
        """Each number is written to all clusters in order: a snapshot's numbers must not increase, and differ by at
        most 1."""
        image = create(self.path("disk"), "qcow2", 32 * 64 * KIB)
        server = self.start(image)
        stop = threading.Event()

        def write_numbers(handle):
            number = 0
            while not stop.is_set():
                number += 1
                for cluster in range(32):
                    handle.pwrite(number.to_bytes(8, "big") * 64, cluster * 64 * KIB)

        writer = threading.Thread(target=write_numbers, args=(server.connect(),))
        writer.start()
        for number in range(12 * ROUNDS):
            self.make(f"s{number}")
            first = self.numbers(server, f"s{number}")
            self.assertEqual(first, sorted(first, reverse=True))
            self.assertLessEqual(first[0] - first[-1], 1)
            self.assertEqual(self.numbers(server, f"s{number}"), first)
        stop.set()
        writer.join()

    def numbers(self, server, name):
        handle = server.connect(f"snapshot/{name}")
        found = [int.from_bytes(handle.pread(8, cluster * 64 * KIB), "big") for cluster in range(32)]
        handle.shutdown()
        server.handles.remove(handle)
        return found


class Kill(Live):
    def test_kill_at_any_moment(self):
        """kill -9 while a snapshot is made or deleted: the list is the old or the new one, all flushed data is there,
        and there are only leaks."""
        for number in range(12 * ROUNDS):
            image = create(self.path(f"disk{number}"), "qcow2", SIZE, self.rng.choice(("", "cluster_size=4k", "extended_l2=on")))
            server = self.start(image)
            handle, model = server.connect(), Model(bytes(SIZE))
            moments = {}
            for name in ("a", "b"):
                model.write(handle, self.rng.randrange(64) * 64 * KIB, self.rng.randbytes(MIB))
                self.make(name)
                moments[name] = bytes(model.data)
            model.write(handle, 0, self.rng.randbytes(MIB))
            handle.flush()
            made = self.rng.random() < 0.5
            self.qmp.send({"execute": "blockdev-snapshot-internal-sync", "arguments": {"device": "drive0", "name": "c"}}
                          if made else {"execute": "blockdev-snapshot-delete-internal-sync",
                                        "arguments": {"device": "drive0", "name": "a"}})
            time.sleep(self.rng.random() ** 2 * 0.03)
            server.kill()
            check(image, "qcow2", allow_leaks=True)
            names = run("qemu-img", "snapshot", "-l", image).stdout.split()
            self.assertIn("b", names)
            if made:
                self.assertIn("a", names)
            moments["c"] = bytes(model.data)
            self.assertEqual(content(image, "qcow2"), model.data)
            for name in set(names) & {"a", "b", "c"}:
                run("qemu-img", "convert", "-l", name, "-O", "raw", image, self.path("flat"))
                with open(self.path("flat"), "rb") as file:
                    self.assertEqual(file.read(), moments[name], name)
            run("qemu-img", "check", "-r", "leaks", image, check=False)
            check(image, "qcow2")


if __name__ == "__main__":
    unittest.main()
