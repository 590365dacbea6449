"""`rampart check` against what a battery's registers can be told of a slope."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from controller import live
from controller.check_death import _death_step
from controller.cli.check import _from_profiles
from controller.cli.main import app
from controller.config.site import load_settings
from controller.errors import BadInput
from controller.settings import OwnSlope
from drivers.identity import IdentityBook
from drivers.modbus import ModbusPool
from drivers.profile_slope import own_expiry_s, own_slope
from tests.conftest import ROOT
from tests.modbus_kit import CLOCK, profile


def site_file(folder: Path, *, power_megawatt: float = 70.0, **battery: object) -> Path:
    """The shipped site with another battery."""
    site = yaml.safe_load((ROOT / "configs" / "site.example.yaml").read_text(encoding="utf-8"))
    site["battery"] |= {"charge_megawatt": power_megawatt, "discharge_megawatt": power_megawatt} | battery
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    return path


def check(folder: Path, **battery: object) -> Result:
    path = site_file(folder, **battery)  # type: ignore[arg-type]
    return CliRunner().invoke(app, ["check", "-c", str(path), "--json"])


def death(folder: Path, **battery: object) -> tuple[float, str]:
    """What check says of the controller's death, without the rest (a slow battery takes long to predict)."""
    path = site_file(folder, **battery)  # type: ignore[arg-type]
    settings = load_settings(path)
    assert settings.site is not None
    return _death_step(settings.site, _from_profiles(settings, path)[0])


@pytest.mark.parametrize(
    ("ramp_megawatt_per_s", "step_w", "says"),
    [
        (3000.0, 70e6, ("set to 3e+03 MW/s to follow with", "70 MW within 15 s where ieso-ramp.swing-15s allows 5 MW")),
        (0.2, 42e6, ("set to 0.7 MW/s to follow with", "42 MW within 60 s where ieso-ramp.ramp-60s allows 20 MW")),
    ],
)
def test_whole_percent_of_a_large_battery_is_steeper_than_the_contract(
    tmp_path: Path, ramp_megawatt_per_s: float, step_w: float, says: tuple[str, ...]
) -> None:
    """704 WRmp: 1 % of 70 MW a second is 0.7 MW/s, the contract allows 20 MW in 60 s; and set-points need it steep."""
    battery = {"profile": "sunspec-battery", "following": "software", "ramp_megawatt_per_s": ramp_megawatt_per_s}
    found_w, told = death(tmp_path, **battery)
    assert found_w == pytest.approx(step_w)
    for words in (*says, "set_ramp (704.WRmp)", "no slower than 0.7 MW/s", "allows 0.333 MW/s", "more than 5 MW"):
        assert words in told, words


@pytest.mark.parametrize(
    ("battery", "says"),
    [
        (
            {
                "profile": "sunspec-battery",
                "following": "software",
                "power_megawatt": 33.0,
                "ramp_megawatt_per_s": 0.33,
            },
            "at 0.33 MW/s",
        ),
        ({"profile": "sunspec-battery-follow", "following": "software"}, "at 0.333 MW/s"),  # a slope of the vendor's
        ({"profile": "sunspec-battery-follow", "following": "device"}, "frozen target"),
    ],
)
def test_a_battery_that_can_be_told_the_slope_makes_no_step(
    tmp_path: Path, battery: dict[str, object], says: str
) -> None:
    found_w, told = death(tmp_path, **battery)
    assert found_w == 0.0 and says in told


def test_a_small_battery_may_return_as_it_likes(tmp_path: Path) -> None:
    """4 MW cannot break a limit of 5 MW, however steep."""
    found = json.loads(check(tmp_path, profile="sunspec-battery", following="software", power_megawatt=4.0).stdout)
    assert found["death_step_w"] == 0.0


