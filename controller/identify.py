"""Learns, while caps vary, how the power of each class follows the clock; starts from the prior of its GPU model.

Per group (a class on one GPU model) a Kalman filter fits D = A (prior(f) + c . psi(f)): D dynamic power, f the locked
clock as a share of the top, A the activity of the jobs, psi = (1, f, f^2) (1 - f), so that full clock is always full
power. What jobs do changes A, so noise of the process lies along A; the curve's c moves only with what a change of
clock shows. Where clocks never varied the prior stands, and its doubt with it. Doubt widens `upper`, the curve that
caps are made from. It also says where caps do nothing, what the jobs draw idle and at most, and how they iterate.

Pure and per group: per-GPU arrays are summed once, whatever the size of the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from controller.fleet import Fleet, FleetReadings
from controller.forecast import Line
from controller.gpu_model import UNKNOWN, GpuCurve, curve_for
from controller.types import BoolArray, ClassId, FloatArray, IntArray, frozen

SAMPLE_S = 0.2  # node telemetry comes at 5 Hz
STILL_SAMPLES = 7  # 1.4 s: NVML's power is a mean of up to 1 s and reaches us a report later
STILL_FRAC = 0.02  # of the top clock: moves below it are within the noise of a block
SPREAD_FRAC = 0.05  # GPUs of a group at clocks further apart than this say nothing together
BLOCK_SAMPLES = 20  # 4 s, longer than two of the usual iterations
BLOCK_SAMPLES_MAX = 60
IDLE_SHARE = 0.05  # of the range above idle: a group that draws less is not at work
LIMITED_SHARE = 0.97  # of its power limit: what a GPU draws there its clock does not set

PRIOR_STD = 0.3  # of each coefficient: 10 % of dynamic power at three quarters of the clock, as cards measured differ
RANGE_STD = 0.01  # of the measured power: gain error of NVML differs between GPUs, their sum less
ACTIVITY_STD = 0.02  # of A per square root of a second, at first; then as seen while clocks stand still
ACTIVITY_STD_MIN, ACTIVITY_STD_MAX = 0.002, 0.2
ACTIVITY_MEMORY = 0.1  # share of a new block in what is seen
SHAPE_STD_PER_S = 1e-4  # a job's kernels change over hours
GATE = 3.0  # standard deviations: beyond it jobs changed, not the curve
MOVE_STD = 0.04  # of A: clocks move when load does, so that a move of the clock is the worst time to judge it
MOVE_SHARE_MAX = 0.12  # of full dynamic power, by one move
RESTART_STD = 0.1  # of an activity seen in one block
MOVE_MEMORY = 0.2  # where load is seen to jump with the clock, moves teach less
JUMPS_AGREEING = 5  # by chance once in sixteen
JUMP_LOG = 0.6  # a factor of 1.8: no two cards measured differ so much at the same clock above three quarters
MARGIN_STD = 0.2  # by how many standard deviations doubt widens the curve caps are made from
COEFFICIENT_MAX = 1.5
DEAF_SHARE = 1.0 / 3.0  # caps that cut less than this share of what the prior says do nothing worth having
DEAF_STD = 2.0
DEAF_CLOCK = 0.92  # a clock that never went below this has not shown what caps do

GRID = 129
FRACTIONS: FloatArray = np.linspace(0.0, 1.0, GRID)
PSI: FloatArray = np.stack([(1.0 - FRACTIONS) * FRACTIONS**i for i in range(3)], axis=1)
FRACTIONS.setflags(write=False)
PSI.setflags(write=False)
TERMS = 4  # A and the coefficients


@dataclass(frozen=True, eq=False)
class LearnedCurve:
    """A curve as learnt; reads like a `GpuCurve`. `share` is on FRACTIONS, non-decreasing, 1 at full clock."""

    name: str
    share: FloatArray
    prior: GpuCurve

    def power_share(self, clock_frac: FloatArray | float) -> FloatArray:
        """Dynamic power relative to full clock."""
        found: FloatArray = np.asarray(np.interp(clock_frac, FRACTIONS, self.share), dtype=np.float64)
        return found

    def clock_for(self, share: FloatArray | float) -> FloatArray:
        """The highest clock fraction whose dynamic power is at most `share` of full; 0 where none is."""
        rising = self.share + 1e-9 * FRACTIONS  # a flat stretch has one clock: its lowest
        found: FloatArray = np.asarray(np.interp(share, rising, FRACTIONS), dtype=np.float64)
        return found

    def work_share(self, clock_frac: FloatArray | float) -> FloatArray:
        """Work per second relative to full clock: the prior's, for no counter of ours measures work."""
        return self.prior.work_share(clock_frac)


