"""How late each node's reports come, by the clocks of their senders, which need not agree with ours or each other.

A report carries when it was taken, on its sender's own monotonic clock. Its arrival less that stamp is what the two
clocks differ by and what the way took; the least of the node's last minutes is the usual way, and what a report takes
beyond it, it is late by. Stamps that jump (another boot, a clock that was stepped) are learnt anew. What was late from
its first report on, or for longer than is remembered, is usual. Pure; times in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from controller.types import NodeId, NodeReport, Reading, frozen, replace

MEMORY_S = 300.0  # of the quickest: two crystals differ by 100 ppm at most, 0.03 s in that time
BUCKET_S = 10.0  # of it, of which one report is kept
LATE_S_MAX = 10.0  # beyond it a clock has jumped: such a link is lost
OLDER_MAX = 5  # reports in a row with older stamps: nothing overtook them, the clock was put back
INTERVAL_GAIN = 0.1  # of each report


@frozen
class Heard:
    """What was last taken at a node. `late_s`: how late it came; `interval_s`: how far its reports are apart.

    A sender that does not stamp is never late, and nobody knows how far its reports are apart (inf).
    """

    reading: Reading[NodeReport]
    late_s: float = 0.0
    interval_s: float = math.inf

    @property
    def taken_s(self) -> float:
        """When it would have come the usual way."""
        return self.reading.t_mono_s - self.late_s


class SenderClocks:
    """One per site; `heard` with the reports of a tick."""

    def __init__(self) -> None:
        self._clocks: dict[NodeId, _SenderClock] = {}

    def heard(self, nodes: Sequence[Reading[NodeReport]]) -> list[Heard]:
        """Of each node what was taken last, which need not be what came last."""
        return [self._clocks.setdefault(r.value.node_id, _SenderClock()).heard(r) for r in nodes]


class _SenderClock:
    """Of one node."""

    __slots__ = ("_boot_id", "_last", "_least_s", "_older", "_quickest", "_stamp_s")

    def __init__(self) -> None:
        self._boot_id = ""
        self._quickest: deque[tuple[float, float]] = deque()  # (since, arrival less stamp), one a bucket
        self._older: set[float] = set()  # stamps since the newest
        self._forget()

    def _forget(self) -> None:
        self._quickest.clear()
        self._older.clear()
        self._last: Heard | None = None
        self._stamp_s, self._least_s = math.nan, math.inf  # the newest; the least of `_quickest`

    def heard(self, reading: Reading[NodeReport]) -> Heard:
        report, last = reading.value, self._last
        if last is not None and last.reading.value is report:
            if last.reading is not reading:  # its quality is another by now
                last = self._last = Heard(reading, last.late_s, last.interval_s)
            return last
        if report.taken_s is None or report.boot_id != self._boot_id:
            self._boot_id = report.boot_id
            self._forget()
        self._last = self._stamped(reading, report.taken_s) if report.taken_s is not None else Heard(reading)
        return self._last

    def _stamped(self, reading: Reading[NodeReport], stamp_s: float) -> Heard:
        apart_s = reading.t_mono_s - stamp_s
        if stamp_s < self._stamp_s:
            self._older.add(stamp_s)
        if len(self._older) >= OLDER_MAX or apart_s - self._least_s > LATE_S_MAX:
            self._forget()
        last, gap_s = self._last, stamp_s - self._stamp_s
        if last is not None and gap_s <= 0.0:  # it was overtaken, or is said again
            return replace(last, reading=replace(last.reading, quality=reading.quality))
        self._older.clear()
        self._stamp_s = stamp_s
        self._remember(reading.t_mono_s, apart_s)
        return Heard(reading, apart_s - self._least_s, self._interval_s(gap_s))

    def _interval_s(self, gap_s: float) -> float:
        """A mean of the gaps between stamps; one report alone has none."""
        if self._last is None:
            return math.inf
        before_s = self._last.interval_s
        return gap_s if math.isinf(before_s) else before_s + INTERVAL_GAIN * (gap_s - before_s)

    def _remember(self, t_s: float, apart_s: float) -> None:
        known = self._quickest
        if not known or t_s - known[-1][0] >= BUCKET_S:
            known.append((t_s, apart_s))
            while known[0][0] < t_s - MEMORY_S:
                known.popleft()
            self._least_s = min(least_s for _, least_s in known)
        elif apart_s < known[-1][1]:
            known[-1] = (known[-1][0], apart_s)
            self._least_s = min(self._least_s, apart_s)
