"""What the envelope is shown: metered history, bounds and acknowledgements, taken from the image and the contract.

The envelope shares no code with contract, planner or reserve; this file only states facts for it. Windows are judged on
metered power with the contract's full allowances: residual and dip are the tracker's margins, not the envelope's.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.estimate import Estimate, LoadSource
from controller.fleet import Fleet
from controller.modes import Flag
from controller.rings import Rings
from controller.settings import SiteSettings, Stance
from controller.situation import Situation
from controller.tracker import Tracker
from controller.tracker_io import TrackerOutput
from controller.types import (
    BatterySample,
    CeilingLimit,
    Direction,
    EnvelopeBattery,
    EnvelopeLoadBank,
    EnvelopeState,
    EnvelopeView,
    Feeder,
    Following,
    Limit,
    Margin,
    Quality,
    RampLimit,
    RateLimit,
    SiteImage,
    SwingLimit,
    WindowCheck,
    replace,
)
from controller.unheld import Drift

METER_AGE_PERIODS = 3.0  # FAULTS: read t for T for the PCC meter and the battery
VIOLATIONS_MAX = 20  # in 60 s: a violation a planner period for a third of them
RESUMED_FRAC_PER_S = 0.5  # of the smallest row: how fast the windows may move the target after a pause
STEP_SPARE_FRAC = 0.01  # of a row
EDGE_FRAC = 0.001  # of the registered peak, or of the battery: what a meter's last digits are worth


def envelope_view(
    site: SiteSettings,
    now: Situation,
    track: TrackerOutput,
    tracker: Tracker,
    *,
    rings: Rings,
    state: EnvelopeState,
    feeders: tuple[Feeder, ...] = (),
    drift: Drift | None = None,
) -> EnvelopeView:
    """Everything the envelope judges a proposal by; `state` is what it returned last.

    `feeders` are the site's breakers laid on its fleet; `drift` is how far power goes by itself while no battery surely
    holds it.
    """
    image, limits, flags = now.image, now.in_force.limits, now.mode.flags
    is_emergency = now.in_force.exempt_target_w is not None
    load_w = now.estimate.load_w
    if track.aim is not None and track.aim.following is Following.SOFTWARE:
        # The load the follower chose to answer, as far as the battery reaches: the command means the target.
        load_w = track.aim.reference_w + track.g_ref_w
    two_ticks_s = 2.0 * site.tracker_period_s
    step_w = tracker.interval.band_slope_w_per_s * two_ticks_s
    if Flag.RESUMED in flags:  # what moved while nothing ran is not taken back in one step
        step_w = min(step_w, RESUMED_FRAC_PER_S * smallest_row_w(limits) * two_ticks_s)
    meter_s = site.meter.delay_s + site.meter.update_s if site.meter is not None else 0.0
    battery = envelope_battery(site, image, flags)
    is_followed = drift is None or drift.is_followed
    ordered = ordered_w(image, now.estimate, tracker, battery=battery) if is_followed else 0.0
    return EnvelopeView(
        image=believed(image, now.estimate),
        fleet=now.fleet.table,
        acks=now.readings.acks,
        feeders=feeders,
        windows=() if is_emergency else window_checks(limits, rings, image.t_mono_s),
        target_step_w=step_w,
        import_w_max=max(ceiling_w(limits, image.t_mono_s), track.low_w),
        margin_w=now.estimate.margin_w,
        unmanaged_w_max=unmanaged_w(now.fleet, other_w_max=site.other_load_w_max, gpu_peak_w=site.gpu_peak_w)
        + ballast_w_max(site, image, written_w=state.ballast_w),
        load_w=load_w,
        battery=battery,
        drop_safe_target_w=max(track.g_safe_w, tracker.g_ref_w),
        margins=() if track.is_riding_down else _margins(site, track.margins),
        mode=now.mode.mode,
        is_leader=Flag.LEADERSHIP_LOST not in flags,
        is_clock_sane=Flag.CLOCK_STEPPED not in flags,
        is_emergency=is_emergency,
        planner_period_s=site.planner_period_s,
        meter_age_s_max=METER_AGE_PERIODS * site.tracker_period_s + meter_s,
        max_export_w=site.max_export_w,
        violations_max=VIOLATIONS_MAX,
        state=state,
        load_bank=_envelope_load_bank(site, image, flags),
        is_held=is_followed,
        sag_w=ordered + (drift.sag_w if drift is not None else 0.0),
        swell_w=max(0.0, drift.swell_w) if drift is not None else 0.0,
    )


def ordered_w(image: SiteImage, estimate: Estimate, tracker: Tracker, *, battery: EnvelopeBattery | None) -> float:
    """How far the battery that holds the target takes power below what the meter shows, W: on its way, and so spent.

    One that is tripped, in local control or at its limit takes off no more than it still can.
    """
    sample = battery_sample(image)
    if battery is None or sample is None or not battery.is_eligible:
        return 0.0
    most_w = battery.spare_w + max(0.0, -sample.power_w)
    return min(most_w, max(0.0, estimate.grid_w - tracker.g_ref_w))


def _margins(site: SiteSettings, margins: Iterable[Margin]) -> tuple[Margin, ...]:
    """Enforced margins that are gone; a target held at the edge stands now a little inside, now a little outside."""
    energy_j = site.battery.energy_j if site.battery is not None else 0.0
    edge = {"W": -EDGE_FRAC * site.registered_peak_w, "J": -EDGE_FRAC * energy_j}
    gone = tuple(m for m in margins if m.value < edge[m.unit])
    if not gone:
        return ()
    enforced = {
        name
        for c in site.contingencies
        for name, stance in (("power", c.power), ("energy", c.energy))
        if stance is Stance.ENFORCE
    }
    return tuple(m for m in gone if m.name in enforced)


def believed(image: SiteImage, estimate: Estimate) -> SiteImage:
    """The image with the metered power that the estimate stands for: a meter found to lie moves no cap."""
    pcc = image.pcc
    is_meter = estimate.source is LoadSource.METER
    if pcc is None or (is_meter and pcc.value.power_w == estimate.grid_w):
        return image
    quality = pcc.quality if is_meter else max(pcc.quality, Quality.SUSPECT)
    sample = replace(pcc.value, power_w=estimate.grid_w)
    return replace(image, pcc=replace(pcc, value=sample, quality=quality))


def battery_sample(image: SiteImage) -> BatterySample | None:
    """What the battery says, where there is one and it says anything that is not too old."""
    battery = image.battery
    return battery.value if battery is not None and battery.quality is not Quality.MISSING else None


def rings_for(limits: Iterable[Limit]) -> Rings:
    """One ring per metering mean of the plain rows."""
    return Rings(row.mean_s for row in limits if isinstance(row, RampLimit | SwingLimit | RateLimit))


def window_checks(limits: Iterable[Limit], rings: Rings, now_s: float) -> tuple[WindowCheck, ...]:
    """Every unfiltered row on differences of power, each beside the ring of its mean."""
    found: list[WindowCheck] = []
    for row in limits:
        if isinstance(row, RampLimit):
            is_up, is_down = row.direction is not Direction.DOWN, row.direction is not Direction.UP
            ring = rings.at(row.mean_s, now_s)
            found.append(WindowCheck(row.id, row.window_s, _room_w(row), 0.0, _kept_w(row), is_up, is_down, ring))
        elif isinstance(row, SwingLimit) and row.band_hz is None:
            ring = rings.at(row.mean_s, now_s)
            found.append(WindowCheck(row.id, row.window_s, _room_w(row), 0.0, _kept_w(row), True, True, ring))
        elif isinstance(row, RateLimit):
            ring = rings.at(row.mean_s, now_s)
            room_w = row.above_w or row.max_w_per_s * row.mean_s  # what no mean tells from a slope
            found.append(WindowCheck(row.id, row.horizon_s, room_w, row.max_w_per_s, 0.0, True, True, ring))
    return tuple(found)


def _room_w(row: RampLimit | SwingLimit) -> float:
    """The row's allowance, for the next power against past means: a mean lags a steady ramp by half its span."""
    return row.max_w * (1.0 + 0.5 * row.mean_s / row.window_s)


