"""What the schedule of grid signals says now, held back where a flapping issuer raises too often.

A target or row that tightens is in force at once; one that loosens waits for its turn, and until then the old one
stands. Nothing that is held waives a ramp row. Pure: time comes in with every call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.signal_schedule import Dwell, Schedule, as_strict
from controller.types import GridSignal, replace


class InForce:
    """What the schedule says now, held back where a flapping issuer raises too often."""

    def __init__(self, schedule: Schedule, *, raise_dwell_s: float) -> None:
        self._schedule = schedule
        self._plan: tuple[list[GridSignal], list[GridSignal]] = ([], [])
        self._plan_version = -1
        self._plan_until_s = -math.inf
        self._target_dwell = Dwell(raise_dwell_s)
        self._rows_dwell = Dwell(raise_dwell_s)
        self._target: GridSignal | None = None  # in force when last asked
        self._rows: dict[str, GridSignal] = {}  # in force when last asked
        self._lingering: dict[str, GridSignal] = {}
        self._is_target_held = False

    @property
    def is_holding(self) -> bool:
        """Something looser was asked for and waits."""
        return self._is_target_held or bool(self._lingering)

    def at(self, now_s: float) -> tuple[GridSignal, ...]:
        """Signals in force at `now_s` and scheduled after it, by their start; what waits is in force until its turn."""
        if self._plan_version != self._schedule.version or now_s >= self._plan_until_s:
            self._plan = self._schedule.target_signals(now_s), self._schedule.limit_signals(now_s)
            self._plan_version = self._schedule.version
            self._plan_until_s = self._schedule.next_change_s(now_s)
        targets, rows = self._plan
        signals = [*targets, *rows, *self._held_target(targets, now_s), *self._held_rows(rows, now_s)]
        return tuple(sorted(signals, key=lambda s: (s.from_s, s.kind, s.signal_id)))

    def _held_target(self, targets: Sequence[GridSignal], now_s: float) -> list[GridSignal]:
        """The old target, for as long as a raise has to wait."""
        current = next((s for s in targets if s.from_s <= now_s), None)  # the plan holds nothing that is over
        old = self._target
        self._is_target_held = False
        if old is not None and old.target_w is not None and _target_w(current) > old.target_w:
            next_s = self._target_dwell.next_raise_s(now_s)
            if next_s > now_s:
                self._is_target_held = True
                return [replace(old, until_s=next_s, ramp_exempt=False)]
            self._target_dwell.raised(now_s)
        self._target = current
        return []

    def _held_rows(self, rows: Sequence[GridSignal], now_s: float) -> list[GridSignal]:
        """Withdrawn rows that nothing as strict replaced, for as long as a raise has to wait."""
        current = {s.signal_id: s for s in rows if s.from_s <= now_s}
        limits = [r for s in current.values() for r in s.limits]
        self._lingering = {
            k: s for k, s in self._lingering.items() if now_s < s.until_s and not as_strict(limits, s.limits)
        }
        gone = [s for k, s in self._rows.items() if k not in current and not as_strict(limits, s.limits)]
        self._rows = current
        if gone:
            next_s = self._rows_dwell.next_raise_s(now_s)
            if next_s > now_s:
                self._lingering |= {s.signal_id: replace(s, until_s=next_s, ramp_exempt=False) for s in gone}
            else:
                self._rows_dwell.raised(now_s)
        return list(self._lingering.values())


def _target_w(signal: GridSignal | None) -> float:
    return math.inf if signal is None or signal.target_w is None else signal.target_w
