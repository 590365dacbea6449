"""What a contract means for one site, before energisation: what binds, what the hardware holds, what death costs.

Every figure comes from the settings alone; nothing is measured and no device is asked. `rampart check` prints the
findings, and its exit status is their verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.ballast import declared_floor
from controller.check_death import battery_away, death_step, direction_of, megawatt
from controller.feeders import above
from controller.predict import FREQUENCIES_HZ, Dip, Follower, crash_dip, follower_of, largest_drop_w
from controller.settings import ContingencySettings, OwnSlope, SiteSettings
from controller.types import (
    BandLimit,
    CeilingLimit,
    Direction,
    DroopLimit,
    FloorLimit,
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
    frozen,
    replace,
)


@frozen
class RowFinding:
    """One row in words. `holds` is None where the site's settings cannot tell."""

    id: str
    kind: str
    allows: str
    binds: str
    hardware: str
    holds: bool | None


@frozen
class Proof:
    """One thing that must be true without any controller, with its numbers."""

    name: str
    words: str
    is_proven: bool


@frozen
class CheckFindings:
    """All that `rampart check` has to say."""

    contract: str
    t_eff_s: float | None
    leftover: tuple[tuple[float, float], ...]  # (Hz, |1 - H|)
    rows: tuple[RowFinding, ...]
    proofs: tuple[Proof, ...]
    death_step_w: float
    battery_away_w: float | None  # the most that is back at zero 30 s after the controller's death; None: see notes
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
    away = battery_away(site, own_slope, expiry_s=expiry_s)
    step = death_step(site, own_slope, expiry_s=expiry_s, bank_slope=bank_slope)
    leftover = tuple((f, follower.leftover(f)) for f in FREQUENCIES_HZ) if follower else ()
    return CheckFindings(
        contract=site.contract.name,
        t_eff_s=follower.t_eff_s if follower else None,
        leftover=leftover,
        rows=tuple(_row(limit, site, follower) for limit in site.contract.limits),
        proofs=(_fallback_proof(site), *_feeder_proofs(site), *_reserve_proofs(site)),
        death_step_w=step.step_w,
        battery_away_w=away.power_w,
        battery_away_s=away.full_s,
        notes=(*_notes(site, follower), *away.words, *step.words),
    )


@frozen
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
        allows = f"import up to {megawatt(limit.max_w)}"
        return RowFinding(limit.id, "ceiling", allows, binds, _under_ceiling(limit.max_w, site), True)
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
    direction = {Direction.UP: "rise", Direction.DOWN: "fall", Direction.BOTH: "change"}[direction_of(limit)]
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
        who = "caps and battery" if site.battery is not None else "caps"
        words = f"rises are softened by {who}" if binds.startswith("binds") else "nothing to hold"
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


def _under_ceiling(ceiling_w: float, site: SiteSettings) -> str:
    """What a ceiling leaves the GPUs, by the worst case that the envelope counts."""
    supply_w = site.battery.discharge_w_max if site.battery is not None else 0.0
    room_w = max(0.0, ceiling_w - site.other_load_w_max + supply_w)
    by = f" with the battery's {megawatt(supply_w)}" if supply_w else ""
    if room_w >= site.gpu_peak_w:
        return f"GPUs at full power fit under it{by}"
    return (
        f"held by caps: beside other load of up to {megawatt(site.other_load_w_max)}{by} GPUs are kept to"
        f" {megawatt(room_w)} of {megawatt(site.gpu_peak_w)}, less what measuring leaves open, while it is in force"
    )


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


def _feeder_proofs(site: SiteSettings) -> tuple[Proof, ...]:
    """The same of every breaker and feeder, whatever hangs on those below it."""
    found = []
    for feeder in site.feeders:
        below = [f for f in site.feeders if f is feeder or feeder.name in above(f.name, site.feeders)]
        other_w = sum(f.other_w_max for f in below)
        words = (
            f"GPUs below at fallback {megawatt(feeder.gpu_fallback_w)} + other load up to {megawatt(other_w)}"
            f" = {megawatt(feeder.gpu_fallback_w + other_w)}; it carries {megawatt(feeder.max_w)}"
        )
        is_proven = feeder.gpu_fallback_w + other_w <= feeder.max_w
        found.append(Proof(f"fallback fits feeder {feeder.name}", words, is_proven))
    return tuple(found)


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
