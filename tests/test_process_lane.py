"""Rows X and C of the fault catalogue as real processes over wires: shipped commands under what plays systemd.

Real time, real sockets, the C ABI of NVML; judged on plant truth. Each story ends with a clean stop, no process left
and no GPU at other settings than it was found with.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hil.supervisor import Service
from hil.wire_gpus import OTHER_TOOL_GPU
from hil.wire_lab import Story, WireLab, in_wire_lab
from tests.lane_kit import (
    BATTERY_S,
    CAPS_S,
    DEATH_STEP_W,
    MW,
    NEEDS_COMPILER,
    NORMAL_S,
    fake_clock,
    lane_scenario,
    log_of,
)

pytestmark = [pytest.mark.process, NEEDS_COMPILER]

FALLBACK_MHZ = 1200.0
RESTART_S = 2.0  # RestartSec of both units


def told(story: Story, tmp_path: Path, *, environment: dict[str, str] | None = None) -> WireLab:
    """The story, and what every story must leave behind."""
    lab = in_wire_lab(story, lane_scenario(), tmp_path / "out", site_environment=environment)
    assert lab.left_throttled == () and lab.processes_left == 0
    return lab


async def settled(lab: WireLab) -> None:
    await lab.until_mode("NORMAL", within_s=NORMAL_S + 10.0)
    await lab.run(3.0)


def are_bounded(lab: WireLab) -> bool:
    """No GPU is free any more: its node holds it, and brings it down at the contract's slope."""
    return bool(np.isfinite(lab.caps_mhz()).all())


def are_at_fallback(lab: WireLab) -> bool:
    return bool((np.nan_to_num(lab.caps_mhz(), nan=1e9) <= FALLBACK_MHZ).all())


def is_away(lab: WireLab) -> bool:
    return abs(lab.plant.battery.power_w) < 0.3 * MW


# ------------------------------------------------------------------------------------------------ X1, X3: death


def test_controller_killed_returns_within_its_time_and_without_a_bump(tmp_path: Path) -> None:
    """kill -9 in the middle of its writes: restarted by the unit, through DEGRADED to NORMAL."""
    span: list[float] = []

    async def story(lab: WireLab) -> None:
        await settled(lab)
        before = lab.site.pid
        span.append(lab.now_s)
        killed_s = time.monotonic()
        lab.site.signal(signal.SIGKILL)
        await lab.until_mode("DEGRADED", "NORMAL", within_s=10.0, newer_than_pid=before)
        await lab.until_mode("NORMAL", within_s=NORMAL_S, newer_than_pid=before)
        assert time.monotonic() - killed_s - RESTART_S <= NORMAL_S
        span.append(lab.now_s)

    lab = told(story, tmp_path)
    assert [end.result for end in lab.site.ends[:1]] == ["signal"] and lab.site.start_count == 2
    assert lab.step_w(*span) <= DEATH_STEP_W, "a bump in power"


def test_controller_that_stays_away_leaves_bounded_caps_and_no_battery(tmp_path: Path) -> None:
    """Killed and not brought back for 45 s: caps bounded in 5 s, battery away in 30 s, the step within bounds."""
    span: list[float] = []

    async def story(lab: WireLab) -> None:
        await settled(lab)
        span.append(lab.now_s)
        lab.site.unit = lab.site.unit.with_value("RestartSec", "45")
        lab.site.signal(signal.SIGKILL)
        caps_s = await lab.until(lambda: are_bounded(lab), within_s=CAPS_S + 1.0)
        away_s = caps_s + await lab.until(lambda: is_away(lab), within_s=BATTERY_S)
        print(f"caps bounded after {caps_s:.1f} s, battery away after {away_s:.1f} s")
        assert caps_s <= CAPS_S + 0.7, "the TTL of five periods, and what a report and a clock take"
        assert away_s <= BATTERY_S
        seen = [float(lab.caps_mhz().mean())]
        for _ in range(4):
            await lab.run(4.0)
            seen.append(float(lab.caps_mhz().mean()))
        print(f"clocks every 4 s: {seen}")
        assert all(b < a or b <= FALLBACK_MHZ for a, b in pairwise(seen)), "on their way to the fallback cap"
        span.append(lab.now_s)
        before = lab.site.pid
        await lab.until_mode("NORMAL", within_s=45.0 + NORMAL_S, newer_than_pid=before)

    lab = told(story, tmp_path)
    step_w = lab.step_w(*span)
    print(f"largest step {step_w / MW:.2f} MW/s")
    assert step_w <= DEATH_STEP_W


