"""The ports that the daemon gets on the bench: simulated devices on a world's plant, sick where a plan says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.ports import Battery, Clock, LoadBank, PowerMeter, Recorder, Ups
from controller.settings import SiteSettings
from hil.faults import FaultPlan, SickDevice, SickMeter, SickUps
from hil.nodes import SimNodeLink
from hil.ports import Delays, HeldLease, SimBattery, SimGrid, SimLoadBank, SimMeter, SimUps
from hil.run_log import Stopwatch, TimedBattery, TimedMeter, TimedRecorder
from hil.scenario import Scenario
from hil.scenario_documents import BatteryPlantDoc, LoadBankPlantDoc
from hil.signal_plan import grid_signals
from hil.world import World

if TYPE_CHECKING:
    from controller.app import Factories


def make_factories(
    scenario: Scenario,
    world: World,
    clock: Clock,
    *,
    recorder: Recorder,
    stopwatch: Stopwatch | None = None,
    plan: FaultPlan | None = None,
    epoch: int = 1,
) -> Factories:
    """Simulated ports on `world`, sick where `plan` (the scenario's own by default) says so; timed by `stopwatch`."""
    from controller.app import Factories

    doc, site = scenario.doc, scenario.settings.site
    assert site is not None
    faults = FaultPlan.of(doc.faults) if plan is None else plan
    ups: dict[str, Ups] = {}
    if doc.plant.facility.ups_share > 0.0:
        ups["ups"] = SickUps(SimUps(world.plant, clock), faults, clock, world.rng(4))
    return Factories(
        clock=clock,
        meter=_meter(scenario, site, world, clock, faults=faults, watch=stopwatch),
        sub_meters=_sub_meters(scenario, site, world, clock),
        battery=_battery(scenario, site, world, clock, faults=faults, watch=stopwatch),
        node_link=SimNodeLink(world, doc.plant.fleet, doc.plant.nodes, clock, faults),
        recorder=recorder if stopwatch is None else TimedRecorder(recorder, stopwatch),
        lease=HeldLease(epoch),
        ups=ups,
        load_bank=_load_bank(scenario, site, world, clock, faults=faults),
        grid=SimGrid(grid_signals(scenario, site), clock, faults),
    )


def _meter(
    scenario: Scenario, site: SiteSettings, world: World, clock: Clock, *, faults: FaultPlan, watch: Stopwatch | None
) -> PowerMeter | None:
    if site.meter is None:
        return None
    meter = SimMeter(
        world.plant,
        clock,
        scenario.doc.plant.meter,
        believed_delay_s=site.meter.delay_s,
        believed_update_s=site.meter.update_s,
        rng=world.rng(0),
    )
    sick = SickMeter(meter, faults, clock, world.rng(1))
    return sick if watch is None else TimedMeter(sick, watch)


def _sub_meters(scenario: Scenario, site: SiteSettings, world: World, clock: Clock) -> dict[str, PowerMeter]:
    """Each shows its share of what the site imports, as old and as often as the site says."""
    share, doc = 1.0 / max(len(site.sub_meters), 1), scenario.doc.plant.meter
    return {
        m.name: SimMeter(
            world.plant,
            clock,
            doc.model_copy(update={"delay_s": m.delay_s, "refresh_s": m.update_s, "gain": share}),
            believed_delay_s=m.delay_s,
            believed_update_s=m.update_s,
            rng=world.rng(100 + k),
        )
        for k, m in enumerate(site.sub_meters)
    }


def _battery(
    scenario: Scenario, site: SiteSettings, world: World, clock: Clock, *, faults: FaultPlan, watch: Stopwatch | None
) -> Battery | None:
    if site.battery is None or world.plant.battery is None:
        return None
    battery = SimBattery(world.plant, clock, world.plant.battery, _delays(scenario.doc.plant.battery, site))
    sick = SickDevice("battery", faults, clock, world.rng(2), read=battery.read, write=battery.write)
    return sick if watch is None else TimedBattery(sick, watch)


def _load_bank(
    scenario: Scenario, site: SiteSettings, world: World, clock: Clock, *, faults: FaultPlan
) -> LoadBank | None:
    if site.load_bank is None or world.plant.load_bank is None:
        return None
    bank = SimLoadBank(world.plant, clock, world.plant.load_bank, _delays(scenario.doc.plant.load_bank, site))
    return SickDevice("load_bank", faults, clock, world.rng(5), read=bank.read, write=bank.write)


def _delays(shown: BatteryPlantDoc | LoadBankPlantDoc, site: SiteSettings) -> Delays:
    """As late as the meter, and believed to be, where the scenario does not say otherwise."""
    meter_s = site.meter.delay_s if site.meter else 0.0
    read_s = meter_s if shown.read_delay_s is None else shown.read_delay_s
    dead_s = shown.dead_s if isinstance(shown, BatteryPlantDoc) else 0.0
    return Delays(read_s=read_s, believed_s=meter_s, write_s=shown.write_latency_s, dead_s=dead_s)
