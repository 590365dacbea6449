"""Keeps target and meter together: what a new sample shows beside the target of its own instant, and who is wrong.

A deviation that comes and goes is residual; a large one, once, is an event, which the rows must know of. A target that
the meter parted from for seconds is a fiction, and is moved to the meter. Pure; powers in watts.
"""

from __future__ import annotations

import math

from controller.estimate import Estimate, LoadSource
from controller.residual import METERED_MEAN_S, Residual, Unseen
from controller.settings import SiteSettings
from controller.target_path import TargetPath

ANCHOR_S = 3.0  # a target that parted from the meter for this long is wrong
ANCHOR_FRAC = 0.005  # of the registered peak: parted by less is within meter accuracy


class Anchor:
    """One per tracker; `see` once per tick."""

    def __init__(self, site: SiteSettings, path: TargetPath, *, residual: Residual, unseen: Unseen) -> None:
        self._path, self._residual, self._unseen = path, residual, unseen
        self._gain = 1.0 - math.exp(-site.tracker_period_s / METERED_MEAN_S)
        self._least_w = ANCHOR_FRAC * site.registered_peak_w
        self._pcc_w = path.now_w  # as metered, its mean of a second
        self._metered_s = -math.inf
        self._parted_s = math.inf

    def see(self, now_s: float, estimate: Estimate, *, is_saturated: bool) -> None:
        """Take the newest sample in. `is_saturated`: the battery cannot hold the target, whatever that is."""
        if estimate.pcc_w is not None:
            self._pcc_w += self._gain * (estimate.pcc_w - self._pcc_w)
        if not estimate.is_fresh or estimate.t_s <= self._metered_s:
            return
        target_w = self._path.at(estimate.t_s)
        if estimate.pcc_w is None:
            is_known = estimate.source is LoadSource.NODES and not is_saturated
            self._unseen.add(estimate.t_s, estimate.grid_w - target_w if is_known else None)
            return
        self._metered_s = estimate.t_s
        if is_saturated:
            self._residual.restart()
        self._residual.add(estimate.t_s, estimate.pcc_w - target_w)
        track = self._residual.track(METERED_MEAN_S)
        parted_w, spread_w = track.mean_w, track.spread_w
        if self._residual.is_event and abs(parted_w) > spread_w:
            self._path.strayed(parted_w)
        is_parted = is_saturated or abs(parted_w) > max(spread_w, self._least_w)
        if self._is_wrong(now_s, is_parted=is_parted):
            self._path.jump(now_s, self._pcc_w, since_s=now_s)
            self._residual.restart()

    def _is_wrong(self, now_s: float, *, is_parted: bool) -> bool:
        """The target was apart from the meter for long; asked anew from then on."""
        if is_parted and now_s - self._parted_s >= ANCHOR_S:
            self._parted_s = math.inf
            return True
        self._parted_s = min(self._parted_s, now_s) if is_parted else math.inf
        return False
