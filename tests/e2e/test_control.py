# SPDX-License-Identifier: BSD-3-Clause
"""The control socket: QMP as QEMU's clients speak it, and clients that misbehave."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
import unittest

import harness
from harness import KIB, MIB, Case, QIMG, check, create, fill, plugin_env, run, wait_until
from qmp import Closed, Qmp, QmpError

COMMANDS = {
    "qmp_capabilities", "query-version", "query-commands", "query-status", "quit", "query-qmp-schema", "query-block",
    "query-named-block-nodes", "drive-mirror", "block-commit", "block-stream", "block_resize", "blockdev-reopen", "nbd-server-start", "nbd-server-add",
    "nbd-server-remove", "nbd-server-stop", "query-block-jobs", "query-jobs",
    "block-job-cancel", "block-job-complete", "block-job-pause", "block-job-resume",
    "block-job-set-speed", "block-job-finalize", "block-job-dismiss", "block-job-change", "job-cancel", "job-complete",
    "job-pause", "job-resume", "job-finalize", "job-dismiss", "blockdev-add", "blockdev-del", "blockdev-create", "blockdev-mirror", "blockdev-snapshot",
    "blockdev-snapshot-sync", "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove", "block-dirty-bitmap-clear", "block-dirty-bitmap-enable",
    "block-dirty-bitmap-disable", "block-dirty-bitmap-merge",
    "transaction", "blockdev-backup", "drive-backup", "block-export-add", "block-export-del", "query-block-exports", "query-blockstats",
    "blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync", "block_set_io_throttle", "x-qimg-handover",
}


class ControlCase(Case):
    """A server with a control socket over a small qcow2 image."""

    SIZE = 16 * MIB

    def start(self, *keys, image=None, **kwargs):
        self.control = self.path("control")
        if image is None:
            image = create(self.path("disk.qcow2"), "qcow2", self.SIZE)
        self.server = self.serve(image, f"control={self.control}", *keys, **kwargs)
        return self.server

    def qmp(self, negotiate=True):
        client = Qmp(self.control, negotiate)
        self.addCleanup(client.close)
        return client

    def fails(self, kind, client, command, words="", **arguments):
        """The command must fail with this error class; its description must match the words."""
        with self.assertRaises(QmpError) as caught:
            client.cmd(command, **arguments)
        self.assertEqual(caught.exception.kind, kind, caught.exception)
        self.assertTrue(re.search(words, caught.exception.desc), caught.exception)
        return caught.exception


class Protocol(ControlCase):
    def setUp(self):
        super().setUp()
        self.start()

    def test_greeting(self):
        greeting = self.qmp(negotiate=False).greeting
        self.assertEqual(list(greeting), ["QMP"])
        self.assertEqual(greeting["QMP"]["capabilities"], [])
        self.assertEqual(set(greeting["QMP"]["version"]["qemu"]), {"major", "minor", "micro"})
        self.assertRegex(greeting["QMP"]["version"]["package"], r"^qimg-\d")

    def test_nothing_before_the_negotiation(self):
        client = self.qmp(negotiate=False)
        for command in ("query-status", "quit", "no-such-command"):
            self.fails("CommandNotFound", client, command, "qmp_capabilities")
        self.assertEqual(client.cmd("qmp_capabilities"), {})
        self.assertTrue(client.cmd("query-status")["running"])
        self.fails("CommandNotFound", client, "qmp_capabilities", "already")

    def test_capabilities(self):
        client = self.qmp(negotiate=False)
        self.fails("GenericError", client, "qmp_capabilities", enable=["oob"])
        self.fails("GenericError", client, "qmp_capabilities", enable="oob")
        self.fails("GenericError", client, "qmp_capabilities", disable=[])
        self.assertEqual(client.cmd("qmp_capabilities", enable=[]), {})

    def test_ids_come_back(self):
        client = self.qmp()
        for number, ident in enumerate(["x", 7, 2**62, -1.5, None, True, [1, "a"], {"k": {}}]):
            command = "query-status" if number % 2 else "nothing"
            client.send({"execute": command, "id": ident})
            reply = client.reply()
            self.assertEqual(reply["id"], ident)
            self.assertEqual("return" in reply, bool(number % 2))
        client.send({"execute": "query-status"})
        self.assertNotIn("id", client.reply())

    def test_errors_have_class_and_description(self):
        """M-21"""
        client = self.qmp()
        self.fails("CommandNotFound", client, "no-such-command", "no-such-command")
        self.fails("GenericError", client, "query-status", "'x' is unexpected", x=1)
        self.fails("GenericError", client, "block-job-cancel", "'device' is missing")
        self.fails("GenericError", client, "block-job-cancel", "'device'.*string", device=1)
        self.fails("GenericError", client, "block-job-cancel", "boolean", device="j", force="yes")
        self.fails("GenericError", client, "block-job-set-speed", "integer", device="j", speed=-1)
        self.fails("GenericError", client, "block-job-set-speed", "integer", device="j", speed=1.5)
        self.fails("GenericError", client, "drive-mirror", "full, top", device="drive0", target="t",
                   sync="everything")
        error = self.fails("DeviceNotActive", client, "block-job-cancel", "'j'", device="j")
        self.assertEqual(error.errno, 2)
        self.fails("DeviceNotFound", client, "drive-mirror", "'nodisk'", device="nodisk", target="t",
                   sync="full")

    def test_requests_that_are_none(self):
        client = self.qmp()
        for message in ([], [1], {}, {"execute": 1}, {"execute": "query-status", "arguments": []},
                        {"execute": "query-status", "more": 1}, {"exec-oob": "query-status"},
                        {"execute": "query-status", "arguments": {"x": {"y": [1]}}}):
            client.send(message)
            self.assertEqual(client.reply()["error"]["class"], "GenericError", message)
        self.assertTrue(client.cmd("query-status")["running"])

    def test_junk(self):
        """input that isn't JSON gets an error reply, and the connection stays open"""
        client = self.qmp()
        for junk in (b"hello\n", b"}}\n", b'{"execute": }\n', b'{"execute" "x"}\n', b"'single'\n",
                     b"{nonsense}\n", b"\x00\x01\xff\n", b'{"execute": "query-status",}\n',
                     b'{"a": 1, "a": 2}\n', b'{"a": "\xff"}\n', b'{"a": 99999999999999999999}\n',
                     b'{"a": "\\ud800"}\n', b"42\n", b'"text"\n', b"[" * 100 + b"\n"):
            client.send_bytes(junk)
            self.assertEqual(client.reply()["error"]["class"], "GenericError", junk)
            self.assertTrue(client.cmd("query-status")["running"], junk)

    def test_single_quotes(self):
        """single-quoted strings are accepted, as QEMU does"""
        client = self.qmp()
        client.send_bytes(b"{'execute': 'query-status', 'id': 'it\\'s \"fine\"'}\n")
        self.assertEqual(client.reply()["id"], "it's \"fine\"")

    def test_half_messages(self):
        client = self.qmp()
        message = json.dumps({"execute": "query-status", "id": "}{\"\\"}).encode()
        for cut in range(1, len(message)):
            client.send_bytes(message[:cut])
            if cut % 10 == 0:
                time.sleep(0.01)
            client.send_bytes(message[cut:])
            self.assertEqual(client.reply()["id"], "}{\"\\")
        client.send_bytes(b'{"execute": "query-st\n')  # a string without an end is an error at the end of its line
        self.assertIn("error", client.reply())
        self.assertTrue(client.cmd("query-status")["running"])

    def test_byte_by_byte_and_all_at_once(self):
        client = self.qmp()
        message = b'{"execute": "query-status"}'
        for at in range(len(message)):
            client.send_bytes(message[at:at + 1])
        self.assertIn("return", client.reply())
        client.send_bytes(message * 200)
        for _ in range(200):
            self.assertIn("return", client.reply())

    def test_huge_messages(self):
        client = self.qmp()
        padding = 64 * KIB - len('{"execute":"query-status","id":""}')
        client.send_bytes(b'{"execute":"query-status","id":"' + b"x" * padding + b'"}')
        self.assertEqual(len(client.reply()["id"]), padding)
        for huge in (b'{"execute": "' + b"x" * 70000, b"x" * 70000, b"[" + b"1," * 40000):
            bad = self.qmp()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                bad.send_bytes(huge)
            with self.assertRaises(Closed):
                while True:
                    self.assertIn("error", bad.receive())
        self.assertTrue(client.cmd("query-status")["running"])

    def test_a_client_that_stops_sending_still_gets_its_answers(self):
        client = self.qmp()
        client.send({"execute": "query-block"})
        client.socket.shutdown(socket.SHUT_WR)
        self.assertIn("return", client.reply())
        with self.assertRaises(Closed):
            client.receive()

    def test_many_clients(self):
        clients = [self.qmp() for _ in range(100)]
        for client in clients:
            client.send({"execute": "query-status"})
        for client in reversed(clients):
            self.assertIn("return", client.reply())
        for client in clients[::2]:
            client.close()
        for client in clients[1::2]:
            self.assertTrue(client.cmd("query-status")["running"])

    def test_a_slow_reader_is_closed(self):
        slow, quick = self.qmp(), self.qmp()
        slow.socket.settimeout(30)
        flood = b'{"execute": "query-commands"}' * 100
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            for _ in range(2000):
                slow.send_bytes(flood)
                if _ % 20 == 0:
                    before = time.monotonic()
                    self.assertTrue(quick.cmd("query-status")["running"])
                    self.assertLess(time.monotonic() - before, 2)
        handle = self.server.connect()
        handle.pwrite(b"x" * 4096, 0)
        handle.flush()

    def test_a_client_that_pipelines_is_served(self):
        """a client that sends many commands before it reads the replies"""
        client = self.qmp()
        client.send_bytes(b'{"execute": "query-version"}\n' * 2000)
        for _ in range(2000):
            self.assertIn("return", client.reply())

    def test_clients_that_vanish(self):
        for _ in range(50):
            client = Qmp(self.control)
            client.send_bytes(b'{"execute": "query-block"}' * 20 + b'{"exec')
            client.close()
        self.assertTrue(self.qmp().cmd("query-status")["running"])
        self.server.stop()

    def test_concurrent_clients(self):
        failures = []

        def work():
            try:
                with Qmp(self.control) as client:
                    for number in range(100):
                        client.send({"execute": "query-block", "id": number})
                        if client.reply()["id"] != number:
                            failures.append("wrong id")
            except Exception as error:  # pylint: disable=broad-except
                failures.append(repr(error))

        threads = [threading.Thread(target=work) for _ in range(8)]
        handle = self.server.connect()
        for thread in threads:
            thread.start()
        for number in range(200):
            handle.pwrite(b"y" * 4096, number * 64 * KIB)
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.server.stop()


