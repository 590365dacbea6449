"""The load bank as a resource: what it is worth, when it is worth nothing, and what it is told."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from controller.ballast import NO_FLOOR, Ballast, Floor, declared_floor
from controller.estimate_bank import BankHistory
from controller.reserve import Contingency, ReserveRow, late_dip_w
from controller.settings import LoadBankSettings, SiteSettings
from controller.types import (
    EnvelopeState,
    LimitId,
    LoadBankCommand,
    LoadBankSample,
    LoadBankState,
    Mode,
    Quality,
    Reading,
    SiteImage,
    Stamp,
)
from tests.tracker_kit import site_of as tracker_site

MEGA = 1e6
BANK = LoadBankSettings(
    name="load_bank",
    power_w_max=10 * MEGA,
    lag_s=0.1,
    ramp_w_per_s_max=100 * MEGA,
    has_own_ramp=True,
    step_w=0.0,
    energy_j=math.inf,
    recovery_w=0.0,
)
READY = LoadBankSample(0.0, 10 * MEGA, LoadBankState.RUNNING, is_remote=True, setpoint_w=0.0, reversion_s_left=5.0)
FALL = 0.3 * MEGA


def site(**changes: Any) -> SiteSettings:
    return replace(tracker_site(), load_bank=replace(BANK, **changes))


class Interval:
    contingency_slope_w_per_s = slope_down_w_per_s = slope_up_w_per_s = FALL


class FixedTracker:
    """20 MW above what a crash leaves, and a slope of 0.3 MW/s either way."""

    interval = Interval()
    g_ref_w = 60 * MEGA


TRACKER: Any = FixedTracker()


def image_with(now_s: float, reading: Reading[LoadBankSample] | None) -> SiteImage:
    return SiteImage(now_s, 0.0, 0, None, None, {}, (), (), is_grid_link_up=True, load_bank=reading)


class Rig:
    """A bank in memory, seen and told twenty times a second."""

    def __init__(self, settings: SiteSettings) -> None:
        self.site = settings
        self.ballast = Ballast(settings)
        self.now_s = 100.0
        self.sample = READY
        self.quality = Quality.GOOD
        self.written_w = 0.0

    def image(self) -> SiteImage:
        return image_with(self.now_s, Reading(self.sample, self.now_s, self.quality, "load_bank"))

    def see(self, *, may_draw: bool = True) -> Floor:
        self.now_s += 0.05
        limits = self.site.contract.limits
        return self.ballast.see(self.image(), tracker=TRACKER, limits=limits, left_w=40 * MEGA, may_draw=may_draw)

    def told(self, setpoint_w: float = 0.0) -> None:
        self.ballast.acknowledged(self.now_s, LoadBankCommand(setpoint_w, 1e8, 1e5, 1, 1, 5.0))


def armed(**changes: Any) -> Rig:
    rig = Rig(site(**changes))
    rig.see()
    rig.told()
    return rig


def test_a_bank_counts_once_it_acknowledged_and_no_longer_than_that() -> None:
    """Present alone is nothing; a command read back arms it; a planner period without one disarms it."""
    rig = Rig(site())
    assert rig.see() == NO_FLOOR and "acknowledged no command" in rig.ballast.why_not
    rig.told()
    assert rig.see().sure_w > 9 * MEGA and rig.ballast.why_not == ""
    rig.now_s += 1.1
    assert rig.see() == NO_FLOOR


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": LoadBankState.FAULT}, "fault"),
        ({"state": LoadBankState.OFF}, "off"),
        ({"is_remote": False}, "local control"),
        ({"reversion_s_left": 0.0}, "timer does not run"),
    ],
)
def test_what_is_wrong_with_it_is_said_and_it_counts_for_nothing(change: dict[str, Any], says: str) -> None:
    rig = armed()
    assert rig.see() != NO_FLOOR
    rig.sample = replace(READY, **change)
    assert rig.see() == NO_FLOOR and says in rig.ballast.why_not


@pytest.mark.parametrize("quality", [Quality.STALE, Quality.SUSPECT, Quality.MISSING])
def test_only_a_good_reading_arms(quality: Quality) -> None:
    rig = armed()
    rig.quality = quality
    assert rig.see() == NO_FLOOR and quality.name.lower() in rig.ballast.why_not


def test_a_controller_that_may_not_order_has_no_floor() -> None:
    """Not the leader, or in a mode that lets go of the target."""
    rig = armed()
    assert rig.see(may_draw=False) == NO_FLOOR and "not in a mode" in rig.ballast.why_not
    assert rig.see() != NO_FLOOR


def test_what_it_reports_bounds_what_it_is_worth() -> None:
    """Half of its steps out of service: half of it counts."""
    rig = armed()
    whole = rig.see()
    rig.sample = replace(READY, power_w_max=5 * MEGA)
    assert rig.see().sure_w < 0.52 * whole.sure_w


def test_a_deaf_bank_loses_its_worth_and_gets_it_back_by_obeying() -> None:
    """Told 5 MW it draws nothing for a second beyond its lag: no floor, until it drew what it was told for 3 s."""
    rig = armed()
    rig.told(5 * MEGA)
    for _ in range(40):
        rig.see()
        rig.told(5 * MEGA)
    assert rig.ballast.is_disobeying and rig.see() == NO_FLOOR
    rig.told(0.0)
    for _ in range(100):
        rig.see()
        rig.told(0.0)
    assert rig.see() == NO_FLOOR, "drawing nothing when told nothing proves nothing"
    rig.sample = replace(READY, power_w=5 * MEGA)
    for _ in range(80):
        rig.told(5 * MEGA)
        rig.see()
    assert not rig.ballast.is_disobeying and rig.see() != NO_FLOOR


def test_a_bank_that_obeys_with_its_lag_is_never_doubted() -> None:
    rig = armed()
    power_w = 0.0
    for k in range(200):
        goal_w = 8 * MEGA if (k // 40) % 2 else 0.0
        rig.told(goal_w)
        power_w += (goal_w - power_w) * (1.0 - math.exp(-0.05 / 0.1))
        rig.sample = replace(READY, power_w=power_w)
        rig.see()
        assert not rig.ballast.is_disobeying


def test_a_hot_bank_counts_for_what_it_can_hold_until_the_target_is_down() -> None:
    """20 MW of surplus come down at 0.3 MW/s in 67 s: 200 MJ carry 3 MW through it."""
    rig = armed(energy_j=200e6)
    assert rig.see().sure_w == pytest.approx(3 * MEGA, rel=0.05)
    rig.sample = replace(READY, energy_j_left=100e6)
    assert rig.see().sure_w == pytest.approx(1.5 * MEGA, rel=0.1)


def test_heat_is_counted_where_the_bank_does_not_tell() -> None:
    rig = armed(energy_j=200e6)
    cold_w = rig.see().sure_w
    rig.sample = replace(READY, power_w=10 * MEGA)
    for _ in range(200):  # 10 s at 10 MW: half of it
        rig.told(10 * MEGA)
        rig.see()
    assert rig.see().sure_w < 0.55 * cold_w


def test_a_late_bank_is_worth_less_for_the_batterys_power() -> None:
    """A row of 5 MW on means of a second forgives a fifth: 1 MW for a second, or 4 MW for a quarter."""
    fast, slow = declared_floor(site(lag_s=0.02)), declared_floor(site(lag_s=2.0))
    assert fast.late_s < slow.late_s and fast.quick_w > 4 * slow.quick_w
    assert slow.quick_w == pytest.approx(1 * MEGA) and slow.sure_w > 9 * MEGA - 1 * MEGA


def test_rows_see_what_comes_late() -> None:
    """On its own mean the length counts; without one, and filtered, the depth."""
    late = Contingency("full_site", 60 * MEGA, 20 * MEGA, 0.0, 1.0, late_w=4 * MEGA, late_s=0.25)
    assert late_dip_w(ReserveRow(LimitId("a"), 5e6, 15.0, 1.0, False, 1.0), late) == pytest.approx(1 * MEGA)
    assert late_dip_w(ReserveRow(LimitId("b"), 5e6, 5.0, 0.0, False, 1.0), late) == pytest.approx(4 * MEGA)
    assert late_dip_w(ReserveRow(LimitId("c"), 5e6, 5.0, 0.0, True, 1.0), late) == pytest.approx(4.64 * MEGA)
    assert late_dip_w(ReserveRow(LimitId("a"), 5e6, 15.0, 1.0, False, 1.0), replace(late, late_w=0.0)) == 0.0


def test_no_bank_no_floor() -> None:
    assert declared_floor(tracker_site()) == NO_FLOOR
    ballast = Ballast(tracker_site())
    seen = ballast.see(image_with(1.0, None), tracker=TRACKER, limits=(), left_w=0.0, may_draw=True)
    assert seen == NO_FLOOR and ballast.why_not == ""


def test_the_meters_instant_is_between_two_readings_of_the_bank() -> None:
    """A straight line between them, the newest after it, nothing once it is lost."""
    history = BankHistory()
    assert history.at_w(5.0) == 0.0
    for t_s, power_w in ((10.0, 0.0), (10.1, 2 * MEGA)):
        history.take(Reading(replace(READY, power_w=power_w), t_s, Quality.GOOD, "load_bank"))
    assert history.at_w(10.05) == pytest.approx(1 * MEGA)
    assert history.at_w(10.2) == 2 * MEGA and history.at_w(9.0) == 0.0
    history.take(Reading(READY, 10.2, Quality.MISSING, "load_bank"))
    assert history.at_w(10.2) == 0.0


# ------------------------------------------------------------------------------------------------ what it is told


class Track:
    """The tracker's word on one tick, as far as the bank looks at it."""

    def __init__(self, g_ref_w: float, ride_w: float, *, has_aim: bool = True, cover_w: float = 0.0) -> None:
        self.g_ref_w, self.ride_w, self.load_w_max = g_ref_w, ride_w, g_ref_w + cover_w
        self.aim = object() if has_aim else None


