"""The pages say what is: commands and options they show exist, links lead somewhere, every shipped file is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from controller.cli.main import app
from controller.config.contract import load_contract
from controller.config.site import parse_site
from controller.modes import TABLE, UNFLAGGED
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RAMPART: Any = typer.main.get_command(app)
SHOWN = re.compile(rf"(?:^|[\s`/])rampart ((?:{'|'.join(sorted(RAMPART.commands))})\b[^`#|)]*)")
PING = "rampart/v1/ping/{client}"
NAMED = re.compile(r"`((?:controller|drivers|hil|tests|configs|docs|systemd)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"<!--.*?-->", "", text)  # marks between which a command writes
    for shown in (match.group(1).split() for line in text.splitlines() for match in SHOWN.finditer(line)):
        command = RAMPART
        words = list(shown)
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        own = words[: words.index("--")] if "--" in words else words  # behind it stands another program's line
        asked = {word.partition("=")[0].rstrip(".,;:") for word in own if word.startswith("--")}
        assert asked <= known, f"{page.name}: rampart {' '.join(shown)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = [page.parent / target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    named = [ROOT / name for name in NAMED.findall(text)]
    assert [path for path in (*linked, *named) if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_sections_are_there(page: Path) -> None:
    for target, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert section in anchors, f"{page.name}: {target}#{section}"


@pytest.mark.parametrize(
    ("folder", "page"), [("scenarios", "bench"), ("contracts", "contracts"), ("devices", "devices")]
)
def test_every_shipped_file_is_named(folder: str, page: str) -> None:
    """What a person could choose is on the page that tells of choosing."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")}
    assert names and {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = set(re.findall(r"(?:`|^)make\s+([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert asked <= targets, f"{page.name}: make {asked - targets}"


def test_a_profile_of_ones_own_can_be_copied_from_the_page(tmp_path: Path) -> None:
    (example,) = blocks("contracts", "yaml")
    (tmp_path / "north-grid.yaml").write_text(example, encoding="utf-8")
    rows = load_contract([str(tmp_path / "north-grid.yaml")], registered_peak_w=100e6).limits
    assert "north-grid.ramp-60s" in {str(row.id) for row in rows} and len(rows) > 1  # the included ones, too


@pytest.mark.parametrize("page", ["emergency", "jobs"])
def test_sections_of_a_site_file_can_be_copied_from_the_page(page: str, tmp_path: Path) -> None:
    site = yaml.safe_load((ROOT / "configs" / "site.example.yaml").read_text(encoding="utf-8"))
    for example in blocks(page, "yaml"):
        parse_site(site | yaml.safe_load(example), origin=f"docs/{page}.md")


def test_topics_of_the_page_are_those_of_the_interface() -> None:
    """All channels but those between a site and its nodes; and the ping, which is none."""
    told = set(re.findall(r"^\| `((?:grid|rampart)/v1/[^`]+)` \|", text_of("grid"), re.MULTILINE))
    interface = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8"))
    described = {channel["address"] for channel in interface["channels"].values()}
    assert told ^ described == {"rampart/v1/node/{node}/command", "rampart/v1/node/{node}/report", PING}


def test_code_and_tests_that_a_rule_names_are_there() -> None:
    """The table of rules on the grid's page: `S._may` is a function of controller/signals.py, `test_jws` a file."""
    table = text_of("grid").partition("## Rule, code, test")[2]
    source = {
        "S": "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "controller").glob("signal*.py"))),
        "D": "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "drivers").glob("dsx*.py"))),
    }
    everything = "".join(
        p.read_text(encoding="utf-8") for folder in ("controller", "drivers") for p in (ROOT / folder).rglob("*.py")
    )
    named = set(re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)`", table)) - {"S", "D", "jti", "iat", "source", "cty"}
    assert len(named) > 30
    for name in sorted(named):
        owner, _, last = name.rpartition(".")
        if name.startswith("test_"):
            assert (ROOT / "tests" / f"{name}.py").exists(), name
        else:
            assert re.search(rf"\b{last}\b", source.get(owner, everything)), name


def test_the_catalogue_says_flag_and_mode_of_every_row() -> None:
    """As the table of modes has them; rows that need no flag are there, too."""
    told: dict[str, tuple[set[str], str]] = {}
    rows: set[str] = set()
    for line in text_of("catalogue").splitlines():
        if not re.match(r"\| (-|[A-Z]\d)", line):
            continue
        ids, *_, flags = (cell.strip() for cell in line.strip("|").split("|"))
        of_line = _rows_of(ids)
        rows |= of_line
        told |= {name: (of_line, mode) for name, mode in _flags_of(flags)}
    flagged = {f: r for f, r in TABLE.items() if not f.startswith("operator_")}
    assert told == {f: (told[f][0], r.mode.name) for f, r in flagged.items()}
    assert {f for f, r in flagged.items() if r.rows != "-" and not set(r.rows.split()) <= told[f][0]} == set()
    assert len(rows - {"-"}) == 58 and rows >= set(UNFLAGGED)


def _rows_of(ids: str) -> set[str]:
    """`Q2 to Q8`, `M1, M4, M9` or one."""
    if " to " not in ids:
        return set(ids.split(", "))
    first, last = ids.split(" to ")
    return {f"{first[0]}{n}" for n in range(int(first[1:]), int(last[1:]) + 1)}


def _flags_of(cell: str) -> list[tuple[str, str]]:
    """Each flag with the mode that is named behind it."""
    return re.findall(r"`([a-z_]+)`(?=[^A-Z]*([A-Z]+))", cell)


def text_of(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced examples of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)
