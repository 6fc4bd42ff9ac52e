# SPDX-License-Identifier: BSD-3-Clause
"""The examples of README.md run as they are printed, in order, in an empty folder."""

import os
import pathlib
import re
import signal
import subprocess
import unittest

from harness import BUILD, ROOT, STANDIN, Case, plugin_env
from nbdkit_by_name import nbdkit_by_name


@unittest.skipIf(STANDIN, "needs the plugin")
class Readme(Case):
    def examples(self):
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        use = text.split("## Use\n", 1)[1].split("\n## ", 1)[0]
        for block in re.findall(r"^```\n(.*?)^```$", use, re.M | re.S):
            for line in block.splitlines():
                # A virtual machine, and what needs a kernel module.
                if line and not line.startswith(("qemu-system", "sudo")):
                    yield line

    def end_all(self):
        """What a failure left running, by the files that name it."""
        for pid in pathlib.Path(self.path("work")).glob("*.pid"):
            try:
                os.kill(int(pid.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass

    def test_examples(self):
        path = f"{nbdkit_by_name(self.path('bin'))}:{BUILD}:{os.environ['PATH']}"
        os.mkdir(self.path("work"))
        self.addCleanup(self.end_all)
        script = "set -e\n" + "\n".join(self.examples())
        self.assertGreater(script.count("\n"), 20)
        with open(self.path("log"), "w+", encoding="utf-8") as log:
            done = subprocess.run(["bash", "-x", "-c", script], cwd=self.path("work"), timeout=120, check=False,
                                  stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                  env=plugin_env(PATH=path))
            log.seek(0)
            self.assertEqual(done.returncode, 0, log.read())


if __name__ == "__main__":
    unittest.main()
