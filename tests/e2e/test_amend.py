# SPDX-License-Identifier: BSD-3-Clause
"""O-05: `qimg amend` compared with `qemu-img amend`, and the key slots of encrypted images."""

import os
import pathlib
import re

from harness import MIB, QIMG, Case, content, create, fill, header, info, patch, run, sha256
from side_by_side import SideBySide, pattern
import snapshot_table


class Amend(SideBySide):
    def test_options(self):
        self.rows([(f"amend -o {options} {name}.qcow2", f"{name}.qcow2:qcow2") for options, names in (
            ("compat=0.10", "a v2 lazy over comp long top"), ("compat=1.1", "v2 a"), ("compat=v3", "v2"), ("lazy_refcounts=on", "a comp ext"),
            ("lazy_refcounts=off", "lazy a"), ("refcount_bits=64", "a small comp ext over"), ("refcount_bits=1", "a small"),
            ("refcount_bits=8", "comp"), ("refcount_bits=16", "small"), ("size=6M", "a small ext"), ("size=1M", "a"),
            ("compat=1.1,refcount_bits=32,lazy_refcounts=on", "v2"), ("compat=0.10,size=2M", "lazy"), ("data_file_raw=off", "data"))
            for name in names.split()])
        self.rows([("amend -p -o refcount_bits=32 a.qcow2", "a.qcow2:qcow2"), ("amend -q -o compat=0.10 a.qcow2", "a.qcow2:qcow2"),
                   ("amend -f qcow2 -t none -o compat=0.10 a.qcow2", "a.qcow2:qcow2"),
                   ("amend -o refcount_bits=64 a.qcow2", "a.qcow2:qcow2", "qemu-img snapshot -c one a.qcow2"),
                   ("amend -o refcount_bits=1 a.qcow2", "a.qcow2:qcow2", "qemu-img snapshot -c one a.qcow2"),
                   ("amend -o compat=0.10 a.qcow2", "a.qcow2:qcow2", "qemu-img snapshot -c one a.qcow2"),
                   ("amend --image-opts -o size=6M driver=qcow2,file.filename=a.qcow2", "a.qcow2:qcow2")])

    def test_refused(self):
        self.rows([(f"amend {words}", "a.qcow2:qcow2 ext.qcow2:qcow2 small.qcow2:qcow2") for words in (
            "", "a.qcow2", "-o foo=1 a.qcow2", "-o cluster_size=4k a.qcow2", "-f raw -o size=2M a.raw", "-f qed -o size=2M a.qed",
            "-o compat=0.10,lazy_refcounts=on a.qcow2", "-o refcount_bits=8,compat=0.10 a.qcow2", "-o backing_file=a.raw,backing_fmt=raw a.qcow2",
            "-o backing_fmt=qcow2 over.qcow2", "-o help", "-o data_file=x a.qcow2", "-o encryption=on a.qcow2", "-o preallocation=full a.qcow2",
            "-o extended_l2=on a.qcow2", "-o compression_type=zstd a.qcow2", "-o compat=0.10 ext.qcow2", "-o compat=0.10 small.qcow2",
            "-o compat=0.10 data.qcow2", "-o compat=9 a.qcow2", "-t foo -o size=8M a.qcow2", "-o refcount_bits=7 a.qcow2", "-o refcount_bits=128 a.qcow2",
            "-o encrypt.keyslot=1 a.qcow2", "-o compat=0.10 none", "--bogus a.qcow2", "-o size=8M a.qcow2 b.qcow2", "-f foo -o help")])


