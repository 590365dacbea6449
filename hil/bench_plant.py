"""Runs the plant bench: every recorded power trace on a 90 MW site, one result per run, kept until its inputs change.

A run is named by everything that decides it: the case, the trace's bytes, the configs and the source. Its result lies
in a file under that name, so that an interrupted bench goes on where it stopped and a changed line of code runs again.
Runs go to processes of their own; `hil.plant_page` makes the tables of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from controller.config.load import data_path, data_root, read_yaml
from controller.config.record import open_record
from controller.errors import BadInput
from controller.files import write_whole
from controller.types import FloatArray, frozen
from hil.bench import Progress, run
from hil.plant_cases import FIGURE_TRACE, TARGET_BY_S, TARGET_FRAC, TARGET_FROM_S, TARGET_S, Case
from hil.result import result_of
from hil.scenario import Overrides, Scenario, parse_scenario
from hil.trace_file import read_trace

SITE_W = 90e6  # what the 99th percentile of every trace is scaled to
SCALE_QUANTILE = 0.99
SCALES: Mapping[str, float] = {FIGURE_TRACE: 200.0}  # 91.6 MW: the multiplier that its figures are quoted at
FINE_S = 0.005  # the plant's own step: a finer record is averaged to it
SHORT_S, REPEATED_S = 600.0, 900.0  # a record shorter than this is repeated until that
# One file gives the same power twice, as two readings of it; their sum would be no load of anybody's.
COLUMNS: Mapping[str, str] = {"a100_step6s_nvml_13ms.csv": "nvml_power_instant_w"}
NOT_CODE_OF_A_RUN = ("plant_page.py", "plant_command.py", "plant_cases.py")  # a case names its inputs itself
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

NOT_RUN = "not run"

Row = dict[str, Any]


@frozen
class PreparedTrace:
    """A record as the bench replays it: from 0 s, at least `SHORT_S` long, no finer than the plant's step."""

    name: str
    file: str
    digest: str
    step_s: float
    record_s: float  # of the record itself
    repeats: int
    duration_s: float
    scale: float
    mean_w: float  # scaled

    @property
    def is_fine(self) -> bool:
        """Fine enough that what lies between two samples makes no difference."""
        return self.step_s <= 0.1


@frozen
class Job:
    """One run to make: the case, its trace, and the name its result is kept under."""

    case: Case
    trace: PreparedTrace
    key: str
    duration_s: float
    is_cut: bool  # shorter than the case asks for


# ------------------------------------------------------------------------------------------------ traces


def prepare_traces(folder: Path, out: Path) -> tuple[tuple[PreparedTrace, ...], tuple[str, ...]]:
    """Every power record in `folder`, ready to replay, and one line about each file that is none."""
    if not folder.is_dir():
        raise BadInput(f"--traces {folder}: no such folder; it should hold recorded power as CSV")
    found, other = [], []
    for path in sorted(folder.glob("*.csv")):
        try:
            found.append(_prepare(path, out))
        except BadInput as error:
            other.append(f"{path.name}: {str(error).removeprefix(f'{path}: ')}")
    if not found:
        raise BadInput(f"--traces {folder}: holds no power record that can be replayed")
    return tuple(found), tuple(other)


def _prepare(path: Path, out: Path) -> PreparedTrace:
    column = COLUMNS.get(path.name)
    if column is None:
        trace = read_trace(path)
        t_s, power_w = trace.t_s, trace.power_w
    else:
        t_s, power_w = _one_column(path, column)
    step_s = float(np.median(np.diff(t_s)))
    if step_s < FINE_S:
        t_s, power_w = _averaged(t_s, power_w)
    record_s = float(t_s[-1])
    repeats = 1 if record_s >= SHORT_S else math.ceil(REPEATED_S / (record_s + step_s))
    scale = SCALES.get(path.name) or SITE_W / float(np.quantile(power_w, SCALE_QUANTILE))
    mean_w = float(np.trapezoid(power_w, t_s) / record_s) * scale
    if repeats > 1:
        t_s, power_w = _repeated(t_s, power_w, repeats, pause_s=max(step_s, FINE_S))
    file = _write(out / "traces" / path.name, t_s, power_w)
    return PreparedTrace(
        name=path.name,
        file=str(file),
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        step_s=step_s,
        record_s=record_s,
        repeats=repeats,
        duration_s=float(t_s[-1]),
        scale=scale,
        mean_w=mean_w,
    )


