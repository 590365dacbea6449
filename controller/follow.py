"""Software following: which load the battery's set-point should answer, given a late meter and a slow battery.

Several ways of following run side by side on a model of the battery (delay, hold, first-order lag); the one that would
have left the least on the meter lately is used. So content that following would amplify is not followed, a line that
can be forecast is fed forward, and steady slopes are met without lag, each only while it is seen to help. Whatever
way is in use, load further from it than its usual ripple is answered at once: a drop never waits for a filter.
Pure; powers in watts.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum, unique

from controller.forecast import LineForecast
from controller.types import frozen

# Share of the dead time and lag that extrapolation makes up for. At 1.0 a sharp corner overshoots; at 0.8 the residual
# of a measured training trace falls from 1.11 to 0.26 MW of 90 on 1 s means, and nothing below 2 Hz gets worse.
LEAD_SHARE = 0.8
LEAD_S_MAX = 1.0  # no slope of a load that pulses lasts longer: beyond it the extrapolation would be a guess
SLOW_SHARE = 0.05  # corner of the slow way, in cycles per T_eff: it leaves everything above 0.2 / T_eff alone
NOTCH_QUALITY = 1.0
MEMORY_S = 8.0  # of each way's score
MEAN_S = 0.5  # plain rows judge means of about a second, so what stays on such a mean counts more
MEAN_WEIGHT = 4.0
DWELL_S = 2.0
BETTER = 0.8  # another way is taken when its score is below this share of the present one's
SNAP_GAIN = 1.5  # load further off than this many usual ripples is a step, not ripple
LEARN_GAIN = 1.3  # of the usual ripple per step seen: a sharp wave is known as ripple after ten edges, a drop is not
DOUBT_S = 1.5  # load further off than usual counts as ripple only after this long: it may be how a drop begins
MUTE_PERIODS = 4.0  # a step inside the forecast's window spoils it for this long


@unique
class Way(StrEnum):
    """How load is followed."""

    PLAIN = "plain"  # the newest load as it is
    LEAD = "lead"  # extrapolated along a slope that two samples agree on
    SLOW = "slow"  # low pass: ripple is left alone
    NOTCH = "notch"  # all but the line
    FORWARD = "forward"  # the line one period ahead, the rest as LEAD
    FORWARD_SLOW = "forward_slow"  # the line one period ahead, the rest as SLOW


@frozen
class FollowerSettings:
    """Times of the loop: age of the load sample when the command is made, the command's hold, the battery's lag."""

    tick_s: float
    delay_s: float
    lag_s: float

    @property
    def t_eff_s(self) -> float:
        return self.tick_s + self.delay_s + self.lag_s


class SoftwareFollower:
    """Chooses the load value that the battery's set-point answers on each tick."""

    def __init__(self, settings: FollowerSettings, *, forecast: LineForecast, ripple_w_min: float) -> None:
        """`ripple_w_min`: a deviation below this is never a step."""
        self._forecast = forecast
        self._ripple_w_min = ripple_w_min
        self._bench = _Bench(settings)
        self._slopes: dict[Way, tuple[float, float]] = {}
        self._ahead: tuple[float, float] = (math.nan, 0.0)
        self._slow: dict[Way, float] = {}
        self._before: dict[Way, tuple[float, float]] = {}
        self._notch = _Notch()
        self._level_w = math.nan
        self._ripple_w = 0.0
        self._doubtful: deque[tuple[float, float]] = deque()  # (when, deviation), not yet in it
        self._muted_until_s = -math.inf
        self._changed_s = -math.inf
        self._last_s = -math.inf
        self.way = Way.LEAD
        self.retune(settings)

    def retune(self, settings: FollowerSettings) -> None:
        """Take new times, as measured."""
        self._settings = self._bench.settings = settings
        self._reach_s = min(settings.delay_s + settings.tick_s / 2.0 + settings.lag_s, LEAD_S_MAX)
        self._slow_gain = 1.0 - math.exp(-2.0 * math.pi * SLOW_SHARE / settings.t_eff_s * settings.tick_s)

    def restart(self) -> None:
        """Load was not what it was said to be: no slope, level or score made of it holds; the ripple's size does."""
        self._bench = _Bench(self._settings)
        self._slopes.clear()
        self._before.clear()
        self._doubtful.clear()
        self._level_w = math.nan
        self._last_s = -math.inf
        self.way = Way.LEAD

    @property
    def ripple_w(self) -> float:
        """How far the load usually is from its level of a second."""
        return self._ripple_w

    def step(self, now_s: float, *, sample_s: float, load_w: float, is_fresh: bool) -> float:
        """The load to answer from `now_s` for one tick. `load_w` was true at `sample_s`; stale samples only repeat."""
        if math.isnan(self._level_w):
            self._start(load_w)
        if is_fresh and sample_s > self._last_s:
            self._forecast.add(sample_s, load_w)
            self._learn(sample_s, load_w)
        commands = self._commands(now_s, sample_s, load_w, is_fresh=is_fresh and sample_s > self._last_s)
        if is_fresh:
            self._last_s = max(self._last_s, sample_s)
        neutral = self._bench.score(self.way) if self.way in self._bench.ways else 0.0
        self._bench.command(now_s, commands, load_w=load_w, neutral=neutral)
        self._choose(now_s, commands)
        return commands[self.way]

    def _start(self, load_w: float) -> None:
        self._level_w = load_w
        self._slow = {way: load_w for way in (Way.SLOW, Way.FORWARD_SLOW)}
        self._notch.start(load_w)

    def _learn(self, sample_s: float, load_w: float) -> None:
        """Score every way against the load that came, and learn how large the ripple usually is."""
        elapsed_s = min(max(sample_s - self._last_s, 0.0), 1.0) if math.isfinite(self._last_s) else 0.0
        keep = math.exp(-elapsed_s / MEMORY_S)
        self._bench.judge(sample_s, load_w, elapsed_s)
        self._level_w += (1.0 - math.exp(-elapsed_s / 1.0)) * (load_w - self._level_w)
        off_w = abs(load_w - self._level_w)
        limit_w = SNAP_GAIN * max(self._ripple_w, self._ripple_w_min)
        if off_w > 2.0 * limit_w:
            line = self._forecast.line
            self._muted_until_s = sample_s + (MUTE_PERIODS * line.period_s if line else 0.0)
            self._level_w = load_w
            self._doubtful.clear()
            self._ripple_w = LEARN_GAIN * max(self._ripple_w, self._ripple_w_min)  # what keeps coming back is ripple
            return
        self._ripple_w *= keep
        self._doubtful.append((sample_s, off_w))
        while self._doubtful[0][0] <= sample_s - DOUBT_S:
            self._ripple_w = max(self._ripple_w, self._doubtful.popleft()[1])

    def _commands(self, now_s: float, sample_s: float, load_w: float, *, is_fresh: bool) -> dict[Way, float]:
        snap_w = SNAP_GAIN * max(self._ripple_w, self._ripple_w_min)
        found = {Way.PLAIN: load_w, Way.LEAD: self._lead(Way.LEAD, sample_s, load_w, is_fresh=is_fresh)}
        found[Way.SLOW] = self._slowly(Way.SLOW, load_w, snap_w)
        line = self._forecast.line
        if line is None:
            self._before.pop(Way.FORWARD, None)
            self._slow[Way.FORWARD_SLOW] = load_w
            self._notch.start(load_w)
            return found
        notched_w = self._notch.step(load_w, frequency_hz=line.frequency_hz, tick_s=self._settings.tick_s)
        found[Way.NOTCH] = min(max(notched_w, load_w - snap_w), load_w + snap_w)
        if now_s < self._muted_until_s:
            self._slow[Way.FORWARD_SLOW] = load_w
            self._before.pop(Way.FORWARD, None)
            return found
        tick_s, lag_s = self._settings.tick_s, self._settings.lag_s
        before_s, before_w = self._ahead  # the last tick's end is this tick's start
        start_w = before_w if abs(before_s - now_s) < 1e-3 * tick_s else self._forecast.ripple_w(now_s)
        end_w = self._forecast.ripple_w(now_s + tick_s)
        self._ahead = (now_s + tick_s, end_w)
        # Mean over the tick of c + lag dc/dt, which a first-order battery turns into c.
        ahead_w = (start_w + end_w) / 2.0 + lag_s * (end_w - start_w) / tick_s
        rest_w = load_w - self._forecast.ripple_w(sample_s)
        found[Way.FORWARD] = ahead_w + self._lead(Way.FORWARD, sample_s, rest_w, is_fresh=is_fresh)
        found[Way.FORWARD_SLOW] = ahead_w + self._slowly(Way.FORWARD_SLOW, rest_w, snap_w)
        return found

    def _lead(self, way: Way, sample_s: float, value_w: float, *, is_fresh: bool) -> float:
        """Extrapolate along the smaller of the last two slopes when they agree in sign; a single jump is left as is."""
        if is_fresh:
            before = self._before.get(way)
            if before is None:
                self._slopes[way] = (0.0, 0.0)
            elif sample_s > before[0]:
                self._slopes[way] = (self._slopes[way][1], (value_w - before[1]) / (sample_s - before[0]))
            self._before[way] = (sample_s, value_w)
        older, newer = self._slopes.get(way, (0.0, 0.0))
        if older * newer <= 0.0:
            return value_w
        slope = math.copysign(min(abs(older), abs(newer)), newer)
        return value_w + LEAD_SHARE * self._reach_s * slope

    def _slowly(self, way: Way, value_w: float, snap_w: float) -> float:
        slow_w = self._slow[way] + self._slow_gain * (value_w - self._slow[way])
        slow_w = min(max(slow_w, value_w - snap_w), value_w + snap_w)
        self._slow[way] = slow_w
        return slow_w

    def _choose(self, now_s: float, commands: dict[Way, float]) -> None:
        """Change to a way that does clearly better, not too often; at once when the present one cannot run.

        What is left of a quiet load is nobody's business: a way chosen by it is a way chosen by chance.
        """
        if self.way not in commands:
            self.way, self._changed_s = Way.LEAD, now_s
        best = min(commands, key=self._bench.score)
        left = self._bench.score(self.way)
        is_better = left > self._ripple_w_min**2 and self._bench.score(best) < BETTER**2 * left
        if is_better and now_s - self._changed_s >= DWELL_S:
            self.way, self._changed_s = best, now_s


