# SPDX-License-Identifier: BSD-3-Clause
"""The long options and letters of newer versions of qemu-img: each does the same as the old option."""

import re
import unittest

from harness import QIMG, STANDIN, run
from side_by_side import SideBySide

# command -> rows of (old options, with which every version of qemu-img is run; new options, with which qimg is run; the
# images that are compared; commands that are run before).
ROWS = {
    "amend": [("-q -p -f qcow2 -t none -o compat=0.10 a.qcow2", "--quiet --progress --format qcow2 --cache none --options compat=0.10 a.qcow2",
               "a.qcow2:qcow2")],
    "bench": [("-q -w --pattern=7 -f raw -t none -i threads -n -c 3 -d 2 -s 8k -S 16k -o 64k a.raw",
               "--quiet --write --pattern=7 --format=raw --cache=none --aio threads --native --count=3 --depth=2 --buffer-size=8k "
               "--step-size=16k --offset=64k a.raw", "a.raw:raw")],
    "bitmap": [("--add -f qcow2 a.qcow2 b", "--add --format=qcow2 a.qcow2 b", "a.qcow2:qcow2")],
    "check": [("-q -f qcow2 -T none -r all a.qcow2", "--quiet --format=qcow2 --cache=none --repair=all a.qcow2", "a.qcow2:qcow2")],
    "commit": [("-q -p -d -f qcow2 -t none -r 100M -b over.qcow2 top.qcow2",
                "--quiet --progress --drop --format=qcow2 --cache=none --rate-limit=100M --base=over.qcow2 top.qcow2",
                "top.qcow2:qcow2 over.qcow2:qcow2")],
    "compare": [("-q -p -s -f raw -F qcow2 -T none a.raw over.qcow2",
                 "--quiet --progress --strict --a-format=raw --b-format=qcow2 --cache=none a.raw over.qcow2", "")],
    "convert": [("-q -p -n -C -W -m 2 -r 100M -f qcow2 -O raw -t none -T none over.qcow2 b.raw",
                 "--quiet --progress --no-create --copy-range-offloading --oob-writes --parallel=2 --rate-limit=100M --source-format=qcow2 "
                 "--target-format=raw --target-cache=none --source-cache=none over.qcow2 b.raw", "b.raw:raw"),
                ("-c -S 64k -O qcow2 -o compat=0.10 -B a.raw -F raw over.qcow2 out",
                 "--compress --sparse-size=64k --target-format=qcow2 --target-format-options=compat=0.10 --backing=a.raw --backing-format=raw "
                 "over.qcow2 out", "out:qcow2"),
                ("-O qcow2 -B a.raw -F raw over.qcow2 out", "-O qcow2 -b a.raw -F raw over.qcow2 out", "out:qcow2"),
                ("-l s a.qcow2 out", "--snapshot=s a.qcow2 out", "out:raw", "qemu-img snapshot -c s a.qcow2")],
    "create": [("-q -f qcow2 -u -b b.raw -F raw -o compat=0.10 out 1M",
                "--quiet --format=qcow2 --backing-unsafe --backing=b.raw --backing-format=raw --options=compat=0.10 out 1M", "out:qcow2"),
               ("-f qcow2 -b a.raw -F raw out", "-f qcow2 -b a.raw -B raw out", "out:qcow2")],
    "dd": [("-f qcow2 -O qed if=a.qcow2 of=out", "--format=qcow2 --output-format=qed if=a.qcow2 of=out", "out:qed")],
    "info": [("-f qcow2 a.qcow2", "--format=qcow2 --cache=none a.qcow2", ""), ("a.raw", "-t directsync a.raw", "")],
    "measure": [("-f qcow2 -O qcow2 -o compat=0.10 -l s a.qcow2",
                 "--format=qcow2 --target-format=qcow2 --target-format-options=compat=0.10 --snapshot=s a.qcow2", "", "qemu-img snapshot -c s a.qcow2"),
                ("-O qcow2 --size 1G", "-O qcow2 -s 1G", ""), ("--size 1G", "--size 1G", ""),
                ("-f raw -O qcow2 -o cluster_size=64k a.raw",
                 "--source-format raw --target-format qcow2 --options cluster_size=64k a.raw", "")],
    "rebase": [("-q -p -f qcow2 -t none -T none -b b.raw -F raw over.qcow2",
                "--quiet --progress --format=qcow2 --cache=none --backing-cache=none --backing=b.raw --backing-format=raw over.qcow2", "over.qcow2:qcow2"),
               ("-u -b b.raw -F raw over.qcow2", "--backing-unsafe -b b.raw -B raw over.qcow2", "over.qcow2:qcow2"),
               ("-b b.raw -F raw over.qcow2", "--compress -b b.raw -F raw over.qcow2", "over.qcow2:qcow2")],
    "resize": [("-q -f qcow2 a.qcow2 5M", "--quiet --format=qcow2 a.qcow2 5M", "a.qcow2:qcow2")],
    "snapshot": [("-q -c s a.qcow2", "--quiet --create=s a.qcow2", "a.qcow2:qcow2"),
                 ("-l a.qcow2", "--list --format=qcow2 a.qcow2", "", "qemu-img snapshot -c s a.qcow2"),
                 ("-a s a.qcow2", "--apply=s a.qcow2", "a.qcow2:qcow2", "qemu-img snapshot -c s a.qcow2"),
                 ("-d s a.qcow2", "--delete=s a.qcow2", "a.qcow2:qcow2", "qemu-img snapshot -c s a.qcow2")],
}


@unittest.skipIf(STANDIN, "needs the command")
class Spellings(SideBySide):
    def test_beside_the_old_ones(self):
        for command, rows in ROWS.items():
            for old, new, *row in rows:
                with self.subTest(words=f"{command} {new}"):
                    self.same((f"{command} {old}", *row), text=command != "bench", ours=[command, *new.split()])

    def test_each_letter_has_one(self):
        """every long option in the help has a row, except for some that only qimg has or that aren't new"""
        for command, rows in ROWS.items():
            with self.subTest(command=command):
                told = set(re.findall(r"^  -\w, (--[a-z-]+)", run(QIMG, command, "--help").stdout, re.M))
                tried = {word.split("=")[0] for row in rows for word in row[1].split() if word.startswith("--")}
                self.assertEqual(told - tried - {"--help", "--force-share", "--granularity", "--source-file", "--source-format", "--progress"}, set())


if __name__ == "__main__":
    unittest.main()