def ordered(
    rig: Rig, track: Track, load_w: float, *, planned_w: float = 0.0, mode: Mode = Mode.NORMAL, may_draw: bool = True
) -> LoadBankCommand | None:
    rig.see(may_draw=may_draw)
    rig.told()
    now: Any = SimpleNamespace(
        now_s=rig.image().t_mono_s,
        estimate=SimpleNamespace(own_load_w=load_w),
        mode=SimpleNamespace(mode=mode),
        written=EnvelopeState(ballast_w=rig.written_w),
    )
    command = rig.ballast.order(
        now,
        tracker=TRACKER,
        track=track,  # type: ignore[arg-type]
        planned_w=planned_w,
        stamp=Stamp(3, 7, 5.0),
        fall_w_per_s=FALL,
    )
    rig.written_w = command.setpoint_w if command is not None else 0.0
    return command


def setpoint(command: LoadBankCommand | None) -> float:
    assert command is not None and (command.epoch, command.seq, command.ttl_s) == (3, 7, 5.0)
    return command.setpoint_w


def test_it_draws_what_the_battery_cannot_take_and_no_more() -> None:
    """Target 60, load 50, the battery rides 7: 3; with a load of 55 nothing; of 20 all it has."""
    rig = armed()
    assert setpoint(ordered(rig, Track(60e6, 7e6), 50e6)) == pytest.approx(3e6)
    assert setpoint(ordered(rig, Track(60e6, 7e6), 55e6)) == 0.0
    assert setpoint(ordered(rig, Track(60e6, 7e6), 20e6)) == 10e6


