"""The shipped units on a Debian of its own, run by its own systemd: what no supervisor of ours can stand for.

The machine is installed by the README's commands. Sandbox, watchdog, restarts, ExecStopPost= and boot are systemd's;
devices, broker and GPUs are the bench's, on real wires. Judged on plant truth and on what the driver holds.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hil.machine import build, missing
from hil.machine_lab import MachineLab, in_machine
from tests.conftest import NO_MACHINE
from tests.lane_kit import (
    CAPS_S,
    DEATH_STEP_W,
    NEEDS_COMPILER,
    NORMAL_S,
    are_at_fallback,
    are_bounded,
    figure,
    lane_scenario,
)

pytestmark = [pytest.mark.machine, NEEDS_COMPILER]

FOLDER = Path("out/machine")
WATCHDOG_S, RESTART_S = 10.0, 2.0  # of the shipped units
SLACK_S = 3.0  # what systemd, two cores and our looking take beside that


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The machine's folder; made once, then only what changed is installed again."""
    if why := missing():
        pytest.skip(f"{why}: {NO_MACHINE}")
    build(FOLDER)
    yield FOLDER / "root"


async def normal(lab: MachineLab, *, within_s: float = NORMAL_S) -> float:
    """Seconds until NORMAL, and some of it."""
    took_s = await lab.until_mode("NORMAL", within_s=within_s)
    await lab.run(3.0)
    return took_s


async def until_another(lab: MachineLab, name: str, pid: int, *, within_s: float) -> int:
    """The service's next main process."""
    until_s = time.monotonic() + within_s
    while (now := await lab.unit(name).pid()) in (0, pid):
        assert time.monotonic() < until_s, await lab.unit(name).journal()
        await lab.run(0.1)
    return now


def test_units_keep_a_site_through_the_deaths_of_both_services(root: Path, tmp_path: Path) -> None:
    """One boot: sandbox, kill -9 and a stopped process of either, a reload, a wrong file, and a stop on purpose."""
    span: list[float] = []

    async def story(lab: MachineLab) -> None:
        await normal(lab, within_s=40.0)
        await is_locked_in(lab)
        await obeys_its_group_only(lab)
        await reloads(lab)
        span.append(lab.now_s)
        await controller_is_killed(lab)
        await controller_stands_still(lab)
        span.append(lab.now_s)
        await agent_is_killed(lab)
        await refuses_a_wrong_file(lab)
        await gives_back(lab)

    lab = in_machine(story, lane_scenario(), root, tmp_path / "out")
    assert lab.left_throttled == ()
    assert lab.step_w(*span) <= DEATH_STEP_W, "a bump in power"
    for name in ("site", "node"):
        assert "Traceback" not in (lab.out / f"{name}.journal").read_text(encoding="utf-8")


async def is_locked_in(lab: MachineLab) -> None:
    """What the units promise of privileges holds of the processes that run."""
    assert lab.machine is not None
    for name, capabilities in (("site", 0), ("node", 1 << 21)):  # CAP_SYS_ADMIN
        pid = await lab.unit(name).pid()
        _, status = await lab.machine.run("cat", f"/proc/{pid}/status")
        held = {key: value.split() for key, _, value in (line.partition(":") for line in status.splitlines())}
        assert (held["Uid"][0] == "0") == (name == "node") and held["NoNewPrivs"] == ["1"] and held["Seccomp"] == ["2"]
        assert int(held["CapBnd"][0], 16) == int(held["CapEff"][0], 16) == capabilities
        for place, is_open in (("/usr/rampart", False), ("/etc/rampart/x", False), ("/root/x", False)):
            there = ["nsenter", "-t", str(pid), "-m", "sh", "-c", f"touch {place} 2>/dev/null"]
            assert ((await lab.machine.run(*there))[0] == 0) is is_open, f"{name}: {place}"


async def obeys_its_group_only(lab: MachineLab) -> None:
    """A person in the group may look and order; another may neither."""
    assert lab.machine is not None
    await lab.machine.run("useradd", "--groups", "rampart", "sre")
    await lab.machine.run("useradd", "visitor")
    for user, looks in (("sre", 0), ("visitor", 2)):
        status, said = await lab.machine.run("runuser", "-u", user, "--", "/opt/rampart/.venv/bin/rampart", "status")
        assert (status, "Traceback" in said) == (looks, False), said
    status, said = await lab.machine.run("runuser", "-u", "sre", "--", "/opt/rampart/.venv/bin/rampart", "reset")
    assert status == 0, said