@frozen
class Rhythm:
    """How a group iterates, from the site's line: `share` of the site's swing is this group's."""

    period_s: float
    duty_frac: float  # of a period above its middle
    phase_rad: float
    amplitude_w: float
    confidence: float


@frozen
class Identified:
    """What is known of one class on one GPU model; powers per GPU."""

    class_id: ClassId
    model: str
    gpus: float
    idle_w: float  # the least mean seen, or as the driver's side declares it
    peak_w: float  # at full clock at the top of the ripple, as of late
    clock_frac_min: float  # the lowest at which something was learnt
    share_at_min: float  # dynamic power there, relative to full clock
    std_at_min: float
    confidence: float  # 0: the prior; 1: measured without doubt
    blocks: int
    are_caps_deaf: bool
    rhythm: Rhythm | None


@dataclass(slots=True)
class _Group:
    """What is kept of one group whatever becomes of the fleet."""

    prior: GpuCurve
    theta: FloatArray  # (4,): A as a share of the group's range, and the coefficients
    covariance: FloatArray  # (4, 4)
    activity_var_per_s: float = ACTIVITY_STD**2
    move_var: float = MOVE_STD**2
    sides: list[bool] = field(default_factory=list)  # of jumps that came with a move of the clock
    still: list[float] = field(default_factory=list)
    samples: list[tuple[float, float, float]] = field(default_factory=list)  # time, power share, clock
    learnt_s: float | None = None
    last_clock: float = 1.0
    clock_min: float = 1.0
    top: float = 0.0
    bottom: float = 1.0
    blocks: int = 0
    gpus: float = 0.0
    range_w: float = 0.0
    idle_w: float = 0.0
    best: LearnedCurve | None = None
    upper: LearnedCurve | None = None
    std: FloatArray = field(default_factory=lambda: np.zeros(GRID))
    rhythm: Rhythm | None = None


