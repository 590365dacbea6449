"""One meter's plausibility: whether its newest value may be used, and what is wrong with it (fault rows S1 to S10).

A flag is true while it is found, not latched; only a wrong unit stays until an operator resets it, because a meter that
once read a thousandfold must not control anything again before somebody looked. A sample that cannot be true is ignored
once and believed the second time; it never comes from a drop, which must be answered at once. Pure.
"""

from __future__ import annotations

import math

from controller.settings import SiteSettings
from controller.types import Following, MeterFlag, MeterSample, Quality, Reading, frozen

AGE_PERIODS = 3.0  # FAULTS S4: beyond the declared delay
STUCK_SAMPLES = 5  # bit-identical new samples; a live meter's last digit moves more often
STUCK_S_DEVICE = 3.0  # a device that follows well may hold the meter still: then the nodes must contradict, longer
STUCK_FRAC = 0.005  # of the registered peak: what the battery must have moved meanwhile, under our own loop
STUCK_FRAC_DEVICE = 0.03
# A meter that was never seen to repeat itself for long is stuck when it does, and something moved a little meanwhile.
LIVELY_SAMPLES = 100
LIVELY_FRAC = 0.001
RISE_FRAC = 0.5  # of the registered peak: no load rises so far between two samples; ignored once
LOAD_GAIN = 1.1  # of all GPUs and other load at their peak: beyond it the sample cannot be true
NEGATIVE_FRAC = 0.02  # of the registered peak: load below minus this is a wrong sign
SIGN_MATCH_FRAC = 0.15  # how well the flipped value must fit the nodes to call the sign wrong, not just suspect
UNIT_RATIO = (300.0, 3000.0)
UNIT_SAMPLES = 3
CARRIED_FRAC = 0.8  # of what nodes report: meter and battery together show so much of it, however fast it changes
SIGN_SAMPLES = 3
METERS_DIFFER_FRAC = 0.03  # two meters of one site, before one is wrong (FAULTS S8)
DRIFT_FRAC = 0.01
DISAGREE_MEMORY_S = 2.0
DRIFT_MEMORY_S = 60.0
SLOW_GAIN, SLOW_S = 5.0, 1.0
UNUSABLE = frozenset(
    {
        MeterFlag.METER_MISSING,
        MeterFlag.METER_STALE,
        MeterFlag.METER_STUCK,
        MeterFlag.METER_UNIT_WRONG,
        MeterFlag.METER_SIGN_SUSPECT,
        MeterFlag.METER_SIGN_WRONG,
    }
)


@frozen
class MeterView:
    """What else is known at the same tick; None where it is not."""

    now_s: float
    battery_w: float
    gpu_w: float | None
    others_w: float | None  # what the sub-meters add up to, on the side of the PCC


def most_believed_w(site: SiteSettings) -> float:
    """The highest load that a meter is believed."""
    bank_w = site.load_bank.power_w_max if site.load_bank is not None else 0.0
    return LOAD_GAIN * (site.gpu_peak_w + site.other_load_w_max + bank_w)