def test_the_plans_wish_counts_as_far_as_target_and_battery_carry_it() -> None:
    """Ballast that nothing covers is not drawn: it would stand above the target."""
    rig = armed()
    assert setpoint(ordered(rig, Track(60e6, 7e6), 55e6, planned_w=2e6)) == pytest.approx(2e6)
    assert setpoint(ordered(rig, Track(60e6, 7e6), 59e6, planned_w=2e6)) == pytest.approx(1e6)
    assert setpoint(ordered(rig, Track(60e6, 7e6), 61e6, planned_w=2e6)) == 0.0


def test_through_the_ripple_the_bank_draws_what_was_planned() -> None:
    """At the top the battery gives what the bank takes of it; where a job comes back the bank makes room at once."""
    rig, track = armed(), Track(60e6, 7e6, cover_w=5e6)
    assert setpoint(ordered(rig, track, 56e6, planned_w=2e6)) == pytest.approx(2e6)
    assert setpoint(ordered(rig, track, 61e6, planned_w=2e6)) == pytest.approx(2e6)
    assert setpoint(ordered(rig, track, 64e6, planned_w=2e6)) == pytest.approx(1e6)
    assert setpoint(ordered(rig, track, 66e6, planned_w=2e6)) == 0.0


def test_steps_are_rounded_up_and_small_changes_are_not_written() -> None:
    stepped = armed(step_w=1e6)
    assert setpoint(ordered(stepped, Track(60e6, 7e6), 50.5e6)) == 3e6
    rig = armed()
    assert setpoint(ordered(rig, Track(60e6, 7e6), 50e6)) == pytest.approx(3e6)
    assert setpoint(ordered(rig, Track(60e6, 7e6), 49.96e6)) == pytest.approx(3e6)
    assert setpoint(ordered(rig, Track(60e6, 7e6), 49.9e6)) == pytest.approx(3.1e6)


