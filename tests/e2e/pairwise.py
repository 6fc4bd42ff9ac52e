# SPDX-License-Identifier: BSD-3-Clause
"""Pairwise testing: chooses few combinations (rows) of properties, so that each pair of values that can
occur together occurs in some row.

A space is a dict of lists: name -> values.  legal(row) tells whether the values of a row can be combined.
It is also called for incomplete rows and must accept one that can be completed."""

import itertools


def complete(space, legal, rng, fixed):
    """A random legal row that has the values in `fixed`, or None if none was found."""
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
    """Yields the rows, by a greedy choice: of `tries` random rows that contain one missing pair, the row that contains
    the most missing pairs."""
    missing = {}  # pair -> its values as a row; a dict, so that the order depends on the seed only
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
