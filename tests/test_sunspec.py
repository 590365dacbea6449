"""SunSpec maps written down by hand, and maps made by the library: discovery, layouts, scale factors, absent values."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from controller.types import MeterSample, Quality
from drivers.errors import BadReply, WrongDevice
from drivers.meter import ModbusMeter, open_meter
from drivers.sunspec import discover, layout
from hil.modbus_server import ExceptionCode, RegisterFault
from tests.modbus_kit import CLOCK, Table, device, f32, i16, profile, serving, settings, u16

END = b"\xff\xff\x00\x00"


def chain(*models: tuple[int, Mapping[int, bytes], int], base: int = 40000) -> Table:
    """A map of models: id, registers by offset from the id, and length in registers after id and length."""
    image = b"SunS"
    for model_id, registers, length in models:
        body = bytearray(b"\x80\x00" * (length + 2))
        body[0:4] = u16(model_id, length)
        for offset, data in registers.items():
            body[2 * offset : 2 * offset + len(data)] = data
        image += bytes(body)
    return Table({base: image + END})


COMMON = (1, {}, 66)
METER_203 = (  # offsets from the published model: W 18, W_SF 22, Hz 16, Hz_SF 17, PhV 7, V_SF 15
    203,
    {18: i16(-9012), 22: i16(4), 16: i16(5998), 17: i16(-2), 7: i16(2401), 15: i16(-1)},
    105,
)
METER_213 = (213, {28: f32(8.5e7), 26: f32(60.01), 10: f32(277.0), 60: f32(5.0), 68: f32(1e9)}, 124)


def opened(port: int) -> ModbusMeter:
    return open_meter(
        settings(port, timeout_s=1.0),
        profile=profile("sunspec-meter"),
        clock=CLOCK,
        delay_s=0.03,
        nominal_voltage_v=277.0,
    )


@pytest.mark.parametrize(
    ("model_id", "point", "offset"),
    [
        (701, "W", 10),
        (701, "Hz", 17),
        (701, "W_SF", 116),
        (702, "WChaRteMax", 34),
        (704, "WSetEna", 22),
        (704, "WSet", 24),
        (704, "WSetRvrtTms", 31),
        (704, "WSetRvrtRem", 33),
        (704, "WRmp", 49),
        (713, "SoC", 4),
        (715, "ControllerHb", 5),
        (802, "SoC", 11),
        (802, "W_SF", 63),
        (203, "W", 18),
        (203, "TotWhImp", 46),
        (213, "W", 28),
        (213, "TotWhImp", 68),
    ],
)
def test_points_lie_where_the_published_models_say(model_id: int, point: str, offset: int) -> None:
    assert layout(model_id)[point].offset == offset


@pytest.mark.wire
@pytest.mark.parametrize("base", [40000, 0, 50000])
async def test_the_map_is_found_at_each_base(base: int) -> None:
    async with serving(chain(COMMON, METER_213, base=base)) as server:
        dut = device(server.port, timeout_s=1.0)
        models = await discover(dut, (40000, 0, 50000))
        await dut.connection.close()
    assert [(model.model_id, model.address - base) for model in models] == [(1, 2), (213, 70)]


@pytest.mark.wire
async def test_an_integer_meter_is_read_through_its_scale_factors() -> None:
    async with serving(chain(COMMON, METER_203)) as server:
        dut = opened(server.port)
        reading = await dut.read()
        await dut.close()
    assert reading.quality is Quality.GOOD
    assert reading.value == MeterSample(-9012e4, pytest.approx(59.98), pytest.approx(240.1 / 277.0), None, None)


@pytest.mark.wire
async def test_a_float_meter_is_read_and_stamped_when_it_was_true() -> None:
    async with serving(chain(COMMON, METER_213)) as server:
        dut = opened(server.port)
        before = CLOCK.now_s()
        reading = await dut.read()
        after = CLOCK.now_s()
        await dut.close()
    assert before - 0.03 <= reading.t_mono_s <= after - 0.03
    assert reading.value.power_w == 8.5e7 and reading.value.import_wh == 1e9 and reading.value.export_wh == 5.0
    assert reading.value.frequency_hz == pytest.approx(60.01) and reading.value.voltage_pu == 1.0


@pytest.mark.wire
async def test_a_scale_factor_that_changes_between_reads_is_followed() -> None:
    """A meter that changes its range: 9,012 x 10 kW becomes 901 x 100 kW."""
    table = chain(COMMON, METER_203)
    async with serving(table) as server:
        dut = opened(server.port)
        await dut.read()
        at = 40000 + 2 + 68
        table.put(at + 18, i16(901))
        table.put(at + 22, i16(5))
        assert (await dut.read()).value.power_w == 901e5
        for bad in (-0x8000, 11):
            table.put(at + 22, i16(bad))
            reading = await dut.read()
            assert reading.quality is Quality.MISSING and reading.value.power_w == 901e5
        await dut.close()


@pytest.mark.wire
@pytest.mark.parametrize(("model", "absent"), [(METER_203, i16(-0x8000)), (METER_213, b"\x7f\xc0\x00\x00")])
async def test_a_power_that_is_not_implemented_is_missing(
    model: tuple[int, Mapping[int, bytes], int], absent: bytes
) -> None:
    offset = 18 if model[0] == 203 else 28
    async with serving(chain(COMMON, (model[0], {**model[1], offset: absent}, model[2]))) as server:
        dut = opened(server.port)
        reading = await dut.read()
        await dut.close()
    assert reading.quality is Quality.MISSING and reading.value.power_w == 0.0


@pytest.mark.wire
@pytest.mark.parametrize(
    ("table", "error", "says"),
    [
        (Table({40000: b"SunX" + bytes(8)}), WrongDevice, "marker"),
        (chain(COMMON), WrongDevice, "213"),
        (chain(COMMON, (213, {28: f32(1.0), 26: f32(0.0)}, 124)), WrongDevice, "frequency_hz"),
        (Table({40000: b"SunS" + u16(7, 0) * 200}), BadReply, "no end"),
    ],
)
async def test_what_is_no_meter_is_refused_with_the_reason(table: Table, error: type[Exception], says: str) -> None:
    async with serving(table) as server:
        dut = opened(server.port)
        with pytest.raises(error, match=says):
            await dut.read()
        await dut.close()


@pytest.mark.wire
async def test_a_map_that_ends_without_a_length_is_complete() -> None:
    table = chain(COMMON, METER_213)
    del table.words[max(table.words)]
    async with serving(table) as server:
        dut = opened(server.port)
        assert (await dut.read()).quality is Quality.GOOD
        await dut.close()


@pytest.mark.wire
@pytest.mark.parametrize("model_id", [201, 202, 203, 204, 211, 212, 213, 214])
async def test_maps_made_by_the_library_are_read(model_id: int) -> None:
    """The library encodes the registers; our driver reads them back."""
    from sunspec2 import device as library

    model = library.Model(model_id)
    integer = model_id < 210
    if integer:
        for factor, value in (("W_SF", 3), ("Hz_SF", -2), ("V_SF", -1), ("A_SF", 0), ("TotWh_SF", 3)):
            model.points[factor].value = value
    for point, value in (("W", -1_234_000), ("Hz", 60.5), ("PhV", 277.0), ("TotWhImp", 8_000), ("TotWhExp", 3_000)):
        model.points[point].cvalue = value
    model.points["ID"].value = model_id
    image = model.get_mb()
    model.points["L"].value = len(image) // 2 - 2
    table = Table({0: b"SunS" + model.get_mb() + END})
    async with serving(table) as server:
        dut = opened(server.port)
        reading = await dut.read()
        await dut.close()
    value = reading.value
    assert (value.power_w, value.frequency_hz, value.import_wh, value.export_wh) == (-1_234_000, 60.5, 8_000, 3_000)
    assert value.voltage_pu == pytest.approx(1.0)


@pytest.mark.wire
async def test_an_inverter_that_generates_exports() -> None:
    """Offsets of model 103 as published: W 14, W_SF 15, Hz 16, Hz_SF 17, WH 24, WH_SF 26."""
    registers = {14: i16(2500), 15: i16(1), 16: i16(6000), 17: i16(-2), 24: b"\x00\x00\x00\x07", 26: i16(3)}
    async with serving(chain(COMMON, (103, registers, 50))) as server:
        dut = open_meter(settings(server.port, timeout_s=1.0), profile=profile("sunspec-inverter"), clock=CLOCK)
        value = (await dut.read()).value
        await dut.close()
    assert (value.power_w, value.frequency_hz, value.export_wh, value.import_wh) == (-25_000.0, 60.0, 7_000.0, None)


@pytest.mark.wire
async def test_after_a_reconnect_the_map_is_discovered_again() -> None:
    """Firmware moved the map while we were away."""
    from tests.modbus_kit import until

    async with serving(chain(COMMON, METER_213)) as server:
        dut = opened(server.port)
        await dut.read()
        server.units[1] = chain(METER_203, base=50000)
        server.drop_clients()
        connection = dut._map.device.connection
        await until(lambda: connection.connect_count == 2)
        assert (await dut.read()).value.power_w == -9012e4
        await dut.close()


@pytest.mark.wire
async def test_what_is_due_together_is_read_together() -> None:
    """Power every time; voltage and energies once a second, and then in the same frame as power."""
    async with serving(chain(COMMON, METER_213)) as server:
        dut = opened(server.port)
        await dut.read()
        frames = server.request_count
        for block in dut._map._blocks:
            block.due_s = 0.0
        reading = await dut.read()
        assert server.request_count == frames + 1
        assert (reading.value.power_w, reading.value.import_wh) == (8.5e7, 1e9)
        await dut.read()
        assert server.request_count == frames + 2
        await dut.close()


@pytest.mark.wire
async def test_frames_stay_within_what_the_device_reads_at_once() -> None:
    counts: list[int] = []

    class Counting(Table):
        def read_registers(self, function: int, address: int, count: int) -> bytes:
            counts.append(count)
            return super().read_registers(function, address, count)

    small = profile("sunspec-meter").model_copy(update={"registers_per_read_max": 32})
    async with serving(Counting(chain(COMMON, METER_213).words)) as server:
        dut = open_meter(settings(server.port, timeout_s=1.0), profile=small, clock=CLOCK)
        assert (await dut.read()).value.import_wh == 1e9
        await dut.close()
    assert max(counts) <= 32 and counts.count(4) == 1, "power comes alone where the joined frame would be too long"


@pytest.mark.wire
@pytest.mark.parametrize("code", [ExceptionCode.ILLEGAL_ADDRESS, ExceptionCode.DEVICE_FAILURE])
async def test_a_device_that_refuses_a_joined_frame_is_read_block_by_block(code: ExceptionCode) -> None:
    """It answers for each model alone and refuses to read across them."""

    class Strict(Table):
        refusals = 0

        def read_registers(self, function: int, address: int, count: int) -> bytes:
            if count > 30:
                self.refusals += 1
                raise RegisterFault(code)
            return super().read_registers(function, address, count)

    table = Strict(chain(COMMON, METER_203).words)
    async with serving(table) as server:
        loaded = profile("sunspec-meter")
        points = {name: point for name, point in loaded.points.items() if name != "voltage_v"}
        dut = open_meter(
            settings(server.port, timeout_s=1.0), profile=loaded.model_copy(update={"points": points}), clock=CLOCK
        )
        table.put(40000 + 2 + 68 + 46, u16(0, 7))
        table.put(40000 + 2 + 68 + 54, i16(0))
        for _ in range(3):
            assert (await dut.read()).value.power_w == -9012e4
            for block in dut._map._blocks:
                block.due_s = 0.0
        await dut.close()
    assert table.refusals == 1, "it is not tried again on this connection"
