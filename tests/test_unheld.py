"""While no battery surely holds power, caps move in what rows leave beside ripple, caps on their way and letting go."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.allocate import worst_case_w as site_worst_case_w
from controller.demand import DemandWindow, Stretch
from controller.fleet import Fleet
from controller.glide import STEEPNESS
from controller.modes import Flag
from controller.room import Steps, softened, under_ceilings_w
from controller.types import (
    BatteryCommand,
    BatterySample,
    BatteryState,
    CeilingLimit,
    EnvelopeState,
    FleetAcks,
    FloatArray,
    Following,
    LimitId,
    Quality,
    Reading,
)
from controller.unheld import CAPS_S, WEAK_S, Drift, Unheld
from hil.lab_site import SETTLE_S, lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.faults_kit import highest_w
from tests.test_identify import fleet_of
from tests.tracker_kit import HERE, estimate_without_meter

MW = 1e6
LOST = frozenset({Flag.BATTERY_LOST})
NO_ACKS = FleetAcks(np.empty((2, 0)), np.empty(0, dtype=np.bool_), np.empty(0))
LATELY = Stretch(mean_w=60 * MW, top_w=61 * MW, bottom_w=58 * MW, top_s=math.inf)


def silent(power_w: float, quality: Quality = Quality.MISSING) -> Reading[BatterySample]:
    sample = BatterySample(power_w, 0.5, 30 * MW, 12 * MW, BatteryState.RUNNING, True, power_w, False)
    return Reading(sample, 0.0, quality, "battery")


def drift(unheld: Unheld, now_s: float, battery: Reading[BatterySample] | None, **given: Any) -> Drift | None:
    estimate = replace(estimate_without_meter(load_w=60 * MW, grid_w=60 * MW), t_s=now_s)
    usual = {"estimate": estimate, "lately": LATELY, "battery": battery, "acks": NO_ACKS, "flags": LOST}
    return unheld.drift(now_s, **(usual | given))


def worst_case_w(fleet: Fleet, caps: FloatArray) -> float:
    """Where every GPU takes its caps."""
    return site_worst_case_w(fleet, caps, fixed_w=np.full(fleet.count, np.nan))


def test_a_battery_that_holds_leaves_nothing_adrift() -> None:
    """One that answers; one that was lost a moment ago is not yet relied on, and where there is none nothing holds."""
    unheld = Unheld()
    assert drift(unheld, 1.0, None, flags=frozenset()) == Drift(sag_w=2 * MW, swell_w=1 * MW)
    assert drift(unheld, 1.0, silent(0.0, Quality.GOOD), flags=frozenset()) is None
    assert drift(unheld, 1.0, silent(0.0, Quality.GOOD)) == Drift(sag_w=2 * MW, swell_w=1 * MW)


def test_a_battery_that_is_held_where_it_stands_holds_nothing_on_a_target() -> None:
    """Until its timer was seen to count down it is asked for nothing."""
    found = drift(Unheld(), 1.0, silent(0.0, Quality.GOOD), flags=frozenset(), is_unproven=True)
    assert found == Drift(sag_w=2 * MW, swell_w=1 * MW)


@pytest.mark.parametrize("changes", [{"state": BatteryState.FAULT}, {"state": BatteryState.OFF}, {"is_remote": False}])
def test_a_battery_that_answers_and_does_not_take_orders_holds_nothing(changes: dict[str, Any]) -> None:
    """Tripped, off, or led from its own panel: it says so at once, and nobody holds the ripple from then on."""
    found = silent(0.0, Quality.GOOD)
    battery = replace(found, value=replace(found.value, **changes))
    assert drift(Unheld(), 1.0, battery, flags=frozenset()) == Drift(sag_w=2 * MW, swell_w=1 * MW)


@pytest.mark.parametrize(
    ("power_w", "takes_w", "found"),
    [
        (0.0, 30 * MW, None),
        (-1.5 * MW, 3.5 * MW, None),  # the 2 MW that load may fall by it can take
        (-1.5 * MW, 1.5 * MW, Drift(2 * MW, 1 * MW - 13.5 * MW, is_followed=True)),
        (0.0, 1.5 * MW, Drift(0.5 * MW, 1 * MW - 12 * MW, is_followed=True)),
    ],
)
def test_a_battery_that_cannot_take_what_of_the_load_may_go_holds_what_it_can(
    power_w: float, takes_w: float, found: Drift | None
) -> None:
    """Derated, or full: it follows, and what it has no room for is on the meter."""
    battery = silent(power_w, Quality.GOOD)
    battery = replace(battery, value=replace(battery.value, charge_w_max=takes_w))
    unheld = Unheld(charge_w_max=30 * MW)
    assert drift(unheld, 1.0, battery, flags=frozenset()) == found
    unseen = Stretch(0.0, 0.0, 0.0, math.inf)
    assert drift(Unheld(charge_w_max=30 * MW), 1.0, battery, flags=frozenset(), lately=unseen) is None, (
        "before the first plan"
    )


def test_what_such_a_battery_leaves_counts_for_a_window_longer() -> None:
    """Between two steps of caps it has room for a moment: the next step would be as deep as a whole battery takes."""
    unheld, weak = Unheld(charge_w_max=30 * MW), silent(0.0, Quality.GOOD)
    weak = replace(weak, value=replace(weak.value, charge_w_max=1 * MW))
    steady = Stretch(60 * MW, 60.5 * MW, 59.5 * MW, math.inf)
    assert drift(unheld, 0.5, weak, flags=frozenset(), lately=steady) is None
    assert drift(unheld, 1.0, weak, flags=frozenset()) is not None
    later = drift(unheld, 1.0 + WEAK_S, weak, flags=frozenset(), lately=steady)
    assert later == Drift(0.0, -11.5 * MW, is_followed=True)
    assert drift(unheld, 1.1 + WEAK_S, weak, flags=frozenset(), lately=steady) is None
    assert drift(unheld, 2.0 + WEAK_S, weak, flags=frozenset()) is not None
    assert drift(unheld, 2.1 + WEAK_S, silent(0.0, Quality.GOOD), flags=frozenset()) is None, "whole again"


def test_a_small_battery_is_no_derated_one() -> None:
    """What it cannot take it never could: the contract was judged feasible with it, and rows keep its margin."""
    small = silent(0.0, Quality.GOOD)
    small = replace(small, value=replace(small.value, charge_w_max=1 * MW))
    assert drift(Unheld(charge_w_max=1 * MW), 1.0, small, flags=frozenset()) is None


@pytest.mark.parametrize(("power_w", "sag_w", "swell_w"), [(5 * MW, 2 * MW, 6 * MW), (-5 * MW, 7 * MW, 1 * MW)])
def test_what_a_silent_battery_holds_comes_back_until_it_can_be_gone(
    power_w: float, sag_w: float, swell_w: float
) -> None:
    """Told to let go after 5 s at 0.2 MW/s, 5 MW take 25 s; a device of its own slope half as long again."""
    unheld = Unheld()
    unheld.commanded(10.0, BatteryCommand(Following.SOFTWARE, power_w, 1.4e9, 1, 1, 5.0, expiry_w_per_s=0.2 * MW))
    assert drift(unheld, 12.0, silent(power_w)) == Drift(sag_w, swell_w)
    assert drift(unheld, 52.0, silent(power_w)) == Drift(sag_w, swell_w)
    assert drift(unheld, 53.0, silent(power_w)) == Drift(2 * MW, 1 * MW)


def test_a_battery_that_never_took_a_command_lets_go_of_none_of_ours() -> None:
    assert drift(Unheld(), 1.0, silent(5 * MW)) == Drift(2 * MW, 1 * MW)


def test_caps_that_are_not_on_the_meter_yet_count_at_the_steepest_curve() -> None:
    """Lowered by a clock under a limit that binds: on its way for a while, longer where the estimate is older."""
    fleet, unheld = fleet_of([0, 0]), Unheld()
    table = fleet.table
    high, low = (np.array([[mhz, mhz], [table.idle_w[0] + 1.0] * 2]) for mhz in (1500.0, 1200.0))
    assert worst_case_w(fleet, high) == worst_case_w(fleet, low)
    moved_w = float(((table.peak_w - table.idle_w) * 300.0 / table.cap_max[0] * table.stands_for).sum())
    unheld.wrote(0.0, fleet, high)
    unheld.wrote(10.0, fleet, low)
    found = drift(unheld, 10.0 + 0.9 * CAPS_S, silent(0.0))
    assert found is not None and found.sag_w == pytest.approx(2 * MW + STEEPNESS * moved_w) and found.swell_w == 1 * MW
    late = replace(estimate_without_meter(load_w=60 * MW, grid_w=60 * MW), t_s=9.9)
    found = drift(unheld, 10.9, silent(0.0), estimate=late)
    assert found is not None and found.sag_w == pytest.approx(2 * MW + STEEPNESS * moved_w)
    assert drift(unheld, 10.0 + 1.1 * CAPS_S, silent(0.0)) == Drift(2 * MW, 1 * MW)
    unheld.wrote(20.0, fleet, high)
    found = drift(unheld, 20.1, silent(0.0))
    assert found is not None and found.swell_w == pytest.approx(1 * MW + STEEPNESS * moved_w)


def test_caps_that_no_node_has_read_back_are_on_their_way_however_long_that_takes() -> None:
    """Commands and reports 1.6 s late: limits went down by 13 MW before the first was seen (11.4 of 10 MW in a minute).

    What a node that is silent, or obeys nobody, read back last says nothing of it.
    """
    fleet, unheld = fleet_of([0, 0]), Unheld()
    high, low = (np.array([[np.inf] * 2, [float(fleet.table.idle_w[0]) + w] * 2]) for w in (100.0, 80.0))
    unheld.wrote(0.0, fleet, high)
    unheld.wrote(10.0, fleet, low)
    acks = FleetAcks(np.minimum(high, fleet.table.cap_max), np.ones(2, dtype=np.bool_), np.full(2, np.nan))
    moved_w = float((20.0 * fleet.table.stands_for).sum())
    found = drift(unheld, 13.0, silent(0.0), acks=acks)
    assert found is not None and found.sag_w == pytest.approx(2 * MW + moved_w)
    heard = replace(acks, caps=np.minimum(low, fleet.table.cap_max))
    assert drift(unheld, 13.0, silent(0.0), acks=heard) == Drift(2 * MW, 1 * MW)
    for deaf in (replace(acks, is_fresh=np.zeros(2, dtype=np.bool_)), replace(acks, fixed_w=np.full(2, 700.0))):
        assert drift(unheld, 13.0, silent(0.0), acks=deaf) == Drift(2 * MW, 1 * MW)


def test_what_caps_rose_by_since_the_load_was_last_at_its_top_is_still_to_come() -> None:
    """In the ripple's trough a raise of seconds ago shows nowhere yet: the row read 5.3 of 5 MW without a battery."""
    fleet, unheld = fleet_of([0, 0]), Unheld()
    table = fleet.table
    low, mid, high = (np.array([[mhz, mhz], [np.inf] * 2]) for mhz in (1200.0, 1300.0, 1500.0))
    step_w = float(((table.peak_w - table.idle_w) * 100.0 / table.cap_max[0] * table.stands_for).sum())
    for now_s, caps in ((0.0, low), (10.0, mid), (12.0, high)):
        unheld.wrote(now_s, fleet, caps)
    for top_s, steps in ((9.0, 3.0), (10.0 + 0.9 * CAPS_S, 3.0), (10.0 + 1.1 * CAPS_S, 2.0), (14.0, 0.0)):
        found = drift(unheld, 15.0, silent(0.0), lately=replace(LATELY, top_s=top_s))
        assert found is not None and found.swell_w == pytest.approx(1 * MW + steps * STEEPNESS * step_w)
        assert found.sag_w == 2 * MW