def test_controller_at_its_memory_limit_is_killed_and_returns(tmp_path: Path) -> None:
    """X3: the limit is the unit's, lowered to what it uses now; the kill is a kernel's, the way back that of X1."""

    async def story(lab: WireLab) -> None:
        await settled(lab)
        assert lab.site.memory_max == 1 << 30 and 0 < lab.site.rss_bytes_max < 1 << 30
        before = lab.site.pid
        lab.site.memory_max = lab.site.rss_bytes_max // 2
        await lab.until(lambda: bool(lab.site.ends), within_s=5.0)
        lab.site.memory_max = lab.site.unit.memory_max
        await lab.until_mode("NORMAL", within_s=RESTART_S + NORMAL_S, newer_than_pid=before)

    lab = told(story, tmp_path)
    assert lab.site.ends[0].result == "oom-kill" and log_of(lab.out, "node").count("Traceback") == 0


# ------------------------------------------------------------------------------------------------ C3, C4: silence


def test_controller_stopped_for_twelve_seconds_meets_its_watchdog(tmp_path: Path) -> None:
    """SIGSTOP: nodes go to fallback by themselves, the watchdog of 10 s ends it, the next one controls."""

    async def story(lab: WireLab) -> None:
        await settled(lab)
        before = lab.site.pid
        lab.site.signal(signal.SIGSTOP)
        await lab.until(lambda: are_bounded(lab), within_s=CAPS_S + 1.0)
        await lab.until(lambda: bool(lab.site.ends), within_s=8.0)
        await lab.until_mode("NORMAL", within_s=RESTART_S + NORMAL_S, newer_than_pid=before)

    lab = told(story, tmp_path)
    assert lab.site.ends[0].result == "watchdog"


def test_a_pause_shorter_than_the_watchdog_is_survived(tmp_path: Path) -> None:
    """C4, as a suspended machine does it: 7 s of nothing, commands expired, noted, armed again by the same process."""

    async def story(lab: WireLab) -> None:
        await settled(lab)
        before = lab.site.pid
        for service in (lab.site, lab.node):
            service.signal(signal.SIGSTOP)
        await lab.run(7.0)
        for service in (lab.node, lab.site):
            service.signal(signal.SIGCONT)
        await lab.until_mode("DEGRADED", "SHED", "FALLBACK", "HOLD", within_s=3.0)
        await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)
        assert lab.site.pid == before and not lab.site.ends and not lab.node.ends

    told(story, tmp_path)


# ------------------------------------------------------------------------------------------------ X7: the node


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_agent_dies_and_its_gpus_are_held_then_taken_back(how: str, tmp_path: Path) -> None:
    """Killed mid-write, or stopped until its watchdog of 10 s: ExecStopPost puts the fallback cap, the next arms."""

    async def story(lab: WireLab) -> None:
        await settled(lab)
        before = lab.node.pid
        lab.node.signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        await lab.until(lambda: bool(lab.node.stop_posts), within_s=20.0)
        assert lab.node.stop_posts == [0] and are_at_fallback(lab), log_of(lab.out, "node")
        assert (lab.out / "wire" / "state" / "node" / "originals.json").is_file()
        await lab.until(lambda: lab.node.is_running and lab.node.pid != before, within_s=10.0)
        await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)

    lab = told(story, tmp_path)
    assert lab.node.ends[0].result == {"kill": "signal", "stop": "watchdog"}[how]
    assert lab.site.start_count == 1


