# SPDX-License-Identifier: BSD-3-Clause
"""Few rows of a table of properties, so that each pair of values that can occur together does so.

A space is a dict of lists: name -> values.  legal(row) tells whether the values of a row go
together; it is asked of incomplete rows, too, whose missing names it must take for granted."""

import itertools


def complete(space, legal, rng, fixed):
    """A random legal row with these values; None when none was found."""
    for _ in range(20):
        row = dict(fixed)
        names = [name for name in space if name not in row]
        rng.shuffle(names)
        for name in names:
            fitting = [value for value in space[name] if legal({**row, name: value})]
            if not fitting:
                break
            row[name] = rng.choice(fitting)
        else:
            if legal(row):
                return {name: row[name] for name in space}
    return None


def pairs_of(row):
    return {frozenset(pair) for pair in itertools.combinations(((k, str(v)) for k, v in row.items()), 2)}


def covering(space, legal, rng, tries=12):
    """The rows, greedily: each holds a pair that is missing so far, and of some that do, most of those."""
    missing = {}  # pair -> the values that make it; in an order that the seed alone decides
    for (name_a, values_a), (name_b, values_b) in itertools.combinations(space.items(), 2):
        for a, b in itertools.product(values_a, values_b):
            fixed = {name_a: a, name_b: b}
            if legal(fixed) and complete(space, legal, rng, fixed):
                missing[frozenset(((name_a, str(a)), (name_b, str(b))))] = fixed
    while missing:
        wanted = next(iter(missing.values()))
        rows = filter(None, (complete(space, legal, rng, wanted) for _ in range(tries)))
        row = max(rows, key=lambda row: len(pairs_of(row) & missing.keys()))
        for pair in pairs_of(row):
            missing.pop(pair, None)
        yield row
