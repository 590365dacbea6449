"""Grid limits in, admissible interval out: where the grid target may go next so that no row of the contract breaks.

The path handed to `push` is taken as straight lines between its points, and every bound is exact on those lines, not
only at the points: whoever keeps the next point inside `bounds` has kept every row at every instant between. Holding
is always inside, so the interval is never empty; docs/admissible-interval.md proves both. Pure: no clock, no I/O, and
it never moves the target itself. Powers in watts, times in seconds on one monotonic axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

import numpy as np

from controller.contract_rows import Path, RateRow, WindowRow
from controller.slope_bound import band_seconds, line_seconds, swing_seconds
from controller.types import (
    BandLimit,
    CeilingLimit,
    Direction,
    FloatArray,
    FloorLimit,
    Limit,
    LimitId,
    OscillationLimit,
    RampLimit,
    RateLimit,
    SwingLimit,
    frozen,
    replace,
)

# A row keeps this share of its allowance however large residual and dip are: a target that may not move at all could
# never bring the battery back, which would break more than it saves. `is_overspent` says that it happened. The further
# the residual alone is beyond the row, the less the target's own moves matter to it, and the more is kept.
KEPT_FRAC = 0.1
KEPT_FRAC_HOPELESS = 0.5  # where the residual is twice the row
# A filtered row keeps half: what following leaves lies at other frequencies than the target's own moves, and a slope of
# nearly nothing would strand the battery for the sake of a row that ripple alone has broken.
KEPT_FRAC_FILTERED = 0.5
# Share of every allowance left unused so that rounding in sums of floats cannot pass for a violation.
ROUNDING_FRAC = 1e-6

ResidualW = float | Mapping[LimitId, float]


@frozen
class Interval:
    """Where the target may be at one instant; infinite where no row binds. `low_w <= high_w` always."""

    low_w: float
    high_w: float

    def clip(self, power_w: float) -> float:
        return min(max(power_w, self.low_w), self.high_w)


@frozen
class DueStatus:
    """How a ceiling or floor stands: met by its time, or bounded by the other rows and met at `met_at_s`."""

    limit_id: LimitId
    due_s: float
    met_at_s: float
    is_bounded: bool


class AdmissibleInterval:
    """The interval over one contract and the path so far. O(1) amortised per tick and row."""

    def __init__(
        self, limits: Iterable[Limit], *, start_s: float, start_w: float, tick_s: float, remember_s: float = 600.0
    ) -> None:
        """`tick_s` is the usual time between pushes; `remember_s` of path outlive the rows that need them."""
        assert math.isfinite(start_s) and math.isfinite(start_w) and tick_s > 0.0
        self._tick_s = tick_s
        self._remember_s = self._keep_s = remember_s
        self._known_since_s = start_s
        self._path = Path(start_s, start_w)
        self._windows: list[WindowRow] = []
        self._row_of: list[tuple[LimitId, WindowRow]] = []  # of each plain limit
        self._rates: list[RateRow] = []
        self._limits: tuple[Limit, ...] = ()
        self._residual_w: ResidualW = 0.0
        self._dip_w: Mapping[LimitId, float] = {}
        self._waived_until_s = -math.inf
        self._waives_bands = False
        self._ceilings: list[tuple[CeilingLimit, float]] = []
        self._floors: list[tuple[FloorLimit, float]] = []
        # The path's envelopes at the present slopes: max over s of P(s) - R (t - s), and its mirror.
        self._peak_w = self._trough_w = start_w
        self._contingency_peak_w = self._contingency_trough_w = start_w
        self.set_limits(limits, start_s)

    # ------------------------------------------------------------------------------------------------- the path

    @property
    def now_s(self) -> float:
        return self._path.now_s

    @property
    def now_w(self) -> float:
        return self._path.now_w

    @property
    def limits(self) -> tuple[Limit, ...]:
        return self._limits

    def push(self, t_s: float, power_w: float) -> None:
        """The path went straight to `power_w` at `t_s`, whether or not the interval allowed it."""
        elapsed_s = t_s - self._path.now_s
        assert elapsed_s >= 0.0 and math.isfinite(power_w), "the path runs forwards, on finite power"
        waiver_ends = self._path.now_s < self._waived_until_s <= t_s
        self._path.append(t_s, power_w)
        for row in self._windows:
            row.advance(self._path)
        for rate in self._rates:
            rate.advance(self._path)
        self._peak_w = max(power_w, _decayed(self._peak_w, self._fall, elapsed_s))
        self._trough_w = min(power_w, _decayed(self._trough_w, -self._rise, elapsed_s))
        self._contingency_peak_w = max(power_w, _decayed(self._contingency_peak_w, self._contingency_fall, elapsed_s))
        self._contingency_trough_w = min(
            power_w, _decayed(self._contingency_trough_w, -self._contingency_rise, elapsed_s)
        )
        if waiver_ends:
            self._forget()
        self._path.trim(self._keep_s)

    def reanchor(self, t_s: float, power_w: float) -> None:
        """Metered power parted from the target: the path jumps to what the meter says. Holding stays admissible."""
        self.push(max(t_s, self._path.now_s), power_w)

    def bounds(self, t_s: float) -> Interval:
        """Where the next point may be if it comes at `t_s`; every instant until then is covered as well."""
        now_s, now_w = self._path.now_s, self._path.now_w
        elapsed_s = max(0.0, t_s - now_s)
        low_w, high_w = -math.inf, math.inf
        is_waived = now_s < self._waived_until_s
        if not is_waived:
            unknown_s = now_s - self._known_since_s
            for row in self._windows:
                low_w = max(low_w, row.top_w - row.down_w)
                high_w = min(high_w, row.bottom_w + row.up_w)
                if unknown_s < row.window_s:  # the unknown past is the present mean: no burst on top of it
                    low_w = max(low_w, now_w - row.down_w / row.window_s * elapsed_s)
                    high_w = min(high_w, now_w + row.up_w / row.window_s * elapsed_s)
            for rate in self._rates:
                low_w, high_w = max(low_w, rate.low_w), min(high_w, rate.high_w)
                if unknown_s < rate.horizon_s:
                    low_w = max(low_w, now_w - rate.slope_w_per_s * elapsed_s)
                    high_w = min(high_w, now_w + rate.slope_w_per_s * elapsed_s)
        if not (is_waived and self._waives_bands) and self._band_slope < math.inf:
            low_w = max(low_w, now_w - self._band_slope * elapsed_s)
            high_w = min(high_w, now_w + self._band_slope * elapsed_s)
        low_w, high_w = min(low_w, now_w), max(high_w, now_w)  # a tightened row asks for no move back
        return self._within_due(low_w, high_w, t_s)

    def project(self, times_s: Sequence[float]) -> tuple[FloatArray, FloatArray]:
        """What the path so far leaves of the interval at future instants, the earliest first.

        Moves between them bind one another too.

        Returns low and high, shape (len(times_s),), infinite where the past no longer binds.
        """
        times = np.asarray(times_s, dtype=np.float64)
        now_w = self._path.now_w
        low, high = np.full(times.shape, -math.inf), np.full(times.shape, math.inf)
        if not self._path.now_s < self._waived_until_s:
            for row in self._windows:
                row_low, row_high = row.project(times, margin_s=self._tick_s)
                low, high = np.maximum(low, row_low), np.minimum(high, row_high)
            for rate in self._rates:
                row_low, row_high = rate.project(times, now_s=self._path.now_s)
                low, high = np.maximum(low, row_low), np.minimum(high, row_high)
        reach_w = self._band_slope * np.maximum(times - self._path.now_s, 1e-9)
        low = np.minimum(np.maximum(low, now_w - reach_w), now_w)
        high = np.maximum(np.minimum(high, now_w + reach_w), now_w)
        if not self._ceilings and not self._floors:
            return low, high
        for index, t_s in enumerate(times):
            due = self._within_due(float(low[index]), float(high[index]), float(t_s))
            low[index], high[index] = due.low_w, due.high_w
        return low, high

    # ----------------------------------------------------------------------------------------------- the contract

    def set_limits(self, limits: Iterable[Limit], t_s: float) -> None:
        """Put `limits` in force from now on, judged against the whole remembered path.

        What the path already did beyond a tightened row is not undone: that direction holds until its window is past.
        """
        del t_s  # the path's own last point is the instant of the change
        kept_s = self._keep_s
        self._limits = tuple(limits)
        kept = {row.window_s: row for row in self._windows}
        windows = {float(limit.window_s) for limit in self._limits if _is_plain_window(limit)}
        self._windows = [kept.get(window) or WindowRow(window, self._path) for window in sorted(windows)]
        self._refresh_allowances()
        if self._keep_s > kept_s:  # a longer window than any so far: what was let go is as unknown as the time before
            self._known_since_s = max(self._known_since_s, self._path.times_s[0])

    def set_shrink(self, residual_w: ResidualW, dip_w_by_row: Mapping[LimitId, float]) -> None:
        """Take the residual off every allowance and the contingency dip off the downward ones, from now on."""
        if residual_w != self._residual_w or dip_w_by_row != self._dip_w:
            self._residual_w = residual_w
            self._dip_w = dict(dip_w_by_row)
            self._refresh_allowances()

    def waive_ramps(self, until_s: float, *, with_bands: bool) -> None:
        """The issuer waived ramp, swing and rate rows until then; afterwards they judge what happens from that end on.

        `with_bands` also lifts the slope bound of band and oscillation rows, which a jump would break.
        """
        self._waived_until_s = until_s
        self._waives_bands = with_bands

    # --------------------------------------------------------------------------------------------- what it implies

    @property
    def slope_down_w_per_s(self) -> float:
        """R_n: the fall that can go on for ever, with residual and dip taken off; inf when no row binds."""
        return self._fall

    @property
    def slope_up_w_per_s(self) -> float:
        return self._rise

    @property
    def band_slope_w_per_s(self) -> float:
        """What filtered and spectral rows let the path's slope be; inf when there is none."""
        return self._band_slope

    @property
    def contingency_slope_w_per_s(self) -> float:
        """R_c: the fall that can go on for ever during a contingency, with the residual alone taken off."""
        return self._contingency_fall

    @property
    def contingency_rise_w_per_s(self) -> float:
        return self._contingency_rise

    @property
    def contingency_excess_w(self) -> float:
        """How far the path stands above a line of slope R_c ending at the present: a spent window to be waited out."""
        return self._contingency_peak_w - self._path.now_w

    @property
    def contingency_excess_up_w(self) -> float:
        return self._path.now_w - self._contingency_trough_w

    def spent_down_w(self) -> dict[LimitId, float]:
        """Per plain row: the path's maximum over the window less its present value."""
        return self._spent(Direction.DOWN)

    def spent_up_w(self) -> dict[LimitId, float]:
        """The same upwards, from the minimum."""
        return self._spent(Direction.UP)

    def _spent(self, direction: Direction) -> dict[LimitId, float]:
        now_w, is_down = self._path.now_w, direction is Direction.DOWN
        spent = {limit_id: row.top_w - now_w if is_down else now_w - row.bottom_w for limit_id, row in self._row_of}
        for rate in self._rates:
            used_w = rate.limit.above_w - (now_w - rate.low_w if is_down else rate.high_w - now_w)
            spent[rate.limit.id] = max(0.0, used_w)
        return spent

    def due_status(self) -> tuple[DueStatus, ...]:
        """For every ceiling and floor not over: when it is met at the latest, and whether that is too late."""
        found = []
        for ceiling, max_w in self._ceilings:
            if ceiling.until_s > self._path.now_s:
                found.append(self._due(ceiling.id, ceiling.from_s, self._peak_w - max_w, self._fall))
        for floor, min_w in self._floors:
            if floor.until_s > self._path.now_s:
                found.append(self._due(floor.id, floor.from_s, min_w - self._trough_w, self._rise))
        return tuple(found)

    # ------------------------------------------------------------------------------------------------------ private

    def _within_due(self, low_w: float, high_w: float, t_s: float) -> Interval:
        """Lower `high` to the ceilings' lines, never below `low`; then raise `low` to the floors' (a ceiling wins)."""
        for ceiling, max_w in self._ceilings:
            if t_s < ceiling.until_s:
                line_w = max_w + _travel(self._fall, ceiling.from_s - t_s)
                high_w = max(low_w, min(high_w, line_w))
        for floor, min_w in self._floors:
            if t_s < floor.until_s:
                line_w = min_w - _travel(self._rise, floor.from_s - t_s)
                low_w = min(high_w, max(low_w, line_w))
        return Interval(low_w, high_w)

    def _due(self, limit_id: LimitId, from_s: float, excess_w: float, slope: float) -> DueStatus:
        now_s = self._path.now_s
        due_s = max(from_s, now_s)
        if excess_w <= 0.0:
            return DueStatus(limit_id, from_s, due_s, is_bounded=False)
        met_at_s = now_s + (excess_w / slope if slope > 0.0 else math.inf)
        is_bounded = met_at_s > due_s + self._tick_s
        return DueStatus(limit_id, from_s, met_at_s if is_bounded else due_s, is_bounded)

    def _residual_of(self, limit_id: LimitId) -> float:
        if isinstance(self._residual_w, Mapping):
            return max(0.0, self._residual_w.get(limit_id, 0.0))
        return max(0.0, self._residual_w)

    def _allowance(self, limit_id: LimitId, max_w: float, *, dip_w: float, kept_frac: float = KEPT_FRAC) -> float:
        """What is left of `max_w` after residual, dip and rounding."""
        residual_w = self._residual_of(limit_id)
        left_w = max_w * (1.0 - ROUNDING_FRAC) - residual_w - max(0.0, dip_w)
        beyond_w = min(max(residual_w - max_w, 0.0), max_w)
        kept_w = kept_frac * max_w + max(KEPT_FRAC_HOPELESS - kept_frac, 0.0) * beyond_w
        if left_w < kept_w:
            self.is_overspent = True
            return kept_w
        return left_w

    def _refresh_allowances(self) -> None:
        self.is_overspent = False
        self._refresh_windows()
        self._refresh_rates()
        self._band_slope = min((self._slope_of(limit) for limit in self._limits), default=math.inf)
        self._ceilings = [
            (limit, limit.max_w - self._residual_of(limit.id))
            for limit in self._limits
            if isinstance(limit, CeilingLimit)
        ]
        self._floors = [
            (limit, limit.min_w + self._residual_of(limit.id))
            for limit in self._limits
            if isinstance(limit, FloorLimit)
        ]
        windows, tick_s, band = self._windows, self._tick_s, self._band_slope
        rate_slopes = [rate.sustained_w_per_s(tick_s) for rate in self._rates]
        plain = min([band, *rate_slopes])
        self._fall = min([plain, *(row.down_w / (row.window_s + tick_s) for row in windows)])
        self._rise = min([plain, *(row.up_w / (row.window_s + tick_s) for row in windows)])
        self._contingency_fall = min([plain, *(row.contingency_down_w / (row.window_s + tick_s) for row in windows)])
        self._contingency_rise = self._rise
        self._retake_envelopes()
        longest_s = max([*(row.window_s for row in windows), *(rate.horizon_s for rate in self._rates)], default=0.0)
        self._keep_s = max(self._remember_s, longest_s)

    def _retake_envelopes(self) -> None:
        """Slopes changed: the path's envelopes under the new ones, over the longest window."""
        if self._windows:
            longest, now_s = self._windows[-1], self._path.now_s
            self._peak_w = longest.peak_w(now_s, self._fall)
            self._trough_w = longest.trough_w(now_s, self._rise)
            self._contingency_peak_w = longest.peak_w(now_s, self._contingency_fall)
            self._contingency_trough_w = self._trough_w  # the rise is the same

    def _refresh_windows(self) -> None:
        for row in self._windows:
            row.up_w = row.down_w = row.contingency_down_w = math.inf
        by_window = {row.window_s: row for row in self._windows}
        self._row_of = []
        for limit in self._limits:
            if not _is_plain_window(limit):
                continue
            row = by_window[float(limit.window_s)]
            self._row_of.append((limit.id, row))
            direction = limit.direction if isinstance(limit, RampLimit) else Direction.BOTH
            free_w = self._allowance(limit.id, limit.max_w, dip_w=0.0)
            if direction is not Direction.DOWN:
                row.up_w = min(row.up_w, free_w)
            if direction is not Direction.UP:
                dip_w = self._dip_w.get(limit.id, 0.0)
                row.down_w = min(row.down_w, self._allowance(limit.id, limit.max_w, dip_w=dip_w))
                row.contingency_down_w = min(row.contingency_down_w, free_w)

    def _refresh_rates(self) -> None:
        kept = {(rate.limit.above_w, rate.limit.max_w_per_s, rate.limit.horizon_s): rate for rate in self._rates}
        self._rates = []
        for limit in self._limits:
            if isinstance(limit, RateLimit):
                if not limit.above_w:  # a mean over `mean_s` cannot tell a change within it from the slope it makes
                    limit = replace(limit, above_w=limit.max_w_per_s * max(limit.mean_s, self._tick_s))
                key = (limit.above_w, limit.max_w_per_s, limit.horizon_s)
                rate = kept.get(key) or RateRow(limit, self._path)
                free_w = self._allowance(limit.id, limit.above_w, dip_w=0.0)
                dip_w = self._dip_w.get(limit.id, 0.0)
                rate.shrink_up_w = limit.above_w - free_w
                rate.shrink_down_w = limit.above_w - self._allowance(limit.id, limit.above_w, dip_w=dip_w)
                self._rates.append(rate)

    def _slope_of(self, limit: Limit) -> float:
        """The slope that a filtered or spectral row allows; inf for the others."""
        if isinstance(limit, BandLimit):
            seconds = band_seconds(*limit.band_hz)
        elif isinstance(limit, SwingLimit) and limit.band_hz is not None:
            seconds = swing_seconds(*limit.band_hz, limit.window_s)
        elif isinstance(limit, OscillationLimit):
            seconds = line_seconds(*limit.band_hz, limit.span_s)
        else:
            return math.inf
        return self._allowance(limit.id, limit.max_w, dip_w=0.0, kept_frac=KEPT_FRAC_FILTERED) / seconds

    def _forget(self) -> None:
        """The waiver is over: rows judge from here on, and holding is all that the past asks for."""
        self._path.restart()
        self._windows = [WindowRow(row.window_s, self._path) for row in self._windows]
        self._rates = []
        self._peak_w = self._trough_w = self._contingency_peak_w = self._contingency_trough_w = self._path.now_w
        self._refresh_allowances()


def _decayed(level_w: float, slope_w_per_s: float, elapsed_s: float) -> float:
    return level_w - slope_w_per_s * elapsed_s if elapsed_s > 0.0 else level_w


def _travel(slope_w_per_s: float, time_s: float) -> float:
    """How far a line of this slope goes in the time left; nothing once the time is past."""
    return slope_w_per_s * time_s if time_s > 0.0 else 0.0


def _is_plain_window(limit: Limit) -> TypeGuard[RampLimit | SwingLimit]:
    return isinstance(limit, RampLimit) or (isinstance(limit, SwingLimit) and limit.band_hz is None)
