"""The fault matrix: every row of the catalogue in every state of the site, as tests, and the table they leave.

`python -m hil.matrix` runs the tests of the rows, two processes at a time, and writes `out/faults/matrix.json`,
`matrix.md` and `junit.xml`. A row without a test in each state fails the run. It is also the pytest plugin that notes
what became of each cell. Rows and states may be chosen, for work on one of them; such a run writes no table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

STATES = ("cold", "steady", "limit", "ramp")
COUNTS = {"S": 10, "G": 10, "M": 9, "Q": 11, "P": 5, "C": 4, "X": 7, "B": 2}
ROWS = tuple(f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1))
WORKERS = 2

F = TypeVar("F", bound=Callable[..., object])


def row(name: str) -> Callable[[F], F]:
    """Marks a test as the one of catalogue row `name`; its parameter `state` takes every state."""
    assert name in ROWS, name

    def mark(test: F) -> F:
        import pytest

        marked: Any = pytest.mark.parametrize("state", STATES)(test)
        marked.fault_row = name
        return cast(F, marked)

    return mark


# ------------------------------------------------------------------------------------------------ pytest plugin

_cells: dict[str, tuple[str, str]] = {}
_passed: dict[str, bool] = {}


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--matrix-result", help="file that takes what became of each cell")
    parser.addoption("--matrix-cells", help="ROW:STATE,... to run; all without it")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Note which test is which cell; run the chosen cells, and of all tests only cells where some are chosen."""
    for item in items:
        name = getattr(getattr(item, "function", None), "fault_row", None)
        if name is not None:
            _cells[item.nodeid] = (name, item.callspec.params["state"])
    chosen = config.getoption("--matrix-cells")
    if chosen:
        wanted = {tuple(cell.split(":")) for cell in chosen.split(",")}
        config.hook.pytest_deselected(items=[item for item in items if _cells.get(item.nodeid) not in wanted])
        items[:] = [item for item in items if _cells.get(item.nodeid) in wanted]
        for node in [node for node, cell in _cells.items() if cell not in wanted]:
            del _cells[node]


def pytest_runtest_logreport(report: Any) -> None:
    if report.nodeid in _cells and (report.when == "call" or report.outcome != "passed"):
        _passed[report.nodeid] = _passed.get(report.nodeid, True) and report.outcome == "passed"


def pytest_sessionfinish(session: Any) -> None:
    path = session.config.getoption("--matrix-result")
    if path:
        found = [(*_cells[node], _passed.get(node, False)) for node in _cells]
        Path(path).write_text(json.dumps(found), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the run


def run(out: Path, tests: Sequence[Path]) -> int:
    """Run the tests of all rows; exit status 0 only when all 232 cells passed."""
    cells = _play(out, tests, chosen=None)
    missing = [f"{name} {state}" for name in ROWS for state in STATES if (name, state) not in cells]
    table = [
        {"row": name, "state": state, "pass": cells.get((name, state), False)} for name in ROWS for state in STATES
    ]
    (out / "matrix.json").write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")
    (out / "matrix.md").write_text(markdown(table), encoding="utf-8")
    good = sum(bool(cell["pass"]) for cell in table)
    print(f"{good} of {len(table)} cells pass; table in {out / 'matrix.md'}")
    if missing:
        print(f"without a test: {', '.join(missing)}")
    for cell in table:
        if not cell["pass"]:
            print(f"failed: {cell['row']} {cell['state']}")
    return 0 if good == len(table) else 1


def run_some(out: Path, tests: Sequence[Path], cells: Sequence[tuple[str, str]]) -> int:
    """Run `cells` alone and say what became of each; exit status 0 when all of them passed."""
    found = _play(out, tests, chosen=cells)
    for name, state in cells:
        word = "without a test" if (name, state) not in found else "pass" if found[name, state] else "FAIL"
        print(f"{name} {state}: {word}")
    return 0 if all(found.get(cell, False) for cell in cells) else 1


def markdown(table: Sequence[dict[str, object]]) -> str:
    """Rows down, states across."""
    passed = {(cell["row"], cell["state"]): cell["pass"] for cell in table}
    lines = [f"| row | {' | '.join(STATES)} |", "|---" * (len(STATES) + 1) + "|"]
    for name in ROWS:
        words = ["pass" if passed[name, state] else "**FAIL**" for state in STATES]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _play(out: Path, tests: Sequence[Path], *, chosen: Sequence[tuple[str, str]] | None) -> dict[tuple[str, str], bool]:
    """What became of each cell, from `WORKERS` processes at once; one of several tests passes when all of them do."""
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(WORKERS) as lanes:
        list(lanes.map(lambda k: _run_file(out, k, tests[k], chosen), range(len(tests))))
    cells: dict[tuple[str, str], bool] = {}
    for part in (out / f"part-{k}.json" for k in range(len(tests))):
        for name, state, is_good in json.loads(part.read_text(encoding="utf-8")) if part.is_file() else []:
            cells[name, state] = cells.get((name, state), True) and is_good
        part.unlink(missing_ok=True)
    _join_junit(out, len(tests))
    return cells


def _run_file(out: Path, number: int, test: Path, chosen: Sequence[tuple[str, str]] | None) -> None:
    """One file in a process of its own; what it leaves says how it went."""
    command = [sys.executable, "-m", "pytest", "-p", "hil.matrix", "--durations-min=5", "-m", "not process"]
    command += [f"--junitxml={out / f'junit-{number}.xml'}", f"--matrix-result={out / f'part-{number}.json'}"]
    if chosen is not None:
        command.append("--matrix-cells=" + ",".join(f"{name}:{state}" for name, state in chosen))
    subprocess.run([*command, str(test)], check=False)


def _join_junit(out: Path, count: int) -> None:
    whole = ET.Element("testsuites")
    for number in range(count):
        part = out / f"junit-{number}.xml"
        if part.is_file():
            whole.extend(ET.parse(part).getroot())
            part.unlink()
    ET.ElementTree(whole).write(out / "junit.xml", encoding="utf-8", xml_declaration=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hil.matrix", description="Run the fault matrix and write its table."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows of the catalogue, such as S1, or M for all of M")
    parser.add_argument("--state", action="append", choices=STATES, help="only this state; may be given again")
    given = parser.parse_args()
    for word in given.rows:
        if word not in ROWS and word not in COUNTS:
            known = ", ".join(f"{letter}1 to {letter}{count}" for letter, count in COUNTS.items())
            parser.error(f"{word}: no row of the catalogue; rows are {known}")
    tests = sorted(Path("tests").glob("test_faults_*.py"), reverse=True)  # that on the wire, the longest, first
    out = Path("out") / "faults"
    if not given.rows and not given.state:
        return run(out, tests)
    rows = [name for name in ROWS if not given.rows or name in given.rows or name[0] in given.rows]
    return run_some(out / "some", tests, [(name, state) for name in rows for state in given.state or STATES])


if __name__ == "__main__":
    sys.exit(main())