def _kept_w(row: RampLimit | SwingLimit) -> float:
    """What of that no step of caps may use, nor of the row its last hundredth: ripple may be told too small."""
    return _room_w(row) - (1.0 - STEP_SPARE_FRAC) * row.max_w


def ceiling_w(limits: Iterable[Limit], t_s: float) -> float:
    """The lowest ceiling in force at `t_s`; inf without one."""
    return min(
        (row.max_w for row in limits if isinstance(row, CeilingLimit) and row.from_s <= t_s < row.until_s),
        default=float("inf"),
    )


def envelope_battery(site: SiteSettings, image: SiteImage, flags: frozenset[Flag]) -> EnvelopeBattery | None:
    """The battery as its nameplate and its own report bound it; one that does not follow lends nothing."""
    settings, sample = site.battery, battery_sample(image)
    if settings is None or sample is None:
        return None
    is_trusted = Flag.BATTERY_NOT_FOLLOWING not in flags
    stock_j = max(0.0, sample.soc_frac - settings.soc_frac_min) * settings.energy_j
    gives_w = min(sample.discharge_w_max, settings.discharge_w_max) if sample.takes_orders and stock_j > 0.0 else 0.0
    reach_w = max(0.0, sample.power_w) + settings.ramp_w_per_s_max * 2.0 * site.tracker_period_s
    return EnvelopeBattery(
        charge_w_max=min(sample.charge_w_max, settings.charge_w_max),
        discharge_w_max=min(sample.discharge_w_max, settings.discharge_w_max),
        ramp_w_per_s_max=settings.ramp_w_per_s_max,
        supply_w=min(gives_w, reach_w) if is_trusted else 0.0,
        spare_w=max(0.0, gives_w - max(0.0, sample.power_w)) if is_trusted else 0.0,
        deadband_w=settings.deadband_w,
        dwell_s=settings.dwell_s,
        is_eligible=sample.takes_orders,
    )


