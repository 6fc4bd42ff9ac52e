# SPDX-License-Identifier: BSD-3-Clause
"""O-09: `create`, `info`, `map`, `check`, `snapshot` and `bitmap` compared with qemu-img: the output, the exit
status and the images."""

import json
import os
import re

from harness import KIB, MIB, create, fill, header, patch, run
from side_by_side import SideBySide, pattern, printed

PLAIN = ("a.raw:raw", "odd.raw:raw", "a.qcow2:qcow2", "a.qed:qed", "v2.qcow2:qcow2", "lazy.qcow2:qcow2", "ext.qcow2:qcow2",
         "small.qcow2:qcow2", "comp.qcow2:qcow2", "data.qcow2:qcow2", "over.qcow2:qcow2", "over.qed:qed", "top.qcow2:qcow2",
         "long.qcow2:qcow2")


class Create(SideBySide):
    def test_options(self):
        self.rows([(f"create -f {fmt} {words} new 5M", f"new:{fmt}") for fmt, options in (
            ("raw", ("", "-o preallocation=off", "-o preallocation=falloc", "-o preallocation=full", "-o nocow=on", "-o extent_size_hint=1M")),
            ("qed", ("", "-o cluster_size=4k", "-o table_size=2", "-o cluster_size=1M,table_size=4")),
            ("qcow2", ("", "-o compat=0.10", "-o compat=v3", "-o cluster_size=512", "-o cluster_size=2M", "-o lazy_refcounts=on",
                       "-o refcount_bits=1", "-o refcount_bits=64", "-o extended_l2=on", "-o compression_type=zstd", "-o preallocation=metadata",
                       "-o preallocation=falloc", "-o preallocation=full", "-o data_file=new.data", "-o data_file=new.data,data_file_raw=on",
                       "-o extended_l2=on,cluster_size=16k,preallocation=metadata", "-o compat=1.1 -o cluster_size=8k", "-q",
                       "-o cluster_size=64k,lazy_refcounts=on,refcount_bits=8", "-o nocow=on")))
            for words in options])

    def test_sizes(self):
        self.rows([(f"create -f qcow2 new {size}", "new:qcow2") for size in (
            "0", "1", "513", "1024.0", "1024b", "1.5k", "1.5M", "0x200000", "1G", "1T", "+4k", "-- -1", "1kk", "foo", "1.2", "''", "17E", "8E", "-1")])
        self.rows([(f"create -f raw -o size={size} new", "new:raw") for size in ("1", "1000", "1.5k", "1M", "foo", "-1")])

    def test_first_block_of_raw_files(self):
        """is allocated, so that the alignment for O_DIRECT can be found out by reading it"""
        for words in ("create -q -f raw new 1M", "create -q -f raw new 512", "create -q -f raw new 0", "convert -f raw -O raw empty new"):
            with self.subTest(words=words):
                self.both(words.split(), ["truncate -s 2M empty"])
                maps = [json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", os.path.join(self.path(folder), "new")).stdout)
                        for folder in ("theirs", "ours")]
                self.assertEqual(*maps)
                self.assertEqual(bool(maps[0] and maps[0][0]["data"]), "new 0" not in words)

    def test_backing_files(self):
        self.rows([(f"create -f {fmt} {words} new", f"new:{fmt}") for fmt in ("qcow2", "qed") for words in (
            "-b a.raw -F raw", "-b a.qcow2 -F qcow2", "-b over.qcow2 -F qcow2", "-b a.qed -F qed", "-o backing_file=a.raw,backing_fmt=raw",
            "-b odd.raw -F raw", "-b a.raw -F file", "-b none -F raw", "-b a.raw", "-F raw", "-b a.raw -F qcow2", "-b a.raw -F foo")])
        self.rows([("create -f qcow2 -b a.raw -F raw new 9M", "new:qcow2"), ("create -f qcow2 -u -b none -F raw new 9M", ""),
                   ("create -f qcow2 -u -b none -F host_device new 9M", ""), ("rebase -u -b none -F host_device over.qcow2", ""),
                   ("convert -O raw made out", "out:raw", "qemu-img create -q -f qcow2 -b a.raw -F file made"),
                   ("create -f qed -u -b none -F raw new 9M", ""), ("create -f qcow2 -u -b none -F raw new", ""),
                   ("create -f qcow2 -b a.raw -F raw new 1M", "new:qcow2"), ("create -f raw -b a.raw -F raw new", "")])

    def test_backing_format_that_was_forgotten(self):
        """create -b without -F is refused, and names the format that it detected; a missing backing file is an error"""
        for name, says in (("a.raw", "detected format of raw"), ("a.qcow2", "detected format of qcow2"), ("a.qed", "detected format of qed"),
                           ("none", "Could not open 'none': .*No such file")):
            theirs, ours = self.both(["create", "-q", "-f", "qcow2", "-b", name, "new"])
            self.assertEqual((theirs.returncode, ours.returncode), (1, 1))
            for done in theirs, ours:
                self.assertRegex(done.stderr.replace("Detected", "detected").replace("\n", " "), says)
            self.assertFalse(os.path.exists(os.path.join(self.path("ours"), "new")))

    def test_refused(self):
        self.rows([(f"create {words}", "") for words in (
            "", "new", "-f foo new 1M", "-f qcow2 -o foo=1 new 1M", "-f qcow2 -o cluster_size=3 new 1M", "-f qcow2 -o size=1M new 1M",
            "-f qcow2 new 1M 2M", "-f qcow2 -o compat=2 new 1M", "-f qcow2 -o refcount_bits=3 new 1M", "-f qcow2 nodir/new 1M",
            "-f qcow2 -o extended_l2=on,cluster_size=8k new 1M", "-f qcow2 -o compat=0.10,lazy_refcounts=on new 1M", "-f qed -o table_size=3 new 1M",
            "-f qcow2 -o compression_type=lzo new 1M", "-f qcow2 -o data_file_raw=on new 1M", "-f raw -o preallocation=metadata new 1M")],
            text=False)


