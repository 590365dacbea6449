"""The plant: power, work and energy add up, GPUs and battery move as measured ones do, and truth has no gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.types import BatteryState
from hil.plant.battery import Battery, BatteryParams, Reversion
from hil.plant.events import drop_load, revive
from hil.plant.facility import Facility, FacilityParams
from hil.plant.fleet import Fleet, Group, Job
from hil.plant.gpu_models import model
from hil.plant.grid import Grid, SwingParams
from hil.plant.site import BATTERY, FREQUENCY, LOAD, PCC, SitePlant, TruthBlock
from hil.plant.workload import (
    Activity,
    Curve,
    TrainingShape,
    Workload,
    inference_workload,
    ripple_curve,
    trace_curve,
    trace_workload,
    training_workload,
)

S = 1_000_000_000
NO_FACILITY = FacilityParams(0.0, 0.0, 0.0, 600.0, 0.0, 5.0, 0.85, 1.0, 10.0)
NAMEPLATE = BatteryParams(
    charge_w_max=70e6,
    discharge_w_max=70e6,
    energy_j=35e6 * 3600,
    soc_frac_start=0.5,
    soc_frac_min=0.05,
    soc_frac_max=0.95,
    eta=0.95,
    lag_s=0.06,
    follow_lag_s=0.023,
    slope_w_per_s_max=1.4e9,
    deadband_w=0.0,
    taper_soc_frac=0.05,
    standby_w=0.0,
    follow_reversion=Reversion.RAMP_TO_ZERO,
    reversion_w_per_s=0.3e6,
)


def constant(power_w: float, *, non_gpu_frac: float = 0.25, bound: float = 1.0) -> Workload:
    return trace_workload(
        Curve(np.array([0.0, 1e5]), np.array([power_w, power_w])), non_gpu_frac=non_gpu_frac, clock_bound_frac=bound
    )


def job(workload: Workload, *, gpus: int = 102_400) -> Job:
    return Job("training", model("h100"), gpus, workload, Activity(share=1.0), Activity(share=1.0))


def plant(one: Job, *, battery: Battery | None = None, groups: int = 2, grid: Grid | None = None) -> SitePlant:
    fleet = Fleet((one,), tuple(Group(f"train-{k}", 0, one.gpus // groups) for k in range(groups)))
    return SitePlant(
        fleet=fleet,
        facility=Facility(NO_FACILITY, it_w=80e6),
        battery=battery,
        grid=grid or Grid(nominal_hz=60.0, swing=None),
    )


def with_(**changes: object) -> BatteryParams:
    from dataclasses import replace

    return replace(NAMEPLATE, **changes)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ stepping


@given(st.lists(st.integers(1, 700_000_000), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_truth_does_not_depend_on_how_time_is_cut(steps_ns: list[int]) -> None:
    """One long advance and many ragged ones give the same power to the bit where nothing transient is closed-form."""

    def run(cuts_ns: list[int]) -> np.ndarray:
        wall = trace_curve(np.arange(0.0, 60.0, 2.0), 80e6 + 5e6 * np.sin(np.arange(30.0)), edge_s=0.25)
        p = plant(job(trace_workload(wall, non_gpu_frac=0.25, clock_bound_frac=1.0)), battery=Battery(NAMEPLATE))
        blocks: list[TruthBlock] = []
        p.listen(blocks.append)
        assert p.battery is not None
        p.battery.set_follow_target(78e6, 1e6)
        for t_ns in cuts_ns:
            p.advance_ns(t_ns)
        p.finish()
        return np.concatenate([b.pcc_w for b in blocks])

    ends_ns = np.cumsum(steps_ns).tolist()
    whole, cut = run([ends_ns[-1]]), run(ends_ns)
    assert whole.shape == cut.shape == (ends_ns[-1] // 5_000_000 + 1,)
    np.testing.assert_allclose(whole, cut, rtol=1e-12)


def test_truth_blocks_join_without_gap_and_power_balances() -> None:
    p = plant(job(constant(80e6)), battery=Battery(NAMEPLATE))
    blocks: list[TruthBlock] = []
    p.listen(blocks.append)
    assert p.battery is not None
    for second in range(1, 131):
        p.battery.set_setpoint(1e6 * (second % 7 - 3))
        p.advance_ns(second * S)
    p.finish()
    next_s = 0.0
    for block in blocks:
        assert block.t0_s == pytest.approx(next_s, abs=1e-9)
        next_s = block.t0_s + block.pcc_w.size * block.dt_s
        np.testing.assert_allclose(block.pcc_w, block.load_w - block.battery_w)
    assert next_s == pytest.approx(130.005)
    assert len(blocks) > 3


def test_sensors_see_the_past_exactly() -> None:
    wall = Curve(np.array([0.0, 100.0]), np.array([0.0, 100e6]))
    p = plant(job(trace_workload(wall, non_gpu_frac=1.0, clock_bound_frac=1.0)))
    p.advance_ns(90 * S)
    assert p.value(PCC, 89.5) == pytest.approx(89.5e6, rel=1e-3)
    assert p.mean(PCC, from_s=80.0, to_s=90.0) == pytest.approx(85e6, rel=1e-3)


# ------------------------------------------------------------------------------------------------ GPUs and work


def test_a_cap_takes_effect_after_its_dead_time_and_settles_as_measured() -> None:
    """Lowering is settled 50 ms after it began; raising closes 54, 80 and 95 % of the way at 0.22, 0.34 and 0.53 s."""
    p = plant(job(constant(80e6)))
    fleet = p.fleet

    def order(clock_frac: float) -> None:
        for k in range(2):
            delay_ns = round(fleet.dead_time_s(k, clock_frac) * S)
            p.schedule(round(p.now_s * S) + delay_ns, lambda k=k: fleet.steer(k, clock_frac))

    p.advance_ns(S)
    full_w = p.now(LOAD)
    order(0.8)
    p.advance_ns(round(1.015 * S))
    assert p.now(LOAD) == pytest.approx(full_w)
    p.advance_ns(round(1.1 * S))
    low_w = p.now(LOAD)
    p.advance_ns(2 * S)
    assert low_w == pytest.approx(p.now(LOAD), rel=0.003)
    order(1.0)
    for after_s, share in ((0.10, 0.0), (0.22, 0.54), (0.34, 0.80), (0.53, 0.95)):
        p.advance_ns(round((2.0 + after_s) * S))
        way = (p.now(LOAD) - low_w) / (full_w - low_w)
        assert way == pytest.approx(share, abs=0.05), after_s


def test_curves_pass_through_published_points() -> None:
    """Work at a share of the power limit, and power at a share of the clock, as measured on real cards."""
    h200, b200, a100 = model("h200"), model("b200"), model("a100")
    at_71 = h200.clock_for_share((0.71 * 700 - h200.idle_w) / (700 - h200.idle_w)) ** h200.work_exponent
    at_50 = h200.clock_for_share((0.50 * 700 - h200.idle_w) / (700 - h200.idle_w)) ** h200.work_exponent
    assert 0.77 <= at_71 <= 0.83
    assert 0.58 <= at_50 <= 0.66
    for clock, share in ((1457 / 1935, 0.72), (1152 / 1935, 0.51), (926 / 1935, 0.372)):
        assert float(b200.power_share(np.array([clock]))[0]) == pytest.approx(share, abs=0.035)
    for clock, watts in ((1110, 97), (1200, 124), (1305, 170)):
        assert float(a100.power_share(np.array([clock / 1410]))[0]) == pytest.approx(watts / 241, abs=0.08)


def test_slowed_work_is_stretched_not_erased() -> None:
    """At a lower clock a trace's feature arrives later by exactly the pace, and GPU-seconds say what was lost."""
    wall = Curve(np.array([0.0, 50.0, 50.1, 1e4]), np.array([80e6, 80e6, 40e6, 40e6]))
    one = job(trace_workload(wall, non_gpu_frac=0.25, clock_bound_frac=1.0))
    p = plant(one)
    for k in range(2):
        p.fleet.steer(k, 0.8)
    p.advance_ns(200 * S)
    pace = 0.8**0.98
    assert one.work_s == pytest.approx(200 * pace, rel=2e-3)
    assert 1.0 - one.done_gpu_s / one.demand_gpu_s == pytest.approx(1 - pace, rel=0.01)
    feature_s = 50.0 / pace
    q = plant(job(trace_workload(wall, non_gpu_frac=0.25, clock_bound_frac=1.0)))
    for k in range(2):
        q.fleet.steer(k, 0.8)
    q.advance_ns(round((feature_s - 0.3) * S))
    before_w = q.now(LOAD)
    q.advance_ns(round((feature_s + 0.3) * S))
    assert q.now(LOAD) < before_w - 25e6


