# SPDX-License-Identifier: BSD-3-Clause
"""A raw base image that another server exports (nbdkit's file plugin), which a test may end and restart."""

import os
import subprocess

from harness import Case, wait_until


class RemoteBase(Case):
    def start_base(self, *filters, keys=()):
        """Serves base.raw, behind these filters, and sets self.uri."""
        socket, pidfile = self.path("base.sock"), self.path("base.pid")
        for path in socket, pidfile:
            if os.path.exists(path):
                os.unlink(path)
        self.base = subprocess.Popen(["nbdkit", "-f", "-r", "-U", socket, "-P", pidfile, *filters, "file",
                                      self.path("base.raw"), *keys])
        self.addCleanup(self.end_base)
        wait_until(lambda: os.path.exists(pidfile), 20, "the base's server")
        self.uri = f"nbd+unix:///?socket={socket}"

    def end_base(self):
        self.base.kill()
        self.base.wait()

    def write_base(self, content):
        with open(self.path("base.raw"), "wb") as file:
            file.write(content)
