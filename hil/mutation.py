"""Mutates envelope, modes, signals and contract one small change at a time and asks their tests to notice.

`python -m hil.mutation` writes `out/mutation.json`: {"mutants", "killed", "survivors", ...}. One pytest session
collects the tests and learns which of them run which lines. Then two lanes try every mutant, each in a forked child:
only the tests that reach the changed statement run, the latest killers first, until one fails. A change inside a
function is put in by its code object; one that acts at import (constants, tables, defaults) by importing anew.

A survivor is either a gap in the tests or a change that means nothing. The second kind stands in
`tests/mutation_justified.yaml` with its reason, one by one; an entry that names no survivor of this run fails it.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import json
import math
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
import yaml
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings

from hil.mutants import Mutant, applied, mutants_of

ROOT = Path(__file__).resolve().parent.parent
MODULES = tuple(
    f"controller.{name}"
    for name in (
        "envelope",
        "envelope_bank",
        "envelope_node",
        "modes",
        "signals",
        "signal_dwell",
        "signal_schedule",
        "contract",
        "contract_rows",
    )
)
TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        "envelope",
        "envelope_bank",
        "envelope_node",
        "modes",
        "signals",
        "signal_memory",
        "contract",
        "contract_rows",
    )
)
JUSTIFIED = Path("tests/mutation_justified.yaml")
REPORT = Path("out/mutation.json")
LANES = 2
KILLED_FRAC_MIN = 0.95
EXAMPLES = 25  # of each property: seconds for each mutant, not minutes
# A mutant that hangs or devours is noticed by what it uses, not by how long a busy machine takes.
CPU_TIMES_MAX, CPU_S_MIN = 5.0, 2.0  # of one test, beside what it takes on the module as it is, under the tracer
IMPORT_CPU_S_MAX = 20.0
MEMORY_BYTES_MAX = 2 << 30
WALL_S_MAX = 300
QUIET = ("-q", "-p", "no:cacheprovider", "--tb=no", "-o", "addopts=")


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of one mutant. `by` is the test that noticed, or what it ran out of; empty for a survivor."""

    mutant: Mutant
    by: str

    @property
    def is_alive(self) -> bool:
        return not self.by


def source_of(module: str) -> str:
    return _path(module).read_text(encoding="utf-8")


def _path(module: str) -> Path:
    return ROOT / Path(*module.split(".")).with_suffix(".py")


# ------------------------------------------------------------------------------------ which tests run which lines


@dataclass(slots=True)
class Reach:
    """For each test: the lines of each module that it runs, and the processor time it takes."""

    lines: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutated statement, the quickest first; all of them for what acts at import."""
        touched = set(range(mutant.line, mutant.end_line + 1))
        found = [
            test
            for test, lines in self.lines.items()
            if not mutant.function or touched & lines.get(mutant.module, set())
        ]
        return sorted(found, key=lambda test: self.cpu_s[test])


class _Tracer:
    """Notes the lines of our modules that run while it is set."""

    def __init__(self) -> None:
        self._modules = {str(_path(module)): module for module in MODULES}
        self.lines: dict[str, set[int]] = {}

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        module = self._modules.get(frame.f_code.co_filename)
        if module is None:
            return None
        lines = self.lines.setdefault(module, set())

        def local(frame: FrameType, event: str, arg: object) -> Any:
            lines.add(frame.f_lineno)
            return local

        return local


def _passes(item: pytest.Item) -> bool:
    return all(not report.failed for report in runtestprotocol(item, log=False, nextitem=None))


def _learn(items: Sequence[pytest.Item]) -> Reach:
    """Run every test once on the modules as they are."""
    reach = Reach()
    for item in items:
        tracer, began_s = _Tracer(), time.process_time()
        sys.settrace(tracer)
        try:
            is_good = _passes(item)
        finally:
            sys.settrace(None)
        if not is_good:
            sys.exit(f"{item.nodeid} fails on the modules as they are")
        reach.lines[item.nodeid] = tracer.lines
        reach.cpu_s[item.nodeid] = time.process_time() - began_s
    return reach


def _with_few_examples(items: Sequence[pytest.Item]) -> None:
    """Properties: few examples, always the same ones, and no time spent on making a failing one small."""
    for item in items:
        test: Any = getattr(item, "obj", None)
        test = getattr(test, "__func__", test)
        old = getattr(test, "_hypothesis_internal_use_settings", None)
        if old is not None:
            test._hypothesis_internal_use_settings = settings(
                old,
                max_examples=min(EXAMPLES, old.max_examples),
                phases=(Phase.explicit, Phase.generate),
                derandomize=True,
                database=None,
                deadline=None,
            )


# ------------------------------------------------------------------------------------------------------- trying one


def _swap_code(mutant: Mutant) -> None:
    """The changed function's code in place of the one in force."""
    tree = applied(mutant, source_of(mutant.module))
    code = compile(tree, str(_path(mutant.module)), "exec")
    place: Any = sys.modules[mutant.module]
    for name in mutant.function.split("."):
        place = vars(place)[name]
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
    function = place.fget if isinstance(place, property) else getattr(place, "__func__", place)
    assert isinstance(function, FunctionType)
    function.__code__ = code


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed module where the real one is asked for."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != self._mutant.module:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(_path(name)))

    def exec_module(self, module: ModuleType) -> None:
        path = str(_path(self._mutant.module))
        module.__file__ = path
        exec(compile(applied(self._mutant, source_of(self._mutant.module)), path, "exec"), module.__dict__)


