"""Many episodes on all cores: progress while it lasts, recordings of what failed, a summary, a clean end by Ctrl-C.

Episodes run lean, without a recording; one that fails is run once more with it, which the seed makes the same run.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hil.bench import rare_collections
from hil.swarm import EPISODE_S, Outcome, draw, quiet, record, recording_of, run_tale, why

PROGRESS_S = 15.0
RECORDINGS_MAX = 20  # some megabytes each; the others are one command away
TASKS_PER_WORKER = 200  # then a fresh process, so that nothing grows for ever
INTERRUPTED = 130

P = ParamSpec("P")
T = TypeVar("T")
Told = tuple[Outcome, float]  # of an episode, and the processor time it took


@dataclass(slots=True)
class Tally:
    """What has come of the episodes so far."""

    episodes: int = 0
    sim_s: float = 0.0
    episodes_s: float = 0.0  # processor time of the episodes and their references
    faults: int = 0
    forced: list[Outcome] = field(default_factory=list)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, found: Outcome, spent_s: float) -> None:
        self.episodes += 1
        self.episodes_s += spent_s
        self.sim_s += found.sim_s
        self.faults += found.faults
        if found.broken and found.is_forced:
            self.forced.append(found)
        if found.is_failure:
            self.failures.append(found)

    def summary(self, *, wall_s: float, processor_s: float, jobs: int, is_whole: bool) -> dict[str, object]:
        """As it is written. `processor_s` is all that the workers took, with their start and the recordings."""
        failures = sorted(self.failures, key=lambda f: f.seed)
        return {
            "hours": round(self.sim_s / 3600.0, 3),
            "faults": self.faults,
            "violations": sum(bool(f.broken) for f in failures),
            "throttled_left": sum(f.throttled > 0 for f in failures),
            "failing_seeds": [f.seed for f in failures],
            "episodes": self.episodes,
            "forced": len(self.forced),
            "forced_cases": {
                str(f.seed): {"story": list(f.broken), "reference": list(f.reference)}
                for f in sorted(self.forced, key=lambda f: f.seed)
            },
            "late_normal": sum(f.is_normal_late for f in failures),
            "errors": sum(bool(f.error) for f in failures),
            "is_whole": is_whole,
            "jobs": jobs,
            "wall_s": round(wall_s, 1),
            "processor_s": round(processor_s, 1),
            "real_time_ratio_per_core": round(self.sim_s / max(self.episodes_s, 1e-9), 1),
        }


def told(summary: Mapping[str, Any]) -> str:
    """The summary in a few lines, for whoever reads a log."""
    s = dict(summary)
    failing = "none"
    if s["failing_seeds"]:
        failing = (
            f"{', '.join(map(str, s['failing_seeds']))} ({s['violations']} broke a limit, {s['throttled_left']} left "
            f"GPUs throttled, {s['late_normal']} were late to NORMAL, {s['errors']} ended in an error)"
        )
    forced = ", ".join(f"{seed} ({_beside(case)})" for seed, case in s["forced_cases"].items()) or "none"
    return "\n".join(
        (
            f"{s['hours']} h in {s['episodes']} episodes with {s['faults']} faults"
            + ("" if s["is_whole"] else ", cut short"),
            f"failing seeds: {failing}",
            f"forced cases: {forced}",
            f"{s['real_time_ratio_per_core']} x real time per core by processor time; {s['wall_s']} s of wall time and "
            f"{s['processor_s']} s of processor with {s['jobs']} workers",
        )
    )


def _beside(case: Mapping[str, Sequence[str]]) -> str:
    """What a forced story broke, and its reference beside it."""
    return f"{'; '.join(case['story'])}, its reference {'; '.join(case['reference'])}"


class Progress:
    """A line every few seconds of wall time, wherever the output goes."""

    def __init__(self, count: int) -> None:
        self._count, self._started_s = count, time.perf_counter()
        self._told_s = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started_s

    def tell(self, tally: Tally) -> None:
        elapsed_s = self.elapsed_s
        if elapsed_s - self._told_s < PROGRESS_S:
            return
        self._told_s = elapsed_s
        left_min = elapsed_s / tally.episodes * (self._count - tally.episodes) / 60.0
        print(
            f"{tally.sim_s / 3600.0:.1f} of {self._count * EPISODE_S / 3600.0:.1f} h, {tally.episodes} episodes, "
            f"{len(tally.failures)} failed, {left_min:.1f} min left",
            flush=True,
        )


def swarm(hours: float, out: Path, *, first_seed: int, wall_s: float, jobs: int | None = None) -> int:
    """Episodes until `hours` are simulated or `wall_s` has passed; writes the summary; exit status."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = jobs or len(os.sched_getaffinity(0))
    count = max(1, round(hours * 3600.0 / EPISODE_S))
    tally, progress, before_s = Tally(), Progress(count), _children_s()
    status: int | None = None  # as the tally says
    under_way: dict[Future[Told], int] = {}
    try:
        with _workers(jobs) as workers:
            recordings: list[Future[None]] = []
            for found, spent_s in _outcomes(workers, range(first_seed, first_seed + count), under_way, most=jobs + 1):
                tally.add(found, spent_s)
                if found.is_failure:
                    print(f"failed: {why(found)}; again: python -m hil.swarm --seed {found.seed}", flush=True)
                    if len(tally.failures) <= RECORDINGS_MAX:
                        recordings.append(workers.submit(_record, found.seed, recording_of(out, found.seed)))
                if progress.elapsed_s > wall_s:
                    break
                progress.tell(tally)
            else:
                _wait_for(recordings)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenProcessPool:
        status = 1
        print(_lost(sorted(under_way.values())), flush=True)
    summary = tally.summary(
        wall_s=progress.elapsed_s,
        processor_s=_children_s() - before_s,
        jobs=jobs,
        is_whole=tally.episodes == count,
    )
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(told(summary), f"summary: {out / 'summary.json'}", sep="\n", flush=True)
    if status is not None:
        return status
    return 1 if tally.failures else 0