def test_agent_that_dies_again_and_again_is_given_up_and_its_gpus_restored(tmp_path: Path) -> None:
    """The start limit of the unit: OnFailure gives the original settings back; the site goes on without the node."""

    async def story(lab: WireLab) -> None:
        await settled(lab)
        lab.node.unit = lab.node.unit.with_value("StartLimitBurst", "1")
        lab.node.signal(signal.SIGKILL)
        await lab.until(lambda: lab.node.is_given_up and len(lab.node.stop_posts) == 2, within_s=30.0)
        assert lab.node.stop_posts == [0, 0] and lab.gpus.left_throttled() == ()
        assert not (lab.out / "wire" / "state" / "node" / "originals.json").exists()
        status = await lab.status()
        assert status is not None and lab.site.is_running

    told(story, tmp_path)


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


# ------------------------------------------------------------------------------------------------ X4: two controllers


def test_a_second_controller_deposes_the_first_and_one_on_the_same_files_is_refused(tmp_path: Path) -> None:
    """Split brain: the higher epoch wins at the nodes, the stale controller is told and steps down by itself."""
    other: list[Service] = []

    async def story(lab: WireLab) -> None:
        await settled(lab)
        twin = lab.service("site", lab.files.site_file, lab.run_dir, {}, title="twin")
        await asyncio.wait_for(twin.run(), 20.0)  # the lease is held on this machine: exit 2, and no restart
        assert [end.status for end in twin.ends] == [2] and twin.is_given_up
        assert "another controller leads" in log_of(lab.out, "twin")
        second = lab.service("site", lab.other_site(epoch=1000), lab.run_dir, {}, title="other")
        other.append(second)
        running = asyncio.ensure_future(second.run())
        try:
            await lab.until_mode("LOCKOUT", within_s=30.0)
            status = await lab.status()
            assert status is not None and any("another controller leads" in why for why in status["reasons"])
            await lab.run(8.0)
            assert await lab.other_mode() in ("NORMAL", "DEGRADED", "SHED"), log_of(lab.out, "other")
            assert lab.site.is_running and not lab.site.ends, "it stays, and says why"
        finally:
            await second.stop(deadline_s=10.0)
            await asyncio.gather(running, return_exceptions=True)

    lab = told(story, tmp_path)
    assert log_of(lab.out, "site").count("mode=LOCKOUT") == 1


# ------------------------------------------------------------------------------------------------ C1, X5, X6


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_wall_clock_of_the_controller_steps_an_hour(step_s: int, tmp_path: Path) -> None:
    """The step is injected below the process, never the machine's: control goes on, the mode says it, and it passes."""
    apart = tmp_path / "apart"

    async def story(lab: WireLab) -> None:
        await settled(lab)
        before = lab.site.pid
        apart.write_text(f"{step_s}\n", encoding="ascii")
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


def test_a_wrong_file_at_restart_is_not_tried_again(tmp_path: Path) -> None:
    """X5: exit 2 is wrong input; the unit does not restart it, and the nodes stay bounded without it."""

    async def story(lab: WireLab) -> None:
        await settled(lab)
        good = lab.files.site_file.read_text(encoding="utf-8")
        lab.files.site_file.write_text(good.replace("tracker_hz: 20", "tracker_hz: quick"), encoding="utf-8")
        lab.site.signal(signal.SIGKILL)
        await lab.until(lambda: lab.site.is_given_up, within_s=30.0)  # an interpreter's start on busy cores
        assert [end.status for end in lab.site.ends] == [-signal.SIGKILL, 2]
        assert "tracker_hz" in log_of(lab.out, "site").splitlines()[-1]
        await lab.until(lambda: are_bounded(lab), within_s=CAPS_S + 1.0)

    told(story, tmp_path)


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
        await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)
        assert lab.node.is_running

    lab = in_wire_lab(story, lane_scenario(), tmp_path / "out")
    assert set(lab.left_throttled) <= set(other_tool), "only what another tool had set is the device's default now"
    assert lab.processes_left == 0 and "originals" in log_of(lab.out, "node")
