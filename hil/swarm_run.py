"""Many episodes on all cores: progress while it lasts, recordings of what failed, a summary, a clean end by Ctrl-C.

Episodes run lean, without a recording; one that fails is run once more with it, which the seed makes the same run.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.pool
import os
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hil.bench import rare_collections
from hil.swarm import EPISODE_S, Outcome, draw, quiet, record, recording_of, run_tale, why

PROGRESS_S = 15.0
RECORDINGS_MAX = 20  # some megabytes each; the others are one command away
TASKS_PER_WORKER = 200  # then a fresh process, so that nothing grows for ever
INTERRUPTED = 130


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
            "forced_cases": {str(f.seed): list(f.broken) for f in sorted(self.forced, key=lambda f: f.seed)},
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
    forced = ", ".join(f"{seed} ({'; '.join(rows)})" for seed, rows in s["forced_cases"].items()) or "none"
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
    is_interrupted = False
    try:
        with _workers(jobs) as pool:
            for found, spent_s in pool.imap_unordered(_one, range(first_seed, first_seed + count)):
                tally.add(found, spent_s)
                if found.is_failure:
                    print(f"failed: {why(found)}; again: python -m hil.swarm --seed {found.seed}", flush=True)
                    if len(tally.failures) <= RECORDINGS_MAX:
                        pool.apply_async(_record, (found.seed, recording_of(out, found.seed)))
                if progress.elapsed_s > wall_s:
                    break
                progress.tell(tally)
            else:
                pool.close()
                pool.join()  # the recordings under way
    except KeyboardInterrupt:
        is_interrupted = True
    summary = tally.summary(
        wall_s=progress.elapsed_s,
        processor_s=_children_s() - before_s,
        jobs=jobs,
        is_whole=tally.episodes == count,
    )
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(told(summary), f"summary: {out / 'summary.json'}", sep="\n", flush=True)
    if is_interrupted:
        return INTERRUPTED
    return 1 if tally.failures else 0


@contextmanager
def _workers(jobs: int) -> Iterator[multiprocessing.pool.Pool]:
    """Processes that leave Ctrl-C to us, and one thread each: the arrays of an episode are far too small for more."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit, from their first instruction on
    try:
        pool = context.Pool(jobs, initializer=_begin, maxtasksperchild=TASKS_PER_WORKER)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet()


def _one(seed: int) -> tuple[Outcome, float]:
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
