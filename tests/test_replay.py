"""Replay: the same images give the same commands, a changed record is found, a file that is none is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller.app import make_core
from controller.cli.replay import app
from controller.errors import BadInput
from controller.replay import replay
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, Story, in_lab
from hil.run_log import BriefRecorder


def record(path: Path, *, policy: str, following: str = "software", story: Story | None = None) -> Path:
    """A recording of what `story` does to a site; without one it loses its meter, its grid link and a node."""
    scenario = lab_scenario("limit", policy=policy, following=following)
    with gzip.open(path, "wt", encoding="utf-8") as file:

        async def recorded(lab: Lab) -> None:
            lab.recorder = BriefRecorder(file, lab.clock, until_s=1e9, header={"settings": scenario.settings})
            lab.start()
            await (story or some_is_lost)(lab)

        in_lab(recorded, scenario)
    return path


async def some_is_lost(lab: Lab) -> None:
    await lab.run(12.5)
    lab.fault("meter", "intermittent", 0.5, for_s=3.0)
    lab.fault("grid", "off", for_s=4.0)
    lab.fault("node:training-1", "off", for_s=4.0)
    await lab.run(12.5)


async def nodes_fall_silent(lab: Lab) -> None:
    """Both witnesses of the load go, one after the other: what is known then is an old report, cycle after cycle."""
    await lab.run(8.0)
    lab.fault("node:*", "off", for_s=7.0)
    await lab.run(1.0)
    lab.fault("meter", "off", for_s=3.0)
    await lab.run(16.0)


async def meter_is_late(lab: Lab) -> None:
    """Load moves, the meter shows it late, and reports come more rarely than they are looked at."""
    await lab.run(8.0)
    lab.fault("meter", "delayed", 1.2, for_s=8.0)
    lab.fault("node:*", "intermittent", 0.6, for_s=8.0)
    lab.drop(10.0, within_s=2.0)
    await lab.run(12.0)


async def one_leads_then_the_next(lab: Lab) -> None:
    """Deposed while it writes, in the middle of a cycle; then a restart, with an epoch above all."""
    await lab.run(6.0)

    def taken_over(command: object) -> None:
        lab.lease.is_held = False

    lab.hooks.battery_write = taken_over
    await lab.run(1.0)
    lab.heal()
    await lab.kill()
    await lab.restart()
    await lab.run(6.0)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("replay") / "run.jsonl.gz", policy="rule")


def lines_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


@pytest.mark.parametrize(("policy", "following"), [("rule", "device"), ("rule-max", "software"), ("mpc", "software")])
def test_every_command_is_the_same(policy: str, following: str, tmp_path: Path) -> None:
    """Through faults too, and though every report of the replay is a new object at an address used before."""
    path = record(tmp_path / "run.jsonl.gz", policy=policy, following=following)
    found = replay(path, make_core)
    assert (found.different, found.first, found.missing_seq) == (0, None, None) and found.cycles >= 240


@pytest.mark.parametrize("story", [nodes_fall_silent, meter_is_late, one_leads_then_the_next], ids=lambda s: s.__name__)
def test_nothing_is_known_but_what_the_image_says(story: Story, tmp_path: Path) -> None:
    """Who hands the same object on for the same report is not replayed: in a replay no object comes twice."""
    found = replay(record(tmp_path / "run.jsonl.gz", policy="rule", story=story), make_core)
    assert (found.different, found.first, found.missing_seq) == (0, None, None) and found.cycles >= 120


def test_a_changed_image_changes_commands_and_is_found(recording: Path, tmp_path: Path) -> None:
    lines = lines_of(recording)
    lines[100]["image"]["pcc"]["value"]["power_w"] += 2e6
    path = written(tmp_path / "changed.jsonl.gz", lines)
    found = replay(path, make_core)
    assert found.different >= 1 and found.first is not None
    assert found.first.tick == lines[100]["image"]["tick"] and "battery.reference_w" in found.first.path
    told = CliRunner().invoke(app, [str(path)])
    assert told.exit_code == 1 and "command.battery.reference_w" in told.output


def test_a_changed_command_is_found(recording: Path, tmp_path: Path) -> None:
    lines = lines_of(recording)
    lines[60]["command"]["battery"]["ttl_s"] += 1.0
    found = replay(written(tmp_path / "changed.jsonl.gz", lines), make_core)
    assert found.different == 1 and found.first is not None and found.first.path == "command.battery.ttl_s"


def test_a_core_that_fails_where_a_command_was_recorded_is_a_difference(recording: Path, tmp_path: Path) -> None:
    """An image that no daemon writes, or a core that is wrong: it is told which cycle, and how."""
    lines = lines_of(recording)
    lines[30]["image"]["nodes"][0]["value"]["power_limit_w"] = []
    path = written(tmp_path / "changed.jsonl.gz", lines)
    found = replay(path, make_core)
    assert (found.cycles, found.different) == (30, 1) and found.first is not None
    assert found.first.tick == lines[30]["image"]["tick"] and "ValueError" in found.first.replayed
    assert CliRunner().invoke(app, [str(path)]).exit_code == 1


def test_good_recording_on_the_command_line(recording: Path) -> None:
    told = CliRunner().invoke(app, [str(recording)])
    assert told.exit_code == 0 and "every one the same" in told.output


def test_missing_records_are_said(recording: Path, tmp_path: Path) -> None:
    """What follows a gap cannot be judged: the core's state is not known there."""
    lines = lines_of(recording)
    path = written(tmp_path / "gap.jsonl.gz", lines[:50] + lines[52:])
    found = replay(path, make_core)
    assert (found.cycles, found.missing_seq, found.different) == (49, 50, 0)
    assert CliRunner().invoke(app, [str(path)]).exit_code == 1


def test_a_recording_cut_by_a_kill_is_replayed_to_its_last_whole_record(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(recording.read_bytes()[: recording.stat().st_size // 2])
    found = replay(path, make_core)
    assert found.is_cut_short and not replay(recording, make_core).is_cut_short
    assert found.cycles > 20 and found.different == 0


def without_header(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return lines[1:]


def header_only(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return lines[:1]


def begins_late(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [lines[0], *lines[20:]]


def other_shape(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    del lines[5]["image"]["tick"]
    return lines


def no_acks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[5]["acks"] = []
    return lines


def other_settings(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[0]["settings"]["site"]["tracker_period_s"] = "often"
    return lines


def useless_settings(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[0]["settings"]["site"]["planner_period_s"] = 0.0
    return lines


def odd_tag(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[5]["command"]["battery"]["_type"] = []
    return lines


@pytest.mark.parametrize(
    "change",
    [without_header, header_only, begins_late, other_shape, no_acks, other_settings, useless_settings, odd_tag],
    ids=lambda f: f.__name__,
)
def test_what_is_no_recording_is_refused_in_one_line(
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], recording: Path, tmp_path: Path
) -> None:
    path = written(tmp_path / "odd.jsonl.gz", change(lines_of(recording)[:40]))
    with pytest.raises(BadInput) as refused:
        replay(path, make_core)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", *(gzip.compress(raw, mtime=0) for raw in (b"", b"\xff\xfe", b"[1]\n"))]
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        replay(path, make_core)


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        replay(tmp_path / "none", make_core)
