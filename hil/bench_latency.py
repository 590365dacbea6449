"""How long an emergency takes on real wires: from its publication to clock lock, set-point and power inside the target.

The site controller and the node agent are processes of their own, run from files written here; broker, Modbus servers
and plant live in this process. A trial publishes a signed, ramp-exempt ceiling, watches until power has stayed inside
for a second, and withdraws it. A clock may change once a second and a trial changes each twice, so that it takes two
seconds at least. Every time is of one machine's monotonic clock; the start is the hand-over of the signed message to
MQTT.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from controller.clock import MonotonicClock
from controller.control_socket import fetch
from controller.settings import MqttSettings
from controller.types import FloatArray, frozen
from drivers.dsx_extension import SetRampLimitData
from drivers.dsx_wire import Sender, ramp_limit_topic
from drivers.jws import Signer, write_key_pair
from drivers.mqtt import Keep, MqttSession
from hil.broker import EmbeddedBroker
from hil.latency_plant import STEP_S, LatencyPlant
from hil.latency_site import Ports, Way, write_files
from hil.wire_children import Child, left_of
from hil.wire_devices import serve

TARGET_FRAC = 0.78  # of the power before
BELOW_FRAC, ABOVE_FRAC = 0.05, 0.01  # settled: within 5 % of the step below, 1 % of the target above
MEAN_S, STAYS_S = 0.1, 1.0
WATCH_S = 1.0 + STAYS_S + 0.2
LOOK_S = 0.02  # how often a trial looks whether it has seen enough
SAY_EVERY = 10  # trials between two lines of progress
START_S_MAX, REST_S_MAX = 60.0, 8.0
STEADY_S, STEADY_FRAC = 0.1, 0.01  # within a twentieth of the step, as long as the mean that the step is measured from
UNREADY_IN_A_ROW_MAX = 3
WARM_UP = 3  # the first response of a controller rests on its prior of the GPUs' curve
STOP_S = 15.0


class NotReady(Exception):
    """The processes run but do not control; the text says what is missing."""


@frozen
class Trial:
    """What one trial showed, ms after publication; None for what did not happen while it was watched."""

    nvml_ms: float | None
    setpoint_ms: float | None
    settled_ms: float | None
    below_ms: float | None  # at or below the target from then on, however far
    undershoot_frac: float  # of the step, on means of 0.1 s


@dataclass(slots=True)
class Result:
    """All trials of every way."""

    is_loaded: bool
    cpu_load: tuple[float, float, float]  # of the machine before it began: load averages
    trials: dict[Way, list[Trial]] = field(default_factory=dict)
    warm_up: dict[Way, list[Trial]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The figures: whole-system ones from the combined way, or from the only one that was run."""
        first = self.trials.get(Way.COMBINED) or next(iter(self.trials.values()))
        return {
            "trials": len(first),
            "loaded": self.is_loaded,
            "nvml": spread([t.nvml_ms for t in first]),
            "setpoint": spread([t.setpoint_ms for t in first]),
            "settled": spread([t.settled_ms for t in first]),
            **{f"settled_{w.value}_only": spread([t.settled_ms for t in self.trials[w]]) for w in self._alone()},
            "ways": {way.value: _way(trials, self.warm_up[way]) for way, trials in self.trials.items()},
            "load_average": list(self.cpu_load),
            "goals": {"nvml": [15.0, 50.0], "setpoint": [15.0, 50.0], "settled_p50": 120.0},
        }

    def _alone(self) -> list[Way]:
        return [w for w in self.trials if w is not Way.COMBINED]


def spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """p50, p99 and max of what happened, and how many trials it did not happen in (those count as never)."""
    seen = [np.inf if v is None else v for v in values]
    if not seen:
        return {"p50_ms": None, "p99_ms": None, "max_ms": None, "missed": 0}
    found = np.sort(np.array(seen))
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    picked = {k: float(found[min(len(found) - 1, int(np.ceil(q * len(found))) - 1)]) for k, q in at.items()}
    rounded: dict[str, float | int | None] = {k: round(v, 2) if np.isfinite(v) else None for k, v in picked.items()}
    return {**rounded, "missed": int(np.isinf(found).sum())}