class Socket(ControlCase):
    def test_mode(self):
        self.start()
        self.assertEqual(stat.S_IMODE(os.stat(self.control).st_mode), 0o600)
        self.assertTrue(stat.S_ISSOCK(os.stat(self.control).st_mode))

    def test_removed_at_the_end(self):
        self.start().stop()
        self.assertFalse(os.path.exists(self.control))

    def test_what_isnt_ours_stays_at_the_end(self):
        self.start()
        os.unlink(self.control)
        with open(self.control, "w", encoding="ascii") as file:
            file.write("mine")
        self.server.stop()
        with open(self.control, encoding="ascii") as file:
            self.assertEqual(file.read(), "mine")

    def test_a_stale_socket_is_replaced(self):
        self.start()
        self.server.kill()
        self.assertTrue(os.path.exists(self.control))
        self.start(image=self.path("disk.qcow2"))
        self.assertTrue(self.qmp().cmd("query-status")["running"])
        self.server.stop()

    def test_a_socket_in_use_is_refused(self):
        self.start()
        other = create(self.path("other.qcow2"), "qcow2", MIB)
        self.refused(other, f"control={self.control}", words=["in use", "control"], name=False)
        self.assertTrue(self.qmp().cmd("query-status")["running"])

    def test_a_file_in_the_way_is_refused(self):
        image = create(self.path("disk.qcow2"), "qcow2", MIB)
        with open(self.path("control"), "w", encoding="ascii") as file:
            file.write("mine")
        self.refused(image, f"control={self.path('control')}", words=["control"], name=False)
        self.assertEqual(os.path.getsize(self.path("control")), 4)

    def test_refused_parameters(self):
        image = create(self.path("disk.qcow2"), "qcow2", MIB)
        self.refused(image, f"control={self.path('x' * 110)}", words=["bytes"], name=False)
        self.refused(image, f"control={self.path('no/such/folder')}", words=["no such"], name=False)
        for name in ("", "1disk", "a/b", "a b", "x" * 32, "drive0#1"):
            self.refused(image, f"node-name={name}", words=["node-name"], name=False)

    def test_none(self):
        image = create(self.path("disk.qcow2"), "qcow2", MIB)
        self.serve(image, "control=none").stop()

    def test_a_server_in_the_background(self):
        """a relative path of the socket is relative to the folder where nbdkit was started"""
        image = create(self.path("disk.qcow2"), "qcow2", MIB)
        pidfile = self.path("pid")
        run("nbdkit", "-U", self.path("nbd"), "-P", pidfile, harness.PLUGIN, image, "control=here",
            cwd=self.dir, env=plugin_env())
        wait_until(lambda: os.path.exists(pidfile) and os.path.getsize(pidfile), 20, "the pid file")
        with open(pidfile, encoding="ascii") as file:
            pid = int(file.read())
        try:
            with Qmp(self.path("here")) as client:
                self.assertTrue(client.cmd("query-status")["running"])
                client.cmd("quit")
            wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 20, "the end of the server")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.assertFalse(os.path.exists(self.path("here")))
        check(image, "qcow2")


