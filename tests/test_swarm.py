"""Swarms: a seed is a story and the story repeats bit for bit; failures are told from forced ones; shrinking works."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controller.app import make_core
from controller.core import SiteCore
from controller.replay import replay
from controller.settings import SiteSettings
from hil import swarm as swarms
from hil import swarm_run
from hil.lab_site import TOP_MHZ
from hil.matrix_lab import Lab, in_lab
from hil.shrink import shrink, smaller_tales
from hil.swarm import MORE_THAN_REFERENCE, Blow, Outcome, Tale, draw, record, recording_of, run_tale
from hil.swarm_site import VARIED_FROM

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


def test_a_seed_of_a_million_or_more_draws_its_site() -> None:
    """The story is told as before; the site is another one each time, and all of it is in the story's print."""
    first, second = draw(VARIED_FROM), draw(VARIED_FROM + 1)
    assert draw(VARIED_FROM - 1).ground is None and draw(VARIED_FROM) == first
    assert first.ground is not None and first.ground != second.ground
    assert json.loads(json.dumps(asdict(first)))["ground"]["site"]["pcc_meter"]["update_s"] > 0.0
    site = swarms._scenario(first).settings.site
    assert site.meter.update_s == first.ground.site["pcc_meter"]["update_s"]
    assert first == draw(VARIED_FROM), "playing a story changes nothing of it"


@pytest.mark.usefixtures("short")
def test_an_episode_on_a_drawn_site_holds() -> None:
    quiet = replace(CALM, ground=draw(VARIED_FROM).ground, following="software")
    found = run_tale(quiet)
    assert not found.is_failure and not found.broken and not found.error


@pytest.mark.usefixtures("short")
def test_an_episode_repeats_and_a_calm_one_holds() -> None:
    calm = replace(CALM, compute_w=500.0, following="device", contract=("ieso-ramp",))
    found = run_tale(calm)
    assert found == run_tale(calm) and not found.is_failure and not found.error and found.sim_s == 35.0


@pytest.mark.parametrize("start_soc", [0.35, 0.93])
def test_where_nothing_fails_and_no_ceiling_is_set_no_gpu_is_held_back(start_soc: float) -> None:
    """Neither a battery that should fill nor one that should empty is worth a megahertz of anybody's job."""
    clocks: list[float] = []

    async def story(lab: Lab) -> None:
        lab.start()
        for _ in range(24):
            await lab.run(5.0)
            clocks.extend(lab.caps_mhz())

    calm = replace(CALM, following="software", contract=("ieso-ramp",), start_soc=start_soc)
    assert not in_lab(story, swarms._scenario(calm)).broken()
    assert set(clocks[8:]) == {TOP_MHZ}, "after the first seconds"


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


class Played:
    """A story that was played: its rows by how far each went, of limits of 5."""

    def __init__(self, **worst: float) -> None:
        self.worst = worst

    def broken_rows(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=i, unit="W", worst=w, limit=5e6) for i, w in self.worst.items() if w > 5e6]

    def broken(self) -> list[str]:
        return [f"{row.id}: {row.worst:.4g} > {row.limit:.4g}" for row in self.broken_rows()]

    def verdicts(self) -> SimpleNamespace:
        return SimpleNamespace(record=SimpleNamespace(power_w_max=60e6))


Plays = Callable[[Callable[[tuple[Blow, ...]], Played]], list[tuple[Blow, ...]]]


@pytest.fixture
def plays(monkeypatch: pytest.MonkeyPatch) -> Plays:
    """Stories are not run: what comes of one is said by its blows. The list is of those asked for."""

    def set_up(come: Callable[[tuple[Blow, ...]], Played]) -> list[tuple[Blow, ...]]:
        played: list[tuple[Blow, ...]] = []

        def play(_: Tale, blows: tuple[Blow, ...], **__: object) -> tuple[Played, bool, int]:
            played.append(blows)
            return come(blows), False, 0

        monkeypatch.setattr(swarms, "_play", play)
        return played

    return set_up