def test_the_slowest_group_sets_the_pace_of_a_synchronous_job() -> None:
    together, alone = job(constant(80e6)), job(constant(80e6))
    p, q = plant(together), plant(alone)
    p.fleet.steer(0, 0.7)
    for k in range(2):
        q.fleet.steer(k, 0.7)
    p.advance_ns(60 * S)
    q.advance_ns(60 * S)
    assert together.work_s == pytest.approx(alone.work_s)
    assert p.now(LOAD) > q.now(LOAD)  # the group that waits still spins


def test_a_power_limit_binds_and_only_the_gpu_share_answers() -> None:
    one = job(constant(80e6, non_gpu_frac=0.25))
    p = plant(one)
    for k in range(2):
        p.fleet.limit_power(k, 400.0)
    p.advance_ns(5 * S)
    assert p.now(LOAD) - 20e6 == pytest.approx(400.0 * one.gpus, rel=0.01)


def test_an_idle_fleet_draws_its_idle_power_and_wants_no_work() -> None:
    one = job(constant(80e6))
    p = plant(one)
    p.advance_ns(S)
    dropped = drop_load(p, one, block_w=None, within_s=0.05)
    p.advance_ns(3 * S)
    wanted = one.demand_gpu_s
    p.advance_ns(10 * S)
    assert p.now(LOAD) == pytest.approx(one.idle_w + 20e6, rel=1e-6)
    assert dropped.drop_w == pytest.approx(60e6 - one.idle_w)
    assert one.demand_gpu_s == wanted
    revive(p, one, within_s=2.0)
    p.advance_ns(13 * S)
    assert p.now(LOAD) == pytest.approx(80e6)
    assert one.work_s == pytest.approx(1.0 + 0.05 + 3.0, abs=0.1)