class Server(ControlCase):
    def test_every_command_is_listed(self):
        self.start()
        commands = self.qmp().cmd("query-commands")
        self.assertEqual({tuple(c) for c in commands}, {("name",)})
        self.assertEqual(sorted(c["name"] for c in commands), sorted(COMMANDS))

    def test_version_and_status(self):
        self.start()
        client = self.qmp()
        version = client.cmd("query-version")
        self.assertEqual(client.greeting["QMP"]["version"], version)
        self.assertIn(version["package"], run(QIMG, "--version").stdout.replace(" version ", "-"))
        self.assertEqual(client.cmd("query-status"),
                         {"running": True, "singlestep": False, "status": "running"})

    def test_quit(self):
        """quit is answered, all clients get the SHUTDOWN event, and the image is closed cleanly"""
        image = create(self.path("disk.qed"), "qed", self.SIZE)
        self.start(image=image)
        first, second, silent = self.qmp(), self.qmp(), self.qmp(negotiate=False)
        self.server.connect().pwrite(b"z" * 4096, 0)
        self.assertEqual(first.cmd("quit"), {})
        self.server.disconnect()
        for client in (first, second):
            event = client.event("SHUTDOWN")
            self.assertEqual(event["data"], {"guest": False, "reason": "host-qmp-quit"})
            self.assertLess(abs(event["timestamp"]["seconds"] - time.time()), 60)
            self.assertIn(event["timestamp"]["microseconds"], range(10**6))
        with self.assertRaises(Closed):
            silent.receive()
        self.server.wait()
        self.assertFalse(harness.need_check(image))
        check(image, "qed")

    def test_a_signal(self):
        self.start()
        client = self.qmp()
        self.server.process.send_signal(signal.SIGTERM)
        self.assertEqual(client.event("SHUTDOWN")["data"]["reason"], "host-signal")
        self.server.wait()

    def test_a_client_that_doesnt_read_doesnt_hold_the_end(self):
        self.start()
        slow = self.qmp()
        slow.send_bytes(b'{"execute": "query-block"}' * 500)
        self.qmp().cmd("query-status")
        before = time.monotonic()
        self.server.stop()
        self.assertLess(time.monotonic() - before, 5)