def test_the_reference_of_a_story_without_false_readings_is_the_story(plays: Plays) -> None:
    """Whatever breaks it was forced, and it is not run twice to find that out."""
    played = plays(lambda _: Played(swing=6e6))
    deaf = replace(CALM, blows=(Blow("battery", "off", 5.0, 5.0, None),))
    assert run_tale(deaf).is_forced and played == [deaf.blows]
    blind = replace(CALM, blows=(Blow("meter", "off", 5.0, 5.0, None),))
    assert run_tale(blind).is_forced and played == [deaf.blows, blind.blows, ()]


@pytest.mark.parametrize(
    ("story", "reference", "is_forced"),
    [
        ({"swing": 6e6}, {"swing": 6e6}, True),
        ({"swing": 6e6 * MORE_THAN_REFERENCE}, {"swing": 6e6}, True),
        ({"swing": 6.1e6 * MORE_THAN_REFERENCE}, {"swing": 6e6}, False),
        ({"swing": 13e6}, {"swing": 5.2e6}, False),
        ({"swing": 6e6, "ramp": 6e6}, {"swing": 6e6}, False),
        ({"swing": 6e6}, {"swing": 6e6, "ramp": 9e6}, True),
        ({"swing": 6e6}, {}, False),
    ],
    ids=["alike", "a little further", "further", "far beyond", "another row too", "one row fewer", "held"],
)
def test_a_reference_excuses_no_more_than_about_what_it_breaks(
    plays: Plays, story: dict[str, float], reference: dict[str, float], is_forced: bool
) -> None:
    """Both figures are told, whatever comes of it."""
    plays(lambda blows: Played(**(story if blows else reference)))
    found = run_tale(replace(CALM, blows=(Blow("meter", "off", 5.0, 5.0, None),)))
    assert found.is_forced == is_forced and found.is_failure != is_forced
    assert found.broken == tuple(Played(**story).broken()) and found.reference == tuple(Played(**reference).broken())
    assert is_forced or ("its reference " + ("; ".join(found.reference) or "held")) in swarms.why(found)


@pytest.mark.parametrize(("port", "verb"), [("battery", "garbage"), ("node:*", "garbage"), ("battery", "stuck")])
def test_the_reference_has_no_battery_where_its_wire_takes_no_command(plays: Plays, port: str, verb: str) -> None:
    """A garbled write is not applied, like one that nobody answers; reports and readings only tell a lie."""
    played = plays(lambda blows: Played(swing=6e6 if blows else 0.0))
    tale = replace(CALM, blows=(Blow(port, verb, 5.0, 5.0, None), Blow("meter", "off", 5.0, 5.0, None)))
    is_sick = (port, verb) == ("battery", "garbage")
    assert run_tale(tale).is_forced == is_sick and played == [tale.blows, tale.blows[:1] if is_sick else ()]


@pytest.mark.parametrize(
    ("factor", "excess_w", "is_forced"),
    [(1.02, 1.1e6, True), (0.97, 1.7e6, True), (1.02, 1.3e6, False), (10.0, 1.1e6, False)],
)
def test_a_break_within_an_error_that_nobody_can_see_is_forced(
    plays: Plays, factor: float, excess_w: float, is_forced: bool
) -> None:
    """2 % of 60 MW are 1.2 MW, 3 % are 1.8; what is broken by more, or by a meter that is seen to be wrong, is ours."""
    plays(lambda blows: Played(swing=5e6 + excess_w if any(b.verb == "wrong" for b in blows) else 0.0))
    misread = replace(CALM, blows=(Blow("meter", "wrong", 5.0, 5.0, factor), Blow("battery", "off", 5.0, 5.0, None)))
    assert run_tale(misread).is_forced == is_forced


@pytest.mark.usefixtures("short")
def test_a_recording_replays(tmp_path: Path) -> None:
    path = recording_of(tmp_path, 7)
    record(replace(CALM, compute_w=500.0, following="device"), path)
    seen = replay(path, make_core)
    assert seen.cycles > 300 and seen.different == 0


