# SPDX-License-Identifier: BSD-3-Clause
"""Images on Ceph RBD: a cluster of one node, which is started by the first workload that needs it."""

import os
import sys

from processes import Unavailable

OVERHEAD = 2 << 30  # bytes that the OSD's store needs itself; the OSD ends when its store is full
TESTS = os.path.join(os.path.dirname(__file__), "..", "..", "tests", "e2e")


def cluster(nursery, room):
    """The cluster, with space for `room` bytes; servers find it by CEPH_CONF."""
    if getattr(nursery, "ceph", None):
        return nursery.ceph
    sys.path.append(TESTS)
    import ceph_cluster  # from tests/e2e
    if ceph_cluster.missing():
        raise Unavailable(f"Ceph isn't installed, as scripts/test --ceph does: {', '.join(ceph_cluster.missing())}")
    folder = nursery.path("ceph")
    os.mkdir(folder)
    nursery.ceph = ceph_cluster.Cluster(folder, room + OVERHEAD, nursery.start)
    os.environ["CEPH_CONF"] = str(nursery.ceph.conf)
    return nursery.ceph
