# SPDX-License-Identifier: BSD-3-Clause
"""The examples of README.md run as they are printed, in order, in an empty folder."""

import os
import pathlib
import re
import unittest

from examples import Examples
from harness import ROOT, STANDIN, run


def picture(name):
    return (ROOT / "pictures" / name).read_text(encoding="utf-8")


@unittest.skipIf(STANDIN, "needs the plugin")
class Readme(Examples):
    def test_examples(self):
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        use = text.split("## Use\n", 1)[1].split("\n## ", 1)[0]
        script = "\n".join(re.findall(r"^```\n(.*?)^```$", use, re.M | re.S))
        self.assertGreater(script.count("\n"), 20)
        self.run_script(script)
        self.assertEqual(pathlib.Path(self.path("work/vm.svg")).read_text(encoding="utf-8"), picture("map.svg"),
                         "take the file as pictures/map.svg")

    def test_words_of_the_measurement(self):
        """The options are accepted; the measurement itself would take half an hour."""
        lines = re.findall(r"^scripts/bench .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
        self.assertGreater(len(lines), 3)
        for line in lines:
            self.assertIn("read-4k-d1 ", run("bash", "-c", line.split("#")[0] + " --list", cwd=ROOT).stdout, line)

    def test_picture_of_the_table(self):
        """The picture shows the figures of the table, and says how it is made."""
        command = "scripts/bench --from README.md --plot pictures/speed.svg"
        self.assertIn(f"Made with: {command}<", picture("speed.svg"))
        run("cp", "-r", ROOT / "scripts", ROOT / "README.md", self.dir)
        os.mkdir(self.path("pictures"))
        run(*command.split(), cwd=self.dir)
        self.assertEqual(pathlib.Path(self.path("pictures/speed.svg")).read_text(encoding="utf-8"), picture("speed.svg"), command)


if __name__ == "__main__":
    unittest.main()
