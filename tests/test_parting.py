"""What nodes and battery do together when their controller dies: told in commands, judged on plant truth."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controller.contract import AdmissibleInterval
from controller.fleet import Fleet
from controller.parting import KEPT_FRAC, LATE_S, WAIT_S_MAX, NodeParting, Parting, job_groups
from controller.types import CeilingLimit, LimitId, LimitStatus, Provenance, Stamp, SwingLimit
from drivers.profile import Kind
from drivers.profile_slope import own_expiry_s
from hil import bench_planner
from hil.lab_site import FLEET, MW, SITE, lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.conftest import ROOT
from tests.faults_kit import moved_w
from tests.modbus_kit import profile

FLAT = {"compute_w": 560, "exchange_w": 560, "noise_frac": 0.0, "jitter_frac": 0.0}  # no ripple: what is told, alone
ROWS = ((15.0, 5 * MW), (60.0, 20 * MW))
OVER_S = 420.0  # all are where they belong, at the flattest slope


def dies(ready: Callable[[Lab], Awaitable[None]], **scenario: Any) -> tuple[Lab, float, list[list[float]]]:
    """The site after a death in the state that `ready` brings about; when it died, and the clocks every 5 s since."""
    died_s, clocks = [0.0], list[list[float]]()

    async def story(lab: Lab) -> None:
        lab.start()
        await ready(lab)
        await lab.kill()
        died_s[0] = lab.now_s
        while lab.now_s < died_s[0] + OVER_S:
            await lab.run(5.0)
            clocks.append(lab.caps_mhz())

    lab = in_lab(story, lab_scenario("steady", workload=FLAT, **scenario))
    lab.verdicts()
    return lab, died_s[0], clocks


def assert_held(lab: Lab, from_s: float) -> None:
    """Every row of the contract, from the death until all is over."""
    for window_s, max_w in ROWS:
        fall_w, rise_w = moved_w(lab, from_s=from_s, to_s=from_s + OVER_S - 2.0, window_s=window_s)
        assert max(fall_w, rise_w) <= max_w, (window_s, fall_w, rise_w)


def test_a_charging_battery_lets_go_before_the_nodes_do() -> None:
    """25 MW have left and the battery takes them: power falls by its slope, and then by the nodes', never by both."""

    async def ready(lab: Lab) -> None:
        await lab.run(14.0)
        lab.drop(25, within_s=8.0)
        await lab.run(13.0)
        battery = lab.world.plant.battery
        assert battery is not None and battery.power_w < -15 * MW

    lab, died_s, clocks = dies(ready)
    assert_held(lab, died_s)
    assert clocks[-1] == [1200.0] * 4 and clocks[10] == [1980.0] * 4


def test_the_nodes_of_a_job_keep_one_pace() -> None:
    """One node that went first would take the whole job's power along: it runs at the pace of its slowest."""

    async def ready(lab: Lab) -> None:
        await lab.run(14.0)

    lab, died_s, clocks = dies(ready)
    assert_held(lab, died_s)
    assert all(max(at) - min(at) <= 15.0 for at in clocks), "a clock step at most"
    assert len({at[0] for at in clocks}) > 20


async def discharging_at_a_ceiling(lab: Lab) -> None:
    battery = lab.world.plant.battery
    assert battery is not None
    await lab.run(121.0)
    assert battery.power_w > 5.5 * MW


CEILING: dict[str, Any] = {  # 25 MW leave and come back faster than power may rise: the battery gives
    "signals": [{"t_s": 1.0, "kind": "load_target", "megawatt": 54, "by_s": 30}],
    "events_docs": [
        {"kind": "drop", "t_s": 20, "megawatt": 25, "within_s": 8, "restart_after_s": 75, "restart_within_s": 8}
    ],
}


