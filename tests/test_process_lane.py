"""Rows X and C of the fault catalogue as real processes over wires: shipped commands under what plays systemd.

Real time, real sockets, the C ABI of NVML; judged on plant truth. Each story ends with a clean stop, no process left
and no GPU at other settings than it was found with.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from hil.wire_gpus import OTHER_TOOL_GPU
from hil.wire_lab import Story, WireLab, in_wire_lab
from tests.lane_kit import (
    BATTERY_S,
    CAPS_S,
    DEATH_STEP_W,
    FALLBACK_MHZ,
    MW,
    NEEDS_COMPILER,
    NORMAL_S,
    are_at_fallback,
    are_bounded,
    fake_clock,
    figure,
    lane_scenario,
    log_of,
)

pytestmark = [pytest.mark.process, NEEDS_COMPILER]

TOP_MHZ = 1980.0
SLOT_S = 120.0  # nodes wait until 13 MW of battery are surely back at nothing
RESTART_S = 2.0  # RestartSec of both units
SEEN_S = 0.3  # what lies between a lock at the driver and this story's look at it, on cores that others use too


def told(story: Story, tmp_path: Path, *, environment: dict[str, str] | None = None) -> WireLab:
    """The story, and what every story must leave behind."""
    lab = in_wire_lab(story, lane_scenario(), tmp_path / "out", site_environment=environment)
    assert lab.left_throttled == () and lab.processes_left == 0
    return lab


async def settled(lab: WireLab) -> None:
    await lab.until_mode("NORMAL", within_s=NORMAL_S + 10.0)
    await lab.run(3.0)


def is_away(lab: WireLab) -> bool:
    return abs(lab.plant.battery.power_w) < 0.3 * MW


# ------------------------------------------------------------------------------------------------ X1, X3, X4, C3, C4


def test_controller_is_paused_killed_starved_stopped_and_deposed(tmp_path: Path) -> None:
    """One site and all that can befall its controller, one after the other, NORMAL between."""
    span: list[float] = []
    reload_span: list[float] = []

    async def story(lab: WireLab) -> None:
        await settled(lab)
        await reloaded(lab, reload_span)
        await paused(lab)
        await killed(lab, span)
        await out_of_memory(lab)
        await stopped(lab)
        await deposed(lab)

    lab = told(story, tmp_path)
    assert [end.result for end in lab.site.ends[:3]] == ["signal", "oom-kill", "watchdog"] and lab.site.start_count == 4
    assert lab.step_w(*span) <= DEATH_STEP_W, "a bump in power"
    assert lab.step_w(*reload_span) <= DEATH_STEP_W, "a bump in power by a new file"
    assert log_of(lab.out, "node").count("Traceback") == 0 and log_of(lab.out, "site").count("mode=LOCKOUT") == 1


async def reloaded(lab: WireLab, span: list[float]) -> None:
    """X5: a wrong file is refused whole and told of; a right one is taken by the same process, which leads anew."""
    file, pid, epoch = lab.files.site_file, lab.site.pid, lab.epoch()
    good = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"tracker_hz: \S+", "tracker_hz: quick", good), encoding="utf-8")
    assert await lab.reload() == 1
    assert "tracker_hz" in log_of(lab.out, "site").splitlines()[-1]
    await lab.run(0.5)
    status = await lab.status()
    assert status is not None and any(str(file) in why for why in status["reasons"]), status
    assert lab.epoch() == epoch
    span.append(lab.now_s)
    changed = yaml.safe_load(good)
    changed["commands"] = {**changed.get("commands", {}), "grace_s": 31}
    file.write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert await lab.reload() == 0
    await lab.until(lambda: lab.epoch() == epoch + 1, within_s=10.0)
    await lab.until_mode("NORMAL", within_s=NORMAL_S)
    span.append(lab.now_s)
    assert lab.site.pid == pid and not lab.site.ends, "its supervisor saw no death"


async def paused(lab: WireLab) -> None:
    """C4, as a suspended machine does it: 7 s of nothing, commands expired, noted, armed again by the same process."""
    before = lab.site.pid
    for service in (lab.site, lab.node):
        service.signal(signal.SIGSTOP)
    await lab.run(7.0)
    for service in (lab.node, lab.site):
        service.signal(signal.SIGCONT)
    await lab.until_mode("DEGRADED", "SHED", "FALLBACK", "HOLD", within_s=3.0)
    await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)
    assert lab.site.pid == before and not lab.site.ends and not lab.node.ends


async def killed(lab: WireLab, span: list[float]) -> None:
    """X1: kill -9 in the middle of its writes; restarted by the unit, through DEGRADED to NORMAL."""
    before, killed_s = lab.site.pid, time.monotonic()
    span.append(lab.now_s)
    lab.site.signal(signal.SIGKILL)
    await lab.until_mode("DEGRADED", "NORMAL", within_s=10.0, newer_than_pid=before)
    await lab.until_mode("NORMAL", within_s=NORMAL_S, newer_than_pid=before)
    figure(
        "kill -9 of the controller, its restart to NORMAL", time.monotonic() - killed_s - RESTART_S, at_most=NORMAL_S
    )
    span.append(lab.now_s)


async def out_of_memory(lab: WireLab) -> None:
    """X3: the limit is the unit's, lowered to what it uses now; the kill is a kernel's, the way back that of X1."""
    assert lab.site.memory_max == 1 << 30 and 0 < lab.site.rss_bytes_max < 1 << 30
    before, count = lab.site.pid, len(lab.site.ends)
    lab.site.memory_max = lab.site.rss_bytes_max // 2
    await lab.until(lambda: len(lab.site.ends) > count, within_s=5.0)
    lab.site.memory_max = lab.site.unit.memory_max
    await normal_again(lab, "out of memory", before)


async def stopped(lab: WireLab) -> None:
    """C3: SIGSTOP; nodes go to fallback by themselves, the watchdog of 10 s ends it, the next one controls."""
    before, count = lab.site.pid, len(lab.site.ends)
    lab.site.signal(signal.SIGSTOP)
    await lab.until(lambda: are_bounded(lab), within_s=CAPS_S + 1.0)
    await lab.until(lambda: len(lab.site.ends) > count, within_s=13.0)
    await normal_again(lab, "watchdog", before)


async def normal_again(lab: WireLab, why: str, before: int) -> None:
    """NORMAL by a process that is not `before`, counted from when the unit starts it."""
    ended_s = time.monotonic()
    await lab.until_mode("NORMAL", within_s=RESTART_S + NORMAL_S, newer_than_pid=before)
    figure(f"{why}, restart of the controller to NORMAL", time.monotonic() - ended_s - RESTART_S, at_most=NORMAL_S)


async def deposed(lab: WireLab) -> None:
    """X4: a twin on the same state is refused; a higher epoch wins at the nodes, and the stale one steps down."""
    count = len(lab.site.ends)
    twin = lab.service("site", lab.files.site_file, lab.run_dir, {}, title="twin")
    await asyncio.wait_for(twin.run(), 20.0)  # the lease is held on this machine: exit 2, and no restart
    assert [end.status for end in twin.ends] == [2] and twin.is_given_up
    assert "another controller leads" in log_of(lab.out, "twin")
    second = lab.service("site", lab.other_site(epoch=1000), lab.run_dir, {}, title="other")
    running = asyncio.ensure_future(second.run())
    try:
        await lab.until_mode("LOCKOUT", within_s=30.0)
        status = await lab.status()
        assert status is not None and any("another controller leads" in why for why in status["reasons"])
        await lab.run(8.0)
        assert await lab.other_mode() in ("NORMAL", "DEGRADED", "SHED"), log_of(lab.out, "other")
        assert lab.site.is_running and len(lab.site.ends) == count, "it stays, and says why"
    finally:
        await second.stop(deadline_s=10.0)
        await asyncio.gather(running, return_exceptions=True)


def test_controller_that_stays_away_leaves_bounded_caps_and_no_battery(tmp_path: Path) -> None:
    """X1, X5: killed, and its file is wrong when the unit starts it again: exit 2, not tried any more.

    Caps are bounded in 5 s, the battery away in 30 s, then clocks go down in their slot, the step within bounds; with
    its file mended it takes over again.
    """
    span: list[float] = []
    seen: list[float] = []

    async def story(lab: WireLab) -> None:
        await settled(lab)
        before, good = lab.site.pid, lab.files.site_file.read_text(encoding="utf-8")
        lab.files.site_file.write_text(re.sub(r"tracker_hz: \S+", "tracker_hz: quick", good), encoding="utf-8")
        span.append(lab.now_s)
        lab.site.signal(signal.SIGKILL)
        caps_s = await lab.until(lambda: are_bounded(lab), within_s=CAPS_S + 1.0)
        away_s = caps_s + await lab.until(lambda: is_away(lab), within_s=BATTERY_S)
        figure("death of the controller to bounded caps", caps_s, at_most=CAPS_S + SEEN_S)
        figure("death of the controller to the battery away", away_s, at_most=BATTERY_S)
        await lab.until(lambda: float(lab.caps_mhz().mean()) < TOP_MHZ, within_s=SLOT_S)
        await sample_clocks(lab, seen)
        print(f"clocks every 4 s: {seen}")
        assert all(b < a or b <= FALLBACK_MHZ for a, b in pairwise(seen)), "on their way to the fallback cap"
        span.append(lab.now_s)
        await lab.until(lambda: lab.site.is_given_up, within_s=30.0)  # an interpreter's start on busy cores
        assert [end.status for end in lab.site.ends] == [-signal.SIGKILL, 2]
        assert "tracker_hz" in log_of(lab.out, "site").splitlines()[-1]
        lab.files.site_file.write_text(good, encoding="utf-8")
        lab.begin_again("site")
        await lab.until_mode("NORMAL", within_s=RESTART_S + NORMAL_S, newer_than_pid=before)

    lab = told(story, tmp_path)
    step_w = lab.step_w(*span)
    print(f"largest step {step_w / MW:.2f} MW/s")
    assert step_w <= DEATH_STEP_W


async def sample_clocks(lab: WireLab, seen: list[float]) -> None:
    seen.append(float(lab.caps_mhz().mean()))
    for _ in range(4):
        await lab.run(4.0)
        seen.append(float(lab.caps_mhz().mean()))


# ------------------------------------------------------------------------------------------------ X7: the node


def test_agent_dies_and_its_gpus_are_held_then_taken_back_until_it_is_given_up(tmp_path: Path) -> None:
    """Killed mid-write, stopped until its watchdog: held at fallback, taken back. At the start limit: all restored."""

    async def story(lab: WireLab) -> None:
        await settled(lab)
        await agent_dies(lab, signal.SIGKILL)
        await agent_dies(lab, signal.SIGSTOP)
        lab.node.unit = lab.node.unit.with_value("StartLimitBurst", str(lab.node.start_count))
        lab.node.signal(signal.SIGKILL)
        await lab.until(lambda: lab.node.is_given_up and len(lab.node.stop_posts) == 4, within_s=30.0)
        assert lab.node.stop_posts == [0, 0, 0, 0] and lab.gpus.left_throttled() == ()
        assert not (lab.out / "wire" / "state" / "node" / "originals.json").exists()
        status = await lab.status()
        assert status is not None and lab.site.is_running, "the site goes on without the node"

    lab = told(story, tmp_path)
    assert [end.result for end in lab.node.ends] == ["signal", "watchdog", "signal"] and lab.site.start_count == 1


async def agent_dies(lab: WireLab, how: signal.Signals) -> None:
    """ExecStopPost puts the fallback cap, the next agent arms."""
    before, count = lab.node.pid, len(lab.node.stop_posts)
    lab.node.signal(how)
    await lab.until(lambda: len(lab.node.stop_posts) > count, within_s=20.0)
    assert lab.node.stop_posts[-1] == 0 and are_at_fallback(lab), log_of(lab.out, "node")
    assert (lab.out / "wire" / "state" / "node" / "originals.json").is_file()
    await lab.until(lambda: lab.node.is_ready and lab.node.pid != before, within_s=30.0)
    await lab.run(3.0)  # it may have been away too shortly for the mode to leave NORMAL
    await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)


# ------------------------------------------------------------------------------------------------ X2: disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MB for all that site and node keep."""
    folder = tmp_path / "out" / "wire" / "state"
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_full_disk_stops_the_recording_and_nothing_else(small_disk: Path, tmp_path: Path) -> None:
    """X2: ENOSPC on everything that is kept. Control goes on, it is said once, originals stay whole and come back."""

    async def story(lab: WireLab) -> None:
        await settled(lab)
        originals = small_disk / "node" / "originals.json"
        whole = originals.read_bytes()
        free = shutil.disk_usage(small_disk).free
        with (small_disk / "ballast").open("wb") as file:
            try:
                file.write(bytes(free + (1 << 20)))
            except OSError as error:
                assert error.errno == 28
        await lab.until(lambda: "recorder stopped" in log_of(lab.out, "site"), within_s=15.0)
        before = await lab.status()
        await lab.run(5.0)
        after = await lab.status()
        assert before is not None and after is not None and after["tick"]["count"] - before["tick"]["count"] > 20
        assert after["mode"] in ("NORMAL", "DEGRADED") and originals.read_bytes() == whole
        lab.node.signal(signal.SIGKILL)  # and now the agent dies, on a disk that takes nothing
        await lab.until(lambda: bool(lab.node.stop_posts), within_s=20.0)
        assert are_at_fallback(lab) and originals.read_bytes() == whole
        await lab.until(lambda: lab.node.start_count == 2 and lab.node.is_ready, within_s=15.0)
        await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)
        (small_disk / "ballast").unlink()

    lab = told(story, tmp_path)
    assert log_of(lab.out, "site").count("recorder stopped") == 1


