"""The load bank as an armed resource: when it counts as load that stays after a crash, and what it is told to draw.

A crash leaves so little load that the battery cannot ride the grid target down from where it stands; a bank that surely
comes on then raises what is left, and the target may stand higher by as much without a watt drawn. It counts only while
it is seen ready, acknowledges, reads back and obeys. It is told to draw what the battery cannot take of the surplus of
target over load, by power or by energy, and what the plan wants. Pure; the images bring their times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from controller.estimate import Estimate
from controller.reserve import ReserveRow, crash_slope_w_per_s, late_share, reserve_rows
from controller.settings import LoadBankSettings, SiteSettings
from controller.situation import Situation
from controller.tracker import Tracker
from controller.tracker_io import TrackerOutput
from controller.types import (
    Contract,
    Direction,
    Limit,
    LoadBankCommand,
    LoadBankSample,
    LoadBankState,
    Mode,
    Quality,
    Reading,
    SiteImage,
    Stamp,
    frozen,
)

LATE_FRAC = 0.2  # of each row: how deep the target may dip until the bank has come on
DEADBAND_FRAC = 0.005  # of its power: smaller changes are not worth a write
OFF_FRAC = 0.05  # of its power: beyond it a bank does not draw what it was told (as FAULTS B2 for batteries)
OFF_S = 1.0  # beyond what lag and slope explain
PROVEN_S = 3.0  # how long a bank that was in doubt must obey an order worth seeing


@frozen
class Floor:
    """Load that an armed bank adds to what a crash leaves.

    `sure_w` counts against the battery's energy. Of it `quick_w` counts against its power too: it comes `late_s` after
    the drop, and until then the target dips by what is missing, which the rows must forgive.
    """

    sure_w: float
    quick_w: float
    late_s: float


NO_FLOOR = Floor(0.0, 0.0, 0.0)


def expiry_share(ballast_w: float) -> float:
    """Of the contract's slope, what each may use when commands stop: a bank in use lets go as the battery does."""
    return 0.5 if ballast_w > 0.0 else 1.0


def declared_floor(site: SiteSettings) -> Floor:
    """What the bank would add by its nameplate, cold and ready, to a site at full load."""
    bank = site.load_bank
    if bank is None:
        return NO_FLOOR
    rows = reserve_rows(site.contract, direction=Direction.DOWN)
    left_w = site.gpu_idle_w + site.other_load_w + site.guaranteed_floor_w
    return floor_of(
        site,
        bank,
        rows,
        power_w=bank.power_w_max,
        left_j=bank.energy_j,
        fall_w_per_s=crash_slope_w_per_s(rows, residual_w=0.0),
        surplus_w=max(0.0, site.gpu_peak_w + site.other_load_w - left_w),
    )


def floor_of(
    site: SiteSettings,
    bank: LoadBankSettings,
    rows: Iterable[ReserveRow],
    *,
    power_w: float,
    left_j: float,
    fall_w_per_s: float,
    surplus_w: float,
) -> Floor:
    """The floor of a bank that can draw `power_w` now and `left_j` before it is too hot."""
    is_bounded = math.isfinite(fall_w_per_s)
    if is_bounded and math.isfinite(left_j) and surplus_w > 0.0:  # for as long as the target takes to come down
        power_w = min(power_w, left_j * fall_w_per_s / surplus_w)
    late_s = _late_s(site, bank, power_w)
    sure_w = max(0.0, power_w - fall_w_per_s * late_s) if is_bounded else power_w  # the battery takes it while late
    quick_w = min([sure_w, *(LATE_FRAC * row.max_w / late_share(row, late_s=late_s) for row in rows)])
    return Floor(sure_w, quick_w, late_s)


def _late_s(site: SiteSettings, bank: LoadBankSettings, power_w: float) -> float:
    """How long after a drop the bank's energy is missing: seen, told, lagging, and half of its own slope."""
    seen_s = site.meter.delay_s + site.meter.update_s if site.meter is not None else 0.0
    return seen_s + site.tracker_period_s + bank.lag_s + 0.5 * power_w / bank.ramp_w_per_s_max


