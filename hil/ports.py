"""The site's devices in process: a meter, a battery, a UPS and the grid's wishes, each a port on the plant.

They answer as real devices do: late, at their own refresh, with their own gain and noise. The clock decides how far the
plant has come; every port moves it there before it looks. Nodes are in `hil.nodes`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from controller.ports import Clock
from controller.types import (
    BatteryCommand,
    BatterySample,
    BatteryState,
    Following,
    GridSignal,
    LoadBankCommand,
    LoadBankSample,
    LoadBankState,
    Margin,
    MeterSample,
    Outlook,
    Quality,
    Reading,
    RefusalReason,
    SiteCommand,
    SiteImage,
    UpsSample,
    frozen,
)
from drivers.errors import DeviceFault, Refused
from hil.faults import FaultPlan
from hil.plant.battery import Battery
from hil.plant.load_bank import LoadBank
from hil.plant.site import BALLAST, BATTERY, FREQUENCY, IMPORTED_J, NS_PER_S, PCC, SOC, VOLTAGE, SitePlant
from hil.scenario_documents import MeterPlantDoc

J_PER_WH = 3_600.0


class SimMeter:
    """The meter at the point of common coupling. `believed_delay_s` is what the driver would stamp its samples with."""

    def __init__(
        self,
        plant: SitePlant,
        clock: Clock,
        doc: MeterPlantDoc,
        *,
        believed_delay_s: float,
        believed_update_s: float,
        rng: np.random.Generator,
    ) -> None:
        self._plant, self._clock, self._rng = plant, clock, rng
        self._delay_s = believed_delay_s if doc.delay_s is None else doc.delay_s
        self._refresh_s = believed_update_s if doc.refresh_s is None else doc.refresh_s
        self._believed_delay_s = believed_delay_s
        self._doc = doc
        self._last_sample_s = -math.inf
        self._last_power_w = 0.0

    async def read(self) -> Reading[MeterSample]:
        if self._doc.latency_s > 0.0:
            await self._clock.sleep_until_ns(self._clock.now_ns() + round(self._doc.latency_s * NS_PER_S))
        now_ns = self._clock.now_ns()
        self._plant.advance_ns(now_ns)
        now_s = now_ns / NS_PER_S
        # The register holds what was true at the last refresh; a nanosecond's slack keeps 0.1 / 0.02 a whole number.
        sample_s = math.floor((now_s - self._delay_s) / self._refresh_s + 1e-9) * self._refresh_s
        truth = self._plant.at(sample_s)
        sample = MeterSample(
            power_w=self._power_w(sample_s),
            frequency_hz=truth[FREQUENCY],
            voltage_pu=truth[VOLTAGE],
            import_wh=truth[IMPORTED_J] / J_PER_WH,
        )
        return Reading(sample, now_s - self._believed_delay_s, Quality.GOOD, "pcc")

    def _power_w(self, sample_s: float) -> float:
        """One value per refresh, however often it is read."""
        if sample_s != self._last_sample_s:
            doc = self._doc
            power_w = (
                self._plant.mean(PCC, from_s=sample_s - doc.window_s, to_s=sample_s)
                if doc.window_s > 0.0
                else self._plant.value(PCC, sample_s)
            )
            noise = 1.0 + doc.noise_frac * self._rng.standard_normal() if doc.noise_frac > 0.0 else 1.0
            self._last_sample_s, self._last_power_w = sample_s, power_w * doc.gain * float(noise)
        return self._last_power_w


@frozen
class Delays:
    """Age of a device's readings on arrival, the age the controller takes them for, how long a write takes, and how
    long after it the device acts.
    """

    read_s: float
    believed_s: float
    write_s: float
    dead_s: float = 0.0


class SimBattery:
    """The battery behind its port. A write takes effect at the next step."""

    def __init__(
        self,
        plant: SitePlant,
        clock: Clock,
        battery: Battery,
        delays: Delays,
    ) -> None:
        self._plant, self._clock, self._battery, self._delays = plant, clock, battery, delays
        self._asked_w: float | None = None  # a set-point that does not act yet is shown all the same
        self._late: set[asyncio.Task[None]] = set()

    async def read(self) -> Reading[BatterySample]:
        now_ns = self._clock.now_ns()
        self._plant.advance_ns(now_ns)
        now_s = now_ns / NS_PER_S
        truth, b = self._plant.at(now_s - self._delays.read_s), self._battery
        sample = BatterySample(
            power_w=truth[BATTERY],
            soc_frac=truth[SOC],
            charge_w_max=b.charge_w_limit,
            discharge_w_max=b.discharge_w_limit,
            state=b.state,
            is_remote=b.is_remote,
            reference_w=b.reference_w if self._asked_w is None else self._asked_w,
            is_following=b.is_following,
            reversion_s_left=b.reversion_s_left,
        )
        return Reading(sample, now_s - self._delays.believed_s, Quality.GOOD, "battery")

    async def write(self, command: BatteryCommand) -> None:
        """Reference, slope and reversion timer, all or nothing."""
        self._plant.advance_ns(self._clock.now_ns())
        b = self._battery
        if not b.is_remote:
            raise Refused("battery", "LocRemCtl is LOCAL")
        if b.state is BatteryState.FAULT:
            raise DeviceFault("battery", "tripped")
        if command.following is Following.DEVICE:
            b.set_follow_target(command.reference_w, command.ramp_w_per_s)
        elif self._delays.dead_s > 0.0:
            self._asked_w = command.reference_w
            task = asyncio.ensure_future(self._act_later(command))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        else:
            b.set_setpoint(command.reference_w, command.ramp_w_per_s)
        expiry_w_per_s = command.ramp_w_per_s if command.expiry_w_per_s is None else command.expiry_w_per_s
        b.arm_reversion(command.ttl_s, slope_w_per_s=min(expiry_w_per_s, b.params.reversion_w_per_s))
        if self._delays.write_s > 0.0:
            await self._clock.sleep_until_ns(self._clock.now_ns() + round(self._delays.write_s * NS_PER_S))

    async def _act_later(self, command: BatteryCommand) -> None:
        """What a dead time puts off."""
        await self._clock.sleep_until_ns(self._clock.now_ns() + round(self._delays.dead_s * NS_PER_S))
        self._plant.advance_ns(self._clock.now_ns())
        self._battery.set_setpoint(command.reference_w, command.ramp_w_per_s)


class SimLoadBank:
    """The load bank behind its port. A write takes effect at the next step."""

    def __init__(
        self,
        plant: SitePlant,
        clock: Clock,
        bank: LoadBank,
        delays: Delays,
    ) -> None:
        self._plant, self._clock, self._bank, self._delays = plant, clock, bank, delays

    async def read(self) -> Reading[LoadBankSample]:
        now_ns = self._clock.now_ns()
        self._plant.advance_ns(now_ns)
        now_s = now_ns / NS_PER_S
        b = self._bank
        sample = LoadBankSample(
            power_w=self._plant.value(BALLAST, now_s - self._delays.read_s),
            power_w_max=b.power_w_limit,
            state=b.state,
            is_remote=b.is_remote,
            setpoint_w=b.setpoint_w,
            reversion_s_left=b.reversion_s_left,
            energy_j_left=b.energy_j_left,
        )
        return Reading(sample, now_s - self._delays.believed_s, Quality.GOOD, "load_bank")

    async def write(self, command: LoadBankCommand) -> None:
        """Set-point, slopes and reversion timer, all or nothing."""
        self._plant.advance_ns(self._clock.now_ns())
        b = self._bank
        if not b.is_remote:
            raise Refused("load_bank", "local control: commands are not taken")
        if b.state is LoadBankState.FAULT:
            raise DeviceFault("load_bank", "tripped")
        b.set_setpoint(command.setpoint_w, command.ramp_w_per_s)
        b.arm_reversion(command.ttl_s, slope_w_per_s=command.expiry_w_per_s)
        if self._delays.write_s > 0.0:
            await self._clock.sleep_until_ns(self._clock.now_ns() + round(self._delays.write_s * NS_PER_S))


class SimUps:
    """The UPS card: read-only."""

    def __init__(self, plant: SitePlant, clock: Clock) -> None:
        self._plant, self._clock = plant, clock

    async def read(self) -> Reading[UpsSample]:
        now_ns = self._clock.now_ns()
        self._plant.advance_ns(now_ns)
        facility = self._plant.facility
        sample = UpsSample(
            output_w=facility.ups_output_w,
            is_on_battery=facility.is_on_battery,
            is_on_bypass=False,
            minutes_left=facility.minutes_left,
            load_frac=None,
        )
        return Reading(sample, now_ns / NS_PER_S, Quality.GOOD, "ups")


class SimGrid:
    """Signals as if verified and accepted, each known from its own time on; the link drops when a fault says so."""

    def __init__(self, signals: Sequence[tuple[float, GridSignal]], clock: Clock, plan: FaultPlan) -> None:
        self._signals = sorted(signals, key=lambda s: (s[0], s[1].from_s))
        self._clock, self._plan = clock, plan
        self._known: tuple[GridSignal, ...] = ()
        self._known_count = 0

    def active(self, now_s: float) -> tuple[GridSignal, ...]:
        while self.is_link_up and self._known_count < len(self._signals):
            known_s, signal = self._signals[self._known_count]
            if known_s > now_s:
                break
            self._known_count += 1
            self._known = tuple(sorted((*self._known, signal), key=lambda s: (s.from_s, s.signal_id)))
        if self._known and min(s.until_s for s in self._known) <= now_s:
            self._known = tuple(s for s in self._known if s.until_s > now_s)
        return self._known

    @property
    def is_link_up(self) -> bool:
        return not self._plan.faults or self._plan.on("grid", self._clock.now_s()) is None

    @property
    def is_raise_held(self) -> bool:
        return False

    def alarms(self, now_s: float) -> tuple[RefusalReason, ...]:
        return ()

    def report(
        self,
        image: SiteImage,
        command: SiteCommand,
        margins: Sequence[Margin],
        *,
        outlook: Callable[[], Outlook | None] = lambda: None,
    ) -> None:
        """Nobody listens."""


class HeldLease:
    """Leadership that nobody contests."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def is_held(self) -> bool:
        return True

    def see(self, acked: Sequence[int]) -> None:
        return None


class NoRecorder:
    """Keeps nothing."""

    has_failed = False

    def record(self, kind: str, payload: Mapping[str, object]) -> None:
        return None
