"""What the site's devices are on the wire: each one's registers on the plant, its port, and how it may fall ill."""

from __future__ import annotations

from collections.abc import Callable

from controller.config.load import data_path, read_yaml
from controller.errors import BadInput
from controller.settings import ModbusSettings, SiteSettings
from drivers.profile import parse_profile
from hil.faults import Fault, FaultPlan
from hil.modbus_battery import SunSpecBatteryDevice
from hil.modbus_proxy import WIRE_VERBS
from hil.modbus_server import RegisterMap
from hil.scenario import Scenario
from hil.wire_devices import (
    WireBattery,
    WireLoadBank,
    WireMeter,
    WireUps,
    battery_device,
    load_bank_registers,
    meter_registers,
    ups_registers,
)
from hil.world import World

UPS_SIZE = 1.25  # rating over the largest load behind it

Served = tuple[str, RegisterMap, int]  # name, registers, port asked for


def site_registers(
    scenario: Scenario, site: SiteSettings, world: World, advance: Callable[[], float]
) -> tuple[SunSpecBatteryDevice, list[Served]]:
    """The battery's device and everything that is served, in the order of `Ports`.

    `advance` moves the plant to the present and gives it in seconds; every answer asks it first.
    """
    wire, plant = scenario.doc.wire, world.plant
    battery = plant.battery
    assert wire is not None and battery is not None and site.meter is not None
    meter = WireMeter(
        plant,
        scenario.doc.plant.meter,
        advance,
        delay_s=site.meter.delay_s,
        refresh_s=site.meter.update_s,
        rng=world.rng(0),
    )
    delay_s = _read_delay_s(scenario.doc.plant.battery.read_delay_s, scenario.settings.battery)
    device = battery_device(battery, WireBattery(plant, battery, advance, delay_s=delay_s))
    behind_w = site.gpu_peak_w + site.other_load_w_max
    ups = WireUps(plant, advance, rated_w=UPS_SIZE * (plant.facility.params.ups_share or 1.0) * behind_w)
    served: list[Served] = [
        ("meter", meter_registers(meter, nominal_hz=scenario.doc.plant.grid.nominal_hz), wire.meter_port),
        ("battery", device, wire.battery_port),
        ("ups", ups_registers(ups), wire.ups_port),
    ]
    if plant.load_bank is not None:
        delay_s = _read_delay_s(scenario.doc.plant.load_bank.read_delay_s, scenario.settings.load_bank)
        bank = WireLoadBank(plant, plant.load_bank, advance, delay_s=delay_s)
        served.append(("load_bank", load_bank_registers(bank), wire.load_bank_port))
    return device, served


def _read_delay_s(told_s: float | None, modbus: ModbusSettings | None) -> float:
    """How old a device's own reading is: as the scenario says, else as its profile declares it."""
    if told_s is not None or modbus is None:
        return told_s or 0.0
    path = data_path("devices", modbus.profile)
    return parse_profile(read_yaml(path), origin=str(path)).latency_s


def wire_faults(scenario: Scenario) -> list[Fault]:
    """The scenario's faults, which must be such as a wire can have."""
    for doc in scenario.doc.faults:
        if doc.port not in ("meter", "battery", "load_bank", "ups") or doc.verb not in WIRE_VERBS:
            raise BadInput(
                f"{scenario.doc.name}: faults: {doc.port} {doc.verb}: with --wire meter, battery, load_bank and ups can"
                f" be {', '.join(WIRE_VERBS)}; leave --wire out for the others"
            )
    return FaultPlan.of(scenario.doc.faults).faults