def test_the_load_is_at_its_top_for_as_long_as_it_is_near_it() -> None:
    window = DemandWindow(peak_w=100.0)
    assert window.seen().top_s == math.inf, "nothing was seen: nothing rose since then"
    for t_s, load_w in enumerate((50.0, 51.5, 51.4, 50.3, 50.0)):
        window.add(float(t_s), load_w)
    assert window.seen() == Stretch(pytest.approx(50.64), 51.5, 50.0, 2.0)


def test_falls_are_cut_to_one_share_and_rises_left_alone() -> None:
    """Two GPUs go lower, one higher: what falls keeps to what may fall, in the same proportion, on whole clocks."""
    fleet = fleet_of([0, 0, 0])
    table = fleet.table
    before = np.array([[np.inf, 1800.0, 900.0], [np.inf, np.inf, np.inf]])
    asked = np.array([[1000.0, 1000.0, 1200.0], [np.inf, np.inf, np.inf]])
    lowered = np.array([[1000.0, 1000.0, 900.0], [np.inf, np.inf, np.inf]])
    whole_w = worst_case_w(fleet, before) - worst_case_w(fleet, lowered)
    found = softened(fleet, asked, before, steps=Steps(0.25 * whole_w, 1.0, math.inf))
    fallen = np.where(found < before, found, before)
    left_w = worst_case_w(fleet, before) - worst_case_w(fleet, fallen)
    assert 0.2499 * whole_w < left_w < 0.252 * whole_w and found[0, 2] == 1200.0
    assert (table.cap_max[0, 0] - found[0, 0]) / (table.cap_max[0, 0] - 1000.0) == pytest.approx(0.25, abs=0.01)
    assert (softened(fleet, asked, before, steps=Steps(whole_w, 1.0, math.inf)) == asked).all()
    still = softened(fleet, asked, before, steps=Steps(0.0, 1.0, math.inf))
    assert (still[:, :2] == before[:, :2]).all()
    bound = np.array([[1800.0] * 3, [float(table.idle_w[0]) + 1.0] * 3])
    asked = np.array([[1000.0] * 3, bound[1]])
    assert (softened(fleet, asked, bound, steps=Steps(0.0, 1.0, 0.0)) == bound).all(), (
        "clocks count under a limit that binds"
    )


