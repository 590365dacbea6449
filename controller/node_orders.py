"""What the nodes hear at this tick: the plan's caps in each job's turn, the way to fallback, or their release.

A node's command carries all it needs if nothing more ever arrives: how long it lives, in which slot and at which slope
the node then goes to its fallback cap. The nodes of one job go together, jobs one after the other.

Where nothing may rise no cap is asked for above what was last written: the envelope would refuse it, and refusals
count. A GPU that does not take its caps keeps those it was told last: it would take all that came since at once, when
it takes any again. Pure; the envelope's books say what was written.
"""

from __future__ import annotations

import numpy as np

from controller.allocate import worst_case_w
from controller.contract import AdmissibleInterval
from controller.fleet import Fleet, FleetReadings
from controller.glide import FallbackGlide
from controller.node_commands import node_commands
from controller.parting import Parting, job_groups
from controller.settings import SiteSettings
from controller.situation import Situation
from controller.stagger import Stagger
from controller.types import EnvelopeState, FloatArray, IntArray, Mode, NodeCommand, Stamp, frozen


@frozen
class CapsNow:
    """What is asked of the GPUs at this tick.

    `caps` (2, n) are the plan's, as far as they may go now; `gpu_w_max` (W) is what all may draw at their worst, inf
    without a ceiling; `fall_w` (W) how far that may go lower now, inf without a row.
    """

    caps: FloatArray
    gpu_w_max: float
    fall_w: float


class NodeOrders:
    """One site's orders to its nodes; `planned` whenever there are new caps, `commands` at every tick."""

    def __init__(self, site: SiteSettings) -> None:
        self._glide = FallbackGlide()
        self._stagger = Stagger(period_s=site.planner_period_s)
        self._has_new_caps = False
        self._groups: tuple[Fleet, IntArray] | None = None  # as of the last fleet
        self._waits: bool | None = None  # what nodes were last told: to wait for the battery

    def planned(self, now_s: float, *, is_urgent: bool) -> None:
        """New caps take effect; what is urgent goes lower at once, not in its job's turn."""
        self._has_new_caps = True
        self._stagger.planned(now_s, is_urgent=is_urgent)

    def written(self) -> None:
        """A command to nodes passed the envelope."""
        self._has_new_caps = False

    def commands(
        self,
        now: Situation,
        given: CapsNow,
        *,
        interval: AdmissibleInterval,
        parting: Parting,
        stamp: Stamp,
    ) -> tuple[NodeCommand, ...]:
        """Nothing where it is nobody's turn."""
        fleet, acked, written, mode = now.fleet, now.readings.acks.caps, now.written, now.mode.mode
        is_at_once = mode in (Mode.RELEASE, Mode.FALLBACK)  # all nodes together, as often as plans are made
        if is_at_once and not self._has_new_caps:
            return ()
        aim_frac = parting.ceiling(interval.limits)[0] if mode is Mode.FALLBACK else 1.0
        asked = self._asked(now, given, interval, aim_frac=aim_frac)
        if now.readings.is_deaf is not None and mode is not Mode.FALLBACK and written.caps.shape == asked.shape:
            asked = np.where(now.readings.is_deaf, written.caps, asked)
        is_due = None
        is_release = mode is Mode.RELEASE
        if not is_at_once:
            may_rise = is_settled(fleet, asked, now.readings, written, given.gpu_w_max)
            found = self._stagger.due(now.now_s, fleet, asked, written, acked, may_rise=may_rise)
            if (self._waits is not parting.waits or parting.is_outgrown) and written.gpu_ids is fleet.table.gpu_ids:
                # The battery's part has changed: all hear of it at once, whose turn it is not with the caps they have.
                found = (written.caps if found is None else found[0], np.ones(fleet.count, dtype=np.bool_))
            if found is None:
                return ()
            asked, is_due = found
        told = parting.nodes(interval, is_release=is_release)
        parting.told(told, stamp, is_release=is_release)
        self._waits = parting.waits
        return node_commands(
            now.image.nodes,
            fleet,
            asked,
            stamp=stamp,
            parting=told,
            groups=self._groups_of(fleet),
            is_release=is_release,
            is_due=is_due,
        )

    def _groups_of(self, fleet: Fleet) -> IntArray:
        if self._groups is None or self._groups[0] is not fleet:
            self._groups = fleet, job_groups(fleet)
        return self._groups[1]

    def _asked(self, now: Situation, given: CapsNow, interval: AdmissibleInterval, *, aim_frac: float) -> FloatArray:
        """The plan's caps; where nothing may rise, none above what was last written; in FALLBACK, the way there."""
        caps, mode, table, written, nodes = given.caps, now.mode.mode, now.fleet.table, now.written, now.image.nodes
        if mode is not Mode.FALLBACK:
            self._glide.stop()
        if now.may_raise or written.gpu_ids is not table.gpu_ids or written.caps.shape != caps.shape:
            return caps
        if mode is Mode.FALLBACK:
            return self._glide.caps(
                now.now_s,
                table,
                last=written.caps,
                fallback_mhz=np.repeat(
                    [aim_frac * r.value.fallback_clock_mhz for r in nodes], [len(r.value.gpu_ids) for r in nodes]
                ),
                slope_w_per_s=interval.slope_down_w_per_s,
                fall_w=given.fall_w,
            )
        lowest: FloatArray = np.minimum(caps, written.caps)
        return lowest


def is_settled(
    fleet: Fleet, asked: FloatArray, readings: FleetReadings, written: EnvelopeState, gpu_w_max: float
) -> bool:
    """Raises fit beside lowers that are not read back yet: before that the envelope takes them back."""
    if gpu_w_max == np.inf:
        return True
    acked = readings.acks.caps
    in_force = np.where(acked < fleet.table.cap_max, acked, np.inf)
    if written.gpu_ids is fleet.table.gpu_ids:
        in_force = np.maximum(in_force, written.caps)
    return worst_case_w(fleet, np.maximum(asked, in_force), fixed_w=readings.deaf_w) <= gpu_w_max
