"""Hardware power floors: armed by the agent, given back, reported, and worth to the site what they are."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.config.site import load_settings, parse_site
from controller.errors import BadInput
from controller.gpu_floor import steady_floor_w, sum_floors
from controller.node.gpu_worker import FIGHTS_MAX
from controller.types import GpuId, NodeFloor, SmoothingFound, SmoothingProfile
from drivers.node_messages import decode_report, encode_report
from drivers.nvml import NvmlGpu
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab
from hil.plant.gpu import GpuBank
from tests.conftest import ROOT
from tests.node_kit import FLOOR, Bench, play_agent
from tests.nvml_kit import FakeNode, fake_node, library

FOUND = SmoothingProfile(0.7, 500.0, 500.0, 1.0)  # what somebody had set before


def play(folder: Path, story: Callable[[Bench], Awaitable[None]], *, stop: bool = True, **kind: Any) -> Bench:
    """An agent that is to arm a floor, through `story`, then stopped as SIGTERM does (or left as kill -9 does)."""

    def prepare(bench: Bench) -> None:
        for name, value in kind.items():
            for gpu in bench.gpus:
                setattr(gpu, name, value)

    return play_agent(folder, story, stop=stop, prepare=prepare, settle_s=3.0, has_floor=True)


def floor_of(bench: Bench) -> NodeFloor | None:
    return bench.link.reports[-1].floor


# ------------------------------------------------------------------------------------------------ the agent


def test_a_floor_is_armed_after_what_was_found_is_saved_and_given_back_at_the_stop(tmp_path: Path) -> None:
    """Without any command of a site: what was in force before is on disk first, and back at the end."""

    async def story(bench: Bench) -> None:
        assert [gpu.smoothing for gpu in bench.gpus] == [FLOOR, FLOOR]
        assert bench.guard_starts == 1 and bench.on_disk_at_first_write
        assert bench.agent._saved is not None
        saved = bench.agent._saved.by_id[GpuId("GPU-0")].smoothing
        assert saved == SmoothingFound(True, 0, 4, FOUND)
        floor = floor_of(bench)
        assert floor is not None and floor.hold_s == 2.0 and floor.down_w_per_s == 40.0
        assert floor.power_w == pytest.approx(2 * (0.4 * 700.0 - 70.0)), "280 W of the 300 drawn, less 70 W of idle"

    bench = play(tmp_path, story, smoothing=FOUND)
    assert [gpu.smoothing for gpu in bench.gpus] == [FOUND, FOUND] and not bench.file.path.exists()


def test_an_agent_without_the_key_leaves_smoothing_alone(tmp_path: Path) -> None:
    """What a person set stays, through caps and their return."""

    def prepare(bench: Bench) -> None:
        for gpu in bench.gpus:
            gpu.smoothing = FOUND

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1005))
        await bench.wait(2.0)
        assert floor_of(bench) is None

    bench = play_agent(tmp_path, story, prepare=prepare)
    assert [gpu.smoothing for gpu in bench.gpus] == [FOUND, FOUND] and bench.gpus[0].floor_writes == 0


def test_after_a_kill_the_next_agent_gives_back_what_the_first_one_found(tmp_path: Path) -> None:
    async def wait(bench: Bench) -> None:
        await bench.wait(1.0)

    first = play(tmp_path, wait, stop=False, smoothing=FOUND)
    assert first.gpus[0].smoothing == FLOOR
    second = play(tmp_path, wait, smoothing=FLOOR)
    assert second.gpus[0].smoothing == FOUND


def test_a_release_gives_the_floor_back_and_reports_none(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(replace(bench.command(None), is_release=True, caps=()))
        await bench.wait(3.0)
        assert [gpu.smoothing for gpu in bench.gpus] == [FOUND, FOUND] and floor_of(bench) is None

    play(tmp_path, story, smoothing=FOUND)


def test_another_tool_is_overruled_three_times_and_the_floor_counts_only_while_it_is_read_back(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        gpu = bench.gpus[0]
        for _ in range(FIGHTS_MAX):
            gpu.smoothing = None
            await bench.wait(1.5)
            assert gpu.smoothing == FLOOR
        gpu.smoothing = None
        await bench.wait(3.0)
        assert gpu.smoothing is None
        floor = floor_of(bench)
        assert floor is not None and floor.down_w_per_s == 20.0, "the other GPU's"
        assert ("GPU-0", "another tool keeps changing its power smoothing; left to it") in bench.said

    play(tmp_path, story)


@pytest.mark.parametrize("kind", [{"has_circuit": False}, {"is_forbidden": True}])
def test_a_gpu_that_cannot_is_said_once_and_reports_no_floor(tmp_path: Path, kind: dict[str, Any]) -> None:
    async def story(bench: Bench) -> None:
        await bench.wait(20.0)
        assert floor_of(bench) is None
        told = [what for subject, what in bench.said if subject == "GPU-0" and "power floor" in what]
        assert len(told) == (1 if "is_forbidden" in kind else 0), told

    play(tmp_path, story, **kind)


def test_a_floor_that_does_not_read_back_is_none(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.wait(2.0)
        floor = floor_of(bench)
        assert floor is None or bench.gpus[0].floor_writes > 1

    play(tmp_path, story, loses_floor=True)


# ------------------------------------------------------------------------------------------------ over NVML


async def opened(node: FakeNode) -> NvmlGpu:
    gpus = {g.spec.gpu_id: g for g in await library(node.clock).open()}
    return gpus[GpuId(node.gpus.uuids()[0])]


@pytest.mark.wire
async def test_over_nvml_it_is_written_read_back_and_given_back_whole(tmp_path: Path) -> None:
    """The preset that was overwritten, the preset that was active and the switch: all as found."""
    with fake_node(tmp_path, "b200") as node:
        gpu = await opened(node)
        before = node.gpus.gpus["smoothing_params"][0].copy()
        node.gpus.gpus["smoothing_profile"][0] = 1
        found = await gpu.originals(preset=3)
        assert found.smoothing is not None and not found.smoothing.is_enabled and found.smoothing.active_preset == 1
        assert not await gpu.holds_floor(FLOOR, preset=3)
        await gpu.arm_floor(FLOOR, preset=3)
        assert await gpu.holds_floor(FLOOR, preset=3) and not await gpu.holds_floor(FLOOR, preset=2)
        floor_w, _, down, hold_s = node.gpus.smoothing()
        assert (floor_w[0], down[0], hold_s[0]) == (400.0, 20.0, 2.0)
        await gpu.restore(found)
        assert node.gpus.gpus["smoothing_is_enabled"][0] == 0 and node.gpus.gpus["smoothing_profile"][0] == 1
        assert np.array_equal(node.gpus.gpus["smoothing_params"][0], before)


@pytest.mark.wire
async def test_a_gpu_without_the_circuit_has_none_to_save(tmp_path: Path) -> None:
    with fake_node(tmp_path, "h100") as node:
        gpu = await opened(node)
        assert (await gpu.originals(preset=4)).smoothing is None


def test_the_plant_holds_the_floor_for_the_hysteresis_and_lets_go_at_its_slope() -> None:
    """Busy, then idle: down to 400 W, held until 2 s after the job, then 1 kW a second."""
    bank = GpuBank("b200", 1)
    one = np.ones(1)
    bank.set_smoothing(400.0 * one, math.inf * one, 1000.0 * one, 2.0 * one)
    for _ in range(100):
        bank.step(0.01, 0.7 * one)
    powers = [float(bank.step(0.01, 0.0 * one)[0]) for _ in range(300)]
    assert powers[100:195] == pytest.approx([400.0] * 95, abs=5.0)
    assert 280.0 < powers[210] < 395.0 and powers[-1] < 200.0


# ------------------------------------------------------------------------------------------------ configuration


def test_the_key_is_read_and_bounded() -> None:
    settings = load_settings(ROOT / "configs" / "node.example.yaml")
    assert settings.node is not None and settings.node.smoothing is None
    raw: dict[str, Any] = {"role": "node", "mqtt": {}, "node": {"id": "n", "fallback_clock_mhz": 1000}}
    good = {"floor": 0.5, "ramp_up_w_per_s": 1000, "ramp_down_w_per_s": 5, "hysteresis_s": 10}
    node = parse_site({**raw, "node": {**raw["node"], "smoothing": good}}, origin="n.yaml").node
    assert node is not None and node.smoothing is not None
    assert node.smoothing.profile == SmoothingProfile(0.5, 1000.0, 5.0, 10.0) and node.smoothing.preset == 4
    for key, value in (("floor", 1.5), ("ramp_down_w_per_s", 0), ("hysteresis_s", -1), ("preset", 5)):
        with pytest.raises(BadInput, match=f"node.smoothing.{key}"):
            parse_site({**raw, "node": {**raw["node"], "smoothing": {**good, key: value}}}, origin="n.yaml")


# ------------------------------------------------------------------------------------------------ what it is worth

FALL = 0.3e6


def test_a_floor_is_worth_the_energy_it_draws() -> None:
    """20 MW of surplus fall at 0.3 MW/s in 67 s: 667 MJ. 6 MW for 10 s and 20 s of slope draw 120 of them."""
    floor = NodeFloor(6e6, 10.0, 0.3e6)
    worth_w = steady_floor_w(floor, surplus_w=20e6, fall_w_per_s=FALL)
    assert (20e6 - worth_w) ** 2 / (2 * FALL) == pytest.approx((20e6) ** 2 / (2 * FALL) - 120e6)
    assert 0.0 < worth_w < 6e6


def test_a_floor_that_is_gone_in_a_second_is_worth_next_to_nothing() -> None:
    assert steady_floor_w(NodeFloor(6e6, 0.5, 12e6), surplus_w=20e6, fall_w_per_s=FALL) < 0.1e6


def test_a_floor_that_outlasts_the_ride_is_worth_itself() -> None:
    assert steady_floor_w(NodeFloor(6e6, 300.0, 0.1e6), surplus_w=20e6, fall_w_per_s=FALL) == 6e6


@pytest.mark.parametrize(
    ("floor", "surplus_w", "fall"),
    [
        (None, 1e6, 1.0),
        (NodeFloor(0.0, 1.0, 1.0), 1e6, 1.0),
        (NodeFloor(1e6, 1.0, 1.0), 0.0, 1.0),
        (NodeFloor(1e6, 1.0, 1.0), 1e6, 0.0),
        (NodeFloor(1e6, 1.0, 1.0), 1e6, math.inf),
    ],
)
def test_where_nothing_is_held_or_nothing_falls_it_is_nothing(
    floor: NodeFloor | None, surplus_w: float, fall: float
) -> None:
    assert steady_floor_w(floor, surplus_w=surplus_w, fall_w_per_s=fall) == 0.0


def test_the_ride_down_with_the_worth_is_never_lighter_than_the_true_one() -> None:
    """Simulated: surplus and stored energy with the real floor stay within those of the steady one."""
    rng = np.random.default_rng(7)
    for _ in range(200):
        floor = NodeFloor(rng.uniform(0.5e6, 12e6), rng.uniform(0.1, 60.0), rng.uniform(0.05e6, 20e6))
        surplus_w, fall = rng.uniform(1e6, 40e6), rng.uniform(0.1e6, 1e6)
        worth_w = steady_floor_w(floor, surplus_w=surplus_w, fall_w_per_s=fall)
        t_s = np.linspace(0.0, surplus_w / fall, 4000)
        held_w = np.clip(floor.power_w - floor.down_w_per_s * np.maximum(t_s - floor.hold_s, 0.0), 0.0, floor.power_w)
        true_w = np.maximum(surplus_w - fall * t_s - held_w, 0.0)
        assert true_w.max() <= surplus_w - worth_w + 1e-3 * surplus_w
        drawn = held_w[surplus_w - fall * t_s > 0.0]
        if (surplus_w - fall * t_s >= held_w - 1.0).all() and len(drawn):  # the floor never held more than was needed
            stored_j = float(np.trapezoid(true_w, t_s))
            assert stored_j <= (surplus_w - worth_w) ** 2 / (2.0 * fall) * 1.002 + 1.0


def test_nodes_add_up_for_all_they_stand_for() -> None:
    both = sum_floors([(10, NodeFloor(1e3, 5.0, 10.0)), (1, NodeFloor(2e3, 3.0, 40.0))])
    assert both == NodeFloor(12e3, 3.0, 140.0) and sum_floors([]) is None


# ------------------------------------------------------------------------------------------------ the site


def test_the_wire_carries_it_and_an_older_site_sees_no_key() -> None:
    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(1.0)

    lab = in_lab(story, lab_scenario("steady", policy="rule", following="device"))
    report = lab.traces[-1].image.nodes[0].value
    plain = encode_report(report, age_s=0.0)
    assert b"floor" not in plain
    again = decode_report(encode_report(replace(report, floor=NodeFloor(1e3, 2.0, 30.0)), age_s=0.0), t_mono_s=1.0)
    assert again is not None and again.floor == NodeFloor(1e3, 2.0, 30.0)
    back = decode_report(plain, t_mono_s=1.0)
    assert back is not None and back.floor is None


def test_a_site_counts_it_while_it_is_reported_and_fresh() -> None:
    """Nodes that report a floor raise what is left after a crash; one that falls silent takes its part with it."""
    worth: dict[str, float] = {}

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(4.0)
        worth["none"] = left(lab)
        lab.hooks.report = lambda r: replace(
            r, value=replace(r.value, floor=NodeFloor(2e6 / r.value.stands_for, 60.0, 1e3))
        )
        await lab.run(2.0)
        worth["armed"] = left(lab)
        lab.fault("node:training-0", "off")
        await lab.run(4.0)
        worth["fewer"] = left(lab)
        lab.heal()
        await lab.run(4.0)
        worth["gone"] = left(lab)

    def left(lab: Lab) -> float:
        decision = lab.traces[-1].decision
        assert decision.track is not None
        return decision.held_w

    in_lab(story, lab_scenario("steady", policy="rule", following="device"))
    assert worth["none"] == worth["gone"] == 0.0
    assert worth["armed"] > worth["fewer"] > 0.5e6