@pytest.mark.parametrize(("exchange_w", "ceiling_megawatt"), [(550.0, 56.0), (545.0, 50.0), (535.0, 52.0)])
def test_without_a_battery_caps_come_down_to_a_ceiling_inside_the_rows(
    exchange_w: float, ceiling_megawatt: float
) -> None:
    """Known five seconds before: each plan lowered caps by more than rows left, 36 MW of 20 in a minute altogether.

    Then the envelope took from each plan what rows left a moment later, as clocks of all GPUs: 5.5 to 5.8 of 5 MW, and
    the planner was doubted. When the ceiling ends clocks have not followed the limits down everywhere.
    """
    corrections: list[str] = []

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        lab.daemon.observe(lambda trace: corrections.extend(v.detail for v in trace.checked.violations))
        await lab.run(160.0)
        assert not lab.saw(Flag.ENVELOPE_BUSY)

    ceiling = {"t_s": 15.0, "kind": "load_target", "from_s": 20.0, "until_s": 110.0, "megawatt": ceiling_megawatt}
    scenario = lab_scenario(
        "steady",
        duration_s=180.0,
        site={"battery": None},
        signals=[ceiling],
        workload={"compute_w": 560.0, "exchange_w": exchange_w, "iteration_s": 6.0, "edge_s": 1.2},
    )
    lab = in_lab(story, scenario)
    assert all(row.worst < 1.05 * row.limit for row in lab.broken_rows())
    assert highest_w(lab, from_s=90.0, to_s=109.0) < ceiling_megawatt * MW
    assert len(corrections) <= 2, corrections


