"""What a contract means for one site, before energisation: what binds, what the hardware holds, what death costs.

Every figure comes from the settings alone; nothing is measured and no device is asked. `rampart check` prints the
findings, and its exit status is their verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from controller.ballast import declared_floor
from controller.predict import FREQUENCIES_HZ, Dip, Follower, crash_dip, follower_of, largest_drop_w
from controller.settings import BatterySettings, ContingencySettings, OwnSlope, SiteSettings
from controller.types import (
    BandLimit,
    CeilingLimit,
    Direction,
    DroopLimit,
    FloorLimit,
    Following,
    Limit,
    LimitId,
    LimitStatus,
    OscillationLimit,
    Provenance,
    RampLimit,
    RampReading,
    RateLimit,
    RideThroughLimit,
    SwingLimit,
)

AWAY_S = 30.0  # after a controller's death its battery should be back at zero


@dataclass(frozen=True, slots=True)
class RowFinding:
    """One row in words. `holds` is None where the site's settings cannot tell."""

    id: str
    kind: str
    allows: str
    binds: str
    hardware: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Proof:
    """One thing that must be true without any controller, with its numbers."""

    name: str
    words: str
    is_proven: bool


@dataclass(frozen=True, slots=True)
class CheckFindings:
    """All that `rampart check` has to say."""

    contract: str
    t_eff_s: float | None
    leftover: tuple[tuple[float, float], ...]  # (Hz, |1 - H|)
    rows: tuple[RowFinding, ...]
    proofs: tuple[Proof, ...]
    death_step_w: float
    battery_away_w: float | None  # the most that is back at zero AWAY_S after the controller's death; None: see notes
    battery_away_s: float | None  # how long its full power takes
    notes: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return all(proof.is_proven for proof in self.proofs)


def check_site(
    site: SiteSettings,
    *,
    own_slope: OwnSlope | None = None,
    expiry_s: float | None = None,
    bank_slope: OwnSlope | None = None,
) -> CheckFindings:
    """Explain the site's contract and prove what must hold without a controller.

    `own_slope` is what the battery's registers can be told; without it a battery with a ramp of its own is believed.
    `expiry_s`: how long the battery obeys its last command (inf: for ever); None: as long as a command lives.
    `bank_slope` is the same of the load bank.
    """
    follower = follower_of(site)
    away = _battery_away(site, own_slope, expiry_s=expiry_s)
    death_step_w, death_words = _death_step(site, own_slope)
    bank_step_w, bank_words = _bank_step(site, bank_slope)
    leftover = tuple((f, follower.leftover(f)) for f in FREQUENCIES_HZ) if follower else ()
    return CheckFindings(
        contract=site.contract.name,
        t_eff_s=follower.t_eff_s if follower else None,
        leftover=leftover,
        rows=tuple(_row(limit, site, follower) for limit in site.contract.limits),
        proofs=(_fallback_proof(site), *_reserve_proofs(site)),
        death_step_w=death_step_w + bank_step_w,
        battery_away_w=away.power_w,
        battery_away_s=away.full_s,
        notes=(*_notes(site, follower), *away.words, death_words, *bank_words),
    )


@dataclass(frozen=True, slots=True)
class CrashReading:
    """What a drop of the declared site reads on a trailing mean, from its declared follower."""

    drop_w: float
    slew_per_s: float  # of the block
    dip: Dip


def crash_reading(site: SiteSettings, *, mean_s: float, drop_w: float | None = None) -> CrashReading | None:
    """A drop as the site's meter will show it; None without a battery and a meter. Without `drop_w` the largest."""
    follower = follower_of(site)
    if follower is None:
        return None
    drop_w = _crash_w(site) if drop_w is None else drop_w
    slew = max((c.slew_frac_per_s for c in site.contingencies), default=DEFAULT_SLEW_PER_S)
    dip = crash_dip(follower, drop_w=drop_w, slew_w_per_s=slew * drop_w, mean_s=mean_s)
    if site.load_bank is not None and site.battery is not None:
        # What the battery cannot take is missing until the bank has come on.
        floor = declared_floor(site)
        late_w = min(floor.quick_w, max(0.0, drop_w - site.battery.charge_w_max))
        mean_w = late_w * (min(1.0, floor.late_s / mean_s) if mean_s > 0.0 else 1.0)
        dip = replace(dip, raw_w=dip.raw_w + late_w, mean_w=dip.mean_w + mean_w, change_w=dip.change_w + mean_w)
    return CrashReading(drop_w=drop_w, slew_per_s=slew, dip=dip)