def test_under_a_ceiling_nodes_do_not_wait_for_a_battery_that_discharges() -> None:
    """What it lets go rises and what they let go falls: at once, and the ceiling holds."""
    lab, died_s, clocks = dies(discharging_at_a_ceiling, **CEILING)
    assert_held(lab, died_s)
    assert clocks[3][0] < clocks[0][0], "on their way 20 s after the death"
    assert lab.pcc_w()[round(died_s * 200) :].max() <= 54 * MW


@pytest.mark.slow
def test_nodes_that_will_rise_wait_for_a_battery_that_discharges(monkeypatch: pytest.MonkeyPatch) -> None:
    """What of their fallback clock fits under the ceiling is above their caps: both would let power rise."""
    monkeypatch.setitem(FLEET, "fallback_clock_mhz", 1980)
    lab, died_s, clocks = dies(discharging_at_a_ceiling, **CEILING)
    assert_held(lab, died_s)
    assert clocks[-1][0] > clocks[7][0] == clocks[0][0]


@pytest.mark.slow
def test_a_battery_that_begins_to_charge_takes_what_nodes_left_of_the_slope() -> None:
    """Nodes were told not to wait when 25 MW leave at once, and the controller dies before they hear of it."""

    async def ready(lab: Lab) -> None:
        await discharging_at_a_ceiling(lab)
        lab.hooks.send = lambda _: ()
        lab.drop(25, within_s=1.0)
        await lab.run(2.0)
        battery = lab.world.plant.battery
        assert battery is not None and battery.power_w < -8 * MW
        await lab.run(1.0)

    lab, died_s, clocks = dies(ready, **CEILING)
    assert_held(lab, died_s)
    assert clocks[3][0] < clocks[0][0], "they did not wait"


def test_a_ceiling_of_the_grid_outlives_the_controller() -> None:
    """36 MW are allowed and fallback comes to 40: nodes stay below until the ceiling is over, and then go there."""

    async def ready(lab: Lab) -> None:
        await lab.run(150.0)
        assert max(lab.caps_mhz()) < 1200.0

    until_s = 150.0 + 200.0
    signal = {"t_s": 1.0, "kind": "load_target", "megawatt": 36, "by_s": 100, "until_s": until_s}
    lab, died_s, clocks = dies(ready, signals=[signal])
    assert_held(lab, died_s)
    per_s = round(1e9 / lab.world.plant.step_ns)
    mean_w = lab.pcc_w()[: round(until_s + 200.0) * per_s].reshape(-1, per_s).mean(axis=1)
    assert mean_w[round(died_s) : round(until_s)].max() <= 36 * MW
    assert clocks[-1] == [1200.0] * 4 and mean_w[-5:].min() > 38 * MW


# ----------------------------------------------------------------------------------------------------- the rule itself


def parting(**site: Any) -> tuple[Parting, AdmissibleInterval]:
    settings = lab_scenario("steady", **site).settings.site
    assert settings is not None
    return Parting(settings), AdmissibleInterval(settings.contract.limits, start_s=0.0, start_w=0.0, tick_s=0.1)


SLOPE = 331125.5  # W/s: 20 MW in 60 s and the four ticks by which the lab's interval is careful


ROW_W = 5 * MW


def seen(found: Parting, *, charge_w: float | None, from_s: float, for_s: float = 30.0) -> None:
    """So much is charged for a while, told at every second."""
    for k in range(round(for_s) + 1):
        found.see(from_s + k, set_point_w=None if charge_w is None else -charge_w, ballast_w=0.0)


def tell(found: Parting, interval: AdmissibleInterval, seq: int, *, is_release: bool = False) -> NodeParting:
    told = found.nodes(interval, is_release=is_release)
    found.told(told, Stamp(1, seq, 5.0), is_release=is_release)
    return told


def test_while_much_is_charged_nodes_wait_as_long_as_the_battery_may_take() -> None:
    """30 MW down or 12 MW up at the contract's slope, and 62 s that their command may end before the battery's."""
    found, interval = parting()
    seen(found, charge_w=2.6 * MW, from_s=0.0)
    told = tell(found, interval, 1)
    assert found.waits and told.slope_w_per_s == pytest.approx(SLOPE, rel=1e-5) and told.fits_w == math.inf
    assert (told.fall_wait_s, told.rise_wait_s) == pytest.approx((152.6, 98.24), rel=1e-4)
    assert found.fall_w_per_s(SLOPE) == found.rise_w_per_s(SLOPE) == SLOPE


