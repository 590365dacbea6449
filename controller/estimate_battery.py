"""What the battery gives at any instant of late: as it reads, or, where that is not so, as it was told.

Its own word may stand still, come late with a new stamp or an old one, or not come at all while it takes every order.
To call such a battery lost, or to believe it, are both wrong: load is rebuilt from what it gives, and a loop that
answers old news runs away. So two accounts are kept: as it reads, and as told, which is the orders that it took, at its
slope and lag. Nodes and meter judge, since load less battery is what the meter must show. Under software following
only: where it follows by itself nothing hangs on what it says. Pure; times in seconds, powers in watts.
"""

from __future__ import annotations

import math
from collections import deque

from controller.estimate_checks import METERS_DIFFER_FRAC
from controller.estimate_lag import LagEstimate
from controller.estimate_witness import AccountWitness
from controller.settings import SiteSettings
from controller.types import BatterySample, Following, Quality, Reading, replace

KNOWN_TICKS = 2.5
ACKED_TICKS = 3.5  # what took no order for longer is no account of what it gives


class BatteryAccount:
    """One per site. `take` once per tick, `commanded` after every write, `metered` and `reported` as these come."""

    def __init__(self, site: SiteSettings, *, kept_s: float) -> None:
        """`kept_s`: how far back `at` may be asked."""
        battery = site.battery
        self._tick_s, self._kept_s = site.tracker_period_s, kept_s
        self._energy_j = battery.energy_j if battery is not None else math.inf
        self._is_loop_ours = site.following is Following.SOFTWARE
        declared_s = 0.0
        if battery is not None:
            declared_s = battery.lag_s if self._is_loop_ours else battery.follow_lag_s
        self._lag = LagEstimate(
            declared_s=declared_s,
            scale_w=battery.discharge_w_max if battery else 1.0,
            slope_w_per_s=battery.ramp_w_per_s_max if battery else math.inf,
        )
        self._witness = AccountWitness(scale_w=site.registered_peak_w)
        self._read: deque[tuple[float, float]] = deque()
        self._reading: Reading[BatterySample] | None = None
        self.is_told = False  # what it was told counts for what it gives,
        self.is_misread = False  # and is not what it says
        self._takes_orders = self._is_silent = False
        self._turn_count = 0
        self._changed_s = -math.inf  # when it last read another power
        self._acked_s = -math.inf
        self._now_s = -math.inf
        self._soc_frac, self._given_j = math.nan, 0.0  # the state of charge as last renewed, and what was given since

    @property
    def lag_s(self) -> float:
        return self._lag.lag_s

    @property
    def dead_s(self) -> float:
        """How long after an order it begins to move, beyond its lag."""
        return self._lag.dead.dead_s(self._now_s)

    @property
    def is_doubtful(self) -> bool:
        """It says something else than it was told, and nobody knows yet which is true."""
        return not self.is_told and self._witness.are_apart(self._now_s)

    @property
    def stood_s(self) -> float:
        """For how long it has read the same power, to the last digit; 0 while orders tell what it gives."""
        return self._read[-1][0] - self._changed_s if self._read and not self.is_told else 0.0

    @property
    def margin_w(self) -> float:
        """How far it may be off what it was told, as a meter may."""
        return METERS_DIFFER_FRAC * abs(self._lag.as_told(self._now_s)) if self.is_misread else 0.0

    def commanded(self, t_s: float, *, reference_w: float, following: Following) -> None:
        """It took this order."""
        if following is Following.SOFTWARE:
            self._acked_s = t_s
            self._lag.commanded(t_s, reference_w)

    def take(self, now_s: float, reading: Reading[BatterySample] | None, *, is_another: bool = False) -> None:
        """Its newest word; where `is_another` device than was armed answers, orders tell nothing of it."""
        if reading is not None:
            self._account_charge(now_s, reading.value)
        self._now_s, self._reading = now_s, reading
        self._is_silent = (
            reading is None or reading.quality is Quality.MISSING or not math.isfinite(reading.value.power_w)
        )
        is_acked = now_s - self._acked_s <= ACKED_TICKS * self._tick_s
        self._takes_orders = reading is not None and is_acked and not is_another and reading.value.takes_orders
        self._settle()
        if reading is not None and not self._is_silent:
            self._hear(reading.t_mono_s, float(reading.value.power_w))

    def _settle(self) -> None:
        """Which account counts."""
        now_s, is_silent, witness = self._now_s, self._is_silent, self._witness
        self.is_told = self._takes_orders and witness.bears_out_orders(now_s, is_silent=is_silent)
        self.is_misread = self.is_told and (is_silent or witness.are_apart(now_s))

    def _hear(self, t_s: float, power_w: float) -> None:
        before_s, before_w = self._read[-1] if self._read else (-math.inf, math.nan)
        if t_s <= before_s:
            return
        self._read.append((t_s, power_w))
        if power_w != before_w:
            self._changed_s = t_s
        if self._takes_orders:
            self._witness.compared(t_s, read_w=power_w, told_w=self._lag.as_told(t_s))
        # A value that is repeated is no answer, and one that meter and nodes gainsay teaches nothing.
        if self._is_loop_ours and power_w != before_w and not self._witness.doubts_reading and not self.is_told:
            is_true = self._witness.proves_reading
            self._lag.measured(t_s, power_w, is_true=is_true, is_shown=is_true or self._witness.shows_reading)
        while len(self._read) > 1 and self._read[1][0] < t_s - self._kept_s:
            self._read.popleft()

    def metered(self, t_s: float, power_w: float) -> bool:
        """What a meter that is believed shows; True when another account is true than was believed since the last."""
        if self._is_loop_ours and self._takes_orders:
            read_w = math.nan if self._is_silent else self._read_at(t_s)
            self._witness.metered(t_s, power_w, read_w=read_w, told_w=self._lag.as_told(t_s))
        if self._turn_count == self._witness.turn_count:
            return False
        self._turn_count = self._witness.turn_count
        self._settle()
        return True

    def reported(self, now_s: float, *, load_w: float, delay_s: float) -> None:
        """What nodes make of the load of `delay_s` ago."""
        self._witness.reported(now_s, load_w=load_w, delay_s=delay_s)

    def at(self, t_s: float) -> float:
        """What it gave at `t_s`; 0 without a battery."""
        return self._lag.as_told(t_s) if self.is_told else self._read_at(t_s)

    @property
    def newest_w(self) -> float:
        """What it gives as of its newest word, or of the orders that stand for it; 0 without a battery."""
        if self.is_told:
            return self._lag.as_told(self._now_s)
        return self._read[-1][1] if self._read else 0.0

    def knows(self, t_s: float) -> bool:
        """Whether it was read at about `t_s` or since: what is made up between readings proves nothing."""
        return bool(self._read) and self._read[-1][0] > t_s - KNOWN_TICKS * self._tick_s

    def believed(self) -> Reading[BatterySample] | None:
        """Its reading, with the power that it is believed to give now."""
        reading = self._reading
        if reading is None or not self.is_misread:
            return reading
        soc_frac = min(max(self._soc_frac - self._given_j / self._energy_j, 0.0), 1.0)
        sample = replace(reading.value, power_w=self.newest_w, soc_frac=soc_frac)
        return Reading(sample, self._now_s, Quality.SUSPECT, reading.source)

    # ------------------------------------------------------------------------------------------------------ private

    def _account_charge(self, now_s: float, sample: BatterySample) -> None:
        """What it gave since it last said another state of charge."""
        if sample.soc_frac != self._soc_frac:
            self._soc_frac, self._given_j = sample.soc_frac, 0.0
        elif self.is_misread:
            self._given_j += self.at(now_s) * max(now_s - self._now_s, 0.0)

    def _read_at(self, t_s: float) -> float:
        """As it reads: between two samples, or the newest moved on by the orders since."""
        history = self._read
        if not history:
            return 0.0
        newest_s, newest_w = history[-1]
        if t_s >= newest_s:
            return self._lag.moved_on(newest_w, newest_s, t_s)
        after_s, after_w = newest_s, newest_w
        for before_s, before_w in reversed(history):
            if before_s <= t_s:
                return self._lag.between(before_w, before_s, after_w, after_s, t_s)
            after_s, after_w = before_s, before_w
        return after_w
