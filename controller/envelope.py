"""The independent checker between decision and device: 14 invariants, the last word before any write.

Shares no code with contract, planner or reserve. Pure; never raises; every change it makes is a violation it reports;
where it is in doubt it takes the more conservative command. It invents nothing: it only narrows what was proposed.
Caps are arrays of shape (2, n), clocks in MHz over power limits in W; inf is free; none is written in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from controller import types as t

A = t.FloatArray
Bound = tuple[int, str, t.BoolArray, tuple[t.FloatArray, ...], float, float]

VIOLATION_WINDOW_S, TTL_PERIODS_MAX = 60.0, 10.0
CLOCK_WRITE_S = 1.0  # clock writes every ~50 ms delayed NCCL (nccl 1551)
STEEPNESS = 3.3  # slope of true power over its chord at the top clock: (P - idle) ~ f^3.3 (A100, measured)
SLACK = 1e-6  # relative: a bound met to rounding is met


@dataclass(slots=True)
class _Check:
    """One check under way: the next state grows here while violations are noted."""

    view: t.EnvelopeView
    state: t.EnvelopeState
    found: list[t.Violation]
    window_w: tuple[float, float] = field(init=False)
    may_raise: bool = field(init=False)

    def say(self, invariant: int, subject: str, detail: str) -> None:
        self.found.append(t.Violation(invariant, subject, detail))

    def finds(self, invariant: int, gpus: t.BoolArray | np.bool_, detail: str) -> bool:
        """Whether any GPU is marked; one violation tells of all of them."""
        if gpus.any():
            self.say(invariant, self.view.fleet.gpu_ids[int(gpus.argmax())], f"{int(gpus.sum())} caps {detail}")
        return bool(gpus.any())


def check(view: t.EnvelopeView, proposal: t.SiteCommand) -> t.EnvelopeVerdict:
    """The part of `proposal` that may be written now, with every violation found."""
    c = _Check(view, view.state, [])
    try:
        with np.errstate(all="ignore"):
            command = _narrow(c, proposal)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        c.say(1, "proposal", f"cannot be checked: {error!r}")
        command, c.state = t.SiteCommand(view.state.epoch, view.state.seq, None, ()), view.state
    now_s, most = view.image.t_mono_s, view.violations_max  # invariant 12: only the newest most + 1 times matter
    times = (view.state.violation_times_s + (now_s,) * len(c.found))[-most - 1 :]
    is_distrusted = len(times) > most and times[0] > now_s - VIOLATION_WINDOW_S
    c.state = t.replace(c.state, violation_times_s=times, is_distrusted=is_distrusted)
    return t.EnvelopeVerdict(command, tuple(c.found), c.state)


def _narrow(c: _Check, p: t.SiteCommand) -> t.SiteCommand:
    """Invariant 9 first: newer than the last, and no part of another epoch, or nothing at all is written."""
    if (p.epoch, p.seq) <= (c.state.epoch, c.state.seq) or {x.epoch for x in (p.battery, *p.nodes) if x} - {p.epoch}:
        c.say(9, "command", f"epoch {p.epoch} seq {p.seq} after {c.state.epoch}, {c.state.seq}")
        return t.SiteCommand(p.epoch, p.seq, None, ())
    c.may_raise = _may_raise(c.view)
    c.window_w = _window_bounds(c.view)
    battery = None if p.battery is None else _battery(c, p.battery)
    nodes = _nodes(c, p.nodes) if p.nodes else ()
    c.state = t.replace(c.state, epoch=p.epoch, seq=p.seq, t_s=c.view.image.t_mono_s)
    return t.SiteCommand(p.epoch, p.seq, battery, nodes)


def _may_raise(v: t.EnvelopeView) -> bool:
    """Invariants 4, 6, 12 and 14: whether anything may rise on this site now."""
    is_trusted = v.mode <= t.Mode.DEGRADED and not v.state.is_distrusted
    may = is_trusted and v.is_leader and v.is_clock_sane and all(margin.value >= 0 for margin in v.margins)
    is_fresh = (pcc := v.image.pcc) is None or (pcc.is_good and pcc.age_s(v.image.t_mono_s) <= v.meter_age_s_max)
    return may and is_fresh and (pcc is None or pcc.value.power_w <= v.import_w_max * (1 + SLACK))


def _ttl_s(c: _Check, ttl_s: float, subject: str) -> float:
    """Invariant 9: in (T, 10 T]."""
    period_s = c.view.planner_period_s
    if not period_s < ttl_s <= TTL_PERIODS_MAX * period_s:
        c.say(9, subject, f"ttl {ttl_s} s")
        ttl_s = (TTL_PERIODS_MAX if ttl_s > period_s else 2.0) * period_s
    return ttl_s


def _window_bounds(v: t.EnvelopeView, *, is_step: bool = False) -> tuple[float, float]:
    """Invariant 5: what the next grid power may be, from every entry of every window, by brute force."""
    low, high = np.float64(-np.inf), np.float64(np.inf)
    for row in v.windows:
        ring, kept_w = row.ring, row.kept_w if is_step else 0.0
        n = max(1, min(len(ring.min_w), 1 + int((row.window_s - ring.head_s) / ring.step_s + SLACK)))
        room = np.maximum(row.room_w - kept_w, row.room_w_per_s * (ring.head_s + ring.step_s * np.arange(n)))
        high = np.minimum(high, (ring.min_w[:n] + room).min()) if row.is_up else high
        low = np.maximum(low, (ring.max_w[:n] - room).max()) if row.is_down else low
    return float(np.minimum(low, high)), float(np.maximum(low, high))  # broken already: between them is least harm


def _battery(c: _Check, command: t.BatteryCommand) -> t.BatteryCommand | None:
    """Narrow the grid target that the command means, then the command itself; None where it cannot be understood."""
    v, b, is_device = c.view, c.view.battery, command.following is t.Following.DEVICE
    if b is None or not b.is_eligible:
        c.say(8, "battery", "no battery, or deadband or dwell exceeds the residual budget")
        return None
    target_w = _target(c, command.reference_w if is_device else v.load_w - command.reference_w)
    reference_w = _within_device(c, b, target_w if is_device else v.load_w - target_w, is_device)
    ramp = float(np.minimum(command.ramp_w_per_s if command.ramp_w_per_s > 0 else np.inf, b.ramp_w_per_s_max))
    if not all(map(math.isfinite, (command.reference_w, reference_w, ramp, command.expiry_w_per_s or 0.0))):
        c.say(1, "battery", f"{command.reference_w} W: the reference, a slope, or what bounds it is not a number")
        return None
    if ramp != command.ramp_w_per_s:
        c.say(8, "battery", f"ramp {command.ramp_w_per_s} W/s")
    since_s = c.state.reference_t_s if reference_w == c.state.reference_w else v.image.t_mono_s
    c.state = t.replace(c.state, target_w=target_w, reference_w=reference_w, reference_t_s=since_s)
    return t.replace(command, reference_w=reference_w, ramp_w_per_s=ramp, ttl_s=_ttl_s(c, command.ttl_s, "battery"))


def _target(c: _Check, w: float) -> float:
    """Invariants 4, 5, 6 and 14 on the grid target: upper bounds, then the windows, which alone bound the fall."""
    v, pcc, step_w = c.view, c.view.image.pcc, c.view.target_step_w
    last_w = c.state.target_w if c.state.target_w is not None else pcc.value.power_w if pcc else v.load_w
    bounds = [(4, v.import_w_max), (14, max(last_w, v.drop_safe_target_w))]
    # Fallback and release let go of the battery, inside the windows.
    bounds += [(6, last_w)] if not c.may_raise and v.mode <= t.Mode.HOLD else []
    for invariant, bound_w in bounds:
        if not w <= bound_w + SLACK * abs(bound_w):
            c.say(invariant, "target", f"{w:.0f} W above {bound_w:.0f} W")
            w = bound_w
    low_w, high_w = sorted((np.maximum(c.window_w[0], last_w - step_w), np.minimum(c.window_w[1], last_w + step_w)))
    inside_w = float(np.minimum(np.maximum(w, -np.inf if v.is_emergency else low_w), high_w))
    if abs(inside_w - w) > SLACK * max(abs(w), 1.0):
        c.say(5, "target", f"{w:.0f} W outside {low_w:.0f}..{high_w:.0f} W")
    return inside_w


def _within_device(c: _Check, b: t.EnvelopeBattery, wish_w: float, is_device: bool) -> float:
    """Invariant 8: the battery's power and energy, no export beyond the contract, its own deadband and dwell.

    A limit that is no number makes none of what it bounds (`np`, not `min`): the command is not sent.
    """
    v, most_w = c.view, np.minimum(np.maximum(b.discharge_w_max, 0.0), c.view.load_w + c.view.max_export_w)
    least_w = -v.max_export_w if is_device else -np.maximum(b.charge_w_max, 0.0)
    w = float(np.maximum(wish_w if is_device else np.minimum(wish_w, most_w), least_w))
    if abs(w - wish_w) > SLACK * max(abs(wish_w), 1.0):
        c.say(8, "battery", f"{wish_w:.0f} W beyond {-b.charge_w_max:.0f}..{most_w:.0f} W or exporting")
    last_w = w if c.state.reference_w is None or v.is_emergency else c.state.reference_w
    return last_w if abs(w - last_w) < b.deadband_w or v.image.t_mono_s - c.state.reference_t_s < b.dwell_s else w


def _nodes(c: _Check, nodes: tuple[t.NodeCommand, ...]) -> tuple[t.NodeCommand, ...]:
    """Every bound narrows the same caps and the least wins: room that one bound takes is never given to others.

    A node that is not asked keeps its caps. Of a fall its own part is left to it, and not put on who is asked now: that
    part depends on what is in force alone, so that what has come down to a bound stays when it is checked again.
    """
    v, f, acks, now_s = c.view, c.view.fleet, c.view.acks, c.view.image.t_mono_s
    acked, never_s = np.where(acks.caps < f.cap_max, acks.caps, np.inf), np.full(len(f.gpu_ids), -np.inf)
    if c.state.gpu_ids is not f.gpu_ids:  # another fleet: what was read back is what is in force
        c.state = t.replace(c.state, gpu_ids=f.gpu_ids, caps=acked, clock_written_s=never_s)
    last = c.state.caps
    known, asked, released, is_asked = _parsed(c, nodes)
    caps = _held(c, _clamped(c, asked), ~released & ~(acks.is_fresh & c.may_raise), 6, "raised without leave")
    may_write = now_s - c.state.clock_written_s >= CLOCK_WRITE_S
    early = ~may_write & ~released & (caps[0] != last[0])
    if c.finds(11, early, "with a second clock write within a second"):
        caps = np.where(early, (last[0], caps[1]), caps)
    movable, final, last_w = may_write & np.isnan(acks.fixed_w) & ~released, caps, _draw_w(v, last)
    still_w = _draw_w(v, np.maximum.reduce((caps, last, acked)))
    for invariant, name, among, floors, aim_w, hard_w in _bounds(c, caps):
        narrowed, fall_w = caps, max(0.0, last_w[among].sum() - aim_w)
        if not still_w[among].sum() <= hard_w + SLACK * abs(hard_w):
            narrowed = _held(c, narrowed, among & ~released, 7, f"raised before {name} saw lowers acknowledged")
        for floor in floors:
            room_w = (last_w - _draw_w(v, np.stack((np.minimum(np.ceil(floor), last[0]), last[1])))) * (among & movable)
            later_w = np.fmin(fall_w / room_w.sum(), 1.0) * room_w[~is_asked].sum()
            if not (total_w := _draw_w(v, narrowed)[among].sum()) <= aim_w + later_w + SLACK * abs(aim_w):
                c.say(invariant, name, f"worst case {total_w:.0f} W above {aim_w:.0f} W")
                narrowed = _lowered(v, narrowed, among & movable & is_asked, total_w - aim_w - later_w, floor)
        final = np.minimum(final, narrowed)
    final = np.where(is_asked, final, last)
    written_s = np.where(final[0] != last[0], now_s, c.state.clock_written_s)
    c.state = t.replace(c.state, caps=final, clock_written_s=written_s)
    return tuple(_rebuilt(c, node, final, (final != asked).any(axis=0)) for node in known)


def _parsed(c: _Check, nodes: tuple[t.NodeCommand, ...]) -> tuple[list[t.NodeCommand], A, t.BoolArray, t.BoolArray]:
    """Invariant 1: commands that are understood whole; a GPU not named keeps its last caps; NaN marks what is unusable.

    A node whose command is not understood gets none: it keeps its last until that expires, and then falls back.
    """
    f, known, may_release = c.view.fleet, list[t.NodeCommand](), c.view.mode is t.Mode.RELEASE
    caps, (released, is_asked) = c.state.caps.copy(), np.zeros((2, len(f.gpu_ids)), bool)
    for node in nodes:
        mine, is_number = f.spans.get(node.node_id), all(map(math.isfinite, node.parting))
        if mine is None or not (is_number and {cap.gpu_id for cap in node.caps} <= set(f.gpu_ids[mine])):
            c.say(1, node.node_id, "unknown node or GPU, or a slot, slope or ceiling that is no number")
            continue
        known.append(t.replace(node, caps=()) if node.is_release else node)  # caps beside a release mean nothing
        is_asked[mine] = True
        for cap in node.caps:
            # An infinite number becomes NaN: only None is free. Another node may name the same GPU: its own place.
            wish = [np.inf if x is None else x + 0 * x for x in (cap.clock_mhz, cap.power_limit_w)]
            caps[:, f.gpu_ids.index(cap.gpu_id, mine.start, mine.stop)] = wish
        if node.is_release:  # originals come back by command of an operator only
            caps[:, mine], released[mine] = np.inf if may_release else np.nan, may_release
    return known, np.where(caps == f.cap_max, np.inf, caps), released, is_asked


def _clamped(c: _Check, asked: t.FloatArray) -> t.FloatArray:
    """Invariants 1, 2 and 10: a number, within the GPU's range, no fall below the service floor."""
    f, last = c.view.fleet, c.state.caps
    c.finds(1, np.isnan(asked).any(axis=0), "that are no numbers or no leave to release")
    caps = np.maximum(np.where(np.isnan(asked), last, asked), f.cap_min)
    caps = np.where(caps > f.cap_max, np.inf, caps)
    c.finds(2, (np.isfinite(asked) & (caps != asked)).any(axis=0), "out of the GPU's range")
    floor = -np.inf if c.view.is_emergency else np.minimum(np.ceil(f.floor_mhz), last[0])
    c.finds(10, caps[0] < floor, "below the service floor")
    return np.stack((np.maximum(caps[0], floor), caps[1]))