@pytest.mark.parametrize("way", ["no battery", "fallback"])
def test_where_nothing_holds_the_target_it_lets_go_at_the_contracts_slope(way: str) -> None:
    rig = armed()
    assert setpoint(ordered(rig, Track(60e6, 7e6), 50e6)) == pytest.approx(3e6)
    track = Track(60e6, 7e6, has_aim=way == "fallback")
    mode = Mode.FALLBACK if way == "fallback" else Mode.NORMAL
    for _ in range(20):  # a second
        last_w = setpoint(ordered(rig, track, 20e6, mode=mode))
    assert last_w == pytest.approx(3e6 - FALL, rel=0.01)
    for _ in range(300):
        last_w = setpoint(ordered(rig, track, 20e6, mode=mode))
    assert last_w == 0.0


def test_what_the_envelope_would_refuse_is_not_asked_for() -> None:
    """Where no order may rise, none does; it goes on from what was let through, and may still let go."""
    rig = armed()
    assert setpoint(ordered(rig, Track(60e6, 7e6), 50e6, may_draw=False)) == 0.0
    rig.written_w = 2e6
    assert setpoint(ordered(rig, Track(60e6, 7e6), 50e6, may_draw=False)) == 2e6
    assert setpoint(ordered(rig, Track(60e6, 7e6), 52e6, may_draw=False)) == pytest.approx(1e6)


def test_in_use_it_is_told_half_of_the_slope_for_when_commands_stop() -> None:
    """The battery lets go at the same time with the other half."""
    rig = armed()
    idle = ordered(rig, Track(60e6, 70e6), 50e6)
    used = ordered(rig, Track(60e6, 7e6), 50e6)
    assert idle is not None and used is not None
    assert idle.expiry_w_per_s == pytest.approx(FALL) and used.expiry_w_per_s == pytest.approx(0.5 * FALL)


def test_a_bank_that_takes_no_orders_gets_none() -> None:
    rig = armed()
    rig.sample = replace(READY, is_remote=False)
    assert ordered(rig, Track(60e6, 7e6), 50e6) is None
    rig.sample = replace(READY, state=LoadBankState.FAULT)
    assert ordered(rig, Track(60e6, 7e6), 50e6) is None
