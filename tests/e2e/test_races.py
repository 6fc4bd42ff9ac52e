# SPDX-License-Identifier: BSD-3-Clause
"""Two races: writes beside zeroes that are detected and unmapped (M-60), and writes into clusters that
were just trimmed and whose holes aren't punched yet (Q-21)."""

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
            """Zeroes each cluster, first completely, then only its first half."""
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
                for place in places:  # written before the zeroes or after them, and never in part
                    self.assertIn(bytes(cluster[place:place + 512]), (bytes(512), bytes([turn]) * 512), (turn, n, place))
            # Zeroes in the first half of a cluster must not change data in its second half.
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


@parametrised
@unittest.skipIf(STANDIN, "needs the plugin")
class WritesBehindTrims(Case):
    """Clients trim clusters and at once write to parts of them, while no hole has been punched yet: the
    written data stays, the rest reads as zeroes, and no later hole destroys it.  Q-21"""

    cases_of = {name: (fmt, backing) for name, fmt, backing in (
        ("qcow2", "qcow2", False), ("qed", "qed", False), ("qed over a base", "qed", True))}

    def check_of(self, fmt, backing):
        clients, each = 4, 64
        size = clients * each * CLUSTER
        base = None
        if backing:
            base = create(self.path("base"), "qcow2", size)
            fill(base, "qcow2", [(0, b"base" * (size // 4))])
        image = create(self.path("disk"), fmt, size, "", base, "qcow2" if base else None)
        fill(image, fmt, [(0, b"old!" * (size // 4))])
        server = self.serve(image)
        failures = []

        def clusters_of(client):
            return [(n * clients + client) * CLUSTER for n in range(each)]

        def work(client, turn):
            handle = server.connect()
            try:
                for at in clusters_of(client):
                    handle.trim(CLUSTER, at)
                for at in clusters_of(client):
                    if at // CLUSTER % 3:
                        handle.pwrite(bytes([turn]) * 512, at + 1024 * client)
                    if at // CLUSTER % 5 == 0:
                        handle.flush()
                    expect(handle, client, turn, at)
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)
            handle.shutdown()

        def expect(handle, client, turn, at):
            wanted = bytearray(CLUSTER)
            if at // CLUSTER % 3:
                wanted[1024 * client:1024 * client + 512] = bytes([turn]) * 512
            self.assertEqual(bytes(handle.pread(CLUSTER, at)), bytes(wanted), (turn, at // CLUSTER))

        for turn in range(1, ROUNDS + 1):
            threads = [threading.Thread(target=work, args=(c, turn)) for c in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(failures, [])
            reader = server.connect()
            for client in range(clients):
                for at in clusters_of(client):
                    expect(reader, client, turn, at)
            reader.shutdown()
        before = os.stat(image).st_size
        server.stop()
        check(image, fmt)
        self.assertLessEqual(os.stat(image).st_size, before)
        holes = [at for c in range(clients) for at in clusters_of(c) if at // CLUSTER % 3 == 0]
        self.assertLess(os.stat(image).st_blocks * 512, size - len(holes) * CLUSTER + 8 * CLUSTER)
        server = self.serve(image)
        reader = server.connect()
        for client in range(clients):
            for at in clusters_of(client):
                expect(reader, client, ROUNDS, at)
        server.stop()


if __name__ == "__main__":
    unittest.main()
