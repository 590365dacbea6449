"""The bench's Modbus server, byte by byte, and under the unmodified SunSpec client."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.modbus_battery import SunSpecBatteryDevice
from hil.modbus_battery_map import BatteryNameplate
from hil.modbus_meter import sunspec_meter
from hil.modbus_server import Framing, ModbusServer, _TcpConnection
from hil.modbus_ups import LiebertUpsDevice
from tests.modbus_kit import Plant, Table, until

pytestmark = pytest.mark.wire

READ_TWO = bytes.fromhex("0001 0000 0006 01 03 0064 0002")
ANSWER_TWO = bytes.fromhex("0001 0000 0007 01 03 04 1234 5678")


def table() -> Table:
    return Table(
        {100: bytes.fromhex("12345678"), 200: bytes(4)}, bits={7: True, 8: False, 9: True}, writable=(200, 201)
    )


async def talk(server: ModbusServer, *chunks: bytes, size: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0.01)
        return await asyncio.wait_for(reader.readexactly(size), 1.0)
    finally:
        writer.close()


@pytest.mark.parametrize("cut", [1, 6, 7, 9, 11])
async def test_a_request_split_anywhere_is_answered(cut: int) -> None:
    async with ModbusServer({1: table()}) as server:
        assert await talk(server, READ_TWO[:cut], READ_TWO[cut:], size=13) == ANSWER_TWO


async def test_five_requests_in_one_segment_get_five_answers_each_with_its_own_transaction() -> None:
    requests = b"".join(struct.pack(">H", tid) + READ_TWO[2:] for tid in (7, 65535, 0, 300, 8))
    async with ModbusServer({1: table()}) as server:
        answers = await talk(server, requests + READ_TWO[:5], size=5 * 13)
    assert [struct.unpack_from(">H", answers, 13 * i)[0] for i in range(5)] == [7, 65535, 0, 300, 8]
    assert all(answers[13 * i + 2 : 13 * i + 13] == ANSWER_TWO[2:] for i in range(5))


@pytest.mark.parametrize(
    ("pdu", "code"),
    [("0500010000", 1), ("0300650002", 2), ("0300640000", 3), ("030064007e", 3), ("04", 3), ("03fffe0005", 2)],
)
async def test_what_it_cannot_do_is_refused_by_code(pdu: str, code: int) -> None:
    request = bytes.fromhex(pdu)
    frame = struct.pack(">HHHB", 9, 0, len(request) + 1, 1) + request
    async with ModbusServer({1: table()}) as server:
        answer = await talk(server, frame, size=9)
    assert answer[7:] == bytes((request[0] | 0x80, code))


async def test_writes_single_and_multiple_and_none_by_half() -> None:
    registers = table()
    async with ModbusServer({1: registers}) as server:
        single = bytes.fromhex("0001 0000 0006 01 06 00c8 beef")
        assert await talk(server, single, size=12) == single
        multiple = bytes.fromhex("0002 0000 000b 01 10 00c8 0002 04 0001 0002")
        assert await talk(server, multiple, size=12) == bytes.fromhex("0002 0000 0006 01 10 00c8 0002")
        beyond = bytes.fromhex("0003 0000 000b 01 10 00c9 0002 04 0001 0002")
        assert (await talk(server, beyond, size=9))[7:] == bytes.fromhex("9002")
    assert registers.writes == [(200, bytes.fromhex("beef")), (200, bytes.fromhex("00010002"))]


async def test_bits_are_packed_from_the_lowest() -> None:
    async with ModbusServer({1: table()}) as server:
        assert (await talk(server, bytes.fromhex("0001 0000 0006 01 02 0007 0003"), size=10))[7:] == b"\x02\x01\x05"


async def test_a_unit_nobody_has_stays_silent_and_the_next_request_is_served() -> None:
    other = READ_TWO[:6] + b"\x09" + READ_TWO[7:]
    async with ModbusServer({1: table()}) as server:
        assert await talk(server, other + READ_TWO, size=13) == ANSWER_TWO


@given(cuts=st.lists(st.integers(1, 59), max_size=12), tids=st.lists(st.integers(0, 65535), min_size=5, max_size=5))
def test_however_the_bytes_are_cut_the_answers_are_the_same(cuts: list[int], tids: list[int]) -> None:
    """No sockets: five requests as one stream, delivered in arbitrary pieces."""
    stream = b"".join(struct.pack(">H", tid) + READ_TWO[2:] for tid in tids)
    connection = _TcpConnection(ModbusServer({1: table()}))
    answers, at = b"", 0
    for cut in [*sorted(set(cuts)), len(stream)]:
        connection._buffer += stream[at:cut]
        answers += connection.take_frames()
        at = cut
    assert answers == b"".join(struct.pack(">H", tid) + ANSWER_TWO[2:] for tid in tids)


async def test_garbage_closes_the_connection() -> None:
    async with ModbusServer({1: table()}) as server:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await talk(server, b"GET / HTTP/1.1\r\n", size=1)
        await until(lambda: server.client_count == 0)


async def test_more_clients_than_sockets_are_turned_away() -> None:
    async with ModbusServer({1: table()}, clients_max=1) as server:
        first = await asyncio.open_connection("127.0.0.1", server.port)
        await until(lambda: server.client_count == 1)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await talk(server, READ_TWO, size=13)
        first[1].close()
        assert server.refused_count == 1


async def test_rtu_frames_carry_the_published_checksum() -> None:
    """The checksum of 01 03 00 00 00 0A is C5 CD; a frame with another is not answered."""
    registers = Table({i: bytes((0, i)) for i in range(10)})
    async with ModbusServer({1: registers}, framing=Framing.RTU) as server:
        answer = await talk(server, bytes.fromhex("01030000000a"), bytes.fromhex("c5cd"), size=25)
        assert answer[:3] == bytes.fromhex("010314")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(talk(server, bytes.fromhex("01030000000ac5ce"), size=1), 0.1)


def battery(plant: Plant, **options: int) -> SunSpecBatteryDevice:
    nameplate = BatteryNameplate(discharge_w_max=70e6, charge_w_max=70e6, energy_wh=35e6)
    return SunSpecBatteryDevice(plant, nameplate, **options)


@pytest.mark.parametrize("base", [40000, 0, 50000])
async def test_the_unmodified_sunspec_client_scans_the_meter_and_the_battery(base: int) -> None:
    plant = Plant(power_w=-7.25e6, soc_frac=0.4321)
    device = battery(plant, base=base)
    device.tick(10.0)
    device.tick(17.4)

    def scan(port: int, unit: int) -> dict[int, dict[str, object]]:
        from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP

        client = SunSpecModbusClientDeviceTCP(slave_id=unit, ipaddr="127.0.0.1", ipport=port, timeout=2)
        client.scan()
        found = {}
        for key, models in client.models.items():
            if isinstance(key, int):
                assert len(models) == 1
                assert key == 64901 or not models[0].error_info, models[0].error_info
                found[key] = {name: point.cvalue for name, point in models[0].points.items()}
        client.close()
        return found

    meter_plant = Plant(power_w=90.5e6, frequency_hz=59.5)
    meter_registers = sunspec_meter(meter_plant, nominal_voltage_v=80_000.0, base=base)
    async with ModbusServer({1: meter_registers, 2: device}) as server:
        meter = await asyncio.to_thread(scan, server.port, 1)
        found = await asyncio.to_thread(scan, server.port, 2)
    assert sorted(meter) == [1, 213]
    assert meter[213]["W"] == 90.5e6 and meter[213]["Hz"] == 59.5 and meter[213]["PhV"] == 80_000.0
    assert sorted(found) == [1, 701, 702, 703, 704, 713, 715, 802, 64901]
    assert found[703]["ES"] == 1 and found[703]["ESHzHi"] == 60.1
    assert found[701]["W"] == -7.25e6 and found[802]["W"] == -7.25e6
    assert found[713]["SoC"] == 43.21 and found[802]["SoC"] == 43.21
    assert found[702]["WMaxRtg"] == 70e6 and found[702]["WDisChaRteMax"] == 60e6
    assert found[715]["DERHb"] == 7 and found[715]["LocRemCtl"] == 0
    assert found[701]["Var"] is None, "what the plant does not know is not implemented, not zero"


async def test_the_ups_answers_where_the_manual_says() -> None:
    class Ups:
        output_w, output_va, voltage_v, input_frequency_hz = 812e3, 900e3, 480.0, 59.9
        is_on_battery, is_on_bypass, minutes_left, load_frac = True, False, 11.0, 0.43

    registers = LiebertUpsDevice(Ups())
    read = lambda number: int.from_bytes(registers.read_registers(4, number - 30001, 1), "big")  # noqa: E731
    assert (read(30438), read(30437), read(30408), read(30447), read(30391)) == (812, 900, 11, 5, 599)
    assert list(registers.read_bits(2, 51, 2)) == [True, False]