def _one_column(path: Path, column: str) -> tuple[FloatArray, FloatArray]:
    blocks = list(open_record(path, column=column).blocks())
    t_s = np.concatenate([b.t_s for b in blocks])
    return t_s - t_s[0], np.concatenate([b.power_w for b in blocks])


def _averaged(t_s: FloatArray, power_w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means over the plant's steps; every step of the record has samples, or its neighbours' line through it."""
    place = np.floor(t_s / FINE_S + 1e-9).astype(np.int64)
    count = np.bincount(place)
    mean_w = np.bincount(place, weights=power_w) / np.maximum(count, 1)
    filled = count > 0
    grid_s: FloatArray = np.arange(count.size, dtype=np.float64) * FINE_S
    return grid_s[filled], mean_w[filled]


def _repeated(t_s: FloatArray, power_w: FloatArray, repeats: int, *, pause_s: float) -> tuple[FloatArray, FloatArray]:
    length_s = float(t_s[-1]) + pause_s
    return np.concatenate([t_s + k * length_s for k in range(repeats)]), np.tile(power_w, repeats)


def _write(path: Path, t_s: FloatArray, power_w: FloatArray) -> Path:
    lines = map("{:.4f},{:.2f}\n".format, t_s.tolist(), power_w.tolist())
    write_whole(path, "t_s,power_w\n" + "".join(lines))
    return path.resolve()


# ------------------------------------------------------------------------------------------------ jobs


def make_jobs(cases: Sequence[Case], traces: Sequence[PreparedTrace], *, seconds_max: float) -> tuple[Job, ...]:
    """The runs of `cases`; each lasts as long as its trace, and no longer than `seconds_max`."""
    by_name = {t.name: t for t in traces}
    source = source_digest()
    jobs = []
    for case in cases:
        trace = by_name[case.trace]
        whole_s = min(trace.duration_s, case.seconds_max)
        wanted_s = min(whole_s, seconds_max)
        name = json.dumps([case.inputs(), trace.digest, trace.scale, wanted_s, source], sort_keys=True)
        key = hashlib.sha256(name.encode()).hexdigest()[:24]
        jobs.append(Job(case, trace, key, wanted_s, is_cut=wanted_s < whole_s))
    return tuple(jobs)


def source_digest() -> str:
    """One hash over the source and configs a run depends on."""
    digest = hashlib.sha256()
    root = data_root()
    packages = [Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent / "controller"]
    files = [p for package in packages for p in package.rglob("*.py") if p.name not in NOT_CODE_OF_A_RUN]
    files += list((root / "configs").rglob("*.yaml"))
    for path in sorted(set(files)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def scenario_of(job: Job) -> Scenario:
    """The shipped scenario with the job's trace, edges, follower, contract and load target."""
    case = job.case
    path = data_path("scenarios", case.scenario)
    raw = read_yaml(path)
    assert isinstance(raw, dict)
    if case.has_target:
        raw = {**raw, "signals": [*raw.get("signals", []), load_target(job.trace.mean_w, job.duration_s)]}
    overrides = Overrides(
        trace=job.trace.file,
        scale=job.trace.scale,
        duration_s=job.duration_s,
        contracts=case.contracts,
        controller=case.controller,
        follow=case.follow or None,
        edge=case.edge,
    )
    return parse_scenario(raw, overrides, origin=str(path))


def load_target(mean_w: float, duration_s: float) -> dict[str, object]:
    """A quarter less than the record's mean, for an hour or to the end of a shorter record."""
    from_s = min(TARGET_FROM_S, 0.25 * duration_s)
    return {
        "kind": "load_target",
        "issuer": "grid",
        "t_s": from_s,
        "until_s": from_s + TARGET_S,
        "by_s": min(TARGET_BY_S, 0.5 * duration_s),
        "megawatt": round(TARGET_FRAC * mean_w / 1e6, 3),
    }


# ------------------------------------------------------------------------------------------------ running


def run_job(job: Job, on_progress: Callable[[Progress], None] = lambda _: None) -> Row:
    """Make the run; its result, with the processor time it took."""
    scenario = scenario_of(job)
    begin_cpu_s, begin_s = _cpu_s(), time.perf_counter()
    record = run(scenario, on_progress=on_progress)
    result = json.loads(json.dumps(result_of(record)))
    result["cpu_s"] = _cpu_s() - begin_cpu_s
    result["wall_s"] = time.perf_counter() - begin_s
    return dict(result)


def _cpu_s() -> float:
    """Processor time of this process and of children it waited for: building the planner's program is part of it."""
    return sum(os.times()[:4])


@dataclass(slots=True)
class Outcome:
    """A job and its result, or why there is none."""

    job: Job
    result: Row | None
    failure: str = NOT_RUN


def run_jobs(
    jobs: Sequence[Job],
    *,
    out: Path,
    processes: int,
    on_progress: Callable[[float, str], None] = lambda done_s, name: None,
) -> list[Outcome]:
    """All results, from the folder where they are known, else run; in the order of `jobs`.

    `on_progress` hears simulated seconds done of all jobs, and the case that moved.
    """
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {job.key: Outcome(job, _kept(folder, job)) for job in jobs}  # two rows may show one run
    todo = [o.job for o in outcomes.values() if o.result is None]
    reached = {key: o.job.duration_s for key, o in outcomes.items() if o.result is not None}
    on_progress(sum(reached.values()), "")

    def moved(key: str, t_s: float, name: str) -> None:
        reached[key] = max(reached.get(key, 0.0), t_s)
        on_progress(sum(reached.values()), name)

    with contextlib.suppress(KeyboardInterrupt):  # what is done is shown, and the next call goes on from there
        for job, outcome in _results(todo, folder, processes=processes, moved=moved):
            outcomes[job.key] = outcome
            moved(job.key, job.duration_s, job.case.title)
    return [replace(outcomes[job.key], job=job) for job in jobs]


def _results(
    todo: Sequence[Job], folder: Path, *, processes: int, moved: Callable[[str, float, str], None]
) -> Iterator[tuple[Job, Outcome]]:
    if not todo:
        return
    with _pool(processes) as (pool, news):
        waiting = {pool.submit(_in_child, job): job for job in todo}
        while waiting:
            for future in wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                yield job, _taken(folder, job, future)
            for news_of_run in _heard(news):
                moved(*news_of_run)


def _taken(folder: Path, job: Job, future: Future[Row]) -> Outcome:
    try:
        result = future.result()
    except (BadInput, RuntimeError, AssertionError, ValueError, ArithmeticError, LookupError, TypeError) as error:
        return Outcome(job, None, f"{type(error).__name__}: {error}")  # the table says so; the other runs go on
    write_whole(folder / f"{job.key}.json", json.dumps({"case": asdict(job.case), "result": result}) + "\n")
    return Outcome(job, result)


def _kept(folder: Path, job: Job) -> Row | None:
    try:
        kept = json.loads((folder / f"{job.key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    result = kept.get("result")
    return result if isinstance(result, dict) else None


# ------------------------------------------------------------------------------------------------ processes

_NEWS: Any = None  # this child's end of the line to the parent


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Fresh interpreters, one thread of arithmetic each; those under way are ended when the bench is interrupted."""
    before = {name: os.environ.get(name) for name in SINGLE_THREAD}
    os.environ.update(SINGLE_THREAD)
    context = multiprocessing.get_context("spawn")
    news = context.Queue()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_child, initargs=(news,))
    try:
        yield pool, news
        pool.shutdown(wait=True)
    except BaseException:
        children = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin_child(news: Any) -> None:
    import signal

    import structlog

    global _NEWS
    _NEWS = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # a line per run and change helps nobody here


def _in_child(job: Job) -> Row:
    told_s = -math.inf

    def tell(where: Progress) -> None:
        nonlocal told_s
        now_s = time.perf_counter()
        if now_s - told_s >= 0.5:
            told_s = now_s
            _NEWS.put((job.key, where.t_s, job.case.title))

    return run_job(job, tell)


def _heard(news: Any) -> Iterator[tuple[str, float, str]]:
    while True:
        try:
            yield news.get_nowait()
        except queue.Empty:
            return
