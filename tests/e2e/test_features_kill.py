# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 under load, as in test_kill.py, on qcow2 images with compressed clusters, encryption,
subclusters or a data file.

Requirements: Q-14 to Q-16, L-04 to L-06.  QIMG_ROUNDS: rounds per image (half as many as there).
"""

import unittest

from featured import Featured
from harness import *
from test_kill import BACKING, NOTHING, ROUNDS, SIZE, Rounds

SHORT = max(4, ROUNDS // 2)


class FeaturedRounds(Rounds):
    """Rounds on an image that may need a passphrase."""

    def judged(self, image, fmt, leaks):
        self.disk.check(leaks)

    def repaired(self, image, fmt):
        self.disk.repair()
        return self.disk.content()

    def kill(self, row, keys=(), backing=False, leaks=True, consistent=True, **how):
        if backing:
            how["extra"] = f"backing_file={self.base()},backing_fmt=raw"
        self.disk = Featured(self.dir, row, self.rng, size=SIZE, fill=False, **how)
        self.rounds_on(self.disk.path, "qcow2", BACKING if backing else NOTHING, [*self.disk.keys, *keys], leaks,
                       consistent, SHORT)


class KillCompressed(FeaturedRounds):
    """At the beginning all clusters are compressed."""

    def kill_compressed(self, kind, options, keys=(), **how):
        image = self.path("disk")
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind},{options}",
            self.base(), image)
        self.rounds_on(image, "qcow2", BACKING, keys, rounds=SHORT, **how)

    judged, repaired = Rounds.judged, Rounds.repaired

    def test_deflate(self):
        """Compressed clusters are overwritten; no new ones are written."""
        self.kill_compressed("zlib", "cluster_size=16k", consistent=True)

    def test_zstd_packed(self):
        self.kill_compressed("zstd", "cluster_size=4k", ["compress=on"], consistent=True)

    def test_deflate_packed_with_few_references(self):
        """refcount_bits=2, so that a host cluster can hold at most three compressed ones."""
        self.kill_compressed("zlib", "cluster_size=4k,refcount_bits=2,lazy_refcounts=on", ["compress=on"], leaks=False)


class KillEncrypted(FeaturedRounds):
    def test_luks(self):
        self.kill({"encryption": "luks-xts", "cluster": 4 * KIB})

    def test_luks_with_lazy_refcounts(self):
        self.kill({"encryption": "luks-cbc", "lazy": "on"}, leaks=False, consistent=False)

    def test_aes_with_backing_file(self):
        self.kill({"encryption": "aes", "cluster": 16 * KIB}, backing=True)


class KillExtended(FeaturedRounds):
    def test_subclusters(self):
        self.kill({"extended": "on", "cluster": 16 * KIB})

    def test_subclusters_with_backing_file(self):
        self.kill({"extended": "on"}, backing=True)

    def test_packed_beside_subclusters(self):
        self.kill({"extended": "on", "compression": "zstd", "cluster": 16 * KIB}, ["compress=on"], backing=True)


class KillDataFile(FeaturedRounds):
    def test_data_file_with_backing_file(self):
        self.kill({"data_file": "plain", "cluster": 16 * KIB}, backing=True)

    def test_raw_data_file(self):
        self.kill({"data_file": "raw", "extended": "on"})


if __name__ == "__main__":
    unittest.main()