def _held(c: _Check, caps: t.FloatArray, among: t.BoolArray, invariant: int, why: str) -> t.FloatArray:
    """`caps` with every raise of `among` taken back."""
    rises = among & (caps > c.state.caps).any(axis=0)
    return np.where(rises, np.minimum(caps, c.state.caps), caps) if c.finds(invariant, rises, why) else caps


def _draw_w(v: t.EnvelopeView, caps: t.FloatArray) -> t.FloatArray:
    """The most each GPU can draw under `caps`, times what it stands for; fixed where commands do not count."""
    f, fixed_w = v.fleet, v.acks.fixed_w
    share = np.clip(caps[0] / f.cap_max[0], 0.0, 1.0) ** f.power_exponent
    bound_w = np.minimum(np.clip(caps[1], 0.0, f.peak_w), f.idle_w + (f.peak_w - f.idle_w) * share)
    return f.stands_for * np.where(np.isnan(fixed_w), bound_w, fixed_w)


def _lowered(v: t.EnvelopeView, caps: A, among: t.BoolArray, excess_w: float, floor_mhz: A) -> A:
    """Caps of `among` lowered by one share of their room above `floor_mhz`, until `excess_w` is gone.

    Where a power limit is in force it binds: that is lowered. A clock would have to fall below the limit to count, and
    with it far below what is drawn.
    """
    f, worst_w, floor = v.fleet, _draw_w(v, caps), np.minimum(np.ceil(floor_mhz), caps[0])
    room_w = worst_w - _draw_w(v, np.stack((floor, caps[1])))
    aim_w = (worst_w - room_w * np.minimum(excess_w / room_w[among].sum(), 1.0)) / f.stands_for  # no room: all of it
    aim = np.maximum((aim_w - f.idle_w) / np.maximum(f.peak_w - f.idle_w, 1.0), 0.0)
    clock = np.maximum(np.floor(f.cap_max[0] * aim ** (1.0 / f.power_exponent)), floor)
    lower = np.where(np.isfinite(caps[1]) & (aim_w >= f.cap_min[1]), (caps[0], np.floor(aim_w)), (clock, caps[1]))
    return np.where(among, np.minimum(lower, caps), caps)


