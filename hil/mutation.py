"""Mutates envelope, modes, signals and contract one small change at a time and asks their tests to notice.

`python -m hil.mutation` writes `out/mutation.json`: {"mutants", "killed", "survivors", ...}. Changes are made to the
syntax tree: comparisons and their boundaries, constants, `and`/`or`, `not`, arithmetic, `min`/`max`, conditions held
true or false, statements removed. The order is shuffled by a fixed seed and shared evenly among the modules; where the
time limit cuts the run short, that order makes what was tried a fair sample, and `population` says of how many.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "controller.envelope": ("tests/test_envelope.py",),
    "controller.envelope_node": ("tests/test_envelope_node.py",),
    "controller.modes": ("tests/test_modes.py",),
    "controller.signals": ("tests/test_signals.py",),
    "controller.signal_schedule": ("tests/test_signals.py",),
    "controller.contract": ("tests/test_contract.py",),
    "controller.contract_rows": ("tests/test_contract.py",),
}
WORKERS = 2
MUTANT_S_MAX = 40.0  # a mutant that hangs its tests is noticed; ten times what the slowest need
EXAMPLES = 25  # of each property: seconds for each mutant, not minutes

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
}
CALLS = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: the module, the place among its places, which of the changes possible there, and in words."""

    module: str
    line: int
    what: str
    place: int
    choice: int


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """Every change to `source`."""
    for place, (node, changes) in enumerate(_places(ast.parse(source))):
        for choice, change in enumerate(changes):
            yield Mutant(module, getattr(node, "lineno", 0), change.what, place, choice)


def applied(mutant: Mutant, source: str) -> ast.Module:
    """`source` with that one change."""
    tree = ast.parse(source)
    node, changes = next(itertools.islice(_places(tree), mutant.place, None))
    changes[mutant.choice](node)
    return _unnot(ast.fix_missing_locations(tree))


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, list[_Change]]]:
    """Nodes that can be changed, in order, each with its changes; docs, types, messages and asserts are left alone."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop(0)
        if isinstance(node, ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            continue
        changes = _changes(node)
        if changes:
            yield node, changes
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            children = value if isinstance(value, list) else [value]
            stack.extend(child for child in children if isinstance(child, ast.AST))


class _Change:
    """Changes a node in place and says what it did."""

    def __init__(self, field: str, index: int | None, new: object, what: str) -> None:
        self._field, self._index, self._new, self.what = field, index, new, what

    def __call__(self, node: ast.AST) -> None:
        if self._index is None:
            setattr(node, self._field, self._new)
        else:
            getattr(node, self._field)[self._index] = self._new


def _changes(node: ast.AST) -> list[_Change]:
    found: list[_Change] = []
    if isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            for new in SWAPS.get(type(op), ()):
                found.append(_Change("ops", k, new(), f"{type(op).__name__} to {new.__name__}"))
    elif isinstance(node, ast.BoolOp | ast.BinOp):
        for new in SWAPS.get(type(node.op), ()):
            found.append(_Change("op", None, new(), f"{type(node.op).__name__} to {new.__name__}"))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        found.append(_Change("op", None, ast.UAdd() if isinstance(node.op, ast.USub) else _Truth(), "sign or not gone"))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        found += _of_constant(node.value)
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in CALLS:
            new_func = copy.deepcopy(node.func)
            setattr(new_func, "id" if isinstance(node.func, ast.Name) else "attr", CALLS[name])
            found.append(_Change("func", None, new_func, f"{name} to {CALLS[name]}"))
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        for value in (True, False):
            if not (isinstance(node, ast.While) and value):
                found.append(_Change("test", None, ast.Constant(value), f"condition always {value}"))
    if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With | ast.While):
        for field in ("body", "orelse"):
            for k, statement in enumerate(getattr(node, field, [])):
                if _is_removable(statement):
                    found.append(_Change(field, k, ast.copy_location(ast.Pass(), statement), "statement removed"))
    return found


class _Truth(ast.Not):
    """Stands for `not` taken away: see `_unnot`."""


def _unnot(tree: ast.Module) -> ast.Module:
    class Remove(ast.NodeTransformer):
        def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
            self.generic_visit(node)
            return node.operand if isinstance(node.op, _Truth) else node

    changed: ast.Module = Remove().visit(tree)
    return ast.fix_missing_locations(changed)


def _of_constant(value: int | float | bool) -> list[_Change]:
    if isinstance(value, bool):
        return [_Change("value", None, not value, f"{value} to {not value}")]
    new = 1 if value == 0 else value * 2
    return [_Change("value", None, type(value)(new), f"{value} to {new}")]


def _is_removable(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    return isinstance(statement, ast.AugAssign | ast.Continue | ast.Delete | ast.Raise) or (
        isinstance(statement, ast.Assign)
        and all(isinstance(t, ast.Attribute | ast.Subscript) for t in statement.targets)
    )


# ------------------------------------------------------------------------------------------------ trying one


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed module where the real one is asked for."""

    def __init__(self, mutant: Mutant, path: Path) -> None:
        self._mutant, self._path = mutant, path

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != self._mutant.module:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self._path)
        tree = applied(self._mutant, self._path.read_text(encoding="utf-8"))
        exec(compile(tree, str(self._path), "exec"), module.__dict__)