@dataclass(slots=True)
class _Shadow:
    """One way on the bench: the model battery's power under it and how well it did lately."""

    power_w: float
    mean_w: float
    score: float


@frozen
class _Move:
    """One tick's commands and the powers they started from."""

    t_s: float
    powers_w: dict[Way, float]
    commands_w: dict[Way, float]


class _Bench:
    """A model battery per way, all with the same times, so that delay and decay are worked out once per tick."""

    def __init__(self, settings: FollowerSettings) -> None:
        self.settings = settings
        self.ways: dict[Way, _Shadow] = {}
        self._moves: deque[_Move] = deque()

    def score(self, way: Way) -> float:
        return self.ways[way].score

    def command(self, now_s: float, commands_w: dict[Way, float], *, load_w: float, neutral: float) -> None:
        """Every way's command from now on. A way that is new starts level with `neutral` and has to prove itself."""
        kept = self._decay(now_s - self._moves[-1].t_s) if self._moves else 0.0
        last_w = self._moves[-1].commands_w if self._moves else {}
        ways = {way: self.ways.get(way) or _Shadow(load_w, 0.0, neutral) for way in commands_w}
        for way, shadow in ways.items():
            if way in last_w:
                shadow.power_w = last_w[way] + (shadow.power_w - last_w[way]) * kept
        self.ways = ways
        self._moves.append(_Move(now_s, {way: shadow.power_w for way, shadow in ways.items()}, commands_w))
        oldest_s = now_s - 2.0 * self.settings.delay_s - self.settings.tick_s
        while len(self._moves) > 2 and self._moves[1].t_s < oldest_s:
            self._moves.popleft()

    def judge(self, sample_s: float, load_w: float, elapsed_s: float) -> None:
        """Hold each way against the load that came; a way younger than the sample is not judged yet."""
        move = next((move for move in reversed(self._moves) if move.t_s <= sample_s), None)
        if move is None:
            return
        kept = self._decay(sample_s - move.t_s)
        mean_gain = 1.0 - math.exp(-elapsed_s / MEAN_S)
        gain = 1.0 - math.exp(-elapsed_s / MEMORY_S)
        for way, command_w in move.commands_w.items():
            shadow = self.ways.get(way)
            if shadow is not None:
                left_w = load_w - command_w - (move.powers_w[way] - command_w) * kept
                shadow.mean_w += mean_gain * (left_w - shadow.mean_w)
                seen = left_w * left_w + MEAN_WEIGHT * shadow.mean_w * shadow.mean_w
                shadow.score += gain * (seen - shadow.score)

    def _decay(self, elapsed_s: float) -> float:
        return math.exp(-max(elapsed_s, 0.0) / max(self.settings.lag_s, 1e-6))


class _Notch:
    """Second-order notch of moving frequency (bilinear), unity at rest."""

    __slots__ = ("_x1", "_x2", "_y1", "_y2")

    def start(self, value: float) -> None:
        self._x1 = self._x2 = self._y1 = self._y2 = value

    def step(self, value: float, *, frequency_hz: float, tick_s: float) -> float:
        angle = min(2.0 * math.pi * frequency_hz * tick_s, 0.9 * math.pi)
        width = math.sin(angle) / (2.0 * NOTCH_QUALITY)
        middle = -2.0 * math.cos(angle)
        result = value + middle * self._x1 + self._x2 - middle * self._y1 - (1.0 - width) * self._y2
        result /= 1.0 + width
        self._x2, self._x1, self._y2, self._y1 = self._x1, value, self._y1, result
        return result