def table(result: Result) -> str:
    """The figures for a person, each way on lines of its own, the goals beside them."""
    load = " ".join(f"{x:.1f}" for x in result.cpu_load)
    lines = [f"every core busy: {'yes' if result.is_loaded else 'no'}; load average of the machine before: {load}"]
    names = {"nvml": "clock lock", "setpoint": "set-point", "settled": "settled", "below": "at or below"}
    for way, trials in result.trials.items():
        lines.append(f"{way.value}, {len(trials)} trials, ms after publication")
        for key, name in names.items():
            found = spread([getattr(t, f"{key}_ms") for t in trials])
            if found["missed"] != len(trials) or key in ("settled", "below"):
                figures = "   ".join(f"{q} {_text(found[f'{q}_ms'])}" for q in ("p50", "p99", "max"))
                lines.append(f"  {name:<11} {figures}   not within {WATCH_S:g} s: {found['missed']}")
        lines.append(f"  undershoot  {100 * max(t.undershoot_frac for t in trials):.1f} % of the step at most")
    lines.append("goals: clock lock and set-point p50 15, p99 50 ms; combined settled p50 120 ms")
    return "\n".join(lines)


def _text(value_ms: float | int | None) -> str:
    return "  never" if value_ms is None else f"{value_ms:7.1f}"


def settled_s(
    t_s: FloatArray,
    power_w: FloatArray,
    *,
    start_s: float,
    before_w: float,
    target_w: float,
    below_frac: float = BELOW_FRAC,
) -> float | None:
    """Seconds from `start_s` to the first instant after which power is inside the target for a second.

    Inside: every mean over 0.1 s that begins at or after the instant and ends within `STAYS_S` of it lies in
    [target - 5 % of the step, target + 1 %]. A mean that looks back shows the same 0.1 s later.
    """
    n, stays = round(MEAN_S / STEP_S), round(STAYS_S / STEP_S)
    if power_w.size < n:
        return None
    sums = np.concatenate(([0.0], np.cumsum(power_w)))
    means = (sums[n:] - sums[:-n]) / n  # of the n steps that begin with step i
    low_w, high_w = target_w - below_frac * (before_w - target_w), target_w * (1.0 + ABOVE_FRAC)
    is_out = np.concatenate(([0], np.cumsum((means < low_w) | (means > high_w))))
    first = int(np.searchsorted(t_s - STEP_S, start_s - 1e-9))
    for i in range(first, means.size - (stays - n)):
        if is_out[i + stays - n + 1] == is_out[i]:
            return max(0.0, float(t_s[i]) - STEP_S - start_s)
    return None


def run(*, trials: int, is_loaded: bool, ways: Sequence[Way], seed: int, say: Callable[[str], None]) -> Result:
    """Every way in turn. Raises BadInput, or ChildDied when a process under test ends by itself."""
    result = Result(is_loaded, os.getloadavg())
    with _burners(os.cpu_count() or 2) if is_loaded else contextlib.nullcontext():
        for way in ways:
            say(f"{way.value}: {trials} trials{' on busy cores' if is_loaded else ''}")
            found = asyncio.run(_run_way(way, trials=trials, seed=seed, say=say))
            result.warm_up[way], result.trials[way] = found[:WARM_UP], found[WARM_UP:]
    return result


async def _run_way(way: Way, *, trials: int, seed: int, say: Callable[[str], None]) -> list[Trial]:
    with tempfile.TemporaryDirectory(prefix="rampart-latency-") as name:
        async with _bench(way, Path(name), seed=seed) as bench:
            found: list[Trial] = []
            began_s = time.monotonic()
            unready = 0
            while len(found) < WARM_UP + trials:
                try:
                    found.append(await bench.trial())
                    unready = 0
                except NotReady as why:
                    unready += 1
                    say(f"  {way.value}: trial {len(found) + 1 - WARM_UP}: {why}")
                    if unready >= UNREADY_IN_A_ROW_MAX:
                        done = max(0, len(found) - WARM_UP)
                        raise NotReady(f"{way.value}: {done} of {trials} trials, then {why}") from None
                    continue
                done = len(found) - WARM_UP
                if done > 0 and (done % SAY_EVERY == 0 or done == trials):
                    left_s = (time.monotonic() - began_s) / len(found) * (trials - done)
                    say(f"  {way.value}: {done} of {trials}, {left_s:.0f} s to go")
            return found