@pytest.mark.parametrize(
    ("battery", "away_w", "full_s", "says"),
    [
        # The timer counts whole seconds: 4.8 s are 5, and 25 s of the contract's slope are left.
        (
            {"profile": "sunspec-battery-follow"},
            25.0 / 3e-6,
            5.0 + 210.0,
            "8.33 MW are away within 30 s, all of its 70 MW",
        ),
        ({"profile": "sunspec-battery-follow", "power_megawatt": 8.0}, 8e6, 5.0 + 24.0, "up to 8 MW"),
        ({"profile": "sunspec-battery", "ramp_megawatt_per_s": 700.0}, 70e6, 5.1, "goes back at 700 MW/s"),
        ({"profile": "openems-ess"}, None, None, "obeys its last command for 60 s"),
        ({"profile": "openems-ess", "own_ramp": False}, 0.0, 60.0, "obeys its last command for 60 s"),
        ({"profile": "sunspec-battery-follow", "following": "device"}, None, None, "frozen target"),
    ],
)
def test_how_much_battery_is_away_in_time_is_said(
    tmp_path: Path, battery: dict[str, object], away_w: float | None, full_s: float | None, says: str
) -> None:
    found = json.loads(check(tmp_path, **({"following": "software"} | battery)).stdout)
    assert (found["battery_away_w"], found["battery_away_s"]) == pytest.approx((away_w, full_s))
    told = [note for note in found["notes"] if says in note]
    assert told and ("allows no faster way" in told[0]) is (away_w == pytest.approx(25.0 / 3e-6))


def test_a_timer_is_told_in_its_own_counts() -> None:
    for name, ttl_s, expected_s in (
        ("sunspec-battery-follow", 4.8, 5.0),
        ("sunspec-battery-follow", 5.0, 5.0),
        ("sunspec-battery-follow", 0.2, 1.0),
        ("sunspec-battery-follow", 90.0, 30.0),
        ("openems-ess", 4.8, 60.0),
    ):
        loaded = profile(name)
        assert loaded.software is not None and own_expiry_s(loaded, loaded.software, ttl_s=ttl_s) == expected_s


@pytest.mark.parametrize(
    ("battery", "says"),
    [
        (
            {"profile": "sunspec-battery"},
            "battery.following: device: profile sunspec-battery cannot be driven that way",
        ),
        ({"profile": "sunspec-meter"}, "battery.profile: 'sunspec-meter': the profile of a meter, expected a battery"),
    ],
)
def test_a_profile_that_cannot_do_what_the_site_asks_is_bad_input(
    tmp_path: Path,
    battery: dict[str, object],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from controller.cli.main import main

    site_file(tmp_path, **battery)  # type: ignore[arg-type]
    monkeypatch.setattr("sys.argv", ["rampart", "check", "-c", str(tmp_path / "site.yaml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and says in capsys.readouterr().err


def test_slopes_are_rounded_towards_flat_and_never_below_the_least() -> None:
    grid = OwnSlope(min_w_per_s=7e5, step_w_per_s=7e5, where="", is_shared=True)
    assert [grid.nearest(w) for w in (1e5, 7e5, 1.39e6, 1.4e6)] == [7e5, 7e5, 7e5, 1.4e6]
    assert OwnSlope(0.0, 0.0, "", is_shared=False).nearest(123.4) == 123.4


def test_profiles_without_a_slope_say_so(tmp_path: Path) -> None:
    found = json.loads(check(tmp_path, profile="openems-ess", following="software").stdout)
    assert found["death_step_w"] == 0.0 and "by the word of this file" in found["notes"][-1]
    loaded = profile("openems-ess")
    assert loaded.software is not None and own_slope(loaded, loaded.software, rating_w=1e6) is None


async def test_the_daemon_refuses_at_its_start_what_check_refuses(tmp_path: Path) -> None:
    """A line and exit 2, not a daemon that finds out with its first command."""
    for battery, says in (
        ({"profile": "sunspec-battery"}, "battery.following: device"),
        ({"profile": "liebert-apm"}, "expected a battery"),
    ):
        site_file(tmp_path, **battery)  # type: ignore[arg-type]
        settings = load_settings(tmp_path / "site.yaml")
        assert settings.site is not None
        book = IdentityBook(tmp_path / "devices.json")
        with pytest.raises(BadInput, match=says):
            live._open_devices(settings, settings.site, clock=CLOCK, pool=ModbusPool(), book=book)
