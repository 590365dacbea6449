"""`rampart device`: what a person sees, and the exit status a script sees."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from controller.cli.main import app
from drivers.probe import judge_ratio
from hil.modbus_battery import SunSpecBatteryDevice
from hil.modbus_battery_map import BatteryNameplate
from hil.modbus_meter import sunspec_meter
from hil.modbus_server import ModbusServer
from tests.modbus_kit import Plant, Table, u16

pytestmark = pytest.mark.wire


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Unit 1 a meter, 2 a battery, 3 the same meter mounted the wrong way, 4 it read in kW, 5 registers of zeros."""
    nameplate = BatteryNameplate(discharge_w_max=70e6, charge_w_max=70e6, energy_wh=35e6)
    meters = {1: 90e6, 3: -90e6, 4: 90e3}
    units = {unit: sunspec_meter(Plant(power_w=w), nominal_voltage_v=277.0) for unit, w in meters.items()}
    zeros = Table({i: u16(0) for i in range(1500)} | {40000: b"none"})
    server = ModbusServer({**units, 2: SunSpecBatteryDevice(Plant(), nameplate), 5: zeros})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
    yield server.port
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def device(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["device", *arguments, "--timeout", "0.3"])


def test_probe_names_what_answers_and_the_profile_that_fits(port: int) -> None:
    for unit, best in (("1", "sunspec-meter"), ("2", "sunspec-battery-follow")):
        result = device("probe", f"127.0.0.1:{port}", "--unit", unit, "--json")
        assert result.exit_code == 0, result.output
        body = json.loads(result.output)
        assert body["best"] == best and body["reachable"] and 1 in body["sunspec_models"]
        assert {trial["fit"] for trial in body["trials"]} >= {"surely", "no"}
    shown = device("probe", f"127.0.0.1:{port}", "--unit", "1").output
    assert "2 connections at a time" in shown.replace("\n", " ")
    assert "sunspec-meter" in shown and "importing" in shown and "90,000,000 W" in shown.replace("\n", " ")


def test_a_device_of_zeros_fits_no_profile(port: int) -> None:
    result = device("probe", f"127.0.0.1:{port}", "--unit", "5", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["best"] is None


@pytest.mark.parametrize(
    ("unit", "status", "says"), [("1", 0, "agree"), ("3", 1, "sign is swapped"), ("4", 1, "1000 times too small")]
)
def test_probe_checks_sign_and_scale_against_a_trusted_meter(port: int, unit: str, status: int, says: str) -> None:
    target = f"127.0.0.1:{port}"
    arguments = ("--profile", "sunspec-meter", "--against", target, "--against-unit", "1")
    result = device("probe", target, "--unit", unit, *arguments)
    assert result.exit_code == status, result.output
    assert says in result.output


def test_read_shows_every_point(port: int) -> None:
    result = device("read", f"127.0.0.1:{port}", "--unit", "2", "--profile", "sunspec-battery-follow", "--json")
    points = json.loads(result.output)["points"]
    assert result.exit_code == 0
    assert points["power_w"] == {"value": 12.3e6, "unit": "W", "meaning": None}
    assert points["state"]["meaning"] == "running" and points["target_s_left"]["value"] == 0.0
    shown = device("read", f"127.0.0.1:{port}", "--unit", "1", "--profile", "sunspec-meter").output
    assert "90,000,000" in shown and "frequency_hz" in shown


def test_a_device_that_does_not_fit_or_answer_is_status_1(port: int) -> None:
    wrong = device("read", f"127.0.0.1:{port}", "--unit", "1", "--profile", "sunspec-battery")
    assert wrong.exit_code == 1 and "701" in wrong.output
    absent = device("probe", "127.0.0.1:1")
    assert absent.exit_code == 1 and "refused" in absent.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["probe", "127.0.0.1:port"], "HOST:PORT"),
        (["probe", "x://y"], "scheme"),
        (["read", "127.0.0.1:1", "--profile", "nosuch"], "nosuch"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "controller.cli.main", "device", *arguments], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    assert says in result.stderr and "Traceback" not in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("ratios", "agrees", "says"),
    [
        ([1.0, 1.02, 0.98], True, "agree"),
        ([-1.0], False, "swapped"),
        ([1000.0, 999.0], False, "1000 times too large"),
        ([-0.001], False, "swapped; the scale is 1000 times too small"),
        ([0.5], False, "do not measure the same"),
        ([], False, "no power"),
    ],
)
def test_a_ratio_tells_sign_and_scale(ratios: list[float], agrees: bool, says: str) -> None:
    verdict = judge_ratio(ratios)
    assert verdict.agrees is agrees and says in verdict.text