@pytest.mark.usefixtures("short")
def test_one_seed_by_hand_is_recorded_and_its_recording_must_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tale = replace(CALM, compute_w=500.0, following="device", contract=("ieso-ramp",))
    monkeypatch.setattr(swarms, "draw", lambda _: tale)
    monkeypatch.setattr(sys, "argv", ["swarm", "--seed", "7", "--out", str(tmp_path)])
    assert swarms.main() == 0 and capsys.readouterr().out.endswith("held\n")
    monkeypatch.setattr(swarms, "make_core", make_core_of_another)
    assert swarms.main() == 1 and "commands differ in a replay; tick " in capsys.readouterr().out


def make_core_of_another(site: SiteSettings, *, epoch: int) -> SiteCore:
    """The core of a site that holds what lives ten seconds for eleven."""
    return make_core(replace(site, ttl_periods=site.ttl_periods + 1), epoch=epoch)


class Pool:
    """What workers do, at once; `stops_after` outcomes somebody presses Ctrl-C, or a worker dies."""

    stops_after = 1_000
    is_killed = False

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.is_waited_for = False

    def submit(self, work: object, seed: int, path: Path | None = None) -> Future[Any]:
        future: Future[Any] = Waited(self) if path is not None else Future()
        if path is not None:
            self.recorded.append(seed)
            future.set_exception(ValueError("an episode that ended in an error ends its recording in the same"))
            return future
        bad = {3: ("row: 6 > 5",), 4: ("row: 7 > 5",)}
        if seed > self.stops_after:
            future.set_exception(BrokenProcessPool("died") if self.is_killed else KeyboardInterrupt())
        else:
            reference = ("row: 6.9 > 5",) if seed == 4 else ()
            outcome = Outcome(seed, 310.0, 2, bad.get(seed, ()), seed == 4, False, 8 if seed == 2 else 0, "", reference)
            future.set_result((outcome, 2.0))
        return future


class Waited(Future[Any]):
    """A recording that tells when it was waited for."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._pool.is_waited_for = True
        return super().exception(timeout)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    made = Pool()
    monkeypatch.setattr(swarm_run, "_workers", lambda _: contextlib.nullcontext(made))
    return made


def test_summary_counts_and_names_failing_seeds(tmp_path: Path, pool: Pool) -> None:
    """Recordings are made of failing seeds only, and waited for."""
    status = swarm_run.swarm(310.0 * 5 / 3600.0, tmp_path, first_seed=1, wall_s=1e9, jobs=2)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert status == 1 and found["failing_seeds"] == [2, 3] and found["forced"] == 1
    assert found["forced_cases"] == {"4": {"story": ["row: 7 > 5"], "reference": ["row: 6.9 > 5"]}}
    assert (found["violations"], found["throttled_left"], found["faults"]) == (1, 1, 10)
    assert found["hours"] == pytest.approx(310 * 5 / 3600, abs=1e-3)
    assert found["is_whole"] and found["real_time_ratio_per_core"] == 155.0 and found["jobs"] == 2
    assert pool.recorded == [2, 3] and pool.is_waited_for


def test_only_so_many_recordings(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_run, "RECORDINGS_MAX", 1)
    swarm_run.swarm(310.0 * 5 / 3600.0, tmp_path, first_seed=1, wall_s=1e9)
    assert pool.recorded == [2]


def test_interrupted_it_says_what_it_has(tmp_path: Path, pool: Pool) -> None:
    pool.stops_after = 2
    assert swarm_run.swarm(310.0 * 5 / 3600.0, tmp_path, first_seed=1, wall_s=1e9) == 130
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["episodes"] <= 2 and not found["is_whole"]


def test_a_worker_that_dies_ends_the_run_with_what_it_has(
    tmp_path: Path, pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.stops_after, pool.is_killed = 2, True
    assert swarm_run.swarm(310.0 * 5 / 3600.0, tmp_path, first_seed=1, wall_s=1e9, jobs=1) == 1
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["episodes"] <= 2 and not found["is_whole"]
    told = capsys.readouterr().out
    assert "a worker died, killed from outside or for want of memory" in told and "seeds under way: " in told


def test_a_real_worker_that_is_killed_is_noticed() -> None:
    """A pool of `multiprocessing` waits for ever for what a killed worker had."""
    with swarm_run._workers(1) as workers:
        pid = workers.submit(os.getpid).result(timeout=60.0)
        left = workers.submit(time.sleep, 600.0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            left.result(timeout=60.0)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """As in a terminal: whoever was started in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_workers_are_renewed_after_a_while_and_given_up_in_the_middle_of_their_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swarm_run, "TASKS_PER_WORKER", 1)
    before = set(multiprocessing.active_children())
    with swarm_run._workers(1) as workers:
        first = workers.submit(os.getpid).result(timeout=60.0)
        workers.submit(time.sleep, 600.0)
        assert {child.pid for child in multiprocessing.active_children()} - {child.pid for child in before} - {first}
    assert set(multiprocessing.active_children()) <= before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C is ours again"


