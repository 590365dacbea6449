"""Runs on real wires: the shipped processes in the bench's world, and whatever ends a run leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.config.load import data_root
from controller.errors import BadInput
from hil.scenario import Overrides, load_scenario
from hil.wire_run import run_wire
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.wire,
    pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="needs a C compiler"),
]

RUN_S_MAX = 90.0


def scenario_file(folder: Path, **changes: Any) -> Path:
    """The shipped demo, shortened, as a file of its own."""
    configs = data_root() / "configs"
    raw = yaml.safe_load((configs / "scenarios" / "demo.yaml").read_text(encoding="utf-8"))
    raw |= {"site": str(configs / "demo" / "site.yaml"), "duration_s": 6.0, "events": [], "signals": []}
    raw["wire"] = {"node": str(configs / "demo" / "node.yaml"), **changes.pop("wire", {})}
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(raw | changes), encoding="utf-8")
    return path


def start(scenario: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controller.cli.main", "hil", "run", str(scenario), "--wire", "--out", str(out)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def processes_of(out: Path) -> list[int]:
    """Living processes whose command line names a file under `out`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(out) in command and state != "Z" and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def wait_until(is_so: Callable[[], bool], *, deadline_s: float = 60.0) -> bool:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.05)
    return is_so()


def children_of(out: Path, name: str) -> list[int]:
    pattern = f"{out / 'wire' / name}.yaml"
    return [pid for pid in processes_of(out) if pattern in Path(f"/proc/{pid}/cmdline").read_bytes().decode()]


def is_controlled(out: Path) -> bool:
    log = out / "wire" / "site.log"
    return log.is_file() and "mode=NORMAL" in log.read_text(encoding="utf-8", errors="replace")


def test_a_short_run_controls_caps_and_gives_everything_back(tmp_path: Path) -> None:
    """A job starts, the grid speaks, the run is judged; GPUs get their settings back and no process stays."""
    out = tmp_path / "out"
    events = [{"kind": "start", "t_s": 1.0, "within_s": 3.0}]
    target = {"kind": "load_target", "issuer": "grid-operator", "t_s": 2.0, "until_s": 600, "megawatt": 30}
    faults = [{"id": "card", "t_s": 1.5, "duration_s": 3.0, "port": "ups", "verb": "off"}]
    process = start(scenario_file(tmp_path, events=events, signals=[target], faults=faults, duration_s=8.0), out)
    said, _ = process.communicate(timeout=RUN_S_MAX)
    assert process.returncode in (0, 1), said  # a busy machine may cost a limit; it may not cost anything else
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    facts = result["on_wires"]
    assert result["wire"] is True and result["clock"] == "real"
    assert facts["gpus"]["left_throttled"] == [] and facts["processes_left"] == 0
    assert all(p["stopped_cleanly"] for p in facts["processes"].values())
    assert [a["acceptance"] for a in facts["answers"]] == ["accepted"]
    assert result["battery"]["throughput_wh"] > 0.0, "the battery was moved over Modbus"
    assert result["tracker"]["ticks"] > 60 and facts["status_messages"] > 0
    assert [h["detail"] for h in result["events"] if h["kind"] == "fault"] == ["ups: off", "ups: well again"]
    assert {"pcc.csv", "report.html", "recording.jsonl.gz"} <= {p.name for p in out.iterdir()}
    assert processes_of(out) == []


@pytest.mark.slow
def test_a_load_bank_is_armed_and_used_over_modbus(tmp_path: Path) -> None:
    """The crash comes after 12 s; registers of the bank are read, written, read back, and power comes out of it."""
    configs = data_root() / "configs"
    raw = yaml.safe_load((configs / "scenarios" / "load-bank.yaml").read_text(encoding="utf-8"))
    raw |= {"duration_s": 22.0, "wire": {"node": str(configs / "demo" / "node.yaml")}}
    raw["events"] = [{"kind": "drop", "t_s": 12.0, "within_s": 0.5}]
    path, out = tmp_path / "bank.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    process = start(path, out)
    said, _ = process.communicate(timeout=RUN_S_MAX)
    assert process.returncode in (0, 1), said  # a busy machine may cost a limit; it may not cost anything else
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["load_bank"]["peak_w"] > 1e6, "it was switched on over Modbus"
    assert result["on_wires"]["gpus"]["left_throttled"] == [] and processes_of(out) == []


def test_a_signal_that_nobody_may_send_is_bad_input(tmp_path: Path) -> None:
    """An issuer whose key the site does not know cannot be spoken for."""
    target = {"kind": "load_target", "issuer": "stranger", "t_s": 0.5, "megawatt": 30}
    process = start(scenario_file(tmp_path, signals=[target]), tmp_path / "out")
    said, _ = process.communicate(timeout=RUN_S_MAX)
    assert process.returncode == 2 and "stranger" in said and "Traceback" not in said, said
    assert processes_of(tmp_path / "out") == []


def test_a_fault_that_no_wire_can_have_is_bad_input(tmp_path: Path) -> None:
    """Refused before anything is opened: what a device gets wrong by itself is for the virtual clock."""
    faults = [{"t_s": 1, "port": "meter", "verb": "wrong", "value": 1000}]
    scenario = load_scenario(str(scenario_file(tmp_path, faults=faults)), Overrides())
    with pytest.raises(BadInput, match=r"meter wrong: with --wire .* off, garbage, slow, intermittent"):
        run_wire(scenario, out=tmp_path, show=lambda _: None)


@pytest.mark.process
def test_ctrl_c_stops_everything_within_seconds(tmp_path: Path) -> None:
    """Exit 130, both processes gone, no half-written file."""
    out = tmp_path / "out"
    process = start(scenario_file(tmp_path, duration_s=60.0), out)
    assert wait_until(lambda: is_controlled(out)), "never controlled"
    asked_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "every GPU at the settings it had" in said and time.monotonic() - asked_s < 20.0
    assert wait_until(lambda: processes_of(out) == [], deadline_s=5.0)
    assert not (out / "result.json").exists() and not list(out.glob("*.partial"))


@pytest.mark.process
@pytest.mark.parametrize("name", ["site", "node"])
def test_a_child_that_dies_is_said_with_its_log(tmp_path: Path, name: str) -> None:
    """Exit 3, which process, how it ended, and the end of its log."""
    out = tmp_path / "out"
    process = start(scenario_file(tmp_path, duration_s=60.0), out)
    assert wait_until(lambda: is_controlled(out)), "never controlled"
    os.kill(children_of(out, name)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=40)
    assert process.returncode == 3, said
    assert "SIGKILL" in said and f"{name}.log" in said and "Traceback" not in said
    assert wait_until(lambda: processes_of(out) == [], deadline_s=10.0)


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """Exit 2 before any process is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(scenario_file(tmp_path, wire={"battery_port": port}), tmp_path / "out")
        said, _ = process.communicate(timeout=RUN_S_MAX)
    assert process.returncode == 2 and f":{port}: the port is in use" in said and "Traceback" not in said, said
    assert processes_of(tmp_path / "out") == []
