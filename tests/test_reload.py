"""A changed site file: taken whole, or refused whole and told of."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controller.config.site import parse_site
from controller.errors import BadInput
from controller.reload import Reload, Restart
from controller.settings import Role, Settings
from controller.types import SiteFault, Trouble
from hil.lab_site import SITE

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


def test_a_process_that_drives_gpus_itself_does_not_let_go_of_them_for_a_file() -> None:
    running = replace(RUNNING, role=Role.BOTH)
    reload, answers = asked(replace(running, metrics_port=9999), running=running)
    assert not answers[0][0] and "drives GPUs itself" in answers[0][1]
    assert reload.troubles == () and not reload.is_wanted