def with_ramp(site: SiteSettings, *, max_w: float, window_s: float, mean_s: float) -> SiteSettings:
    """The site as if the grid asked for one more ramp limit, both ways."""
    source = Provenance(source="asked on the command line", date="", status=LimitStatus.LOCAL)
    row = RampLimit(LimitId("asked"), max_w, window_s, Direction.BOTH, mean_s, source)
    return replace(site, contract=replace(site.contract, limits=(*site.contract.limits, row)))


def megawatt(power_w: float) -> str:
    """Power in the unit a person would use."""
    if abs(power_w) >= 1e5:
        return f"{power_w / 1e6:.3g} MW"
    return f"{power_w / 1e3:.3g} kW"


def _peak_w(site: SiteSettings) -> float:
    return site.gpu_peak_w + site.other_load_w_max


def _crash_w(site: SiteSettings) -> float:
    """All GPUs from full power to what stays on; other load does not drop with them."""
    return max(0.0, site.gpu_peak_w + site.other_load_w - _left_w(site))


def _left_w(site: SiteSettings) -> float:
    """What stays on after every job stops."""
    return site.gpu_idle_w + site.other_load_w + site.guaranteed_floor_w


def _row(limit: Limit, site: SiteSettings, follower: Follower | None) -> RowFinding:
    span_w = _peak_w(site)
    if isinstance(limit, RampLimit | SwingLimit):
        return _window_row(limit, site, follower, span_w=span_w)
    if isinstance(limit, RateLimit):
        allows = (
            f"changes up to {megawatt(limit.above_w)} at any speed, larger ones at {megawatt(limit.max_w_per_s)}/s"
            f" ({limit.mean_s:g} s mean)"
        )
        binds = "binds" if limit.above_w < span_w else f"cannot bind: the site never changes by {megawatt(span_w)}"
        return _with_drop(limit, allows, binds, limit.above_w, limit.mean_s, site, follower)
    if isinstance(limit, BandLimit | OscillationLimit):
        low, high = limit.band_hz
        what = "content" if isinstance(limit, BandLimit) else "the largest spectral line"
        allows = f"{what} between {low:g} and {high:g} Hz up to {megawatt(limit.max_w)} (peak)"
        return RowFinding(limit.id, _kind(limit), allows, "binds", *_ripple(limit.max_w, limit.band_hz, follower))
    if isinstance(limit, CeilingLimit):
        binds = "binds" if limit.max_w < span_w else "cannot bind: above the site's own peak"
        return RowFinding(limit.id, "ceiling", f"import up to {megawatt(limit.max_w)}", binds, "held by caps", True)
    if isinstance(limit, FloorLimit):
        left_w = _left_w(site)
        holds = limit.min_w <= left_w
        words = f"after a full crash {megawatt(left_w)} stay on without a battery"
        return RowFinding(limit.id, "floor", f"import at least {megawatt(limit.min_w)}", "binds", words, holds)
    if isinstance(limit, RideThroughLimit):
        allows = f"stay connected inside the curves, back to {limit.recover_frac:.0%} in {limit.recover_s:g} s"
        words = "a function of UPS, inverters and relays: Rampart reports it and does not disturb it"
        return RowFinding(limit.id, "ride_through", allows, "binds in faults", words, None)
    assert isinstance(limit, DroopLimit)
    allows = f"{megawatt(limit.w_per_hz)}/Hz beyond {limit.deadband_hz:g} Hz, up to {megawatt(limit.max_w)}"
    return RowFinding(limit.id, "droop", allows, "binds when frequency moves", "by battery and caps", None)