class Identifier:
    """Takes readings, keeps the curves. `curves` are the priors by name."""

    def __init__(self, curves: Mapping[str, GpuCurve]) -> None:
        self._curves = curves
        self._groups: dict[tuple[ClassId, str], _Group] = {}
        self._fleet: Fleet | None = None
        self._keys: tuple[tuple[ClassId, str], ...] = ()
        self._index: IntArray = np.empty(0, dtype=np.int64)
        self._static: FloatArray = np.empty((3, 0))
        empty: FloatArray = np.empty(0)
        self._scales = (empty, empty, empty, empty)  # per GPU: 1/range, idle/range, 1/top clock, peak
        self._sampled_s = -np.inf
        self._version = 0

    @property
    def version(self) -> int:
        """Grows whenever a curve changed."""
        return self._version

    def curves(self, fleet: Fleet) -> tuple[tuple[LearnedCurve, ...], tuple[LearnedCurve, ...], IntArray]:
        """The most likely curve of each group, the cautious one, and each GPU's group (n,)."""
        self._follow(fleet)
        groups = [self._groups[key] for key in self._keys]
        if not groups:
            nothing = _new(UNKNOWN)
            _publish(nothing)
            groups = [nothing]  # before any node reported
        best = tuple(g.best for g in groups if g.best is not None)
        upper = tuple(g.upper for g in groups if g.upper is not None)
        return best, upper, self._index

    def saw(self, now_s: float, fleet: Fleet, readings: FleetReadings, *, line: Line | None = None) -> None:
        """Readings as they are; more than one call per SAMPLE_S costs nothing."""
        if now_s - self._sampled_s < SAMPLE_S - 1e-6 or fleet.count == 0:
            return
        self._sampled_s = now_s
        self._follow(fleet)
        sums = self._sums(fleet, readings)
        for k, key in enumerate(self._keys):
            group = self._groups[key]
            weight, drawn_w, clock, square = sums[k]
            if weight < 0.5 * self._static[2, k] or weight <= 0.0:
                continue
            clock /= weight
            is_one_clock = square / weight - clock**2 < SPREAD_FRAC**2
            self._sample(group, now_s, drawn_w / weight, clock if is_one_clock else float("nan"), line)

    def _follow(self, fleet: Fleet) -> None:
        """Know the groups of this fleet; a group seen before goes on where it was."""
        if fleet is self._fleet:
            return
        self._fleet = fleet
        names = [curve_for(model, self._curves) for model in dict.fromkeys(fleet.models)]
        prior_of = dict(zip(dict.fromkeys(fleet.models), names, strict=True))
        by_name = {curve.name: curve for curve in names}
        order = {name: m for m, name in enumerate(by_name)}
        model_index = np.array([order[prior_of[model].name] for model in fleet.models], dtype=np.int64)
        used, index = np.unique(fleet.class_index * max(len(order), 1) + model_index, return_inverse=True)
        found = [(fleet.class_ids[int(u) // len(order)], list(by_name)[int(u) % len(order)]) for u in used]
        self._keys, self._index = tuple(found), index.astype(np.int64)
        table, count = fleet.table, len(found)
        self._static = np.stack(
            [
                np.bincount(self._index, weights=x * table.stands_for, minlength=count)
                for x in (table.idle_w, np.maximum(table.peak_w - table.idle_w, 1.0), np.ones(fleet.count))
            ]
        )
        per_w = 1.0 / np.maximum(table.peak_w - table.idle_w, 1.0)
        self._scales = (per_w, table.idle_w * per_w, 1.0 / table.cap_max[0], table.peak_w)
        for k, key in enumerate(found):
            group = self._groups.setdefault(key, _new(by_name[key[1]]))
            idle_w, range_w, gpus = (float(x) for x in self._static[:, k])
            group.gpus, group.idle_w, group.range_w = gpus, idle_w / gpus, range_w / gpus
            if group.best is None:
                _publish(group)
        self._version += 1

    def _sums(self, fleet: Fleet, readings: FleetReadings) -> list[tuple[float, ...]]:
        """Weight, power above idle as a share of the range, clock and its square: of each group their sums."""
        table, caps = fleet.table, readings.acks.caps
        per_w, idle_share, per_mhz, limit_w = self._scales
        says = readings.is_read & ~at_limit(readings, peak_w=limit_w)
        weight = table.stands_for * says
        clock = np.minimum(caps[0] * per_mhz, 1.0)
        share = readings.power_w * per_w
        share -= idle_share
        count, weighted = len(self._keys), weight * clock
        terms = (weight, weight * share, weighted, weighted * clock)
        if count == 1:
            return [tuple(float(x.sum()) for x in terms)]
        sums = [np.bincount(self._index, weights=x, minlength=count).tolist() for x in terms]
        return list(zip(*sums, strict=True))

    def _sample(self, group: _Group, now_s: float, share: float, clock: float, line: Line | None) -> None:
        group.still.append(clock)
        del group.still[:-STILL_SAMPLES]
        if not max(group.still) - min(group.still) <= STILL_FRAC:  # NaN is not still either
            group.samples.clear()  # a block has one clock, or what jobs did meanwhile would pass for the curve
            return
        group.samples.append((now_s, share, clock))
        if len(group.samples) >= _block_length(line):
            block = np.array(group.samples)
            group.samples.clear()
            if _learn(group, block):
                _publish(group)
                self._version += 1
            group.rhythm = _rhythm(block, line, range_w=group.range_w * group.gpus)

    def identified(self) -> tuple[Identified, ...]:
        """What is known, in the order of the groups."""
        return tuple(_identified(key, self._groups[key]) for key in self._keys)


def at_limit(readings: FleetReadings, *, peak_w: FloatArray) -> BoolArray:
    """Which GPUs, (n,), a power limit below their own `peak_w` may hold, and not their clock; NaN counts as held."""
    limit_w = readings.acks.caps[1]
    found: BoolArray = ~((readings.power_w < LIMITED_SHARE * limit_w) | (limit_w >= peak_w))
    return found


def _new(prior: GpuCurve) -> _Group:
    return _Group(prior=prior, theta=np.zeros(TERMS), covariance=np.eye(TERMS) * PRIOR_STD**2)


def _block_length(line: Line | None) -> int:
    """Samples of a block: whole iterations where there is a line, so that their phase does not matter."""
    if line is None:
        return BLOCK_SAMPLES
    periods = np.ceil(BLOCK_SAMPLES * SAMPLE_S / line.period_s)
    return int(min(max(round(periods * line.period_s / SAMPLE_S), BLOCK_SAMPLES), BLOCK_SAMPLES_MAX))


# ------------------------------------------------------------------------------------------------ the filter


def _learn(group: _Group, block: FloatArray) -> bool:
    """One block (n, 3) of time, power share and clock into the filter; True when the curve may have changed."""
    if not bool(np.isfinite(block).all()):
        return False  # a reading that is not a number teaches nothing
    t_s, shares, clocks = block[:, 0], block[:, 1], block[:, 2]
    mean, clock, at_s = float(shares.mean()), float(clocks.mean()), float(t_s[-1])
    group.bottom = min(group.bottom, mean)
    if mean < IDLE_SHARE:
        group.learnt_s = None  # what runs next is another activity
        return False
    noise_var = (RANGE_STD * mean) ** 2 + (2.0 * float(shares.std()) / len(shares)) ** 2
    is_first = group.learnt_s is None
    if is_first:
        _restart(group, mean / max(_share_at(group, clock), 0.05))
    elapsed_s = 0.0 if group.learnt_s is None else at_s - group.learnt_s
    has_moved = not is_first and abs(clock - group.last_clock) > STILL_FRAC / 2.0
    theta, before = group.theta, group.covariance.copy()
    activity = float(theta[0])
    before[0, 0] += (group.activity_var_per_s * elapsed_s + (group.move_var if has_moved else 0.0)) * activity**2
    before[1:, 1:] += np.eye(TERMS - 1) * SHAPE_STD_PER_S**2 * elapsed_s
    slope = _slope(group, clock)
    predicted = max(activity * float(slope[0]), 1e-6)
    off = mean - predicted
    var = float(slope @ before @ slope) + noise_var
    has_jumped = off * off > GATE**2 * var or abs(np.log(mean / predicted)) > JUMP_LOG
    if has_jumped and has_moved:
        has_jumped = not _agrees(group, upwards=clock > group.last_clock, above=off > 0.0)
    if has_moved:
        seen = min((off / max(mean, 1e-6)) ** 2, 1.0) if has_jumped else MOVE_STD**2
        group.move_var += MOVE_MEMORY * (seen - group.move_var)
    elif not is_first:
        _watch_activity(group, (off / max(mean, 1e-6)) ** 2, elapsed_s, noise_var / mean**2)
    if has_jumped:  # jobs began, ended or changed: all of it is activity
        _restart(group, mean / max(_share_at(group, clock), 0.05))
    else:
        gain = before @ slope / var
        # Only a move of the clock says anything about the curve, and no single one may say much.
        moved_share = abs(float(gain[1:] @ slope[1:]) * off) / activity
        gain[1:] *= min(1.0, MOVE_SHARE_MAX / max(moved_share, 1e-9)) if has_moved else 0.0
        rest = np.eye(TERMS) - np.outer(gain, slope)
        group.theta = theta + gain * off
        group.covariance = _symmetric(rest @ before @ rest.T + noise_var * np.outer(gain, gain))  # right for any gain
    if not bool(np.isfinite(group.theta).all() and np.isfinite(group.covariance).all()):
        fresh = _new(group.prior)  # what was learnt is lost; what is known of the model stays
        group.theta, group.covariance, group.learnt_s = fresh.theta, fresh.covariance, None
        return True
    _bound(group)
    if abs(clock - group.last_clock) > STILL_FRAC or clock < group.clock_min:
        group.clock_min = min(group.clock_min, clock)
    group.learnt_s, group.last_clock, group.blocks = at_s, clock, group.blocks + 1
    top = float(np.percentile(shares, 97.0)) / max(_share_at(group, clock), 0.05)
    group.top = max(top, group.top + 0.02 * (top - group.top))
    return True


def _agrees(group: _Group, *, upwards: bool, above: bool) -> bool:
    """Whether the last few jumps all parted from the curve to one side: then the curve is wrong, not the jobs."""
    group.sides.append(upwards == above)
    del group.sides[:-JUMPS_AGREEING]
    return len(group.sides) == JUMPS_AGREEING and len(set(group.sides)) == 1


def _slope(group: _Group, clock: float) -> FloatArray:
    """How the predicted power moves with A and each coefficient (4,)."""
    rest = 1.0 - clock
    psi = np.array([rest, rest * clock, rest * clock * clock])
    share = float(group.prior.power_share(clock)) + float(psi @ group.theta[1:])
    return np.concatenate(([share], group.theta[0] * psi))


def _restart(group: _Group, activity: float) -> None:
    """Another activity, of a size just measured; the curve and its doubt are kept."""
    group.theta = np.concatenate(([activity], group.theta[1:]))
    covariance = np.zeros((TERMS, TERMS))
    covariance[1:, 1:] = group.covariance[1:, 1:]
    covariance[0, 0] = (RESTART_STD * activity) ** 2
    group.covariance = covariance


def _watch_activity(group: _Group, square: float, elapsed_s: float, noise: float) -> None:
    """How much jobs change by themselves, from blocks between which the clock stood still."""
    seen = min(max((square - noise) / max(elapsed_s, 1.0), ACTIVITY_STD_MIN**2), ACTIVITY_STD_MAX**2)
    group.activity_var_per_s += ACTIVITY_MEMORY * (seen - group.activity_var_per_s)


def _bound(group: _Group) -> None:
    """Keep what is physical: a positive activity, coefficients that no measured card comes near."""
    group.theta[0] = max(float(group.theta[0]), 1e-3)
    group.theta[1:] = np.clip(group.theta[1:], -COEFFICIENT_MAX, COEFFICIENT_MAX)


def _symmetric(matrix: FloatArray) -> FloatArray:
    half: FloatArray = 0.5 * (matrix + matrix.T)
    return half


# ------------------------------------------------------------------------------------------------ what is published


def _publish(group: _Group) -> None:
    """Curves on the grid: the most likely and the cautious one."""
    coefficients, doubt = group.theta[1:], group.covariance[1:, 1:]
    share = group.prior.power_share(FRACTIONS) + PSI @ coefficients
    group.std = np.sqrt(np.maximum(np.einsum("fi,ij,fj->f", PSI, doubt, PSI), 0.0))
    group.best = LearnedCurve(group.prior.name, _physical(share), group.prior)
    group.upper = LearnedCurve(group.prior.name, _physical(share + MARGIN_STD * group.std), group.prior)


def _physical(share: FloatArray) -> FloatArray:
    """Power falls with the clock, and never below nothing."""
    found: FloatArray = np.minimum.accumulate(np.clip(share, 0.0, 1.0)[::-1])[::-1]
    return found


def _share_at(group: _Group, clock: float) -> float:
    assert group.best is not None
    return float(group.best.power_share(clock))


def _identified(key: tuple[ClassId, str], group: _Group) -> Identified:
    clock = group.clock_min
    share, std = _share_at(group, clock), float(np.interp(clock, FRACTIONS, group.std))
    prior = float(group.prior.power_share(clock))
    doubt_before = PRIOR_STD * float(np.sqrt(sum(((1.0 - clock) * clock**i) ** 2 for i in range(TERMS - 1))))
    has_seen_caps = clock < DEAF_CLOCK
    is_deaf = has_seen_caps and (1.0 - share) + DEAF_STD * std < DEAF_SHARE * (1.0 - prior)
    lowest = group.bottom if group.bottom < IDLE_SHARE else 0.0
    return Identified(
        class_id=key[0],
        model=key[1],
        gpus=group.gpus,
        idle_w=group.idle_w + lowest * group.range_w,
        peak_w=group.idle_w + group.top * group.range_w,
        clock_frac_min=clock,
        share_at_min=share,
        std_at_min=std,
        confidence=max(0.0, 1.0 - std / doubt_before) if has_seen_caps else 0.0,
        blocks=group.blocks,
        are_caps_deaf=bool(is_deaf),
        rhythm=group.rhythm,
    )


def _rhythm(block: FloatArray, line: Line | None, *, range_w: float) -> Rhythm | None:
    """The group's own part of the site's line: its swing at that frequency, and for how much of a period it is high."""
    if line is None:
        return None
    t_s, power_w = block[:, 0], (block[:, 1] - block[:, 1].mean()) * range_w
    turn = np.exp(-2j * np.pi * line.frequency_hz * t_s)
    wave = 2.0 * complex((power_w * turn).mean())
    middle = 0.5 * (np.percentile(power_w, 95.0) + np.percentile(power_w, 5.0))
    is_high: BoolArray = power_w > middle
    return Rhythm(
        period_s=line.period_s,
        duty_frac=float(is_high.mean()),
        phase_rad=float(np.angle(wave)),
        amplitude_w=abs(wave),
        confidence=line.confidence,
    )
