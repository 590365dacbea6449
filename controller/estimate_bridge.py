"""From the meter to node reports and back without a bump: how late the reports are, and what they leave out.

Nodes report each GPU's mean of a second and its newest sample. While the meter is good, both sums are held against the
metered load of some time before; for each the delay that fits best and the mean difference at that delay are learnt.
Without the meter the load is a sum plus its difference, true one delay ago: that of samples, half a second younger,
where it is as true as makes no matter (of many GPUs it is, a few scatter). Until the reports have passed the last
metered instant, the last metered load stands. What the two differ by at that instant fades. Pure; powers in watts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from controller.estimate_nodes import Returned
from controller.types import FloatArray

DELAYS_S = np.arange(0.1, 3.01, 0.1)  # reports of 1 s means at 5 Hz are 0.6 s late; slow links and large sites more
DELAY_S_MIN, DELAY_S_MAX = float(DELAYS_S[0]), float(DELAYS_S[-1])
DELAY_STEP_S = float(DELAYS_S[1] - DELAYS_S[0])
DELAY_S_DECLARED = 0.6  # as of means; until the load has moved enough to tell
YOUNGER_S = 0.2  # samples that gain less than this are means themselves, as on GPUs that have nothing else
SCATTER_FRAC = 0.005  # of the registered peak, as a root mean square: what samples may be off by
MOVED_FRAC = 0.001  # of the registered peak: a misfit, as a root mean square, that tells one delay from another
# Of the largest misfit, as mean squares: delays that part by less fit alike. A job that repeats itself leaves 1 to 4 %
# of it at one of its periods more (measured), and in its first seconds no more than the true delay does.
ALIKE_FRAC = 0.05
OFFSET_MEMORY_S = 20.0  # of what reports leave out: other load, cooling, losses
GAP_S_MAX = 0.5  # metered samples further apart than this say nothing of the load between them
LATELY_S = 1.0  # of what meter and reports differ by when the meter goes
SAME_S_MAX = 4.0  # a meter that repeats itself may be stuck; what it says then is not yet learnt from
FADE_S = 5.0
MARGIN_FRAC = 0.10  # of the load: GPU telemetry reads up to 5.5 % low, and what it leaves out changes
MARGIN_FRAC_PER_S = 0.001  # how fast the difference learnt loses its worth
MISFIT_GAIN = 3.0
WINDOW_S = 1.0  # NVML's power is a mean of a second on most GPUs (FACTS): reports later than half of it are such means
SILENT_S = 2.0  # ten reports at the default rate
SHARE_MIN = 0.25  # of the window: what a report tells of less than this is lost in its noise


class NodeBridge:
    """One per site: `metered` with every good sample of load, `reported` with every new sum, `load` without a meter."""

    def __init__(self, *, scale_w: float, other_w: float) -> None:
        """`scale_w`: the registered peak. `other_w`: what is drawn beside GPUs, as declared."""
        self._declared_w = other_w
        self._times_s: deque[float] = deque()
        self._loads_w: deque[float] = deque()
        self._gap_until_s = -math.inf  # where the newest gap between metered samples ended
        self._repeated: list[tuple[float, float]] = []
        self.means, self._samples = _Fit(scale_w=scale_w), _Fit(scale_w=scale_w)
        self._learnt_s = 0.0  # time learnt from, for the weight of the next
        self._reported_s = -math.inf
        self._compared_s = -math.inf
        self._serving = self.means
        self._younger_s = 0.0  # than learnt, by what reports wait less to be read
        self._scatter_w = SCATTER_FRAC * scale_w
        self._metered_s, self._metered_w = -math.inf, other_w
        self._apart_w: float | None = None

    @property
    def is_taught(self) -> bool:
        return self._learnt_s > 0.0

    @property
    def delay_s(self) -> float:
        """The age of the load that reports would tell now."""
        return self._age_s(self._serving)

    @property
    def means_delay_s(self) -> float:
        """The same of means, whichever serve."""
        return self._age_s(self.means)

    def _age_s(self, fit: _Fit) -> float:
        return max(fit.delay_s - self._younger_s, DELAY_S_MIN)  # where load hardly moves, too short a delay is learnt

    def is_heard(self, now_s: float) -> bool:
        """New reports come; what is known of nodes that fell silent is no witness."""
        return now_s - self._reported_s <= SILENT_S

    def metered(self, t_s: float, load_w: float, *, is_repeated: bool) -> None:
        """Load true at `t_s`, from the meter; a value that it repeats waits until it cannot be a stuck meter's."""
        if is_repeated:
            self._repeated.append((t_s, load_w))
            while self._repeated[0][0] < t_s - SAME_S_MAX:
                self._take(*self._repeated.pop(0))
            return
        for sample in self._repeated:
            self._take(*sample)
        self._repeated.clear()
        self._take(t_s, load_w)

    def lost(self) -> None:
        """The meter may not be used: what it repeated lately was no measurement."""
        self._repeated.clear()

    def misled(self) -> None:
        """What the meter said lately was not true at its time: nothing of it lives on but what reports leave out."""
        self._metered_s = min(self._metered_s, self._reported_s - self.delay_s)
        self._metered_w, self._apart_w = self._serving.load_w, 0.0
        self._times_s.clear()
        self._loads_w.clear()
        self._repeated.clear()

    def _take(self, t_s: float, load_w: float) -> None:
        if t_s <= self._metered_s:
            return
        self._metered_s, self._metered_w, self._apart_w = t_s, load_w, None
        if self._times_s and t_s - self._times_s[-1] > GAP_S_MAX:
            self._gap_until_s = t_s
        self._times_s.append(t_s)
        self._loads_w.append(load_w)
        keep_s = DELAY_S_MAX + GAP_S_MAX
        while len(self._times_s) > 2 and self._times_s[1] < t_s - keep_s:
            self._times_s.popleft()
            self._loads_w.popleft()

    def reported(
        self,
        now_s: float,
        *,
        mean_w: float,
        sample_w: float,
        other_w: float,
        returned: Iterable[Returned] = (),
        is_learning: bool = True,
        younger_s: float = 0.0,
    ) -> None:
        """New sums of what nodes report of their GPUs and of themselves beside these, read at `now_s`.

        `returned` is what of them was not read for a while. Nothing is learnt while the meter is in doubt, nor where
        reports are read `younger_s` younger than they were learnt to be.
        """
        self._younger_s = younger_s
        self.means.sum_w, self._samples.sum_w = mean_w + other_w, sample_w + other_w
        for back in returned:
            self._counted_before(now_s, back)
        elapsed_s, self._reported_s = now_s - self._reported_s, now_s
        if not self.is_taught:
            for fit in (self.means, self._samples):
                fit.declared(max(self._declared_w - other_w, 0.0))
        if not is_learning or younger_s:
            return
        times = self._times_s
        is_whole = len(times) > 2 and now_s - times[-1] <= GAP_S_MAX and times[0] <= now_s - DELAY_S_MAX
        if not is_whole or self._gap_until_s > times[0]:
            return
        loads_w = np.interp(now_s - DELAYS_S, _array(times), _array(self._loads_w))
        elapsed_s = min(elapsed_s, 1.0)
        self._learnt_s += elapsed_s
        self._compared_s = now_s
        for fit in (self.means, self._samples):
            fit.learn(loads_w, elapsed_s=elapsed_s, learnt_s=self._learnt_s)
        self._serving = self._samples if self._are_samples_better() else self.means

    def _counted_before(self, now_s: float, back: Returned) -> None:
        """What a GPU did while it was not read is in the meter's last word, where that is most of the time."""
        if self._apart_w is not None and self._metered_s - back.since_s > now_s - self._metered_s:
            self._apart_w -= back.mean_w if self._serving is self.means else back.sample_w

    def _are_samples_better(self) -> bool:
        means, samples = self.means, self._samples
        is_younger = samples.delay_s <= means.delay_s - YOUNGER_S
        return is_younger and samples.misfit_w <= max(means.misfit_w, self._scatter_w)

    def load(self) -> tuple[float, float]:
        """The newest instant at which the load is known, and the load there."""
        true_s, reported_w = self._reported_s - self.delay_s, self._serving.load_w
        if (early := self._since_metered()) is not None:
            self._apart_w = 0.0  # the meter's last word is in it already
            return early
        if true_s <= self._metered_s:
            return self._metered_s, self._metered_w
        if self._apart_w is None:
            self._apart_w = self._apart_now_w()
        faded = math.exp(-(true_s - self._metered_s) / FADE_S) if self.is_taught else 1.0
        return true_s, reported_w + self._apart_w * faded

    @property
    def _was_compared(self) -> bool:
        """What reports leave out was held against the meter until it went."""
        return self._metered_s - self._compared_s <= LATELY_S

    def _apart_now_w(self) -> float:
        """What meter and reports differ by lately, beyond what these leave out."""
        if self._was_compared:
            return self._serving.off_w
        return self._metered_w - self._serving.load_w if math.isfinite(self._metered_s) else 0.0

    def _since_metered(self) -> tuple[float, float] | None:
        """The mean load since the meter was lost, while a report's own mean still reaches back to before.

        What the meter knew of the report's window is taken off it; the rest of the window is what came since.
        """
        end_s = self._reported_s - self.delay_s + WINDOW_S / 2.0
        new_s = end_s - self._metered_s
        is_of_means = self.is_taught and self._serving is self.means and self.means.delay_s >= WINDOW_S / 2.0
        if not is_of_means or not self._was_compared or not SHARE_MIN * WINDOW_S <= new_s < WINDOW_S:
            return None
        times, loads = _array(self._times_s), _array(self._loads_w)
        if not len(times) or times[0] > end_s - WINDOW_S or times[-1] != self._metered_s:
            return None
        grid_s = np.linspace(end_s - WINDOW_S, self._metered_s, 11)
        known_w = float(np.interp(grid_s, times, loads).mean())
        return self._metered_s + new_s / 2.0, known_w + (self._serving.load_w - known_w) * WINDOW_S / new_s

    def margin_w(self, now_s: float, load_w: float) -> float:
        """How far the load may be above `load`: more with every second since the meter was last held against it."""
        whole_w = MARGIN_FRAC * load_w
        if not self.is_taught:
            return whole_w
        misfit_w = MISFIT_GAIN * self._serving.misfit_w
        moved_w = MARGIN_FRAC * abs(load_w - self._metered_w)
        aged_w = MARGIN_FRAC_PER_S * (now_s - self._metered_s) * load_w
        return min(whole_w, misfit_w + moved_w + aged_w)


