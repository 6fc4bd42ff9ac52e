# SPDX-License-Identifier: BSD-3-Clause
"""qimg snapshot has the options of qemu-img snapshot, and each reads, applies and deletes the other's snapshots.

I-03, I-05, I-06, I-10.
"""

import json
import os
import re
import unittest

from featured import SECRET, Featured
from harness import KIB, LONG, MIB, QIMG, SECTOR, Case, check, content, create, fill, header, patch, qemu_text, run, sha256

SIZE = 2 * MIB


def listed(image, tool=QIMG):
    """(id, name) of each snapshot."""
    lines = run(tool, "snapshot", "-l", image).stdout.splitlines()[2:]
    return [tuple(line.split()[:2]) for line in lines]


class Snapshots(Featured):
    """An image whose snapshots are made, applied and deleted by both tools."""

    def change(self, tool, option, name):
        how = [*SECRET, "--image-opts"] if self.encrypted else []
        run(tool, "snapshot", *how, option, name, *self._target())
        self.check()
        if option == "-c":
            self.snapshots[name] = self.size, bytes(self.data)
        elif option == "-a":
            self.data[:] = self.snapshots[name][1]
        else:
            del self.snapshots[name]

    def write(self):
        self._put(self._plain_pieces(3))

    def verify(self):
        if self.content() != self.data:
            raise AssertionError("the disk has other contents")
        self.check_rest()