class Query(ControlCase):
    def chain(self):
        create(self.path("base.raw"), "raw", self.SIZE)
        create(self.path("mid.qed"), "qed", self.SIZE, backing="base.raw", backing_fmt="raw")
        return create(self.path("top.qcow2"), "qcow2", self.SIZE, backing="mid.qed", backing_fmt="qed")

    def test_query_block(self):
        self.start("cache=none", "detect-zeroes=on", image=self.chain())
        devices = self.qmp().cmd("query-block")
        self.assertEqual([d["device"] for d in devices], ["drive0"])
        node = devices[0]["inserted"]
        self.assertEqual(node["node-name"], "drive0")
        self.assertEqual((node["drv"], node["ro"]), ("qcow2", False))
        self.assertEqual(node["file"], self.path("top.qcow2"))
        self.assertEqual(node["backing_file"], self.path("mid.qed"))
        self.assertEqual(node["backing_file_depth"], 2)
        self.assertEqual(node["detect_zeroes"], "on")
        self.assertEqual(node["cache"],
                         {"writeback": True, "direct": True, "no-flush": False, "mode": "none"})
        image, formats = node["image"], []
        while image:
            formats.append(image["format"])
            self.assertEqual(image["virtual-size"], self.SIZE)
            self.assertIs(image["dirty-flag"], False)
            image = image.get("backing-image")
        self.assertEqual(formats, ["qcow2", "qed", "raw"])

    def test_as_qemu_img_tells(self):
        self.start(image=self.chain())
        image = self.qmp().cmd("query-block")[0]["inserted"]["image"]
        told = harness.info(self.path("top.qcow2"), "qcow2")
        for key in ("filename", "format", "virtual-size", "cluster-size", "backing-filename",
                    "full-backing-filename", "backing-filename-format"):
            self.assertEqual(image[key], told[key], key)

    def test_nodes(self):
        self.start("node-name=disk", image=self.chain())
        client = self.qmp()
        nodes = client.cmd("query-named-block-nodes")
        self.assertEqual([n["node-name"] for n in nodes], ["disk", "disk#1", "disk#2"])
        self.assertEqual([n["drv"] for n in nodes], ["qcow2", "qed", "raw"])
        self.assertEqual([n["ro"] for n in nodes], [False, True, True])
        self.assertIn("backing-image", nodes[0]["image"])
        flat = client.cmd("query-named-block-nodes", flat=True)
        self.assertNotIn("backing-image", flat[0]["image"])
        self.assertEqual(client.cmd("query-block")[0]["device"], "disk")

    def test_dirty_flag(self):
        image = create(self.path("disk.qed"), "qed", self.SIZE)
        self.start("need-check-delay=0", image=image)
        client = self.qmp()
        self.assertIs(client.cmd("query-block")[0]["inserted"]["image"]["dirty-flag"], False)
        self.server.connect().pwrite(b"z" * 4096, 0)
        self.assertIs(client.cmd("query-block")[0]["inserted"]["image"]["dirty-flag"], True)

    def test_cache_modes(self):
        """V-08"""
        modes = {"writeback": (True, False, False), "writethrough": (False, False, False),
                 "none": (True, True, False), "directsync": (False, True, False),
                 "volatile": (True, False, True)}
        for mode, flags in modes.items():
            with self.part(mode=mode):
                self.start(f"cache={mode}")
                cache = self.qmp().cmd("query-block")[0]["inserted"]["cache"]
                self.assertEqual((cache["writeback"], cache["direct"], cache["no-flush"]), flags)
                self.assertEqual(cache["mode"], mode)

    def test_a_name_that_isnt_utf8(self):
        image = os.fsencode(self.dir) + b"/n\xe4me.raw"
        with open(image, "wb") as file:
            file.truncate(MIB)
        self.start("format=raw", image=os.fsdecode(image))
        file = self.qmp().cmd("query-block")[0]["inserted"]["file"]
        self.assertTrue(file.endswith("/n?me.raw"), file)

    def misplaced(self, fmt, options=""):
        """An image whose first cluster has an impossible offset in its entry."""
        image = create(self.path("disk"), fmt, self.SIZE, options)
        fill(image, fmt, [(0, b"x" * 65536)])
        order, l1 = ("big", 40) if fmt == "qcow2" else ("little", 40)
        l1 = harness.header(image, l1, 8, order)
        l2 = harness.header(image, l1, 8, order) & 0x00fffffffffffe00
        entry = harness.header(image, l2, 8, order)
        harness.patch(image, l2, (entry + 512).to_bytes(8, order))
        return image

    def corruption(self, client, fatal, name="drive0"):
        data = client.event("BLOCK_IMAGE_CORRUPTED")["data"]
        self.assertEqual((data["device"], data["node-name"], data["fatal"]), ("drive0", name, fatal))
        self.assertIn("/disk", data["msg"])

    def test_corruption_is_told(self):
        """a request meets an impossible table entry: there is an event, and writes fail from then on, whether or not
        the format has a corrupt bit"""
        for fmt, options in (("qcow2", ""), ("qcow2", "compat=0.10"), ("qed", "")):
            with self.part(fmt=fmt, options=options):
                self.start(image=self.misplaced(fmt, options), fmt=fmt)
                client, handle = self.qmp(), self.server.connect()
                handle.pwrite(b"y" * 512, 2 * MIB)
                handle.pread(512, MIB)
                self.errno(5, handle.pread, 512, 0)
                self.corruption(client, True)
                for off in (0, MIB, 2 * MIB):
                    self.errno(5, handle.pwrite, b"z" * 512, off)
                self.errno(5, handle.zero, 65536, 3 * MIB)
                self.errno(5, handle.flush)
                self.assertEqual(handle.pread(512, 2 * MIB), b"y" * 512)
                self.errno(5, handle.pread, 512, 0)
                client.cmd("query-status")
                self.assertNotIn("BLOCK_IMAGE_CORRUPTED", [event["event"] for event in client.events])
                if fmt == "qcow2" and not options:
                    specific = client.cmd("query-block")[0]["inserted"]["image"]["format-specific"]
                    self.assertIs(specific["data"]["corrupt"], True)
                self.server.kill()

    def test_corruption_where_nothing_is_written(self):
        """corruption in a read-only image or a backing file only causes an event that isn't fatal"""
        for fmt in ("qcow2", "qed"):
            with self.part(fmt=fmt):
                image = self.misplaced(fmt)
                before = harness.sha256(image)
                self.start(image=image, fmt=fmt, nbdkit=["-r"])
                client, handle = self.qmp(), self.server.connect()
                self.errno(5, handle.pread, 512, 0)
                self.corruption(client, False)
                self.server.kill()
                top = create(self.path("top.qcow2"), "qcow2", self.SIZE, "", image, fmt)
                self.start(image=top)
                client, handle = self.qmp(), self.server.connect()
                self.errno(5, handle.pread, 512, 0)
                data = client.event("BLOCK_IMAGE_CORRUPTED")["data"]
                self.assertIs(data["fatal"], False)
                self.assertNotEqual(data["node-name"], "drive0")
                handle.pwrite(b"z" * 65536, 0)
                handle.flush()
                self.server.stop()
                self.assertEqual(harness.sha256(image), before)

    def test_read_only(self):
        image = create(self.path("disk.qcow2"), "qcow2", self.SIZE)
        os.chmod(image, 0o444)
        if os.access(image, os.W_OK):
            self.skipTest("runs as root, who may write to everything")
        self.start(image=image)
        self.assertIs(self.qmp().cmd("query-block")[0]["inserted"]["ro"], True)


