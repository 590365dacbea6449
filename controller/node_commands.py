"""One command per node: its caps, how long they live, and in which slot and at which slope it then lets go by itself.

A command carries all that a node needs if nothing more ever arrives. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from controller.fleet import Fleet
from controller.parting import WAIT_S_MAX, NodeParting
from controller.types import BoolArray, FloatArray, GpuCap, IntArray, NodeCommand, NodeId, NodeReport, Reading, Stamp


def node_commands(
    nodes: Sequence[Reading[NodeReport]],
    fleet: Fleet,
    caps: FloatArray,
    *,
    stamp: Stamp,
    parting: NodeParting,
    groups: IntArray,
    is_release: bool,
    is_due: BoolArray | None = None,
) -> tuple[NodeCommand, ...]:
    """One command per node, or per node with a GPU that `is_due` (n,). `groups` are `job_groups` of the fleet.

    Each group of nodes waits until those before it could have moved at the slope that all share; within it each node
    has its part of that slope, so that all keep one pace.
    """
    table, node_w, found = fleet.table, fleet.node_swing_w, []
    # One pass over the fleet before the loop: a hundred thousand small slices would cost more than the loop itself.
    spans = [table.spans[r.value.node_id] for r in nodes]
    starts = [span.start for span in spans]
    stands_for = [r.value.stands_for for r in nodes]
    group_w = np.bincount(groups, weights=node_w * stands_for)
    turns_s = (np.cumsum(group_w) - group_w) / max(parting.slope_w_per_s, 1e-9)
    slopes = (parting.slope_w_per_s * node_w / np.maximum(group_w[groups], 1e-9)).tolist()
    fallback_mhz = np.array([r.value.fallback_clock_mhz for r in nodes])
    fracs = _ceiling_fracs(fallback_mhz, fleet, starts, parting)
    waits_s = np.zeros(len(nodes)) if is_release else _battery_waits_s(fracs * fallback_mhz, caps, starts, parting)
    slots_s = np.minimum(turns_s[groups] + waits_s, WAIT_S_MAX).tolist()
    ceilings_s = np.where(fracs < 1.0, np.minimum(turns_s[groups] + parting.ceiling_s, WAIT_S_MAX), 0.0).tolist()
    due = None if is_due is None else np.concatenate([[0], np.cumsum(is_due)])
    clocks, limits = caps.tolist()
    rows = zip(nodes, spans, slopes, slots_s, fracs.tolist(), ceilings_s, strict=True)
    for reading, span, slope, slot_s, frac, ceiling_s in rows:
        report = reading.value
        if due is None or due[span.stop] > due[span.start]:
            found.append(
                NodeCommand(
                    node_id=NodeId(report.node_id),
                    epoch=stamp.epoch,
                    seq=stamp.seq,
                    ttl_s=stamp.ttl_s,
                    caps=() if is_release else _caps(report, clocks[span], limits[span]),
                    release_slot_s=slot_s,
                    release_w_per_s=slope,
                    is_release=is_release,
                    ceiling_frac=frac,
                    ceiling_s=ceiling_s,
                )
            )
    return tuple(found)


def _ceiling_fracs(fallback_mhz: FloatArray, fleet: Fleet, starts: Sequence[int], parting: NodeParting) -> FloatArray:
    """The share of its fallback clock that each node may go to under a ceiling: none goes below its service floor."""
    if parting.ceiling_frac >= 1.0:
        return np.ones(fallback_mhz.shape)
    floor_mhz = np.append(fleet.table.floor_mhz, np.nan)[starts]  # of its first GPU: those of a node are alike
    found: FloatArray = np.fmax(parting.ceiling_frac, floor_mhz / np.maximum(fallback_mhz, 1.0))
    return np.minimum(found, 1.0)


def _battery_waits_s(goal_mhz: FloatArray, caps: FloatArray, starts: Sequence[int], parting: NodeParting) -> FloatArray:
    """How long each node waits for what moves the way it will go itself, to `goal_mhz` (nodes,)."""
    lowest, highest = (f.reduceat(np.append(caps[0], np.nan), starts) for f in (np.fmin, np.fmax))
    found: FloatArray = np.maximum(
        np.where(highest > goal_mhz, parting.fall_wait_s, 0.0),
        np.where(lowest < goal_mhz, parting.rise_wait_s, 0.0),
    )
    return found


def _caps(report: NodeReport, clocks: Sequence[float], limits: Sequence[float]) -> tuple[GpuCap, ...]:
    return tuple(
        GpuCap(gpu_id, None if clock == math.inf else int(clock), None if limit_w == math.inf else limit_w)
        for gpu_id, clock, limit_w in zip(report.gpu_ids, clocks, limits, strict=True)
    )