def test_a_battery_derated_while_a_ceiling_is_met_leaves_planner_and_envelope_of_one_mind() -> None:
    """To a fifth: caps follow it down inside the rows, and the envelope finds nothing to correct (5.75 of 5 MW before).

    Load ripples by more than the 6 MW that it may take, less what it takes already.
    """
    corrections: list[str] = []

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        await lab.run(SETTLE_S["limit"])
        lab.daemon.observe(lambda trace: corrections.extend(v.detail for v in trace.checked.violations))
        lab.world.plant.battery.derate_frac = 0.2
        await lab.run(40.0)
        assert not lab.saw(Flag.ENVELOPE_BUSY)

    lab = in_lab(story, lab_scenario("limit"))
    assert lab.broken() == [] and len(corrections) <= 4, corrections


def test_an_unreliable_battery_is_not_counted_on_by_caps() -> None:
    """Three of four exchanges are lost under a ripple of 2.5 MW and 18 MW of spent row (seed 453 of the swarm).

    Planned without it at one tick and with it at the next, caps let 6 MW go and took 9 MW back at once.
    """

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(67.97)
        lab.fault("battery", "intermittent", 0.727, for_s=17.72)
        await lab.run(8.0)

    work = {"compute_w": 528.599, "exchange_w": 505.414, "iteration_s": 5.215, "edge_s": 1.043}
    site = {"contract": ["southern"], "fallback_contract": ["southern"]}
    scenario = lab_scenario("steady", seed=453, duration_s=96.0, site=site, workload=work, start_soc=0.652)
    lab = in_lab(story, scenario)
    assert lab.broken() == []


def test_under_a_ceiling_one_plan_takes_off_what_it_is_given_to_take_off() -> None:
    """20 GPUs' worth above a ceiling of 10 kW: the plan goes as far as may fall, not as far as the target moves."""
    fleet = fleet_of([0, 0])
    state = EnvelopeState(gpu_ids=fleet.table.gpu_ids, caps=np.full((2, 2), np.inf))
    worst_w = worst_case_w(fleet, state.caps)
    site: Any = SimpleNamespace(planner_period_s=1.0)
    tracker: Any = SimpleNamespace(interval=SimpleNamespace(slope_down_w_per_s=1.0))
    image = SimpleNamespace(t_mono_s=0.0)
    view: Any = SimpleNamespace(image=image, battery=None, import_w_max=10e3, unmanaged_w_max=10e3, state=state)
    limit = CeilingLimit(LimitId("ceiling"), 10e3, -math.inf, HERE)
    readings = SimpleNamespace(deaf_w=np.full(2, np.nan))
    decision: Any = SimpleNamespace(fleet=fleet, in_force=SimpleNamespace(limits=(limit,)), readings=readings)
    for fall_w in (0.0, 100.0, 0.5 * worst_w):
        found_w = under_ceilings_w(site, view, decision, tracker, margin_w=0.0, fall_w=fall_w)
        assert found_w == pytest.approx((worst_w - fall_w,) * 2)
    assert under_ceilings_w(site, view, decision, tracker, margin_w=0.0, fall_w=2.0 * worst_w)[0] <= 0.0