class Ballast:
    """One site's bank; `see` once per cycle, `order` after the tracker, `acknowledged` after the write."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._bank = site.load_bank
        self.is_disobeying = False
        self.floor = NO_FLOOR
        self.why_not = ""  # why it adds nothing to the floor
        self._limits: tuple[Limit, ...] = ()
        self._rows: tuple[ReserveRow, ...] = ()
        self._sample: LoadBankSample | None = None
        self._asked_s = -math.inf
        self._may_draw = False
        self._expected_w: float | None = None  # what lag and slope make of the set-points acknowledged
        self._told_w = 0.0
        self._acked_s = -math.inf
        self._seen_s = -math.inf
        self._off_since_s: float | None = None
        self._obeys_since_s: float | None = None
        self._energy_j = self._bank.energy_j if self._bank is not None else 0.0

    # ------------------------------------------------------------------------------------------------ what it is worth

    def see(
        self,
        image: SiteImage,
        *,
        tracker: Tracker | None,
        limits: tuple[Limit, ...],
        left_w: float,
        may_draw: bool,
    ) -> Floor:
        """Judge the bank anew. `left_w`: what a crash leaves without it; `may_draw`: an order could be given at all."""
        bank, reading, now_s = self._bank, image.load_bank, image.t_mono_s
        self.floor, self.why_not, self._may_draw = NO_FLOOR, "", may_draw
        if bank is None or reading is None:
            return NO_FLOOR
        self._sample = reading.value if reading.quality is not Quality.MISSING else None
        self._watch(now_s, bank)
        self.why_not = self._why_not(now_s, reading)
        if tracker is None or not may_draw:
            self.why_not = self.why_not or "the controller is not in a mode to use it"
        if tracker is None or self.why_not:
            return NO_FLOOR
        if limits is not self._limits:
            contract = Contract("in force", limits, self._site.registered_peak_w)
            self._limits, self._rows = limits, reserve_rows(contract, direction=Direction.DOWN)
        self.floor = floor_of(
            self._site,
            bank,
            self._rows,
            power_w=_available_w(bank, reading.value),
            left_j=self._energy_left_j(reading.value),
            fall_w_per_s=tracker.interval.contingency_slope_w_per_s,
            surplus_w=tracker.g_ref_w - left_w,
        )
        return self.floor

    def _why_not(self, now_s: float, reading: Reading[LoadBankSample]) -> str:
        """Why the bank cannot count, in words; empty when it can."""
        sample = reading.value
        if reading.quality is not Quality.GOOD:
            return f"its reading is {reading.quality.name.lower()}"
        if sample.state in (LoadBankState.OFF, LoadBankState.FAULT):
            return f"it is in state {sample.state.value}"
        if not sample.is_remote:
            return "it is in local control"
        if now_s - self._acked_s > self._site.planner_period_s:
            return "it acknowledged no command within a planner period"
        if sample.reversion_s_left is not None and sample.reversion_s_left <= 0.0:
            return "its expiry timer does not run"
        return "it does not draw what it was told" if self.is_disobeying else ""

    def _energy_left_j(self, sample: LoadBankSample) -> float:
        return self._energy_j if sample.energy_j_left is None else min(self._energy_j, sample.energy_j_left)

    def _watch(self, now_s: float, bank: LoadBankSettings) -> None:
        """Does it draw what it was told? And what heat is left."""
        elapsed_s = min(max(now_s - self._seen_s, 0.0), 1.0)
        self._seen_s = now_s
        if self._sample is None:
            self._expected_w = self._off_since_s = self._obeys_since_s = None
            return
        power_w = self._sample.power_w
        if math.isfinite(bank.energy_j):
            gained_j = (bank.recovery_w - power_w) * elapsed_s
            self._energy_j = min(bank.energy_j, max(0.0, self._energy_j + gained_j))
        if self._expected_w is None:
            self._expected_w = power_w
        before_w = self._expected_w
        gain = 1.0 - math.exp(-elapsed_s / bank.lag_s) if bank.lag_s > 0.0 else 1.0
        step_w = bank.ramp_w_per_s_max * elapsed_s
        told_w = min(self._told_w, self._sample.power_w_max)
        self._expected_w += min(max((told_w - before_w) * gain, -step_w), step_w)
        least_w, most_w = sorted((before_w, self._expected_w))  # a reading is as old as its delay
        off_w = max(least_w - power_w, power_w - most_w)
        if off_w > max(OFF_FRAC * bank.power_w_max, bank.step_w):
            self._off_since_s = now_s if self._off_since_s is None else self._off_since_s
            self._obeys_since_s = None
            self.is_disobeying |= now_s - self._off_since_s > OFF_S
            return
        self._off_since_s = None
        if told_w <= max(OFF_FRAC * bank.power_w_max, bank.step_w):
            self._obeys_since_s = None  # drawing nothing proves nothing
        elif self._obeys_since_s is None:
            self._obeys_since_s = now_s
        elif now_s - self._obeys_since_s > PROVEN_S:
            self.is_disobeying = False

    # ------------------------------------------------------------------------------------------------ what it is told

    def order(
        self,
        now: Situation,
        *,
        tracker: Tracker,
        track: TrackerOutput,
        planned_w: float,
        stamp: Stamp,
        fall_w_per_s: float,
    ) -> LoadBankCommand | None:
        """The next command; None where there is no bank that takes orders.

        `planned_w` is what the plan wants drawn; `fall_w_per_s` how fast bank and battery may let go together when
        commands stop. What the envelope would refuse is not asked for: refusals count.
        """
        bank, sample, now_s, written_w = self._bank, self._sample, now.now_s, now.written.ballast_w
        elapsed_s, self._asked_s = max(0.0, now_s - self._asked_s), now_s
        if bank is None or sample is None or not sample.is_remote or sample.state is LoadBankState.FAULT:
            return None
        slope = min(tracker.interval.slope_down_w_per_s, bank.ramp_w_per_s_max)
        if track.aim is not None and now.mode.mode <= Mode.HOLD:
            wanted_w = self._wanted_w(bank, sample, track, now.estimate, planned_w, written_w)
            wanted_w = wanted_w if self._may_draw else min(wanted_w, written_w)
        else:  # nothing holds the target: the bank lets go as the target would come down
            wanted_w = max(0.0, written_w - slope * elapsed_s)
        return LoadBankCommand(
            setpoint_w=wanted_w,
            ramp_w_per_s=bank.ramp_w_per_s_max,
            expiry_w_per_s=min(expiry_share(wanted_w) * fall_w_per_s, bank.ramp_w_per_s_max),
            epoch=stamp.epoch,
            seq=stamp.seq,
            ttl_s=stamp.ttl_s,
        )

    def _wanted_w(
        self,
        bank: LoadBankSettings,
        sample: LoadBankSample,
        track: TrackerOutput,
        estimate: Estimate,
        planned_w: float,
        written_w: float,
    ) -> float:
        """What the battery cannot take of the surplus; of the plan's wish what target and battery carry.

        A plan counts in means: a bank that followed the ripple, off at its top, would draw far less than was planned.
        """
        surplus_w = track.g_ref_w - estimate.own_load_w
        room_w = track.load_w_max - estimate.own_load_w
        wanted_w = max(0.0, surplus_w - track.ride_w, min(planned_w, room_w))
        if bank.step_w > 0.0:
            wanted_w = math.ceil(wanted_w / bank.step_w - 1e-6) * bank.step_w
        wanted_w, small_w = min(wanted_w, _available_w(bank, sample)), DEADBAND_FRAC * bank.power_w_max
        if wanted_w < small_w:
            return 0.0
        return written_w if abs(wanted_w - written_w) < small_w else wanted_w

    def acknowledged(self, now_s: float, command: LoadBankCommand) -> None:
        """The bank took `command` and read it back."""
        self._acked_s, self._told_w = now_s, command.setpoint_w


def _available_w(bank: LoadBankSettings, sample: LoadBankSample) -> float:
    return max(0.0, min(bank.power_w_max, sample.power_w_max))
