# SPDX-License-Identifier: BSD-3-Clause
"""Runs the workloads, in rounds; each round measures the servers in turn."""

import dataclasses
import statistics
import sys
import traceback

from clients import Measurement
from processes import Failed, Unavailable


@dataclasses.dataclass
class Outcome:
    """The results of one server in one workload."""
    samples: list = dataclasses.field(default_factory=list)
    memory: list = dataclasses.field(default_factory=list)     # bytes, one for each sample
    failures: list = dataclasses.field(default_factory=list)   # Failed, one for each failed round
    skipped: str = ""                                          # why it can't take part

    def median(self):
        """The median of the samples, or None."""
        return statistics.median(self.samples) if self.samples else None

    def peak(self):
        """The largest memory of any round; None if unknown."""
        return max((size for size in self.memory if size), default=None)

    def word(self):
        """The word in the tables in place of a missing figure."""
        return self.failures[0].outcome if self.failures else "n/a"


def say(text):
    """Prints progress to the standard error."""
    print(text, file=sys.stderr, flush=True)


class Runner:
    """Measures workloads on servers."""

    def __init__(self, nursery, store, servers, rounds, seconds):
        self.nursery, self.store, self.servers = nursery, store, servers
        self.rounds, self.seconds = rounds, seconds

    def run(self, workload):
        """Returns an outcome for each server that takes part."""
        servers = [server for server in self.servers if workload.takes(server)]
        outcomes = {server.name: Outcome() for server in servers}
        for number in range(self.rounds):
            turn = number % len(servers)
            for server in servers[turn:] + servers[:turn]:
                self._once(workload, server, outcomes[server.name], number)
        return outcomes

    def _once(self, workload, server, outcome, number):
        if outcome.skipped:
            return
        what = f"{workload.name} {number + 1}/{self.rounds} {server.name}"
        try:
            figure, memory = self._measure(workload, server)
        except Unavailable as reason:
            outcome.skipped = str(reason)
            say(f"{what}: skipped: {reason}")
        except Failed as failure:
            outcome.failures.append(failure)
            say(f"{what}: {failure.outcome}: {failure}")
        except (OSError, ValueError, KeyError) as error:
            outcome.failures.append(Failed("failed", f"{type(error).__name__}: {error}"))
            say(f"{what}: {traceback.format_exc()}")
        else:
            outcome.samples.append(figure)
            outcome.memory.append(memory)
            say(f"{what}: {figure:.4g} {workload.unit}, {memory / 2**20:.1f} MiB")

    def _measure(self, workload, server):
        image = workload.image_for(self.store, server)
        try:
            image.settle()
            if workload.grows:
                self.store.warm_memory()
            measurement = Measurement(self.nursery, server, image, self.seconds)
            return workload.measure(measurement), measurement.memory
        finally:
            image.discard()
