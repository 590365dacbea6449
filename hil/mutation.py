"""Mutates envelope, modes, signals and contract one small change at a time and asks their tests to notice.

`python -m hil.mutation` writes `out/mutation.json`: {"mutants", "killed", "survivors", ...}. One pytest session
collects the tests and learns which of them run which lines. Then two lanes try every mutant on the tests that reach it,
the latest killers first (`hil.mutation_try`).

A survivor is either a gap in the tests or a change that means nothing. The second kind stands in
`tests/mutation_justified.yaml` with its reason, one by one; an entry that names no survivor of this run fails it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from hil.mutants import Mutant, mutants_of
from hil.mutation_try import (
    MODULES,
    QUIET,
    ROOT,
    Reach,
    Tried,
    learn,
    source_of,
    try_one,
    watch_imports,
    with_few_examples,
)

TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        "envelope",
        "envelope_bank",
        "envelope_battery",
        "envelope_caps",
        "envelope_node",
        "envelope_windows",
        "modes",
        "signals",
        "signal_bounds",
        "signal_crowd",
        "signal_ids",
        "signal_memory",
        "signal_silence",
        "signal_times",
        "contract",
        "contract_due",
        "contract_rows",
        "contract_slopes",
    )
)
JUSTIFIED = Path("tests/mutation_justified.yaml")
REPORT = Path("out/mutation.json")
LANES = 2
KILLED_FRAC_MIN = 0.95


def plan(modules: Sequence[str] = MODULES) -> list[Mutant]:
    """Every mutant, shuffled within its module by a fixed seed and dealt out module by module.

    Where a time limit cuts the run short, that order makes what was tried a fair sample.
    """
    hands: list[list[Mutant]] = []
    for module in modules:
        hand = list(mutants_of(module, source_of(module)))
        random.Random(module).shuffle(hand)
        hands.append(hand)
    longest = max(len(hand) for hand in hands)
    spread = [(k * longest / len(hand), m) for hand in hands for k, m in enumerate(hand)]
    return [m for _, m in sorted(spread, key=lambda pair: pair[0])]


class _Lanes:
    """A pytest plugin: in place of running the tests once, run them on the mutants."""

    def __init__(self, mutants: Sequence[Mutant], *, until_s: float) -> None:
        self._mutants, self._until_s = mutants, until_s
        self.tried: list[Tried] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        with_few_examples(session.items)
        reach = learn(session.items)
        capture = session.config.pluginmanager.getplugin("capturemanager")
        capture.suspend_global_capture(in_=True)
        pipes = []
        for k in range(LANES):
            read, write = os.pipe()
            if os.fork() == 0:
                os.close(read)
                self._lane(self._mutants[k::LANES], session.items, reach, write)
                os._exit(0)
            os.close(write)
            pipes.append(read)
        for k, read in enumerate(pipes):
            with os.fdopen(read) as pipe:
                lane = zip(self._mutants[k::LANES], pipe, strict=False)
                self.tried += [Tried(mutant, json.loads(line)) for mutant, line in lane]
        for _ in pipes:
            os.wait()
        return True

    def _lane(self, mutants: Sequence[Mutant], items: Sequence[pytest.Item], reach: Reach, out: int) -> None:
        """Try each of `mutants` until the time is over; one line each to the pipe `out`."""
        killers: dict[str, list[str]] = {}
        with os.fdopen(out, "w") as pipe:
            for mutant in mutants:
                if time.monotonic() > self._until_s:
                    return
                lately = killers.setdefault(f"{mutant.module} {mutant.function}", [])
                tests = reach.tests(mutant)
                tests.sort(key=lambda test: lately.index(test) if test in lately else len(lately))
                found = try_one(mutant, items, {test: reach.cpu_s[test] for test in tests})
                if found.by in reach.cpu_s:
                    killers[f"{mutant.module} {mutant.function}"] = [found.by, *(t for t in lately if t != found.by)]
                pipe.write(json.dumps(found.by) + "\n")
                pipe.flush()


# ------------------------------------------------------------------------------------------------ the report


def justified(path: Path = ROOT / JUSTIFIED) -> dict[tuple[str, str, str, str, int], str]:
    """What the committed file says of changes that mean nothing, by (module, function, before, after, nth)."""
    found: dict[tuple[str, str, str, str, int], str] = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else []:
        key = (entry["module"], entry["function"], entry["before"], entry["after"], entry.get("nth", 1))
        if key in found or not entry["reason"].strip():
            sys.exit(f"{path.name}: an entry twice, or without its reason: {key}")
        found[key] = " ".join(entry["reason"].split())
    return found


def _key(mutant: Mutant) -> tuple[str, str, str, str, int]:
    return (mutant.module, mutant.function, mutant.before, mutant.after, mutant.nth)


def judged(
    tried: Sequence[Tried], *, population: Sequence[Mutant], reasons: dict[tuple[str, str, str, str, int], str]
) -> dict[str, Any]:
    """The report of a run: what survived, with its reason where one is committed, and which reasons are stale."""
    alive = sorted((t.mutant for t in tried if t.is_alive), key=lambda m: (m.module, m.line, m.after))
    fate = {_key(t.mutant): t for t in tried}
    exist = {_key(m) for m in population}
    stale = [
        f"{key[0]} {key[1]}: `{key[2]}` -> `{key[3]}`"
        + (": noticed by " + fate[key].by if key in fate else ": no such change any more")
        for key in reasons
        if key not in exist or (key in fate and not fate[key].is_alive)
    ]
    return {
        "mutants": len(tried),
        "killed": sum(not t.is_alive for t in tried),
        "survivors": [m.name for m in alive],
        "justified": {m.name: reasons[_key(m)] for m in alive if _key(m) in reasons},
        "unjustified": [m.name for m in alive if _key(m) not in reasons],
        "stale_justifications": stale,
        "population": len(population),
        "out_of_time_or_memory": sum(t.by == "out of time or memory" for t in tried),
        "by_module": {
            module: {
                "mutants": sum(t.mutant.module == module for t in tried),
                "killed": sum(t.mutant.module == module and not t.is_alive for t in tried),
            }
            for module in MODULES
        },
    }


def is_good(report: dict[str, Any]) -> bool:
    """At least 95 % killed, every survivor justified, and every justification needed."""
    share = report["killed"] / max(report["mutants"], 1)
    return bool(share >= KILLED_FRAC_MIN and not report["unjustified"] and not report["stale_justifications"])


def _lines(report: dict[str, Any]) -> Iterator[str]:
    for name, reason in report["justified"].items():
        yield f"survives, means nothing: {name}\n    {reason}"
    for name in report["unjustified"]:
        yield f"SURVIVES: {name}"
    for entry in report["stale_justifications"]:
        yield f"{JUSTIFIED}: stale: {entry}"
    share = report["killed"] / max(report["mutants"], 1)
    counts = f"{len(report['justified'])} survivors justified, {len(report['unjustified'])} not"
    yield f"{report['killed']} of {report['mutants']} mutants killed ({share:.1%}); {counts}"
    yield f"{report['population']} exist; {report['seconds']:.0f} s, {report['cpu_seconds']:.0f} s of processor"
    for name, found in report["by_module"].items():
        yield f"  {name}: {found['killed']} of {found['mutants']}"


def _unlined(name: str) -> str:
    """A mutant's name without its line, which moves with every edit above it."""
    return re.sub(r":\d+", "", name, count=1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Do the tests notice small changes?")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--module", action="append", choices=MODULES, help="only this one; may be repeated")
    parser.add_argument("--survivors", action="store_true", help="only what survived the last run, lines apart")
    given = parser.parse_args(argv)
    if given.survivors and not (ROOT / REPORT).exists():
        parser.error(f"--survivors: there is no {REPORT} of a run before")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    began_s = time.monotonic()
    watch_imports()
    population = plan(given.module or MODULES)
    if given.survivors:
        last = {_unlined(name) for name in json.loads(REPORT.read_text(encoding="utf-8"))["survivors"]}
        population = [m for m in population if _unlined(m.name) in last]
        if not population:
            print("nothing survived the last run")
            return 0
    lanes = _Lanes(population, until_s=began_s + 60.0 * given.minutes)
    code = pytest.main([*QUIET, *TESTS], plugins=[lanes])
    if not lanes.tried:
        return int(code) or 1
    reasons = {k: v for k, v in justified().items() if not given.survivors and k[0] in (given.module or MODULES)}
    report = judged(lanes.tried, population=population, reasons=reasons)
    report["seconds"] = round(time.monotonic() - began_s, 1)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report["cpu_seconds"] = round(time.process_time() + used.ru_utime + used.ru_stime, 1)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n".join(_lines(report)))
    return 0 if is_good(report) else 1


if __name__ == "__main__":
    sys.exit(main())