@pytest.mark.parametrize(("charge_w", "fits_w"), [(2.4 * MW, 2.4 * MW), (1.0 * MW, 1.25 * MW), (-7 * MW, 1.25 * MW)])
def test_while_little_is_charged_nodes_leave_room_for_it(charge_w: float, fits_w: float) -> None:
    found, interval = parting()
    seen(found, charge_w=charge_w, from_s=0.0)
    told = tell(found, interval, 1)
    assert not found.waits and (told.fall_wait_s, told.rise_wait_s) == pytest.approx((0.0, 98.24), rel=1e-4)
    assert told.fits_w == fits_w and told.slope_w_per_s == pytest.approx((1.0 - fits_w / ROW_W) * SLOPE, rel=1e-5)
    assert found.fall_w_per_s(SLOPE) == SLOPE and not found.is_outgrown and not found.is_unheard


def test_ripple_counts_with_all_of_itself() -> None:
    """Ten to twenty seconds are remembered: between its peaks nodes are told the same."""
    found, interval = parting()
    seen(found, charge_w=0.0, from_s=0.0)
    seen(found, charge_w=2.0 * MW, from_s=31.0, for_s=0.0)
    seen(found, charge_w=0.0, from_s=32.0, for_s=7.0)
    assert tell(found, interval, 1).fits_w == 2.0 * MW
    seen(found, charge_w=0.0, from_s=40.0, for_s=11.0)
    assert tell(found, interval, 2).fits_w == 1.25 * MW


def test_the_rows_in_force_count_and_not_those_of_the_file() -> None:
    """A signal asks for 2 MW in 15 s: of 1.2 MW, room in a row of 5, there is too much for it."""
    found, interval = parting()
    seen(found, charge_w=1.2 * MW, from_s=0.0)
    assert tell(found, interval, 1).fits_w == 1.25 * MW
    tight = [replace(r, max_w=2.0 * MW) for r in interval.limits if isinstance(r, SwingLimit) and r.window_s == 15.0]
    assert len(tight) == 1
    interval.set_limits([*interval.limits, *tight], 0.0)
    tell(found, interval, 2)
    assert found.waits and tell(found, interval, 3).fits_w == math.inf


def test_before_anything_was_seen_nodes_wait() -> None:
    found, _ = parting()
    found.see(0.0, set_point_w=1.0, ballast_w=0.0)
    assert found.waits


def test_more_than_nodes_have_heard_of_takes_what_they_leave_until_they_have() -> None:
    """They are to hear at once; every node must say that it has, or its command must have ended."""
    for is_said in (True, False):
        found, interval = parting()
        seen(found, charge_w=0.0, from_s=0.0)
        tell(found, interval, 1)
        found.see(31.0, set_point_w=-20 * MW, ballast_w=0.0)
        assert found.is_outgrown and found.waits
        assert found.fall_w_per_s(SLOPE) == pytest.approx(KEPT_FRAC * SLOPE)
        tell(found, interval, 2)
        tell(found, interval, 3)
        assert found.is_unheard and not found.is_outgrown
        found.heard([(1, 2), (1, 1)])
        found.see(31.0 + 5.8 - 0.1, set_point_w=-20 * MW, ballast_w=0.0)
        assert found.is_unheard and found.fall_w_per_s(SLOPE) == pytest.approx(KEPT_FRAC * SLOPE)
        if is_said:
            found.heard([(1, 2), (2, 0)])
        else:
            found.see(31.0 + 5.8, set_point_w=-20 * MW, ballast_w=0.0)
        assert not found.is_unheard and found.fall_w_per_s(SLOPE) == SLOPE


