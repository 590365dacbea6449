"""The register side of a simulated battery: which command is in force, when it expires, how fast it may move.

It owns what a real power conversion system's communication card owns: the reversion timers, the slope of set-points,
the two-way heartbeat. The plant's battery (`BatteryModel`) owns the physics, `hil.modbus_battery_map` the registers.
Time comes only from `tick`, so the same object runs on a virtual clock. A write under local control is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hil.modbus_battery_map import (
    VENDOR_MODEL,
    WRITABLE_704,
    WRITABLE_VENDOR,
    BatteryNameplate,
    FollowState,
    battery_models,
)
from hil.modbus_image import SunSpecImage
from hil.modbus_server import BatteryModel, ExceptionCode, RegisterFault

MODE_PERCENT, MODE_WATTS = 0, 1  # WSetMod
HOLD_TARGET, RAMP_TO_ZERO = 0, 1  # FlwRvrtMod


class Countdown:
    """A reversion timer in whole seconds, as the registers show it; 0 s is `no reversion`."""

    def __init__(self) -> None:
        self.seconds = 0
        self._expires_s: float | None = None

    def restart(self, now_s: float) -> None:
        self._expires_s = now_s + self.seconds if self.seconds > 0 else None

    def stop(self) -> None:
        self._expires_s = None

    def take_expiry(self, now_s: float) -> bool:
        """True once, when the time is up."""
        if self._expires_s is None or now_s < self._expires_s:
            return False
        self._expires_s = None
        return True

    def left_s(self, now_s: float) -> int:
        return 0 if self._expires_s is None else max(0, math.ceil(self._expires_s - now_s - 1e-6))


class SunSpecBatteryDevice:
    """A RegisterMap that drives `battery`; call `tick` at the plant's rate (10 ms or so).

    The reversion timer of 704 starts when `WSetEna` is written as 1 or `WSetRvrtTms` is written while enabled, and
    counts down in `WSetRvrtRem`; at zero `WSetEnaRvrt` decides between `WSetRvrt` and disabled, reached at `RvrtRmp`
    (vendor model) or else `WRmp`. The vendor model's target has a timer of its own. `heartbeat_timeout_s`: a controller
    that once wrote 715 `ControllerHb` and then stops is treated as an expired command; None ignores the heartbeat.
    Enabling one way of control disables the other.
    """

    def __init__(
        self,
        battery: BatteryModel,
        nameplate: BatteryNameplate,
        *,
        has_following: bool = True,
        heartbeat_timeout_s: float | None = None,
        base: int = 40000,
    ) -> None:
        self.reversion_count = 0
        self.is_permitted = True  # 703: an operator elsewhere may take the permission to run
        self._battery = battery
        self._nameplate = nameplate
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._now_s = 0.0
        self._born_s: float | None = None
        self._set = _initial_registers()
        self._set_timer = Countdown()
        self._follow_timer = Countdown()
        self._follow_state = FollowState.OFF
        self._heartbeat_s: float | None = None
        self._goal_w: float | None = None  # a set-point in force, before its slope; None while following or idle
        self._idle_at_goal = False
        self._setpoint_w = 0.0
        self._slope_w_per_s = math.inf
        self.registers = SunSpecImage(
            battery_models(self, has_following=has_following), on_write=self._take_writes, base=base
        )

    # ------------------------------------------------------------------------------------------ RegisterMap

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        return self.registers.read_registers(function, address, count)

    def read_bits(self, function: int, address: int, count: int) -> Sequence[bool]:
        return self.registers.read_bits(function, address, count)

    def write_registers(self, address: int, data: bytes) -> None:
        self.registers.write_registers(address, data)

    # ------------------------------------------------------------------------------------------------- time

    def tick(self, t_s: float) -> None:
        """Advance to plant time `t_s`: timers, heartbeat, slope of the set-point."""
        dt_s = max(0.0, t_s - self._now_s) if self._born_s is not None else 0.0
        self._now_s = t_s
        if self._born_s is None:
            self._born_s = t_s
        if self._set_timer.take_expiry(t_s):
            self._revert_setpoint()
        if self._follow_timer.take_expiry(t_s):
            self._revert_following()
        if self._is_controller_silent():
            self._heartbeat_s = None
            self._revert_setpoint()
            self._revert_following()
        self._slew(dt_s)

    # ------------------------------------------------------------------------------------------ what registers show

    @property
    def battery(self) -> BatteryModel:
        return self._battery

    @property
    def nameplate(self) -> BatteryNameplate:
        return self._nameplate

    @property
    def follow_state(self) -> FollowState:
        return self._follow_state

    @property
    def set_seconds_left(self) -> int:
        return self._set_timer.left_s(self._now_s)

    @property
    def follow_seconds_left(self) -> int:
        return self._follow_timer.left_s(self._now_s)

    @property
    def uptime_s(self) -> int:
        return 0 if self._born_s is None else int(self._now_s - self._born_s)

    def register(self, point: str) -> float:
        """A writable point as last written (or as it reverted)."""
        return self._set[point]

    # ----------------------------------------------------------------------------------------------- writes

    def _take_writes(self, changes: Mapping[str, float]) -> None:
        if not self._battery.is_remote and set(changes) - {"715.ControllerHb"}:
            raise RegisterFault(ExceptionCode.DEVICE_FAILURE)
        for point, value in changes.items():
            self._check(point, value)
        self._set.update(changes)
        if "715.ControllerHb" in changes:
            self._heartbeat_s = self._now_s
        self._set_timer.seconds = int(self._set["704.WSetRvrtTms"])
        self._follow_timer.seconds = int(self._set[f"{VENDOR_MODEL}.FlwRvrtTms"])
        if any(point.startswith("704.") for point in changes):
            self._apply_setpoint(changes)
        if any(point.startswith(f"{VENDOR_MODEL}.") for point in changes):
            self._apply_following(changes)

    def _check(self, point: str, value: float) -> None:
        allowed: bool
        if point in ("704.WSetEna", "704.WSetEnaRvrt", "704.WSetMod", f"{VENDOR_MODEL}.FlwEna", "704.WRmpRef"):
            allowed = value in (0, 1)
        elif point == f"{VENDOR_MODEL}.FlwRvrtMod":
            allowed = value in (HOLD_TARGET, RAMP_TO_ZERO)
        elif point in ("704.WSet", "704.WSetRvrt"):
            allowed = -self._nameplate.charge_w_max <= value <= self._nameplate.discharge_w_max
        elif point in ("704.WSetPct", "704.WSetPctRvrt"):
            allowed = -100.0 <= value <= 100.0
        else:
            allowed = True
        if not allowed:
            raise RegisterFault(ExceptionCode.ILLEGAL_VALUE)

    def _apply_setpoint(self, changes: Mapping[str, float]) -> None:
        is_enabled = self._set["704.WSetEna"] == 1
        if changes.get("704.WSetEna") == 0:
            self._set_timer.stop()
            self._go(0.0, slope_w_per_s=self._set_slope_w_per_s(), then_idle=True)
        elif is_enabled:
            if "704.WSetEna" in changes or "704.WSetRvrtTms" in changes:
                self._set_timer.restart(self._now_s)
            if "704.WSetEna" in changes:
                self._stop_following()
            self._go(self._commanded_w(), slope_w_per_s=self._set_slope_w_per_s(), then_idle=False)

    def _apply_following(self, changes: Mapping[str, float]) -> None:
        enable = f"{VENDOR_MODEL}.FlwEna"
        if changes.get(enable) == 0:
            if self._follow_state is not FollowState.OFF:
                self._stop_following()
                self._go(0.0, slope_w_per_s=self._reversion_slope_w_per_s(), then_idle=True)
            return
        if self._set[enable] != 1:
            return
        if enable in changes:
            self._set["704.WSetEna"] = 0
            self._set_timer.stop()
            self._goal_w = None
        if enable in changes or f"{VENDOR_MODEL}.FlwRvrtTms" in changes:
            self._follow_timer.restart(self._now_s)
            self._follow_state = FollowState.FOLLOWING
        if self._follow_state is FollowState.FOLLOWING:
            self._battery.set_follow_target(self._set[f"{VENDOR_MODEL}.FlwTgt"], self._follow_slope_w_per_s())

    # -------------------------------------------------------------------------------------------- behaviour

    def _revert_setpoint(self) -> None:
        if self._set["704.WSetEna"] != 1:
            return
        self.reversion_count += 1
        self._set_timer.stop()
        slope = self._reversion_slope_w_per_s()
        if self._set["704.WSetEnaRvrt"] == 1:
            self._set["704.WSetMod"] = MODE_WATTS
            self._set["704.WSet"] = self._set["704.WSetRvrt"]
            self._go(self._set["704.WSetRvrt"], slope_w_per_s=slope, then_idle=False)
        else:
            self._set["704.WSetEna"] = 0
            self._go(0.0, slope_w_per_s=slope, then_idle=True)

    def _revert_following(self) -> None:
        if self._follow_state is not FollowState.FOLLOWING:
            return
        self.reversion_count += 1
        self._follow_timer.stop()
        if self._set[f"{VENDOR_MODEL}.FlwRvrtMod"] == HOLD_TARGET:
            self._follow_state = FollowState.EXPIRED_HOLDING
            return
        self._follow_state = FollowState.EXPIRED_STOPPED
        self._set[f"{VENDOR_MODEL}.FlwEna"] = 0
        self._go(0.0, slope_w_per_s=self._reversion_slope_w_per_s(), then_idle=True)

    def _stop_following(self) -> None:
        self._set[f"{VENDOR_MODEL}.FlwEna"] = 0
        self._follow_timer.stop()
        self._follow_state = FollowState.OFF

    def _go(self, goal_w: float, *, slope_w_per_s: float, then_idle: bool) -> None:
        if self._goal_w is None:
            self._setpoint_w = self._battery.power_w  # the slope starts from what is delivered now
        self._goal_w = goal_w
        self._slope_w_per_s = slope_w_per_s
        self._idle_at_goal = then_idle
        if math.isinf(slope_w_per_s):
            self._slew(0.0)

    def _slew(self, dt_s: float) -> None:
        if self._goal_w is None:
            return
        step_w = self._slope_w_per_s * dt_s if math.isfinite(self._slope_w_per_s) else math.inf
        gap_w = self._goal_w - self._setpoint_w
        self._setpoint_w = self._goal_w if abs(gap_w) <= step_w else self._setpoint_w + math.copysign(step_w, gap_w)
        if self._idle_at_goal and self._setpoint_w == self._goal_w:
            self._goal_w = None
            self._battery.set_idle()
        else:
            self._battery.set_setpoint(self._setpoint_w)

    def _is_controller_silent(self) -> bool:
        if self._heartbeat_timeout_s is None or self._heartbeat_s is None:
            return False
        return self._now_s - self._heartbeat_s > self._heartbeat_timeout_s

    def _commanded_w(self) -> float:
        if self._set["704.WSetMod"] == MODE_WATTS:
            return self._set["704.WSet"]
        percent = self._set["704.WSetPct"]
        rating = self._nameplate.discharge_w_max if percent >= 0 else self._nameplate.charge_w_max
        return percent / 100.0 * rating

    def _set_slope_w_per_s(self) -> float:
        percent_per_s = self._set["704.WRmp"]
        if percent_per_s in (0, 0xFFFF):
            return math.inf
        return percent_per_s / 100.0 * self._nameplate.discharge_w_max

    def _follow_slope_w_per_s(self) -> float:
        return self._set[f"{VENDOR_MODEL}.FlwRmp"] or math.inf

    def _reversion_slope_w_per_s(self) -> float:
        return self._set[f"{VENDOR_MODEL}.RvrtRmp"] or self._set_slope_w_per_s()


def _initial_registers() -> dict[str, float]:
    registers = {f"704.{name}": 0.0 for name in WRITABLE_704}
    registers |= {f"{VENDOR_MODEL}.{name}": 0.0 for name in WRITABLE_VENDOR}
    return registers | {"715.ControllerHb": 0.0, "802.CtrlHb": 0.0, "704.WRmpRef": 1.0, "704.WSetMod": 1.0}
