"""The site's other meters: what they add up to beside the meter at the point of common coupling, and in its place.

They are held against that meter at one instant, so that a drop which one of them shows a moment later is no quarrel. In
its place they serve only where no loop of ours closes on what they show: how late they are is declared, not found out,
and a loop that takes old values for new ones answers its own moves. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from controller.estimate_checks import MeterCheck, MeterView
from controller.settings import SiteSettings
from controller.types import Following, MeterSample, Quality, Reading, replace

KEPT_S = 10.0  # of what the meter at the PCC showed: no sub-meter is believed that is older


class SubMeters:
    """`sum_w` is what they add up to, `t_s` when that was true; both of the last time all could be trusted."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._checks = {m.name: MeterCheck(replace(site, meter=m)) for m in site.sub_meters}
        self._half_s = {m.name: 0.5 * m.update_s for m in site.sub_meters}  # a value stands until the next
        self._shown: deque[tuple[float, float]] = deque()
        self.sum_w, self.t_s = 0.0, -math.inf

    @property
    def may_stand_in(self) -> bool:
        """Whether load may be rebuilt from them while the meter at the PCC is lost."""
        return self._site.battery is None or self._site.following is Following.DEVICE

    @property
    def checks(self) -> Iterable[MeterCheck]:
        return self._checks.values()

    def take(
        self, view: MeterView, *, meters: Mapping[str, Reading[MeterSample]], pcc: Reading[MeterSample] | None
    ) -> float | None:
        """Their sum at the instant of `pcc`'s sample, at their own without one; None unless all can be trusted.

        `view.others_w` is not looked at.
        """
        self._remember(pcc)
        if not meters:
            return None
        total_w, oldest_s = 0.0, math.inf
        is_one = len(meters) == 1  # a part of the site need not move when the whole does
        seen = view if is_one else replace(view, battery_w=0.0, gpu_w=None)
        for name in sorted(meters):
            check = self._checks.get(name)
            if check is None:
                check = self._checks[name] = MeterCheck(self._site)
            check.check(meters[name], replace(seen, others_w=None))
            if not check.is_usable:
                return None
            total_w += check.power_w
            oldest_s = min(oldest_s, meters[name].t_mono_s - self._half_s.get(name, 0.0))
        self.sum_w, self.t_s = total_w, oldest_s
        return total_w + self._since_w(oldest_s)

    def _remember(self, pcc: Reading[MeterSample] | None) -> None:
        if pcc is None or pcc.quality is Quality.MISSING or not math.isfinite(pcc.value.power_w):
            return
        if not self._shown or pcc.t_mono_s > self._shown[-1][0]:
            self._shown.append((pcc.t_mono_s, pcc.value.power_w))
        while self._shown[0][0] < self._shown[-1][0] - KEPT_S:
            self._shown.popleft()

    def _since_w(self, t_s: float) -> float:
        """What the meter at the PCC has moved since `t_s`; nothing where it did not show that time."""
        after: tuple[float, float] | None = None
        for sample in reversed(self._shown):
            if sample[0] <= t_s:
                if after is None:
                    return 0.0
                share = (t_s - sample[0]) / (after[0] - sample[0])
                return self._shown[-1][1] - (sample[1] + share * (after[1] - sample[1]))
            after = sample
        return 0.0
