"""The site's Modbus devices on real sockets: PCC meter, battery, load bank and UPS, all in front of one plant.

Reads advance the plant to now first, then show it as late and as coarse as the scenario says. Plant time stands still
until the run begins; the devices' own timers follow the machine's clock, as those of real ones do.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable

import numpy as np

from controller.clock import MonotonicClock
from controller.errors import BadInput
from controller.types import BatteryState, LoadBankState
from hil.modbus_battery import SunSpecBatteryDevice
from hil.modbus_battery_map import BatteryNameplate
from hil.modbus_load_bank import LoadBankDevice
from hil.modbus_meter import sunspec_meter
from hil.modbus_server import ModbusServer, RegisterMap
from hil.modbus_ups import LiebertUpsDevice
from hil.plant.battery import Battery
from hil.plant.load_bank import LoadBank
from hil.plant.site import BALLAST, BATTERY, FREQUENCY, IMPORTED_J, PCC, VOLTAGE, SitePlant
from hil.scenario_documents import MeterPlantDoc

J_PER_WH = 3_600.0
UNIT_ID = 1
LINE_TO_NEUTRAL_V = 7_967.0  # a 13.8 kV feeder
UPS_VOLTAGE_V = 277.0  # of a 480 V bus
POWER_FACTOR = 0.99

Advance = Callable[[], float]  # moves the plant to now and says which plant time that is


class WireMeter:
    """A power meter that refreshes every `refresh_s` and shows what was true `delay_s` ago."""

    def __init__(
        self,
        plant: SitePlant,
        doc: MeterPlantDoc,
        advance: Advance,
        *,
        delay_s: float,
        refresh_s: float,
        rng: np.random.Generator,
    ) -> None:
        self._plant, self._doc, self._advance, self._rng = plant, doc, advance, rng
        self._delay_s = delay_s if doc.delay_s is None else doc.delay_s
        self._refresh_s = refresh_s if doc.refresh_s is None else doc.refresh_s
        self._sample_s = -math.inf
        self._power_w = 0.0
        self._sample()

    def _sample(self) -> None:
        """Take the newest refresh, if there is one since the last."""
        at_s = self._advance() - self._delay_s
        sample_s = math.floor(at_s / self._refresh_s + 1e-9) * self._refresh_s
        if sample_s == self._sample_s:
            return
        self._sample_s = sample_s
        doc, plant = self._doc, self._plant
        power_w = (
            plant.mean(PCC, from_s=sample_s - doc.window_s, to_s=sample_s)
            if doc.window_s > 0.0
            else plant.value(PCC, sample_s)
        )
        noise = float(self._rng.standard_normal()) * doc.noise_frac if doc.noise_frac > 0.0 else 0.0
        self._power_w = power_w * doc.gain * (1.0 + noise)

    @property
    def power_w(self) -> float:
        self._sample()
        return self._power_w

    @property
    def frequency_hz(self) -> float | None:
        return self._plant.value(FREQUENCY, self._sample_s)

    @property
    def voltage_pu(self) -> float | None:
        return self._plant.value(VOLTAGE, self._sample_s)

    @property
    def import_wh(self) -> float | None:
        return max(self._plant.value(IMPORTED_J, self._sample_s), 0.0) / J_PER_WH

    @property
    def export_wh(self) -> float | None:
        return 0.0


class WireBattery:
    """The plant's battery as its communication card shows it: power `delay_s` ago, everything else as it is."""

    def __init__(self, plant: SitePlant, battery: Battery, advance: Advance, *, delay_s: float) -> None:
        self._plant, self._battery, self._advance, self._delay_s = plant, battery, advance, delay_s

    @property
    def power_w(self) -> float:
        return self._plant.value(BATTERY, self._advance() - self._delay_s)

    @property
    def soc_frac(self) -> float:
        return self._battery.soc_frac

    @property
    def charge_w_limit(self) -> float:
        return self._battery.charge_w_limit

    @property
    def discharge_w_limit(self) -> float:
        return self._battery.discharge_w_limit

    @property
    def state(self) -> BatteryState:
        return self._battery.state

    @property
    def is_remote(self) -> bool:
        return self._battery.is_remote

    def set_setpoint(self, w: float, /) -> None:
        self._advance()
        self._battery.set_setpoint(w)

    def set_follow_target(self, w: float, ramp_w_per_s: float, /) -> None:
        self._advance()
        self._battery.set_follow_target(w, ramp_w_per_s)

    def set_idle(self) -> None:
        self._advance()
        self._battery.set_idle()