class MeterCheck:
    """Judges one meter, sample by sample. `power_w` is the value to use while `is_usable`."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._update_s = max(site.meter.update_s if site.meter else 0.0, site.tracker_period_s)
        self._delay_s = site.meter.delay_s if site.meter else 0.0
        self._nameplate_w = site.meter.nameplate_w if site.meter else math.inf
        self._load_w_max = most_believed_w(site)
        self._t_s = self._checked_s = -math.inf
        self._is_paused = False
        self._counter_wh: float | None = None
        self._ignored = 0
        self._is_good = True
        self._same_count = self._same_count_max = self._sample_count = 0
        self._is_held_stuck = False  # the value that is repeated now was called stuck
        self._same_since_s = 0.0
        self._same_battery_w = 0.0
        self._same_gpu_w: float | None = None
        self._odd_unit = self._odd_sign = 0
        self._is_unit_wrong = False
        self._is_heard = False  # a fresh number came with the last look
        self._interval_s = self._update_s
        self._apart = self._drift = 0.0
        self._found: frozenset[MeterFlag] = frozenset()
        self.power_w = 0.0
        self.is_usable = False

    @property
    def is_sane(self) -> bool:
        """It speaks now, and in the unit that it should."""
        return self._is_heard and self._odd_unit == 0

    def unlock(self) -> None:
        """A person looked at the unit: believe what it says from now on, if that makes sense."""
        if not self.is_sane:
            return
        self._is_unit_wrong = False
        self._found -= {MeterFlag.METER_UNIT_WRONG}
        self._is_good = not self._found & UNUSABLE

    def check(self, reading: Reading[MeterSample], view: MeterView, *, held_s: float = 0.0) -> frozenset[MeterFlag]:
        """Take the newest reading; returns what is wrong with it. `held_s`: how long a value may keep its time."""
        pause_s, self._checked_s = view.now_s - self._checked_s, view.now_s
        self._is_paused = pause_s > SLOW_S  # nobody looked: how long the meter was silent is not known
        self._is_heard = False
        if reading.quality is Quality.MISSING or not math.isfinite(reading.value.power_w):
            self.is_usable = False
            return frozenset({MeterFlag.METER_MISSING})
        age_s = view.now_s - reading.t_mono_s
        if age_s > self._delay_s + max(AGE_PERIODS * self._update_s, held_s):
            self.is_usable = False
            return frozenset({MeterFlag.METER_STALE})
        self._is_heard = True
        if reading.t_mono_s > self._t_s:
            self._found = frozenset(self._judge(reading, view))
        is_ignored = self._found == {MeterFlag.METER_SPIKE}  # then the sample before it stands, if that one was good
        self._is_good = self._is_good if is_ignored else not self._found & UNUSABLE
        self.is_usable = self._is_good and math.isfinite(self._t_s)
        return self._found

    def _judge(self, reading: Reading[MeterSample], view: MeterView) -> set[MeterFlag]:
        """A new sample: every row that needs one."""
        power_w, elapsed_s = float(reading.value.power_w), reading.t_mono_s - self._t_s
        found: set[MeterFlag] = set()
        if self._is_wrong_unit(power_w, view):
            found.add(MeterFlag.METER_UNIT_WRONG)
        elif self._odd_unit or self._is_first_negative(power_w, view):
            return {MeterFlag.METER_SPIKE}  # no load is so small or negative: nothing acts on it until it is understood
        elif self._is_spike(power_w, view):
            self._ignored += 1
            if self._ignored == 1:
                return {MeterFlag.METER_SPIKE}  # the last value stands, and its time with it
            if self._is_impossible(power_w, view):  # however often it says so
                return {MeterFlag.METER_SPIKE, MeterFlag.METER_MISSING}
        self._ignored = 0
        if self._is_counter_reset(reading.value):
            found.add(MeterFlag.COUNTER_RESET)
        found |= self._sign(power_w, view)
        if self._is_stuck(power_w, reading.t_mono_s, view):
            found.add(MeterFlag.METER_STUCK)
        if math.isfinite(elapsed_s):
            found |= self._against_others(power_w, view, elapsed_s)
            self._interval_s += 0.0 if self._is_paused else 0.2 * (elapsed_s - self._interval_s)
            if self._interval_s > max(SLOW_GAIN * self._update_s, SLOW_S):
                found.add(MeterFlag.METER_SLOW)
        self._t_s, self.power_w = reading.t_mono_s, power_w
        return found

    def _is_wrong_unit(self, power_w: float, view: MeterView) -> bool:
        """Off by about a thousand against the GPUs, several times over; stays."""
        ratio = abs(power_w) / view.gpu_w if view.gpu_w else math.nan
        low, high = UNIT_RATIO
        is_small = ratio > 0.0 and low < 1.0 / ratio < high
        if is_small and view.gpu_w is not None:  # a battery that carries the GPUs leaves as little on a good meter
            is_small = power_w + view.battery_w < CARRIED_FRAC * view.gpu_w
        is_odd = low < ratio < high or is_small
        self._odd_unit = self._odd_unit + 1 if is_odd else 0
        self._is_unit_wrong |= self._odd_unit >= UNIT_SAMPLES
        return self._is_unit_wrong

    def _is_spike(self, power_w: float, view: MeterView) -> bool:
        """Beyond what meter or load can be, or a rise no load makes between two samples."""
        if self._is_impossible(power_w, view):
            return True
        return math.isfinite(self._t_s) and power_w - self.power_w > RISE_FRAC * self._site.registered_peak_w

    def _is_impossible(self, power_w: float, view: MeterView) -> bool:
        return abs(power_w) > self._nameplate_w or power_w + view.battery_w > self._load_w_max

    def _is_counter_reset(self, sample: MeterSample) -> bool:
        before, self._counter_wh = self._counter_wh, sample.import_wh
        return before is not None and sample.import_wh is not None and sample.import_wh < before

    def _is_first_negative(self, power_w: float, view: MeterView) -> bool:
        """Counts negative loads; True while there were too few to say what is wrong."""
        is_negative = power_w + view.battery_w < -NEGATIVE_FRAC * self._site.registered_peak_w
        self._odd_sign = self._odd_sign + 1 if is_negative else 0
        return 0 < self._odd_sign < SIGN_SAMPLES

    def _sign(self, power_w: float, view: MeterView) -> set[MeterFlag]:
        """Load cannot be negative; when the flipped value fits the GPUs the sign is wrong beyond doubt."""
        if self._odd_sign < SIGN_SAMPLES:
            return set()
        if view.gpu_w is not None:
            expected_w = view.gpu_w + self._site.other_load_w - view.battery_w
            if abs(-power_w - expected_w) <= SIGN_MATCH_FRAC * self._site.registered_peak_w:
                return {MeterFlag.METER_SIGN_WRONG}
        return {MeterFlag.METER_SIGN_SUSPECT}

    def _is_stuck(self, power_w: float, t_s: float, view: MeterView) -> bool:
        """Bit-identical while the battery, or battery and GPUs together, say that power must have moved."""
        self._sample_count += 1
        if power_w != self.power_w or not math.isfinite(self._t_s):
            if not self._is_held_stuck:
                self._same_count_max = max(self._same_count_max, self._same_count)
            self._is_held_stuck = False
            self._same_count, self._same_since_s = 1, t_s
            self._same_battery_w, self._same_gpu_w = view.battery_w, view.gpu_w
            return False
        self._same_count += 1
        if self._same_gpu_w is None:
            self._same_gpu_w = view.gpu_w
        if self._same_count < STUCK_SAMPLES:
            return False
        battery_moved_w = view.battery_w - self._same_battery_w
        gpu_moved_w = view.gpu_w - self._same_gpu_w if view.gpu_w is not None and self._same_gpu_w is not None else 0.0
        peak_w = self._site.registered_peak_w
        is_long = t_s - self._same_since_s >= STUCK_S_DEVICE
        is_ours = self._site.battery is not None and self._site.following is Following.SOFTWARE
        is_still_odd = self._sample_count > LIVELY_SAMPLES and self._same_count > 2 * self._same_count_max
        has_never_moved = self._same_count == self._sample_count
        moved_w = max(abs(battery_moved_w), abs(gpu_moved_w - battery_moved_w))
        found = (
            (is_long and abs(gpu_moved_w - battery_moved_w) > STUCK_FRAC_DEVICE * peak_w)
            or (is_ours and abs(battery_moved_w) > STUCK_FRAC * peak_w)
            or (is_ours and is_still_odd and moved_w > LIVELY_FRAC * peak_w)
            or (is_ours and has_never_moved and moved_w > STUCK_FRAC * peak_w)
        )
        self._is_held_stuck |= found
        return found

    def _against_others(self, power_w: float, view: MeterView, elapsed_s: float) -> set[MeterFlag]:
        """Quick and slow mean of the difference to the sub-meters, as a share."""
        if view.others_w is None:
            self._apart = self._drift = 0.0
            return set()
        apart = (power_w - view.others_w) / max(abs(view.others_w), 0.05 * self._site.registered_peak_w)
        self._apart += (1.0 - math.exp(-elapsed_s / DISAGREE_MEMORY_S)) * (apart - self._apart)
        self._drift += (1.0 - math.exp(-elapsed_s / DRIFT_MEMORY_S)) * (apart - self._drift)
        if abs(self._apart) > METERS_DIFFER_FRAC:
            return {MeterFlag.METERS_DISAGREE}
        return {MeterFlag.METER_DRIFT} if abs(self._drift) > DRIFT_FRAC else set()
