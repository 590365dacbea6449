"""Which tests run which lines, and what becomes of one mutant under the tests that reach it.

Every mutant lives in a forked child that may use so much processor time and memory: only the tests that reach the
changed statement run, until one fails. A change inside a function is put in by its code object; one that acts at import
(constants, tables, defaults) by importing anew.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings

from controller.types import frozen
from hil.mutants import Mutant, applied

ROOT = Path(__file__).resolve().parent.parent
MODULES = tuple(
    f"controller.{name}"
    for name in (
        "envelope",
        "envelope_bank",
        "envelope_node",
        "modes",
        "signals",
        "signal_clock",
        "signal_dwell",
        "signal_request",
        "signal_schedule",
        "contract",
        "contract_rows",
    )
)
EXAMPLES = 25  # of each property: seconds for each mutant, not minutes
# A mutant that hangs or devours is noticed by what it uses, not by how long a busy machine takes.
CPU_TIMES_MAX, CPU_S_MIN = 5.0, 2.0  # of one test, beside what it takes on the module as it is, under the tracer
IMPORT_CPU_S_MAX = 20.0
MEMORY_BYTES_MAX = 2 << 30
WALL_S_MAX = 300
QUIET = ("-q", "-p", "no:cacheprovider", "--tb=no", "-o", "addopts=")


@frozen
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


def learn(items: Sequence[pytest.Item]) -> Reach:
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


def with_few_examples(items: Sequence[pytest.Item]) -> None:
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
    with_few_examples(items)
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


def watch_imports() -> None:
    """Import the modules, noting the lines inside functions that run meanwhile."""
    tracer = _Tracer()
    sys.settrace(lambda frame, event, arg: None if frame.f_code.co_name == "<module>" else tracer(frame, event, arg))
    try:
        for module in MODULES:
            importlib.import_module(module)
    finally:
        sys.settrace(None)
    _RUN_AT_IMPORT.update(tracer.lines)