class WireLoadBank:
    """The plant's load bank as its PLC shows it: power `delay_s` ago, everything else as it is."""

    def __init__(self, plant: SitePlant, bank: LoadBank, advance: Advance, *, delay_s: float) -> None:
        self._plant, self._bank, self._advance, self._delay_s = plant, bank, advance, delay_s

    @property
    def power_w(self) -> float:
        return self._plant.value(BALLAST, self._advance() - self._delay_s)

    @property
    def power_w_limit(self) -> float:
        return self._bank.power_w_limit

    @property
    def setpoint_w(self) -> float:
        return self._bank.setpoint_w

    @property
    def reversion_s_left(self) -> float | None:
        return self._bank.reversion_s_left

    @property
    def state(self) -> LoadBankState:
        return self._bank.state

    @property
    def is_remote(self) -> bool:
        return self._bank.is_remote

    @property
    def energy_j_left(self) -> float | None:
        return self._bank.energy_j_left

    @property
    def uptime_s(self) -> float:
        return time.monotonic()  # the PLC's own clock runs while the plant stands

    def order(self, setpoint_w: float, *, ramp_w_per_s: float, expiry_w_per_s: float, expiry_s: float) -> None:
        self._advance()
        self._bank.set_setpoint(setpoint_w, ramp_w_per_s)
        self._bank.arm_reversion(expiry_s, slope_w_per_s=expiry_w_per_s)


class WireUps:
    """The plant's UPS as its management card sees it."""

    def __init__(self, plant: SitePlant, advance: Advance, *, rated_w: float) -> None:
        self._plant, self._advance, self._rated_w = plant, advance, rated_w

    @property
    def output_w(self) -> float:
        self._advance()
        return self._plant.facility.ups_output_w

    @property
    def output_va(self) -> float:
        return self.output_w / POWER_FACTOR

    @property
    def is_on_battery(self) -> bool:
        return self._plant.facility.is_on_battery

    @property
    def is_on_bypass(self) -> bool:
        return False

    @property
    def minutes_left(self) -> float:
        return self._plant.facility.minutes_left

    @property
    def load_frac(self) -> float:
        return self.output_w / self._rated_w

    @property
    def input_frequency_hz(self) -> float:
        return self._plant.now(FREQUENCY)

    @property
    def voltage_v(self) -> float:
        return UPS_VOLTAGE_V * self._plant.now(VOLTAGE)


def battery_device(battery: Battery, shown: WireBattery) -> SunSpecBatteryDevice:
    """The battery's registers, with its timers."""
    p = battery.params
    nameplate = BatteryNameplate(
        discharge_w_max=p.discharge_w_max,
        charge_w_max=p.charge_w_max,
        energy_wh=p.energy_j / J_PER_WH,
        soc_frac_min=p.soc_frac_min,
        soc_frac_max=p.soc_frac_max,
    )
    return SunSpecBatteryDevice(shown, nameplate)


def load_bank_registers(bank: WireLoadBank) -> RegisterMap:
    return LoadBankDevice(bank)


def meter_registers(meter: WireMeter, *, nominal_hz: float) -> RegisterMap:
    return sunspec_meter(meter, nominal_voltage_v=LINE_TO_NEUTRAL_V, nominal_frequency_hz=nominal_hz)


def ups_registers(ups: WireUps) -> RegisterMap:
    return LiebertUpsDevice(ups)


async def serve(name: str, registers: RegisterMap, *, port: int) -> ModbusServer:
    """A started server of one device on loopback; BadInput in one line when the port is taken."""
    server = ModbusServer({UNIT_ID: registers}, port=port)
    try:
        await server.start()
    except OSError as error:
        why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise BadInput(f"wire.{name}_port: cannot listen on {server.host}:{port}: {why}") from None
    return server


class RunClock:
    """The machine's clock, counted from `begin`; 0 before it."""

    def __init__(self) -> None:
        self._inner = MonotonicClock()
        self._begin_ns: int | None = None

    def begin(self) -> None:
        self._begin_ns = self._inner.now_ns()

    @property
    def has_begun(self) -> bool:
        return self._begin_ns is not None

    @property
    def begin_s(self) -> float:
        """When the run began, on the monotonic clock that every process of this machine reads."""
        assert self._begin_ns is not None
        return self._begin_ns / 1e9

    def now_ns(self) -> int:
        return 0 if self._begin_ns is None else self._inner.now_ns() - self._begin_ns

    def now_s(self) -> float:
        return self.now_ns() / 1e9

    def wall_utc_s(self) -> float:
        return self._inner.wall_utc_s()

    async def sleep_until_ns(self, t_ns: int) -> None:
        assert self._begin_ns is not None, "the run has not begun"
        await self._inner.sleep_until_ns(t_ns + self._begin_ns)
