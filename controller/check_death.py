"""What a controller's death costs, before energisation: who moves, how fast, and what the contract's rows see of it.

Every figure comes from the settings and from what the devices' profiles can be told. What commands tell nodes, battery
and load bank for their end is reckoned here as the controller tells it, and laid on one line of time.
"""

from __future__ import annotations

import math

from controller.allowances import SPENT_FRAC_MIN
from controller.ballast import declared_floor
from controller.parting import AWAY_S, KEPT_FRAC, MOST_FRAC, always_waits, away_s
from controller.settings import BatterySettings, OwnSlope, SiteSettings
from controller.types import Direction, Following, RampLimit, SwingLimit, frozen
from controller.view import smallest_row_w


@frozen
class DeathStep:
    """The largest step of grid power that the controller's death can cause by itself, and why."""

    step_w: float
    words: tuple[str, ...]


def death_step(
    site: SiteSettings, own_slope: OwnSlope | None, *, expiry_s: float | None, bank_slope: OwnSlope | None
) -> DeathStep:
    """Battery and load bank each by themselves, and all who move the same way together."""
    alone_w, alone = _death_step(site, own_slope)
    bank_w, bank = _bank_step(site, bank_slope)
    sum_w, together = _together(site, own_slope, expiry_s=expiry_s, bank_slope=bank_slope)
    return DeathStep(max(alone_w + bank_w, sum_w), (*together, alone, *bank))


def _death_step(site: SiteSettings, own_slope: OwnSlope | None) -> tuple[float, str]:
    """The largest step of grid power that the controller's death can cause by itself, and why."""
    battery = site.battery
    if battery is None:
        return 0.0, "death of the controller: nodes reach their fallback caps in slots, none steps with another"
    if battery.has_own_ramp and battery.following is Following.DEVICE:
        return 0.0, (
            "death of the controller: the battery keeps its frozen target; nodes reach their fallback caps in slots"
        )
    if battery.has_own_ramp:
        return _death_ramp(site, battery, own_slope)
    step_w = max(battery.charge_w_max, battery.discharge_w_max)
    return step_w, f"death of the controller: the battery can only step back, by up to {megawatt(step_w)}"


def _death_ramp(site: SiteSettings, battery: BatterySettings, own_slope: OwnSlope | None) -> tuple[float, str]:
    """A battery that ramps back by itself: a step where it cannot be told a slope as flat as the contract's."""
    rows = _plain_rows(site)
    by_itself = "death of the controller: the battery ramps back by itself"
    in_slots = "; nodes reach their fallback caps in slots"
    if own_slope is None:
        return 0.0, f"{by_itself}, by the word of this file: its profile tells it no slope{in_slots}"
    if not rows:
        return 0.0, by_itself + in_slots
    wanted = min(row.max_w / row.window_s for row in rows)
    flattest = own_slope.nearest(wanted)
    slope = max(flattest, battery.ramp_w_per_s_max) if own_slope.is_shared else flattest
    power_w = max(battery.charge_w_max, battery.discharge_w_max)
    moves = [(min(power_w, slope * row.window_s), row) for row in rows]
    broken = [(moved_w, row) for moved_w, row in moves if moved_w > row.max_w * (1.0 + 1e-9)]
    if not broken:
        return 0.0, f"{by_itself} at {megawatt(slope)}/s{in_slots}"
    step_w, row = max(broken, key=lambda move: (move[0], -move[1].window_s))
    fits_w = min(r.max_w for _, r in broken)
    why = ""
    if own_slope.is_shared:
        why += f" {own_slope.where} is also the slope of set-points, set to {megawatt(slope)}/s to follow with."
    if flattest > wanted * (1.0 + 1e-9):
        why += (
            f" {own_slope.where} goes no slower than {megawatt(flattest)}/s, the contract allows {megawatt(wanted)}/s."
        )
    return step_w, (
        f"{by_itself}, but not slowly enough.{why} Grid power can move by {megawatt(step_w)} within {row.window_s:g} s"
        f" where {row.id} allows {megawatt(row.max_w)}; a limit is broken whenever the battery delivers or takes more"
        f" than {megawatt(fits_w)} as the controller dies. A vendor's own slope or following by the device avoids it"
    )


@frozen
class Away:
    """What becomes of the battery's power without a controller."""

    power_w: float | None = None
    full_s: float | None = None
    words: tuple[str, ...] = ()