class Info(SideBySide):
    def test_text_and_json(self):
        self.rows([(f"info {words} {name.split(':', maxsplit=1)[0]}", "") for name in PLAIN
                   for words in ("", "--output=json", "-U", f"-f {name.split(':')[1]}")])
        self.rows([(f"info {words} --backing-chain {name}", "") for name in ("top.qcow2", "over.qed", "long.qcow2", "a.raw")
                   for words in ("", "--output=json")])

    def test_ways_to_name_it(self):
        self.rows([(f"info {words}", "") for words in (
            "--image-opts driver=qcow2,file.filename=a.qcow2", "--image-opts driver=raw,file.driver=file,file.filename=a.raw",
            "--image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2", "-f raw a.qcow2", "-f qed a.qcow2", "-f foo a.raw", "none", "",
            "a.raw a.raw", "--output=xml a.raw", "--bogus a.raw", "file:a.qcow2")])


class ColonNames(SideBySide):
    """File names with a colon: "file:" or a slash before it shows that it doesn't end the name of a protocol."""

    WITH = "qemu-img create -q -f qcow2 -b a.raw -F raw file:x:y"

    def test_made(self):
        self.rows([(f"create {words}", "./x:y:qcow2") for words in (
            "-f qcow2 file:x:y 1M", "-f qcow2 ./x:y 1M", "-f qcow2 -b a.raw -F raw file:x:y", "-f qcow2 -b over.qcow2 -F qcow2 file:./x:y")])
        self.rows([("convert -O qcow2 a.raw file:x:y", "./x:y:qcow2"), ("convert -O raw a.qcow2 file:x:y", "./x:y:raw"),
                   ("dd -O qcow2 if=a.qcow2 of=file:x:y", "./x:y:qcow2")])

    def test_looked_at(self):
        self.rows([(words, "", self.WITH) for words in (
            "info file:x:y", "info ./x:y", "info --backing-chain file:x:y", "info --output=json --backing-chain file:x:y", "map file:x:y",
            "check file:x:y", "check --output=json file:x:y", "compare file:x:y file:a.raw", "measure -O qcow2 file:x:y", "snapshot -l file:x:y")])

    def test_changed(self):
        self.rows([(words, "./x:y:qcow2", self.WITH) for words in (
            "resize file:x:y 6M", "rebase -u -b b.raw -F raw file:x:y", "rebase -b b.raw -F raw file:x:y", "amend -o compat=0.10 file:x:y",
            "snapshot -c one file:x:y", "bitmap --add file:x:y one", "commit file:x:y")])


