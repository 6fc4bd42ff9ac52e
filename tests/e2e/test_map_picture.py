# SPDX-License-Identifier: BSD-3-Clause
"""qimg map --svg draws what qimg map prints."""

import re
import unittest
import xml.etree.ElementTree as ElementTree

from harness import MIB, QIMG, STANDIN, Case, create, fill, run

SVG = "{http://www.w3.org/2000/svg}"
LEFT, COLUMNS = 220, 800


@unittest.skipIf(STANDIN, "needs the command")
class Picture(Case):
    def draw(self, *words):
        return ElementTree.fromstring(run(QIMG, "map", "--svg", *words).stdout)

    def rows(self, picture):
        """(title, name, bars over the background) of each row, from the top; a bar is (x, width, colour)"""
        found = []
        for group in picture.findall(f"{SVG}g"):
            ground, *bars = group.findall(f"{SVG}rect")
            self.assertEqual((ground.get("x"), ground.get("width")), (str(LEFT), str(COLUMNS)))
            found.append((group.find(f"{SVG}title").text, group.find(f"{SVG}text").text,
                          [(int(bar.get("x")) - LEFT, int(bar.get("width")), bar.get("fill")) for bar in bars]))
        return found

    def test_layers_and_snapshots(self):
        base = create(self.path("base.raw"), "raw", 8 * MIB)
        fill(base, "raw", [(0, b"b" * 2 * MIB)])
        top = create(self.path("top.qcow2"), "qcow2", 8 * MIB, backing=base, backing_fmt="raw")
        fill(top, "qcow2", [(4 * MIB, b"t" * MIB)])
        run("qemu-img", "snapshot", "-c", "before", top)
        fill(top, "qcow2", [(6 * MIB, b"t" * 2 * MIB)])
        image, below, snapshot = self.rows(self.draw(top))
        self.assertEqual(image[1:], ("top.qcow2", image[2]))
        self.assertEqual(image[0], "image top.qcow2, data 3 MiB")
        self.close_to([(400, 100), (600, 200)], image[2])
        self.assertTrue(below[0].startswith("backing file base.raw, data 2 MiB"))
        self.close_to([(0, 200)], [bar for bar in below[2] if bar[2] == image[2][0][2]])
        self.assertEqual(snapshot[:2], ("snapshot before, data 1 MiB", "before"))
        self.close_to([(400, 100)], snapshot[2])

    def close_to(self, expected, bars):
        """The bars must begin and end at these columns, to within one: there may be a paler bar at an edge."""
        joined = []
        for x, width, _ in bars:
            if joined and joined[-1][1] == x:
                joined[-1][1] = x + width
            else:
                joined.append([x, x + width])
        self.assertEqual(len(joined), len(expected), bars)
        for (x, width), (begin, end) in zip(expected, joined):
            self.assertAlmostEqual(begin, x, delta=1)
            self.assertAlmostEqual(end, x + width, delta=1)

    def test_a_part(self):
        image = create(self.path("disk.qcow2"), "qcow2", 64 * MIB)
        fill(image, "qcow2", [(32 * MIB, b"x" * MIB)])
        picture = self.draw("-s", "32M", "-l", "2M", image)
        self.close_to([(0, 400)], self.rows(picture)[0][2])
        self.assertEqual([text.text for text in picture.findall(f"{SVG}text")][1:3], ["32 MiB", "34 MiB"])

    def test_scattered(self):
        """the picture of many runs isn't large, and columns with little data are paler"""
        image = create(self.path("disk.qcow2"), "qcow2", "1T")
        fill(image, "qcow2", [(n << 33, b"x" * 4096) for n in range(128)])
        text = run(QIMG, "map", "--svg", image).stdout
        self.assertLess(len(text), 30000)
        self.assertEqual(set(re.findall(r'fill-opacity="(.*?)"', text)), {"0.25"})

    def test_compressed_and_zeroes(self):
        image = create(self.path("disk.qcow2"), "qcow2", 8 * MIB)
        run("qemu-io", "-f", "qcow2", "-c", "write -c 0 4M", "-c", "write -z 4M 4M", image)
        title, _, bars = self.rows(self.draw(image))[0]
        self.assertEqual(title, "image disk.qcow2, compressed 4 MiB, zeroes 4 MiB")
        self.assertEqual(len({colour for _, _, colour in bars}), 2)

    def test_hostile_names(self):
        name = "a<b>&\"'\x01\xff"
        image = create(self.path(name), "qcow2", MIB)
        run("qemu-img", "snapshot", "-c", "<svg onload=x>&", image)
        first, second = self.rows(self.draw(image))
        self.assertEqual((first[1], second[1]), ("a<b>&\"'???", "<svg onload=x>&"))

    def test_empty(self):
        image = create(self.path("disk.raw"), "raw", 0)
        self.assertEqual(self.rows(self.draw("-f", "raw", image))[0][2], [])


if __name__ == "__main__":
    unittest.main()