def battery_away(site: SiteSettings, own_slope: OwnSlope | None, *, expiry_s: float | None) -> Away:
    """How much battery power is gone in time after death: its timer, then the slope that the contract asks for."""
    battery = site.battery
    if battery is None or battery.following is Following.DEVICE:
        return Away()  # nothing to lose, or a target that stays
    expiry_s = site.ttl_periods * site.planner_period_s if expiry_s is None else expiry_s
    obeys = f"death of the controller: the battery obeys its last command for {expiry_s:g} s"
    if math.isinf(expiry_s):
        words = "death of the controller: the battery obeys its last command until somebody stops it: its profile"
        return Away(words=(f"{words} knows no end of a command",))
    full_w = max(battery.charge_w_max, battery.discharge_w_max)
    if not battery.has_own_ramp:
        return Away(full_w if expiry_s <= AWAY_S else 0.0, expiry_s, (obeys,))
    if own_slope is None:
        return Away(words=(f"{obeys}; how fast it goes back then is the device's own matter",))
    wanted = min((row.max_w / row.window_s for row in _plain_rows(site)), default=battery.ramp_w_per_s_max)
    slope = own_slope.nearest(min(wanted, battery.ramp_w_per_s_max))
    if own_slope.is_shared:
        slope = max(slope, battery.ramp_w_per_s_max)
    full_s, in_time_w = expiry_s + full_w / slope, min(full_w, slope * max(AWAY_S - expiry_s, 0.0))
    words = (
        f"{obeys} and then goes back at {megawatt(slope)}/s at most: up to {megawatt(in_time_w)} are away within"
        f" {AWAY_S:g} s, all of its {megawatt(full_w)} in {full_s:.0f} s"
    )
    if in_time_w < full_w and slope <= wanted * (1.0 + 1e-9):
        words += "; the contract allows no faster way, and what ripple takes off its rows makes it slower yet"
    return Away(in_time_w, full_s, (words,))


def _plain_rows(site: SiteSettings) -> list[RampLimit | SwingLimit]:
    return [r for r in site.contract.limits if isinstance(r, RampLimit | SwingLimit) and not _is_filtered(r)]


def _bank_step(site: SiteSettings, slope: OwnSlope | None) -> tuple[float, tuple[str, ...]]:
    """What the load bank adds to the step of the controller's death, and what it is worth while it lives."""
    bank = site.load_bank
    if bank is None:
        return 0.0, ()
    floor = declared_floor(site)
    worth = (
        f"load bank: {megawatt(bank.power_w_max)} declared; {megawatt(floor.sure_w)} count as load that stays after a"
        f" crash while it is armed, {megawatt(floor.quick_w)} of them for the battery's power too: the bank comes"
        f" {floor.late_s * 1e3:.0f} ms after the drop, and the target may dip by a fifth of a row until then"
    )
    if not bank.has_own_ramp:
        lost = f"death of the controller: a load bank in use drops out at once, by up to {megawatt(bank.power_w_max)}"
        return bank.power_w_max, (worth, lost)
    rows = _plain_rows(site)
    # Bank and battery let go at the same time, so each is told half of what the contract allows.
    wanted = 0.5 * min((row.max_w / row.window_s for row in rows), default=math.inf)
    told = wanted if slope is None else slope.nearest(min(wanted, bank.ramp_w_per_s_max))
    if slope is not None and slope.is_shared:
        told = bank.ramp_w_per_s_max
    if told <= wanted * (1.0 + 1e-9):
        return 0.0, (worth, "death of the controller: a load bank in use lets go at half of the contract's slope")
    step_w = max(min(bank.power_w_max, told * row.window_s) for row in rows)
    lost = (
        f"death of the controller: a load bank in use lets go by up to {megawatt(step_w)} within a window: its profile"
        f" tells it {megawatt(told)}/s, {megawatt(wanted)}/s is wanted"
    )
    return step_w, (worth, lost)


@frozen
class _Move:
    """Power that goes one way from `start_s` on, at one slope (inf: at once), until all of it is gone."""

    start_s: float
    slope_w_per_s: float
    power_w: float

    @property
    def end_s(self) -> float:
        return self.start_s + self.power_w / self.slope_w_per_s

    def gone_w(self, t_s: float) -> float:
        if t_s < self.start_s:
            return 0.0
        return self.power_w if t_s >= self.end_s else (t_s - self.start_s) * self.slope_w_per_s


def _most_w(moves: list[_Move], window_s: float) -> float:
    """The most that goes within any window: it begins or ends where a move does."""
    edges = [t_s for move in moves for t_s in (move.start_s, move.end_s)]
    begins = [*edges, *(t_s - window_s for t_s in edges)]
    return max((sum(m.gone_w(t + window_s) - m.gone_w(t) for m in moves) for t in begins), default=0.0)


