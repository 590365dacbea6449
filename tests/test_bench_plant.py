"""The plant bench: what it makes of records, which runs it makes once, and what it says when a promise is not kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.errors import BadInput
from hil import bench_plant
from hil.bench_plant import (
    NOT_RUN,
    Job,
    Outcome,
    PreparedTrace,
    load_target,
    make_jobs,
    prepare_traces,
    run_jobs,
    scenario_of,
)
from hil.plant_cases import FIGURE_TRACE, Case, field_cases, figure_cases, trace_cases
from hil.plant_command import bench_plant as command
from hil.plant_page import BEGIN, END, as_json, broken_promises, markdown, put_between_markers, tables
from hil.trace_file import read_trace

ALONE = Case(
    group="traces",
    title="steady",
    scenario="campus-90mw",
    trace="steady.csv",
    edge="linear",
    follow="",
    controller="none",
    contracts=("ieso-ramp",),
)


def write_trace(folder: Path, name: str, *, step_s: float, seconds: float, top_w: float = 900.0) -> Path:
    """A load that goes up and down once in ten seconds."""
    t_s = np.arange(0.0, seconds, step_s)
    power_w = top_w * (0.8 + 0.2 * np.sin(2.0 * np.pi * t_s / 10.0))
    path = folder / name
    path.write_text(
        "t_s,wall_w\n" + "".join(f"{t:.4f},{p:.3f}\n" for t, p in zip(t_s, power_w, strict=True)), encoding="utf-8"
    )
    return path


@pytest.fixture
def steady(tmp_path: Path) -> PreparedTrace:
    (tmp_path / "in").mkdir()
    write_trace(tmp_path / "in", "steady.csv", step_s=1.0, seconds=700.0)
    found, _ = prepare_traces(tmp_path / "in", tmp_path / "out")
    return found[0]


def result(*, worst_w: float = 4e6, lost: float = 0.0, verdict: str = "held") -> dict[str, Any]:
    """As much of a result as the tables read."""
    row = {
        "id": "ieso-ramp.swing-15s",
        "kind": "swing",
        "limit": 5e6,
        "unit": "W",
        "worst": worst_w,
        "verdict": verdict,
    }
    return {
        "limits": [{**row, "violation_s": 0.0 if verdict == "held" else 12.0}],
        "compliant": verdict == "held",
        "work": {"lost_frac": lost},
        "crash_safe_frac": 1.0,
        "crash_safe": {"transient": None, "power": 1.0, "energy": 0.5},
        "contingency": [],
        "cpu_s": 2.0,
        "wall_s": 4.0,
    }


# ------------------------------------------------------------------------------------------------ records


def test_every_record_is_scaled_to_the_site(tmp_path: Path) -> None:
    """Whatever a record's own size, all but its highest hundredth lies under 90 MW."""
    for name, top_w in (("big.csv", 4e5), ("small.csv", 200.0)):
        write_trace(tmp_path, name, step_s=1.0, seconds=700.0, top_w=top_w)
    found, others = prepare_traces(tmp_path, tmp_path / "out")
    assert [t.name for t in found] == ["big.csv", "small.csv"]
    assert not others
    for trace in found:
        replayed = read_trace(Path(trace.file))
        assert np.quantile(replayed.power_w, 0.99) * trace.scale == pytest.approx(90e6, rel=1e-3)
        assert trace.mean_w == pytest.approx(0.8 * 90e6, rel=0.01)
        assert trace.repeats == 1


def test_short_record_is_repeated_and_a_fine_one_averaged(tmp_path: Path) -> None:
    """A bench record of 20 s at 1 kHz becomes a quarter of an hour at the plant's own step, its mean unchanged."""
    write_trace(tmp_path, "board.csv", step_s=0.001, seconds=20.0)
    (trace,), _ = prepare_traces(tmp_path, tmp_path / "out")
    replayed = read_trace(Path(trace.file))
    assert trace.is_fine
    assert trace.repeats == 46
    assert replayed.duration_s == pytest.approx(900.0, abs=25.0)
    assert float(np.median(np.diff(replayed.t_s))) == pytest.approx(0.005)
    assert float(replayed.power_w.mean()) == pytest.approx(0.8 * 900.0, rel=1e-3)


