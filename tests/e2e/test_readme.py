# SPDX-License-Identifier: BSD-3-Clause
"""The examples of README.md run as they are printed, in order, in an empty folder."""

import re
import unittest

from examples import Examples
from harness import ROOT, STANDIN


@unittest.skipIf(STANDIN, "needs the plugin")
class Readme(Examples):
    def test_examples(self):
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        use = text.split("## Use\n", 1)[1].split("\n## ", 1)[0]
        script = "\n".join(re.findall(r"^```\n(.*?)^```$", use, re.M | re.S))
        self.assertGreater(script.count("\n"), 20)
        self.run_script(script)


if __name__ == "__main__":
    unittest.main()
