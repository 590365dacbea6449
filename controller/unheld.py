"""How far the site's power may go by itself while nobody surely holds it on its target.

A battery that does not answer, or only now and then, leaves the load's ripple on the meter, and lets go of what it
holds when its last command expires; caps written a moment ago are still on their way. Whoever moves caps then has only
what rows leave beside all that. Holds what was written and for how long it counts; decides nothing. Pure.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from controller.allocate import cap_fall_w
from controller.demand import WINDOW_S, Stretch
from controller.estimate import Estimate
from controller.fleet import Fleet
from controller.glide import STEEPNESS
from controller.modes import Flag
from controller.types import BatteryCommand, BatterySample, FleetAcks, FloatArray, Quality, Reading, frozen

CAPS_S = 0.8  # V100 record: within 1 % of its end 0.53 s after a limit was raised, and the driver takes GPUs in turn
NOBODY_HOLDS = frozenset({Flag.BATTERY_LOST, Flag.BATTERY_NOT_FOLLOWING})
FORGET_S = WINDOW_S + 2.0  # no estimate that caps wait for is older, nor any top of the load
WEAK_S = 60.0  # between two steps of caps: as long as the longest window of a shipped row may be spent
DERATED_FRAC = 0.9  # of what a battery takes when nothing ails it: readings are rounded
GONE_SPARE = 1.5  # a battery may let go at a slope of its own, slower than told


@frozen
class Drift:
    """How far below and above what the meter shows now power may go by itself, W.

    `is_followed`: a battery keeps to its orders, and cannot take all that may go. Then `swell_w` is negative where it
    could give more than may come.
    """

    sag_w: float
    swell_w: float
    is_followed: bool = False


class Unheld:
    """One per site; `commanded` and `wrote` after every write, `drift` once per cycle."""

    def __init__(self, *, charge_w_max: float = 0.0) -> None:
        """`charge_w_max` is the battery's own when nothing ails it, W."""
        self._charge_w_max = charge_w_max
        self._command_s = self._weak_s = -math.inf
        self._command: BatteryCommand | None = None
        self._fleet: Fleet | None = None
        self._caps: deque[tuple[float, FloatArray]] = deque()  # since when they are written

    def commanded(self, now_s: float, command: BatteryCommand) -> None:
        """The battery took this command."""
        self._command_s, self._command = now_s, command

    def wrote(self, now_s: float, fleet: Fleet, caps: FloatArray) -> None:
        """These caps (2, n) passed the envelope."""
        if fleet is not self._fleet:
            self._fleet = fleet
            self._caps.clear()
        self._caps.append((now_s, caps))
        self._forget(now_s - FORGET_S)

    def drift(
        self,
        now_s: float,
        *,
        estimate: Estimate,
        lately: Stretch,
        battery: Reading[BatterySample] | None,
        acks: FleetAcks,
        flags: frozenset[Flag],
        is_unproven: bool = False,
    ) -> Drift | None:
        """None while a battery holds power on its target, and can take what of the load may go.

        `lately` is the range of the site's own load, `acks` what nodes last read back, `flags` are those of the mode.
        `is_unproven`: the battery is held where it stands.
        """
        load_w = estimate.own_load_w
        down_w, up_w = max(0.0, load_w - lately.bottom_w), max(0.0, lately.top_w - load_w)
        led = _led(battery, flags, is_unproven=is_unproven)
        if led is not None and not self._is_weak(now_s, led, lately, down_w=down_w):
            return None
        late_s = CAPS_S + max(0.0, now_s - estimate.t_s)
        falling_w, rising_w = self._under_way_w(now_s - late_s, lately.top_s, acks)
        sag_w, swell_w = down_w + falling_w, up_w + rising_w
        if led is not None:
            takes_w, gives_w = _spare_w(led)
            return Drift(max(0.0, sag_w - takes_w), swell_w - gives_w, is_followed=True)
        held_w = self._held_w(now_s, battery) if battery is not None else 0.0
        return Drift(sag_w + max(0.0, -held_w), swell_w + max(0.0, held_w))

    def _is_weak(self, now_s: float, battery: BatterySample, lately: Stretch, *, down_w: float) -> bool:
        """Derated, and just now or within a window without room for what of the load may go, W."""
        is_derated = battery.charge_w_max < DERATED_FRAC * self._charge_w_max
        is_seen = lately.top_w > 0.0  # by the first plan
        if is_derated and is_seen and down_w > _spare_w(battery)[0]:
            self._weak_s = now_s
        return is_derated and now_s - self._weak_s <= WEAK_S

    def _under_way_w(self, since_s: float, top_s: float, acks: FleetAcks) -> tuple[float, float]:
        """How far the newest caps are below and above those in force since `since_s`, or not read back yet.

        What they rose by since the load was last at its top is not in it, and will be in the next one. Falls have no
        such care: a ceiling waits for them.
        """
        fleet = self._fleet
        if fleet is None or not self._caps:
            return 0.0, 0.0
        now, unread = self._caps[-1][1], list[FloatArray]()
        if acks.caps.shape == now.shape:
            unread = [np.where(acks.is_fresh & np.isnan(acks.fixed_w), acks.caps, now)]
        falls = (cap_fall_w(fleet, caps, now, steepness=STEEPNESS) for caps in self._in_force(since_s) + unread)
        risen_s = min(since_s, top_s - CAPS_S)
        rises = (cap_fall_w(fleet, now, caps, steepness=STEEPNESS) for caps in self._in_force(risen_s) + unread)
        return max(falls), max(rises)

    def _in_force(self, since_s: float) -> list[FloatArray]:
        """The caps at that instant and all since then, the newest last."""
        before = [caps for written_s, caps in self._caps if written_s <= since_s]
        return [*before[-1:], *(caps for written_s, caps in self._caps if written_s > since_s)]

    def _forget(self, before_s: float) -> None:
        while len(self._caps) > 1 and self._caps[1][0] <= before_s:
            self._caps.popleft()

    def _held_w(self, now_s: float, battery: Reading[BatterySample]) -> float:
        """What the battery gives (takes: negative), as far as it may still let go of it."""
        power_w = battery.value.power_w
        if battery.quality is not Quality.MISSING:
            return power_w
        command = self._command
        if command is None or not math.isfinite(power_w):
            return 0.0
        slope = command.expiry_w_per_s or command.ramp_w_per_s
        gone_s = self._command_s + command.ttl_s + GONE_SPARE * abs(power_w) / max(slope, 1.0)
        return power_w if now_s < gone_s else 0.0


def _led(battery: Reading[BatterySample] | None, flags: frozenset[Flag], *, is_unproven: bool) -> BatterySample | None:
    """The battery, where it is there and keeps to its orders."""
    if battery is None or battery.quality is Quality.MISSING or is_unproven or flags & NOBODY_HOLDS:
        return None
    return battery.value if battery.value.takes_orders else None


def _spare_w(battery: BatterySample) -> tuple[float, float]:
    """How much more it can take, and give, than it does now, W."""
    return (
        max(0.0, battery.charge_w_max + battery.power_w),
        max(0.0, battery.discharge_w_max - battery.power_w),
    )