def test_a_declared_drop_has_its_size_and_its_slew() -> None:
    """62 MW at 1.9 per second of the block: 62 MW less, over 0.526 s."""
    one = job(constant(90e6))
    p = plant(one)
    p.advance_ns(10 * S)
    drop_load(p, one, block_w=62e6, within_s=1 / 1.9)
    p.advance_ns(round(10.26 * S))
    half_w = p.now(LOAD)
    p.advance_ns(11 * S)
    assert 90e6 - p.now(LOAD) == pytest.approx(62e6, rel=1e-6)
    assert 90e6 - half_w == pytest.approx(31e6, rel=0.05)


# ------------------------------------------------------------------------------------------------ workloads


def test_held_edges_are_steeper_than_linear_ones_and_carry_the_same_samples() -> None:
    t_s, w = np.arange(0.0, 10.0, 2.0), np.array([10.0, 20.0, 20.0, 5.0, 8.0])
    linear, hold = trace_curve(t_s, w, edge_s=None), trace_curve(t_s, w, edge_s=0.25)
    at = np.array([1.0, 1.999, 2.125, 2.25, 6.0, 6.25])
    np.testing.assert_allclose(hold.at(at), [10, 10, 15, 20, 20, 5])
    assert linear.at(np.array([1.0]))[0] == 15.0


def test_ripple_has_its_amplitude_its_period_and_no_mean() -> None:
    curve = ripple_curve(
        np.random.default_rng(3), amplitude_w=4e6, period_s=1.25, duty=0.6, jitter_frac=0.0, edge_s=0.02, until_s=600.0
    )
    t_s = np.arange(0.0, 500.0, 0.005)
    values = curve.at(t_s)
    assert np.ptp(values) == pytest.approx(4e6)
    assert abs(values.mean()) < 0.02e6
    spectrum = np.abs(np.fft.rfft(values))
    assert np.fft.rfftfreq(values.size, 0.005)[int(spectrum.argmax())] == pytest.approx(0.8, abs=0.01)


def test_training_iterates_checkpoints_and_never_draws_less_than_idle() -> None:
    shape = TrainingShape(
        iteration_s=2.0,
        compute_frac=0.6,
        compute_w=650.0,
        exchange_w=250.0,
        jitter_frac=0.05,
        noise_frac=0.02,
        edge_s=0.02,
        checkpoint_every_s=120.0,
        checkpoint_s=(11.0, 60.0),
        checkpoint_w=150.0,
        warmup_s=20.0,
    )
    work = training_workload(
        np.random.default_rng(1),
        gpus=1000,
        shape=shape,
        idle_w=72.0,
        other_w=0.1e6,
        clock_bound_frac=0.9,
        until_s=600.0,
    )
    gpu_w, _ = work.demand_w(np.arange(0.0, 600.0, 0.05))
    assert gpu_w.min() >= 72e3
    assert np.quantile(gpu_w, 0.95) > 600e3
    quiet = gpu_w[(np.arange(gpu_w.size) * 0.05 > 121) & (np.arange(gpu_w.size) * 0.05 < 130)]
    assert quiet.max() < 200e3


