"""What one feed's status report says: ramp state, compliance, and the life of a breach.

No I/O and no clock: `now_s` comes in, events come out. A feed is compliant while it draws no more than its issuer
asked; a breach is drawing more than what was promised (the bounded target, after the time it was to be met).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum, unique

from controller.types import FeedTarget, GpuId, NodeReport
from drivers.dsx_payloads import FeedEvent, InfrastructureAction, ShedHint, power

TOLERANCE_FRAC = 0.01  # of the target: a meter of class 0.5 on each side
CRITICAL_FRAC = 0.20  # above the target (DSX Flex 1.7.0)
BREACH_HOLD_S = 5.0  # so long above, or back inside, before it is said
ESCALATE_S = 60.0  # an unresolved breach escalates after it
SETTLED_S = 10.0  # a rise is over when load has grown by less than TOLERANCE_FRAC for so long
HINTS_MAX = 64


@dataclass(frozen=True, slots=True)
class FeedView:
    """One feed as the last update saw it."""

    measured_w: float
    limit_w: float  # lowest active target as asked; inf: none
    is_in_flight: bool
    is_compliant: bool
    event_start_s: float | None


class FeedWatch:
    """Turns measured load and active targets into DSX Flex events."""

    def __init__(self) -> None:
        self._limit_w = math.inf
        self._flight: str | None = None  # "down" or "up"
        self._start_s: float | None = None
        self._peak_w = 0.0
        self._grown_s = 0.0
        self.view = FeedView(0.0, math.inf, False, True, None)

    def update(self, now_s: float, *, measured_w: float, targets: Sequence[FeedTarget]) -> list[FeedEvent]:
        """Events since the last update, in order."""
        active = [t for t in targets if t.is_active]
        limit_w = min((t.asked_w for t in active), default=math.inf)
        followed_w = min((t.applied_w for t in active), default=math.inf)
        events: list[FeedEvent] = []
        if limit_w < self._limit_w and measured_w > followed_w * (1 + TOLERANCE_FRAC):
            self._flight, self._start_s = "down", now_s
            events.append("start_ramp_down")
        elif limit_w > self._limit_w:
            self._flight, self._start_s = "up", now_s
            self._peak_w, self._grown_s = measured_w, now_s
            events.append("start_ramp_up")
        self._limit_w = limit_w
        if self._flight == "down" and measured_w <= followed_w * (1 + TOLERANCE_FRAC):
            self._flight = None
            events.append("end_ramp_down")
        elif self._flight == "up":
            if measured_w > self._peak_w * (1 + TOLERANCE_FRAC):
                self._peak_w, self._grown_s = measured_w, now_s
            if now_s - self._grown_s >= SETTLED_S:
                self._flight = None
                events.append("end_ramp_up")
        if self._flight is None and not active:
            self._start_s = None
        is_compliant = measured_w <= limit_w * (1 + TOLERANCE_FRAC)
        self.view = FeedView(measured_w, limit_w, self._flight is not None, is_compliant, self._start_s)
        return events


@unique
class BreachStatus(StrEnum):
    ACTIVE = "active"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Breach:
    """One breach: the same id from its first alert to its last."""

    breach_id: str
    detected_s: float
    target: FeedTarget
    is_critical: bool
    status: BreachStatus


class BreachWatch:
    """The life of a feed's breach; `new_id` makes its identifier."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._above_since_s: float | None = None
        self._inside_since_s: float | None = None
        self._has_new_failure = False
        self.breach: Breach | None = None
        self.failed: set[str] = set()  # resources that could not be throttled, as enforcement outcomes said

    def enforced(self, *, failed: set[str], reverted: set[str]) -> None:
        """What became of our hints. One that failed is said again at once, with others in its place."""
        self._has_new_failure |= bool(failed - self.failed)
        self.failed = (self.failed | failed) - reverted

    def update(self, now_s: float, *, measured_w: float, targets: Sequence[FeedTarget]) -> Breach | None:
        """The breach if something is to be said about it now, else None."""
        due = [t for t in targets if t.is_active and not t.is_best_effort and t.met_at_s <= now_s]
        target = min(due, key=lambda t: t.applied_w, default=None)
        is_above = target is not None and measured_w > target.applied_w * (1 + TOLERANCE_FRAC)
        if is_above:
            self._inside_since_s = None
            self._above_since_s = now_s if self._above_since_s is None else self._above_since_s
        else:
            self._above_since_s = None
            self._inside_since_s = now_s if self._inside_since_s is None else self._inside_since_s
        if self.breach is not None:
            return self._continue(now_s, measured_w, target)
        if target is None or self._above_since_s is None or now_s - self._above_since_s < BREACH_HOLD_S:
            return None
        is_critical = measured_w > target.applied_w * (1 + CRITICAL_FRAC)
        self.breach = Breach(self._new_id(), self._above_since_s, target, is_critical, BreachStatus.ACTIVE)
        return self.breach

    def _continue(self, now_s: float, measured_w: float, target: FeedTarget | None) -> Breach | None:
        breach = self.breach
        assert breach is not None
        if self._inside_since_s is not None:
            if target is not None and now_s - self._inside_since_s < BREACH_HOLD_S:
                return None
            self.breach = None
            self.failed, self._has_new_failure = set(), False
            return Breach(breach.breach_id, breach.detected_s, breach.target, breach.is_critical, BreachStatus.RESOLVED)
        is_critical = breach.is_critical or (target is not None and measured_w > target.applied_w * (1 + CRITICAL_FRAC))
        is_worse = is_critical and not breach.is_critical
        is_old = breach.status is BreachStatus.ACTIVE and now_s - breach.detected_s >= ESCALATE_S
        if not (is_worse or is_old or self._has_new_failure):
            return None
        self._has_new_failure = False
        self.breach = Breach(
            breach.breach_id, breach.detected_s, target or breach.target, is_critical, BreachStatus.ESCALATED
        )
        return self.breach