def _window_row(
    limit: RampLimit | SwingLimit, site: SiteSettings, follower: Follower | None, *, span_w: float
) -> RowFinding:
    band = limit.band_hz if isinstance(limit, SwingLimit) else None
    if band is not None:
        span = f"peak to peak in {limit.window_s:g} s"
        allows = f"content between {band[0]:g} and {band[1]:g} Hz: {megawatt(limit.max_w)} {span}"
        return RowFinding(limit.id, "swing", allows, "binds", *_ripple(0.5 * limit.max_w, band, follower))
    direction = {Direction.UP: "rise", Direction.DOWN: "fall", Direction.BOTH: "change"}[_direction(limit)]
    slope = limit.max_w / limit.window_s
    minutes = span_w / slope / 60.0
    allows = (
        f"{direction} by up to {megawatt(limit.max_w)} within {limit.window_s:g} s ({limit.mean_s:g} s mean):"
        f" steadily {megawatt(slope)}/s, zero to full load in {minutes:.3g} min"
    )
    if isinstance(limit, RampLimit) and limit.reading is RampReading.ENDPOINT:
        allows += "; the text compares the window's ends only, Rampart keeps every pair"
    binds = "binds" if limit.max_w < span_w else f"cannot bind: the site never changes by {megawatt(limit.max_w)}"
    return _with_drop(limit, allows, binds, limit.max_w, limit.mean_s, site, follower)


def _direction(limit: RampLimit | SwingLimit) -> Direction:
    return limit.direction if isinstance(limit, RampLimit) else Direction.BOTH


def _with_drop(
    limit: Limit,
    allows: str,
    binds: str,
    allowed_w: float,
    mean_s: float,
    site: SiteSettings,
    follower: Follower | None,
) -> RowFinding:
    """Say which sudden drop the follower can hide from this row."""
    kind = _kind(limit)
    if not binds.startswith("binds") or _is_upward(limit):
        words = "rises are softened by caps and battery" if binds.startswith("binds") else "nothing to hold"
        return RowFinding(limit.id, kind, allows, binds, words, True)
    crash_w, reading = _crash_w(site), crash_reading(site, mean_s=mean_s)
    if follower is None or reading is None:
        holds = crash_w <= allowed_w
        words = f"no battery: a drop is covered by nothing; a full crash is {megawatt(crash_w)}"
        return RowFinding(limit.id, kind, allows, binds, words, holds)
    slew, dip = reading.slew_per_s, reading.dip
    most_w = largest_drop_w(
        follower, slew_frac_per_s=slew, mean_s=mean_s, allowed_w=allowed_w, drop_w_max=follower.power_w_max
    )
    words = (
        f"a full crash ({megawatt(crash_w)} at {slew:g}/s) reads {megawatt(dip.mean_w)} of {megawatt(allowed_w)};"
        f" the largest drop that fits an unspent window is {megawatt(most_w)}"
    )
    return RowFinding(limit.id, kind, allows, binds, words, dip.mean_w <= allowed_w)


DEFAULT_SLEW_PER_S = 1.9  # measured on a 50 MW block (NERC white paper 2025)


def _is_upward(limit: Limit) -> bool:
    return isinstance(limit, RampLimit) and limit.direction is Direction.UP


def _kind(limit: Limit) -> str:
    return type(limit).__name__.removesuffix("Limit").lower()


def _ripple(allowed_w: float, band_hz: tuple[float, float], follower: Follower | None) -> tuple[str, bool | None]:
    """The largest load ripple (peak) the follower keeps inside `allowed_w` in the band."""
    if follower is None:
        return f"no battery: load ripple must itself stay below {megawatt(allowed_w)}", None
    inside = [f for f in FREQUENCIES_HZ if band_hz[0] <= f <= band_hz[1]] or [band_hz[0]]
    parts = [f"{megawatt(allowed_w / max(follower.leftover(f), 1e-3))} at {f:g} Hz" for f in inside]
    return "largest load ripple (peak) that plain following keeps inside: " + ", ".join(parts), None