class LatencyBench:
    """One site on wires, ready for trials."""

    def __init__(self, plant: LatencyPlant, folder: Path, session: MqttSession, sender: Sender, *, seed: int) -> None:
        self._plant, self._folder, self._session, self._sender = plant, folder, session, sender
        self._rng = np.random.default_rng(seed)
        self._clock = MonotonicClock()

    async def trial(self) -> Trial:
        """One emergency, from steady to steady."""
        await self._rest()
        await asyncio.sleep(float(self._rng.uniform(0.0, 0.1)))  # any phase of any loop
        self._plant.advance()
        _, before = self._plant.truth(time.monotonic() - MEAN_S)
        before_w = float(before.mean())
        target_w = TARGET_FRAC * before_w
        payload = self._encode(target_w)
        self._plant.setpoint_ns.clear()
        self._plant.lock_ns.clear()
        start_ns = time.monotonic_ns()
        self._session.publish(ramp_limit_topic("grid"), payload, qos=1, keep=Keep.ALL)
        settled, t_s, power_w = await self._watch(start_ns / 1e9, before_w=before_w, target_w=target_w)
        self._session.publish(ramp_limit_topic("grid"), self._encode(None), qos=1, keep=Keep.ALL)
        below = settled_s(t_s, power_w, start_s=start_ns / 1e9, before_w=before_w, target_w=target_w, below_frac=np.inf)
        means = np.convolve(power_w, np.ones(round(MEAN_S / STEP_S)), "valid") * STEP_S / MEAN_S
        return Trial(
            nvml_ms=_first_ms(self._plant.lock_ns, start_ns),
            setpoint_ms=_first_ms(self._plant.setpoint_ns, start_ns),
            settled_ms=None if settled is None else settled * 1e3,
            below_ms=None if below is None else below * 1e3,
            undershoot_frac=max(0.0, (target_w - float(means.min())) / (before_w - target_w)),
        )

    async def _watch(
        self, start_s: float, *, before_w: float, target_w: float
    ) -> tuple[float | None, FloatArray, FloatArray]:
        """When power settled, times and power meanwhile; ends as soon as that is certain, or after WATCH_S without."""
        await asyncio.sleep(STAYS_S)
        while True:
            await asyncio.sleep(LOOK_S)
            self._plant.advance()
            t_s, power_w = self._plant.truth(start_s - 0.01)
            settled = settled_s(t_s, power_w, start_s=start_s, before_w=before_w, target_w=target_w)
            if settled is not None or time.monotonic() - start_s >= WATCH_S:
                return settled, t_s, power_w

    async def _rest(self) -> None:
        """Until caps are off, clocks may be written, the battery rests and power stands; NotReady after REST_S_MAX."""
        deadline_s, why = time.monotonic() + REST_S_MAX, ""
        while time.monotonic() < deadline_s:
            await asyncio.sleep(LOOK_S)
            _, power_w = self._plant.truth(time.monotonic() - STEADY_S)
            swing_w = float(np.ptp(power_w)) if power_w.size > 10 else np.inf
            why = self._plant.busy_with()
            if not why and swing_w < STEADY_FRAC * float(power_w.mean()):
                return
        what = why or f"power moves by {swing_w:.0f} W"
        raise NotReady(f"not at rest after {REST_S_MAX:g} s: {what}; {await _mode(self._folder)}")

    def _encode(self, target_w: float | None) -> bytes:
        request: dict[str, object] = {"interval": {}, "feed_tags": (), "limits": None}
        if target_w is not None:
            ceiling = {"kind": "ceiling", "id": "emergency", "max": {"value": target_w, "unit": "watt"}}
            request |= {"limits": [ceiling], "ramp_exempt": True}
        data = SetRampLimitData.model_validate({"requests": [request]})
        return self._sender.encode(data, utc_s=self._clock.wall_utc_s())[1]