def test_what_is_no_power_record_is_named(tmp_path: Path) -> None:
    """A table of another kind beside the records is said to be one, and the rest is replayed."""
    write_trace(tmp_path, "load.csv", step_s=1.0, seconds=700.0)
    (tmp_path / "sweep.csv").write_text("workload,power_mean_w\nbursty,61\n", encoding="utf-8")
    found, others = prepare_traces(tmp_path, tmp_path / "out")
    assert [t.name for t in found] == ["load.csv"]
    assert len(others) == 1
    assert others[0].startswith("sweep.csv: line 2: 'bursty'")


def test_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        prepare_traces(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(BadInput, match="holds no power record"):
        prepare_traces(tmp_path, tmp_path / "out")


def test_unknown_group_is_refused() -> None:
    with pytest.raises(BadInput, match="--only nothing: must be one of figures, traces, field"):
        command(traces=None, seconds_max=60.0, jobs=1, only="nothing", as_json=False, page=None)


# ------------------------------------------------------------------------------------------------ cases and names


def test_every_trace_meets_every_follower_edge_and_target() -> None:
    """Two followers x two edges x with and without a target, and the uncontrolled site once for each edge."""
    cases = trace_cases([("coarse.csv", False), ("fine.csv", True)])
    coarse = [c for c in cases if c.trace == "coarse.csv"]
    assert {(c.follow, c.edge, c.has_target) for c in coarse if c.follow} == {
        (f, e, t) for f in ("device", "software") for e in ("linear", "hold") for t in (False, True)
    }
    assert [(c.edge, c.controller) for c in coarse if not c.follow] == [("linear", "none"), ("hold", "none")]
    assert {c.edge for c in cases if c.trace == "fine.csv"} == {"linear"}, (
        "between its samples there is nothing to hold"
    )
    assert all(c.scenario == "field" for c in field_cases([("coarse.csv", False)]))


def test_named_figures_can_be_built(steady: PreparedTrace) -> None:
    """Every figure's scenario, contract, follower and edge parse into a runnable scenario."""
    trace = replace(steady, name=FIGURE_TRACE)
    for job in make_jobs(figure_cases(FIGURE_TRACE), [trace], seconds_max=60.0):
        built = scenario_of(job)
        site = built.settings.site
        assert site is not None
        assert built.doc.duration_s == 60.0
        assert job.is_cut
        if job.case.follow:
            assert site.following.value == job.case.follow
        assert site.policy.value == job.case.controller


def test_load_target_is_a_quarter_less_and_judged() -> None:
    """A record of 90 MW on the mean is asked for 67.5 MW for an hour; a short one in its own time."""
    asked = load_target(90e6, 3410.0)
    assert asked["megawatt"] == 67.5
    assert (asked["t_s"], asked["until_s"], asked["by_s"]) == (300.0, 3900.0, 300.0)
    assert load_target(90e6, 400.0)["t_s"] == 100.0


def test_target_reaches_the_controller_and_the_referee(steady: PreparedTrace) -> None:
    (job,) = make_jobs([replace(ALONE, controller="mpc", follow="device", has_target=True)], [steady], seconds_max=4e3)
    (signal,) = scenario_of(job).doc.signals
    assert signal.megawatt == pytest.approx(0.75 * steady.mean_w / 1e6, abs=1e-3)
    assert signal.by_s is not None


def test_a_run_is_named_by_what_decides_it(steady: PreparedTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Title and promise leave the name alone; case, length, record and source change it."""

    def key(case: Case = ALONE, trace: PreparedTrace = steady, seconds_max: float = 100.0) -> str:
        return make_jobs([case], [trace], seconds_max=seconds_max)[0].key

    name = key()
    assert key(replace(ALONE, title="another", must="held", group="figures")) == name
    assert key(replace(ALONE, edge="hold")) != name
    assert key(replace(ALONE, has_target=True)) != name
    assert key(trace=replace(steady, digest="another")) != name
    assert key(seconds_max=90.0) != name
    monkeypatch.setattr(bench_plant, "source_digest", lambda: "another")
    assert key() != name


# ------------------------------------------------------------------------------------------------ running


def test_interrupted_bench_goes_on_where_it_stopped(steady: PreparedTrace, tmp_path: Path) -> None:
    """What was run is read back and not run again; what lies there half-written is run."""
    short = make_jobs([ALONE, replace(ALONE, edge="hold")], [steady], seconds_max=30.0)
    kept = tmp_path / "runs" / f"{short[0].key}.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps({"result": result(worst_w=1.0)}), encoding="utf-8")
    (tmp_path / "runs" / f"{short[1].key}.json").write_text('{"result": {"limi', encoding="utf-8")
    told: list[float] = []
    first, second = run_jobs(short, out=tmp_path, processes=1, on_progress=lambda done_s, _: told.append(done_s))
    assert first.result is not None and second.result is not None
    assert first.result["limits"][0]["worst"] == 1.0, "read back"
    assert second.result["limits"][0]["worst"] > 10e6, "run: the wave swings 36 MW"
    assert told[0] == 30.0
    again = run_jobs(short, out=tmp_path, processes=1)
    assert again[1].result == second.result


def test_run_that_fails_is_a_row_and_not_the_end(steady: PreparedTrace, tmp_path: Path) -> None:
    """A trace that went away between preparation and run fails its row; nothing is kept of it."""
    gone = replace(steady, file=str(tmp_path / "gone.csv"))
    outcomes = run_jobs(make_jobs([ALONE], [gone], seconds_max=30.0), out=tmp_path, processes=1)
    assert outcomes[0].result is None
    assert "gone.csv" in outcomes[0].failure
    assert not list((tmp_path / "runs").iterdir())
    assert "gone.csv" in broken_promises(outcomes)[0]
    assert "failed" in markdown(tables([replace_case(outcomes[0], controller="mpc")], [steady]))


def test_what_was_done_before_ctrl_c_is_kept_and_shown(steady: PreparedTrace, tmp_path: Path) -> None:
    """Interrupted after the first of two runs: its row stands, the other's says that it was not run."""
    two = make_jobs([ALONE, replace(ALONE, edge="hold")], [steady], seconds_max=30.0)

    def interrupt(done_s: float, name: str) -> None:
        if done_s >= 30.0:
            raise KeyboardInterrupt

    first, second = run_jobs(two, out=tmp_path, processes=1, on_progress=interrupt)
    assert first.result is not None
    assert (second.result, second.failure) == (None, NOT_RUN)
    assert not broken_promises([first, second]), "what was not run broke nothing"
    assert NOT_RUN in markdown(tables([replace_case(second, controller="mpc")], [steady]))
    assert [path.stem for path in (tmp_path / "runs").iterdir()] == [two[0].key]


def test_whole_records_on_request() -> None:
    """By default only the quoted record is run whole; all are when asked, and the crashes as long as they need."""
    short = [c for c in trace_cases([("other.csv", False)]) if c.seconds_max < 1000.0]
    assert len(short) == 10
    assert all(c.whole().seconds_max > 3700.0 for c in short)
    crashes = [c for c in figure_cases(FIGURE_TRACE) if c.scenario == "campus-90mw-crash"]
    assert {c.whole().seconds_max for c in crashes} == {2000.0}


def replace_case(outcome: Outcome, **changes: Any) -> Outcome:
    return replace(outcome, job=replace(outcome.job, case=replace(outcome.job.case, **changes)))


# ------------------------------------------------------------------------------------------------ the page


def outcome(steady: PreparedTrace, case: Case, found: dict[str, Any], *, is_cut: bool = False) -> Outcome:
    return Outcome(Job(case, steady, "k", 100.0, is_cut), found)


def test_controlled_run_stands_beside_the_uncontrolled(steady: PreparedTrace) -> None:
    alone = outcome(steady, ALONE, result(worst_w=29.7e6, verdict="broken"))
    held = outcome(steady, replace(ALONE, controller="mpc", follow="device"), result(worst_w=4.9e6, lost=0.0123))
    (table, _) = tables([alone, held], [steady])
    (row,) = table.rows
    assert row[:5] == ("steady", "linear", "device", "-", "100")
    assert "1.23 %" in row
    assert "4.90" in row
    assert "29.70 (12 s), -" in row, "swing; this record has no ramp row"
    assert "-, 100.0, 50.0" in row
    assert row[-1] == "50", "100 s in 2 s of processor time"


def test_promises_are_judged_on_whole_runs(steady: PreparedTrace) -> None:
    """Broken where held was promised, held where it should break, too much work lost; a cut run promises nothing."""
    controlled = replace(ALONE, controller="mpc", follow="device")
    broken = result(verdict="broken")
    cases = [
        outcome(steady, replace(controlled, must="held"), broken),
        outcome(steady, replace(controlled, must="broken"), result()),
        outcome(steady, replace(controlled, lost_frac_max=0.01), result(lost=0.02)),
        outcome(steady, replace(controlled, must="held"), broken, is_cut=True),
        outcome(steady, replace(controlled, must="held", lost_frac_max=0.01), result(lost=0.005)),
    ]
    lines = broken_promises(cases)
    assert len(lines) == 3
    assert "should be held, is broken" in lines[0]
    assert "should be broken, is held" in lines[1]
    assert "2.00 % of the work lost, at most 1 % promised" in lines[2]
    assert as_json(cases, [steady], cores=2)["broken_promises"] == lines
    json.dumps(as_json(cases, [steady], cores=2), allow_nan=False)


def test_hand_written_text_stays(tmp_path: Path) -> None:
    """Only what stands between the markers is replaced, however often."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    for text in ("first", "second"):
        put_between_markers(page, text)
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\nsecond\n{END}\nafter\n"
    put_between_markers(tmp_path / "new.md", "text")
    assert (tmp_path / "new.md").read_text(encoding="utf-8") == f"{BEGIN}\ntext\n{END}\n"


def test_a_page_keeps_the_tables_of_groups_that_were_not_asked_for(tmp_path: Path) -> None:
    """`--only field` measures one group: what the page says of the others stays, in reading order, and is named."""
    page = tmp_path / "page.md"
    put_between_markers(page, "Basis.\n\n### Every trace\n\n| a |\n|---|\n| 1 |\n\n### Records\n\n| r |\n")
    page.write_text("before\n" + page.read_text(encoding="utf-8") + "after\n", encoding="utf-8")
    new = "New basis.\n\n### The field site\n\n| f |\n\n### Records\n\n| s |\n"
    assert put_between_markers(page, new, is_part=True) == ("Every trace",)
    block = (
        "New basis.\n\n### Every trace\n\n| a |\n|---|\n| 1 |\n\n### The field site\n\n| f |\n\n### Records\n\n| s |"
    )
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{block}\n{END}\nafter\n"
    again = page.read_text(encoding="utf-8")
    assert put_between_markers(page, new, is_part=True) == ("Every trace",)
    assert page.read_text(encoding="utf-8") == again, "the same again changes nothing"
    assert put_between_markers(page, new) == () and "Every trace" not in page.read_text(encoding="utf-8")


def test_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("my notes\n", encoding="utf-8")
    with pytest.raises(BadInput, match="no lines"):
        put_between_markers(page, "text")
    assert page.read_text(encoding="utf-8") == "my notes\n"
