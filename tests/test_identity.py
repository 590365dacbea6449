"""The file of what devices were: kept over restarts, learnt anew when damaged, never in the way of control."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.errors import DeviceChanged
from drivers.identity import IdentityBook
from drivers.sunspec import ModelAt

MODELS = (ModelAt(1, 40_002, 66), ModelAt(704, 40_070, 65))


def test_what_was_armed_is_known_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "state" / "devices.json"
    first = IdentityBook(file).of("battery")
    first.see_models("p", MODELS)
    first.see_scales({40_093: 0})
    again = IdentityBook(file).of("battery")
    again.see_models("p", MODELS)
    again.see_scales({40_093: 0, 40_095: -2})
    for change in (lambda d: d.see_models("p", MODELS[:1]), lambda d: d.see_scales({40_093: 3})):
        device = IdentityBook(file).of("battery")
        with pytest.raises(DeviceChanged, match=r"locked out; if that is meant, remove .*devices\.json"):
            change(device)
        with pytest.raises(DeviceChanged):
            device.require()
    IdentityBook(file).of("meter").see_models("p", MODELS[:1])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"battery": {"x": "y"}}', "[" * 100_000])
def test_a_damaged_file_is_said_and_learnt_anew(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "devices.json"
    file.write_text(content)
    device = IdentityBook(file).of("battery")
    assert "cannot be read" in "".join(capsys.readouterr())
    device.see_models("p", MODELS)
    IdentityBook(file).of("battery").see_models("p", MODELS)


def test_a_disk_that_refuses_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    IdentityBook(tmp_path / "file" / "devices.json").of("battery").see_models("p", MODELS)
    assert "cannot be kept" in "".join(capsys.readouterr())
