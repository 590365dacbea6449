"""What operators see of the envelope: how often each invariant narrowed a command, and what it said last.

Every violation is counted. The first of an invariant is a log line, then one in ten seconds with how many it stands
for: a planner that the envelope overrules twenty times a second must not fill the log. Decides nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import structlog

from controller.types import Violation
from drivers.metrics import Metrics

SILENCE_S = 10.0  # between two log lines of one invariant
INVARIANTS = {
    1: "finite numbers, known devices",
    2: "a GPU's range, a feeder's limit",
    3: "worst case under the ceiling",
    4: "measured import under the ceiling",
    5: "ramp and swing windows",
    6: "raises need fresh readings, leadership and a good mode",
    7: "raises wait for lowers",
    8: "battery power, energy and export",
    9: "epoch, sequence, time to live",
    10: "service floor",
    11: "one clock write a second",
    14: "crash-safe margins",
}

log = structlog.get_logger("rampart")


class EnvelopeTelemetry:
    """Counts, tells and remembers what the envelope found."""

    def __init__(self) -> None:
        self._count: Counter[int] = Counter()
        self._untold: Counter[int] = Counter()
        self._told_s: dict[int, float] = {}
        self._last: tuple[float, Violation] | None = None

    def observe(self, now_s: float, wall_utc_s: float, violations: Sequence[Violation]) -> None:
        """After every completed cycle; `now_s` is the monotonic time."""
        for violation in violations:
            number = violation.invariant
            self._count[number] += 1
            self._untold[number] += 1
            self._last = (wall_utc_s, violation)
            if now_s - self._told_s.get(number, -math.inf) >= SILENCE_S:
                self._told_s[number] = now_s
                log.warning(
                    "envelope",
                    invariant=number,
                    rule=INVARIANTS.get(number, "?"),
                    subject=violation.subject,
                    found=violation.detail,
                    count=self._untold.pop(number),
                )

    def document(self) -> dict[str, object]:
        """The keys `violations` and `envelope` of the status document."""
        last = None
        if self._last is not None:
            wall_utc_s, found = self._last
            last = {
                "wall_utc_s": wall_utc_s,
                "invariant": found.invariant,
                "rule": INVARIANTS.get(found.invariant, "?"),
                "subject": found.subject,
                "found": found.detail,
            }
        by_invariant = {str(number): count for number, count in sorted(self._count.items())}
        return {"violations": self._count.total(), "envelope": {"by_invariant": by_invariant, "last": last}}

    def set_metrics(self, metrics: Metrics) -> None:
        """`rampart_envelope_violations_count`, for each invariant from the first time it narrowed a command."""
        for number, count in self._count.items():
            metrics.set("rampart_envelope_violations_count", float(count), {"invariant": str(number)})
