"""The control socket: QMP as clients of QEMU speak it, and clients that don't behave."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
import unittest

import harness
from harness import KIB, MIB, Case, QIMG, check, create, fill, plugin_env, run, wait_until
from qmp import Closed, Qmp, QmpError

COMMANDS = {
    "qmp_capabilities", "query-version", "query-commands", "query-status", "quit", "query-block",
    "query-named-block-nodes", "drive-mirror", "block-commit", "query-block-jobs", "query-jobs",
    "block-job-cancel", "block-job-complete", "block-job-pause", "block-job-resume",
    "block-job-set-speed", "block-job-finalize", "block-job-dismiss", "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove", "block-dirty-bitmap-clear", "block-dirty-bitmap-enable",
    "block-dirty-bitmap-disable", "block-dirty-bitmap-merge",
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
        """The command must fail with this class; its description has the words."""
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
        """what isn't JSON gets an error, and the connection lives on"""
        client = self.qmp()
        for junk in (b"hello\n", b"}}\n", b'{"execute": }\n', b'{"execute" "x"}\n', b"'single'\n",
                     b"{nonsense}\n", b"\x00\x01\xff\n", b'{"execute": "query-status",}\n',
                     b'{"a": 1, "a": 2}\n', b'{"a": "\xff"}\n', b'{"a": 99999999999999999999}\n',
                     b'{"a": "\\ud800"}\n', b"42\n", b'"text"\n', b"[" * 100 + b"\n"):
            client.send_bytes(junk)
            self.assertEqual(client.reply()["error"]["class"], "GenericError", junk)
            self.assertTrue(client.cmd("query-status")["running"], junk)

    def test_half_messages(self):
        client = self.qmp()
        message = json.dumps({"execute": "query-status", "id": "}{\"\\"}).encode()
        for cut in range(1, len(message)):
            client.send_bytes(message[:cut])
            if cut % 10 == 0:
                time.sleep(0.01)
            client.send_bytes(message[cut:])
            self.assertEqual(client.reply()["id"], "}{\"\\")
        client.send_bytes(b'{"execute": "query-st\n')  # never finished: a mistake, not a wait
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
        """many questions at once, read a little later"""
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
        """a relative path is meant relative to where nbdkit was started"""
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
        """answered, announced to all who negotiated, and the image is closed cleanly"""
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

    def test_read_only(self):
        image = create(self.path("disk.qcow2"), "qcow2", self.SIZE)
        os.chmod(image, 0o444)
        if os.access(image, os.W_OK):
            self.skipTest("runs as root, who may write to everything")
        self.start(image=image)
        self.assertIs(self.qmp().cmd("query-block")[0]["inserted"]["ro"], True)


if __name__ == "__main__":
    unittest.main()
