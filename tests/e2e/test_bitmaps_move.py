# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps follow the disk from one image to another and then contain exactly what was changed (B-16)."""

import concurrent.futures
import os
import random
import threading
import time

import harness
from harness import KIB, LONG, SEED, check, create, run
from qmp import QmpError
from test_bitmap_exports import dirty_ranges
from test_overlays import OverlayCase
from test_stored_bitmaps import KeptBitmaps, granules
from writers import Writers

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 30 if LONG else 3))


class BitmapCase(OverlayCase):
    stored = KeptBitmaps.stored
    dirty_for_qemu = KeptBitmaps.dirty_for_qemu

    def bitmap(self, verb, name, node="drive0", **arguments):
        return self.client.cmd(f"block-dirty-bitmap-{verb}", node=node, name=name, **arguments)

    def dirty(self, name):
        """The dirty granules of the bitmap, read from its export."""
        granularity = self.client.bitmaps()[name]["granularity"]
        handle = self.server.connect(f"bitmap/{name}")
        found = granules(dirty_ranges(handle), granularity)
        handle.shutdown()
        self.server.handles.remove(handle)
        return found

    def expect_dirty(self, name, changed, what="", more=False):
        """The bitmap must have exactly the changed granules; more=True allows others, too."""
        wanted = granules(changed, self.client.bitmaps()[name]["granularity"])
        found = self.dirty(name)
        self.assertEqual(wanted - found, set(), f"{SEED}: {what}: {name} lacks something")
        if not more:
            self.assertEqual(found - wanted, set(), f"{SEED}: {what}: {name} has too much")


