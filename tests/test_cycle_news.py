"""News does not wait for the next tick, and nothing else brings a cycle before it."""

from __future__ import annotations

import pytest

from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab

PERIOD_S = 0.1


def cycles_s(news_s: tuple[float, ...]) -> list[float]:
    """When the daemon of the lab had a cycle in its first two seconds, with news at these instants."""
    seen: list[float] = []

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        lab.daemon.observe(lambda trace: seen.append(round(trace.image.t_mono_s, 6)))
        for at_s in news_s:
            await lab.run(at_s - lab.now_s)
            lab._factories.wake.set()
        await lab.run(2.0 - lab.now_s)

    in_lab(story, lab_scenario("steady", duration_s=2.0))
    return seen


def test_without_news_there_is_one_cycle_a_tick() -> None:
    seen = cycles_s(())
    assert seen == pytest.approx([PERIOD_S * k for k in range(len(seen))]) and len(seen) >= 20


@pytest.mark.parametrize("news_s", [(1.03,), (0.55, 1.03, 1.07), (1.01, 1.09)])
def test_each_news_brings_one_cycle_at_once(news_s: tuple[float, ...]) -> None:
    """Ticks stay where they were."""
    assert cycles_s(news_s) == pytest.approx(sorted([*cycles_s(()), *news_s]))