@asynccontextmanager
async def _bench(way: Way, folder: Path, *, seed: int) -> AsyncIterator[LatencyBench]:
    """Plant, servers, broker and both processes; stopped in order."""
    plant = LatencyPlant(folder / "gpus", has_battery=way is not Way.CAPS, seed=seed)
    rng = np.random.default_rng(seed + 1)
    private, public = write_key_pair(folder, "grid")
    children: list[Child] = []
    servers = [await serve("meter", plant.meter, port=0), await serve("battery", plant.registers(), port=0)]
    tasks = [asyncio.create_task(_move(plant))]
    try:
        async with EmbeddedBroker() as broker:
            ports = Ports(broker.port, servers[0].port, servers[1].port)
            files = write_files(way, folder, ports, public=public)
            mqtt = MqttSettings("127.0.0.1", broker.port, 2, None, None, None, None, None)
            session = MqttSession(mqtt, client_id="grid", clock=MonotonicClock(), rng=rng)
            tasks.append(asyncio.create_task(session.run()))
            try:
                for name, (file, variables) in files.items():
                    log = folder / f"{name}.log"
                    child = await Child.start(name, ["run", "-c", str(file)], log=log, environment=variables)
                    children.append(child)
                    tasks.append(asyncio.create_task(child.watch()))
                bench = LatencyBench(
                    plant, folder, session, Sender("isv", "grid", Signer(private, rng=rng), rng), seed=seed
                )
                await _until_controlled(folder, way, session, tasks)
                yield bench
                _raise_dead(tasks)
            finally:
                for child in children:
                    await child.stop(deadline_s=STOP_S)
                for task in tasks[1:]:
                    task.cancel()
                await asyncio.gather(*tasks[1:], return_exceptions=True)
                await left_of(str(folder / "gpus"))
    finally:
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        for server in servers:
            await server.stop()
        plant.close()


async def _until_controlled(folder: Path, way: Way, session: MqttSession, tasks: Sequence[asyncio.Task[None]]) -> None:
    """The controller is in normal operation with all it has, and the grid's link is up."""
    status: Mapping[str, object] = {}
    try:
        async with asyncio.timeout(START_S_MAX):
            while not (session.is_up and _is_controlling(status, way)):
                _raise_dead(tasks)
                await asyncio.sleep(0.2)
                with contextlib.suppress(OSError, ValueError, TimeoutError):
                    status = await fetch(folder / "run-site" / "site.sock")
    except TimeoutError:
        raise NotReady(f"not in control after {START_S_MAX:g} s: {status or 'no status'}") from None
    await asyncio.sleep(6.0)  # a few plans and their reports


async def _mode(folder: Path) -> str:
    """The controller's mode and why, in words."""
    try:
        status: Mapping[str, object] = await fetch(folder / "run-site" / "site.sock")
    except (OSError, ValueError, TimeoutError):
        return "no status"
    return f"mode {status.get('mode')}, {status.get('reasons') or 'no reason'}"


def _is_controlling(status: Mapping[str, object], way: Way) -> bool:
    is_well = status.get("mode") in ("NORMAL", "DEGRADED") and status.get("nodes") == 1
    return is_well and (way is Way.BATTERY or not status.get("reasons"))  # an agent that only reports is a reason


def _raise_dead(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()


async def _move(plant: LatencyPlant) -> None:
    while True:
        plant.advance()
        await asyncio.sleep(STEP_S)


def _first_ms(times_ns: Iterable[int], start_ns: int) -> float | None:
    later = [t for t in times_ns if t > start_ns]
    return (min(later) - start_ns) / 1e6 if later else None


def _way(trials: Sequence[Trial], warm_up: Sequence[Trial]) -> dict[str, object]:
    first = warm_up[0] if warm_up else None
    return {
        "nvml": spread([t.nvml_ms for t in trials]),
        "setpoint": spread([t.setpoint_ms for t in trials]),
        "settled": spread([t.settled_ms for t in trials]),
        "below": spread([t.below_ms for t in trials]),
        "undershoot_frac_max": round(max((t.undershoot_frac for t in trials), default=0.0), 4),
        "first_settled_ms": None if first is None or first.settled_ms is None else round(first.settled_ms, 2),
    }


@contextlib.contextmanager
def _burners(count: int) -> Iterator[None]:
    """As many busy processes as there are cores, in a session of their own: the kernel shares cores out by session."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
