"""What the nodes hear at this tick: the plan's caps in each job's turn, the way to fallback, or their release.

Where nothing may rise no cap is asked for above what was last written: the envelope would refuse it, and refusals
count. Pure; the envelope's books say what was written.
"""

from __future__ import annotations

import numpy as np

from controller.allocate import worst_case_w
from controller.contract import AdmissibleInterval
from controller.fleet import Fleet
from controller.glide import FallbackGlide
from controller.node_commands import node_commands
from controller.settings import SiteSettings
from controller.stagger import Stagger
from controller.types import EnvelopeState, FloatArray, Mode, NodeCommand, SiteImage


class NodeOrders:
    """One site's orders to its nodes; `planned` whenever there are new caps, `commands` at every tick."""

    def __init__(self, site: SiteSettings) -> None:
        self._glide = FallbackGlide()
        self._stagger = Stagger(period_s=site.planner_period_s)
        self._has_new_caps = False

    def planned(self, now_s: float, *, is_urgent: bool) -> None:
        """New caps take effect; what is urgent goes lower at once, not in its job's turn."""
        self._has_new_caps = True
        self._stagger.planned(now_s, is_urgent=is_urgent)

    def written(self) -> None:
        """A command to nodes passed the envelope."""
        self._has_new_caps = False

    def commands(
        self,
        image: SiteImage,
        fleet: Fleet,
        *,
        caps: FloatArray,
        acked: FloatArray,
        written: EnvelopeState,
        interval: AdmissibleInterval,
        mode: Mode,
        may_raise: bool,
        gpu_w_max: float,
        epoch: int,
        seq: int,
        ttl_s: float,
    ) -> tuple[NodeCommand, ...]:
        """`caps` (2, n) are the plan's, `acked` (2, n) what was read back; `written` are the envelope's books.

        `gpu_w_max` is what all GPUs may draw at their worst, inf without a ceiling.
        """
        asked, is_due = self._asked(image, fleet, caps, written, interval, mode, may_raise=may_raise), None
        if mode not in (Mode.RELEASE, Mode.FALLBACK):
            may_rise = is_settled(fleet, asked, acked, written, gpu_w_max)
            found = self._stagger.due(image.t_mono_s, fleet, asked, written, acked, may_rise=may_rise)
            if found is None:
                return ()
            asked, is_due = found
        elif not self._has_new_caps:
            return ()
        return node_commands(
            image.nodes,
            fleet,
            asked,
            epoch=epoch,
            seq=seq,
            ttl_s=ttl_s,
            slope_w_per_s=min(interval.slope_down_w_per_s, interval.slope_up_w_per_s),
            is_release=mode is Mode.RELEASE,
            is_due=is_due,
        )

    def _asked(
        self,
        image: SiteImage,
        fleet: Fleet,
        caps: FloatArray,
        written: EnvelopeState,
        interval: AdmissibleInterval,
        mode: Mode,
        *,
        may_raise: bool,
    ) -> FloatArray:
        """The plan's caps; where nothing may rise, none above what was last written; in FALLBACK, the way there."""
        if mode is not Mode.FALLBACK:
            self._glide.stop()
        if may_raise or written.gpu_ids is not fleet.table.gpu_ids or written.caps.shape != caps.shape:
            return caps
        if mode is Mode.FALLBACK:
            return self._glide.caps(
                image.t_mono_s,
                fleet.table,
                last=written.caps,
                fallback_mhz=np.repeat(
                    [r.value.fallback_clock_mhz for r in image.nodes], [len(r.value.gpu_ids) for r in image.nodes]
                ),
                slope_w_per_s=interval.slope_down_w_per_s,
            )
        lowest: FloatArray = np.minimum(caps, written.caps)
        return lowest


def is_settled(fleet: Fleet, asked: FloatArray, acked: FloatArray, written: EnvelopeState, gpu_w_max: float) -> bool:
    """Raises fit beside lowers that are not read back yet: before that the envelope takes them back."""
    if gpu_w_max == np.inf:
        return True
    in_force = np.where(acked < fleet.table.cap_max, acked, np.inf)
    if written.gpu_ids is fleet.table.gpu_ids:
        in_force = np.maximum(in_force, written.caps)
    return worst_case_w(fleet, np.maximum(asked, in_force)) <= gpu_w_max