class _InOrder:
    """A pytest plugin that runs the named tests in their order and stops at the first failure."""

    def __init__(self, tests: Mapping[str, float]) -> None:
        self._tests = tests
        self.by = "import"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.by = _first_failing(session.items, self._tests)
        return True


def _first_failing(items: Sequence[pytest.Item], tests: Mapping[str, float]) -> str:
    """The first of `tests` that fails; each may use so many times the processor seconds it should take."""
    known = {item.nodeid: item for item in items}
    _with_few_examples(items)
    for test, cpu_s in tests.items():
        _let_use(CPU_S_MIN + CPU_TIMES_MAX * cpu_s)
        if not _passes(known[test]):
            return test
    return ""


def _let_use(cpu_s: float) -> None:
    """From here on; the system ends a process that uses more."""
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu_s), resource.RLIM_INFINITY))


def _anew(mutant: Mutant, tests: Mapping[str, float]) -> str:
    """Import and collect everything again with the mutant in place: for what acts while a module is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("controller", "drivers", "tests")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder(mutant))
    plugin = _InOrder(tests)
    files = sorted({test.partition("::")[0] for test in tests})
    pytest.main([*QUIET, *files], plugins=[plugin])
    return plugin.by


def try_one(mutant: Mutant, items: Sequence[pytest.Item], tests: Mapping[str, float]) -> Tried:
    """What becomes of `mutant`, in a child of this process."""
    if not tests:
        return Tried(mutant, "")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _live(mutant, items, tests, write)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0 and said == "alive":
        return Tried(mutant, "")
    return Tried(mutant, said or "out of time or memory")


def _live(mutant: Mutant, items: Sequence[pytest.Item], tests: Mapping[str, float], out: int) -> None:
    """In the child: never returns."""
    try:
        _let_use(IMPORT_CPU_S_MAX)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES_MAX, used + MEMORY_BYTES_MAX))
        signal.alarm(WALL_S_MAX)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if mutant.function and not _acts_at_import(mutant):
            _swap_code(mutant)
            by = _first_failing(items, tests)
        else:
            by = _anew(mutant, tests)
        os.write(out, (by or "alive").encode())
    finally:
        os._exit(0)


def _acts_at_import(mutant: Mutant) -> bool:
    """Whether the function has already run when its module is imported: its code comes too late then."""
    return any(mutant.line <= line <= mutant.end_line for line in _RUN_AT_IMPORT.get(mutant.module, ()))


_RUN_AT_IMPORT: dict[str, set[int]] = {}


def _watch_imports() -> None:
    """Import the modules, noting the lines inside functions that run meanwhile."""
    tracer = _Tracer()
    sys.settrace(lambda frame, event, arg: None if frame.f_code.co_name == "<module>" else tracer(frame, event, arg))
    try:
        for module in MODULES:
            importlib.import_module(module)
    finally:
        sys.settrace(None)
    _RUN_AT_IMPORT.update(tracer.lines)


# ------------------------------------------------------------------------------------------------ all


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
        _with_few_examples(session.items)
        reach = _learn(session.items)
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
    _watch_imports()
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
