"""A load bank over Modbus, by its profile: state in, commands out in the safe order, each read back.

Written to as a battery is: the first command after a connection goes out whole, slopes and expiry before the value and
the enable last; later ones write what changed and what renews the timer. After any failure the whole order is written
again. A bank that does not say so explicitly is neither in remote control nor ready.
"""

from __future__ import annotations

from controller.ports import Clock
from controller.settings import ModbusSettings
from controller.types import SILENT_LOAD_BANK, LoadBankCommand, LoadBankSample, LoadBankState, Quality, Reading
from drivers.command_writer import CommandWriter, Order
from drivers.device_map import DeviceMap
from drivers.errors import NotSupported, Refused
from drivers.identity import Identity
from drivers.meter import open_map
from drivers.modbus import ModbusPool
from drivers.profile import DeviceProfile, Kind

J_PER_WH = 3_600.0


class ModbusLoadBank:
    """Implements `LoadBank`. `power_w_max` stands in where the device does not tell what it can draw now."""

    def __init__(self, map_: DeviceMap, *, clock: Clock, delay_s: float, power_w_max: float) -> None:
        assert map_.profile.kind is Kind.LOAD_BANK
        self.name = map_.device.name
        self._map = map_
        self._delay_s = delay_s
        self._power_w_max = power_w_max
        self._writer = CommandWriter(map_, clock)
        self._told_w = 0.0
        self._last = SILENT_LOAD_BANK

    async def read(self) -> Reading[LoadBankSample]:
        """State as the device reports it; a missing power gives MISSING, never a number."""
        await self._map.read()
        stamp_s = self._map.power_t_s - self._delay_s
        power_w = self._map.values["power_w"]
        if power_w is None:
            return Reading(self._last, stamp_s, Quality.MISSING, self.name)
        self._last = self._sample(power_w)
        return Reading(self._last, stamp_s, self._map.quality(), self.name)

    async def write(self, command: LoadBankCommand) -> None:
        """Write `command` and read it back. Refused under local control; NotSupported without a way to be driven."""
        dispatch = self._map.profile.software
        if dispatch is None:
            raise NotSupported(self.name, f"profile {self._map.profile.id} says no way to drive it")
        if self._map.meaning("is_remote") == "no":
            self._writer.forget()
            raise Refused(self.name, "local control: commands are not taken")
        order = Order(command.setpoint_w, command.ramp_w_per_s, command.expiry_w_per_s, command.ttl_s)
        is_done = False
        try:
            await self._writer.write(order, dispatch, rating_w=self._map.values.get("rating_w") or self._power_w_max)
            is_done = True
        finally:
            if not is_done:  # failed or cancelled half-way: what the device holds is unknown
                self._writer.forget()
        self._told_w = command.setpoint_w

    async def close(self) -> None:
        await self._map.device.connection.close()

    def _sample(self, power_w: float) -> LoadBankSample:
        values = self._map.values
        power_w_max, setpoint_w, left_wh = (values.get(n) for n in ("power_w_max", "setpoint_w", "energy_wh_left"))
        state = self._map.meaning("state")
        default = LoadBankState.OFF if "state" in self._map.profile.points else LoadBankState.RUNNING
        return LoadBankSample(
            power_w=power_w,
            power_w_max=self._power_w_max if power_w_max is None else power_w_max,
            state=default if state is None else LoadBankState(state),
            is_remote=self._map.meaning("is_remote") == "yes" or "is_remote" not in self._map.profile.points,
            setpoint_w=self._told_w if setpoint_w is None else setpoint_w,
            reversion_s_left=values.get("setpoint_s_left"),
            energy_j_left=None if left_wh is None else left_wh * J_PER_WH,
        )


def open_load_bank(
    modbus: ModbusSettings,
    *,
    profile: DeviceProfile,
    clock: Clock,
    power_w_max: float,
    delay_s: float | None = None,
    pool: ModbusPool | None = None,
    identity: Identity | None = None,
) -> ModbusLoadBank:
    """A load bank that connects with its first read or write; `delay_s` None takes the profile's latency."""
    map_ = open_map(modbus, profile=profile, clock=clock, pool=pool, identity=identity)
    delay = profile.latency_s if delay_s is None else delay_s
    return ModbusLoadBank(map_, clock=clock, delay_s=delay, power_w_max=power_w_max)
