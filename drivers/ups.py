"""A UPS over Modbus, read-only, by its profile."""

from __future__ import annotations

from controller.ports import Clock
from controller.settings import ModbusSettings
from controller.types import Quality, Reading, UpsSample
from drivers.device_map import DeviceMap
from drivers.meter import open_map
from drivers.modbus import ModbusPool
from drivers.profile import DeviceProfile, Kind


class ModbusUps:
    """Implements `Ups`. What feeds the load comes from the alarms where the device has them, else from its source."""

    def __init__(self, map_: DeviceMap, *, delay_s: float) -> None:
        assert map_.profile.kind is Kind.UPS
        self.name = map_.device.name
        self._map = map_
        self._delay_s = delay_s
        self._last = UpsSample(output_w=0.0, is_on_battery=False, is_on_bypass=False, minutes_left=None, load_frac=None)

    async def read(self) -> Reading[UpsSample]:
        """Output, source and time left."""
        await self._map.read()
        values = self._map.values
        stamp_s = self._map.power_t_s - self._delay_s
        output_w = values["output_w"]
        if output_w is None:
            return Reading(self._last, stamp_s, Quality.MISSING, self.name)
        rating_w = values.get("rating_w")
        load_frac = values.get("load_frac")
        self._last = UpsSample(
            output_w=output_w,
            is_on_battery=self._is_source("battery", values.get("is_on_battery")),
            is_on_bypass=self._is_source("bypass", values.get("is_on_bypass")),
            minutes_left=values.get("minutes_left"),
            load_frac=output_w / rating_w if load_frac is None and rating_w else load_frac,
        )
        quality = Quality.SUSPECT if self._map.implausible() else Quality.GOOD
        return Reading(self._last, stamp_s, quality, self.name)

    def _is_source(self, name: str, alarm: float | None) -> bool:
        return bool(alarm) or ("source" in self._map.values and self._map.meaning("source") == name)

    async def close(self) -> None:
        await self._map.device.connection.close()


def open_ups(
    modbus: ModbusSettings,
    *,
    profile: DeviceProfile,
    clock: Clock,
    delay_s: float | None = None,
    pool: ModbusPool | None = None,
) -> ModbusUps:
    """A UPS that connects with its first read."""
    map_ = open_map(modbus, profile=profile, clock=clock, pool=pool)
    return ModbusUps(map_, delay_s=profile.latency_s if delay_s is None else delay_s)
