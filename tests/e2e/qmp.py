# SPDX-License-Identifier: BSD-3-Clause
"""A simple client of the control socket: JSON over a Unix socket."""

import json
import socket
import time

TIMEOUT = 20


class QmpError(Exception):
    """The server replied with an error."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.kind, self.desc = error["class"], error["desc"]
        self.errno = error.get("errno")


class Closed(Exception):
    """The server closed the connection."""


class Qmp:
    def __init__(self, path, negotiate=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(str(path))
        self.buffer = b""
        self.events = []
        self.greeting = self.receive()
        if negotiate:
            self.cmd("qmp_capabilities")

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send_bytes(self, data):
        self.socket.sendall(data)

    def send(self, message):
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def receive(self, timeout=TIMEOUT):
        """The next message, whether reply or event."""
        limit = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            self.socket.settimeout(max(0.001, limit - time.monotonic()))
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed()
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def reply(self, timeout=TIMEOUT):
        """The next reply.  Events that come before it are kept for event()."""
        while True:
            message = self.receive(timeout)
            if "event" not in message:
                return message
            self.events.append(message)

    def cmd(self, command, **arguments):
        """Runs a command and returns its value, or raises QmpError.  In the names of arguments, _ stands for -."""
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.send({"execute": command, **({"arguments": arguments} if arguments else {})})
        reply = self.reply()
        if "error" in reply:
            raise QmpError(reply["error"])
        return reply["return"]

    def bitmaps(self):
        """The first disk's dirty bitmaps as query-block describes them, by their names."""
        inserted = self.cmd("query-block")[0]["inserted"]
        return {bitmap["name"]: bitmap for bitmap in inserted.get("dirty-bitmaps", [])}

    def event(self, *names, timeout=TIMEOUT, **data):
        """The first event, kept or still to come, that has one of these names and whose data contains these items.
        It and the events before it are dropped."""
        limit = time.monotonic() + timeout
        while True:
            while self.events:
                event = self.events.pop(0)
                if event["event"] in names and data.items() <= event["data"].items():
                    return event
            self.events.append(self.receive(max(0.001, limit - time.monotonic())))
            assert "event" in self.events[-1], self.events[-1]
