# SPDX-License-Identifier: BSD-3-Clause
"""Transactions on the control socket: all actions happen at one point of the writes, or none (B-01)."""

import threading
import unittest

from harness import KIB, MIB, create
from test_control import ControlCase

GRANULE = 64 * KIB


def add(name, node="drive0", **more):
    return {"type": "block-dirty-bitmap-add", "data": {"node": node, "name": name, **more}}


def act(verb, name, node="drive0"):
    return {"type": f"block-dirty-bitmap-{verb}", "data": {"node": node, "name": name}}


def merge(target, *bitmaps, node="drive0"):
    return {"type": "block-dirty-bitmap-merge",
            "data": {"node": node, "target": target, "bitmaps": list(bitmaps)}}


ABORT = {"type": "abort", "data": {}}


class Transactions(ControlCase):
    def setUp(self):
        super().setUp()
        self.start()
        self.client = self.qmp()
        self.disk = self.server.connect()

    def transact(self, *actions, **more):
        return self.client.cmd("transaction", actions=list(actions), **more)

    def refused(self, words, *actions, **more):
        self.fails("GenericError", self.client, "transaction", words, actions=list(actions), **more)

    def bitmaps(self):
        return {name: (b["count"] // GRANULE, b["recording"]) for name, b in self.client.bitmaps().items()}

    def test_actions_build_on_each_other(self):
        """The usual transaction: a bitmap is copied into a new one and cleared."""
        self.assertEqual(self.transact(add("a")), {})
        self.disk.pwrite(b"x", 0)
        self.assertEqual(self.transact(add("b", disabled=True), merge("b", "a"), act("clear", "a")), {})
        self.assertEqual(self.bitmaps(), {"a": (0, True), "b": (1, False)})
        self.disk.pwrite(b"x", MIB)
        self.transact(act("enable", "b"), act("disable", "a"))
        self.assertEqual(self.bitmaps(), {"a": (1, False), "b": (1, True)})
        self.transact(act("remove", "b"), add("c"), {"type": "block-dirty-bitmap-add", "data": {
            "node": "drive0", "name": "d", "granularity": 4096}})
        self.assertEqual(set(self.bitmaps()), {"a", "c", "d"})
        self.assertEqual(self.transact(), {})

    def test_none_of_them(self):
        """When an action fails, those before it are undone, and no bitmap stays busy."""
        self.transact(add("a"), add("b"))
        self.disk.pwrite(b"x", 0)
        self.transact(act("disable", "b"))
        before = self.bitmaps()
        good = (add("c"), merge("c", "a"), act("clear", "a"), act("disable", "a"), act("enable", "b"),
                act("remove", "b"))
        for words, bad in (("Abort action", ABORT), ("'x' not found", act("clear", "x")),
                           ("already", add("c")), ("Node 'x'", add("c", node="x"))):
            with self.subTest(words=words):
                self.refused(words, *good, bad)
                self.assertEqual(self.bitmaps(), before)
        for name in ("a", "b"):
            self.client.cmd("block-dirty-bitmap-remove", node="drive0", name=name)
        self.assertEqual(self.bitmaps(), {})

    def test_what_is_removed_is_no_later_action_s(self):
        self.transact(add("a"), add("b"))
        before = self.bitmaps()
        for later in (act("remove", "a"), act("clear", "a"), act("enable", "a"), merge("b", "a"), merge("a", "b")):
            with self.subTest(later=later):
                self.refused("'a' is currently in use", act("remove", "a"), later)
                self.assertEqual(self.bitmaps(), before)
        self.refused("Abort action", add("c"), act("remove", "c"), ABORT)
        self.assertEqual(self.bitmaps(), before)
        self.transact(act("clear", "a"), merge("b", "a"), act("remove", "a"))
        self.assertEqual(set(self.bitmaps()), {"b"})

    def test_bad_input(self):
        self.transact(add("a"))
        for words, actions in (
                (r"'actions\[1\].type' is missing", [{}]),
                (r"'actions\[1\].data' is missing", [{"type": "abort"}]),
                (r"'actions\[1\]', expected: an object", [1]), ("does not accept value 'x'", [{"type": "x", "data": {}}]),
                ("an object", [{"type": "abort", "data": []}]),
                ("more' is unexpected; abort takes type, data", [{"type": "abort", "data": {}, "more": 1}]),
                ("data.x' is unexpected; .* takes no parameters", [{"type": "abort", "data": {"x": 1}}]),
                ("data.name' is missing", [{"type": "block-dirty-bitmap-clear", "data": {"node": "drive0"}}])):
            with self.subTest(words=words):
                self.refused(words, act("disable", "a"), *actions)
        self.refused("individual, grouped", properties={"completion-mode": "x"})
        self.refused("'properties.x' is unexpected", properties={"x": 1})
        self.refused("an object", properties=1)
        self.refused("Action 'block-dirty-bitmap-disable' does not support .*completion-mode = grouped",
                     act("disable", "a"), properties={"completion-mode": "grouped"})
        self.assertEqual(self.bitmaps(), {"a": (0, True)})
        self.transact(act("disable", "a"), properties={"completion-mode": "individual"})
        self.assertEqual(self.bitmaps(), {"a": (0, False)})

    def test_one_point_of_the_writes(self):
        """A transaction disables one bitmap and enables another: each concurrent write is in exactly one of them."""
        self.transact(add("0", granularity=512), add("1", granularity=512, disabled=True),
                      add("s", granularity=512), add("t", granularity=512, disabled=True))
        stop, writes, failures = threading.Event(), [0] * 4, []

        def write(thread, disk):
            try:
                while not stop.is_set() and writes[thread] < self.SIZE // KIB // 4:
                    disk.pwrite(b"w" * 512, (writes[thread] * 4 + thread) * KIB)
                    writes[thread] += 1
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)

        threads = [threading.Thread(target=write, args=(n, self.server.connect())) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(40):
                now, then = str(turn % 2), str((turn + 1) % 2)
                # The merges in between take some time.
                self.transact(act("disable", now), *[merge("t", "s")] * 10, act("enable", then))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertEqual(failures, [])
        bitmaps = self.client.cmd("query-block")[0]["inserted"]["dirty-bitmaps"]
        counts = [b["count"] // 512 for b in bitmaps[:2]]
        self.assertEqual(sum(counts), sum(writes), "a write is in both bitmaps or in none")
        self.assertTrue(all(counts), counts)


if __name__ == "__main__":
    unittest.main()