def _outcomes(
    workers: Workers, seeds: Iterable[int], under_way: dict[Future[Told], int], *, most: int
) -> Iterator[Told]:
    """Of each seed, as they come; `under_way` is what was given out, at most `most` at a time.

    Raises BrokenProcessPool when a worker died: what it had will never come.
    """
    left = iter(seeds)
    for seed in itertools.islice(left, most):
        under_way[workers.submit(_one, seed)] = seed
    while under_way:
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in [each for each in under_way if each in done]:
            found = future.result()
            del under_way[future]
            for seed in itertools.islice(left, 1):
                under_way[workers.submit(_one, seed)] = seed
            yield found


def _wait_for(recordings: Iterable[Future[None]]) -> None:
    """An episode that ended in an error ends its recording in the same: that one is told already."""
    for recording in recordings:
        if isinstance(error := recording.exception(), BrokenProcessPool):
            raise error


def _lost(seeds: Sequence[int]) -> str:
    under_way = "only recordings were under way"
    if seeds:
        under_way = f"seeds under way: {', '.join(map(str, seeds))}; --first-seed {seeds[0]} goes on from there"
    return f"a worker died, killed from outside or for want of memory, and the run ends here; {under_way}"


# ------------------------------------------------------------------------------------------------ processes


class Workers:
    """Processes that leave Ctrl-C to us, and one thread each: the arrays of an episode are far too small for more.

    A worker that is killed is noticed, with the next result at the latest: what is under way raises BrokenProcessPool.
    """

    def __init__(self, jobs: int) -> None:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        self._jobs = jobs
        self._strangers = frozenset(multiprocessing.active_children())
        self._executor: ProcessPoolExecutor | None = None
        self._left = 0  # tasks until there are fresh processes

    def submit(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> Future[T]:
        """Have it done by the next worker that is free."""
        if self._executor is None or not self._left:
            if self._executor is not None:
                self._executor.shutdown(wait=False)  # once it has done what it was given
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._jobs, mp_context=context, initializer=_begin)
            self._left = self._jobs * TASKS_PER_WORKER
        self._left -= 1
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a new worker inherits, from its first instruction
        try:
            return self._executor.submit(work, *given, **named)
        finally:
            signal.signal(signal.SIGINT, before)

    def end(self) -> None:
        """Whatever they do is given up; none of them is left."""
        ours = set(multiprocessing.active_children()) - self._strangers
        for child in ours:
            child.terminate()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        for child in ours:
            child.join()


@contextmanager
def _workers(jobs: int) -> Iterator[Workers]:
    workers = Workers(jobs)
    try:
        yield workers
    finally:
        workers.end()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet()


def _one(seed: int) -> Told:
    """One episode, and the processor time it took with its reference."""
    started_s = time.process_time()
    with rare_collections():
        found = run_tale(draw(seed))
    return found, time.process_time() - started_s


def _record(seed: int, path: Path) -> None:
    record(draw(seed), path)


def _children_s() -> float:
    """Processor time of every child that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
