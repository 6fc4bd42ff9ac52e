# SPDX-License-Identifier: BSD-3-Clause
"""Reads ratios from a document, from its table "| workload | QEMU's best | `nbdkit file` |", as rows to be drawn."""

import dataclasses
import re
from typing import Optional


@dataclasses.dataclass(frozen=True)
class Titled:
    """The part of a workload that is drawn."""
    title: str


@dataclasses.dataclass(frozen=True)
class Told:
    """A ratio without its target."""
    ratio: float
    target: Optional[float] = None


@dataclasses.dataclass(frozen=True)
class Row:
    """The part of report.Row that is drawn."""
    workload: Titled
    peer: Optional[Told]
    file: Optional[Told]


class NoTable(Exception):
    """The document has no such table, or doesn't say when its figures were measured."""


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
    """The document's words on its figures: "measured on DATE at commit HASH"."""
    found = re.search(r"measured\s+on\s+\S+\s+at\s+commit\s+\w+", text)
    if not found:
        raise NoTable("it doesn't say: measured on DATE at commit HASH")
    return " ".join(found[0].split())