class BackingOptions(SideBySide):
    """backing= in --image-opts and in json: names overrides the backing file that the image names."""

    OTHER = "driver=qcow2,file.filename=over.qcow2,backing.driver=raw,backing.file.filename=b.raw"
    DEEP = "driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=over.qcow2,backing.backing.driver=raw," \
           "backing.backing.file.filename=b.raw"
    NAME = "json:{'driver':'qcow2','file.filename':'over.qcow2','backing':%s}"
    TOP = "json:{'driver':'qcow2','file.filename':'top.qcow2','backing':%s}"
    MADE = "json:{'driver':'qcow2','file.filename':'made','backing':%s}"
    BELOW_MADE = "{'driver':'qcow2','backing':{'driver':'qcow2','backing':null}}"  # against a json: backing name
    GONE = "mv a.raw gone"

    def test_read(self):
        self.rows([(f"convert -O raw --image-opts {opts} out", "out:raw") for opts in (
            self.OTHER, self.DEEP, "driver=qcow2,file.filename=over.qcow2,backing.driver=raw",
            "driver=qed,file.filename=over.qed,backing.file.filename=b.raw,backing.driver=raw",
            "driver=qcow2,file.filename=over.qcow2,backing.driver=raw,backing.file.driver=file,backing.file.filename=b.raw,"
            "backing.read-only=on")])
        self.rows([(f"convert -O raw {self.NAME % below} out", "out:raw", self.GONE) for below in (
            "null", "{'driver':'raw','file':{'driver':'file','filename':'b.raw'}}", "{'driver':'raw','file.filename':'b.raw'}",
            "{'driver':'qcow2','file.filename':'a.qcow2'}")])
        self.rows([(f"compare --image-opts {self.OTHER} {self.DEEP}", ""),
                   (f"measure -O qcow2 --image-opts {self.OTHER}", "")])

    def test_a_base_that_looks_like_another_format(self):
        """The recorded backing format also holds for the file that is given instead; nothing is probed."""
        made = "qemu-img create -q -f qcow2 -b a.raw -F raw evil.raw 1M"
        self.rows([(f"convert -O raw --image-opts driver=qcow2,file.filename=over.qcow2,{below} out", "out:raw", made) for below in (
            "backing.file.filename=evil.raw", "backing.driver=raw,backing.file.filename=evil.raw")])
        self.rows([(f"convert -O raw {self.NAME % below} out", "out:raw", made) for below in (
            "{'file.filename':'evil.raw'}", "{'driver':'raw','file.filename':'evil.raw'}")])

    def test_nothing_further_below(self):
        """backing=null ends the chain at a layer, whether that layer is given by an option or named by the image."""
        self.rows([(f"convert -O raw {name} out", "out:raw", self.GONE) for name in (
            self.TOP % "{'driver':'qcow2','file.filename':'over.qcow2','backing':null}", self.TOP % "{'backing':null}",
            self.TOP % "{'driver':'qcow2','backing':null}",
            "json:{'driver':'qcow2','file.filename':'top.qcow2','backing.backing':null}",
            "json:{'driver':'qcow2','file.filename':'top.qcow2','backing.driver':'qcow2','backing.file.filename':'over.qcow2',"
            "'backing.backing':null}")])
        for below in ("backing=", "backing.backing=", "backing.driver=qcow2,backing.file.filename=over.qcow2,backing.backing="):
            with self.subTest(below=below):  # qemu-img warns of this spelling; in options there is no other
                theirs, ours = self.both(["convert", "-O", "raw", "--image-opts", f"driver=qcow2,file.filename=top.qcow2,{below}", "out"],
                                         [self.GONE])
                self.assertEqual((theirs.returncode, ours.returncode, ours.stderr), (0, 0, ""))
                self.same_image("out", "raw")
        self.rows([("convert -O raw --image-opts driver=qcow2,file.filename=top.qcow2,backing.backing.driver=raw out", "out:raw"),
                   ("convert -O raw --image-opts driver=qcow2,file.filename=top.qcow2,backing.backing.file.filename=b.raw,"
                    "backing.backing.driver=raw out", "out:raw", self.GONE)])
        over = self.TOP % "{'driver':'qcow2','file.filename':'over.qcow2','backing':null}"
        self.rows([("convert -O raw made out", "out:raw", f"qemu-img create -q -f qcow2 -F qcow2 -b {over} made", self.GONE),
                   (f"convert -O raw {self.MADE % self.BELOW_MADE} out", "out:raw", f"qemu-img create -q -f qcow2 -F qcow2 -b {over} made",
                    self.GONE)])

    def test_committed(self):
        """commit writes into the given backing file and changes no other image."""
        self.rows([(f"commit --image-opts {opts}", "a.raw:raw b.raw:raw over.qcow2:qcow2 top.qcow2:qcow2") for opts in (self.OTHER, self.DEEP)])

    def test_recorded(self):
        """A json: name with backing options that is recorded as a backing name is obeyed when the image is opened."""
        below = self.NAME % "{'driver':'raw','file.filename':'b.raw'}"
        self.rows([(f"convert -O raw made out", "out:raw", f"qemu-img create -q -f qcow2 -F qcow2 -b {below} made", self.GONE),
                   (f"create -f qcow2 -F qcow2 -b {below} made", "", self.GONE),
                   (f"rebase -f qcow2 -F qcow2 -b {below} top.qcow2", "")])

    def test_refused(self):
        self.rows([(f"info --image-opts {words}", "") for words in (
            "driver=raw,file.filename=a.raw,backing.driver=raw,backing.file.filename=b.raw",)], text=False)
        self.rows([(f"convert -O raw --image-opts {words} out", "") for words in (
            "driver=qcow2,file.filename=over.qcow2,backing.driver=raw,backing.file.filename=none",
            "driver=qcow2,file.filename=over.qcow2,backing.driver=qcow2,backing.file.filename=b.raw",
            "driver=raw,file.filename=a.raw,backing.driver=raw,backing.file.filename=b.raw",
            "driver=qcow2,file.filename=over.qcow2,backing=none", "driver=qcow2,file.filename=over.qcow2,backing.foo=1")], text=False)
        done = self.both(["info", "json:{'driver':'qcow2','file.filename':'over.qcow2','foo':1}"])[1]
        self.assertRegex(done.stderr, "^qimg: name 'json:.*': foo: is not supported")
        done = self.both(["info", "--image-opts", self.OTHER + ",backing.file.foo=1"])[1]
        self.assertRegex(done.stderr, "--image-opts.*file.foo: is not supported")


