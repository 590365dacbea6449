"""What the site meter is good for at this tick, where nodes report too: the one place that says whom to believe.

In this order. A meter without a word, with one that cannot be, or with one that is too old is good for nothing.
Without nodes to ask, or where the battery follows by itself and nothing hangs on the meter, what makes sense is
believed. One that stands still as it never did is good for nothing. Samples that are late are believed at their real
time while nodes know nothing younger. A meter that was away or wrong may have become late meanwhile: it is held against
the nodes first. One that speaks too seldom only corrects the nodes. Pure.
"""

from __future__ import annotations

import math
from enum import StrEnum, unique

from controller.estimate_bridge import NodeBridge
from controller.estimate_delay import MeterDelay
from controller.settings import SiteSettings
from controller.types import Following, MeterFlag

AWAY_S = 2.0  # a silence after which a meter must be held against the nodes first
OLD_S = 5.0  # what a meter said of a time before that is no measurement, whoever else is silent
PROOF_S = 5.0  # nodes have so long to contradict it; what they leave out may have changed meanwhile
IMPOSSIBLE = frozenset({MeterFlag.METER_SPIKE, MeterFlag.METER_MISSING})  # more than once in a row
WRONG = frozenset(
    {
        MeterFlag.METER_STUCK,
        MeterFlag.METER_UNIT_WRONG,
        MeterFlag.METER_SIGN_SUSPECT,
        MeterFlag.METER_SIGN_WRONG,
    }
)


@unique
class MeterRole(StrEnum):
    """What the site meter is good for."""

    LOAD = "load"  # load is what it says, at the time when it was so
    CORRECTION = "correction"  # too seldom: nodes are the one source, corrected when it speaks
    NOTHING = "nothing"


class MeterTrust:
    """One per site; `role` once a tick."""

    def __init__(self, site: SiteSettings) -> None:
        self._is_loop_ours = site.following is Following.SOFTWARE
        self._is_slow = False  # its last sample said so
        self._doubted_s = -math.inf

    @property
    def is_doubted(self) -> bool:
        """It was away or wrong, and the nodes have not borne it out since."""
        return self._doubted_s > -math.inf

    def role(
        self,
        now_s: float,
        flags: frozenset[MeterFlag],
        *,
        is_usable: bool,
        is_still: bool,
        served_s: float,
        late: MeterDelay,
        nodes: NodeBridge | None,
    ) -> MeterRole:
        """`is_usable`: it says something that can be; `is_still`: and has begun to repeat it.

        `served_s`: when load was last what it said.
        """
        if not is_usable:
            is_wrong = bool(flags & WRONG) or flags >= IMPOSSIBLE
            if is_wrong or (now_s - served_s > AWAY_S and not self._is_slow):
                self._doubted_s = now_s
            return MeterRole.NOTHING
        self._is_slow = MeterFlag.METER_SLOW in flags
        if self._is_loop_ours and late.late_s > OLD_S:
            return MeterRole.NOTHING
        if self._is_loop_ours and nodes is not None and nodes.is_heard(now_s):
            if is_still and nodes.is_taught:
                return MeterRole.NOTHING
            if late.late_s:
                if late.is_echoed:
                    return MeterRole.LOAD if late.late_s <= nodes.means.delay_s else MeterRole.CORRECTION
                is_younger = not late.has_misled and late.late_s <= nodes.means.delay_s
                return MeterRole.LOAD if is_younger else MeterRole.NOTHING
            if nodes.is_taught and now_s - self._doubted_s <= PROOF_S and not late.fits_since(self._doubted_s):
                return MeterRole.NOTHING
        self._doubted_s = -math.inf
        return MeterRole.CORRECTION if self._is_slow and nodes is not None else MeterRole.LOAD
