"""Rows X1 to X5 of the fault catalogue in virtual time: the composition is dropped and built again; nodes live on."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from controller.allocate import CLOCK_STEP_MHZ
from controller.check_death import death_step
from controller.config.site import parse_site
from controller.control_socket import Peer
from controller.modes import DWELL_CYCLES, Flag
from controller.operator_desk import OperatorDesk
from controller.reasons import said
from controller.reload import Reload
from controller.settings import Settings
from controller.types import AgentState, GpuCap, Mode, NodeCommand, NodeId, NodeReport, RampLimit, Reading
from drivers.recorder import FileRecorder
from hil.lab_ports import LabLease
from hil.lab_site import MW, SITE, TOP_MHZ
from hil.matrix import row
from hil.matrix_lab import Lab
from tests.faults_kit import (
    COMES_DOWN_S,
    assert_under_ceiling,
    broken_between,
    flagged,
    load_step_w,
    play,
    step_w,
)

CAPS_BOUNDED_S, BATTERY_AWAY_S, NORMAL_S = 5.0, 30.0, 20.0
STAYS_S = 20.0  # of the next controller's work that is judged: longer than the shortest row looks back


async def dies_and_returns(lab: Lab, since_s: float, state: str, span: list[tuple[float, float]]) -> None:
    await lab.kill()
    written = {node.node_id: node._seq for node in lab.link.nodes.values()}
    battery = lab.world.plant.battery
    assert battery is not None
    held_w = battery.power_w
    await lab.run(CAPS_BOUNDED_S)
    states = {node.state for node in lab.link.nodes.values()}
    assert state == "cold" or states == {AgentState.FALLBACK}, states
    # What the contract's slope cannot take away in 30 s takes as long as that slope asks.
    slope_w_per_s = battery._reversion_w_per_s
    away_s = max(BATTERY_AWAY_S, lab.site.ttl_periods * lab.site.planner_period_s + abs(held_w) / slope_w_per_s + 0.5)
    assert slope_w_per_s > 0.25 * MW and (state == "ramp" or away_s == BATTERY_AWAY_S)
    await keeps_the_slope(lab, away_s - CAPS_BOUNDED_S)
    assert {node.node_id: node._seq for node in lab.link.nodes.values()} == written
    assert abs(battery.power_w) < 0.5 * MW, battery.power_w
    span.append((since_s, lab.now_s))
    await lab.restart()
    back_s = await lab.until(
        lambda: bool(lab.ticks) and lab.last.t_s > lab.now_s - 0.5 and lab.last.mode <= Mode.DEGRADED, within_s=NORMAL_S
    )
    assert back_s <= NORMAL_S
    assert state == "cold" or lab.saw(Flag.RESTARTED, since_s=since_s)


async def keeps_the_slope(lab: Lab, seconds: float) -> None:
    """What the nodes' caps let GPUs draw comes down at the contract's slope and never steps, whatever the GPUs do."""
    site, whole_s = lab.site, int(seconds)
    range_w = site.gpu_peak_w - site.gpu_idle_w
    slope_w_per_s = min(row.max_w / row.window_s for row in site.contract.limits if isinstance(row, RampLimit))
    seen_w = [range_w * float(np.mean(lab.caps_mhz())) / TOP_MHZ]
    for k in range(whole_s + 1):
        await lab.run(1.0 if k < whole_s else seconds - whole_s)
        seen_w.append(range_w * float(np.mean(lab.caps_mhz())) / TOP_MHZ)
    step_w_max = slope_w_per_s + range_w * CLOCK_STEP_MHZ / TOP_MHZ  # all nodes may round to their next clock at once
    assert all(before - after <= step_w_max for before, after in pairwise(seen_w)), seen_w


def assert_held(lab: Lab, state: str, from_s: float, to_s: float) -> None:
    """From death to re-arming: no step beyond what `rampart check` prints, and the ceiling; before and after, the rows.

    Nobody follows the load between the two, so its own steps are on the meter, and beside them one second of the slope
    that nodes and battery share.
    """
    slope_w_per_s = min(row.max_w / row.window_s for row in lab.site.contract.limits if isinstance(row, RampLimit))
    printed_w = death_step(lab.site, None, expiry_s=None, bank_slope=None).step_w
    died_w = step_w(lab, from_s=from_s, to_s=to_s)
    assert died_w <= printed_w + load_step_w(lab, from_s=from_s, to_s=to_s) + slope_w_per_s
    if state == "limit":
        assert_under_ceiling(lab, from_s=from_s + COMES_DOWN_S, to_s=lab.now_s)
    assert from_s < 1.0 or not (broken := broken_between(lab, 0.0, from_s)), broken
    assert not (broken := broken_between(lab, to_s)), broken


@row("X1")
def test_kill(state: str) -> None:
    """kill -9: nodes to fallback in their slots, battery ramped away, the next controller takes over."""
    span: list[tuple[float, float]] = []

    async def react(lab: Lab, since_s: float) -> None:
        await dies_and_returns(lab, since_s, state, span)

    lab = play(state, begin=lambda lab: None, react=react, after_start=True, is_judged=False, stays_s=STAYS_S)
    assert_held(lab, state, *span[0])


def wait_for_disk(recorder: FileRecorder) -> None:
    """The recorder's thread lives in real time, and so does its disk."""
    until_s = time.monotonic() + 20.0
    while not recorder.has_failed and time.monotonic() < until_s:
        time.sleep(0.01)


