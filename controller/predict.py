"""What the declared hardware can hold: the follower's reach in frequency, and what a crash leaves on the meter.

Pure arithmetic on declared numbers (meter delay, tracker period, battery lag and slope): no device is asked. `rampart
check` prints it before energisation, and a bench run can be held against it.
"""

from __future__ import annotations

import math

import numpy as np

from controller.follow import LEAD_SHARE
from controller.settings import BatterySettings, SiteSettings
from controller.types import FloatArray, Following, frozen, replace

# A drop is over in 100 s at its slowest and parts most from the target by then; a battery that takes longer to make up
# for it only comes back later.
SPAN_S_MAX = 120.0
STEP_S = 0.001  # of the simulated follower; a fortieth of the fastest lag worth telling apart
FREQUENCIES_HZ = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@frozen
class Follower:
    """How the battery keeps metered power on the target: `delay_s` before it knows, ticks of `period_s`, a lag.

    `period_s` is 0 for a device that follows by itself. `power_w_max` bounds how far it can move, `slope_w_per_s` how
    fast. `lead_share` of its dead time and lag is made up for by extrapolating a slope that two samples agree on.
    """

    delay_s: float
    period_s: float
    lag_s: float
    power_w_max: float
    slope_w_per_s: float
    lead_share: float = 0.0

    @property
    def t_eff_s(self) -> float:
        """Meter delay plus tracker period plus battery lag."""
        return self.delay_s + self.period_s + self.lag_s

    def leftover(self, frequency_hz: float) -> float:
        """|1 - H(f)|: the share of a load ripple that stays on the meter; above 1 following makes it worse."""
        s = 2j * math.pi * frequency_hz
        hold = (1.0 - np.exp(-s * self.period_s)) / (s * self.period_s) if self.period_s > 0.0 else 1.0
        return float(abs(1.0 - np.exp(-s * self.delay_s) * hold / (1.0 + s * self.lag_s)))


@frozen
class Dip:
    """What a drop leaves on the meter below the target: instantaneous, and on the trailing mean asked for."""

    raw_w: float
    mean_w: float
    change_w: float  # the largest change on that mean, a rebound after the dip included
    back_s: float  # from the drop's start until the meter is within 5 % of the drop again


def follower_of(site: SiteSettings) -> Follower | None:
    """The follower the site declares; None without a battery and a meter."""
    battery, meter = site.battery, site.meter
    if battery is None or meter is None:
        return None
    if battery.following is Following.DEVICE:
        return _follower(battery, delay_s=0.0, period_s=0.0, lag_s=battery.follow_lag_s)
    # A sample may be up to one refresh old on top of its delay; on average half.
    delay_s = meter.delay_s + 0.5 * meter.update_s
    follower = _follower(battery, delay_s=delay_s, period_s=site.tracker_period_s, lag_s=battery.lag_s)
    return replace(follower, lead_share=LEAD_SHARE)


def _follower(battery: BatterySettings, *, delay_s: float, period_s: float, lag_s: float) -> Follower:
    return Follower(
        delay_s=delay_s,
        period_s=period_s,
        lag_s=lag_s,
        # From full discharge to full charge. Whether that is enough from where the battery stands is the power
        # condition of the crash-safe set, not a matter of how fast it follows.
        power_w_max=battery.discharge_w_max + battery.charge_w_max,
        slope_w_per_s=battery.ramp_w_per_s_max,
    )


def crash_dip(follower: Follower, *, drop_w: float, slew_w_per_s: float, mean_s: float) -> Dip:
    """Simulate a drop from steady load: power falls below the target until the battery has taken it over.

    The drop starts just after a tick, the worst phase. Powers in watts, `slew_w_per_s` inf for a step.
    """
    if drop_w <= 0.0:  # what is guaranteed to stay is all there is
        return Dip(0.0, 0.0, 0.0, 0.0)
    span_s = 10.0 * follower.t_eff_s + drop_w / min(slew_w_per_s, follower.slope_w_per_s) + mean_s + 1.0
    span_s = min(span_s, SPAN_S_MAX)
    below_w = _deviation(follower, drop_w=drop_w, slew_w_per_s=slew_w_per_s, count=round(span_s / STEP_S))
    mean_w = _trailing_mean(below_w, mean_s)
    beyond = np.flatnonzero(below_w > 0.05 * drop_w)
    return Dip(
        raw_w=float(below_w.max(initial=0.0)),
        mean_w=float(mean_w.max(initial=0.0)),
        change_w=float(mean_w.max(initial=0.0) - mean_w.min(initial=0.0)),
        back_s=float((beyond[-1] + 1) * STEP_S) if beyond.size else 0.0,
    )


def _deviation(follower: Follower, *, drop_w: float, slew_w_per_s: float, count: int) -> FloatArray:
    """Watts by which the meter stands below its target, every STEP_S from the drop's start."""
    t_s = np.arange(count) * STEP_S
    dropped_w = np.minimum(drop_w, np.where(t_s > 0.0, slew_w_per_s * np.maximum(t_s, STEP_S), 0.0))
    delay = round(follower.delay_s / STEP_S)
    period = max(1, round(follower.period_s / STEP_S))
    gain = 1.0 if follower.lag_s <= 0.0 else 1.0 - math.exp(-STEP_S / follower.lag_s)
    reach_w = follower.slope_w_per_s * STEP_S
    reach_s = follower.lead_share * (follower.delay_s + 0.5 * follower.period_s + follower.lag_s)
    below_w = np.empty(count)
    taken_w = told_w = seen_w = older = 0.0
    for i in range(count):
        if (i + 1) % period == 0:  # the tick after the drop began sees what the meter saw one delay ago
            before_w, seen_w = seen_w, float(dropped_w[i - delay]) if i >= delay else 0.0
            newer = (seen_w - before_w) / (period * STEP_S)
            ahead_w = reach_s * min(older, newer)  # both are falls: a slope counts when two samples show it
            older = newer
            told_w = min(follower.power_w_max, seen_w + ahead_w)
        move_w = gain * (told_w - taken_w)
        taken_w += min(max(move_w, -reach_w), reach_w)
        below_w[i] = dropped_w[i] - taken_w
    return below_w


def _trailing_mean(values: FloatArray, mean_s: float) -> FloatArray:
    width = max(1, round(mean_s / STEP_S))
    total = np.concatenate((np.zeros(width), np.cumsum(values)))
    return (total[width:] - total[:-width]) / width


def largest_drop_w(
    follower: Follower, *, slew_frac_per_s: float, mean_s: float, allowed_w: float, drop_w_max: float
) -> float:
    """The largest block that may drop at `slew_frac_per_s` of itself and leave at most `allowed_w` on the mean."""
    low_w, high_w = 0.0, drop_w_max

    def dip_w(drop_w: float) -> float:
        slew = slew_frac_per_s * drop_w
        return crash_dip(follower, drop_w=drop_w, slew_w_per_s=slew, mean_s=mean_s).mean_w

    if dip_w(high_w) <= allowed_w:
        return high_w
    for _ in range(12):  # 2^-12 of the site: finer than any of the declared numbers
        middle_w = 0.5 * (low_w + high_w)
        low_w, high_w = (middle_w, high_w) if dip_w(middle_w) <= allowed_w else (low_w, middle_w)
    return low_w
