"""Small changes to a module's syntax tree, each with a name that outlives edits elsewhere in the file.

Comparisons and their boundaries, constants, `and`/`or`, `not`, arithmetic, `min`/`max`, conditions held true or false,
statements removed. Docs, types, messages, asserts and `strict=` (`zip`'s own assert) are left alone. Says nothing about
tests: that is `hil.mutation`.
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

from controller.types import frozen

Tree = TypeVar("Tree", bound=ast.AST)

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
LEFT_ALONE = ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom
NO_CODE = ("annotation", "returns", "decorator_list", "type_params")


@frozen
class Mutant:
    """One change. `function` is empty at module level; `nth` counts changes that read the same in one function."""

    module: str
    function: str
    line: int
    end_line: int
    before: str
    after: str
    nth: int
    place: int
    choice: int

    @property
    def name(self) -> str:
        where = f"{self.module}:{self.line}" + (f" {self.function}" if self.function else "")
        return f"{where}: `{self.before}` -> `{self.after}`" + (f" #{self.nth}" if self.nth > 1 else "")


class _Change:
    """Changes a node in place, and back."""

    def __init__(self, node: ast.AST, field: str, index: int | None, new: object) -> None:
        self._node, self._field, self._index, self._new = node, field, index, new

    def swap(self) -> None:
        held = getattr(self._node, self._field)
        if self._index is None:
            setattr(self._node, self._field, self._new)
            self._new = held
        else:
            held[self._index], self._new = self._new, held[self._index]


@frozen
class _Place:
    """Where changes may be made: the statement that shows them, and the function it belongs to."""

    function: str
    statement: ast.stmt
    changes: tuple[_Change, ...]


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """Every change to `source`."""
    seen = Counter[tuple[str, str, str]]()
    for index, place in enumerate(_places(ast.parse(source))):
        before = _head(place.statement)
        for choice, change in enumerate(place.changes):
            change.swap()
            after = "pass" if isinstance(change, _Removal) else _head(place.statement)
            change.swap()
            key = (place.function, before, after)
            seen[key] += 1
            first, last = _lines(place.statement)
            yield Mutant(module, place.function, first, last, before, after, seen[key], index, choice)


def applied(mutant: Mutant, source: str) -> ast.Module:
    """`source` with that one change."""
    tree = ast.parse(source)
    place = next(itertools.islice(_places(tree), mutant.place, None))
    place.changes[mutant.choice].swap()
    return _unnot(tree)


class _Removal(_Change):
    """A statement taken away."""


def _head(statement: ast.stmt) -> str:
    """The statement's own text on one line: of an `if`, a loop or a function its first line only."""
    return ast.unparse(_unnot(copy.deepcopy(statement))).partition("\n")[0]


def _lines(statement: ast.stmt) -> tuple[int, int]:
    """The lines that run when the statement itself does: not those of a body it holds."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) and body else statement.end_lineno or statement.lineno
    return statement.lineno, max(statement.lineno, last)


def _places(tree: ast.Module) -> Iterator[_Place]:
    """Where `tree` can be changed, in order of the text."""
    stack: list[tuple[ast.AST, str, ast.stmt | None, bool]] = [(tree, "", None, False)]
    while stack:
        node, name, statement, is_function = stack.pop()
        if isinstance(node, LEFT_ALONE) or (isinstance(node, ast.keyword) and node.arg == "strict"):
            continue
        if isinstance(node, ast.stmt):
            statement = node
        if statement is not None and (changes := tuple(_changes(node))):
            yield _Place(name if is_function else "", statement, changes)
        inside = is_function
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not is_function:
            name, inside = f"{name}.{node.name}".lstrip("."), isinstance(node, ast.FunctionDef)
        yield from (_Place(name if inside else "", s, (c,)) for s, c in _removals(node))
        children = [
            (child, name, statement, inside if field == "body" else is_function)
            for field, value in ast.iter_fields(node)
            if field not in NO_CODE
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        ]
        stack.extend(reversed(children))


def _changes(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            yield from (_Change(node, "ops", k, new()) for new in SWAPS.get(type(op), ()))
    elif isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign):
        yield from (_Change(node, "op", None, new()) for new in SWAPS.get(type(node.op), ()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield _Change(node, "op", None, ast.UAdd() if isinstance(node.op, ast.USub) else _Truth())
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield _Change(node, "value", None, _other(node.value))
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in CALLS:
            yield _Change(node.func, "id" if isinstance(node.func, ast.Name) else "attr", None, CALLS[name])
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        held = (True, False) if not isinstance(node, ast.While) else (False,)
        yield from (_Change(node, "test", None, ast.Constant(value)) for value in held)


def _removals(node: ast.AST) -> Iterator[tuple[ast.stmt, _Change]]:
    if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With | ast.While):
        for field in ("body", "orelse"):
            for k, statement in enumerate(getattr(node, field, [])):
                if _is_removable(statement):
                    yield statement, _Removal(node, field, k, ast.copy_location(ast.Pass(), statement))


class _Truth(ast.Not):
    """Stands for `not` taken away: see `_unnot`."""


class _Unnot(ast.NodeTransformer):
    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return node.operand if isinstance(node.op, _Truth) else node


def _unnot(tree: Tree) -> Tree:
    """`tree` without the negations that were marked as taken away."""
    changed: Tree = _Unnot().visit(tree)
    return ast.fix_missing_locations(changed)


def _other(value: int | float | bool) -> int | float | bool:
    if isinstance(value, bool):
        return not value
    return type(value)(1 if value == 0 else value * 2)


def _is_removable(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    return isinstance(statement, ast.AugAssign | ast.Continue | ast.Delete | ast.Raise) or (
        isinstance(statement, ast.Assign)
        and all(isinstance(t, ast.Attribute | ast.Subscript) for t in statement.targets)
    )
