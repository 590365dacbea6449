"""The site's breakers and feeders below the point of common coupling: which GPUs hang on each, and what it leaves them.

A feeder is counted at its worst case, like the site: what else hangs on it at its most, and GPUs of it that no node has
reported yet at their nameplate. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np

from controller.settings import FeederSettings
from controller.types import BoolArray, Feeder, FleetTable


class FeederTree:
    """The configured tree, laid on the fleet that nodes have reported."""

    def __init__(self, feeders: Sequence[FeederSettings]) -> None:
        self._feeders = tuple(feeders)
        self._table: FleetTable | None = None
        self._found: tuple[Feeder, ...] = ()

    def at(self, table: FleetTable) -> tuple[Feeder, ...]:
        """Every feeder, those below before those above; made anew only when the fleet is another."""
        if self._table is not table:
            self._table, self._found = table, tuple(self._laid(table)) if self._feeders else ()
        return self._found

    def _laid(self, table: FleetTable) -> Iterator[Feeder]:
        for feeder in sorted(self._feeders, key=lambda f: -len(above(f.name, self._feeders))):
            branch = [f for f in self._feeders if f.name == feeder.name or feeder.name in above(f.name, self._feeders)]
            is_below = hangs(table, [pattern for f in branch for pattern in f.node_patterns])
            seen_w = float((table.peak_w * table.stands_for)[is_below].sum())
            else_w = sum(f.other_w_max for f in branch) + max(0.0, feeder.gpu_peak_w - seen_w)
            yield Feeder(feeder.name, feeder.max_w - else_w, is_below)


def above(name: str, feeders: Sequence[FeederSettings]) -> tuple[str, ...]:
    """The feeders that `name` hangs on, the nearest first; ends where one would come twice."""
    by_name = {f.name: f for f in feeders}
    found: list[str] = []
    feeder = by_name.get(name)
    while feeder is not None and feeder.within is not None and feeder.within not in (name, *found):
        found.append(feeder.within)
        feeder = by_name.get(feeder.within)
    return tuple(found)


def hangs(table: FleetTable, patterns: Sequence[str]) -> BoolArray:
    """The GPUs (n,) of nodes that any of the shell patterns names."""
    is_below = np.zeros(len(table.gpu_ids), dtype=np.bool_)
    for node_id, span in table.spans.items():
        is_below[span] = any(fnmatchcase(node_id, pattern) for pattern in patterns)
    return is_below