def test_less_room_counts_as_soon_as_one_node_may_know_of_it() -> None:
    found, interval = parting()
    seen(found, charge_w=2.0 * MW, from_s=0.0)
    tell(found, interval, 1)
    seen(found, charge_w=0.0, from_s=31.0)
    tell(found, interval, 2)
    found.see(70.0, set_point_w=-2.0 * MW, ballast_w=0.0)
    assert found.fall_w_per_s(SLOPE) == pytest.approx(KEPT_FRAC * SLOPE) and found.is_outgrown


@pytest.mark.parametrize(("set_point_w", "ballast_w"), [(None, 0.0), (5.0, 2.6 * MW), (-2.6 * MW, 0.0)])
def test_who_may_let_power_fall_is_waited_for(set_point_w: float | None, ballast_w: float) -> None:
    """A battery that takes no orders obeys its last; a bank in use is let go of as a charging battery is."""
    found, _ = parting()
    seen(found, charge_w=0.0, from_s=0.0)
    assert not found.waits
    found.see(51.0, set_point_w=set_point_w, ballast_w=ballast_w)
    assert found.waits


def test_a_release_shares_the_rise_until_its_nodes_are_commanded_again() -> None:
    found, interval = parting()
    found.see(0.0, set_point_w=1.0, ballast_w=0.0)
    told = tell(found, interval, 1, is_release=True)
    assert (told.fall_wait_s, told.rise_wait_s) == (0.0, 0.0)
    found.see(500.0, set_point_w=1.0, ballast_w=0.0)
    assert found.rise_w_per_s(SLOPE) == pytest.approx(KEPT_FRAC * SLOPE, rel=1e-4)
    tell(found, interval, 2)
    for at_s, share in ((505.0, KEPT_FRAC), (506.5, 1.0)):
        found.see(at_s, set_point_w=1.0, ballast_w=0.0)
        assert found.rise_w_per_s(SLOPE) == pytest.approx(share * SLOPE, rel=1e-4)


@pytest.mark.parametrize("site", [{"following": "device"}, {"site": {"battery": None, "contingencies": []}}])
def test_where_no_battery_moves_nobody_waits(site: dict[str, Any]) -> None:
    """One that follows by itself keeps its target."""
    found, interval = parting(**site)
    found.see(0.0, set_point_w=-5.0, ballast_w=0.0)
    told = found.nodes(interval, is_release=False)
    assert (told.fall_wait_s, told.rise_wait_s) == (0.0, 0.0)
    assert told.slope_w_per_s == pytest.approx(SLOPE, rel=1e-5)


def test_a_contract_without_slopes_asks_for_none() -> None:
    """Nothing bounds the way: nobody waits, as fast as the wire can say."""
    found, _ = parting()
    interval = AdmissibleInterval((), start_s=0.0, start_w=0.0, tick_s=0.1)
    found.see(0.0, set_point_w=-1.0, ballast_w=0.0)
    told = found.nodes(interval, is_release=False)
    assert math.isfinite(told.slope_w_per_s) and told.fall_wait_s == told.rise_wait_s == 0.0
    assert found.fall_w_per_s(math.inf) == math.inf


@pytest.mark.parametrize(
    ("battery", "waits"),
    [
        ({}, False),
        ({"ramp_megawatt_per_s": 0.66}, True),  # its own slope may be the flattest it knows
        ({"ramp_megawatt_per_s": 0.67}, False),
        ({"charge_megawatt": 5.0, "discharge_megawatt": 5.0}, True),  # a row's worth, which it may step by
        ({"charge_megawatt": 5.1, "discharge_megawatt": 5.0}, False),
        ({"charge_megawatt": 5.0, "discharge_megawatt": 5.1}, False),
    ],
)
def test_for_a_slow_or_a_small_battery_nodes_always_wait(battery: dict[str, float], waits: bool) -> None:
    found, interval = parting(site={"battery": SITE["battery"] | battery})
    seen(found, charge_w=0.0, from_s=0.0)
    told = found.nodes(interval, is_release=False)
    assert found.waits is waits and (told.fall_wait_s > 0.0) is waits


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs" / "devices").glob("*.yaml")))
def test_no_shipped_profile_obeys_longer_than_nodes_wait(name: str) -> None:
    """Of those that know an end at all: `rampart check` says it of one that has none."""
    loaded = profile(name)
    dispatch = loaded.software if loaded.kind is Kind.BATTERY else None
    if dispatch is not None and math.isfinite(expiry_s := own_expiry_s(loaded, dispatch, ttl_s=4.8)):
        assert expiry_s <= 4.8 + LATE_S


