# SPDX-License-Identifier: BSD-3-Clause
"""Medians and ratios of the measurements, as tables and as JSON."""

import dataclasses
import os
import platform
import subprocess
from typing import Optional

from workloads import GROWTHS

MOST = 99.0  # larger ratios are cut: with zero calls a ratio would be infinite


@dataclasses.dataclass
class Ratio:
    """How many times better we are than another server, and the target for that."""
    name: str
    value: float
    ratio: float
    target: Optional[float]

    @property
    def met(self):
        """Is the target met?  None without one.  Compares rounded figures, as they are printed."""
        return None if self.target is None else round(self.ratio, 2) >= self.target

    def as_json(self):
        """For the file."""
        return {**dataclasses.asdict(self), "met": self.met}


def times_better(ours, other, better):
    """The ratio in the direction in which more is better."""
    over, under = (ours, other) if better == "higher" else (other, ours)
    if over == under:
        return 1.0
    return min(over / under, MOST) if under else MOST


class Row:
    """One workload's medians and ratios."""

    def __init__(self, workload, outcomes, roles):
        self.workload, self.outcomes, self.roles = workload, outcomes, roles
        self.ours = outcomes["ours"].median()
        self.peer = self._ratio("peer", workload.peer)
        self.file = self._ratio("file", workload.file)
        self.memory = self._memory_ratio()

    def of(self, role):
        """The names and outcomes of the servers with this role."""
        return [(name, one) for name, one in self.outcomes.items() if self.roles[name] == role]

    def _ratio(self, role, target):
        lower = self.workload.better == "lower"
        found = [(one.median(), name) for name, one in self.of(role) if one.samples]
        if not found or self.ours is None:
            return None
        value, name = min(found) if lower else max(found)
        return Ratio(name, value, times_better(self.ours, value, self.workload.better), target)

    def _memory_ratio(self):
        """The ratio to the memory of qemu-nbd, the first of the peers, or of the next one that has a figure."""
        ours = self.outcomes["ours"].peak()
        found = [(one.peak(), name) for name, one in self.of("peer") if one.peak()]
        if not ours or not found:
            return None
        value, name = found[0]
        return Ratio(name, value, times_better(ours, value, "lower"), 1.0)

    def notes(self):
        """Notes beside the figures: failures, and servers that were skipped."""
        for name, one in self.outcomes.items():
            if one.skipped:
                yield f"{self.workload.name}: {name} skipped: {one.skipped}"
            for words in sorted({f"{failure.outcome}: {failure}" for failure in one.failures}):
                yield (f"{self.workload.name}: {name} failed in {len(one.failures)} of "
                       f"{len(one.failures) + len(one.samples)} rounds: {words}")

    def as_json(self):
        """For the file."""
        return {
            "name": self.workload.name, "title": self.workload.title, "unit": self.workload.unit,
            "better": self.workload.better, "format": self.workload.format, "ours": self.ours,
            "peer": self.peer and self.peer.as_json(), "file": self.file and self.file.as_json(),
            "memory": self.memory and self.memory.as_json(),
            "servers": {name: {"role": self.roles[name], "median": one.median(),
                               "samples": one.samples, "memory": one.memory,
                               "skipped": one.skipped,
                               "failures": [f"{f.outcome}: {f}" for f in one.failures]}
                        for name, one in self.outcomes.items()}}


def growth_lines(rows):
    """How our figures change with the size of the image."""
    medians = {row.workload.name: row for row in rows if row.ours is not None}
    for growth in GROWTHS:
        if growth.base in medians and growth.other in medians:
            base, other = medians[growth.base], medians[growth.other]
            ratio = times_better(other.ours, base.ours, base.workload.better)
            yield growth, Ratio(growth.base, base.ours, ratio, growth.least)


# ---- text ----

def _number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _mark(ratio):
    return {None: "", True: "ok", False: "MISSED"}[ratio.met]


def _ratio_cells(ratio):
    if ratio is None:
        return ["-", "", ""]
    target = "" if ratio.target is None else f"{ratio.target:.2f}"
    return [f"{ratio.ratio:.2f}", target, _mark(ratio)]


def _other_cell(row, role):
    ratio = getattr(row, role)
    if ratio:
        return _number(ratio.value) + (f" ({ratio.name})" if role == "peer" else "")
    medians = [one for _, one in row.of(role) if one.samples]
    words = sorted({one.word() for _, one in row.of(role)})
    return "/".join(words) if words and not medians else "-"


def _table(head, lines):
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in [head, ["-" * width for width in widths], *lines])


def _speed_table(rows):
    head = ["workload", "unit", "ours", "best peer", "file",
            "ours/peer", "want", "", "ours/file", "want", ""]
    return _table(head, [
        [row.workload.name, row.workload.unit,
         _number(row.ours) if row.ours is not None else row.outcomes["ours"].word(),
         _other_cell(row, "peer"), _other_cell(row, "file"),
         *_ratio_cells(row.peer), *_ratio_cells(row.file)] for row in rows])


def _memory_table(rows):
    def mib(value):
        return "-" if not value else f"{value / 2**20:.1f}"

    head = ["peak memory, MiB", "ours", "peer", "", "file", "peer/ours", "want", ""]
    return _table(head, [
        [row.workload.name, mib(row.outcomes["ours"].peak()), mib(row.memory.value),
         row.memory.name, mib(max((one.peak() or 0 for _, one in row.of("file")), default=0)),
         *_ratio_cells(row.memory)] for row in rows if row.memory])


def text(rows):
    """The whole report as text."""
    parts = [_speed_table(rows), "A ratio says how many times better we are; where less is "
             "better, too.  ok, MISSED: against what is wanted."]
    if any(row.memory for row in rows):
        parts.append(_memory_table(rows))
    growths = list(growth_lines(rows))
    if growths:
        parts.append(_table(["growth", "ratio", "want", ""],
                            [[growth.title, *_ratio_cells(ratio)] for growth, ratio in growths]))
    notes = [note for row in rows for note in row.notes()]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


# ---- JSON ----

def _first_line(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout.splitlines() or ["?"])[0]


def as_json(rows, options):
    """The whole run, with all samples."""
    versions = {tool: _first_line(tool, "--version")
                for tool in ("qemu-nbd", "qemu-storage-daemon", "nbdkit", "nbdcopy", "fio")}
    return {"options": options, "versions": versions,
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release(),
                        "architecture": platform.machine(), "load": os.getloadavg()},
            "workloads": [row.as_json() for row in rows],
            "growth": [{"title": growth.title, **ratio.as_json()}
                       for growth, ratio in growth_lines(rows)]}