def _bounds(c: _Check, caps: t.FloatArray) -> list[Bound]:
    """Invariants 2 to 5 on caps: number, name, GPUs, clock floors, what to come down to, what raises must fit."""
    v, f, pcc, last_w = c.view, c.view.fleet, c.view.image.pcc, _draw_w(c.view, c.state.caps)
    supply_w, spare_w = (v.battery.supply_w, v.battery.spare_w) if v.battery else (0.0, 0.0)
    both, power_w = (f.floor_mhz, f.cap_min[0]), np.nan if pcc is None else pcc.value.power_w
    every, floors = np.ones(len(f.gpu_ids), bool), both[: 1 + v.is_emergency]
    rows: list[Bound] = [(2, b.name, b.is_below, both, b.room_w, b.room_w) for b in v.feeders]
    hard_w = v.import_w_max - v.margin_w - v.unmanaged_w_max + supply_w
    low_w, high_w = _window_bounds(v, is_step=True)
    fall_w = np.inf if v.is_emergency or pcc is None else max(0.0, power_w - v.sag_w - low_w) / STEEPNESS
    rows.append((3, "site", every, floors, max(hard_w, last_w.sum() - fall_w), hard_w))
    if (over_w := power_w - v.import_w_max) > 0:  # what the battery can still add need not come off the caps
        rows.append((4, "site", every, floors, last_w.sum() - min(fall_w, max(0.0, over_w - spare_w)), np.inf))
    if not (v.battery and v.is_held) and pcc is not None:  # where only caps soften a rise
        room_w = max(0.0, high_w - power_w - v.swell_w) / STEEPNESS
        rows.append((5, "rise", up := _draw_w(v, caps) > last_w, (c.state.caps[0],), last_w[up].sum() + room_w, np.inf))
    return rows


def _rebuilt(c: _Check, node: t.NodeCommand, final: t.FloatArray, is_changed: t.BoolArray) -> t.NodeCommand:
    f, mine, ttl_s = c.view.fleet, c.view.fleet.spans[node.node_id], _ttl_s(c, node.ttl_s, node.node_id)
    node = node if ttl_s == node.ttl_s else t.replace(node, ttl_s=ttl_s)
    if not is_changed[mine].any():
        return node
    found = zip(f.gpu_ids[mine], *final[:, mine].tolist(), strict=True)
    caps = tuple(t.GpuCap(g, None if x == np.inf else int(x), None if w == np.inf else w) for g, x, w in found)
    return t.replace(node, caps=caps, is_release=False)