def infrastructure_actions(breach: Breach) -> tuple[InfrastructureAction, ...]:
    """Least disruptive first. Cutting feeds or tripping breakers is never our advice: that step is the grid's fear."""
    if breach.status is BreachStatus.RESOLVED:
        return ()
    if breach.status is BreachStatus.ESCALATED and breach.is_critical:
        return ("SHUTDOWN_NODES", "SHUTDOWN_RACKS")
    return ("SHUTDOWN_NODES",)


def shed_hints(
    nodes: Sequence[NodeReport],
    *,
    excess_w: float,
    jobs: Mapping[GpuId, str],
    priorities: Mapping[str, int],
    failed: Set[str] = frozenset(),
) -> tuple[ShedHint, ...]:
    """Which nodes to cap, to what, until the excess is covered.

    Nodes of the least important class first (the most important class on a node counts), within a class those that can
    give most. A node is not capped below what its GPUs' power limits allow. `failed`: nodes that are not asked again.
    """

    def rank(node: NodeReport) -> tuple[int, float, str]:
        classes = [priorities.get(jobs.get(g, ""), 0) for g in node.gpu_ids]
        return max(classes, default=0), -_sheddable_w(node), node.node_id

    hints: list[ShedHint] = []
    left_w = excess_w
    for node in sorted((n for n in nodes if n.node_id not in failed), key=rank):
        give_w = min(left_w, _sheddable_w(node) * node.stands_for)
        if left_w <= 0 or len(hints) >= HINTS_MAX:
            break
        if give_w <= 0:
            continue
        left_w -= give_w
        hints.append(
            ShedHint(
                resource_id=node.node_id,
                resource_type="node",
                action="power_cap",
                priority=len(hints) + 1,
                target_power=power(_draw_w(node) - give_w / node.stands_for),
            )
        )
    return tuple(hints)


def _draw_w(node: NodeReport) -> float:
    return node.other_w + float(sum(p for p in node.power_w.tolist() if math.isfinite(p)))


def _sheddable_w(node: NodeReport) -> float:
    """What the node can give up by GPU power limits alone."""
    pairs = zip(node.power_w.tolist(), node.specs, strict=False)
    return float(sum(max(0.0, p - s.power_limit_w_min) for p, s in pairs if math.isfinite(p)))
