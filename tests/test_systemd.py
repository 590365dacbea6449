"""The units: verified and rated by systemd itself, from rendered paths; and what installing them writes."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli.main import app
from controller.cli.systemd import _escaped, rendered
from controller.sdnotify import Notifier
from hil.supervisor import Service, Unit

BIN = Path(sys.prefix) / "bin"
NO_ANALYZE = "systemd-analyze is not on this machine"
RATED = {"rampart-site.service": 2.5, "rampart-node.service": 4.0, "rampart-restore.service": 4.0}


def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip(NO_ANALYZE)
    return found


@pytest.fixture
def units(tmp_path: Path) -> dict[str, Path]:
    written = {}
    for path, text in rendered(BIN).items():
        written[path.name] = tmp_path / path.name
        written[path.name].write_text(text)
    return {name: path for name, path in written.items() if name.endswith(".service")}


def directives(name: str) -> list[tuple[str, str]]:
    text = next(text for path, text in rendered(BIN).items() if path.name == name)
    lines = [line for line in text.splitlines() if line and line[0] not in "#["]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def one(name: str, key: str) -> str:
    values = [value for found, value in directives(name) if found == key]
    assert len(values) == 1, (name, key, values)
    return values[0]


def test_systemd_finds_nothing_wrong(units: dict[str, Path]) -> None:
    done = subprocess.run([analyze(), "verify", *map(str, units.values())], capture_output=True, text=True, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "rampart" in line]
    assert done.returncode == 0 and ours == []


@pytest.mark.parametrize(("name", "most"), RATED.items())
def test_exposure_is_low(units: dict[str, Path], name: str, most: float) -> None:
    command = [analyze(), "security", "--offline=true", "--no-pager", str(units[name])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rating = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert rating is not None and float(rating[1]) <= most


def test_every_unit_is_rated(units: dict[str, Path]) -> None:
    assert set(units) == set(RATED)


@pytest.mark.parametrize("name", ["rampart-site.service", "rampart-node.service"])
def test_daemons_are_watched_and_restarted_but_not_on_wrong_input(name: str) -> None:
    assert one(name, "Type") == "notify" and one(name, "Restart") == "always"
    assert one(name, "RestartPreventExitStatus") == "2" and float(one(name, "WatchdogSec")) > 0
    assert one(name, "ExecStart").startswith(f"{BIN}/rampart run -c /etc/rampart/")


def test_a_node_that_dies_falls_back_and_one_given_up_is_restored() -> None:
    assert one("rampart-node.service", "ExecStopPost").startswith(f"{BIN}/rampart restore --to fallback --state-dir /")
    assert one("rampart-node.service", "OnFailure") == "rampart-restore.service"
    state = one("rampart-node.service", "StateDirectory")
    for name in ("rampart-node.service", "rampart-restore.service"):
        assert f"--state-dir /var/lib/{state}" in " ".join(value for key, value in directives(name) if "Exec" in key)
    assert one("rampart-restore.service", "ConditionPathExists") == f"/var/lib/{state}/originals.json"


def test_a_node_is_given_time_to_stop_and_only_it_gets_the_signal() -> None:
    assert float(one("rampart-node.service", "TimeoutStopSec")) >= 300
    assert one("rampart-node.service", "KillMode") == "mixed"


def test_only_what_touches_gpus_has_a_capability() -> None:
    assert (
        one("rampart-site.service", "CapabilityBoundingSet") == "" and one("rampart-site.service", "User") == "rampart"
    )
    for name in ("rampart-node.service", "rampart-restore.service"):
        assert one(name, "CapabilityBoundingSet") == "CAP_SYS_ADMIN"


def test_no_placeholder_is_left_and_odd_paths_are_spelled_for_units() -> None:
    assert all(
        "@" not in text.replace("@system-service", "").replace("@privileged", "").replace("@resources", "")
        for text in rendered(BIN).values()
    )
    assert _escaped(Path("/opt/my apps/100%")) == "/opt/my\\x20apps/100%%"


def test_install_writes_below_the_root_and_says_so(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["systemd", "install", "--root", str(tmp_path)])
    again = CliRunner().invoke(app, ["systemd", "install", "--root", str(tmp_path)])
    assert first.exit_code == again.exit_code == 0
    assert first.output.count("written: ") == 5 and again.output.count("unchanged: ") == 5
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted(str(path) for path in rendered(BIN))
    assert (tmp_path / "etc/sysusers.d/rampart.conf").is_file()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["systemd", "install", "--root", str(tmp_path), "--dry-run"])
    assert done.exit_code == 0 and "ExecStopPost=" in done.output and list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    from controller.errors import BadInput

    (tmp_path / "etc").write_text("")
    done = CliRunner().invoke(app, ["systemd", "install", "--root", str(tmp_path)])
    assert isinstance(done.exception, BadInput) and "--root" in str(done.exception)


# ----------------------------------------------------------------------------------------------------------- notify


def test_systemd_is_told_over_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(path))
        notifier = Notifier({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "10000000"})
        notifier.ready("caps 8 GPUs")
        notifier.feed_watchdog()
        notifier.stopping()
        assert [supervisor.recv(100).decode() for _ in range(3)] == [
            "READY=1\nSTATUS=caps 8 GPUs",
            "WATCHDOG=1",
            "STOPPING=1",
        ]
        assert notifier.watchdog_s == 10.0 and notifier.is_supervised


def test_without_systemd_or_with_a_deaf_one_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).feed_watchdog()
    assert not Notifier({}).is_supervised and Notifier({}).watchdog_s is None
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).feed_watchdog()
    assert Notifier({"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_a_service_that_was_not_started_yet_takes_no_memory(tmp_path: Path) -> None:
    """The bench looks at it ten times a second, also between making it anew and its start."""
    unit = Unit.parse("site", "[Service]\nExecStart=/bin/true\n")
    service = Service(unit, log=tmp_path / "log", socket_path=tmp_path / "notify", environment={}).anew()
    service.measure()
    assert service.rss_bytes_max == 0