class Pivot(BitmapCase):
    TIMEOUT = 1000

    def test_rounds(self):
        """a mirror's target becomes the disk while clients write; stored bitmaps, and bitmaps in memory"""
        for number in range(ROUNDS):
            with self.subTest(round=number):
                self.one(random.Random(f"{SEED} {number}"), number)

    def one(self, rng, number):
        self.make(["qcow2", "qcow2", "qed", "raw"][number % 4])
        target_format = rng.choice(["qcow2", "qcow2", "raw"])
        self.begin("need-check-delay=0.02")
        keeps = self.fmt == "qcow2"
        for name in ("fine", "coarse", "kept", "still"):
            self.bitmap("add", name, granularity=512 if name == "fine" else rng.choice([4 * KIB, 64 * KIB, 1024 * KIB]),
                        persistent=keeps and name in ("kept", "still"))
        self.write(rng.randrange(self.SIZE - 4096), b"early" * 200)
        self.bitmap("disable", "still")
        early = self.dirty("still")
        writers = Writers(self.server, self.content, f"{SEED} {number}")
        try:
            writers.some(30)
            with writers.still():
                for name in ("fine", "coarse", "kept"):
                    self.bitmap("clear", name)
                writers.changed(begin=True)
            writers.some(20)
            target = self.mirror(f"target{number}.{target_format}", format=target_format,
                                 copy_mode=rng.choice(["background", "write-blocking"]))
            self.ready()
            writers.some(30)
            self.pivot()
            writers.some(30)
            with writers.still():
                changed = writers.changed()
                known = self.client.bitmaps()
                self.assertEqual({n: b["persistent"] for n, b in known.items()},
                                 {n: keeps and target_format == "qcow2" and n in ("kept", "still") for n in known})
                for name in ("fine", "coarse", "kept"):
                    self.assertTrue(known[name]["recording"])
                    self.expect_dirty(name, changed, "after the pivot")
                self.assertEqual(self.dirty("still"), early)
        finally:
            self.content = writers.stop()
        changed, granularity = writers.changed(), known["kept"]["granularity"]
        self.server.stop()
        self.expect_content(target, target_format)
        check(target, target_format)
        if keeps and target_format == "qcow2":
            self.assertEqual(self.stored(target), {"kept": ["auto"], "still": []})
            self.assertEqual(self.dirty_for_qemu(target, "kept", granularity), granules(changed, granularity))
        if keeps:
            self.assertEqual(self.stored(self.image), {"kept": ["auto"], "still": []})
            before = self.dirty_for_qemu(self.image, "kept", granularity)
            self.assertTrue(before and before <= granules(changed, granularity))
        check(self.image, self.fmt)

    def test_one_name_on_both(self):
        """disk and target have bitmaps of the same name: afterwards it has the dirty granules of both"""
        self.begin()
        target = create(self.path("target.qcow2"), "qcow2", self.SIZE)
        run("qemu-img", "bitmap", "--add", target, "b")
        run("qemu-img", "bitmap", "--add", target, "other")
        harness.fill(target, "qcow2", [(3 * 1024 * KIB, b"t")])
        self.bitmap("add", "b", persistent=True)
        self.write(0, b"x")
        self.mirror("target.qcow2", format="qcow2", mode="existing", sync="none")
        self.ready()
        self.pivot()
        self.assertEqual(self.dirty("b"), {0, 48})
        self.assertEqual(set(self.client.bitmaps()), {"b", "other"})
        self.server.stop()
        self.assertEqual(self.stored(target), {"b": ["auto"], "other": ["auto"]})

    def test_a_crash_after_it(self):
        """kill -9 after the switch: the new image's bitmap is in use, so not trusted; the old image's is right"""
        self.begin()
        self.bitmap("add", "b", persistent=True)
        self.write(0, b"x")
        target = self.mirror(format="qcow2")
        self.ready()
        self.pivot()
        self.write(1024 * KIB, b"y")
        self.disk.flush()
        self.server.kill()
        self.assertEqual(self.stored(target), {"b": ["in-use", "auto"]})
        self.assertEqual(self.stored(self.image), {"b": ["auto"]})
        self.assertEqual(self.dirty_for_qemu(self.image, "b"), {0})

    def test_in_use_by_a_client(self):
        """while a client reads bitmap/NAME, the mirror can't complete"""
        self.begin()
        self.bitmap("add", "b")
        self.mirror()
        self.ready()
        handle = self.server.connect("bitmap/b")
        self.client.cmd("block-job-complete", device="job")
        self.ended(error="a client reads")
        handle.shutdown()
        self.write(0, b"x")
        self.assertEqual(self.dirty("b"), {0})
        self.source_is_good()

    def test_used_by_a_backup_while_it_would_take_up_another(self):
        """a backup uses the bitmap that would take in the granules of the target's one: at its end the backup would
        clear these, too, without having copied them"""
        self.begin()
        target = create(self.path("target.qcow2"), "qcow2", self.SIZE)
        run("qemu-img", "bitmap", "--add", target, "b")
        harness.fill(target, "qcow2", [(3 * 1024 * KIB, b"t")])
        self.bitmap("add", "b")
        self.write(0, b"x" * 512 * KIB)
        mirror = {"format": "qcow2", "mode": "existing", "sync": "none"}
        self.mirror("target.qcow2", **mirror)
        self.ready()
        self.complete_beside_a_backup()
        self.mirror("target.qcow2", **mirror)
        self.ready()
        self.pivot()
        self.assertEqual(self.dirty("b"), {48})

    def complete_beside_a_backup(self):
        """Completing the job fails while a slow backup uses the bitmap "b"; then the backup ends."""
        self.client.cmd("drive-backup", job_id="slow", device="drive0", target=self.path("slow.raw"), sync="incremental",
                        format="raw", bitmap="b", speed=1)
        self.client.cmd("block-job-complete", device="job")
        self.ended(error="its bitmap 'b' is in use")
        self.client.cmd("block-job-set-speed", device="slow", speed=0)
        self.client.event("BLOCK_JOB_COMPLETED", device="slow")
        self.assertEqual(self.dirty("b"), set())


