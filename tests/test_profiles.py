"""Every shipped profile, against registers written down by hand from its source, and against a server made from it.

The hand-written images repeat the addresses of the manuals, so that a profile that is wrong cannot agree with itself.
"""

from __future__ import annotations

import copy
import math
import struct
from typing import Any

import pytest
import yaml

from controller.errors import BadInput
from controller.settings import ModbusSettings
from controller.types import (
    BatteryCommand,
    BatterySample,
    Following,
    LoadBankSample,
    LoadBankState,
    MeterSample,
    Quality,
    Reading,
    UpsSample,
)
from drivers.battery import open_battery
from drivers.errors import NotSupported, WrongDevice
from drivers.load_bank import open_load_bank
from drivers.meter import open_map, open_meter
from drivers.profile import WORDS, DeviceProfile, Kind, WordOrder, parse_profile
from drivers.ups import open_ups
from tests.modbus_kit import CLOCK, DEVICES, Table, f32, i16, i32, profile, serving, settings, u16, u32

NAMES = sorted(path.stem for path in DEVICES.glob("*.yaml"))
FIXED = [name for name in NAMES if profile(name).sunspec is None]


async def read(where: ModbusSettings, loaded: DeviceProfile) -> Reading[Any]:
    opened: Any
    if loaded.kind is Kind.METER:
        opened = open_meter(where, profile=loaded, clock=CLOCK)
    elif loaded.kind is Kind.UPS:
        opened = open_ups(where, profile=loaded, clock=CLOCK)
    elif loaded.kind is Kind.LOAD_BANK:
        opened = open_load_bank(where, profile=loaded, clock=CLOCK, power_w_max=1e4)
    else:
        opened = open_battery(where, profile=loaded, clock=CLOCK, charge_w_max=1e4, discharge_w_max=2e4)
    try:
        reading: Reading[Any] = await opened.read()
        return reading
    finally:
        await opened.close()


def image(*spans: tuple[int, int], values: dict[int, bytes] | None = None) -> dict[int, bytes]:
    """Registers one by one: zero over each span (start, count), then the values."""
    table = Table({start: bytes(2 * count) for start, count in spans})
    for address, data in (values or {}).items():
        table.put(address, data)
    return table.words


def meter(power_w: float, hz: float | None, imported: float | None, exported: float | None) -> MeterSample:
    return MeterSample(power_w, hz, None, imported, exported)


