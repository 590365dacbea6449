"""An operator's orders to a whole site in virtual time: reset, release, fallback, lockout, and their replay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controller.app import make_core
from controller.modes import Flag
from controller.replay import replay
from controller.types import AgentState, MeterSample, Mode, OperatorOrder, Reading, Trouble, Violation
from drivers.recorder import FileRecorder
from hil.lab_site import TOP_MHZ, lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.faults_kit import flagged


@dataclass
class Orders:
    """An `OperatorSource` that a story writes to."""

    mode: Mode | None = None
    is_reset: bool = False
    troubles: tuple[Trouble, ...] = ()

    def order(self) -> OperatorOrder | None:
        is_reset, self.is_reset = self.is_reset, False
        return OperatorOrder(self.mode, is_reset) if is_reset or self.mode is not None else None


def kilowatts(reading: Reading[MeterSample]) -> Reading[MeterSample]:
    return replace(reading, value=replace(reading.value, power_w=reading.value.power_w / 1e3))


def test_a_meter_locked_out_is_believed_again_after_a_reset_and_not_before() -> None:
    """S5: repaired later. A reset before that changes nothing, and the desk is told why; after it NORMAL returns."""
    orders = Orders()

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        await lab.run(14.0)
        since_s = lab.now_s
        lab.hooks.meter = kilowatts
        await flagged(lab, Flag.METER_UNIT_WRONG, since_s=since_s, within_s=2.0)
        assert lab.daemon is not None
        await lab.run(5.0)
        core = lab.daemon.core
        assert Flag.METER_UNIT_WRONG in core.reset_obstacles
        orders.is_reset = True
        await lab.run(5.0)
        assert Flag.METER_UNIT_WRONG in lab.last.flags
        lab.heal()
        await lab.run(15.0)
        assert Flag.METER_UNIT_WRONG in lab.last.flags and lab.last.mode is Mode.SHED, "repaired is not yet looked at"
        assert Flag.METER_UNIT_WRONG not in core.reset_obstacles
        orders.is_reset = True
        await lab.run(1.0)
        assert Flag.METER_UNIT_WRONG not in lab.last.flags
        await lab.until(lambda: lab.last.mode is Mode.NORMAL, within_s=40.0)

    assert not in_lab(story, lab_scenario("steady")).broken()


def test_release_gives_a_job_back_whole_inside_the_rows_and_resume_takes_control_again() -> None:
    """At a ceiling, caps at work: all nodes of the job climb at one pace until they are free; then all obey again."""
    orders = Orders()

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        await lab.run(34.0)
        nodes = list(lab.link.nodes.values())
        held_mhz = lab.caps_mhz()
        assert np.isfinite([node.clock_cap_mhz for node in nodes]).all(), "caps at work"
        orders.mode = Mode.RELEASE
        await lab.run(1.0)
        assert lab.last.mode is Mode.RELEASE
        for _ in range(4):
            await lab.run(10.0)
            assert max(lab.caps_mhz()) - min(lab.caps_mhz()) <= 15.0, (
                "a clock step at most: it runs at its slowest's pace"
            )
        assert min(lab.caps_mhz()) > max(held_mhz) and nodes[0].state is not AgentState.RELEASED, (
            "at the contract's slope"
        )
        await lab.until(lambda: {node.state for node in nodes} == {AgentState.RELEASED}, within_s=150.0)
        assert np.isnan([node.clock_cap_mhz for node in nodes]).all()
        orders.mode = None
        await lab.until(lambda: {n.state for n in lab.link.nodes.values()} == {AgentState.ARMED}, within_s=30.0)
        await lab.until(lambda: lab.last.mode <= Mode.SHED and np.isfinite(nodes[0].clock_cap_mhz), within_s=30.0)

    assert not in_lab(story, lab_scenario("limit")).broken()


def test_fallback_and_lockout_do_what_they_say_and_are_left() -> None:
    orders = Orders()

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        await lab.run(14.0)
        orders.mode = Mode.FALLBACK
        await lab.run(3.0)
        assert lab.last.mode is Mode.FALLBACK
        orders.mode = None
        await lab.until(lambda: lab.last.mode is Mode.NORMAL, within_s=60.0)
        orders.mode = Mode.LOCKOUT
        await lab.run(2.0)
        commands = [t.checked.command for t in lab.traces if t.image.t_mono_s > lab.now_s - 1.5]
        assert lab.last.mode is Mode.LOCKOUT and commands and not any(c.battery or c.nodes for c in commands)
        orders.mode = None
        await lab.run(15.0)
        assert lab.last.mode is Mode.LOCKOUT, "until a reset"
        orders.is_reset = True
        await lab.until(lambda: lab.last.mode <= Mode.DEGRADED, within_s=5.0)

    in_lab(story, lab_scenario("steady"))


def test_the_way_to_fallback_is_asked_for_as_the_envelope_lets_it_go() -> None:
    """Without a battery plans are urgent: a clock asked for twice a second was refused, and SHED stood for a minute."""
    orders, refused = Orders(), list[Violation]()

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        assert lab.daemon is not None
        lab.daemon.observe(lambda trace: refused.extend(trace.checked.violations))
        await lab.run(14.0)
        orders.mode = Mode.FALLBACK
        await lab.run(8.0)
        assert lab.last.mode is Mode.FALLBACK and lab.caps_mhz()[0] < TOP_MHZ

    in_lab(story, lab_scenario("steady", site={"battery": None}))
    assert refused == []


def test_orders_are_in_the_image_so_a_replay_sees_them_at_the_same_cycles(tmp_path: Path) -> None:
    orders, path = Orders(), tmp_path / "run.jsonl.gz"
    scenario = lab_scenario("steady")
    recorder = FileRecorder(path, header={"settings": scenario.settings}, on_fault=lambda why: None)

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        await lab.run(12.0)
        orders.mode = Mode.RELEASE
        await lab.run(5.0)
        orders.mode, orders.is_reset = None, True
        await lab.run(5.0)
        assert lab.saw(Flag.OPERATOR_RELEASE, since_s=0.0)

    in_lab(story, scenario, recorder=recorder)
    recorder.close()
    found = replay(path, make_core)
    assert found.cycles > 200 and found.different == 0, found.first
