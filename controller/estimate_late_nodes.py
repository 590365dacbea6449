"""Nodes whose last word is old, late on its way or overdue: who they are, and what they count at meanwhile.

Late is told of by the sender's own clock, overdue by how far its reports usually are apart; a node without a sender's
clock is neither, since nobody knows how old its next word will be. Pure; powers in watts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from controller.estimate_peers import Look, Peers
from controller.estimate_sender import Heard, SenderClocks
from controller.types import WORST_READ, BoolArray, FloatArray, NodeId, NodeReport, Reading

LATE_S = 0.3  # beyond its usual way a report is old: more than a link and two busy processes are uneven by
LATE_TOLD_S = 0.5
INTERVALS = 2.0  # of its reports that may be missing before a node is overdue


class LateNodes:
    """One per site: `newest` and then `beyond` with every new set of reports; look at `told` meanwhile."""

    def __init__(self) -> None:
        self._senders, self._peers = SenderClocks(), Peers()
        self._heard: list[Heard] = []
        self._ids: tuple[NodeId, ...] = ()
        self._read_s: FloatArray = np.empty(0)  # when all of a node's GPUs were last read
        self._all: BoolArray = np.empty(0, dtype=np.bool_)
        self._beyond_w: dict[NodeId, FloatArray] = {}
        self.told: tuple[NodeId, ...] = ()  # whose reports come late

    def newest(self, nodes: Sequence[Reading[NodeReport]]) -> list[Reading[NodeReport]]:
        """What each node said last, by its own clock."""
        self._heard = self._senders.heard(nodes)
        self.told = tuple(h.reading.value.node_id for h in self._heard if h.late_s > LATE_TOLD_S)
        return [h.reading for h in self._heard]

    def before_w(self, node_id: NodeId) -> tuple[float, float]:
        """What a node counted at beyond its last word, in the last sum, by means and by samples."""
        mean_w, sample_w = self._beyond_w.get(node_id, (0.0, 0.0))
        return float(mean_w), float(sample_w)

    def beyond(self, now_s: float, node_w: FloatArray, *, is_all_read: bool) -> FloatArray | None:
        """What nodes count at beyond their last word, by means and by samples, (2, n); None: nothing.

        `node_w`, (2, n): what each of those that `newest` gave counts at by its last word, so too.
        """
        ids = tuple(h.reading.value.node_id for h in self._heard)
        if ids != self._ids:
            self._ids, self._read_s, self._all = ids, np.full(len(ids), -math.inf), np.ones(len(ids), dtype=np.bool_)
        taken_s = np.array([h.taken_s for h in self._heard])
        is_whole = is_settled = self._all
        if not is_all_read:
            are_read = [is_read(h.reading) for h in self._heard]
            is_whole = np.array([bool(found.all()) for found in are_read])
            is_settled = is_whole | np.array([not found.any() for found in are_read])
        self._read_s = taken_s if is_all_read else np.where(is_whole, taken_s, self._read_s)
        is_old = self._is_old(now_s) & is_settled if self._is_any_old(now_s) else None
        is_fresh = is_whole if is_old is None else is_whole & ~is_old
        self._peers.saw(ids, Look(now_s, self._read_s, node_w, is_fresh))
        if is_old is None or not is_old.any():
            self._beyond_w = {}
            return None
        found = self._peers.moved(is_old)
        self._beyond_w = {ids[k]: found[:, k] for k in np.flatnonzero(is_old)}
        return found

    def _is_any_old(self, now_s: float) -> bool:
        """Nearly always none is, and this is asked of every report."""
        pairs = zip(self._heard, self._read_s.tolist(), strict=True)
        return any(h.late_s > LATE_S or now_s - t_s - INTERVALS * h.interval_s > LATE_S for h, t_s in pairs)

    def _is_old(self, now_s: float) -> BoolArray:
        late_s = np.array([h.late_s for h in self._heard])
        interval_s = np.array([h.interval_s for h in self._heard])
        is_overdue: BoolArray = now_s - self._read_s - INTERVALS * interval_s > LATE_S
        is_known: BoolArray = np.isfinite(self._read_s) & np.isfinite(interval_s)
        found: BoolArray = ((late_s > LATE_S) | is_overdue) & is_known
        return found


def is_read(reading: Reading[NodeReport]) -> BoolArray:
    """Which GPUs of it gave a number, and lately, (n,)."""
    if reading.quality > WORST_READ:
        return np.zeros(len(reading.value.gpu_ids), dtype=np.bool_)
    found: BoolArray = (reading.value.quality <= WORST_READ) & np.isfinite(reading.value.power_w)
    return found
