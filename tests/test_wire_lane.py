"""The whole site on sick wires (Modbus frames, broker, NVML at the C ABI): shipped processes, judged on plant truth."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiomqtt
import numpy as np
import pytest

from drivers.dsx_wire import load_target_topic
from hil.modbus_proxy import WireFault
from hil.wire_lab import MOSQUITTO, Story, WireLab, in_wire_lab
from tests.lane_kit import CAPS_S, DEATH_STEP_W, MW, NEEDS_COMPILER, NORMAL_S, TRACKER_HZ, lane_scenario, log_of

pytestmark = [pytest.mark.wire, pytest.mark.slow, NEEDS_COMPILER]

EACH_S = 2.5
TARGET = {"kind": "load_target", "issuer": "grid-operator", "t_s": 0, "until_s": 600, "by_s": 20, "megawatt": 25}
TIGHTER = TARGET | {"megawatt": 18, "t_s": 1}
SEQUENCE = (
    (WireFault.DELAY, 0.5),
    (WireFault.DROP, 0.0),
    (WireFault.CUT, 0.0),
    (WireFault.DUPLICATE, 0.0),
    (WireFault.REORDER, 0.0),
    (WireFault.SPLIT, 0.0),
    (WireFault.COALESCE, 3),
    (WireFault.WRONG_UNIT, 0.0),
    (WireFault.WRONG_FUNCTION, 0.0),
    (WireFault.GARBAGE, 0.0),
    (WireFault.EXCEPTION, 4),
    (WireFault.EXCEPTION, 6),
    (WireFault.EXCEPTION, 0x0B),
    (WireFault.REFUSED, 0.0),
    (WireFault.HALF_OPEN, 0.0),
)


def told(
    story: Story, tmp_path: Path, *, follow: str = "device", start_soc: float = 0.5, with_mosquitto: bool = False
) -> WireLab:
    """The story; nothing restarted, nothing left behind."""
    scenario = lane_scenario(follow=follow, signals=[TARGET, TIGHTER], start_soc=start_soc)
    lab = in_wire_lab(story, scenario, tmp_path / "out", with_mosquitto=with_mosquitto)
    assert lab.left_throttled == () and lab.processes_left == 0
    assert [s.start_count for s in lab.services.values()] == [1, 1], lab.said
    for name in lab.services:
        assert "exception was never retrieved" not in log_of(lab.out, name)
    return lab


async def ticks(lab: WireLab) -> int:
    status = await lab.status()
    assert status is not None
    return int(status["tick"]["count"])


async def flagged(lab: WireLab, words: str, *, within_s: float) -> None:
    """The mode's reasons name it."""

    async def says() -> None:
        while True:
            status = await lab.status()
            if status is not None and any(words in why for why in status["reasons"]):
                return
            await asyncio.sleep(0.1)

    try:
        await asyncio.wait_for(says(), within_s)
    except TimeoutError:
        pytest.fail(f"{words!r} was never a reason")


async def well_again(lab: WireLab, *, within_s: float) -> None:
    """Nothing is left but the envelope's own doubt of a planner at its limit, as in the fault matrix."""

    reasons: list[str] = ["no status"]

    async def is_well() -> None:
        while True:
            status = await lab.status()
            if status is not None:
                reasons[:] = status["reasons"]
                if all("envelope overruled" in why for why in reasons):
                    return
            await asyncio.sleep(0.1)

    try:
        await asyncio.wait_for(is_well(), within_s)
    except TimeoutError:
        pytest.fail(f"not well again after {within_s:g} s: {'; '.join(reasons)}")


def test_every_way_a_frame_can_go_wrong(tmp_path: Path) -> None:
    """Fourteen faults one after the other, 2.5 s each, on the meter's wire and then on the battery's.

    Control goes on, power stays smooth, NORMAL returns.
    """
    span: list[float] = []

    async def story(lab: WireLab) -> None:
        await lab.until_mode("NORMAL", within_s=NORMAL_S + 10)
        await lab.run(2.0)
        span.append(lab.now_s)
        for device in ("meter", "battery"):
            await sick(lab, device)
        span.append(lab.now_s)

    lab = told(story, tmp_path)
    assert lab.step_w(*span) <= DEATH_STEP_W