class Overlay(BitmapCase):
    TIMEOUT = 1000

    def grow(self, name, *bitmaps, node=None):
        """Puts a new image on top and adds bitmaps to it, in one transaction."""
        node = node or name
        path = create(self.path(f"{name}.qcow2"), "qcow2", self.SIZE)
        self.add(name, "qcow2", file={"driver": "file", "filename": path}, backing=None)
        self.client.cmd("transaction", actions=[
            {"type": "blockdev-snapshot", "data": {"node": self.top()["node-name"], "overlay": name}},
            *({"type": "block-dirty-bitmap-add", "data": {"node": node, "name": b, "granularity": 4096, "persistent": True}}
              for b in bitmaps)])
        return path

    def test_as_libvirt_does(self):
        """each new layer begins with a bitmap of the same name; together they are the increment, also after the layers
        have become one image again"""
        for number in range(ROUNDS):
            for end in ("commit", "mirror"):
                with self.subTest(round=number, end=end):
                    self.layers(f"{number}{end[0]}", end)

    def layers(self, number, end):
        self.make("qcow2")
        self.begin("need-check-delay=0.02")
        self.bitmap("add", "b", granularity=4 * KIB, persistent=True)
        self.bitmap("add", "old", granularity=4 * KIB)  # only on the first layer
        writers = Writers(self.server, self.content, f"{SEED} {number}")
        try:
            names = ["drive0"]
            for depth in range(2):
                writers.some(20)
                self.grow(f"o{depth}{number}", "b")
                names.append(f"o{depth}{number}")
            writers.some(20)
            with writers.still():
                self.bitmap("add", "all", granularity=4 * KIB)
                self.client.cmd("block-dirty-bitmap-merge", node="drive0", target="all",
                                bitmaps=[{"node": name, "name": "b"} for name in names])
                self.expect_dirty("all", writers.changed(), "merged")
                self.assertLess(len(self.dirty("b")), len(self.dirty("all")))
            if end == "commit":
                self.client.cmd("block-commit", job_id="job", device="drive0")
            else:
                self.mirror(f"target{number}.qcow2", format="qcow2")
            self.ready()
            writers.some(20)
            self.pivot()
            writers.some(20)
            with writers.still():
                # Whole clusters that the commit copied to the base are dirty.
                self.expect_dirty("b", writers.changed(), end, more=end == "commit")
                self.expect_dirty("all", writers.changed(), end)
                if end == "commit":
                    self.expect_dirty("old", writers.changed(), end, more=True)
                else:
                    self.assertNotIn("old", self.client.bitmaps())  # it would lack writes to the layers above
        finally:
            self.content = writers.stop()
        top = self.top()
        self.server.stop()
        self.expect_content(top["file"], "qcow2")
        check(top["file"], "qcow2")
        self.assertEqual(self.stored(top["file"])["b"], ["auto"])

    def test_used_by_a_backup_while_layers_become_one(self):
        """like Pivot.test_used_by_a_backup_while_it_would_take_up_another, with the bitmap of a layer below"""
        self.begin()
        self.bitmap("add", "b", granularity=4096)
        self.write(0, b"x")
        self.grow("o", "b")
        self.write(1024 * KIB, b"y" * 512 * KIB)
        self.mirror(format="qcow2")
        self.ready()
        Pivot.complete_beside_a_backup(self)
        self.mirror("second.qcow2", format="qcow2")
        self.ready()
        self.pivot()
        self.assertEqual(self.dirty("b"), {0})

    def test_none_of_them(self):
        """a transaction that fails leaves no bitmap on the image that it would have put on top"""
        self.begin()
        path = create(self.path("o.qcow2"), "qcow2", self.SIZE)
        self.add("o", "qcow2", file={"driver": "file", "filename": path}, backing=None)
        actions = [{"type": "blockdev-snapshot", "data": {"node": "drive0", "overlay": "o"}},
                   {"type": "block-dirty-bitmap-add", "data": {"node": "o", "name": "b", "persistent": True}}]
        self.fails("GenericError", self.client, "transaction", "Abort", actions=[*actions, {"type": "abort", "data": {}}])
        self.assertEqual(self.client.bitmaps(), {})
        self.assertEqual(self.stored(path), {})
        self.fails("GenericError", self.client, "transaction", "Node 'o'|node-name='o'", actions=actions[::-1])
        self.client.cmd("transaction", actions=actions)
        self.assertEqual(set(self.client.bitmaps()), {"b"})
        self.write(0, b"x")
        self.assertEqual(self.dirty("b"), {0})
        self.server.stop()
        self.assertEqual(self.stored(path), {"b": ["auto"]})


class BesideStoring(BitmapCase):
    def test_looked_at_while_it_is_stored(self):
        """a command that adds a bitmap looks at the stored ones while these are stored whenever writes pause"""
        self.make("qcow2")
        self.begin("need-check-delay=0.0001")
        for name in "abc":
            self.bitmap("add", name, persistent=True)
        stop = threading.Event()

        def write():
            handle = self.server.connect()
            while not stop.is_set():
                handle.pwrite(b"x" * 512, 0)
                time.sleep(0.003)

        with concurrent.futures.ThreadPoolExecutor(1) as other:
            writing = other.submit(write)
            try:
                for _ in range(3000):
                    with self.assertRaises(QmpError):
                        self.bitmap("add", "a", persistent=True)
            finally:
                stop.set()
            writing.result()
        self.server.stop()
        check(self.image, "qcow2")


if __name__ == "__main__":
    harness.unittest.main()