def _fallback_proof(site: SiteSettings) -> Proof:
    """All nodes at their fallback caps at once must fit every ceiling, with no controller, broker or meter."""
    bank_w = site.load_bank.power_w_max if site.load_bank is not None else 0.0
    worst_w = site.gpu_fallback_w + site.other_load_w_max + bank_w
    ceilings = [limit.max_w for limit in site.contract.limits if isinstance(limit, CeilingLimit)]
    least_w = min([site.registered_peak_w, *ceilings])
    words = (
        f"all GPUs at fallback {megawatt(site.gpu_fallback_w)} + other load up to {megawatt(site.other_load_w_max)}"
        + (f" + load bank until its order lapses {megawatt(bank_w)}" if bank_w else "")
        + f" = {megawatt(worst_w)}; lowest ceiling or registered peak {megawatt(least_w)}"
    )
    return Proof("fallback fits without a controller", words, worst_w <= least_w)


def _reserve_proofs(site: SiteSettings) -> tuple[Proof, ...]:
    """An enforced power condition must leave the site some useful load."""
    if not any(_is_power_enforced(c) for c in site.contingencies):
        return ()
    if site.battery is None:
        return (
            Proof(
                "contingencies can be enforced", "power is enforced but there is no battery to take the surplus", False
            ),
        )
    left_w, takes_w = _left_w(site), site.battery.charge_w_max
    floor = declared_floor(site)
    bank = ""
    if site.load_bank is not None:
        bank = f", an armed load bank adds {megawatt(floor.sure_w)} ({megawatt(floor.quick_w)} of it in time)"
    words = (
        f"after a full crash {megawatt(left_w)} stay on and the battery takes {megawatt(takes_w)}{bank}: grid power up"
        f" to {megawatt(left_w + floor.quick_w + takes_w)} survives it; the site's peak is {megawatt(_peak_w(site))}"
    )
    return (Proof("contingencies can be enforced", words, takes_w > 0.0),)


def _is_power_enforced(contingency: ContingencySettings) -> bool:
    return contingency.power.value == "enforce"


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


@dataclass(frozen=True, slots=True)
class _Away:
    """What becomes of the battery's power without a controller."""

    power_w: float | None = None
    full_s: float | None = None
    words: tuple[str, ...] = ()


def _battery_away(site: SiteSettings, own_slope: OwnSlope | None, *, expiry_s: float | None) -> _Away:
    """How much battery power is gone in time after death: its timer, then the slope that the contract asks for."""
    battery = site.battery
    if battery is None or battery.following is Following.DEVICE:
        return _Away()  # nothing to lose, or a target that stays
    expiry_s = site.ttl_periods * site.planner_period_s if expiry_s is None else expiry_s
    obeys = f"death of the controller: the battery obeys its last command for {expiry_s:g} s"
    if math.isinf(expiry_s):
        words = "death of the controller: the battery obeys its last command until somebody stops it: its profile"
        return _Away(words=(f"{words} knows no end of a command",))
    full_w = max(battery.charge_w_max, battery.discharge_w_max)
    if not battery.has_own_ramp:
        return _Away(full_w if expiry_s <= AWAY_S else 0.0, expiry_s, (obeys,))
    if own_slope is None:
        return _Away(words=(f"{obeys}; how fast it goes back then is the device's own matter",))
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
    return _Away(in_time_w, full_s, (words,))


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


def _is_filtered(limit: RampLimit | SwingLimit) -> bool:
    return isinstance(limit, SwingLimit) and limit.band_hz is not None


def _notes(site: SiteSettings, follower: Follower | None) -> Sequence[str]:
    notes: list[str] = []
    if follower is None:
        notes.append(
            "no battery or no meter: caps soften rises and obey ceilings; a sudden drop (a job that stops) cannot be"
            " covered"
        )
    elif follower.leftover(5.0) > 1.0:
        worse = next((f for f in FREQUENCIES_HZ if follower.leftover(f) > 1.0), math.nan)
        notes.append(
            f"software following makes ripple above about {worse:g} Hz larger; Rampart does not follow it, and feeds"
            " detected lines forward one period ahead"
        )
    if not site.contingencies:
        notes.append("no contingency is configured: crash-safe margins are not computed")
    return notes
