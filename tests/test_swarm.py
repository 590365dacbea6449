"""Swarms: a seed is a story and the story repeats bit for bit; failures are told from forced ones; shrinking works."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hil import swarm as swarms
from hil.shrink import shrink, smaller_tales
from hil.swarm import Blow, Outcome, Tale, draw, run_tale

CALM = replace(draw(1), blows=(), ceiling_megawatt=None, drop_megawatt=None, battery_event=None, exchange_w=500.0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of half a minute."""
    monkeypatch.setattr(swarms, "SAFETY_S", 20.0)
    monkeypatch.setattr(swarms, "HEALED_S", 15.0)
    monkeypatch.setattr(swarms, "NORMAL_WITHIN_S", 12.0)


def test_a_seed_is_a_story() -> None:
    assert draw(5) == draw(5) != draw(6)
    assert json.dumps([b.port for b in draw(5).blows])


@pytest.mark.usefixtures("short")
def test_an_episode_repeats_and_a_calm_one_holds() -> None:
    calm = replace(CALM, compute_w=500.0, following="device", contract=("ieso-ramp",))
    found = run_tale(calm)
    assert found == run_tale(calm) and not found.is_failure and not found.error and found.sim_s == 35.0


@pytest.mark.usefixtures("short")
def test_what_breaks_is_a_failure_unless_the_reference_breaks_too() -> None:
    """A crash of 30 MW in a fifth of a second with the battery in local control: nobody could hold it."""
    tale = replace(
        CALM, following="software", compute_w=560.0, contract=("ieso-ramp",),
        drop_megawatt=30.0, drop_s=12.0, drop_within_s=0.2,
        battery_event="battery_local", battery_event_s=5.0,
    )  # fmt: skip
    found = run_tale(tale)
    assert found.broken and found.is_forced


@pytest.mark.usefixtures("short")
def test_what_is_locked_out_is_restarted_by_its_operator_and_late_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit error is locked out until an operator acts: one does when all is healed, and NORMAL takes its dwell."""
    tale = replace(CALM, compute_w=500.0, following="device", blows=(Blow("meter", "wrong", 5.0, 5.0, 1000.0),))
    monkeypatch.setattr(swarms, "NORMAL_WITHIN_S", 14.0)
    assert not run_tale(tale).is_normal_late
    monkeypatch.setattr(swarms, "NORMAL_WITHIN_S", 3.0)
    assert run_tale(tale).is_normal_late


def test_throttled_or_error_is_a_failure() -> None:
    good = Outcome(1, 10.0, 0, (), False, False, 0, "")
    assert not good.is_failure and replace(good, throttled=8).is_failure and replace(good, error="x").is_failure
    assert replace(good, broken=("row",)).is_failure and not replace(good, broken=("row",), is_forced=True).is_failure


def test_shrinking_leaves_only_what_matters() -> None:
    """A failure that needs one blow and the drop: everything else goes."""
    tale = next(t for t in map(draw, range(1, 200)) if len(t.blows) >= 3 and t.drop_megawatt and t.ceiling_megawatt)
    guilty = tale.blows[1]

    def fails(t: Tale) -> bool:
        return t.drop_megawatt is not None and any(b.port == guilty.port and b.verb == guilty.verb for b in t.blows)

    small = shrink(tale, fails)
    assert fails(small) and len(small.blows) == 1 and small.ceiling_megawatt is None and small.blows[0].for_s <= 2.0
    assert not any(fails(t) for t in smaller_tales(small) if len(t.blows) < 1 or t.drop_megawatt is None)


def test_shrinking_what_holds_returns_it() -> None:
    assert shrink(CALM, lambda _: False) is CALM


def test_summary_counts_and_names_failing_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def imap_unordered(self, one: object, seeds: range) -> list[Outcome]:
            bad = {3: ("row: 6 > 5",), 4: ("row: 7 > 5",)}
            return [Outcome(s, 310.0, 2, bad.get(s, ()), s == 4, False, 8 if s == 2 else 0, "") for s in seeds]

    class Context:
        def Pool(self, *_: object, **__: object) -> Pool:
            return Pool()

    monkeypatch.setattr(swarms.multiprocessing, "get_context", lambda _: Context())
    status = swarms.swarm(310.0 * 5 / 3600.0, tmp_path, first_seed=1, wall_s=1e9)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert status == 1 and found["failing_seeds"] == [2, 3] and found["forced"] == 1
    assert found["forced_cases"] == {"4": ["row: 7 > 5"]}
    assert (found["violations"], found["throttled_left"], found["faults"]) == (1, 1, 10)
    assert found["hours"] == pytest.approx(310 * 5 / 3600, abs=1e-3)
