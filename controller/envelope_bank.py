"""The independent checker of what a load bank is told: the third of the envelopes, with the first one's numbering.

More ballast is more import, less of it is a drop: rises need leave and room under the ceiling, falls stay inside the
windows. Shares no code with planner, reserve or ballast. Pure; never raises; it only narrows what was proposed.
"""

from __future__ import annotations

import math

import numpy as np

from controller import types as t

VIOLATION_WINDOW_S, TTL_PERIODS_MAX = 60.0, 10.0
WATT = 1.0  # a bound met to the watt is met: rounding is no violation
SLACK = 1e-6  # of a ring's step, likewise


def check(view: t.EnvelopeView, proposal: t.SiteCommand, verdict: t.EnvelopeVerdict) -> t.EnvelopeVerdict:
    """`verdict` of the first envelope, with the part of the proposed bank command that may be written now."""
    if proposal.load_bank is None:
        return t.EnvelopeVerdict(verdict.command, verdict.violations, t.replace(verdict.state, ballast_w=0.0))
    found: list[t.Violation] = []
    try:
        command = _narrow(view, proposal, proposal.load_bank, found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        found.append(t.Violation(1, "load_bank", f"cannot be checked: {error!r}"))
        command = None
    times = (verdict.state.violation_times_s + (view.image.t_mono_s,) * len(found))[-view.violations_max - 1 :]
    is_full = len(times) > view.violations_max and times[0] > view.image.t_mono_s - VIOLATION_WINDOW_S
    state = t.replace(
        verdict.state,
        ballast_w=command.setpoint_w if command is not None else 0.0,
        violation_times_s=times,
        is_distrusted=verdict.state.is_distrusted or is_full,
    )
    violations = (*verdict.violations, *found)
    return t.EnvelopeVerdict(t.replace(verdict.command, load_bank=command), violations, state)


def _narrow(
    v: t.EnvelopeView, p: t.SiteCommand, c: t.LoadBankCommand, found: list[t.Violation]
) -> t.LoadBankCommand | None:
    def say(invariant: int, detail: str) -> None:
        found.append(t.Violation(invariant, "load_bank", detail))

    bank, last_w = v.load_bank, v.state.ballast_w
    if (p.epoch, p.seq) <= (v.state.epoch, v.state.seq) or (c.epoch, c.seq) != (p.epoch, p.seq):
        say(9, f"epoch {c.epoch} seq {c.seq} after {v.state.epoch}, {v.state.seq}")
        return None
    if bank is None:
        say(8, "no load bank, or none that takes orders")
        return None
    if not all(map(math.isfinite, (c.setpoint_w, c.ramp_w_per_s, c.expiry_w_per_s, c.ttl_s))):
        say(1, f"{c.setpoint_w} W: the set-point, a slope or the time to live is not a number")
        return None
    wish_w = c.setpoint_w
    for invariant, low_w, high_w in (
        (8, 0.0, bank.power_w_max),
        (6, -math.inf, math.inf if _may_rise(v) else last_w),
        (4, -math.inf, last_w + _room_w(v, bank)),
        (5, min(last_w - _fall_w(v), bank.power_w_max), math.inf),
    ):
        inside_w = float(np.minimum(np.maximum(wish_w, low_w), high_w))
        if not math.isfinite(inside_w):
            say(1, "a bound of the load bank is not a number")
            return None
        if abs(inside_w - wish_w) > WATT:
            say(invariant, f"{wish_w:.0f} W outside {low_w:.0f}..{high_w:.0f} W")
        wish_w = inside_w
    slopes = [min(w, bank.ramp_w_per_s_max) if w > 0.0 else bank.ramp_w_per_s_max for w in _slopes(c)]
    if slopes != list(_slopes(c)):
        say(8, f"slopes {c.ramp_w_per_s}, {c.expiry_w_per_s} W/s")
    ttl_s = c.ttl_s
    if not v.planner_period_s < ttl_s <= TTL_PERIODS_MAX * v.planner_period_s:
        say(9, f"ttl {ttl_s} s")
        ttl_s = (TTL_PERIODS_MAX if ttl_s > v.planner_period_s else 2.0) * v.planner_period_s
    return t.replace(c, setpoint_w=wish_w, ramp_w_per_s=slopes[0], expiry_w_per_s=slopes[1], ttl_s=ttl_s)


def _slopes(c: t.LoadBankCommand) -> tuple[float, float]:
    return c.ramp_w_per_s, c.expiry_w_per_s


def _may_rise(v: t.EnvelopeView) -> bool:
    """Invariants 6 and 12: who leads, and is trusted, in a mode that still holds a target."""
    return v.is_leader and v.mode <= t.Mode.HOLD and not v.state.is_distrusted


def _metered_w(v: t.EnvelopeView) -> float | None:
    """Grid power by a good and fresh reading."""
    pcc = v.image.pcc
    if pcc is None or not pcc.is_good or pcc.age_s(v.image.t_mono_s) > v.meter_age_s_max:
        return None
    return pcc.value.power_w


def _room_w(v: t.EnvelopeView, bank: t.EnvelopeLoadBank) -> float:
    """Invariant 4: how much more fits under the ceiling; none that nobody measures."""
    if math.isinf(v.import_w_max):
        return math.inf
    power_w = _metered_w(v)
    return 0.0 if power_w is None else max(0.0, v.import_w_max - power_w + bank.relief_w)


def _fall_w(v: t.EnvelopeView) -> float:
    """Invariant 5: how much less the windows let through, by brute force, and what the battery makes up for."""
    power_w = _metered_w(v)
    if power_w is None:  # what it should be
        power_w = v.load_w if v.state.target_w is None else v.state.target_w
    low_w = max((_low_w(row) for row in v.windows if row.is_down), default=-math.inf)
    return max(0.0, power_w - low_w) + (v.battery.spare_w if v.battery is not None else 0.0)


def _low_w(row: t.WindowCheck) -> float:
    """The least power that the row lets through, from every entry that lies wholly inside its window."""
    ring = row.ring
    n = max(1, min(len(ring.min_w), 1 + int((row.window_s - ring.head_s) / ring.step_s + SLACK)))
    room_w = np.maximum(row.room_w, row.room_w_per_s * (ring.head_s + ring.step_s * np.arange(n)))
    return float((ring.max_w[:n] - room_w).max())