async def sick(lab: WireLab, device: str) -> None:
    proxy, first, begin_s = lab.proxies[device], await ticks(lab), lab.now_s
    for fault, value in SEQUENCE:
        proxy.make(fault, value)
        if fault is WireFault.REFUSED:
            proxy.reset()
        await lab.run(EACH_S)
    assert await ticks(lab) - first > 0.8 * TRACKER_HZ * (lab.now_s - begin_s), f"control waited for the {device}"
    status = await lab.status()
    assert status is not None and status["mode"] not in ("NORMAL", "STARTING"), device
    proxy.heal()
    await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)
    assert proxy.sick_count > 20


def test_battery_behind_a_half_open_gateway_lets_go_and_is_found_again(tmp_path: Path) -> None:
    """M9: our writes go nowhere. Its own timer ends its set-point within 30 s; the wire back, it is commanded again."""

    async def story(lab: WireLab) -> None:
        await lab.until_mode("NORMAL", within_s=NORMAL_S + 10)
        lab.announce()
        await lab.until(lambda: abs(lab.plant.battery.power_w) > MW, within_s=20.0)
        lab.proxies["battery"].make(WireFault.HALF_OPEN)
        away_s = await lab.until(lambda: abs(lab.plant.battery.power_w) < 0.3 * MW, within_s=30.0)
        print(f"away after {away_s:.1f} s")
        await flagged(lab, "battery", within_s=5.0)
        lab.proxies["battery"].heal()
        await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)

    told(story, tmp_path, follow="software")


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
def test_broker_frozen_killed_and_flooded(tmp_path: Path) -> None:
    """Nodes go to fallback by themselves while it is away; a flood is looked at by the bucket and delays nobody."""

    async def story(lab: WireLab) -> None:
        assert lab.mosquitto is not None and lab.files.site.mqtt is not None
        await lab.until_mode("NORMAL", within_s=NORMAL_S + 10)
        await lab.run(3.0)
        lab.mosquitto.signal(signal.SIGSTOP)
        bounded_s = await lab.until(lambda: bool(np.isfinite(lab.caps_mhz()).all()), within_s=CAPS_S + 2.0)
        await flagged(lab, "node agent", within_s=10.0)
        lab.mosquitto.signal(signal.SIGCONT)
        await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)
        await lab.mosquitto.kill()
        await lab.run(7.0)
        await lab.mosquitto.begin()
        await lab.until_mode("NORMAL", within_s=60.0 + NORMAL_S)
        before, begin_s = await ticks(lab), lab.now_s
        async with aiomqtt.Client("127.0.0.1", lab.files.site.mqtt.port) as client:
            topic = load_target_topic("grid-operator")
            for k in range(4000):
                await client.publish(topic, b"{" + bytes(200), qos=0)
                if k % 400 == 0:
                    await asyncio.sleep(0.05)
            await client.publish(topic, b" " * 60_000, qos=0, retain=True)
        spent_s = lab.now_s - begin_s
        assert await ticks(lab) - before > 0.8 * TRACKER_HZ * spent_s, "a flood slows the loop"
        lab.announce()
        await lab.until(lambda: bool(lab.answers), within_s=15.0)
        assert lab.answers[-1].answer.acceptance != "refused"
        print(f"caps bounded {bounded_s:.1f} s after the freeze; flood took {spent_s:.1f} s")

    told(story, tmp_path, with_mosquitto=True)


def test_nvml_hangs_loses_a_gpu_refuses_and_pretends(tmp_path: Path) -> None:
    """At the C ABI, each in turn while a ceiling needs its caps: said in the mode, no restart, well again by itself."""

    async def story(lab: WireLab) -> None:
        await lab.until_mode("NORMAL", within_s=NORMAL_S + 10)
        lab.announce()
        await lab.run(4.0)
        gpus = lab.gpus.gpus
        gpus.hang("*", 6.0, gpu=0)
        await flagged(lab, "NVML call hangs", within_s=10.0)
        gpus.hang("*", 0.0, gpu=0)
        gpus.lose(1)
        await lab.run(8.0)
        status = await lab.status()
        assert status is not None and status["mode"] not in ("NORMAL", "STARTING"), status["reasons"]
        gpus.lose(1, is_lost=False)
        gpus.ignore_writes(2, clocks=True, limit=True)
        gpus.deny_setters(3)
        lab.announce(1)  # what is ignored shows with the next cap
        await flagged(lab, "does not apply them", within_s=40.0)
        gpus.ignore_writes(2, clocks=False, limit=False)
        gpus.deny_setters(3, denies=False)
        await well_again(lab, within_s=100.0)  # a refused write is tried again after a minute, then the dwell

    told(story, tmp_path, start_soc=0.07)  # so that caps must do it
