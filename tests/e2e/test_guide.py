# SPDX-License-Identifier: BSD-3-Clause
"""The examples of qimg-guide(7) run as they are printed, in order, in an empty folder; its other statements are
compared with the program."""

import re
import unittest

from examples import Examples, pod_blocks
from harness import BUILD, PLUGIN, ROOT, STANDIN, Case, plugin_env, run

GUIDE = (ROOT / "server" / "qimg-guide.pod").read_text(encoding="utf-8")
TABLE = "FOR USERS OF QEMU-IMG AND QEMU-NBD"


@unittest.skipIf(STANDIN, "needs the plugin")
class Guide(Examples):
    def test_examples(self):
        """Errors in QMP replies don't end the shell script, so the output is searched for them."""
        body = GUIDE.split("=head1 SERVE ONE DISK", 1)[1].split(f"=head1 {TABLE}", 1)[0]
        script = "\n".join(pod_blocks(body))
        self.assertGreater(script.count("\n"), 60)
        log = self.run_script(script)
        self.assertNotIn('"error"', log)
        self.assertIn('"return"', log)


@unittest.skipIf(STANDIN, "needs the plugin")
class Table(Case):
    """The table of equivalents only names commands and parameters that exist."""

    def setUp(self):
        super().setUp()
        self.table = GUIDE.split(f"=head1 {TABLE}", 1)[1].split("\n=head1", 1)[0]

    def test_commands(self):
        named = re.search(r"qemu-img (.*?)qemu-nbd", self.table, re.S)[1]
        named = set(re.findall(r"\b([a-z]+),", re.sub(r"  qimg, with.*", "", named) + ","))
        listed = run(BUILD / "qimg", "--help").stdout.split("Commands", 1)[1]
        self.assertLessEqual(named, set(re.findall(r"^  ([a-z]+) ", listed, re.M)))
        self.assertGreater(len(named), 5)

    def test_parameters(self):
        text = run("nbdkit", PLUGIN, "--help", env=plugin_env()).stdout
        ours = set(re.findall(r"^\[?([a-z][a-z-]*)=", text.split("plugin: qimg", 1)[1], re.M))
        right = [line[41:] for line in self.table.splitlines() if len(line) > 41]
        named = {word for line in right for word in re.findall(r"(?<![\w/-])([a-z][a-z-]*)=", line)}
        self.assertLessEqual(named, ours)
        self.assertGreater(len(named), 6)


if __name__ == "__main__":
    unittest.main()