class Nothing(SideBySide):
    """The driver null-co: a disk of zeroes without a file."""

    OPTS = "driver=null-co,size=3M,read-zeroes=on"
    NAME = "json:{'driver':'raw','file':{'driver':'null-co','size':3145728,'read-zeroes':true}}"

    def test_read(self):
        self.rows([(f"convert -O {fmt} {words} out", f"out:{fmt}") for fmt in ("raw", "qcow2") for words in (
            f"--image-opts {self.OPTS}", f"-S 0 --image-opts {self.OPTS}", self.NAME, f"-f raw {self.NAME}", "--image-opts driver=null-co,size=1M",
            "--image-opts driver=raw,file.driver=null-co,file.size=5M,file.read-zeroes=off")])
        self.rows([(f"{words} --image-opts {self.OPTS}", "") for words in (
            "map", "map --output=json", "measure -O raw", "measure -O qcow2", "measure --output=json -O qcow2")])
        self.rows([(f"compare --image-opts {self.OPTS} driver=raw,file.filename=zeroes", "", "truncate -s 3M zeroes"),
                   (f"compare --image-opts {self.OPTS} driver=raw,file.filename=a.raw", "")])

    def test_written_to(self):
        """Writes succeed and are dropped."""
        self.rows([("convert -n -f raw --target-image-opts a.raw driver=null-co,size=8M", ""),
                   ("convert -n -O raw a.raw null-co://", ""), ("bench -q -c 10 -w --image-opts driver=null-co,size=8M", ""),
                   ("bench -q -c 10 -f raw null-co://", "")], text=False)

    def test_below(self):
        self.rows([("convert -O raw made out", "out:raw", f"qemu-img create -q -f qcow2 -F raw -b {self.NAME} made 4M")])

    def test_refused(self):
        self.rows([(f"info {words}", "") for words in (
            "--image-opts driver=null-co,color=red", "null-co://x", "null-co://?color=red")], text=False)
        for opts, says in (("size=-1", "size: must be"), ("size=x", "size: must be"), ("size=9E", "size: must be"),
                           ("read-zeroes=maybe", "read-zeroes: must be on or off")):  # qemu-img accepts some of these
            done = self.both(["info", "--image-opts", f"driver=null-co,{opts}"])[1]
            self.assertEqual(done.returncode, 1)
            self.assertIn(says, done.stderr)


