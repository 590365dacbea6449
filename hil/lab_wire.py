"""The lab's meter and battery behind Modbus in virtual time: shipped drivers and profiles, frames, registers, plant.

Between each driver and its device stands the frame proxy of the wire lane; the device's registers, timers and slopes
are those of the bench. `lies` keeps every reading called good that was not what the plant did at its stamp.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from controller.live_profiles import load_profile
from controller.ports import Battery, Clock, PowerMeter
from controller.settings import ModbusSettings
from controller.types import Reading
from drivers.battery import open_battery
from drivers.identity import IdentityBook
from drivers.meter import open_meter
from drivers.modbus import ModbusConnection, ModbusPool
from drivers.modbus_endpoint import parse_endpoint
from hil.lab_ports import HookedBattery, HookedMeter, Hooks
from hil.modbus_proxy import ModbusProxy
from hil.modbus_server import ModbusServer, RegisterMap
from hil.plant.site import BATTERY, NS_PER_S, PCC
from hil.scenario import Scenario
from hil.wire_devices import UNIT_ID, WireBattery, WireMeter, battery_device, meter_registers
from hil.world import World

TIMEOUT_S = 0.5  # as shipped
DEVICE_TICK_S = 0.01  # the battery's own card: its timers and the slope of its set-point
HONEST_W = 1e6  # between a reading and the plant at its stamp: what an edge of the load does within a refresh

V = TypeVar("V")


class LabWire:
    """Both devices of one lab. Make it inside a `NetworkedLoop`, and `open` it before the daemon starts."""

    meter: PowerMeter
    battery: Battery

    def __init__(self, scenario: Scenario, world: World, clock: Clock) -> None:
        self._scenario, self._world, self._clock = scenario, world, clock
        self.servers: dict[str, ModbusServer] = {}
        self.proxies: dict[str, ModbusProxy] = {}
        self.registers: dict[str, RegisterMap] = {}
        self.connections: dict[str, ModbusConnection] = {}
        self.lies: list[str] = []
        self._pool = ModbusPool()
        self._card: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Devices first, each behind its proxy; the drivers connect with their first request."""
        site, world = self._scenario.settings.site, self._world
        assert site is not None and site.meter is not None and site.battery is not None
        assert world.plant.battery is not None
        profiles = {"meter": load_profile("sunspec-meter"), "battery": load_profile("sunspec-battery-follow")}
        shown_meter = WireMeter(
            world.plant,
            self._scenario.doc.plant.meter,
            self._advance,
            delay_s=site.meter.delay_s,
            refresh_s=site.meter.update_s,
            rng=world.rng(0),
        )
        shown = WireBattery(world.plant, world.plant.battery, self._advance, delay_s=profiles["battery"].latency_s)
        device = battery_device(world.plant.battery, shown)
        self.registers = {
            "meter": meter_registers(shown_meter, nominal_hz=self._scenario.doc.plant.grid.nominal_hz),
            "battery": device,
        }
        for k, name in enumerate(sorted(self.registers)):
            server = self.servers[name] = ModbusServer({UNIT_ID: self.registers[name]})
            await server.start()
            proxy = self.proxies[name] = ModbusProxy(server.host, server.port, rng=world.rng(200 + k))
            await proxy.start()
            endpoint = parse_endpoint(proxy.host, proxy.port)
            self.connections[name] = self._pool.connection(endpoint, timeout_s=TIMEOUT_S)
        book = IdentityBook()
        meter = open_meter(
            self._settings("meter"),
            profile=profiles["meter"],
            clock=self._clock,
            delay_s=site.meter.delay_s,
            pool=self._pool,
            identity=book.of("meter"),
        )
        battery = open_battery(
            self._settings("battery"),
            profile=profiles["battery"],
            clock=self._clock,
            charge_w_max=site.battery.charge_w_max,
            discharge_w_max=site.battery.discharge_w_max,
            pool=self._pool,
            identity=book.of("battery"),
        )
        compared = Hooks(
            meter=lambda r: self._compared(r, r.value.power_w, PCC),
            battery=lambda r: self._compared(r, r.value.power_w, BATTERY),
        )
        self.meter, self.battery = HookedMeter(meter, compared), HookedBattery(battery, compared)
        self._card = asyncio.ensure_future(self._run_card(device.tick))

    async def close(self) -> None:
        """The drivers' connections, then what they spoke with."""
        if self._card is not None:
            self._card.cancel()
        await self._pool.close()
        for proxy in self.proxies.values():
            await proxy.stop()
        for server in self.servers.values():
            await server.stop()

    def replace_device(self, name: str, registers: RegisterMap) -> None:
        """Another device stands at the same address from now on; connections are reset as by one that restarts."""
        self.servers[name].units[UNIT_ID] = registers
        self.servers[name].drop_clients()

    def heal(self) -> None:
        """The devices that were there first, behind wires that are well."""
        for name, proxy in self.proxies.items():
            proxy.heal()
            if self.servers[name].units[UNIT_ID] is not self.registers[name]:
                self.replace_device(name, self.registers[name])

    def _settings(self, name: str) -> ModbusSettings:
        port = self.proxies[name].port
        return ModbusSettings(name=name, host="127.0.0.1", port=port, unit_id=UNIT_ID, profile="-", timeout_s=TIMEOUT_S)

    def _advance(self) -> float:
        self._world.plant.advance_ns(self._clock.now_ns())
        return self._clock.now_s()

    async def _run_card(self, tick: Callable[[float], None]) -> None:
        due_ns = self._clock.now_ns()
        while True:
            self._advance()
            tick(self._clock.now_s())
            due_ns += round(DEVICE_TICK_S * NS_PER_S)
            await self._clock.sleep_until_ns(due_ns)

    def _compared(self, reading: Reading[V], power_w: float, row: int) -> Reading[V]:
        """A good reading must be the plant at its stamp: never another request's answer, or another register's."""
        if not reading.is_good:
            return reading
        truth_w = self._world.plant.value(row, reading.t_mono_s)
        if abs(power_w - truth_w) > HONEST_W:
            what = f"{reading.source} reads {power_w / 1e6:.2f} MW at {reading.t_mono_s:.2f} s"
            self.lies.append(f"{what}, in truth {truth_w / 1e6:.2f}")
        return reading