class JobCase(ControlCase):
    """A disk with known content, and jobs that copy it."""

    CLUSTER = 64 * KIB

    def setUp(self):
        super().setUp()
        self.image = create(self.path("disk.qcow2"), "qcow2", self.SIZE)
        self.content = bytearray(self.SIZE)
        for number in range(0, 64, 3):
            self.content[number * self.CLUSTER:(number + 1) * self.CLUSTER] = self.rng.randbytes(self.CLUSTER)
        raw = self.path("content")
        with open(raw, "wb") as file:
            file.write(self.content)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.image)
        os.unlink(raw)

    def begin(self, *keys):
        self.start(*keys, image=self.image)
        self.client = self.qmp()
        self.disk = self.server.connect()

    def write(self, off, payload):
        self.disk.pwrite(payload, off)
        self.content[off:off + len(payload)] = payload

    def mirror(self, target="target.raw", **arguments):
        target = target if "://" in target or ":///" in target else self.path(target)
        arguments = {"job_id": "job", "sync": "full", **arguments}
        self.assertEqual(self.client.cmd("drive-mirror", device="drive0", target=target, **arguments), {})
        return target

    def job(self, client=None):
        jobs = (client or self.client).cmd("query-block-jobs")
        return jobs[0] if jobs else None

    def expect_event(self, name, **data):
        """The data of this event; fails at once if the job ends otherwise."""
        ends = {"BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"}
        while True:
            event = self.client.event(name, *ends)
            if event["event"] == name and data.items() <= event["data"].items():
                return event["data"]
            if event["event"] in ends:
                self.fail(f"{name} {data} expected: {event}")

    def ready(self):
        return self.expect_event("BLOCK_JOB_READY")

    def ended(self, name="BLOCK_JOB_COMPLETED", error=None):
        """Waits until the job has ended with this event and has closed all its files; returns the event's data."""
        data = self.expect_event(name)
        self.client.event("JOB_STATUS_CHANGE", id=data["device"], status="null")
        self.client.cmd("query-jobs")
        if error is None:
            self.assertNotIn("error", data)
        else:
            self.assertRegex(data["error"], error)
        return data

    def expect_content(self, path, fmt):
        self.assertTrue(harness.content(path, fmt) == self.content, f"{path}: not the disk's contents")


