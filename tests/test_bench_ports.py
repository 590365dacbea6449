"""Ports of the bench: as late, as coarse and as sick as declared; nodes that obey, expire and fall back alone."""

from __future__ import annotations

import copy
import json
import math
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml

from controller.config.load import data_root
from controller.ports import Clock, DriverError
from controller.types import AgentState, BatteryCommand, Following, GpuCap, GpuId, NodeCommand, NodeId
from hil import vtime
from hil.factories import make_factories
from hil.faults import Fault, FaultPlan
from hil.nodes import SimNodeLink
from hil.plant.site import LOAD, PCC
from hil.ports import NoRecorder
from hil.scenario import Overrides, Scenario, parse_scenario
from hil.vtime import NS_PER_S, VirtualClock
from hil.world import World, build_world


def scenario(change: Callable[[dict[str, Any]], None] = lambda raw: None) -> Scenario:
    text = (data_root() / "configs" / "scenarios" / "campus-90mw.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    raw["plant"]["meter"] = {"noise_frac": 0.0}
    change(raw)
    return parse_scenario(copy.deepcopy(raw), Overrides(), origin="test.yaml")


class Stand:
    """A world with its ports, and a clock that is moved by hand."""

    def __init__(self, given: Scenario, plan: FaultPlan) -> None:
        self.clock: Clock = VirtualClock(vtime.running_loop(), start_utc_s=0.0)
        self.world: World = build_world(given)
        self.ports = make_factories(given, self.world, self.clock, recorder=NoRecorder(), plan=plan)

    async def to(self, t_s: float) -> None:
        await self.clock.sleep_until_ns(round(t_s * NS_PER_S))
        self.world.plant.advance_ns(self.clock.now_ns())

    @property
    def link(self) -> SimNodeLink:
        assert isinstance(self.ports.node_link, SimNodeLink)
        return self.ports.node_link


def stage(
    story: Callable[[Stand], Awaitable[None]],
    *,
    change: Callable[[dict[str, Any]], None] = lambda raw: None,
    plan: FaultPlan | None = None,
) -> None:
    async def main() -> None:
        await story(Stand(scenario(change), plan or FaultPlan()))

    vtime.run(main())


def fault(verb: str, *, port: str = "meter", from_s: float = 5.0, until_s: float = math.inf, value: float = 0) -> Fault:
    return Fault("f", port, verb, from_s, until_s, value)  # type: ignore[arg-type]


def command(reference_w: float, *, following: Following = Following.SOFTWARE, ttl_s: float = 5.0) -> BatteryCommand:
    return BatteryCommand(following, reference_w, 1e9, 1, 1, ttl_s)


def caps(node_id: str, clock_mhz: int | None, *, seq: int = 1, epoch: int = 1, ttl_s: float = 5.0) -> NodeCommand:
    ids = tuple(GpuId(f"GPU-{node_id}-{k}") for k in range(8))
    return NodeCommand(NodeId(node_id), epoch, seq, ttl_s, tuple(GpuCap(g, clock_mhz, None) for g in ids), 2.0, 500.0)


# ------------------------------------------------------------------------------------------------ meter and battery


def test_the_meter_shows_the_past_by_its_delay_at_its_own_refresh() -> None:
    """30 ms old, one value per 10 ms: two reads within a refresh are bit-identical."""

    async def story(s: Stand) -> None:
        assert s.ports.meter is not None
        for t_s in (5.0, 5.013, 7.777):
            await s.to(t_s)
            reading = await s.ports.meter.read()
            sampled_s = math.floor((t_s - 0.03) / 0.01 + 1e-9) * 0.01
            assert reading.value.power_w == pytest.approx(s.world.plant.value(PCC, sampled_s), rel=1e-3)
            assert reading.t_mono_s == pytest.approx(t_s - 0.03)
        await s.to(8.001)
        first = await s.ports.meter.read()
        await s.to(8.006)
        assert (await s.ports.meter.read()).value == first.value

    stage(story)


def test_meter_gain_noise_window_and_energy() -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["plant"]["meter"] = {"gain": 1.02, "window_s": 0.2, "noise_frac": 0.001, "refresh_s": 0.1}

    async def story(s: Stand) -> None:
        assert s.ports.meter is not None
        ratios = []
        for k in range(1, 200):
            await s.to(1.0 + 0.1 * k)
            sample = (await s.ports.meter.read()).value
            t_s = 1.0 + 0.1 * (k - 1)
            ratios.append(sample.power_w / s.world.plant.mean(PCC, from_s=t_s - 0.2, to_s=t_s))
        assert np.mean(ratios) == pytest.approx(1.02, abs=3e-4)
        assert np.std(ratios) == pytest.approx(1.02e-3, rel=0.3)
        assert sample.import_wh is not None
        assert sample.import_wh == pytest.approx(s.world.plant.mean(PCC, from_s=0, to_s=9) * 20.7 / 3600, rel=0.1)

    stage(story, change=change)


def test_battery_and_meter_show_the_same_instant() -> None:
    """Load is metered power plus battery power only if both are of one moment."""

    async def story(s: Stand) -> None:
        assert s.ports.meter is not None and s.ports.battery is not None
        await s.to(5.0)
        await s.ports.battery.write(command(20e6))
        for t_s in (5.06, 5.10, 5.2):
            await s.to(t_s)
            meter, battery = await s.ports.meter.read(), await s.ports.battery.read()
            load_w = s.world.plant.value(LOAD, t_s - 0.03)
            assert meter.value.power_w + battery.value.power_w == pytest.approx(load_w)
            assert meter.t_mono_s == battery.t_mono_s

    stage(story)


def test_a_battery_that_answers_in_time_and_old_stamps_its_answers_new() -> None:
    """As a gateway does that polls once in a while: nobody can see it by the stamp."""

    async def story(s: Stand) -> None:
        assert s.ports.battery is not None
        await s.ports.battery.write(command(20e6))
        for k in range(60):
            await s.to(4.0 + 0.05 * k)
            reading = await s.ports.battery.read()
        live_s = s.clock.now_s() - reading.t_mono_s
        await s.ports.battery.write(command(5e6))
        await s.to(7.5)
        reading = await s.ports.battery.read()
        assert reading.value.power_w == pytest.approx(20e6, rel=0.03), "as it was a second ago"
        assert s.world.plant.battery is not None
        assert s.world.plant.battery.power_w == pytest.approx(5e6, rel=0.02)
        assert reading.t_mono_s == pytest.approx(7.5 - live_s)

    stage(story, plan=FaultPlan([fault("delayed", port="battery", value=1.0)]))


def test_an_unrenewed_battery_order_lapses_and_local_mode_refuses() -> None:
    async def story(s: Stand) -> None:
        assert s.ports.battery is not None and s.world.plant.battery is not None
        await s.ports.battery.write(command(20e6, ttl_s=2.0))
        await s.to(1.5)
        reading = (await s.ports.battery.read()).value
        assert reading.power_w == pytest.approx(20e6, rel=1e-6) and reading.reversion_s_left == pytest.approx(0.5)
        await s.to(30.0)
        assert (await s.ports.battery.read()).value.power_w == pytest.approx(20e6 - 28 * 0.3e6, rel=0.02)
        s.world.plant.battery.is_remote = False
        with pytest.raises(DriverError, match="LOCAL"):
            await s.ports.battery.write(command(0.0))

    stage(story)


# ------------------------------------------------------------------------------------------------ sick ports


def test_each_verb_makes_the_meter_ill_in_its_own_way() -> None:
    async def read_at(s: Stand, t_s: float) -> float:
        assert s.ports.meter is not None
        await s.to(t_s)
        return (await s.ports.meter.read()).value.power_w

    async def off(s: Stand) -> None:
        assert await read_at(s, 4.9) > 50e6
        with pytest.raises(DriverError):
            await read_at(s, 5.0)
        assert await read_at(s, 8.0) > 50e6  # healed

    async def stuck(s: Stand) -> None:
        first = await read_at(s, 5.0)
        assert await read_at(s, 7.0) == first
        assert s.world.plant.now(PCC) != first

    async def garbage(s: Stand) -> None:
        values = [await read_at(s, 5.0 + 0.1 * k) for k in range(20)]
        assert any(not math.isfinite(v) for v in values) and any(abs(v) > 1e9 for v in values)

    async def wrong(s: Stand) -> None:
        assert await read_at(s, 6.0) == pytest.approx(-s.world.plant.value(PCC, 5.97))

    async def slow(s: Stand) -> None:
        await read_at(s, 5.0)
        assert s.clock.now_s() == pytest.approx(5.4)

    async def delayed(s: Stand) -> None:
        for k in range(60):
            await read_at(s, 4.0 + 0.05 * k)
        power_w = await read_at(s, 7.0)
        assert power_w == pytest.approx(s.world.plant.value(PCC, 7.0 - 0.03 - 1.0), rel=2e-3)

    async def intermittent(s: Stand) -> None:
        lost = 0
        for k in range(200):
            try:
                await read_at(s, 5.0 + 0.02 * k)
            except DriverError:
                lost += 1
        assert 60 < lost < 140

    for story, verb, value in (
        (stuck, "stuck", 0),
        (garbage, "garbage", 0),
        (wrong, "wrong", -1),
        (slow, "slow", 0.4),
        (delayed, "delayed", 1.0),
        (intermittent, "intermittent", 0.5),
    ):
        stage(story, plan=FaultPlan([fault(verb, value=value)]))
    stage(off, plan=FaultPlan([fault("off", until_s=7.0)]))


def test_a_silent_node_is_heard_no_more_and_a_deaf_one_acknowledges() -> None:
    async def silent(s: Stand) -> None:
        await s.to(8.0)
        reports = s.link.reports()
        assert reports["training-0"].t_mono_s < 5.1 and reports["training-1"].t_mono_s > 7.7

    async def deaf(s: Stand) -> None:
        await s.to(6.0)
        await s.link.send([caps("training-0", 1200), caps("training-1", 1200)])
        await s.to(8.0)
        reports = s.link.reports()
        assert reports["training-0"].value.acked_seq == reports["training-1"].value.acked_seq == 1
        assert math.isnan(reports["training-0"].value.clock_cap_mhz[0])
        assert reports["training-1"].value.clock_cap_mhz[0] == 1200.0

    stage(silent, plan=FaultPlan([fault("off", port="node:training-0")]))
    stage(deaf, plan=FaultPlan([fault("wrong", port="node:*-0")]))


# ------------------------------------------------------------------------------------------------ nodes


def test_reports_weigh_up_to_the_load_and_show_power_as_slowly_as_a_gpu_does() -> None:
    async def story(s: Stand) -> None:
        await s.to(20.0)
        total_w = 0.0
        for reading in s.link.reports().values():
            r = reading.value
            total_w += (float(r.power_w.sum()) + r.other_w) * r.stands_for
        assert total_w == pytest.approx(s.world.plant.mean(LOAD, from_s=19.0, to_s=20.0), rel=0.02)
        assert sum(r.value.stands_for * len(r.value.gpu_ids) for r in s.link.reports().values()) == 102_400

    stage(story)


def test_caps_lower_power_and_are_read_back_not_echoed() -> None:
    async def story(s: Stand) -> None:
        await s.to(10.0)
        before_w = s.world.plant.now(LOAD)
        await s.link.send([caps(f"training-{k}", 1005) for k in range(4)])
        assert math.isnan(s.link.reports()["training-0"].value.clock_cap_mhz[0])
        await s.to(10.4)
        report = s.link.reports()["training-0"].value
        assert report.clock_cap_mhz[0] == 1005.0 and report.acked_seq == 1
        assert s.world.plant.now(LOAD) < before_w - 15e6

    stage(story)


def test_old_epochs_and_repeated_sequences_are_ignored() -> None:
    async def story(s: Stand) -> None:
        node = s.link.nodes["training-0"]
        node.receive(caps("training-0", 1500, epoch=2, seq=5))
        node.receive(caps("training-0", 900, epoch=1, seq=9))
        node.receive(caps("training-0", 900, epoch=2, seq=5))
        assert node.clock_cap_mhz == 1500.0
        node.receive(caps("training-0", 900, epoch=2, seq=6))
        assert node.clock_cap_mhz == 900.0

    stage(story)


def test_a_node_left_alone_falls_back_in_its_slot_at_its_slope() -> None:
    """TTL 5 s and slot 2 s: nothing moves before 7 s; then one clock write a second, each within 500 W of the chord."""

    async def story(s: Stand) -> None:
        await s.link.send([caps("training-0", None)])
        seen = []
        for k in range(1, 120):
            await s.to(0.5 * k)
            report = s.link.reports()["training-0"].value
            seen.append((0.5 * k, report.state, float(np.nan_to_num(report.clock_cap_mhz[0], nan=1980.0))))
        assert all(clock == 1980.0 for t_s, _, clock in seen if t_s < 7.0)
        assert next(state for t_s, state, _ in seen if t_s > 5.6) is AgentState.FALLBACK
        clocks = np.array([clock for _, _, clock in seen])
        steps = np.abs(np.diff(clocks))
        w_per_mhz = 8 * (700 - 72) / 1980
        assert steps.max() * w_per_mhz <= 500.0 * 1.01
        assert clocks[-1] == 1200.0
        moves = np.flatnonzero(steps > 0)
        assert np.diff(moves).min() >= 2  # at most one write a second

    stage(story)


def test_a_node_left_alone_acts_at_the_deadline_itself() -> None:
    """It reports five times a second; its dead-man does not wait for that."""

    async def story(s: Stand) -> None:
        await s.to(1.0)
        node = s.link.nodes["training-0"]
        node.receive(caps("training-0", 1800, ttl_s=5.07))
        await s.to(6.06)
        assert node.state is AgentState.ARMED
        await s.to(6.08)
        assert node.state is AgentState.FALLBACK

    stage(story)


def test_a_release_gives_the_clocks_back() -> None:
    async def story(s: Stand) -> None:
        await s.link.send([caps("training-0", 1200)])
        await s.to(1.0)
        await s.link.send([replace(caps("training-0", None, seq=2), is_release=True, caps=())])
        await s.to(20.0)
        report = s.link.reports()["training-0"].value
        assert report.state is AgentState.RELEASED and math.isnan(report.clock_cap_mhz[0])

    stage(story)


def test_the_grid_speaks_when_its_time_has_come_and_not_through_a_cut_wire() -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["signals"] = [
            {"kind": "load_target", "t_s": 2, "from_s": 10, "until_s": 20, "megawatt": 60},
            {"kind": "ramp_limit", "t_s": 6, "contract": ["aeso"], "until_s": 30},
        ]

    async def story(s: Stand) -> None:
        grid = s.ports.grid
        assert grid is not None
        assert grid.active(1.0) == ()
        await s.to(3.0)
        assert [x.target_w for x in grid.active(3.0)] == [60e6]
        await s.to(7.0)
        assert not grid.is_link_up
        assert len(grid.active(7.0)) == 1  # what was said before stays known
        await s.to(9.0)
        assert grid.is_link_up and len(grid.active(9.0)) == 2
        assert len(grid.active(25.0)) == 1

    stage(story, change=change, plan=FaultPlan([fault("off", port="grid", until_s=8.0)]))


def test_the_meters_of_a_bench_say_nothing_of_ctrl_c() -> None:
    """A terminal's Ctrl-C reaches them, too; they end when whoever started them lets go, without a traceback."""
    command = [sys.executable, "-m", "hil.bench_devices", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as meters:
        assert meters.stdout is not None and len(json.loads(meters.stdout.readline())) == 1
        meters.send_signal(signal.SIGINT)
        _, told = meters.communicate(timeout=30)
    assert (meters.returncode, told) == (0, "")
