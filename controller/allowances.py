"""How much of every row is kept free of the target's own moves: for what following leaves, and for a crash to come.

What is kept for each row of the contract is the residual as measured and what no measurement shows; of falls also the
dip that the meter sees before a crash is answered. Renewed once a second, and at once where it matters. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.contract import AdmissibleInterval
from controller.doubt import StepDoubt
from controller.estimate import Estimate, LoadSource
from controller.reserve import ReserveRow, late_dip_w, reserve_rows, transient_dip_w
from controller.residual import METERED_MEAN_S, Residual, Unseen
from controller.settings import SiteSettings
from controller.tracker_io import TrackerInput, Watch
from controller.types import (
    BandLimit,
    CeilingLimit,
    ChangeLimit,
    Contract,
    Direction,
    FloorLimit,
    Following,
    Limit,
    LimitId,
    MeterFlag,
    OscillationLimit,
    RateLimit,
)

# Of a row, beside the residual: what happens between two samples of the meter, and what was not measured yet. Without
# it a 62 MW crash rode down at 4.995 of 5 MW; with it nothing measured so far came nearer than 2 %.
UNSEEN_FRAC = 0.03
# Of a row, together with that: a crash leaves ripple of its own, and the slope it is ridden down at must not fall then.
SPENT_FRAC_MIN = 0.045
# Of a row while the ripple of the site is not known, as long as that is in its window: a record that begins with a jump
# passed the 15 s row by 1 %.
STARTUP_FRAC, STARTUP_S = 0.09, 60.0
# The same of a ceiling or floor, which is a level and not a change: half of what a meter of class 0.5 may be off. At a
# tenth of a percent, slopes steeper than any of the last minutes took a measured record 17 kW over a target of 65.8 MW.
RESIDUAL_FRAC_LEVEL = 0.0025
RENEW_PERIOD_S = 1.0


class Allowances:
    """One per tracker, for the rows in force; `renew` once per tick."""

    def __init__(
        self,
        site: SiteSettings,
        interval: AdmissibleInterval,
        *,
        residual: Residual,
        unseen: Unseen,
        doubt: StepDoubt,
        start_s: float,
    ) -> None:
        self._interval, self._residual, self._unseen, self._doubt = interval, residual, unseen, doubt
        self._peak_w = site.registered_peak_w
        self._needs_meter = site.following is Following.SOFTWARE
        self._start_s = start_s
        self._renewed_s = -math.inf
        self._is_blind = self._was_riding_down = False
        self.set_limits(site.contract.limits)

    def set_limits(self, limits: tuple[Limit, ...]) -> None:
        """Other rows are in force."""
        contract = Contract("in force", limits, self._peak_w)
        self.rows: tuple[ReserveRow, ...] = reserve_rows(contract, direction=Direction.DOWN)
        self._limits = limits
        self._residual.ensure({METERED_MEAN_S, *(limit.mean_s for limit in limits)})
        self.expire()

    @property
    def is_new(self) -> bool:
        """The ripple of this site is not known yet."""
        return self._interval.now_s - self._start_s < STARTUP_S

    def expire(self) -> None:
        """What is kept does not hold any more: renew it on the next tick."""
        self._renewed_s = -math.inf

    def renew(self, given: TrackerInput, *, is_riding_down: bool, ripple_w: float) -> None:
        """Take off the interval's rows what is to be kept now, once a second and when a contingency begins or ends.

        Where following goes by no meter, or by a late one, it is due at once as well, and all of the load's ripple,
        `ripple_w`, is unseen.
        """
        now_s = given.now_s
        was_blind = self._is_blind
        self._is_blind = self._needs_meter and not _is_seen(given.estimate)
        if self._is_blind:
            is_followed = given.estimate.source is not LoadSource.LOST
            self._unseen.missed(now_s, ripple_w=ripple_w, is_followed=is_followed)
        is_due = now_s - self._renewed_s >= RENEW_PERIOD_S or (self._is_blind and not was_blind)
        if not is_due and is_riding_down == self._was_riding_down:
            return
        self._renewed_s, self._was_riding_down = now_s, is_riding_down
        # Once the contingency has happened, the dip is spent and its share is free for the fall.
        dips_w = {} if is_riding_down else self._dips_w(given.watches, t_eff_s=given.estimate.t_eff_s)
        kept_w = self.kept_w()
        for limit in self._limits:
            if isinstance(limit, ChangeLimit):
                below_w, above_w = self._doubt.left_w(now_s, given.estimate, _bound_of(limit)[1])
                dips_w[limit.id] = dips_w.get(limit.id, 0.0) + below_w
                kept_w[limit.id] += above_w
        self._interval.set_shrink(kept_w, dips_w)

    def kept_w(self) -> dict[LimitId, float]:
        """r of each row: what following leaves on the row's own averaging time, on the side that the row judges."""
        found: dict[LimitId, float] = {}
        now_s, is_new = self._interval.now_s, self.is_new
        for limit in self._limits:
            track = self._residual.track(limit.mean_s)
            if isinstance(limit, ChangeLimit):
                max_w, window_s = _bound_of(limit)
                left_w = max(track.spread_w, self._unseen.left_w(now_s, window_s))
                is_unknown = is_new or self._unseen.is_within(now_s, window_s)
                found[limit.id] = _kept_w(left_w, max_w, is_new=is_unknown)
            elif isinstance(limit, CeilingLimit):
                found[limit.id] = max(track.high_w, RESIDUAL_FRAC_LEVEL * limit.max_w)
            elif isinstance(limit, FloorLimit):
                found[limit.id] = max(-track.low_w, RESIDUAL_FRAC_LEVEL * limit.min_w)
            elif isinstance(limit, OscillationLimit | BandLimit):
                found[limit.id] = _kept_w(max(track.high_w, -track.low_w), limit.max_w, is_new=is_new)
        return found

    def _dips_w(self, watches: Sequence[Watch], *, t_eff_s: float) -> dict[LimitId, float]:
        """Of every row on falls: what the worst contingency does to it before anybody answers."""
        enforced = [watch.contingency for watch in watches if watch.enforces_transient]
        late = [watch.contingency for watch in watches if watch.enforces_power]
        found: dict[LimitId, float] = {}
        for row in self.rows:
            dips_w = [transient_dip_w(row, contingency, t_eff_s=t_eff_s) for contingency in enforced]
            late_w = max((late_dip_w(row, contingency) for contingency in late), default=0.0)
            found[row.limit_id] = max(dips_w, default=0.0) + late_w
        return found


def _kept_w(measured_w: float, limit_w: float, *, is_new: bool) -> float:
    """What is taken off a row: the residual as measured, and what no measurement shows, more while little is known."""
    return max(measured_w + UNSEEN_FRAC * limit_w, (STARTUP_FRAC if is_new else SPENT_FRAC_MIN) * limit_w)


def _is_seen(estimate: Estimate) -> bool:
    """A meter shows what following leaves, in time."""
    return estimate.source in (LoadSource.METER, LoadSource.SUB_METERS) and MeterFlag.METER_LATE not in estimate.flags


def _bound_of(limit: ChangeLimit) -> tuple[float, float]:
    """What a row allows, W, and within how many seconds."""
    return (limit.above_w, limit.horizon_s) if isinstance(limit, RateLimit) else (limit.max_w, limit.window_s)
