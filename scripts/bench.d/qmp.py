# SPDX-License-Identifier: BSD-3-Clause
"""A simple QMP client."""

import json
import socket

from processes import Failed


class QmpError(Exception):
    """The reply was an error."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")


class Qmp:
    """A connection.  Events that come before a reply are kept."""

    def __init__(self, path, timeout):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.events = []
        try:
            self.socket.connect(path)
        except OSError as error:
            raise Failed("failed", f"control socket: {error.strerror}") from None
        self.file = self.socket.makefile("r", encoding="utf-8")
        self._receive()
        self.command("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def command(self, name, arguments=None):
        """Runs a command; returns its value."""
        message = {"execute": name, "arguments": arguments or {}}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            reply = self._receive()
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise QmpError(reply["error"])
            else:
                return reply["return"]

    def wait_for(self, event, job):
        """Waits for this event of the job; another event that ends the job is a failure."""
        while True:
            came = self.events.pop(0) if self.events else self._receive()
            if came.get("data", {}).get("device") != job:
                continue
            if came["event"] == event:
                return
            if came["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR"):
                raise Failed("failed", f"{came['event']}: {came['data'].get('error', '')}")

    def _receive(self):
        try:
            line = self.file.readline()
        except TimeoutError:
            raise Failed("hung", "nothing more from the control socket") from None
        if not line:
            raise Failed("failed", "the control socket was closed")
        return json.loads(line)