# Register by register as the sources in each profile's header list them; blocks beyond them are zero.
BY_HAND: dict[str, tuple[Table, Any]] = {
    "eastron-sdm630": (
        Table(
            image(
                (0, 24),
                (52, 20),
                (72, 4),
                values={0x34: f32(1234.5), 0x46: f32(50.02), 0x48: f32(12.5), 0x4A: f32(0.25), 0: f32(230.1)},
            ),
            function=4,
        ),
        meter(1234.5, 50.02, 12_500.0, 250.0),
    ),
    "janitza-umg96rme": (
        Table(
            image(
                (19000, 52),
                (19068, 10),
                values={19026: f32(-4.5e6), 19050: f32(49.97), 19068: f32(1e6), 19076: f32(2e6), 19000: f32(400.0)},
            )
        ),
        meter(-4.5e6, 49.97, 1e6, 2e6),
    ),
    "janitza-umg801-group2": (
        Table(
            image(
                (19200, 52),
                (19268, 10),
                values={19226: f32(1.25e6), 19250: f32(50.03), 19268: f32(3e6), 19276: f32(4.0), 19200: f32(230.0)},
            )
        ),
        meter(1.25e6, 50.03, 3e6, 4.0),
    ),
    "janitza-b23": (
        Table(image((0x4A38, 52), (0x4A7C, 10), values={0x4A52: f32(777.0), 0x4A6A: f32(50.0), 0x4A7C: f32(5.0)})),
        meter(777.0, 50.0, 5.0, 0.0),
    ),
    "siemens-pac2200": (
        Table(
            image(
                (1, 70),
                (801, 12),
                values={65: f32(9.5e3), 46: f32(50.1), 801: struct.pack(">d", 1.5e9), 809: struct.pack(">d", 2.5)},
            ),
            function=4,
        ),
        meter(9.5e3, 50.1, 1.5e9, 2.5),
    ),
    "schneider-iem3000": (
        Table(
            image(
                (0x0BB7, 112),
                (0x0C83, 8),
                values={0x0BF3: f32(62.5), 0x0C25: f32(60.0), 0x0C83: struct.pack(">q", 7_000_000_001)},
            )
        ),
        meter(62_500.0, 60.0, 7_000_000_001.0, 0.0),
    ),
    "raritan-xerus": (
        Table({12296: f32(208.0, 5.0), 12306: f32(1040.5, 1100.0, 0.95), 12322: f32(60.0)}),
        meter(1040.5, 60.0, None, None),
    ),
    "liebert-apm": (
        Table(
            image(
                (30385 - 30001, 65),
                values={30438 - 30001: u16(812), 30447 - 30001: u16(5), 30408 - 30001: u16(11), 30391 - 30001: u16(599)}
                | {30432 - 30001: u16(43)},
            ),
            function=4,
            bits={10052 - 10001: True, 10053 - 10001: False},
        ),
        UpsSample(812e3, True, False, 11.0, 0.43),
    ),
    "liebert-aps": (
        Table(
            image(
                (30437 - 30001, 37), values={30472 - 30001: u16(1250), 30437 - 30001: u16(9), 30469 - 30001: u16(6000)}
            ),
            function=4,
        ),
        UpsSample(12_500.0, False, False, 9.0, None),
    ),
    "liebert-nx": (
        Table(
            image(
                (40050 - 40001, 15),
                values={
                    40059 - 40001: u16(400, 410, 420),
                    40050 - 40001: u16(4),
                    40051 - 40001: u16(601),
                    40062 - 40001: u16(70),
                },
            )
        ),
        UpsSample(123_000.0, False, True, None, 0.7),
    ),
    "tripplite-card": (
        Table({1095: u16(250), 0x0421: u16(33, 17, 88, 541)}),
        UpsSample(2_500.0, True, False, 17.0, None),
    ),
    "sma-sbs": (
        Table({30775: i32(-2500), 30845: u32(57), 30513: struct.pack(">Q", 12345)}),
        (-2500.0, 0.57),
    ),
    "openems-ess": (Table({415: f32(4200.0), 302: u16(81), 315: f32(-100.0)}, function=4), (4200.0, 0.81)),
    "rampart-load-bank": (
        Table(
            image(
                (0, 13),
                values={
                    0: f32(2.5e6),
                    2: f32(9e6),
                    4: f32(2.4e6),
                    6: u16(4, 2, 1),
                    9: u32(1500),
                    11: i16(80),
                    12: u16(7),
                },
            )
        ),
        LoadBankSample(2.5e6, 9e6, LoadBankState.RUNNING, True, 2.4e6, 4.0, 5.4e6),
    ),
    "adstec-storaxe": (
        Table(image((1, 11), (114, 12), values={1: i16(-35), 125: i16(66)}), function=4),
        (-3500.0, 0.66),
    ),
}


def test_every_fixed_profile_has_an_image_written_by_hand() -> None:
    assert sorted(BY_HAND) == FIXED


@pytest.mark.wire
@pytest.mark.parametrize("name", FIXED)
async def test_a_profile_reads_the_registers_of_its_source(name: str) -> None:
    table, expected = BY_HAND[name]
    async with serving(table, unit=7) as server:
        reading = await read(settings(server.port, unit=7, timeout_s=1.0), profile(name))
    value = reading.value
    assert reading.quality is Quality.GOOD
    if isinstance(value, BatterySample):
        assert (value.power_w, value.soc_frac) == pytest.approx(expected)
        assert (value.charge_w_max, value.discharge_w_max) == (1e4, 2e4), "the site's own limits stand in"
        return
    for field in expected.__slots__:
        want, got = getattr(expected, field), getattr(value, field)
        assert got == (pytest.approx(want, rel=1e-6) if isinstance(want, float) else want), field