class DataFile(SideBySide):
    """An external data file that is given by options instead of the one that the image names."""

    OPTS = "driver=qcow2,file.filename=data.qcow2,data-file.driver=file,data-file.filename=other"
    MOVED = ("cp data.raw other", "truncate -s 0 data.raw")

    def test_read(self):
        name = "json:{'driver':'qcow2','file.filename':'data.qcow2','data-file':{'driver':'file','filename':'other'}}"
        self.rows([(f"convert -O raw {words} out", "out:raw", *self.MOVED) for words in (f"--image-opts {self.OPTS}", name)])
        self.rows([(f"compare --image-opts {self.OPTS} {self.OPTS}", "", *self.MOVED), (f"info --image-opts {self.OPTS}", "", "cp data.raw other")])

    def test_refused(self):
        self.rows([("info --image-opts driver=qcow2,file.filename=a.qcow2,data-file.filename=b.raw", ""),
                   ("convert -O raw --image-opts driver=qcow2,file.filename=data.qcow2,data-file.filename=none out", ""),
                   ("info --image-opts driver=raw,file.filename=a.raw,data-file.filename=b.raw", "")], text=False)


class Plain(SideBySide):
    """A protocol driver without a format driver: the content is raw, its format isn't probed."""

    def test_read(self):
        self.rows([(f"convert -O raw {words} out", "out:raw") for words in (
            "--image-opts driver=file,filename=a.qcow2", "json:{'driver':'file','filename':'a.qcow2'}",
            "json:{'file':{'driver':'file','filename':'a.qcow2'}}", "--image-opts driver=raw,file.filename=a.qcow2",
            "--image-opts file.driver=file,file.filename=a.qcow2")])
        self.rows([(f"{words}", "") for words in (
            "map --image-opts driver=file,filename=a.qcow2", "compare --image-opts driver=file,filename=a.qcow2 driver=raw,file.filename=a.qcow2",
            "check --image-opts driver=file,filename=a.qcow2", "measure -O qcow2 --image-opts driver=file,filename=a.qcow2")])

    def test_written_to(self):
        self.rows([("convert -n -f raw --target-image-opts a.raw driver=file,filename=long.qcow2", "long.qcow2:raw", "truncate -s 9M long.qcow2")])