def test_inference_follows_the_day_and_loses_what_it_cannot_serve() -> None:
    work = inference_workload(
        np.random.default_rng(1),
        gpus=1000,
        busy_w=600.0,
        idle_w=72.0,
        low_frac=0.3,
        high_frac=0.9,
        noise_frac=0.02,
        start_hour=3.0,
        other_w=0.0,
        clock_bound_frac=1.0,
        until_s=86_400.0,
    )
    night, day = work.gpu.at(np.array([0.0])), work.gpu.at(np.array([12 * 3600.0]))
    assert day[0] > 1.6 * night[0]
    one = job(work, gpus=1000)
    p = plant(one)
    for k in range(2):
        p.fleet.steer(k, 0.7)
    p.advance_ns(30 * S)
    assert 0.2 < 1 - one.done_gpu_s / one.demand_gpu_s < 0.4


# ------------------------------------------------------------------------------------------------ battery


def step_response(battery: Battery, load_w: np.ndarray, *, dt_s: float = 0.005) -> np.ndarray:
    return battery.advance(load_w, dt_s=dt_s, pcc_w_before=float(load_w[0]))[0]


def test_a_set_point_is_reached_with_the_declared_lag() -> None:
    battery = Battery(NAMEPLATE)
    battery.set_setpoint(10e6)
    power = step_response(battery, np.zeros(60))
    assert power[11] == pytest.approx(10e6 * (1 - np.exp(-1)), rel=1e-6)  # 60 ms
    assert power[-1] == pytest.approx(10e6, rel=0.01)


def test_following_hides_a_fast_drop_but_for_lag_times_drop() -> None:
    """62 MW within 50 ms at 23 ms of lag leaves an area of 62 MW x 23 ms at the grid, whatever the drop's shape."""
    battery = Battery(NAMEPLATE)
    load_w = np.full(400, 90e6)
    load_w[200:210] -= np.arange(10) * 6.2e6
    load_w[210:] -= 62e6
    battery.set_follow_target(90e6, 1e6)
    battery._target_now_w = 90e6
    pcc_w = load_w - step_response(battery, load_w)
    assert np.abs(90e6 - pcc_w[200:]).sum() * 0.005 == pytest.approx(62e6 * 0.023, rel=0.15)
    assert abs(pcc_w[-1] - 90e6) < 0.01e6


def test_a_follower_moves_its_target_at_the_ordered_slope() -> None:
    battery = Battery(NAMEPLATE)
    load_w = np.full(2000, 80e6)
    battery.set_follow_target(90e6, 1e6)
    pcc_w = load_w - step_response(battery, load_w)
    assert pcc_w[-1] == pytest.approx(90e6, rel=1e-3)
    assert np.diff(pcc_w).max() <= 1e6 * 0.005 * 1.001


def test_energy_is_accounted_with_losses_both_ways() -> None:
    battery = Battery(NAMEPLATE)
    start_j = battery.energy_j
    for power_w in (10e6, -10e6):
        battery.set_setpoint(power_w)
        step_response(battery, np.zeros(20_000))
    lost_j = start_j - battery.energy_j
    assert lost_j == pytest.approx(10e6 * 100 * (1 / 0.95 - 0.95), rel=0.01)