class _Fit:
    """How late one of the two sums is against the metered load, and what it leaves out."""

    def __init__(self, *, scale_w: float) -> None:
        self._scale_w = scale_w
        self._left_out_w = np.zeros(DELAYS_S.shape)  # at each delay
        self._misfits = np.zeros(DELAYS_S.shape)  # mean squares about it
        self.sum_w = 0.0  # as last reported
        self._find(DELAY_S_DECLARED)
        self.off_w = 0.0  # by how much it is lately beside what it is learnt to leave out

    @property
    def left_out_w(self) -> float:
        return self._at_delay(self._left_out_w)

    @property
    def load_w(self) -> float:
        """The load as of `delay_s` before the newest reports."""
        return self.sum_w + self.left_out_w

    @property
    def misfit_w(self) -> float:
        """As a root mean square, at the delay that fits best."""
        return math.sqrt(self._at_delay(self._misfits))

    def declared(self, left_out_w: float) -> None:
        self._left_out_w[:] = left_out_w

    def learn(self, loads_w: FloatArray, *, elapsed_s: float, learnt_s: float) -> None:
        """Hold the sum against the metered load of each delay before."""
        gain = max(1.0 - math.exp(-elapsed_s / OFFSET_MEMORY_S), elapsed_s / learnt_s)
        miss_w = loads_w - self.sum_w - self._left_out_w
        off_w = self._at_delay(miss_w)
        self.off_w += (1.0 - math.exp(-elapsed_s / LATELY_S)) * (off_w - self.off_w)
        self._left_out_w += gain * miss_w
        if gain < 0.5:  # the first sum says what is left out, not how well
            self._misfits += gain * (miss_w * miss_w - self._misfits)
        self._find_delay()

    def _find_delay(self) -> None:
        """The least misfit, refined by a parabola, where the load moved enough to tell one delay from another.

        Of valleys that are alike the first: load that repeats itself fits as well a period later.
        """
        misfits = self._misfits
        most, least = float(misfits.max()), float(misfits.min())
        if most < (MOVED_FRAC * self._scale_w) ** 2:
            return
        alike = misfits <= least + ALIKE_FRAC * (most - least)
        first = int(alike.argmax())
        width = int(alike[first:].argmin()) or len(misfits) - first
        best = first + int(misfits[first : first + width].argmin())
        shift = 0.0
        if 0 < best < len(misfits) - 1:
            left, middle, right = misfits[best - 1 : best + 2].tolist()
            bend = left - 2.0 * middle + right
            shift = 0.5 * (left - right) / bend if bend > 0.0 else 0.0
        self._find(float(DELAYS_S[best]) + max(-0.5, min(0.5, shift)) * DELAY_STEP_S)

    def _find(self, delay_s: float) -> None:
        """Take it for the delay, and its place among `DELAYS_S`."""
        self.delay_s = delay_s
        self._left = int(DELAYS_S.searchsorted(delay_s, side="right")) - 1
        self._past_s = delay_s - float(DELAYS_S[self._left])

    def _at_delay(self, values: FloatArray) -> float:
        """Between the two of `values`, one for each of `DELAYS_S`, that are next to the delay."""
        left = float(values[self._left])
        if self._past_s == 0.0:
            return left
        steps_s = float(DELAYS_S[self._left + 1]) - float(DELAYS_S[self._left])
        return (float(values[self._left + 1]) - left) / steps_s * self._past_s + left


def _array(values: deque[float]) -> FloatArray:
    """`np.array` looks at each value twice."""
    return np.fromiter(values, np.float64, len(values))
