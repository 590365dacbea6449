"""A battery over Modbus, by its profile: state in, commands out in the safe order, each read back.

The first command after a connection writes everything in the profile's order: slope and expiry first, then mode and
value, enable last, so that the device can never run a value without the timer that ends it. Later commands write what
changed and what renews the timer. After any failure the whole order is written again.
"""

from __future__ import annotations

from controller.ports import Clock
from controller.settings import ModbusSettings
from controller.types import SILENT_BATTERY, BatteryCommand, BatterySample, BatteryState, Following, Quality, Reading
from drivers.command_writer import CommandWriter, Order
from drivers.device_map import DeviceMap
from drivers.errors import NotSupported, Refused
from drivers.identity import Identity
from drivers.meter import POWER_W_MAX, open_map
from drivers.modbus import ModbusPool
from drivers.profile import DeviceProfile, Dispatch, Kind


class ModbusBattery:
    """Implements `Battery`. `charge_w_max` and `discharge_w_max` stand in where the device does not tell its limits."""

    def __init__(
        self, map_: DeviceMap, *, clock: Clock, delay_s: float, charge_w_max: float, discharge_w_max: float
    ) -> None:
        assert map_.profile.kind is Kind.BATTERY
        self.name = map_.device.name
        self._map = map_
        self._delay_s = delay_s
        self._charge_w_max = charge_w_max
        self._discharge_w_max = discharge_w_max
        self._writer = CommandWriter(map_, clock)
        self._last_command: BatteryCommand | None = None
        self._last: BatterySample | None = None

    async def read(self) -> Reading[BatterySample]:
        """State as the device reports it; a missing power or state of charge gives MISSING, never a number."""
        await self._map.read()
        stamp_s = self._map.power_t_s - self._delay_s
        power_w, soc_frac = self._map.values["power_w"], self._map.values["soc_frac"]
        if power_w is None or soc_frac is None or not abs(power_w) <= POWER_W_MAX:
            return Reading(self._last or SILENT_BATTERY, stamp_s, Quality.MISSING, self.name)
        self._last = self._sample(power_w, soc_frac)
        return Reading(self._last, stamp_s, self._map.quality(), self.name)

    async def write(self, command: BatteryCommand) -> None:
        """Write `command` and read it back. Refused under local control; NotSupported for a way it has not."""
        dispatch = self._dispatch(command.following)
        if self._map.meaning("is_remote") == "no":
            self._writer.forget()
            raise Refused(self.name, "local control: commands are not taken")
        rating_w = self._map.values.get("rating_w") or self._discharge_w_max
        expiry_w_per_s = command.ramp_w_per_s if command.expiry_w_per_s is None else command.expiry_w_per_s
        order = Order(command.reference_w, command.ramp_w_per_s, expiry_w_per_s, command.ttl_s)
        is_done = False
        try:
            await self._writer.write(order, dispatch, rating_w=rating_w)
            is_done = True
        finally:
            if not is_done:  # failed or cancelled half-way: what the device holds is unknown
                self._writer.forget()
        self._last_command = command

    async def close(self) -> None:
        await self._map.device.connection.close()

    def _dispatch(self, following: Following) -> Dispatch:
        profile = self._map.profile
        dispatch = profile.device if following is Following.DEVICE else profile.software
        if dispatch is None:
            raise NotSupported(self.name, f"profile {profile.id} cannot be driven with following: {following}")
        return dispatch

    def _sample(self, power_w: float, soc_frac: float) -> BatterySample:
        values = self._map.values
        is_following = self._map.meaning("is_following") == "yes"
        reference_w = values.get("target_w" if is_following else "setpoint_w")
        if reference_w is None:
            reference_w = self._last_command.reference_w if self._last_command else 0.0
        charge_w, discharge_w = values.get("charge_w_max"), values.get("discharge_w_max")
        state = "off" if self._map.meaning("is_permitted") == "no" else self._map.meaning("state")
        default_state = BatteryState.RUNNING if "state" not in self._map.profile.points else BatteryState.OFF
        return BatterySample(
            power_w=power_w,
            soc_frac=soc_frac,
            charge_w_max=self._charge_w_max if charge_w is None else abs(charge_w),
            discharge_w_max=self._discharge_w_max if discharge_w is None else abs(discharge_w),
            state=default_state if state is None else BatteryState(state),
            is_remote=self._map.meaning("is_remote") != "no",
            reference_w=reference_w,
            is_following=is_following,
            reversion_s_left=values.get("target_s_left" if is_following else "setpoint_s_left"),
            temperature_c=values.get("temperature_c"),
        )


def open_battery(
    modbus: ModbusSettings,
    *,
    profile: DeviceProfile,
    clock: Clock,
    charge_w_max: float,
    discharge_w_max: float,
    delay_s: float | None = None,
    pool: ModbusPool | None = None,
    identity: Identity | None = None,
) -> ModbusBattery:
    """A battery that connects with its first read or write; `delay_s` None takes the profile's latency."""
    map_ = open_map(modbus, profile=profile, clock=clock, pool=pool, identity=identity)
    return ModbusBattery(
        map_,
        clock=clock,
        delay_s=profile.latency_s if delay_s is None else delay_s,
        charge_w_max=charge_w_max,
        discharge_w_max=discharge_w_max,
    )