# ------------------------------------------------------------------------------------------------ C1, X6


def test_wall_clock_of_the_controller_steps_an_hour_and_back(tmp_path: Path) -> None:
    """The step is injected below the process, never the machine's: control goes on, the mode says it, and it passes."""
    apart = tmp_path / "apart"

    async def story(lab: WireLab) -> None:
        await settled(lab)
        before = lab.site.pid
        for apart_s in (3600, 0):
            apart.write_text(f"{apart_s}\n", encoding="ascii")
            await lab.until_mode("DEGRADED", within_s=3.0)
            status = await lab.status()
            assert status is not None and any("wall clock" in why for why in status["reasons"])
            first = status["tick"]["count"]
            await lab.run(5.0)
            status = await lab.status()
            assert status is not None and status["tick"]["count"] - first > 20, "control paused"
            await lab.until_mode("NORMAL", within_s=NORMAL_S)
        assert lab.site.pid == before and not lab.site.ends

    told(story, tmp_path, environment=fake_clock(tmp_path, apart))


def test_damaged_originals_are_not_guessed(tmp_path: Path) -> None:
    """X6: the saved settings are half a file when the agent starts again: device defaults stand in, and it is said."""

    other_tool: list[str] = []

    async def story(lab: WireLab) -> None:
        await settled(lab)
        other_tool.append(lab.gpus.gpus.uuids()[OTHER_TOOL_GPU])
        saved = lab.out / "wire" / "state" / "node" / "originals.json"
        lab.node.signal(signal.SIGSTOP)
        saved.write_text(saved.read_text(encoding="utf-8")[:100], encoding="utf-8")
        lab.node.signal(signal.SIGKILL)
        await lab.until(lambda: lab.node.start_count == 2 and lab.node.is_ready, within_s=30.0)
        await lab.until(lambda: "device defaults stand in" in log_of(lab.out, "node"), within_s=30.0)
        await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)
        assert lab.node.is_running

    lab = in_wire_lab(story, lane_scenario(), tmp_path / "out")
    assert set(lab.left_throttled) <= set(other_tool), "only what another tool had set is the device's default now"
    assert lab.processes_left == 0 and "originals" in log_of(lab.out, "node")
