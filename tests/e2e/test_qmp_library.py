# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's client library (qemu.qmp) and qmp-shell with the control socket: their messages, sent through socat, and the
library itself if it is installed.  M-57"""

import asyncio
import importlib.util
import json
import select
import subprocess
import unittest

import harness
from harness import create
from test_mirror import MirrorCase

LIBRARY = importlib.util.find_spec("qemu") and importlib.util.find_spec("qemu.qmp")


class Speaks(MirrorCase):
    """socat connects the test with the control socket, and may split messages anywhere."""

    def setUp(self):
        super().setUp()
        self.start("references=any", image=self.image)
        self.socat = subprocess.Popen(["socat", "-", f"UNIX-CONNECT:{self.control}"], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE)
        self.addCleanup(self.socat.wait)
        self.addCleanup(self.socat.stdout.close)
        self.addCleanup(self.socat.stdin.close)
        self.number = 0

    def tell(self, text):
        self.socat.stdin.write(text.encode())
        self.socat.stdin.flush()

    def message(self):
        """The next message: one JSON object on one line, which ends in CR LF."""
        self.assertTrue(select.select([self.socat.stdout], [], [], 20)[0] or self.socat.stdout.peek(1))
        line = self.socat.stdout.readline()
        self.assertTrue(line.endswith(b"\r\n"), line)
        return json.loads(line)

    def negotiate(self):
        """Checks the greeting as the library does, and leaves capabilities negotiation; oob must not be offered."""
        greeting = self.message()["QMP"]
        self.assertTrue({"version", "capabilities"} <= greeting.keys())
        self.assertNotIn("oob", greeting["capabilities"])
        self.tell(json.dumps({"execute": "qmp_capabilities", "arguments": {}}))
        self.assertEqual(self.message(), {"return": {}})

    def issue(self, command, arguments=None, **dumping):
        name = f"__qmp#{self.number:05d}"
        self.number += 1
        request = {"execute": command, **({"arguments": arguments} if arguments is not None else {}), "id": name}
        self.tell(json.dumps(request, **dumping))
        return name

    def test_the_library(self):
        """commands are sent back to back without line ends; events may come between the replies"""
        self.negotiate()
        target = create(self.path("target.raw"), "raw", self.SIZE)
        ids = [self.issue("query-status"), self.issue("query-qmp-schema"), self.issue("blockdev-add", {
            "driver": "raw", "node-name": "t", "file": {"driver": "file", "filename": target}}),
               self.issue("blockdev-mirror", {"job-id": "j", "device": "drive0", "target": "t", "sync": "full"}),
               self.issue("nosuch", {})]
        replies, events = {}, []
        while len(replies) < len(ids) or "BLOCK_JOB_READY" not in events:
            message = self.message()
            if "event" in message:
                self.assertEqual(message["timestamp"].keys(), {"seconds", "microseconds"})
                events.append(message["event"])
            else:
                self.assertEqual(message["id"], ids[len(replies)], "the order")
                replies[message["id"]] = message
        self.assertEqual(replies[ids[0]]["return"]["status"], "running")
        self.assertGreater(len(replies[ids[1]]["return"]), 100)
        self.assertEqual([replies[name].get("return") for name in ids[2:4]], [{}, {}])
        self.assertEqual(replies[ids[4]]["error"]["class"], "CommandNotFound")

    def test_the_shell(self):
        """as qmp-shell sends them: an empty "enable", messages over several lines, single quotes"""
        self.assertIn("QMP", self.message())
        self.tell(json.dumps({"execute": "qmp_capabilities", "arguments": {"enable": []}}, indent=4) + "\n")
        self.assertEqual(self.message(), {"return": {}})
        name = self.issue("query-named-block-nodes", {"flat": True}, indent=4)
        reply = self.message()
        self.assertEqual((reply["id"], reply["return"][0]["node-name"]), (name, "drive0"))
        self.tell("{ 'execute': 'query-version' }")
        self.assertIn("qemu", self.message()["return"])
        # qmp-shell completes command names from this list.
        self.issue("query-commands")
        self.assertIn({"name": "blockdev-mirror"}, self.message()["return"])

    @unittest.skipUnless(LIBRARY, "the library isn't installed: test_the_library speaks as it does")
    def test_the_library_itself(self):
        from qemu.qmp import EventListener, ExecuteError, QMPClient  # pylint: disable=import-error

        async def use():
            client = QMPClient("test")
            await client.connect(self.control)
            with client.listener(EventListener(("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"))) as listener:
                await client.execute("drive-mirror", {"job-id": "j", "device": "drive0", "sync": "full",
                                                      "target": self.path("t"), "format": "qcow2"})
                self.assertEqual((await listener.get())["event"], "BLOCK_JOB_READY")
                with self.assertRaises(ExecuteError) as caught:
                    await client.execute("job-complete", {"id": "none"})
                self.assertEqual(caught.exception.error.class_, "GenericError")
                answers = await asyncio.gather(client.execute("query-qmp-schema"), client.execute("query-block"))
                self.assertGreater(len(answers[0]), 100)
                await client.execute("job-complete", {"id": "j"})
                self.assertEqual((await listener.get())["event"], "BLOCK_JOB_COMPLETED")
            await client.disconnect()

        asyncio.run(use())
        self.server.stop()
        harness.check(self.path("t"), "qcow2")
        self.expect_content(self.path("t"), "qcow2")


if __name__ == "__main__":
    harness.main()