@given(st.floats(-100e6, 100e6), st.floats(0.05, 0.95), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_order_leaves_the_limits_or_the_store(order_w: float, soc: float, follow: bool) -> None:
    battery = Battery(with_(energy_j=2e8, soc_frac_start=soc))
    if follow:
        battery.set_follow_target(order_w, 1e9)
    else:
        battery.set_setpoint(order_w)
    for _ in range(20):
        power = step_response(battery, np.full(50, 50e6))
        assert power.min() >= -70e6 and power.max() <= 70e6
        # Within one block the limit falls as the store fills; it binds one step later at the latest.
        assert -battery.charge_w_limit - 3e6 <= power[-1] <= battery.discharge_w_limit + 3e6
        assert 0.049 <= battery.soc_frac <= 0.951


def test_an_order_that_is_not_renewed_lapses_at_the_declared_slope() -> None:
    battery = Battery(with_(reversion_w_per_s=1e6))
    battery.set_setpoint(10e6)
    battery.arm_reversion(2.0)
    step_response(battery, np.zeros(300))
    assert battery.reversion_s_left == pytest.approx(0.5)
    power = np.concatenate([step_response(battery, np.zeros(100)) for _ in range(4)])
    assert battery.reversion_s_left is None
    assert np.abs(np.diff(power)).max() <= 1e6 * 0.005 * 1.001
    frozen = Battery(with_(follow_reversion=Reversion.FREEZE))
    frozen.set_follow_target(40e6, 1e9)
    frozen.arm_reversion(0.1)
    step_response(frozen, np.full(100, 50e6))
    assert frozen.is_following and frozen.reference_w == 40e6


def test_deadband_deaf_and_tripped_batteries() -> None:
    idle = Battery(with_(deadband_w=1e6))
    idle.set_setpoint(0.9e6)
    assert step_response(idle, np.zeros(100))[-1] == 0.0
    deaf = Battery(NAMEPLATE)
    deaf.is_deaf = True
    deaf.set_setpoint(10e6)
    assert deaf.reference_w == 10e6 and step_response(deaf, np.zeros(100))[-1] == 0.0
    tripped = Battery(NAMEPLATE)
    tripped.set_setpoint(10e6)
    step_response(tripped, np.zeros(100))
    tripped.trip()
    assert step_response(tripped, np.zeros(1))[0] == 0.0 and tripped.state is BatteryState.FAULT


# ------------------------------------------------------------------------------------------------ facility and grid


def test_cooling_follows_with_its_time_constant_and_losses_at_once() -> None:
    facility = Facility(FacilityParams(1e6, 0.05, 0.3, 600.0, 0.0, 5.0, 0.85, 1.0, 10.0), it_w=0.0)
    volts, it_w, dt_s = np.ones(1000), np.full(1000, 10e6), 0.6
    at_600_s = facility.advance(it_w, np.arange(1000) * dt_s, volts, dt_s=dt_s)
    assert at_600_s[0] == pytest.approx(1e6 + 10.5e6, rel=1e-3)
    assert at_600_s[-1] == pytest.approx(1e6 + 10.5e6 + 3e6 * (1 - np.exp(-1)), rel=1e-3)


def test_a_sag_moves_ups_load_off_the_grid_and_walks_it_back() -> None:
    one = job(constant(80e6))
    fleet = Fleet((one,), (Group("train-0", 0, one.gpus),))
    grid = Grid(nominal_hz=60.0, swing=None)
    params = FacilityParams(0.0, 0.0, 0.0, 600.0, 0.5, 5.0, 0.85, 1.0, 10.0)
    p = SitePlant(fleet=fleet, facility=Facility(params, it_w=80e6), battery=None, grid=grid)
    grid.sag(t_s=5.0, duration_s=0.2, voltage_pu=0.5)
    p.advance_ns(round(5.1 * S))
    assert p.now(LOAD) == pytest.approx(40e6) and p.facility.is_on_battery
    p.advance_ns(round(6.15 * S))
    assert p.now(LOAD) == pytest.approx(40e6)
    p.advance_ns(round(11.2 * S))
    assert p.now(LOAD) == pytest.approx(60e6, rel=0.02)
    p.advance_ns(17 * S)
    assert p.now(LOAD) == pytest.approx(80e6) and not p.facility.is_on_battery


def test_frequency_settles_where_droop_says() -> None:
    """Losing 1 % of the machine at 5 % droop and 1 pu damping settles at 1 / (1 / 0.05 + 1) of a percent low."""
    swing = SwingParams(rating_w=1e9, inertia_s=4.0, damping_pu=1.0, droop_pu=0.05, governor_tau_s=0.5)
    p = plant(job(constant(80e6)), grid=Grid(nominal_hz=60.0, swing=swing))
    p.advance_ns(5 * S)
    assert p.now(FREQUENCY) == pytest.approx(60.0)
    p.grid.lose_generation(10e6)
    p.advance_ns(100 * S)
    assert p.now(FREQUENCY) == pytest.approx(60.0 * (1 - 0.01 / 21.0), abs=1e-4)
    assert p.now(BATTERY) == 0.0