class Images(Case):
    ROWS = [{"refcount_bits": bits} for bits in (2, 4, 8, 16, 32, 64)] + [
        {"compat": "0.10", "cluster": 512},
        {"compression": "zlib", "cluster": 4 * KIB},
        {"compression": "zstd", "refcount_bits": 64, "cluster": 32 * KIB},
        {"encryption": "luks-xts", "backing": "qcow2"},
        {"encryption": "aes"},
        {"extended": "on", "backing": "raw", "cluster": 16 * KIB},
        {"backing": "compressed", "lazy": "on", "cluster": MIB},
        {"preallocation": "metadata"},
    ]

    def check_row(self, row):
        """Random changes of the snapshots by qimg or qemu-img, each followed by a check of all contents."""
        disk = Snapshots(self.dir, row, self.rng)
        for number in range(12 if LONG else 6):
            tool = self.rng.choice((QIMG, QIMG, "qemu-img"))
            names = list(disk.snapshots)
            option = self.rng.choice("cad") if names else "c"
            # Each snapshot adds a reference; refcount_bits=2 allows three.
            if option == "c" and len(names) >= (1 if row.get("refcount_bits") == 2 else 3):
                option = "d"
            disk.change(tool, "-" + option, f"s{number}" if option == "c" else self.rng.choice(names))
            disk.verify()
            disk.write()
        for name in list(disk.snapshots):
            disk.change(QIMG, "-d", name)
        disk.verify()

    def test_of_every_feature(self):
        for row in self.ROWS:
            with self.part(**row):
                self.check_row(row)

    def test_to_another_size(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(SIZE - SECTOR, b"a" * SECTOR)])
        run(QIMG, "snapshot", "-c", "small", image)
        run("qemu-img", "resize", "-q", image, "20G")
        fill(image, "qcow2", [(5 << 30, b"b" * SECTOR)])
        run(QIMG, "snapshot", "-c", "large", image)
        for name, size in (("small", SIZE), ("large", 20 << 30), ("1", SIZE)):
            run(QIMG, "snapshot", "-a", name, image)
            check(image, "qcow2")
            self.assertEqual(json.loads(run("qemu-img", "info", "--output=json", image).stdout)["virtual-size"], size)
        self.assertEqual(content(image, "qcow2")[-SECTOR:], b"a" * SECTOR)
        run(QIMG, "snapshot", "-d", "small", image)
        run(QIMG, "snapshot", "-d", "large", image)
        check(image, "qcow2")

    def test_names_do_not_speak_to_the_terminal(self):
        """Control characters in names are printed as escapes in text; JSON has the real name."""
        name, shown = "a\033[31m\nb\u009b2J", r"a\x1b[31m\x0ab\xc2\x9b2J"
        image = create(self.path("disk"), "qcow2", MIB)
        run("qemu-img", "snapshot", "-c", name, image)
        run("qemu-img", "bitmap", "--add", image, name)
        for words in (["snapshot", "-l", image], ["info", image]):
            text = run(QIMG, *words).stdout
            self.assertIn(shown, text)
            self.assertFalse(set(text) & {"\033", "\u009b"}, words)
        self.assertEqual(run(QIMG, "info", image).stdout.count(shown), 2, "of the snapshot and the bitmap")
        info = json.loads(run(QIMG, "info", "--output=json", image).stdout)
        self.assertEqual(info["snapshots"][0]["name"], name)
        self.assertEqual(info["format-specific"]["data"]["bitmaps"][0]["name"], name)
        for words in (["snapshot", "-d", name + "x", image], ["bitmap", "--clear", image, name + "x"]):
            done = run(QIMG, *words, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertFalse(set(done.stderr) & {"\033", "\u009b"}, done.stderr)
        base, overlay = create(self.path("b\033[2Jase"), "qcow2", MIB), self.path("overlay")
        created = run(QIMG, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay).stdout
        run("qemu-io", "-c", "write -q 0 64k", base)
        for text in (created, run(QIMG, "info", overlay).stdout, run(QIMG, "map", overlay).stdout):
            self.assertIn(r"b\x1b[2Jase", text)
            self.assertNotIn("\033", text)
        os.unlink(base)
        self.assertNotIn("\033", run(QIMG, "check", "-r", "all", base, check=False).stderr)

    def test_of_nothing(self):
        image = create(self.path("disk"), "qcow2", 0)
        for option in ("-c", "-a", "-d"):
            run(QIMG, "snapshot", option, "first", image)
            check(image, "qcow2")

    def test_a_full_count_is_refused_and_nothing_changes(self):
        for bits, most in ((1, 0), (2, 2), (4, 14)):
            with self.part(bits=bits):
                image = create(self.path(f"disk{bits}"), "qcow2", SIZE, f"refcount_bits={bits}")
                fill(image, "qcow2", [(0, b"a" * MIB)])
                for number in range(most):
                    run(QIMG, "snapshot", "-c", f"s{number}", image)
                before = sha256(image), os.path.getsize(image)
                done = run(QIMG, "snapshot", "-c", "more", image, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn(f"refcount_bits={bits} can count", done.stderr)
                self.assertEqual((sha256(image), os.path.getsize(image)), before)
                self.assertEqual(len(listed(image)), most)
                check(image, "qcow2")

    def test_what_others_have_is_kept(self):
        """Data of other snapshots is kept: VM state, its 64-bit size, and unknown extra data."""
        image = create(self.path("disk"), "qcow2", SIZE)
        for name in ("first", "second"):
            run("qemu-img", "snapshot", "-c", name, image)
        table = header(image, 64, 8, "big")
        entry = bytearray(open(image, "rb").read()[table:table + 40 + 24 + 1 + 5 + 2])
        entry[36:40] = (48).to_bytes(4, "big")
        entry[24:32] = (3 * 10**9).to_bytes(8, "big")  # the guest's clock
        entry = entry[:64] + bytearray(b"unknown-unknown-unknown!") + entry[64:70] + bytes(2)
        entry[40:48] = (5 << 32).to_bytes(8, "big")
        entry[56:64] = (77).to_bytes(8, "big")
        rest = open(image, "rb").read()[table + 72:table + 72 + 72]
        patch(image, table, bytes(entry) + rest)
        mine = bytes(entry)
        run(QIMG, "snapshot", "-c", "third", image)
        run(QIMG, "snapshot", "-d", "second", image)
        run(QIMG, "snapshot", "-a", "first", image)
        run(QIMG, "check", image)
        table = header(image, 64, 8, "big")
        found = open(image, "rb").read()[table:table + len(mine)]
        self.assertEqual(found, mine)
        self.assertEqual(listed(image), [("1", "first"), ("3", "third")])
        line = run(QIMG, "snapshot", "-l", image).stdout.splitlines()[2]
        self.assertRegex(line, r"20 GiB .* 00:00:03.000 +77$")

    def test_damage_is_refused_and_frees_nothing(self):
        """A snapshot's L2 entry points at the refcount table: deleting the snapshot would free that."""
        image = create(self.path("disk"), "qcow2", SIZE)
        fill(image, "qcow2", [(0, b"a" * MIB)])
        run("qemu-img", "snapshot", "-c", "first", image)
        fill(image, "qcow2", [(0, b"b" * MIB)])
        table = header(image, 64, 8, "big")
        l2_table = header(image, header(image, table, 8, "big"), 8, "big") & ~(1 << 63)
        for target, words in ((header(image, 48, 8, "big"), "must be checked"), (0x7000 << 40, "reserved|end of"),
                              (header(image, header(image, 40, 8, "big") & ~(1 << 63), 8, "big") & ((1 << 56) - 1), "less than")):
            patch(image, l2_table, target.to_bytes(8, "big"))
            before = sha256(image)
            done = run(QIMG, "snapshot", "-d", "first", image, check=False)
            self.assertEqual(done.returncode, 1, hex(target))
            self.assertRegex(done.stderr, words)
            self.assertEqual(sha256(image), before)


class Words(Case):
    def both(self, *words, code=None):
        """Both programs must have the same exit code and output; returns their first lines of errors."""
        said = []
        for tool in ("qemu-img", QIMG):
            done = run(tool, "snapshot", *words, check=False)
            said.append((done.returncode, qemu_text(done.stdout), done.stderr.splitlines()[:1]))
        ours = said[1][2][0].replace("qimg: ", "qemu-img: ", 1) if said[1][2] else ""
        theirs = said[0][2][0] if said[0][2] else ""
        self.assertEqual(said[0][:2], said[1][:2], words)
        return theirs, ours

    def test_as_qemu_img(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        self.both("-l", image)
        self.both(image)
        for name in ("first", "a name of three words", "first"):
            run("qemu-img", "snapshot", "-c", name, image)
        self.both("-l", image)
        self.both("-U", "-l", image)
        self.both("--image-opts", "-l", f"driver=qcow2,file.filename={image}")
        theirs, ours = self.both("-d", "nothing", image)
        self.assertEqual(theirs, ours)
        theirs, ours = self.both("-c", "a", "-d", "b", image)
        self.assertEqual(theirs, ours)
        for words in (("-a", "nothing", image), ("-c", "x"), ("-d",), ("-c", "x", image, image), ("-z", image),
                      ("-l", self.path("absent")), (self.path("absent"),), ("-U", "-c", "x", image)):
            self.both(*words)
        run(QIMG, "snapshot", "-d", "first", image)  # deletes the first of two with that name
        self.assertEqual([number for number, _ in listed(image, "qemu-img")], ["2", "3"])

    def test_formats_without_snapshots(self):
        for fmt in ("raw", "qed"):
            image = create(self.path(f"disk.{fmt}"), fmt, SIZE)
            done = run(QIMG, "snapshot", "-f", fmt, "-c", "x", image, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, rf"Could not create snapshot 'x': .*{fmt} images have no snapshots")
            self.assertEqual(run(QIMG, "snapshot", "-f", fmt, "-l", image).stdout, "")

    def test_data_in_another_file(self):
        image = create(self.path("disk"), "qcow2", SIZE, f"data_file={self.path('data')}")
        done = run(QIMG, "snapshot", "-c", "x", image, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("lies in another file", done.stderr)

    def test_what_lies_below_stays(self):
        """Snapshots show the backing file: commands that would change it under them are refused."""
        base = create(self.path("base"), "qcow2", SIZE)
        fill(base, "qcow2", [(0, b"b" * MIB)])
        image = create(self.path("disk"), "qcow2", SIZE, backing=base, backing_fmt="qcow2")
        fill(image, "qcow2", [(0, b"s" * KIB)])
        run(QIMG, "snapshot", "-c", "first", image)
        fill(image, "qcow2", [(MIB // 2, b"d" * KIB)])
        before = sha256(image), sha256(base)
        other = create(self.path("other"), "qcow2", SIZE)
        for command in (["commit"], ["commit", "-d"], ["rebase", "-b", ""], ["rebase", "-b", other, "-F", "qcow2"]):
            with self.subTest(command=command):
                done = run(QIMG, *command, image, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn("has internal snapshots", done.stderr)
                self.assertEqual((sha256(image), sha256(base)), before)
        run(QIMG, "rebase", "-u", "-b", base, "-F", "qcow2", image)
        run(QIMG, "snapshot", "-d", "first", image)
        run(QIMG, "commit", image)
        check(base, "qcow2")

    def test_names(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        run(QIMG, "snapshot", "-c", "ä" * 100 + " ’", image)
        self.assertIn("ä" * 100, run("qemu-img", "snapshot", "-l", image).stdout)
        done = run(QIMG, "snapshot", "-c", "x" * 256, image, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("over 255 bytes", done.stderr)

    def test_a_served_image(self):
        image = create(self.path("disk"), "qcow2", SIZE)
        run(QIMG, "snapshot", "-c", "first", image)
        server = self.serve(image, "writable=now")
        for words in (("-c", "x"), ("-d", "first"), ("-a", "first"), ("-l",)):
            done = run(QIMG, "snapshot", *words, image, check=False)
            self.assertEqual(done.returncode, 1, words)
            self.assertRegex(done.stderr, "lock")
        self.assertIn("first", run(QIMG, "snapshot", "-U", "-l", image).stdout)
        server.stop()
        self.assertTrue(re.search("first", run(QIMG, "snapshot", "-l", image).stdout))


if __name__ == "__main__":
    unittest.main()