@pytest.mark.wire
@pytest.mark.parametrize(
    ("name", "registers", "expected"),
    [
        (
            "liebert-apm",
            {30415 - 30001: u16(3), 30425 - 30001: u16(600), 30395 - 30001: u16(98), 30445 - 30001: u16(1)},
            {"battery_status": 3.0, "output_frequency_hz": 60.0, "input_power_factor": 0.98, "inverter_on": 1.0},
        ),
        (
            "raritan-xerus",
            {16394: f32(7.5), 32776: f32(207.9, 1.5), 32786: f32(311.0)},
            {"breaker1_a": 7.5, "outlet1_v": 207.9, "outlet1_a": 1.5, "outlet1_w": 311.0},
        ),
    ],
)
async def test_points_beside_the_roles_lie_where_the_source_says(
    name: str, registers: dict[int, bytes], expected: dict[str, float]
) -> None:
    table = copy.deepcopy(BY_HAND[name][0])
    for address, data in registers.items():
        table.put(address, data)
    async with serving(table) as server:
        map_ = open_map(settings(server.port, timeout_s=1.0), profile=profile(name), clock=CLOCK, is_reading_all=True)
        await map_.read()
        await map_.device.connection.close()
    assert {point: map_.values[point] for point in expected} == pytest.approx(expected)


def generated(loaded: DeviceProfile) -> tuple[Table, dict[str, float]]:
    """A device that has exactly the profile's blocks, every point with a plausible value of its own."""
    functions = {block.function for block in loaded.blocks} - {1, 2}
    assert len(functions) == 1
    registers: dict[int, bytes] = {}
    bits: dict[int, bool] = {}
    for block in loaded.blocks:
        if block.function in (1, 2):
            bits |= {block.start + i: False for i in range(block.count)}
        else:
            registers |= {block.start + i: bytes(2) for i in range(block.count)}
    table = Table(registers, function=functions.pop(), bits=bits)
    values: dict[str, float] = {}
    for index, (name, point) in enumerate(loaded.points.items()):
        assert point.type is not None
        if point.type == "bit":
            table.bits[point.addresses[0]] = True
            values[name] = 1.0
            continue
        target = point.min if point.min is not None and point.min > 0 else 0.0
        raw = round(target / point.scale) + 1 + index if not point.enum else min(point.enum)
        if point.max is not None and raw * point.scale > point.max:
            raw = round(point.max / point.scale)
        format_ = {"f": float(raw), "d": float(raw)}
        code = {"int": "hiq", "uint": "HIQ", "float": "_fd", "enum": "H__", "sunssf": "h__"}
        kind = point.type.rstrip("0123456789")
        letter = code[kind][{1: 0, 2: 1, 4: 2}[WORDS[point.type]]]
        data = struct.pack(f">{letter}", format_.get(letter, raw))
        if loaded.word_order is WordOrder.LITTLE:
            data = b"".join(data[at : at + 2] for at in range(len(data) - 2, -1, -2))
        for address in point.addresses:
            table.put(address, data)
        values[name] = len(point.addresses) * raw * point.scale * point.sign
    return table, values


@pytest.mark.wire
@pytest.mark.parametrize("order", list(WordOrder))
@pytest.mark.parametrize("name", FIXED)
async def test_a_profile_reads_every_point_of_a_server_made_from_it(name: str, order: WordOrder) -> None:
    loaded = profile(name).model_copy(update={"word_order": order})
    table, expected = generated(loaded)
    async with serving(table) as server:
        map_ = open_map(settings(server.port, timeout_s=1.0), profile=loaded, clock=CLOCK, is_reading_all=True)
        await map_.read()
        await map_.device.connection.close()
    for point, value in expected.items():
        assert map_.values[point] == pytest.approx(value), point


@pytest.mark.wire
@pytest.mark.parametrize("name", [name for name in FIXED if "frequency_hz" in profile(name).points])
async def test_a_wrong_word_order_is_refused_with_the_reason(name: str) -> None:
    loaded = profile(name)
    if WORDS[loaded.points["frequency_hz"].type or ""] == 1:
        return  # one register has no word order
    table, _ = BY_HAND[name]
    swapped = loaded.model_copy(update={"word_order": WordOrder.LITTLE})
    async with serving(table) as server:
        with pytest.raises(WrongDevice, match="frequency_hz"):
            await read(settings(server.port, timeout_s=1.0), swapped)


@pytest.mark.wire
async def test_another_device_under_a_profile_is_refused() -> None:
    """All zeros, as many devices answer for registers they do not have."""
    blank = Table(image((0, 200)), function=4)
    async with serving(blank) as server:
        with pytest.raises(WrongDevice, match="wrong device, profile or word order"):
            await read(settings(server.port, timeout_s=1.0), profile("eastron-sdm630"))
        with pytest.raises(NotSupported):
            await read(settings(server.port, timeout_s=1.0), profile("janitza-b23"))


