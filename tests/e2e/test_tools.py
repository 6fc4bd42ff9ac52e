# SPDX-License-Identifier: BSD-3-Clause
"""Common tools for NBD servers work with this one."""

import pathlib
import unittest

from harness import *

SIZE = 24 * MIB


class Tools(Case):
    def flat(self, name="flat"):
        """A raw file with data, with a hole and with written zeroes."""
        data = bytearray(self.rng.randbytes(SIZE))
        data[5 * MIB:9 * MIB] = bytes(4 * MIB)
        data[SIZE - 100 * KIB:] = bytes(100 * KIB)
        pathlib.Path(self.path(name)).write_bytes(data)
        return self.path(name), bytes(data)

    def test_nbdcopy_into_and_out_of_an_image(self):
        """Several connections in both directions (multi-conn)."""
        source, data = self.flat()
        for fmt in ("qed", "qcow2"):
            image = create(self.path(f"disk.{fmt}"), fmt, SIZE)
            with self.subTest(fmt=fmt):
                server = self.serve(image, fmt=fmt)
                run("nbdcopy", "--connections=4", "--flush", source, server.uri)
                back = self.path("back")
                run("nbdcopy", "--connections=4", "--requests=16", server.uri, back)
                self.assertEqual(pathlib.Path(back).read_bytes(), data)
                server.stop()
                check(image, fmt)
                self.assertEqual(content(image, fmt), data)
                self.assertLess(info(image, fmt)["actual-size"], SIZE - 3 * MIB, "holes got lost")

    def test_nbdsh(self):
        """An nbdsh script, as in the manuals."""
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.serve(image, fmt="qcow2")
        done = run("nbdsh", "-u", server.uri, "-c", "print(h.get_size())", "-c",
                   "h.pwrite(b'hello' * 100, 4096)", "-c", "h.flush()", "-c",
                   "print(h.pread(5, 4096 + 495).decode())")
        self.assertEqual(done.stdout.split(), [str(SIZE), "hello"])
        server.stop()
        check(image, "qcow2")

    def test_qemu_io(self):
        """QEMU's block layer as the client: write, zero, discard, verify."""
        for fmt in ("qed", "qcow2"):
            with self.part(fmt=fmt):
                image = create(self.path("disk"), fmt, SIZE)
                server = self.serve(image, fmt=fmt)
                done = run("qemu-io", "-f", "raw", server.uri, "-c", "write -P 0x5a 1M 3M", "-c",
                           "write -z -u 2M 64k", "-c", "discard 3M 128k", "-c", "aio_write -P 7 10M 1M",
                           "-c", "aio_flush", "-c", "flush", "-c", "read -P 0x5a 1M 1M",
                           "-c", "read -P 0 2M 64k", "-c", "read -P 7 10M 1M")
                self.assertNotIn("verification failed", done.stdout)
                server.stop()
                check(image, fmt)

    def test_qemu_img_convert_and_compare(self):
        """qemu-img moves disks to and from the export."""
        source, data = self.flat()
        for fmt in ("qed", "qcow2"):
            with self.subTest(fmt=fmt):
                image = create(self.path(f"disk.{fmt}"), fmt, SIZE)
                server = self.serve(image, fmt=fmt)
                run("qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", source, server.uri)
                run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
                copy = self.path("copy.qcow2")
                run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, copy)
                self.assertEqual(content(copy, "qcow2"), data)
                server.stop()
                check(image, fmt)
                self.assertEqual(content(image, fmt), data)

    def fio(self, server, *options):
        done = run("fio", "--name=job", "--ioengine=nbd", f"--uri={server.uri}", "--output-format=json",
                   *options, cwd=self.dir, timeout=200)
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        self.assertEqual(job["error"], 0, done.stdout)
        return job

    def test_fio_verify(self):
        """fio writes randomly, with a deep queue, and verifies checksums."""
        for fmt in ("qed", "qcow2"):
            for size in ("4k-4k", "512-64k"):
                with self.part(fmt=fmt, size=size):
                    image = create(self.path("disk"), fmt, SIZE)
                    server = self.serve(image, fmt=fmt)
                    self.fio(server, "--rw=randwrite", f"--bsrange={size}", f"--size={SIZE}", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1")
                    server.stop()
                    check(image, fmt)

    def test_fio_several_jobs(self):
        """Several jobs of fio, each with its own connection and part of the disk."""
        image = create(self.path("disk"), "qcow2", 4 * SIZE)
        server = self.serve(image, fmt="qcow2")
        self.fio(server, "--rw=randwrite", "--bs=16k", f"--size={SIZE}", f"--offset_increment={SIZE}",
                 "--numjobs=4", "--thread", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1",
                 "--group_reporting", "--fsync=32")
        server.stop()
        check(image, "qcow2")

    def test_nbdinfo(self):
        """Size, flags and block size as JSON; the map covers the whole disk."""
        image = create(self.path("disk"), "qcow2", SIZE, "cluster_size=128k")
        fill(image, "qcow2", [(MIB, b"x" * MIB)])
        server = self.serve(image, fmt="qcow2")
        export = json.loads(run("nbdinfo", "--json", server.uri).stdout)["exports"][0]
        self.assertEqual((export["export-name"], export["export-size"]), ("", SIZE))
        self.assertFalse(export["is_read_only"])
        for flag in ("can_cache", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"):
            self.assertTrue(export[flag], flag)
        self.assertEqual((export["block_size_minimum"], export["block_size_preferred"]), (1, 128 * KIB))
        runs = json.loads(run("nbdinfo", "--map", "--json", server.uri).stdout)
        self.assertEqual(runs[0]["offset"], 0)
        for a, b in zip(runs, runs[1:]):
            self.assertEqual(a["offset"] + a["length"], b["offset"])
        self.assertEqual(runs[-1]["offset"] + runs[-1]["length"], SIZE)
        self.assertEqual([(r["offset"], r["length"]) for r in runs if r["type"] == 0], [(MIB, MIB)])
        server.stop()

    def test_list_exports(self):
        """The disk is the export with the empty name."""
        image = create(self.path("disk"), "qcow2", SIZE)
        server = self.serve(image, fmt="qcow2")
        names = [e["export-name"] for e in json.loads(run("nbdinfo", "--list", "--json", server.uri).stdout)["exports"]]
        self.assertEqual(names, [""])
        server.stop()

    @unittest.skipIf(STANDIN, "needs the plugin")
    def test_unknown_export(self):
        """An unknown name is refused, with the names that exist; the server goes on."""
        server = self.serve(create(self.path("disk"), "qcow2", SIZE), fmt="qcow2")
        for name in ("nope", "snapshot/none", "x" * 4096, "new\nline"):
            with self.assertRaises(nbd.Error):
                server.connect(name)
        self.assertIn("there is no export 'nope': there is \"\"", server.errors)
        self.assertIn("there is no export 'new?line'", server.errors)
        self.assertEqual(server.connect().pread(512, 0), bytes(512))
        server.stop()

    @unittest.skipIf(STANDIN, "needs the plugin")
    def test_dump_plugin(self):
        """--dump-plugin needs no image; it prints formats, cache modes (V-08) and the kinds of jobs (M-22)."""
        out = run("nbdkit", PLUGIN, "--dump-plugin", env=plugin_env()).stdout
        fields = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        self.assertEqual(fields["name"], "qimg")
        self.assertEqual(fields["magic_config_key"], "file")
        self.assertEqual(fields["max_thread_model"], "parallel")
        self.assertEqual(set(fields["qimg_formats"].replace(",", " ").split()), {"qcow2", "qed", "luks", "raw"})
        self.assertEqual(fields["qimg_cache_modes"].split(", "),
                         ["writeback", "writethrough", "none", "directsync", "volatile"])
        self.assertEqual(fields["qimg_jobs"], "mirror, commit, backup, stream")

    @unittest.skipIf(STANDIN, "needs the plugin")
    def test_help_names_every_key(self):
        """nbdkit --help lists the parameters, and warns of cache=volatile (V-05)."""
        out = run("nbdkit", PLUGIN, "--help", env=plugin_env()).stdout
        for key in ("file", "format", "cache", "need-check-delay", "lazy-refcounts", "backing",
                    "references", "discard", "metadata-cache", "writable"):
            self.assertIn(f"{key}=", out)
        self.assertRegex(out, r"volatile")

    @unittest.skipIf(STANDIN, "needs the plugin")
    def test_magic_key(self):
        """`nbdkit PLUGIN IMAGE` means file=IMAGE; a relative name is relative to nbdkit's start folder."""
        create(self.path("disk.qcow2"), "qcow2", SIZE)
        done = run("nbdkit", "-U", "-", PLUGIN, "disk.qcow2", "--run", "nbdinfo --size $uri",
                   cwd=self.dir, env=plugin_env())
        self.assertEqual(int(done.stdout), SIZE)

    def test_created_images_are_like_those_of_qemu_img(self):
        """Q-01, Q-03: qemu-img describes images of qimg create like its own, and `qimg info` prints the same JSON."""
        base = create(self.path("base.raw"), "raw", SIZE)
        for fmt, options, backing in (("qed", "", None), ("qed", "cluster_size=4k,table_size=2", base),
                                      ("qcow2", "", None), ("qcow2", "compat=0.10,cluster_size=4k", base),
                                      ("qcow2", "lazy_refcounts=on,refcount_bits=8", None),
                                      ("qcow2", "preallocation=metadata", None),
                                      ("qcow2", "preallocation=full", None)):
            with self.subTest(fmt=fmt, options=options, backing=bool(backing)):
                ours, theirs = (create(self.path(f"{tool}.{fmt}"), fmt, "24M", options, backing,
                                       backing and "raw", tool) for tool in ("qimg", "qemu-img"))
                check(ours, fmt)
                a, b = info(ours, fmt), info(theirs, fmt)
                own = json.loads(run(QIMG, "info", "--output=json", "-f", fmt, ours).stdout)
                for key in ("virtual-size", "format", "cluster-size", "dirty-flag", "backing-filename",
                            "backing-filename-format", "format-specific"):
                    self.assertEqual(a.get(key), b.get(key), key)
                    self.assertEqual(own.get(key), a.get(key), f"qimg info: {key}")
                if fmt == "qed":
                    with open(ours, "rb") as x, open(theirs, "rb") as y:
                        self.assertEqual(x.read(64), y.read(64))

    def test_created_images_name_their_features(self):
        """L-09: the feature name table in the header is like qemu-img's."""
        def names(path):
            with open(path, "rb") as file:
                area = file.read(64 * KIB)
            at = int.from_bytes(area[100:104], "big")
            while (kind := int.from_bytes(area[at:at + 4], "big")) != 0x6803f857:
                self.assertNotEqual(kind, 0, "no table")
                at += 8 + (int.from_bytes(area[at + 4:at + 8], "big") + 7) // 8 * 8
            rows, length = at + 8, int.from_bytes(area[at + 4:at + 8], "big")
            return {tuple(area[row:row + 2]): area[row + 2:row + 48].rstrip(b"\0").decode()
                    for row in range(rows, rows + length, 48)}

        ours, theirs = (names(create(self.path(tool), "qcow2", SIZE, tool=tool)) for tool in ("qimg", "qemu-img"))
        self.assertEqual(len(ours), 8)
        self.assertEqual(ours, theirs)

    def test_create_leaves_nothing_behind_when_it_fails(self):
        """Q-03, L-01: also for a bad option or an impossible size."""
        for fmt, options, size in (("qed", "cluster_size=1000", "1M"), ("qed", "table_size=3", "1M"),
                                   ("qed", "cluster_size=4k,table_size=1", "1T"),
                                   ("qcow2", "cluster_size=100", "1M"), ("qcow2", "refcount_bits=3", "1M"),
                                   ("qcow2", "compat=0.10,lazy_refcounts=on", "1M"),
                                   ("qcow2", "nonsense=1", "1M"), ("qcow2", "", "5x"), ("vmdk9", "", "1M")):
            with self.subTest(fmt=fmt, options=options, size=size):
                image = self.path("disk")
                argv = [QIMG, "create", "-q", "-f", fmt, *(["-o", options] if options else []), image, size]
                done = run(*argv, check=False)
                self.assertEqual(done.returncode, 1, done)
                self.assertTrue(done.stderr.strip(), "no message")
                self.assertFalse(os.path.exists(image), "a file was left behind")


if __name__ == "__main__":
    unittest.main()
