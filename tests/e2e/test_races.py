# SPDX-License-Identifier: BSD-3-Clause
"""A race by name: clients that write beside zeroes which are detected and unmapped.  M-60"""

import os
import threading
import unittest

from harness import *

ROUNDS = int(os.environ.get("QIMG_ROUNDS", 20 if LONG else 4))
CLUSTER = 64 * KIB


@parametrised
@unittest.skipIf(STANDIN, "needs the plugin")
class ZeroesBesideData(Case):
    """detect-zeroes=unmap: one client's zeroes end within clusters where another writes data"""

    cases_of = {name: (fmt, options, backing) for name, fmt, options, backing in (
        ("qcow2", "qcow2", "", False), ("qcow2 over a base", "qcow2", "", True),
        ("qcow2 subclusters", "qcow2", "extended_l2=on", True), ("qed", "qed", "", False),
        ("qed over a base", "qed", "", True), ("raw", "raw", "", False))}

    def check_of(self, fmt, options, backing):
        size = 16 * CLUSTER
        base = None
        if backing:
            base = create(self.path("base"), "qcow2", size)
            fill(base, "qcow2", [(0, b"base" * (size // 4))])
        image = create(self.path("disk"), fmt, size, options, base, "qcow2" if base else None)
        server = self.serve(image, "detect-zeroes=unmap", *(["format=raw"] if fmt == "raw" else []))
        zeroer, *writers = (server.connect() for _ in range(3))
        failures = []

        def write_zeroes(turn):
            """Over each cluster whole, then over its first half."""
            for n in range(16):
                zeroer.pwrite(bytes(CLUSTER), n * CLUSTER)
            for n in range(16):
                zeroer.pwrite(bytes([turn] * (CLUSTER // 2)), n * CLUSTER)
                zeroer.pwrite(bytes(CLUSTER // 2), n * CLUSTER)

        def write_data(handle, place, turn):
            for n in range(16):
                handle.pwrite(bytes([turn]) * 512, n * CLUSTER + place)

        def run_one(what, *args):
            try:
                what(*args)
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)

        for turn in range(1, 5 * ROUNDS):
            places = [CLUSTER // 2, CLUSTER - 512]
            threads = [threading.Thread(target=run_one, args=(write_zeroes, turn))]
            threads += [threading.Thread(target=run_one, args=(write_data, w, p, turn)) for w, p in zip(writers, places)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(failures, [])
            found = zeroer.pread(size, 0)
            for n in range(16):
                cluster = found[n * CLUSTER:(n + 1) * CLUSTER]
                self.assertEqual(cluster[:CLUSTER // 2], bytes(CLUSTER // 2), (turn, n))
                for place in places:  # before the zeroes or behind them, and whole
                    self.assertIn(bytes(cluster[place:place + 512]), (bytes(512), bytes([turn]) * 512), (turn, n, place))
            # Alone, a half of the cluster is all that zeroes take.
            write_data(writers[0], places[0], 255)
            thread = threading.Thread(target=run_one, args=(write_zeroes_in_halves, zeroer))
            thread.start()
            for _ in range(4):
                write_data(writers[0], places[0], 254)
            thread.join()
            self.assertEqual(failures, [])
            found = zeroer.pread(size, 0)
            for n in range(16):
                at = n * CLUSTER + places[0]
                self.assertEqual(bytes(found[at:at + 512]), bytes([254]) * 512, (turn, n))
        server.stop()
        check(image, fmt)


def write_zeroes_in_halves(handle):
    for _ in range(4):
        for n in range(16):
            handle.pwrite(bytes(CLUSTER // 2), n * CLUSTER)


if __name__ == "__main__":
    unittest.main()
