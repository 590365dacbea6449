"""A power meter over Modbus, by its profile."""

from __future__ import annotations

from controller.ports import Clock
from controller.settings import ModbusSettings
from controller.types import MeterSample, Quality, Reading
from drivers.device_map import DeviceMap
from drivers.identity import Identity
from drivers.modbus import ModbusConnection, ModbusDevice, ModbusPool
from drivers.modbus_endpoint import parse_endpoint
from drivers.profile import DeviceProfile, Kind

POWER_W_MAX = 1e18  # beyond it a register holds noise, and the square of it is no number


class ModbusMeter:
    """Implements `PowerMeter`. A power the device marks as absent gives MISSING with the last value, never a number."""

    def __init__(
        self, map_: DeviceMap, *, clock: Clock, delay_s: float, nominal_voltage_v: float | None = None
    ) -> None:
        assert map_.profile.kind is Kind.METER
        self.name = map_.device.name
        self._map = map_
        self._clock = clock
        self._delay_s = delay_s
        self._nominal_voltage_v = nominal_voltage_v
        self._last = MeterSample(power_w=0.0)

    async def read(self) -> Reading[MeterSample]:
        """Power now; frequency, voltage and energies as their profile's periods say."""
        await self._map.read()
        values = self._map.values
        power_w = values["power_w"]
        stamp_s = self._map.power_t_s - self._delay_s
        if power_w is None or not abs(power_w) <= POWER_W_MAX:
            return Reading(self._last, stamp_s, Quality.MISSING, self.name)
        voltage_v = values.get("voltage_v")
        nominal_v = self._nominal_voltage_v
        self._last = MeterSample(
            power_w=power_w,
            frequency_hz=values.get("frequency_hz"),
            voltage_pu=None if voltage_v is None or not nominal_v else voltage_v / nominal_v,
            import_wh=values.get("import_wh"),
            export_wh=values.get("export_wh"),
        )
        quality = Quality.SUSPECT if self._map.implausible() else Quality.GOOD
        return Reading(self._last, stamp_s, quality, self.name)

    async def close(self) -> None:
        await self._map.device.connection.close()


def open_meter(
    modbus: ModbusSettings,
    *,
    profile: DeviceProfile,
    clock: Clock,
    delay_s: float | None = None,
    nominal_voltage_v: float | None = None,
    pool: ModbusPool | None = None,
    identity: Identity | None = None,
) -> ModbusMeter:
    """A meter that connects with its first read. `delay_s` None takes the profile's latency; line to neutral volts."""
    map_ = open_map(modbus, profile=profile, clock=clock, pool=pool, identity=identity)
    delay = profile.latency_s if delay_s is None else delay_s
    return ModbusMeter(map_, clock=clock, delay_s=delay, nominal_voltage_v=nominal_voltage_v)


def open_map(
    modbus: ModbusSettings,
    *,
    profile: DeviceProfile,
    clock: Clock,
    pool: ModbusPool | None = None,
    is_reading_all: bool = False,
    identity: Identity | None = None,
) -> DeviceMap:
    """The device's registers by role, over the pool's connection to its endpoint or one of its own."""
    endpoint = parse_endpoint(modbus.host, modbus.port)
    if pool is None:
        connection = ModbusConnection(endpoint, timeout_s=modbus.timeout_s, request_gap_s=profile.request_gap_s)
    else:
        connection = pool.connection(endpoint, timeout_s=modbus.timeout_s, request_gap_s=profile.request_gap_s)
    device = ModbusDevice(
        connection,
        name=modbus.name,
        unit_id=modbus.unit_id,
        registers_per_read_max=profile.registers_per_read_max,
        write_function=profile.write_function,
    )
    return DeviceMap(profile, device, clock, is_reading_all=is_reading_all, identity=identity)