def fleet(jobs: list[int]) -> Fleet:
    """20 GPUs on three nodes of 8, 8 and 4, each serving the job given."""
    found = bench_planner._fleet(20)
    index = np.array(jobs, dtype=np.int64)
    names = tuple(f"job-{j}" for j in range(int(index.max()) + 1))
    return Fleet(found.table, found.class_ids, found.class_index, found.models, index, names)


@pytest.mark.parametrize(
    ("jobs", "groups"),
    [
        ([0] * 20, [0, 0, 0]),
        ([0] * 8 + [1] * 8 + [2] * 4, [0, 1, 2]),
        ([0] * 8 + [1] * 8 + [0] * 4, [0, 1, 0]),
        ([2] * 8 + [1] * 4 + [0] * 4 + [0] * 2 + [2] * 2, [0, 0, 0]),  # the middle node hosts two jobs and joins all
        ([1] * 8 + [0] * 7 + [2] * 1 + [2] * 4, [1, 0, 0]),
    ],
)
def test_nodes_that_share_a_job_keep_one_pace(jobs: list[int], groups: list[int]) -> None:
    assert job_groups(fleet(jobs)).tolist() == groups


def ceiling(megawatt: float, *, from_s: float = 0.0, until_s: float = math.inf) -> CeilingLimit:
    here = Provenance("a signal", "", LimitStatus.LOCAL)
    return CeilingLimit(LimitId(f"target.{megawatt:g}"), megawatt * MW, from_s, here, until_s=until_s)


def test_nodes_are_told_the_share_of_fallback_that_fits_under_every_ceiling_known() -> None:
    """45 MW at fallback of which 7.4 are idle, and 14 of other load at most: 40 MW leave 18.6 of 37.6."""
    found, interval = parting()
    seen(found, charge_w=0.0, from_s=0.0)
    assert found.ceiling(interval.limits) == (1.0, 0.0)
    assert found.ceiling([ceiling(59.1)]) == (1.0, 0.0)
    assert found.ceiling([ceiling(40, until_s=230.0)]) == pytest.approx((18.6 / 37.6, 200.0))
    later = [ceiling(50, until_s=530.0), ceiling(40, from_s=100.0, until_s=230.0), ceiling(20, until_s=30.0)]
    assert found.ceiling(later) == pytest.approx((18.6 / 37.6, 500.0))
    assert found.ceiling([ceiling(9)]) == (0.0, WAIT_S_MAX)
    interval.set_limits([*interval.limits, ceiling(40, until_s=50.0)], 30.0)
    told = found.nodes(interval, is_release=False)
    assert told.ceiling_frac == pytest.approx(18.6 / 37.6), "and not before the battery is surely away"
    assert told.ceiling_s == pytest.approx(5.8 + told.rise_wait_s, abs=0.05)


@pytest.mark.parametrize("site", [{"following": "device"}, {"site": {"battery": None, "contingencies": []}}])
def test_the_share_is_told_where_nothing_else_moves_too(site: dict[str, Any]) -> None:
    found, interval = parting(**site)
    found.see(30.0, set_point_w=None, ballast_w=0.0)
    interval.set_limits([*interval.limits, ceiling(40, until_s=50.0)], 30.0)
    told = found.nodes(interval, is_release=False)
    assert (told.ceiling_frac, told.ceiling_s) == pytest.approx((18.6 / 37.6, 20.0))