def test_a_run_that_is_told_to_end_leaves_a_summary(tmp_path: Path) -> None:
    """SIGTERM, as of a service manager or a time limit: its workers went on waiting for ever."""
    command = [sys.executable, "-m", "hil.swarm", "--hours", "10", "--jobs", "1", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as run:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        deadline_s = time.monotonic() + 60.0
        while not children.read_text() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        run.terminate()
        assert run.wait(timeout=60.0) == 130
    assert not json.loads((tmp_path / "summary.json").read_text())["is_whole"]
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline_s:  # its children end a moment later
            os.killpg(run.pid, 0)
            time.sleep(0.05)


def test_out_of_time_it_stops_after_the_episode_in_hand(tmp_path: Path, pool: Pool) -> None:
    assert swarm_run.swarm(310.0 * 5 / 3600.0, tmp_path, first_seed=10, wall_s=0.0) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["episodes"] == 1 and not found["is_whole"]


def test_progress_is_told_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(swarm_run.time, "perf_counter", lambda: now_s[0])
    progress, tally = swarm_run.Progress(4), swarm_run.Tally()
    tally.add(Outcome(1, 310.0, 0, (), False, False, 0, ""), 2.0)
    progress.tell(tally)
    assert capsys.readouterr().out == ""
    now_s[0] += 20.0
    progress.tell(tally)
    progress.tell(tally)
    assert capsys.readouterr().out == "0.1 of 0.3 h, 1 episodes, 0 failed, 1.0 min left\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hours", "0"], "--hours: '0': a number above 0"),
        (["--hours", "nan"], "--hours: 'nan'"),
        (["--hours", "inf"], "--hours: 'inf'"),
        (["--hours", "many"], "--hours: 'many'"),
        (["--minutes", "-1"], "--minutes: '-1'"),
        (["--jobs", "0"], "--jobs: '0': a whole number from 1 on"),
        (["--first-seed", "-3"], "--first-seed: '-3': a whole number from 0 on"),
        (["--seed", "1.5"], "--seed: '1.5'"),
        (["--shrink"], "--shrink needs the --seed"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says which argument, what it was and what is allowed; nothing is run or written."""
    monkeypatch.setattr(sys, "argv", ["swarm", *words])
    with pytest.raises(SystemExit) as refused:
        swarms.main()
    assert refused.value.code == 2 and said in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(sys, "argv", ["swarm", "--out", str(file / "swarm")])
    with pytest.raises(SystemExit) as refused:
        swarms.main()
    assert refused.value.code == 2 and f"--out {file / 'swarm'}: Not a directory" in capsys.readouterr().err


def test_everything_goes_to_the_folder_asked_for(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the last lines of the output say what was found there, for a log that nobody watches."""
    out = tmp_path / "deep" / "swarm"
    monkeypatch.setattr(sys, "argv", ["swarm", "--hours", str(310.0 * 5 / 3600.0), "--out", str(out)])
    assert swarms.main() == 1 and (out / "summary.json").exists() and pool.recorded == [2, 3]
    told = capsys.readouterr().out
    assert "0.431 h in 5 episodes with 10 faults\nfailing seeds: 2, 3 (1 broke a limit, 1 left GPUs throttled" in told
    assert "forced cases: 4 (row: 7 > 5, its reference row: 6.9 > 5)\n155.0 x real time per core" in told
    assert told.endswith(f"summary: {out / 'summary.json'}\n")