class Alone(Case):
    def test_zero_clusters_of_version_3(self):
        for backing in (None, "base"):
            with self.part(backing=backing):
                if backing:
                    create(self.path("base"), "qcow2", 4 * MIB)
                    fill(self.path("base"), "qcow2", [(0, pattern(1, 4 * MIB))])
                create(self.path("i"), "qcow2", 4 * MIB, backing=backing, backing_fmt="qcow2" if backing else None)
                run("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 0 1M", "-c", "write -q -z 512k 1M", "-c", "write -q -z -u 2M 70k", self.path("i"))
                before = content(self.path("i"), "qcow2")
                run(QIMG, "amend", "-o", "compat=0.10", self.path("i"))
                self.assertEqual(content(self.path("i"), "qcow2"), before)
                run("qemu-img", "check", "-q", self.path("i"))
                run(QIMG, "amend", "-o", "compat=1.1", self.path("i"))
                self.assertEqual(content(self.path("i"), "qcow2"), before)
                self.assertEqual(run("qemu-img", "info", self.path("i")).stdout.count("compat: 1.1"), 1)

    def test_size_under_snapshots(self):
        """A version 2 image with snapshots can be resized only together with the change to version 3."""
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", self.path("i"), "4M")
        fill(self.path("i"), "qcow2", [(0, pattern(1, 4 * MIB))])
        run("qemu-img", "snapshot", "-c", "s", self.path("i"))
        self.assertIn("v2 image which has snapshots", run(QIMG, "amend", "-o", "size=8M", self.path("i"), check=False).stderr)
        run(QIMG, "amend", "-o", "compat=1.1,size=8M", self.path("i"))
        self.assertEqual(content(self.path("i"), "qcow2"), pattern(1, 4 * MIB) + bytes(4 * MIB))
        self.assertIn("compat: 1.1", run("qemu-img", "info", self.path("i")).stdout)
        run(QIMG, "snapshot", "-a", "s", self.path("i"))
        self.assertEqual(content(self.path("i"), "qcow2"), pattern(1, 4 * MIB))
        run("qemu-img", "check", "-q", self.path("i"))

    def old_image(self, wanted):
        image = self.path("old")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", image, "4M")
        for number in range(len(wanted)):
            fill(image, "qcow2", [(number * MIB, pattern(number + 1, MIB))])
            run("qemu-img", "snapshot", "-c", f"s{number}", image)
        snapshot_table.shorten(image, wanted)
        return image

    def test_snapshots_that_say_too_little_for_version_3(self):
        """Version 3 requires extra data in each snapshot's entry: amend first writes a table with extra data, which is
        valid in version 2, too."""
        for words in (["-o", "compat=1.1"], ["-o", "compat=1.1,size=8M"], ["-o", "compat=1.1,refcount_bits=32"]):
            with self.part(words=words):
                image = self.old_image([0, 40, 8, 15])
                self.assertEqual(snapshot_table.extras(image), [(0, None), (40, 4 * MIB), (8, None), (15, None)])
                run(QIMG, "amend", *words, image)
                self.assertEqual(snapshot_table.extras(image), [(24, 4 * MIB), (40, 4 * MIB), (24, 4 * MIB), (24, 4 * MIB)])
                for tool in ("qemu-img", QIMG):
                    run(tool, "check", "-q", image)
                for number in range(4):
                    run("qemu-img", "convert", "-l", f"snapshot.name=s{number}", "-O", "raw", image, self.path("flat"))
                    found = pathlib.Path(self.path("flat")).read_bytes()  # size=8M makes it longer
                    self.assertEqual(found, b"".join(pattern(n + 1, MIB) for n in range(number + 1)) + bytes(len(found) - (number + 1) * MIB))

    def test_snapshots_that_say_too_little_in_version_3(self):
        """Every command that writes a new snapshot table completes the extra data."""
        for words in (["amend", "-o", "lazy_refcounts=on"], ["snapshot", "-c", "new"], ["snapshot", "-d", "s1"]):
            with self.part(words=words):
                image = self.old_image([0, 8, 40])
                patch(image, 4, (3).to_bytes(4, "big"))
                patch(image, 72, bytes(24) + (4).to_bytes(4, "big") + (104).to_bytes(4, "big") + bytes(8))
                done = run("qemu-img", "check", image, check=False)
                self.assertIn("snapshot table entry 0 is incomplete", done.stdout + done.stderr)
                run(QIMG, *words, image)
                run("qemu-img", "check", "-q", image)
                self.assertTrue(all(size == 4 * MIB for _, size in snapshot_table.extras(image)), snapshot_table.extras(image))

    def test_snapshots_that_version_2_does_not_say(self):
        """Version 2 can't store a snapshot's own disk size; other programs would use the size of the active disk."""
        create(self.path("i"), "qcow2", 4 * MIB)
        run("qemu-img", "snapshot", "-c", "small", self.path("i"))
        run("qemu-img", "resize", "-q", self.path("i"), "8M")
        before = sha256(self.path("i"))
        for tool in ("qemu-img", QIMG):
            done = run(tool, "amend", "-o", "compat=0.10", self.path("i"), check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn("Internal snapshots prevent downgrade of image", done.stderr)
        self.assertIn(f"'small' has {4 * MIB} bytes, the disk {8 * MIB}", done.stderr)
        self.assertEqual(sha256(self.path("i")), before)

    def test_options_of_an_image(self):
        """-o help lists the options of the image's own format."""
        create(self.path("i"), "qcow2", MIB)
        self.assertEqual(run(QIMG, "amend", "-o", "help", self.path("i")).stdout,
                         run(QIMG, "amend", "-f", "qcow2", "-o", "help").stdout)
        self.assertEqual(run(QIMG, "amend", "-o", "help", create(self.path("e"), "qed", MIB), check=False).returncode, 1)

    def test_counts_that_can_not_be_are_refused(self):
        """With a broken refcount table nobody knows which clusters are in use: the image isn't changed."""
        create(self.path("good"), "qcow2", 4 * MIB)
        table = header(self.path("good"), 48, 8, "big")
        block = header(self.path("good"), table, 8, "big")
        os.unlink(self.path("good"))
        for what, index, entry in (("unaligned", 1, block + 512), ("reserved bits", 0, block | 1), ("past the end", 1, 1 << 40),
                                   ("twice", 1, block), ("the table itself", 1, table)):
            with self.part(what=what):
                create(self.path("i"), "qcow2", 4 * MIB)
                patch(self.path("i"), table + 8 * index, entry.to_bytes(8, "big"))
                before = sha256(self.path("i"))
                done = run(QIMG, "amend", "-o", "refcount_bits=32", self.path("i"), check=False)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertRegex(done.stderr, f"refcount table entry {index}( \\(0x{entry:x}\\) can't be right|: the cluster at {entry} also holds)")
                self.assertEqual(sha256(self.path("i")), before)

    def test_a_backing_name_of_no_bytes_inside_the_header(self):
        """A backing name of 0 bytes doesn't limit the header extensions: amend keeps them."""
        run("qemu-img", "create", "-q", "-f", "qcow2", self.path("i"), "4M")
        run("qemu-img", "bitmap", "--add", self.path("i"), "b")
        for offset in 8, 110:
            patch(self.path("i"), 8, offset.to_bytes(8, "big") + bytes(4))
            run(QIMG, "amend", "-o", "lazy_refcounts=on", self.path("i"))
            patch(self.path("i"), 8, bytes(12))  # otherwise qemu-img ignores extensions behind that offset
            self.assertEqual([b["name"] for b in info(self.path("i"), "qcow2")["format-specific"]["data"]["bitmaps"]], ["b"])

    def test_a_long_backing_name(self):
        """A backing name is moved when the header extensions need its place."""
        name = "x" * 200 + "/../" * 1
        os.mkdir(self.path("x" * 200))
        create(self.path("base"), "qcow2", MIB)
        for size in ("512", "64k"):
            create(self.path("i"), "qcow2", MIB, f"compat=0.10,cluster_size={size}", backing=f"{name}base", backing_fmt="qcow2")
            done = run(QIMG, "amend", "-o", "compat=1.1", self.path("i"), check=size != "512")
            self.assertIn(f"{name}base", run("qemu-img", "info", self.path("i")).stdout)
            self.assertIn(done.returncode, (0, 1))

    def secrets(self, **texts):
        return [word for name, text in texts.items() for word in ("--object", f"secret,id={name},data={text}")]

    def test_nobody_comes_in_between(self):
        """amend keeps the file open with the writer's lock from its first step to its last."""
        for options, made in (("compat=1.1,size=8M", "compat=0.10"), ("refcount_bits=8", "compat=1.1"), ("compat=0.10", "compat=1.1")):
            with self.part(options=options):
                run("qemu-img", "create", "-q", "-f", "qcow2", "-o", made, self.path("i"), "4M")
                run("qemu-img", "snapshot", "-c", "s", self.path("i"))
                calls = run("strace", "-f", "-qq", "-P", self.path("i"), "-o", "/dev/stdout", "-e",
                            "trace=fcntl,pwrite64,pwritev,pwritev2,close", QIMG, "amend", "-o", options, self.path("i"),
                            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}).stdout.splitlines()
                writes = [n for n, call in enumerate(calls) if "pwrite" in call]
                let_go = [n for n, call in enumerate(calls) if "close(" in call or "_SETLK, {l_type=F_UNLCK" in call]
                taken = [n for n, call in enumerate(calls) if re.search("_SETLK, .*F_RDLCK.*l_start=101", call)]
                self.assertEqual(len(taken), 1, calls)
                self.assertEqual([n for n in let_go if taken[0] < n < writes[-1]], [], calls)

    def opens(self, text):
        done = run("qemu-img", "convert", *self.secrets(s=text), "--image-opts", "-O", "raw",
                   f"driver=qcow2,file.filename={self.path('i')},encrypt.key-secret=s", self.path("flat"), check=False)
        return done.returncode == 0

    def amend(self, options, *words, check=True, image=None):
        return run(QIMG, "amend", *self.secrets(one="first", two="second", three="third"), *words, "-o", options, image or self.path("i"),
                   check=check)

    def test_key_slots(self):
        run(QIMG, "create", "-q", *self.secrets(one="first"), "-f", "qcow2", "-o",
            "encrypt.format=luks,encrypt.key-secret=one,encrypt.iter-time=10", self.path("i"), "1M")
        time_ = "encrypt.iter-time=10"
        self.amend(f"encrypt.state=active,encrypt.old-secret=one,encrypt.new-secret=two,{time_}")
        self.assertTrue(self.opens("first") and self.opens("second"))
        self.assertIn("in use", self.amend(f"encrypt.state=active,encrypt.old-secret=one,encrypt.new-secret=three,encrypt.keyslot=1,{time_}",
                                           check=False).stderr)
        self.amend(f"encrypt.state=active,encrypt.old-secret=one,encrypt.new-secret=three,encrypt.keyslot=5,{time_}")
        self.amend("encrypt.state=inactive,encrypt.old-secret=one")
        self.assertEqual([self.opens(text) for text in ("first", "second", "third")], [False, True, True])
        self.amend("encrypt.state=inactive,encrypt.keyslot=1")
        opened = f"driver=qcow2,file.filename={self.path('i')},encrypt.key-secret="
        self.assertEqual(self.amend(f"encrypt.state=active,encrypt.new-secret=one,{time_}", "--image-opts", image=opened + "two",
                                    check=False).returncode, 1)
        self.amend(f"encrypt.state=active,encrypt.new-secret=one,{time_}", "--image-opts", image=opened + "three")
        self.assertTrue(self.opens("first"))
        self.amend("encrypt.state=inactive,encrypt.old-secret=one")
        self.assertEqual(self.amend("encrypt.state=inactive,encrypt.keyslot=5", check=False).returncode, 1)
        self.assertTrue(self.opens("third"))
        for bad in ("encrypt.state=gone", "encrypt.state=active", "encrypt.state=active,encrypt.new-secret=two", "encrypt.keyslot=1",
                    "encrypt.state=inactive", "encrypt.state=inactive,encrypt.keyslot=9", "encrypt.state=inactive,encrypt.keyslot=2",
                    "encrypt.state=active,encrypt.old-secret=one,encrypt.new-secret=two", "encrypt.state=active,encrypt.new-secret=nobody"):
            self.assertEqual(self.amend(bad, check=False).returncode, 1, bad)
        self.assertTrue(self.opens("third"))
        self.amend("encrypt.state=inactive,encrypt.keyslot=5", "--force")
        self.assertFalse(self.opens("third"))
