# SPDX-License-Identifier: BSD-3-Clause
"""The ratios that a document tells, as rows to be drawn: its table "| workload | QEMU's best | `nbdkit file` |"."""

import dataclasses
import re
from typing import Optional


@dataclasses.dataclass(frozen=True)
class Titled:
    """What is drawn of a workload."""
    title: str


@dataclasses.dataclass(frozen=True)
class Told:
    """A ratio of which no more is known."""
    ratio: float
    target: Optional[float] = None


@dataclasses.dataclass(frozen=True)
class Row:
    """As report.Row is drawn."""
    workload: Titled
    peer: Optional[Told]
    file: Optional[Told]


class NoTable(Exception):
    """The document has none, or doesn't say when it was measured."""


def _told(cell):
    return Told(float(cell)) if cell.strip() else None


def rows_of(text):
    """The rows of the table, in its order."""
    table = re.search(r"^\| workload \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    if not table:
        raise NoTable("no table of workloads")
    cells = [line.strip("|").split("|") for line in table[1].splitlines()]
    return [Row(Titled(title.strip()), _told(peer), _told(file)) for title, peer, file in cells]


def when(text):
    """What the document says of its figures: "measured on DATE at commit HASH"."""
    found = re.search(r"measured\s+on\s+\S+\s+at\s+commit\s+\w+", text)
    if not found:
        raise NoTable("it doesn't say: measured on DATE at commit HASH")
    return " ".join(found[0].split())
