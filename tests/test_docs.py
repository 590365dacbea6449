"""The pages say what is: commands and options they show exist, links lead somewhere, every shipped file is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from controller.cli.main import app
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RAMPART: Any = typer.main.get_command(app)
SHOWN = re.compile(rf"(?:^|[\s`/])rampart ((?:{'|'.join(sorted(RAMPART.commands))})\b[^`#|)]*)")
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


@pytest.mark.parametrize(
    ("folder", "page"), [("scenarios", "bench"), ("contracts", "contracts"), ("devices", "devices")]
)
def test_every_shipped_file_is_named(folder: str, page: str) -> None:
    """What a person could choose is on the page that tells of choosing."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")}
    assert names and {name for name in names if f"`{name}`" not in text} == set()