class Jobs(JobCase):
    def test_complete_serves_the_target(self):
        """M-03, M-06: existing connections are served from the target, and the old image is closed and clean"""
        for fmt in ("raw", "qcow2", "qed"):
            with self.subTest(format=fmt):
                self.setUp()
                self.begin()
                target = self.mirror(f"target.{fmt}", format=fmt)
                ready = self.ready()
                self.assertEqual((ready["device"], ready["type"]), ("job", "mirror"))
                self.assertEqual(ready["offset"], ready["len"])
                self.write(5 * MIB, b"after ready")
                self.assertEqual(self.client.cmd("block-job-complete", device="job"), {})
                self.ended()
                check(self.image, "qcow2")
                self.expect_content(self.image, "qcow2")
                before = harness.sha256(self.image)
                self.write(6 * MIB, b"after complete" * 1000)
                self.disk.flush()
                self.assertEqual(bytes(self.disk.pread(14, 6 * MIB)), b"after complete")
                node = self.client.cmd("query-block")[0]["inserted"]
                self.assertEqual((node["file"], node["drv"]), (target, fmt))
                self.server.stop()
                self.assertEqual(harness.sha256(self.image), before)
                check(target, fmt)
                self.expect_content(target, fmt)

    def test_a_soft_cancel_leaves_a_copy(self):
        self.begin()
        target = self.mirror()
        self.ready()
        self.write(0, b"before the cancel")
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.expect_content(target, "raw")
        self.write(0, b"behind the cancel")
        self.server.stop()
        self.expect_content(self.image, "qcow2")
        check(self.image, "qcow2")

    def test_a_forced_cancel(self):
        """M-37"""
        self.begin()
        self.mirror()
        self.ready()
        self.client.cmd("block-job-cancel", device="job", force=True)
        # The job may have completed just before the command.
        data = self.client.event("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED")["data"]
        self.client.event("JOB_STATUS_CHANGE", status="null")
        self.assertEqual(set(data), {"device", "type", "len", "offset", "speed"})
        self.assertIsNone(self.job())
        self.server.stop()

    def test_a_cancel_before_it_is_ready(self):
        self.begin()
        self.mirror(speed=64 * KIB)
        self.client.cmd("block-job-cancel", device="job")
        self.ended("BLOCK_JOB_CANCELLED")
        self.server.stop()

    def test_to_another_server(self):
        self.begin()
        copy = self.path("copy.raw")
        with open(copy, "wb") as file:
            file.truncate(self.SIZE)
        other = harness.Server(self.dir, copy, "format=raw")
        self.servers.append(other)
        self.mirror(other.uri, mode="existing")
        self.ready()
        self.client.cmd("block-job-complete", device="job")
        self.ended()
        self.write(MIB, b"over there")
        self.disk.flush()
        self.server.stop()
        other.stop()
        self.expect_content(copy, "raw")

    def begin_large(self):
        """A disk that is so large that the job flushes its target in between."""
        self.SIZE = 200 * MIB  # pylint: disable=invalid-name
        self.image = create(self.path("large.qcow2"), "qcow2", self.SIZE)
        self.begin()
        self.content = bytearray(self.rng.randbytes(MIB) * 200)
        for number in range(200):
            struct.pack_into("I", self.content, number * MIB, number)
            self.disk.pwrite(self.content[number * MIB:(number + 1) * MIB], number * MIB)

    def nbdkit(self, *words):
        """Starts another server: nbdkit with one of its own plugins."""
        socket, pidfile = self.path("other.sock"), self.path("other.pid")
        process = subprocess.Popen(["nbdkit", "-f", "-U", socket, "-P", pidfile, *words])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_until(lambda: os.path.exists(pidfile), 10, "nbdkit")
        return f"nbd+unix:///?socket={socket}"

    def test_flushes_while_it_copies(self):
        log = self.path("log")
        self.begin_large()
        self.mirror(self.nbdkit("--filter=log", "memory", str(self.SIZE), f"logfile={log}"), mode="existing")
        self.ready()
        with open(log, encoding="utf-8") as file:
            calls = re.findall(r" (Write|Flush) id=", file.read())
        last_write = len(calls) - calls[::-1].index("Write")
        self.assertTrue("Flush" in calls[:last_write], "no flush before the last write")
        self.assertEqual(calls[-1], "Flush")

    def test_an_early_flush_fails(self):
        """the first flush of the target fails, and everything written before it is lost: it has to be copied again"""
        self.begin_large()
        copy, failed = self.path("copy.raw"), self.path("failed")
        flush = (f"if [ -e {failed} ]; then exit 0; fi; : >{failed}; truncate -s 0 {copy}; "
                 f"truncate -s {self.SIZE} {copy}; echo EIO failed >&2; exit 1")
        with open(copy, "wb") as file:
            file.truncate(self.SIZE)
        self.mirror(self.nbdkit(
            "eval", f"get_size=echo {self.SIZE}", "can_write=exit 0", "can_flush=exit 0", f"flush={flush}",
            f"pwrite=dd of={copy} bs=64k conv=notrunc oflag=seek_bytes seek=$4 status=none iflag=fullblock"),
            mode="existing", on_target_error="stop")
        self.client.event("BLOCK_JOB_ERROR")
        wait_until(lambda: self.job()["io-status"] == "failed", 10, "the job to stop")
        self.client.cmd("block-job-resume", device="job")
        self.ready()
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.expect_content(copy, "raw")

    def test_under_load(self):
        """clients write all the time, and read back what they wrote"""
        self.begin()
        stop, failures, written = threading.Event(), [], [0] * 4
        models = [bytearray(self.content[n * MIB:(n + 1) * MIB]) for n in range(4)]

        def work(number):
            rng, handle = self.rng.__class__(number), self.server.connect()
            model, base = models[number], number * MIB
            while not stop.is_set():
                off, length = rng.randrange(MIB - 8192), rng.randint(1, 8192)
                model[off:off + length] = payload = rng.randbytes(length)
                handle.pwrite(payload, base + off)
                off = rng.randrange(MIB - 8192)
                if handle.pread(8192, base + off) != model[off:off + 8192]:
                    failures.append((number, off))
                written[number] += 1

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            for turn, mode in enumerate(["background", "write-blocking", "background"]):
                target = self.mirror(f"target{turn}.qcow2", format="qcow2", copy_mode=mode)
                self.ready()
                before = sum(written)
                wait_until(lambda: sum(written) > before + 50, 30, "writes")  # pylint: disable=cell-var-from-loop
                self.client.cmd("block-job-complete", device="job")
                self.ended()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertEqual(failures, [])
        self.content[:4 * MIB] = b"".join(models)
        self.server.stop()
        self.expect_content(target, "qcow2")
        check(target, "qcow2")

    def test_pause_and_resume(self):
        self.begin()
        self.mirror(speed=MIB)
        self.client.cmd("block-job-pause", device="job")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="paused")
        job = self.job()
        self.assertEqual((job["paused"], job["status"], job["ready"]), (True, "paused", False))
        time.sleep(0.3)
        self.assertEqual(self.job()["offset"], job["offset"])
        self.fails("GenericError", self.client, "block-job-pause", "paused", device="job")
        self.fails("GenericError", self.client, "block-job-complete", device="job")
        self.client.cmd("block-job-set-speed", device="job", speed=0)
        self.assertEqual(self.job()["speed"], 0)
        self.client.cmd("block-job-resume", device="job")
        self.fails("GenericError", self.client, "block-job-resume", device="job")
        self.ready()
        self.client.cmd("block-job-pause", device="job")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="standby")
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.server.stop()

    def test_fields(self):
        """M-22"""
        self.begin()
        self.mirror(speed=2**40, job_id="a.job-1_x")
        self.ready()
        job = self.job()
        self.assertEqual(job, {
            "type": "mirror", "device": "a.job-1_x", "len": job["len"], "offset": job["len"],
            "busy": job["busy"], "paused": False, "speed": 2**40, "io-status": "ok", "ready": True,
            "status": "ready", "auto-finalize": True, "auto-dismiss": True, "actively-synced": False})
        self.assertEqual(self.client.cmd("query-jobs"), [
            {"id": "a.job-1_x", "type": "mirror", "status": "ready", "current-progress": job["len"],
             "total-progress": job["len"]}])
        self.client.cmd("block-job-cancel", device="a.job-1_x")
        self.ended()
        self.assertEqual(self.client.cmd("query-jobs"), [])

    def test_the_device_names_the_job_by_default(self):
        self.begin()
        self.client.cmd("drive-mirror", device="drive0", target=self.path("t"), sync="full")
        self.ready()
        self.assertEqual(self.job()["device"], "drive0")
        self.client.cmd("block-job-cancel", device="drive0")
        self.ended()

    def test_finalize_and_dismiss(self):
        """M-37"""
        self.begin()
        self.mirror(auto_finalize=False, auto_dismiss=False)
        self.ready()
        self.fails("GenericError", self.client, "block-job-finalize", id="job")
        self.fails("GenericError", self.client, "block-job-dismiss", device="job")
        self.fails("GenericError", self.client, "block-job-dismiss", "missing")
        self.fails("GenericError", self.client, "block-job-dismiss", "give one", id="job", device="job")
        self.fails("DeviceNotActive", self.client, "block-job-finalize", id="other")
        self.client.cmd("block-job-complete", device="job")
        self.assertEqual(self.expect_event("BLOCK_JOB_PENDING"), {"type": "mirror", "id": "job"})
        self.assertEqual(self.job()["status"], "pending")
        self.client.cmd("block-job-finalize", id="job")
        self.expect_event("BLOCK_JOB_COMPLETED")
        self.assertEqual(self.job()["status"], "concluded")
        self.fails("GenericError", self.client, "block-job-cancel", device="job")
        self.client.cmd("block-job-dismiss", id="job")
        self.client.event("JOB_STATUS_CHANGE", id="job", status="null")
        self.assertIsNone(self.job())
        self.assertEqual(self.client.cmd("query-block")[0]["inserted"]["file"], self.path("target.raw"))

    def test_replaces_names_the_disk(self):
        """M-38: a server has one disk that can be replaced."""
        self.begin()
        self.mirror(replaces=self.client.cmd("query-block")[0]["inserted"]["node-name"])
        self.ready()
        self.client.cmd("block-job-complete", device="job")
        self.ended()
        self.assertEqual(self.client.cmd("query-block")[0]["inserted"]["file"], self.path("target.raw"))

    def test_events_go_to_everybody(self):
        """M-37"""
        self.begin()
        others = [self.qmp() for _ in range(5)]
        self.mirror()
        for client in (self.client, *others):
            self.assertEqual(client.event("BLOCK_JOB_READY")["data"]["device"], "job")
        others[0].cmd("block-job-cancel", device="job")
        for client in (self.client, *others):
            statuses = []
            while not statuses or statuses[-1] != "null":
                statuses.append(client.event("JOB_STATUS_CHANGE")["data"]["status"])
            self.assertEqual(statuses, ["waiting", "pending", "concluded", "null"])

    def test_refused(self):
        """M-14, M-21, M-38"""
        self.begin()

        def refused(words, target="t.raw", **arguments):
            target = target if target.startswith("nbd") else self.path(target)
            arguments = {"sync": "full", "device": "drive0", "target": target, **arguments}
            self.fails("GenericError", self.client, "drive-mirror", words, **arguments)
            self.assertIsNone(self.job())

        refused("No such file", mode="existing")
        refused("No such file", target="no/folder/t.raw")
        refused("power of two", granularity=1000)
        refused("power of two", granularity=256)
        refused("well-formed", job_id="1job")
        refused("nosuchnode", replaces="nosuchnode")
        refused("bitmap", sync="incremental")
        refused("bitmap", bitmap="x")
        refused("existing", sync="none")
        refused("magic|qcow2", target="disk.qcow2", mode="existing", format="qed")
        refused("part of the disk", target="disk.qcow2")
        refused("part of the disk", target="disk.qcow2", mode="existing", format="qcow2")
        refused("nbd", target="nbd://[::1/x")
        refused("No such file", target="nbd+unix:///?socket=" + self.path("none"))
        create(self.path("small.raw"), "raw", MIB)
        refused("size", target="small.raw", mode="existing")
        self.mirror()
        self.fails("GenericError", self.client, "drive-mirror", "in use", device="drive0",
                   target=self.path("t2"), sync="full", job_id="job")
        self.ready()
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.disk.pread(4096, 0)
        self.server.stop()
        check(self.image, "qcow2")
        self.expect_content(self.image, "qcow2")

    def test_two_jobs(self):
        """M-24: two jobs copy the disk; when the disk moves to one's target, the other goes on copying it"""
        self.begin()
        self.mirror("one.raw", job_id="one")
        self.ready()
        self.mirror("two.raw", job_id="two")
        self.ready()
        self.write(3 * MIB, b"for both")
        self.client.cmd("block-job-complete", device="one")
        self.ended()
        self.write(2 * MIB, b"for both, too")
        self.client.cmd("block-job-cancel", device="two")
        self.ended()
        self.server.stop()
        self.expect_content(self.path("one.raw"), "raw")
        self.expect_content(self.path("two.raw"), "raw")

    def test_the_end_of_the_server(self):
        for ready in (False, True):
            with self.subTest(ready=ready):
                self.setUp()
                self.begin()
                self.mirror(speed=0 if ready else 64 * KIB)
                if ready:
                    self.ready()
                self.write(0, b"the last")
                before = time.monotonic()
                self.server.disconnect()
                self.server.process.send_signal(signal.SIGTERM)
                self.client.event("SHUTDOWN")
                self.assertEqual(self.client.event("BLOCK_JOB_CANCELLED")["data"]["device"], "job")
                self.server.wait()
                self.assertLess(time.monotonic() - before, 10)
                check(self.image, "qcow2")
                self.expect_content(self.image, "qcow2")

    def test_commit(self):
        """M-27, M-28"""
        overlay = create(self.path("overlay.qcow2"), "qcow2", self.SIZE, backing=self.image, backing_fmt="qcow2")
        base, self.image = self.image, overlay
        self.begin()
        self.write(7 * MIB, b"committed" * 10000)
        self.fails("DeviceNotFound", self.client, "block-commit", device="other")
        self.fails("GenericError", self.client, "block-commit", device="drive0", base="/no/such")
        self.assertEqual(self.client.cmd("block-commit", device="drive0", job_id="job", base=base), {})
        self.assertEqual(self.ready()["type"], "commit")
        self.write(8 * MIB, b"late")
        self.client.cmd("block-job-complete", device="job")
        self.ended()
        node = self.client.cmd("query-block")[0]["inserted"]
        self.assertEqual((node["file"], node["backing_file_depth"]), (base, 0))
        self.write(9 * MIB, b"to the base")
        self.assertNotEqual(run("qemu-io", "-f", "qcow2", "-c", "write 0 512", base, check=False).returncode, 0,
                            "the base must be locked")
        self.server.stop()
        check(base, "qcow2")
        self.expect_content(base, "qcow2")
        check(overlay, "qcow2")


