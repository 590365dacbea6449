"""The tool that asks whether tests notice: what it changes, how it names it, and when it says no."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hil import mutation
from hil.mutants import Mutant, applied, mutants_of
from hil.mutation import is_good, judged, justified, main
from hil.mutation_try import Reach, Tried

SOURCE = '''
"""Doc with 1 in it."""
LIMIT = 10


class Box:
    def fits(self, x: int, *, is_open: bool = False) -> bool:
        """More than 1 is said here."""
        assert x > 0, "1"
        if not is_open and x <= LIMIT:
            self.count += 1
            return min(x, LIMIT) == x
        for a, b in zip([x], [1], strict=True):
            x = a - b
        return False
'''


def changes() -> list[Mutant]:
    return list(mutants_of("m", SOURCE))


def test_every_kind_of_change_is_made_and_nothing_that_is_no_code() -> None:
    """Constants, comparisons, logic, arithmetic, min and max, conditions, statements; no docs, asserts or messages."""
    told = {(m.function, m.before, m.after) for m in changes()}
    test = "if not is_open and x <= LIMIT:"
    for expected in (
        ("", "LIMIT = 10", "LIMIT = 20"),
        (
            "",
            "def fits(self, x: int, *, is_open: bool=False) -> bool:",
            "def fits(self, x: int, *, is_open: bool=True) -> bool:",
        ),
        ("Box.fits", test, "if is_open and x <= LIMIT:"),
        ("Box.fits", test, "if not is_open or x <= LIMIT:"),
        ("Box.fits", test, "if not is_open and x < LIMIT:"),
        ("Box.fits", test, "if not is_open and x > LIMIT:"),
        ("Box.fits", test, "if True:"),
        ("Box.fits", test, "if False:"),
        ("Box.fits", "self.count += 1", "self.count -= 1"),
        ("Box.fits", "self.count += 1", "self.count += 2"),
        ("Box.fits", "self.count += 1", "pass"),
        ("Box.fits", "return min(x, LIMIT) == x", "return max(x, LIMIT) == x"),
        ("Box.fits", "return min(x, LIMIT) == x", "return min(x, LIMIT) != x"),
        ("Box.fits", "x = a - b", "x = a + b"),
        ("Box.fits", "return False", "return True"),
    ):
        assert expected in told, expected
    assert not any("assert" in before or "strict=False" in after for _, before, after in told)


def test_each_change_is_one_change_that_runs() -> None:
    """What is said of a mutant is what its tree holds, and the source itself is left alone."""
    plain = ast.unparse(ast.parse(SOURCE))
    seen = set()
    for mutant in changes():
        text = ast.unparse(applied(mutant, SOURCE))
        compile(text, "m", "exec")
        assert text != plain and mutant.after in text
        seen.add(text)
    assert len(seen) == len(changes())


def test_a_name_outlives_edits_above_it() -> None:
    """The line moves, all else by which a justification finds its mutant stays."""
    moved = list(mutants_of("m", SOURCE.replace('"""Doc with 1 in it."""', '"""Doc."""\n\n\n\n')))
    assert [(m.function, m.before, m.after, m.nth) for m in moved] == [
        (m.function, m.before, m.after, m.nth) for m in changes()
    ]
    assert moved[0].name != changes()[0].name


def test_only_tests_that_reach_the_statement_are_asked() -> None:
    """A test that never runs the line cannot notice; what acts at import concerns every test. Quick ones come first."""
    reach = Reach(
        lines={"far": {"m": {1}}, "near": {"m": {11}}, "quick": {"m": {11}}}, cpu_s={"far": 1, "near": 2, "quick": 1}
    )
    inside = next(m for m in changes() if m.before == "self.count += 1")
    assert inside.line == 11 and reach.tests(inside) == ["quick", "near"]
    at_import = next(m for m in changes() if m.before == "LIMIT = 10")
    assert sorted(reach.tests(at_import)) == ["far", "near", "quick"]


def key(m: Mutant) -> tuple[str, str, str, str, int]:
    return (m.module, m.function, m.before, m.after, m.nth)


def test_a_run_is_good_when_every_survivor_is_explained_and_every_explanation_needed() -> None:
    """One of forty survives: unexplained it fails the run; explained it does not; an explanation too many does."""
    every = (changes() * 3)[:39]
    alive = changes()[0]
    tried = [Tried(m, "test") for m in every if m != alive] + [Tried(alive, "")]
    population = [t.mutant for t in tried]
    bare = judged(tried, population=population, reasons={})
    assert bare["unjustified"] == [alive.name] and not is_good(bare)
    explained = judged(tried, population=population, reasons={key(alive): "means nothing"})
    assert explained["justified"] == {alive.name: "means nothing"} and is_good(explained)
    killed = judged(tried, population=population, reasons={key(alive): "a", key(changes()[1]): "b"})
    assert "noticed by test" in killed["stale_justifications"][0] and not is_good(killed)
    gone = judged(tried, population=population, reasons={key(alive): "a", ("m", "f", "x", "y", 1): "b"})
    assert "no such change" in gone["stale_justifications"][0] and not is_good(gone)


def test_too_few_killed_is_not_good_however_well_explained() -> None:
    """Nineteen of twenty must be noticed; explanations are for the last one."""
    tried = [Tried(m, "test" if k else "") for k, m in enumerate(changes()[:10])]
    reasons = {key(changes()[0]): "means nothing"}
    assert not is_good(judged(tried, population=[t.mutant for t in tried], reasons=reasons))


def test_an_explanation_needs_its_words(tmp_path: Path) -> None:
    """No reason, no justification; and each only once."""
    path = tmp_path / "j.yaml"
    entry = "- {module: m, function: f, before: a, after: b, reason: '%s'}\n"
    path.write_text(entry % "because")
    assert justified(path) == {("m", "f", "a", "b", 1): "because"}
    for text in (entry % " ", entry % "x" + entry % "y"):
        path.write_text(text)
        with pytest.raises(SystemExit):
            justified(path)


def test_a_module_it_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name ends at once, with the names that would do."""
    with pytest.raises(SystemExit) as ended:
        main(["--module", "envelope"])
    assert ended.value.code == 2
    assert "invalid choice: 'envelope'" in (said := capsys.readouterr().err) and "controller.envelope_node" in said


def test_there_are_no_survivors_of_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What survived last is asked for where nothing ran yet: that is said, with the file that is missing."""
    monkeypatch.setattr(mutation, "REPORT", tmp_path / "mutation.json")
    with pytest.raises(SystemExit) as ended:
        main(["--survivors"])
    assert ended.value.code == 2 and "mutation.json of a run before" in capsys.readouterr().err