class Map(SideBySide):
    """Only images whose clusters have no holes in the file, because qemu-img looks for these; see test_cli.Map."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name, options in (("a.qcow2", ""), ("v2.qcow2", "compat=0.10"), ("lazy.qcow2", "lazy_refcounts=on"), ("ext.qcow2", "extended_l2=on"),
                              ("small.qcow2", "cluster_size=4k,refcount_bits=1")):
            path = os.path.join(cls.fixture, name)
            create(path, "qcow2", 4 * MIB, options)
            fill(path, "qcow2", [(0, pattern(1, 192 * KIB)), (2 * MIB, pattern(2, 128 * KIB))])

    def test_text_and_json(self):
        self.rows([(f"map {words} {name}", "") for words in ("", "--output=json") for name in (
            "a.raw", "odd.raw", "a.qcow2", "a.qed", "v2.qcow2", "lazy.qcow2", "ext.qcow2", "small.qcow2", "over.qed")])
        self.rows([("map --output=json data.qcow2", "")])

    def test_parts(self):
        self.rows([(f"map --output=json {words} {name}", "") for name in ("a.qcow2", "a.raw", "odd.raw", "small.qcow2", "a.qed") for words in (
            "-s 0 -l 64k", "-s 1M", "-l 100k", "--start-offset=2M --max-length=1M", "-s 70000", "-s 512 -l 512", "-s 1M -l 0")])

    def test_refused(self):
        self.rows([(f"map {words}", "") for words in ("", "none", "comp.qcow2", "-s foo a.raw", "-l foo a.raw", "-f qed a.qcow2", "--bogus a.raw")],
                  text=False)


class Snapshot(SideBySide):
    WITH = "qemu-img snapshot -c one a.qcow2"

    def test_verbs(self):
        self.rows([(f"snapshot {words}", "a.qcow2:qcow2", self.WITH) for words in (
            "-l a.qcow2", "-c two a.qcow2", "-q -c two a.qcow2", "-a one a.qcow2", "-d one a.qcow2", "-a 1 a.qcow2", "-d 1 a.qcow2",
            "-c one a.qcow2", "-U -l a.qcow2", "--image-opts -l driver=qcow2,file.filename=a.qcow2")])

    def test_without_a_verb(self):
        """Without an option the snapshots are listed, as newer versions of qemu-img do; older ones print nothing."""
        theirs, _ = self.both(["snapshot", "-l", "a.qcow2"], [self.WITH])
        _, ours = self.both(["snapshot", "a.qcow2"], [self.WITH])
        self.assertEqual((ours.returncode, ours.stderr), (0, ""))
        self.assertEqual(printed(theirs.stdout), printed(ours.stdout))

    def test_other_images(self):
        self.rows([(f"snapshot -c one {name}", f"{name}:qcow2") for name in ("v2.qcow2", "ext.qcow2", "comp.qcow2", "over.qcow2", "lazy.qcow2")])

    def test_refused(self):
        self.rows([(f"snapshot {words}", "", self.WITH) for words in (
            "", "-d none a.qcow2", "-a none a.qcow2", "-c one a.raw", "-c one a.qed", "-l -c two a.qcow2", "-c one small.qcow2", "-l none", "-c x data.qcow2")],
            text=False)


class Bitmap(SideBySide):
    WITH = ("qemu-img bitmap --add -g 64k a.qcow2 one", "qemu-img bitmap --add --disable a.qcow2 two")

    def test_verbs(self):
        self.rows([(f"bitmap {words}", "a.qcow2:qcow2", *self.WITH) for words in (
            "--add a.qcow2 new", "--add -g 512 a.qcow2 new", "--add -g 0 a.qcow2 new", "--add --disable a.qcow2 new", "--remove a.qcow2 one", "--clear a.qcow2 one",
            "--disable a.qcow2 one", "--enable a.qcow2 two", "--merge one a.qcow2 two", "--merge two a.qcow2 one", "--add --merge one --disable a.qcow2 new",
            "--clear --disable a.qcow2 one", "-f qcow2 --add a.qcow2 new", "--image-opts --add driver=qcow2,file.filename=a.qcow2 new")])

    def test_refused(self):
        self.rows([(f"bitmap {words}", "", *self.WITH) for words in (
            "", "a.qcow2 one", "--add a.qcow2", "--add a.qcow2 one", "--remove a.qcow2 none", "--clear a.qcow2 none", "--merge none a.qcow2 one",
            "--add -g 3 a.qcow2 new", "--add -g 256 a.qcow2 new", "--add a.raw new", "--add v2.qcow2 new", "-g 512 --clear a.qcow2 one",
            "-b a.qcow2 --add a.qcow2 new", "--bogus a.qcow2 new")], text=False)


def table_places(path):
    """The offsets of a small qcow2 image's refcount block, L1 table and first L2 table, and its cluster size."""
    bits = header(path, 20, 4, "big")
    block = header(path, header(path, 48, 8, "big"), 8, "big")
    l1 = header(path, 40, 8, "big")
    return block, l1, header(path, l1, 8, "big") & ~(1 << 63), 1 << bits