@pytest.mark.wire
@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("sma-sbs", {30775: i32(-0x80000000)}),
        ("openems-ess", {415: f32(math.nan)}),
        ("eastron-sdm630", {0x34: f32(math.inf)}),
        ("eastron-sdm630", {0x34: f32(3e38)}),  # a number, and none of this world
        ("openems-ess", {415: f32(-3e38)}),
        ("sma-sbs", {30845: u32(0xFFFFFFFF)}),
    ],
)
async def test_a_value_the_device_does_not_have_is_missing_and_never_a_number(
    name: str, registers: dict[int, bytes]
) -> None:
    table, _ = copy.deepcopy(BY_HAND[name])
    for address, data in registers.items():
        table.put(address, data)
    async with serving(table) as server:
        reading = await read(settings(server.port, timeout_s=1.0), profile(name))
    assert reading.quality is Quality.MISSING
    assert math.isfinite(reading.value.power_w)


@pytest.mark.wire
async def test_a_value_that_turns_implausible_later_is_suspect() -> None:
    table = copy.deepcopy(BY_HAND["eastron-sdm630"][0])
    async with serving(table) as server:
        opened = open_meter(settings(server.port, timeout_s=1.0), profile=profile("eastron-sdm630"), clock=CLOCK)
        assert (await opened.read()).quality is Quality.GOOD
        table.put(0x46, f32(400.0))
        assert (await opened.read()).quality is Quality.SUSPECT
        await opened.close()


@pytest.mark.wire
async def test_the_storage_inverter_gets_all_its_registers_with_every_command() -> None:
    table = copy.deepcopy(BY_HAND["sma-sbs"][0])
    table.writable = {40236, 40237, *range(40793, 40803)}
    command = BatteryCommand(Following.SOFTWARE, -3000.0, ramp_w_per_s=1e3, epoch=1, seq=1, ttl_s=5.0)
    async with serving(table, unit=3) as server:
        battery = open_battery(
            settings(server.port, unit=3, timeout_s=1.0),
            profile=profile("sma-sbs"),
            clock=CLOCK,
            charge_w_max=4e3,
            discharge_w_max=4e3,
        )
        await battery.write(command)
        await battery.write(command)
        await battery.close()
    frame = (40793, u32(3000, 3000, 0, 0) + i32(0))
    assert table.writes == [frame, (40236, u32(2289))] * 2


def raw(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEVICES / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def broken(name: str, change: str) -> dict[str, Any]:
    body = raw(name)
    if change == "unknown key":
        body["colour"] = "red"
    elif change == "no power":
        del body["points"]["power_w"]
    elif change == "outside blocks":
        body["points"]["power_w"]["address"] = 900
    elif change == "bad type":
        body["points"]["power_w"]["type"] = "float48"
    elif change == "block too long":
        body["registers_per_read_max"] = 16
    elif change == "zero scale":
        body["points"]["power_w"]["scale"] = 0
    elif change == "control on a meter":
        body["controls"] = {"x": {"address": 1, "type": "uint16", "source": "constant", "value": 1}}
        body["software"] = {"arm": ["x"], "renew": ["x"]}
    elif change == "two places":
        body["points"]["power_w"]["sunspec"] = "a.W"
    return body


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("unknown key", "colour"),
        ("no power", "power_w"),
        ("outside blocks", "900"),
        ("bad type", "type"),
        ("block too long", "registers_per_read_max"),
        ("zero scale", "scale"),
        ("control on a meter", "only a battery"),
        ("two places", "exactly one"),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(change: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_profile(broken("eastron-sdm630", change), origin="mine.yaml")
    assert says in str(caught.value) and str(caught.value).startswith("mine.yaml: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("software", {"arm": ["set_value"], "renew": ["set_enable"]}, "renew"),
        ("software", {"arm": ["set_value"], "renew": []}, "controls"),
        ("device", {"arm": ["set_value"], "renew": [], "timer": "nothing"}, "timer"),
    ],
)
def test_a_bad_order_of_writes_is_refused(key: str, value: dict[str, Any], says: str) -> None:
    body = raw("sunspec-battery") | {key: value}
    with pytest.raises(BadInput, match=says):
        parse_profile(body, origin="mine.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_names_its_source(name: str) -> None:
    loaded = profile(name)
    assert loaded.id == name
    text = (DEVICES / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and "Source:" in text and len(loaded.source) > 5
