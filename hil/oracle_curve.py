"""The oracle's least loss as a function of final energy: solved where it must be, pinned between solutions elsewhere.

The loss of a linear program is convex in the energy asked for at its end. Between two solved energies it lies under the
chord and over both tangents; where these meet within a tolerance nothing is left to solve. The tangents' value is
given, so that nobody is judged more kindly than by the program itself. Policies of one world end at energies near one
another, and two programs in three need not be solved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from controller.types import frozen
from hil.oracle import OracleAnswer


class Solves(Protocol):
    """Answers for one final energy: `Oracle`, without slack."""

    def solve(self, final_j: float) -> OracleAnswer | None: ...


@frozen
class Least:
    """Least weighted curtailed energy at one final energy, and its change per joule of that energy."""

    lost_j: float
    dual_j_per_j: float


class LeastLoss:
    """The curve of one world's oracle. `tolerance_j` is how far the chord may stand above the tangents."""

    def __init__(self, oracle: Solves, *, tolerance_j: float) -> None:
        self._oracle = oracle
        self._tolerance_j = tolerance_j
        self._solved: dict[float, Least | None] = {}

    def at(self, finals_j: Iterable[float]) -> dict[float, Least | None]:
        """The least loss at each final energy; None where no path ends with so much."""
        asked = sorted(set(finals_j))
        found: dict[float, Least | None] = {}
        if asked:
            found[asked[0]], found[asked[-1]] = self._solve(asked[0]), self._solve(asked[-1])
            self._between(asked, found)
        return found

    def _between(self, asked: list[float], found: dict[float, Least | None]) -> None:
        """Answers for all between the first and the last, whose answers stand."""
        first, last = found[asked[0]], found[asked[-1]]
        inner = asked[1:-1]
        if not inner:
            return
        if first is None:  # where the least energy cannot be reached, more cannot either
            found.update(dict.fromkeys(inner))
            return
        widths: list[float] = []
        for final_j in inner:
            if last is None:
                widths.append(math.inf)
                continue
            found[final_j], width_j = _pinned(final_j, (asked[0], first), (asked[-1], last))
            widths.append(width_j)
        if max(widths) <= self._tolerance_j:
            return
        worst = max(range(len(inner)), key=widths.__getitem__)
        found[inner[worst]] = self._solve(inner[worst])
        self._between(asked[: worst + 2], found)
        self._between(asked[worst + 1 :], found)

    def _solve(self, final_j: float) -> Least | None:
        if final_j not in self._solved:
            answer = self._oracle.solve(final_j)
            self._solved[final_j] = Least(answer.lost_j, answer.dual_j_per_j) if answer is not None else None
        return self._solved[final_j]


def _pinned(final_j: float, low: tuple[float, Least], high: tuple[float, Least]) -> tuple[Least, float]:
    """The tangents' value at `final_j` between two solved energies, and how far the chord stands above it."""
    (low_j, first), (high_j, last) = low, high
    rising = Least(first.lost_j + first.dual_j_per_j * (final_j - low_j), first.dual_j_per_j)
    falling = Least(last.lost_j - last.dual_j_per_j * (high_j - final_j), last.dual_j_per_j)
    least = max(rising, falling, key=lambda value: value.lost_j)
    chord_j = first.lost_j + (last.lost_j - first.lost_j) * (final_j - low_j) / (high_j - low_j)
    return least, chord_j - least.lost_j