@row("X2")
def test_disk_full(state: str) -> None:
    """ENOSPC: the recorder stops and says so once, the mode's reasons too; control goes on."""
    said: list[str] = []

    async def react(lab: Lab, since_s: float) -> None:
        count = len(lab.ticks)
        await lab.run(7.0)
        wait_for_disk(recorder)
        await lab.run(1.0)
        assert Flag.DISK_FULL in lab.last.flags
        assert len(lab.ticks) - count >= 78 and lab.worst_mode(since_s) <= Mode.SHED

    recorder = FileRecorder(Path("/dev/full"), header={"settings": SITE}, on_fault=said.append)
    play(state, begin=lambda lab: None, react=react, options={"recorder": recorder})  # NORMAL: an alarm, no more
    recorder.close()
    assert len(said) == 1 and "control goes on" in said[0]


@row("X3")
def test_out_of_memory(state: str) -> None:
    """The kernel ends the controller twice in a row, the second time just after its restart."""
    span: list[tuple[float, float]] = []

    async def react(lab: Lab, since_s: float) -> None:
        await lab.kill()
        await lab.run(1.0)
        await lab.restart()
        await lab.run(0.35)
        await dies_and_returns(lab, since_s, state, span)

    lab = play(state, begin=lambda lab: None, react=react, after_start=True, is_judged=False, stays_s=STAYS_S)
    assert_held(lab, state, *span[0])


@row("X4")
def test_two_controllers(state: str) -> None:
    """A node tells of another's epoch: this one writes nothing and stays out; nodes ignore it; the new one controls."""

    span: list[float] = []

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(2.0)
        old = lab.lease
        span.append(lab.now_s)

        def told(reading: Reading[NodeReport]) -> Reading[NodeReport]:
            return replace(reading, value=replace(reading.value, acked_epoch=old.epoch + 1))

        lab.hooks.report = told
        await flagged(lab, Flag.LEADERSHIP_LOST, since_s=since_s, within_s=0.5)
        await lab.run(1.0)
        assert lab.last.mode is Mode.LOCKOUT and lab.last.battery_w is None
        commands = [t.checked.command for t in lab.traces if t.image.t_mono_s > lab.now_s - 0.5]
        assert commands and not any(c.battery or c.nodes for c in commands)
        assert not old.is_held, "the reports told it"
        lab.heal()
        old.is_held = True
        await lab.run(1.0)
        assert lab.last.mode is Mode.LOCKOUT, "a deposed controller never leads again in this process"
        await lab.kill()
        lab.lease = LabLease(epoch=old.epoch + 1)
        lab.start()
        await lab.run(3.0)
        span.append(lab.now_s)
        node = next(iter(lab.link.nodes.values()))
        assert node._epoch == old.epoch + 1
        cap_mhz, caps = node.clock_cap_mhz, tuple(GpuCap(g, 300, None) for g in node._ids)
        late = NodeCommand(node.node_id, old.epoch, 10**6, 5.0, caps, release_slot_s=0.0, release_w_per_s=1e6)
        await lab.link.send((late,))
        await lab.run(0.5)
        assert node._epoch == old.epoch + 1 and node._seq < 10**6, "whoever was deposed is not obeyed"
        assert node.clock_cap_mhz != 300 and (np.isnan(cap_mhz) or node.clock_cap_mhz > 0.5 * cap_mhz)

    lab = play(state, begin=lambda lab: None, react=react, after_start=True, is_judged=False, stays_s=STAYS_S)
    lab.verdicts()
    assert not (broken := [*broken_between(lab, 0.0, span[0]), *broken_between(lab, span[1])]), broken