def _envelope_load_bank(site: SiteSettings, image: SiteImage, flags: frozenset[Flag]) -> EnvelopeLoadBank | None:
    """The load bank as its nameplate and its own report bound it; None where it takes no orders."""
    bank, reading, battery = site.load_bank, image.load_bank, battery_sample(image)
    if bank is None or reading is None or reading.quality is Quality.MISSING or not reading.value.is_remote:
        return None
    is_trusted = battery is not None and Flag.BATTERY_NOT_FOLLOWING not in flags
    return EnvelopeLoadBank(
        power_w_max=max(0.0, min(bank.power_w_max, reading.value.power_w_max)),
        ramp_w_per_s_max=bank.ramp_w_per_s_max,
        relief_w=max(0.0, -battery.power_w) if battery is not None and is_trusted else 0.0,
    )


def ballast_w_max(site: SiteSettings, image: SiteImage, *, written_w: float) -> float:
    """The most a load bank may draw now: what it was told or draws; one that is silent, until its order has lapsed."""
    if site.load_bank is None or image.load_bank is None:
        return 0.0
    if image.load_bank.quality is Quality.MISSING and written_w > 0.0:
        return site.load_bank.power_w_max
    return max(written_w, image.load_bank.value.power_w)


def unmanaged_w(fleet: Fleet, *, other_w_max: float, gpu_peak_w: float) -> float:
    """The most that may be drawn outside our caps: other load, and GPUs that no node has reported."""
    return other_w_max + max(0.0, gpu_peak_w - fleet.peak_w)


def smallest_row_w(limits: Iterable[Limit]) -> float:
    """The tightest ramp or swing row; inf without one."""
    return min((row.max_w for row in limits if isinstance(row, RampLimit | SwingLimit)), default=float("inf"))