class Bitmaps(JobCase):
    def bitmap(self, name="b"):
        return self.client.bitmaps().get(name)

    def test_a_life(self):
        self.begin()
        args = {"node": "drive0", "name": "b"}
        self.assertIsNone(self.bitmap())
        self.assertEqual(self.client.cmd("block-dirty-bitmap-add", **args), {})
        self.assertEqual(self.bitmap(), {"name": "b", "count": 0, "granularity": 64 * KIB,
                                         "recording": True, "busy": False, "persistent": False})
        self.write(100, b"x")
        self.assertEqual(self.bitmap()["count"], 64 * KIB)
        self.client.cmd("block-dirty-bitmap-disable", **args)
        self.assertIs(self.bitmap()["recording"], False)
        self.write(MIB, b"x")
        self.assertEqual(self.bitmap()["count"], 64 * KIB)
        self.client.cmd("block-dirty-bitmap-enable", **args)
        self.write(2 * MIB, b"x")
        self.assertEqual(self.bitmap()["count"], 128 * KIB)
        self.client.cmd("block-dirty-bitmap-clear", **args)
        self.assertEqual(self.bitmap()["count"], 0)
        self.client.cmd("block-dirty-bitmap-remove", **args)
        self.assertIsNone(self.bitmap())
        self.assertNotIn("dirty-bitmaps", self.client.cmd("query-block")[0]["inserted"])
        self.server.stop()

    def test_options(self):
        self.begin()
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b", granularity=512, disabled=True)
        self.assertEqual((self.bitmap()["granularity"], self.bitmap()["recording"]), (512, False))

    def test_refused(self):
        self.begin()
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b")

        def refused(command, words, **arguments):
            self.fails("GenericError", self.client, f"block-dirty-bitmap-{command}", words, **arguments)

        refused("add", "b", node="drive0", name="b")
        refused("add", "Node 'x'", node="x", name="c")
        refused("add", "empty", node="drive0", name="")
        refused("add", "1023", node="drive0", name="n" * 1024)
        refused("add", "power of two", node="drive0", name="c", granularity=1000)
        refused("add", "power of two", node="drive0", name="c", granularity=2**62)
        for command in ("remove", "clear", "enable", "disable"):
            refused(command, "'c' not found", node="drive0", name="c")
            refused(command, "Node 'x'", node="x", name="b")
            refused(command, "missing", node="drive0")
        refused("merge", "'c' not found", node="drive0", target="c", bitmaps=["b"])
        refused("merge", "'c' not found", node="drive0", target="b", bitmaps=["c"])
        refused("merge", "expected", node="drive0", target="b", bitmaps=[1])
        refused("merge", r"'bitmaps\[0\].name' is missing", node="drive0", target="b", bitmaps=[{"node": "drive0"}])
        refused("merge", "array", node="drive0", target="b", bitmaps="b")

    def test_merge(self):
        self.begin()
        for number, name in enumerate("abc"):
            self.client.cmd("block-dirty-bitmap-add", node="drive0", name=name, granularity=4096 << number)
            self.write(number * MIB, b"x")
        counts = [self.bitmap(name)["count"] for name in "abc"]
        self.assertEqual(counts, [3 * 4096, 2 * 8192, 16384])
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="all", granularity=4096, disabled=True)
        self.client.cmd("block-dirty-bitmap-merge", node="drive0", target="all",
                        bitmaps=["a", {"node": "drive0", "name": "b"}, "all"])
        self.assertEqual(self.bitmap("all")["count"], 4096 + 2 * 8192)
        self.client.cmd("block-dirty-bitmap-merge", node="drive0", target="all", bitmaps=[])

    def test_an_incremental_mirror(self):
        self.begin()
        target = self.mirror(job_id="full")
        self.client.cmd("block-dirty-bitmap-add", node="drive0", name="b")
        self.ready()
        self.client.cmd("block-job-cancel", device="full")
        self.ended()
        self.write(4 * MIB, b"changed" * 1000)
        self.mirror(sync="incremental", bitmap="b", mode="existing")
        for command in ("remove", "clear", "disable"):
            self.fails("GenericError", self.client, f"block-dirty-bitmap-{command}", "use", node="drive0",
                       name="b")
        self.assertLess(self.ready()["len"], MIB)
        self.client.cmd("block-job-cancel", device="job")
        self.ended()
        self.server.stop()
        self.expect_content(target, "raw")


if __name__ == "__main__":
    unittest.main()
