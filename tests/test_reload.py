"""A changed site file: taken whole, or refused whole and told of."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli.main import app
from controller.cli.operate import _order
from controller.config.site import parse_site
from controller.errors import BadInput, CheckFailed
from controller.node.originals import NodeLock
from controller.reload import Reload, Restart
from controller.settings import Role, Settings
from controller.types import SiteFault, Trouble
from hil.lab_site import SITE
from tests.conftest import ROOT

RUNNING = parse_site({**SITE, "mqtt": {}}, origin="site.yaml")
WRONG = BadInput("site.yaml: tracker_hz: 'quick' is not a number")


def asked(*files: Settings | BadInput, running: Settings = RUNNING) -> tuple[Reload, list[tuple[bool, str]]]:
    """What came of asking once for each state of the file."""
    left = list(files)

    async def read() -> Settings:
        found = left.pop(0)
        if isinstance(found, BadInput):
            raise found
        return found

    reload, answers = Reload(running, read=read), []
    for _ in files:
        answer = asyncio.run(reload.ask())
        assert isinstance(answer["lines"], list)
        answers.append((bool(answer["ok"]), "; ".join(answer["lines"])))
    return reload, answers


def test_a_wrong_file_is_refused_with_its_line_and_told_of_until_it_is_mended() -> None:
    reload, answers = asked(WRONG)
    assert answers == [(False, f"{WRONG}; what runs keeps its settings")]
    assert reload.troubles == (Trouble(SiteFault.FILE_REFUSED, "site.yaml"),) and not reload.is_wanted
    reload, answers = asked(WRONG, RUNNING)
    assert answers[1] == (True, "nothing in the file has changed")
    assert reload.troubles == () and not reload.is_wanted


def test_a_right_file_is_taken_by_a_restart() -> None:
    reload, answers = asked(replace(RUNNING, metrics_port=9999))
    assert answers[0][0] and "restarts" in answers[0][1] and reload.troubles == () and reload.is_wanted
    with pytest.raises(Restart):
        asyncio.run(reload.until_wanted())


@pytest.mark.parametrize("role", [Role.BOTH, Role.NODE])
def test_a_process_that_drives_gpus_itself_does_not_let_go_of_them_for_a_file(role: Role) -> None:
    running = replace(RUNNING, role=role)
    reload, answers = asked(replace(running, metrics_port=9999), running=running)
    assert not answers[0][0] and "gives its GPUs back first" in answers[0][1]
    assert reload.troubles == () and not reload.is_wanted


def test_a_changed_node_file_is_checked_and_what_takes_it_is_said(tmp_path: Path) -> None:
    """`systemctl reload rampart-node`: never a success, because a running agent's file is not exchanged."""
    good = (ROOT / "configs" / "demo" / "node.yaml").read_text(encoding="utf-8")
    file = tmp_path / "node.yaml"

    def reloaded(text: str) -> tuple[int, str]:
        file.write_text(text, encoding="utf-8")
        done = CliRunner().invoke(app, ["node", "reload", "-c", str(file)])
        return done.exit_code, str(done.exception)

    status, said = reloaded(good)
    assert status == 1 and "the file is right, and nothing was changed" in said and "systemctl restart" in said
    status, said = reloaded(good.replace("role: node", "role: nodes"))
    assert status != 0 and "role" in said and "is right" not in said


def test_where_only_an_agent_runs_reload_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.node.originals.SERVICE_STATE", tmp_path)
    monkeypatch.setattr("controller.cli.status.SERVICE_SOCKET", tmp_path / "site.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with pytest.raises(CheckFailed, match="no controller answers here"):
        _order("reload", None)
    with NodeLock(tmp_path) as lock:
        assert lock.try_acquire()
        with pytest.raises(CheckFailed, match="only a node agent runs here, and nothing was changed"):
            _order("reload", None)
        with pytest.raises(CheckFailed, match="no controller answers here"):
            _order("reset", None)
