"""The fault matrix: every row of the catalogue in every state of the site, as tests, and the table they leave.

`python -m hil.matrix` runs the tests of the rows in two processes and writes `out/faults/matrix.json`, `matrix.md` and
`junit.xml`. A row without a test in each state fails the run. It is also the pytest plugin that notes what became of
each cell; a test that is expected to fail counts as failed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from hil.matrix_known import KNOWN

STATES = ("cold", "steady", "limit", "ramp")
COUNTS = {"S": 10, "G": 10, "M": 9, "Q": 11, "P": 5, "C": 4, "X": 7, "B": 2}
ROWS = tuple(f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1))
WORKERS = 2
RESULT_ENV = "RAMPART_MATRIX_RESULT"

F = TypeVar("F", bound=Callable[..., object])


def row(name: str) -> Callable[[F], F]:
    """Marks a test as the one of catalogue row `name`; its parameter `state` takes every state."""
    assert name in ROWS, name

    def mark(test: F) -> F:
        import pytest

        cells = [
            pytest.param(state, marks=pytest.mark.xfail(reason=KNOWN[name, state], strict=False))
            if (name, state) in KNOWN
            else state
            for state in STATES
        ]
        marked: Any = pytest.mark.parametrize("state", cells)(test)
        marked.fault_row = name
        return cast(F, marked)

    return mark


# ------------------------------------------------------------------------------------------------ pytest plugin

_cells: dict[str, tuple[str, str]] = {}
_passed: dict[str, bool] = {}


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        name = getattr(getattr(item, "function", None), "fault_row", None)
        if name is not None:
            _cells[item.nodeid] = (name, item.callspec.params["state"])


def pytest_runtest_logreport(report: Any) -> None:
    if report.nodeid in _cells and (report.when == "call" or report.outcome != "passed"):
        is_good = report.outcome == "passed" and not hasattr(report, "wasxfail")
        _passed[report.nodeid] = _passed.get(report.nodeid, True) and is_good


def pytest_sessionfinish() -> None:
    path = os.environ.get(RESULT_ENV)
    if path:
        found = [(*_cells[node], _passed.get(node, False)) for node in _cells]
        Path(path).write_text(json.dumps(found), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the run


def run(out: Path, tests: Sequence[Path]) -> int:
    """Run the tests of all rows; exit status 0 only when all 232 cells passed."""
    out.mkdir(parents=True, exist_ok=True)
    lanes = [list(tests)[k::WORKERS] for k in range(WORKERS)]
    children = [_start(out, k, lane) for k, lane in enumerate(lanes) if lane]
    for child in children:
        child.wait()
    cells: dict[tuple[str, str], bool] = {}
    for k in range(len(children)):
        part = out / f"part-{k}.json"
        for name, state, is_good in json.loads(part.read_text(encoding="utf-8")) if part.is_file() else []:
            cells[name, state] = cells.get((name, state), True) and is_good
        part.unlink(missing_ok=True)
    missing = [f"{name} {state}" for name in ROWS for state in STATES if (name, state) not in cells]
    table = [
        {"row": name, "state": state, "pass": cells.get((name, state), False)} for name in ROWS for state in STATES
    ]
    (out / "matrix.json").write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")
    (out / "matrix.md").write_text(markdown(table), encoding="utf-8")
    _join_junit(out, len(children))
    good = sum(bool(cell["pass"]) for cell in table)
    print(f"{good} of {len(table)} cells pass; table in {out / 'matrix.md'}")
    if missing:
        print(f"without a test: {', '.join(missing)}")
    for cell in table:
        if not cell["pass"]:
            print(f"failed: {cell['row']} {cell['state']}")
    return 0 if good == len(table) else 1


def markdown(table: Sequence[dict[str, object]]) -> str:
    """Rows down, states across."""
    passed = {(cell["row"], cell["state"]): cell["pass"] for cell in table}
    lines = [f"| row | {' | '.join(STATES)} |", "|---" * (len(STATES) + 1) + "|"]
    for name in ROWS:
        words = ["pass" if passed[name, state] else "**FAIL**" for state in STATES]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _start(out: Path, number: int, tests: Sequence[Path]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", "-p", "hil.matrix", "--durations=0", "--durations-min=5"]
    command += [f"--junitxml={out / f'junit-{number}.xml'}", *map(str, tests)]
    return subprocess.Popen(command, env={**os.environ, RESULT_ENV: str(out / f"part-{number}.json")})


def _join_junit(out: Path, count: int) -> None:
    whole = ET.Element("testsuites")
    for number in range(count):
        part = out / f"junit-{number}.xml"
        if part.is_file():
            whole.extend(ET.parse(part).getroot())
            part.unlink()
    ET.ElementTree(whole).write(out / "junit.xml", encoding="utf-8", xml_declaration=True)


def main() -> int:
    tests = sorted(Path("tests").glob("test_faults_*.py"))
    return run(Path("out") / "faults", tests)


if __name__ == "__main__":
    sys.exit(main())