def _together(
    site: SiteSettings, own_slope: OwnSlope | None, *, expiry_s: float | None, bank_slope: OwnSlope | None
) -> tuple[float, tuple[str, ...]]:
    """What nodes, battery and bank do to each row together; nothing to say where only nodes move."""
    battery = site.battery
    if battery is None or battery.following is Following.DEVICE or not _plain_rows(site):
        return 0.0, ()
    step_w, broken, left_w = 0.0, "", math.inf
    for direction in (Direction.DOWN, Direction.UP):
        rows = [r for r in _plain_rows(site) if direction_of(r) in (direction, Direction.BOTH)]
        for moves in _moves(site, battery, own_slope, direction, expiry_s=expiry_s, bank_slope=bank_slope):
            for row in rows:
                moved_w = _most_w(moves, row.window_s)
                left_w = min(left_w, row.max_w - (1.0 - SPENT_FRAC_MIN) * moved_w)
                if moved_w > max(step_w, row.max_w * (1.0 + 1e-9)):
                    step_w = moved_w
                    broken = (
                        f"{megawatt(moved_w)} within {row.window_s:g} s where {row.id} allows {megawatt(row.max_w)}"
                    )
    if step_w > 0.0:
        return step_w, (f"death of the controller: nodes and battery together can move grid power by {broken}",)
    words = (
        "death of the controller: who moves grid power the same way does so in turn, battery before nodes, or in parts,"
        " and all keep to the contract's slope; nobody follows the load then, and its ripple may have"
        f" {megawatt(left_w)} beside that (peak to peak, on the row's mean)"
    )
    return 0.0, (words,)


def _moves(
    site: SiteSettings,
    battery: BatterySettings,
    own_slope: OwnSlope | None,
    direction: Direction,
    *,
    expiry_s: float | None,
    bank_slope: OwnSlope | None,
) -> list[list[_Move]]:
    """Who moves `direction`, from the battery's last command on.

    Nodes that wait for the battery; those that do not beside as little as they have room for; and beside all of it, at
    what they leave of the slope.
    """
    is_fall, bank = direction is Direction.DOWN, site.load_bank
    slope = min(row.max_w / row.window_s for row in _plain_rows(site))
    ttl_s = site.ttl_periods * site.planner_period_s
    expiry_s = ttl_s if expiry_s is None else expiry_s
    share = 1.0 if bank is None else 0.5
    battery_w = battery.charge_w_max if is_fall else battery.discharge_w_max
    nodes_w = site.gpu_peak_w - site.gpu_fallback_w if is_fall else site.gpu_fallback_w - site.gpu_idle_w
    reach_w = max(battery_w, bank.power_w_max if bank is not None and is_fall else 0.0)
    # Their last command may be two planner periods older than the battery's.
    nodes_s = ttl_s - 2.0 * site.planner_period_s
    wait_s = away_s(site, reach_w / share, min(slope, battery.ramp_w_per_s_max))

    def others(part: float, most_w: float = math.inf) -> list[_Move]:
        """Battery and bank at `part` of the slope, `most_w` of each."""
        found = [_Move(expiry_s, _told(battery, own_slope, part * share * slope), min(battery_w, share * most_w))]
        if bank is not None and is_fall:
            wanted = min(part * share * slope, bank.ramp_w_per_s_max)
            told = wanted if bank_slope is None else bank_slope.nearest(wanted)
            bank_w = min(bank.power_w_max, share * most_w)
            found.append(_Move(ttl_s, told if bank.has_own_ramp else math.inf, bank_w))
        return [move for move in found if math.isfinite(move.start_s)]

    cases = [[_Move(nodes_s + wait_s, slope, nodes_w), *others(1.0)]]
    row_w = smallest_row_w(site.contract.limits)
    if is_fall and not always_waits(site, slope, row_w):
        for part in (KEPT_FRAC, MOST_FRAC):
            nodes = _Move(nodes_s, (1.0 - part) * slope, nodes_w)
            cases += [[nodes, *others(1.0, part * row_w)], [nodes, *others(part)]]
    return cases


def _told(battery: BatterySettings, own_slope: OwnSlope | None, wanted_w_per_s: float) -> float:
    """The slope that the battery goes back at when it is told `wanted_w_per_s`."""
    if not battery.has_own_ramp:
        return math.inf
    told = min(wanted_w_per_s, battery.ramp_w_per_s_max)
    if own_slope is None:
        return told
    told = own_slope.nearest(told)
    if own_slope.is_shared:
        return max(told, battery.ramp_w_per_s_max)
    return told if told > 0.0 else math.inf  # a register of 0 is no slope at all


def direction_of(limit: RampLimit | SwingLimit) -> Direction:
    return limit.direction if isinstance(limit, RampLimit) else Direction.BOTH


def _is_filtered(limit: RampLimit | SwingLimit) -> bool:
    return isinstance(limit, SwingLimit) and limit.band_hz is not None


def megawatt(power_w: float) -> str:
    """Power in the unit a person would use."""
    if abs(power_w) >= 1e5:
        return f"{power_w / 1e6:.3g} MW"
    return f"{power_w / 1e3:.3g} kW"
