"""The latency bench judges right, and a cycle that is asked for early comes early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from controller.clock import MonotonicClock
from controller.cycle import Cycle
from controller.types import FloatArray
from hil import bench_latency
from hil.bench_latency import NotReady, Result, Trial, settled_s, spread, table
from hil.latency_plant import STEP_S
from hil.latency_site import Way

T_S: FloatArray = STEP_S * np.arange(1, 1201, dtype=np.float64)


def settled(power_w: FloatArray) -> float | None:
    return settled_s(T_S, power_w, start_s=0.0, before_w=100.0, target_w=80.0)


def test_a_step_that_stays_settles_when_it_happens() -> None:
    assert settled(np.where(T_S <= 0.05, 100.0, 80.0)) == pytest.approx(0.045, abs=0.02)


def test_power_that_leaves_again_within_the_second_has_not_settled_before() -> None:
    power_w = np.where(T_S <= 0.05, 100.0, 80.0)
    power_w[(T_S > 0.6) & (T_S <= 0.75)] = 85.0
    found = settled(power_w)
    assert found is not None and found == pytest.approx(0.75, abs=0.03)


def test_undershoot_beyond_five_percent_of_the_step_is_not_settled() -> None:
    assert settled(np.where(T_S <= 0.05, 100.0, 78.5)) is None
    assert settled(np.where(T_S <= 0.05, 100.0, 79.2)) is not None


def test_one_percent_above_the_target_is_the_limit() -> None:
    assert settled(np.where(T_S <= 0.05, 100.0, 81.0)) is None
    assert settled(np.where(T_S <= 0.05, 100.0, 80.7)) is not None


def test_what_was_not_watched_for_a_second_is_not_called_settled() -> None:
    assert settled(np.where(T_S <= 1.6, 100.0, 80.0)) is None


def test_trials_in_which_nothing_happened_count_as_never() -> None:
    found = spread([1.0, 2.0, None, 3.0])
    assert found == {"p50_ms": 2.0, "p99_ms": None, "max_ms": None, "missed": 1}
    assert spread([5.0] * 99 + [None])["p99_ms"] == 5.0


def test_the_document_has_the_keys_others_read() -> None:
    trials = {Way.COMBINED: [Trial(10.0, 5.0, 100.0, 90.0, 0.0)], Way.CAPS: [Trial(10.0, None, 300.0, 80.0, 0.0)]}
    result = Result(True, (1.0, 1.0, 1.0), trials, {way: [] for way in trials})
    found = result.as_dict()
    assert found["settled_caps_only"] == spread([300.0]) and found["settled"] == spread([100.0])
    assert found["trials"] == 1 and found["loaded"] is True
    assert {"nvml", "setpoint", "settled"} <= found.keys()
    assert "combined" in table(result)


class _Core:
    """Asks for two cycles before the tick, as a response under way does."""

    def __init__(self, clock: MonotonicClock) -> None:
        self._clock = clock
        self.early_s = float("inf")


class _Steps(Cycle):
    """Counts cycles instead of running them."""

    def __init__(self, core: _Core, wake: asyncio.Event) -> None:
        self._clock = MonotonicClock()
        self._period_s = 0.2
        self._core = core  # type: ignore[assignment]
        self._wake = wake
        self.steps: list[tuple[int, bool]] = []

    async def step(self, tick: int, *, due_ns: int, overrun_count: int, is_early: bool = False) -> None:
        self.steps.append((tick, is_early))


async def test_news_and_a_response_under_way_bring_cycles_before_the_tick() -> None:
    """One loop, woken early: the tick's own rhythm stays, and no tick is lost."""
    wake = asyncio.Event()
    core = _Core(MonotonicClock())
    cycle = _Steps(core, wake)

    async def tick() -> int:
        await asyncio.sleep(0.1)
        return 7

    due = cycle._waking(tick())
    wake.set()
    core.early_s = MonotonicClock().now_s() + 0.03

    def once(number: int, is_early: bool) -> None:
        cycle.steps.append((number, is_early))
        if len(cycle.steps) == 2:
            core.early_s = float("inf")

    async def step(tick: int, *, due_ns: int, overrun_count: int, is_early: bool = False) -> None:
        once(tick, is_early)

    cycle.step = step  # type: ignore[method-assign]
    await cycle._until_due(due, tick=6, overrun_count=0)
    assert cycle.steps == [(6, True), (6, True)]
    assert due.done() and due.result() == 7 and not wake.is_set()


@pytest.mark.parametrize(("fails", "made"), [({3}, 4), ({3, 4, 5}, None)])
def test_a_site_that_does_not_come_to_rest_is_said_and_ends_the_run_after_three(
    monkeypatch: pytest.MonkeyPatch, fails: set[int], made: int | None
) -> None:
    """One trial that cannot be made is made good; three in a row end it, with the number of those that were made."""
    said: list[str] = []
    count = 0

    class Bench:
        async def trial(self) -> Trial:
            nonlocal count
            count += 1
            if count in fails:
                raise NotReady("not at rest after 8 s: battery at 3 W")
            return Trial(1.0, 1.0, 1.0, 1.0, 0.0)

    @asynccontextmanager
    async def bench(way: Way, folder: Path, *, seed: int) -> AsyncIterator[Bench]:
        yield Bench()

    monkeypatch.setattr(bench_latency, "_bench", bench)

    def once() -> Result:
        return bench_latency.run(trials=4, is_loaded=False, ways=[Way.BATTERY], seed=1, say=said.append)

    if made is None:
        with pytest.raises(NotReady, match="battery: 0 of 4 trials, then not at rest"):
            once()
    else:
        assert once().as_dict()["trials"] == made
    assert any("not at rest" in line for line in said)