def survives(mutant: Mutant | None, module: str) -> bool:
    """Whether the module's tests pass on `mutant` (None: on the module as it is), in a child of this process."""
    child = os.fork()
    if child == 0:
        _run_tests(mutant, module)
    deadline_s = time.monotonic() + MUTANT_S_MAX * (1 if mutant else 4)
    while time.monotonic() < deadline_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def _run_tests(mutant: Mutant | None, module: str) -> None:
    """In the child: never returns."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(mutant, ROOT / Path(*module.split(".")).with_suffix(".py")))
        import pytest
        from hypothesis import settings

        settings.register_profile("mutation", max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
        settings.load_profile("mutation")
        found = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=no", *TESTS[module]])
        code = int(found)
    finally:
        os._exit(code)


# ------------------------------------------------------------------------------------------------ all


def plan() -> list[Mutant]:
    """Every mutant of every module, shuffled within its module by a fixed seed and dealt out module by module."""
    hands: list[list[Mutant]] = []
    for module in TESTS:
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        hand = list(mutants_of(module, path.read_text(encoding="utf-8")))
        random.Random(module).shuffle(hand)
        hands.append(hand)
    longest = max(len(hand) for hand in hands)
    spread = [(k * longest / len(hand), m) for hand in hands for k, m in enumerate(hand)]
    return [m for _, m in sorted(spread, key=lambda pair: pair[0])]


def lane(mutants: Sequence[Mutant], *, until_s: float, out: int) -> None:
    """Try each of `mutants` until the time is over; one JSON line each to the pipe `out`."""
    import hypothesis  # noqa: F401 - loaded before the forks, so that each starts at once
    import numpy  # noqa: F401
    import pytest  # noqa: F401

    with os.fdopen(out, "w") as pipe:
        for mutant in mutants:
            if time.monotonic() > until_s:
                return
            is_alive = survives(mutant, mutant.module)
            where = f"{mutant.module}:{mutant.line}: {mutant.what}"
            pipe.write(json.dumps([mutant.module, where, is_alive]) + "\n")
            pipe.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Do the tests notice small changes?")
    parser.add_argument("--minutes", type=float, default=9.0)
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    began_s = time.monotonic()
    sick = [module for module in TESTS if not survives(None, module)]
    if sick:
        print(f"the tests of {', '.join(sick)} fail on the modules as they are", file=sys.stderr)
        return 1
    mutants = plan()
    until_s = began_s + 60.0 * given.minutes
    pipes = []
    for k in range(WORKERS):
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(read)
            lane(mutants[k::WORKERS], until_s=until_s, out=write)
            os._exit(0)
        os.close(write)
        pipes.append(read)
    lines: list[list[object]] = []
    for read in pipes:
        with os.fdopen(read) as pipe:
            lines += [json.loads(line) for line in pipe]
    return _tell(lines, population=len(mutants), seconds=time.monotonic() - began_s)


def _tell(lines: Sequence[Sequence[object]], *, population: int, seconds: float) -> int:
    survivors = sorted(str(where) for _, where, is_alive in lines if is_alive)
    killed = len(lines) - len(survivors)
    by_module = {
        module: {
            "mutants": sum(name == module for name, _, _ in lines),
            "killed": sum(name == module and not is_alive for name, _, is_alive in lines),
        }
        for module in TESTS
    }
    report = {
        "mutants": len(lines),
        "killed": killed,
        "survivors": survivors,
        "population": population,
        "by_module": by_module,
        "seconds": round(seconds, 1),
    }
    Path("out").mkdir(exist_ok=True)
    Path("out/mutation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    share = killed / max(len(lines), 1)
    print(f"{killed} of {len(lines)} mutants killed ({share:.1%}); {population} exist; {seconds:.0f} s")
    for name, found in by_module.items():
        print(f"  {name}: {found['killed']} of {found['mutants']}")
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
