"""What jobs would draw if nothing held them back, as a function of the work they have done.

Every workload is a piecewise-linear curve over its *work time*: seconds of progress at full clocks. A slowed job walks
that curve more slowly, so its work is stretched, never erased. Inference alone follows the wall clock: requests that
come while its GPUs are slow are lost. Curves are drawn once from a seed, so that a run is repeatable.
"""

from __future__ import annotations

from dataclasses import field

import numpy as np

from controller.types import FloatArray, frozen

DIURNAL_PEAK_S = 15 * 3600.0  # request rate peaks in mid-afternoon, is lowest twelve hours later
NOISE_CORRELATION_S = 30.0  # how long a burst of requests lasts


@frozen
class Curve:
    """A piecewise-linear curve; constant before its first and after its last knot."""

    t_s: FloatArray
    value: FloatArray

    def __post_init__(self) -> None:
        assert self.t_s.shape == self.value.shape and self.t_s.size > 0
        assert bool(np.all(np.diff(self.t_s) >= 0.0)), "knots must not run backwards"

    def at(self, t_s: FloatArray) -> FloatArray:
        return np.interp(t_s, self.t_s, self.value)

    @property
    def end_s(self) -> float:
        return float(self.t_s[-1])


@frozen
class Workload:
    """One job class: GPU demand and the power beside the GPUs that comes with it, both for the whole class.

    The other power (CPUs, fans, PSU losses) is `other_per_gpu_w` of the GPU demand and `other_w` beside it, as long as
    the job lives; it does not answer to clocks. `other_base_w` is drawn always.
    `clock_bound_frac` is the share of its time that waits for the SM clock, the rest waits for memory and network.
    `is_wall_timed` marks demand that comes when it comes (inference).
    """

    gpu: Curve
    other_per_gpu_w: float
    other_w: float
    other_base_w: float
    clock_bound_frac: float
    is_synchronous: bool
    is_wall_timed: bool = False
    ripple: Curve | None = None

    def demand_w(self, work_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """GPU power wanted at full clocks, and the job's other power, at each work time (wall time if wall-timed)."""
        gpu_w = self.gpu.at(work_s)
        other_w = gpu_w * self.other_per_gpu_w + self.other_w
        if self.ripple is not None:
            gpu_w = np.maximum(gpu_w + self.ripple.at(work_s), 0.0)
        return gpu_w, other_w

    @property
    def gpu_w_max(self) -> float:
        top = float(self.gpu.value.max())
        return top if self.ripple is None else top + float(self.ripple.value.max())


def trace_curve(t_s: FloatArray, power_w: FloatArray, *, edge_s: float | None) -> Curve:
    """A recorded power series as a curve that starts at 0 s.

    `edge_s` None joins the samples linearly: that assumes no content above half the sampling rate. A number holds each
    sample and moves to the next within that time, the hardest reading of the same record.
    """
    start_s = t_s - t_s[0]
    if edge_s is None or t_s.size < 2:
        return Curve(start_s, power_w.astype(np.float64))
    edges_s = np.minimum(edge_s, np.diff(start_s))
    knots_s = np.empty(2 * t_s.size - 1)
    values = np.empty_like(knots_s)
    knots_s[0], values[0] = start_s[0], power_w[0]
    knots_s[1::2], values[1::2] = start_s[1:], power_w[:-1]
    knots_s[2::2], values[2::2] = start_s[1:] + edges_s, power_w[1:]
    # A step's end may fall on the next step's start; keep the knots ordered whatever the rounding.
    return Curve(np.maximum.accumulate(knots_s), values)


def trace_workload(
    wall: Curve, *, non_gpu_frac: float, clock_bound_frac: float, ripple: Curve | None = None
) -> Workload:
    """Recorded wall power of which the declared share is not GPU and so does not answer to caps."""
    # All of it other: a GPU demand of almost nothing carries the curve.
    gpu_frac = max(1.0 - non_gpu_frac, 1e-9)
    return Workload(
        gpu=Curve(wall.t_s, wall.value * gpu_frac),
        other_per_gpu_w=non_gpu_frac / gpu_frac,
        other_w=0.0,
        other_base_w=0.0,
        clock_bound_frac=clock_bound_frac,
        is_synchronous=True,
        ripple=ripple,
    )


def ripple_curve(
    rng: np.random.Generator,
    *,
    amplitude_w: float,
    period_s: float,
    duty: float,
    jitter_frac: float,
    edge_s: float,
    until_s: float,
) -> Curve:
    """The swing of synchronous iterations with a mean of zero: `amplitude_w` peak to peak, high for `duty` of a period.

    Each period's length is drawn within +-`jitter_frac`.
    """
    lengths_s = _period_lengths(rng, period_s=period_s, jitter_frac=jitter_frac, until_s=until_s)
    starts_s = np.concatenate(([0.0], np.cumsum(lengths_s)[:-1]))
    high_w, low_w = amplitude_w * (1.0 - duty), -amplitude_w * duty
    return _square(starts_s, lengths_s, duty=duty, edge_s=edge_s, high_w=high_w, low_w=low_w)


@frozen
class TrainingShape:
    """A synchronous training job, per GPU where the unit is W."""

    iteration_s: float
    compute_frac: float
    compute_w: float
    exchange_w: float
    jitter_frac: float  # of an iteration's length
    noise_frac: float  # of an iteration's power
    edge_s: float
    checkpoint_every_s: float | None
    checkpoint_s: tuple[float, float]  # shortest and longest
    checkpoint_w: float
    warmup_s: float  # power rises from idle to full over it, in work time
    checkpoints_s: tuple[float, ...] = field(default=())  # at these times instead of at intervals


def training_workload(
    rng: np.random.Generator,
    *,
    gpus: int,
    shape: TrainingShape,
    idle_w: float,
    other_w: float,
    clock_bound_frac: float,
    until_s: float,
) -> Workload:
    """Iterations of compute near peak and exchange near idle, with checkpoints in between."""
    lengths_s = _period_lengths(rng, period_s=shape.iteration_s, jitter_frac=shape.jitter_frac, until_s=until_s)
    starts_s = np.concatenate(([0.0], np.cumsum(lengths_s)[:-1]))
    curve = _square(
        starts_s,
        lengths_s,
        duty=shape.compute_frac,
        edge_s=shape.edge_s,
        high_w=shape.compute_w,
        low_w=shape.exchange_w,
    )
    noise = 1.0 + shape.noise_frac * rng.standard_normal(starts_s.size)
    values = curve.value * np.repeat(noise, 4)
    values = _with_checkpoints(rng, curve.t_s, values, shape=shape, until_s=until_s)
    if shape.warmup_s > 0.0:
        share = np.clip(curve.t_s / shape.warmup_s, 0.0, 1.0)
        values = idle_w + (values - idle_w) * share
    values = np.maximum(values, idle_w)
    return Workload(
        gpu=Curve(curve.t_s, values * gpus),
        other_per_gpu_w=0.0,
        other_w=other_w,
        other_base_w=0.0,
        clock_bound_frac=clock_bound_frac,
        is_synchronous=True,
    )


def inference_workload(
    rng: np.random.Generator,
    *,
    gpus: int,
    busy_w: float,
    idle_w: float,
    low_frac: float,
    high_frac: float,
    noise_frac: float,
    start_hour: float,
    other_w: float,
    clock_bound_frac: float,
    until_s: float,
) -> Workload:
    """A request rate that follows the day between `low_frac` and `high_frac` of the GPUs, with correlated noise."""
    t_s = np.arange(0.0, until_s + 2.0, 1.0)
    day = 0.5 + 0.5 * np.cos(2.0 * np.pi * (start_hour * 3600.0 + t_s - DIURNAL_PEAK_S) / 86_400.0)
    share = np.clip(low_frac + (high_frac - low_frac) * day + noise_frac * _correlated(rng, t_s.size), 0.0, 1.0)
    return Workload(
        gpu=Curve(t_s, gpus * (idle_w + (busy_w - idle_w) * share)),
        other_per_gpu_w=0.0,
        other_w=0.0,
        other_base_w=other_w,
        clock_bound_frac=clock_bound_frac,
        is_synchronous=False,
        is_wall_timed=True,
    )


class Activity:
    """How much of a job is alive, 0 to 1, over wall time: starts, stops and crashes move it linearly."""

    def __init__(self, *, share: float) -> None:
        self._t0_s, self._t1_s = 0.0, 0.0
        self._from, self._to = share, share

    def move(self, *, t_s: float, share: float, within_s: float) -> None:
        """From `t_s` on go to `share` within `within_s`."""
        self._from = float(self.at(np.array([t_s]))[0])
        self._t0_s, self._t1_s, self._to = t_s, t_s + within_s, share

    def at(self, t_s: FloatArray) -> FloatArray:
        if self._t1_s <= self._t0_s:
            return np.where(t_s >= self._t0_s, self._to, self._from)
        done = np.clip((t_s - self._t0_s) / (self._t1_s - self._t0_s), 0.0, 1.0)
        return self._from + (self._to - self._from) * done

    def is_settled(self, t_s: float) -> bool:
        return t_s >= self._t1_s

    @property
    def share(self) -> float:
        return self._to


def _period_lengths(rng: np.random.Generator, *, period_s: float, jitter_frac: float, until_s: float) -> FloatArray:
    count = int(until_s / (period_s * max(1.0 - jitter_frac, 0.1))) + 2
    return period_s * (1.0 + jitter_frac * rng.uniform(-1.0, 1.0, count))


def _square(
    starts_s: FloatArray, lengths_s: FloatArray, *, duty: float, edge_s: float, high_w: float, low_w: float
) -> Curve:
    """Four knots per period: up, high, down, low."""
    edges_s = np.minimum(edge_s, 0.5 * min(duty, 1.0 - duty) * lengths_s)
    knots_s = np.column_stack(
        (starts_s, starts_s + edges_s, starts_s + duty * lengths_s, starts_s + duty * lengths_s + edges_s)
    )
    values = np.tile(np.array([low_w, high_w, high_w, low_w]), starts_s.size)
    return Curve(knots_s.ravel(), values)


def _with_checkpoints(
    rng: np.random.Generator, t_s: FloatArray, values: FloatArray, *, shape: TrainingShape, until_s: float
) -> FloatArray:
    """`values` with the power of a checkpoint wherever one is being written."""
    starts_s: list[float] = list(shape.checkpoints_s)
    if not starts_s and shape.checkpoint_every_s is not None:
        starts_s = list(np.arange(shape.checkpoint_every_s, until_s, shape.checkpoint_every_s))
    low_s, high_s = shape.checkpoint_s
    result = values.copy()
    for start_s in starts_s:
        end_s = start_s + float(rng.uniform(low_s, high_s))
        result[(t_s >= start_s) & (t_s < end_s)] = shape.checkpoint_w
    return result


def _correlated(rng: np.random.Generator, count: int) -> FloatArray:
    """First-order noise of unit variance with samples one second apart."""
    from scipy.signal import lfilter

    keep = float(np.exp(-1.0 / NOISE_CORRELATION_S))
    white = rng.standard_normal(count) * np.sqrt(1.0 - keep * keep)
    return np.asarray(lfilter([1.0], [1.0, -keep], white), dtype=np.float64)