@row("X4")
def test_one_node_alone_deposes_nobody(state: str) -> None:
    """One of four nodes acknowledges an epoch that nobody could ever be above: said with its name, not counted on.

    The next controller leads as well; where one node's word was enough, each that came after it was deposed at once.
    """

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(2.0)

        def told(reading: Reading[NodeReport]) -> Reading[NodeReport]:
            is_it = reading.value.node_id == "training-0"
            return replace(reading, value=replace(reading.value, acked_epoch=2**53)) if is_it else reading

        lab.hooks.report = told
        await flagged(lab, Flag.NODE_OBEYS_OTHER, since_s=since_s, within_s=3.0)
        trace = lab.traces[-1]
        assert lab.lease.is_held and trace.decision.mode.mode >= Mode.DEGRADED
        fixed_w, span = trace.decision.readings.acks.fixed_w, trace.decision.fleet.table.spans[NodeId("training-0")]
        assert np.isfinite(fixed_w[span]).all() and np.isnan(np.delete(fixed_w, span)).all()
        reason = next(r for r in trace.decision.mode.reasons if r.flag is Flag.NODE_OBEYS_OTHER)
        assert f"(training-0: epoch {2**53} over our {lab.lease.epoch}): find" in said(
            reason, trace.image, epoch=lab.lease.epoch
        )
        await lab.restart()
        await lab.run(3.0)
        assert lab.lease.is_held and Flag.LEADERSHIP_LOST not in lab.traces[-1].decision.mode.flags

    play(state, begin=lambda lab: None, react=react, after_start=True)


@row("X5")
def test_invalid_config(state: str, tmp_path: Path) -> None:
    """A changed file that is wrong is refused whole, in one line; what runs keeps its settings."""

    file: dict[str, object] = {**SITE, "mqtt": {}}

    async def read() -> Settings:
        return parse_site(file, origin="site.yaml")

    reload = Reload(parse_site(file, origin="site.yaml"), read=read)
    desk = OperatorDesk(tmp_path / "operator.json", audit=lambda line: None, reload=reload)

    async def react(lab: Lab, since_s: float) -> None:
        assert lab.daemon is not None
        running, root = lab.daemon.core, Peer(1, 0, 0)
        mode = lab.last.mode if lab.ticks else None
        for key, value in (("registered_peak_megawatt", -3), ("tracker_hz", "quick"), ("colour", "red")):
            file[key] = value
            answer = await desk.take("reload", root)
            first, *_ = answer["lines"]  # type: ignore[misc]
            assert not answer["ok"] and "\n" not in first and "site.yaml" in first and key in first
            await flagged(lab, Flag.FILE_REFUSED, since_s=since_s, within_s=0.5)
            file.pop(key) if key == "colour" else file.update({key: SITE[key]})
        await lab.run(3.0)
        assert lab.daemon.core is running and not reload.is_wanted, "what runs keeps its settings"
        assert mode in (lab.last.mode, None), "and its mode"
        assert (await desk.take("reload", root))["ok"] and not reload.is_wanted, "as it was"
        await lab.until(lambda: Flag.FILE_REFUSED not in lab.last.flags, within_s=1.5 * DWELL_CYCLES)

    play(state, begin=lambda lab: None, react=react, options={"operator": desk})