class Check(SideBySide):
    """Images with one kind of damage each; both programs must report it with the same lines."""

    KINDS = {"leak": "count of a free cluster", "leaks": "several", "twice": "a count is too high", "none": "a count is too low",
             "flag": "of an L2 entry", "l1flag": "of an L1 entry", "shared": "an entry says what another one says", "outside": "past the end"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for kind in cls.KINDS:
            path = os.path.join(cls.fixture, f"{kind}.qcow2")
            create(path, "qcow2", 4 * MIB)
            fill(path, "qcow2", [(0, pattern(1, 256 * KIB))])
            run("truncate", "-s", "2M", path)
            cls.damage(kind, path)

    @staticmethod
    def damage(kind, path):
        block, l1, l2, size = table_places(path)
        first = header(path, l2, 8, "big") & ~(1 << 63)

        def count(cluster, number):
            patch(path, block + 2 * cluster, number.to_bytes(2, "big"))

        if kind == "leak":
            count(20, 1)
        elif kind == "leaks":
            for cluster in (16, 17, 23):
                count(cluster, 2)
        elif kind == "twice":
            count(first // size, 2)
        elif kind == "none":
            count(first // size, 3)
            count(20, 1)
        elif kind == "flag":
            patch(path, l2 + 8, (first + size).to_bytes(8, "big"))
        elif kind == "l1flag":
            patch(path, l1, l2.to_bytes(8, "big"))
        elif kind == "shared":
            patch(path, l2 + 8, (first | 1 << 63).to_bytes(8, "big"))
        elif kind == "outside":
            patch(path, l2 + 8, ((100 << 30) | 1 << 63).to_bytes(8, "big"))

    @staticmethod
    def told(text):
        return [line for line in text.splitlines() if re.match("Leaked|ERROR|Repairing|Rebuilding", line)]

    def checked(self, words):
        theirs, ours = self.both(words.split())
        said = f"\n--- qemu-img\n{theirs.stdout}{theirs.stderr}\n--- qimg\n{ours.stdout}{ours.stderr}"
        self.assertEqual(theirs.returncode, ours.returncode, said)
        self.assertEqual(self.told(theirs.stderr), self.told(ours.stderr), said)
        self.assertEqual(printed(theirs.stdout), printed(ours.stdout), said)

    def test_sound_images(self):
        self.rows([(f"check {words} {name.split(':', maxsplit=1)[0]}", "") for name in PLAIN for words in ("", "--output=json", "-q")])
        self.rows([(f"check -r {what} {name}", name + ":qcow2") for name in ("a.qcow2", "over.qcow2", "comp.qcow2") for what in ("leaks", "all")])

    def test_damage(self):
        for kind in self.KINDS:
            for words in ("check", "check --output=json", "check -f qcow2"):
                with self.subTest(kind=kind, words=words):
                    self.checked(f"{words} {kind}.qcow2")

    def test_repairs(self):
        for kind in self.KINDS:
            for words in ("-r leaks", "-r all", "-r all --output=json"):
                if kind in ("outside", "shared"):
                    continue  # qemu-img doesn't repair these, or reports them twice
                with self.subTest(kind=kind, words=words):
                    self.checked(f"check {words} {kind}.qcow2")
                    self.same_image(f"{kind}.qcow2", "qcow2") if "all" in words else None

    def test_refused(self):
        self.rows([(f"check {words}", "") for words in (
            "", "none", "-r foo a.qcow2", "-f qed a.qcow2", "--output=xml a.qcow2", "--image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2",
            "-U -r all a.qcow2", "--bogus a.qcow2", "a.qcow2 a.qcow2", "-T foo a.qcow2")], text=False)