async def reloads(lab: MachineLab) -> None:
    """`systemctl reload`: a wrong file is refused whole, a right one taken by the same process."""
    site = lab.unit("site")
    pid, document = await site.pid(), lab.document("site")
    lab.put("site", document | {"tracker_hz": "quick"})
    assert await site.order("reload") != 0 and await site.pid() == pid
    assert "tracker_hz" in await site.journal()
    lab.put("site", document | {"commands": {**document.get("commands", {}), "grace_s": 31}})
    epoch = lab.epoch()
    assert await site.order("reload") == 0
    await lab.until(lambda: lab.epoch() == epoch + 1, within_s=10.0)
    await normal(lab)
    assert await site.pid() == pid
    lab.put("site", document)


async def controller_is_killed(lab: MachineLab) -> None:
    """X1: kill -9; systemd starts it again, and it takes over."""
    site = lab.unit("site")
    pid, began_s = await site.pid(), time.monotonic()
    await site.signal(signal.SIGKILL)
    await until_another(lab, "site", pid, within_s=RESTART_S + SLACK_S)
    await normal(lab, within_s=NORMAL_S + RESTART_S)
    figure("systemd: kill -9 of the controller to NORMAL", time.monotonic() - began_s - 3.0, at_most=NORMAL_S + 2.0)
    assert await site.show("NRestarts") == "1"


async def controller_stands_still(lab: MachineLab) -> None:
    """C3: its watchdog ends it; nodes hold their caps by themselves meanwhile."""
    site = lab.unit("site")
    pid = await site.pid()
    await site.signal(signal.SIGSTOP)
    await lab.until(lambda: are_bounded(lab), within_s=CAPS_S + 1.0)
    began_s = time.monotonic()
    await until_another(lab, "site", pid, within_s=WATCHDOG_S + RESTART_S + SLACK_S + CAPS_S)
    assert time.monotonic() - began_s > WATCHDOG_S - CAPS_S - 2.0, "not by its watchdog"
    assert re.search("[Ww]atchdog", await site.journal())
    await normal(lab, within_s=NORMAL_S + RESTART_S)


async def agent_is_killed(lab: MachineLab) -> None:
    """X7: ExecStopPost= puts the fallback cap with nobody of ours alive; the next agent obeys again."""
    node = lab.unit("node")
    pid = await node.pid()
    await node.signal(signal.SIGKILL)
    await lab.until(lambda: are_at_fallback(lab), within_s=RESTART_S + SLACK_S)
    await until_another(lab, "node", pid, within_s=RESTART_S + SLACK_S + 5.0)
    await normal(lab, within_s=NORMAL_S + 30.0)
    await lab.until(lambda: not are_at_fallback(lab), within_s=60.0)


async def refuses_a_wrong_file(lab: MachineLab) -> None:
    """X5: exit 2 with the line; it is not tried again. Mended and started, it takes over."""
    site = lab.unit("site")
    document = lab.document("site")
    lab.put("site", document | {"tracker_hz": "quick"})
    assert await site.order("restart") != 0
    await lab.run(RESTART_S + SLACK_S)
    assert (await site.show("ActiveState"), await site.show("ExecMainStatus")) == ("failed", "2")
    assert "/etc/rampart/site.yaml: tracker_hz" in (await site.journal())
    lab.put("site", document)
    assert await site.order("start") == 0
    await normal(lab, within_s=NORMAL_S + 10.0)


async def gives_back(lab: MachineLab) -> None:
    """`systemctl stop` of the agent: every GPU as it was found, and nothing put on it afterwards."""
    node = lab.unit("node")
    assert await node.order("stop") == 0
    assert await node.show("Result") == "success"
    assert np.isnan(lab.caps_mhz()).all() and lab.gpus.left_throttled() == ()


def test_a_machine_that_loses_power_gives_gpus_back_before_its_agent_begins(root: Path, tmp_path: Path) -> None:
    """Cut off in control, GPUs capped: at boot the originals come back first, then both services take over."""

    async def story(lab: MachineLab) -> None:
        await normal(lab, within_s=40.0)
        assert lab.machine is not None
        await lab.unit("site").signal(signal.SIGSTOP)  # its nodes hold every GPU then
        await lab.until(lambda: are_bounded(lab), within_s=CAPS_S + 1.0)
        await lab.machine.cut()
        assert are_bounded(lab), "nobody was there to give them back"
        await lab.boot()
        restored_us = int(await lab.unit("restore").show("ExecMainExitTimestampMonotonic"))
        assert await lab.unit("restore").show("ExecMainStatus") == "0"
        assert 0 < restored_us <= int(await lab.unit("node").show("ExecMainStartTimestampMonotonic"))
        await lab.until_mode("NORMAL", within_s=NORMAL_S + 40.0)

    lab = in_machine(story, lane_scenario(), root, tmp_path / "out")
    assert lab.left_throttled == ()
