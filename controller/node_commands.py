"""One command per node: its caps, how long they live, and in which slot and at which slope it then lets go by itself.

A command carries all that a node needs if nothing more ever arrives. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from controller.fleet import Fleet
from controller.types import BoolArray, FloatArray, GpuCap, NodeCommand, NodeId, NodeReport, Reading

NO_LIMIT_W_PER_S = 1e12  # stands for "no row bounds this" on the wire, which carries finite numbers only


def node_commands(
    nodes: Sequence[Reading[NodeReport]],
    fleet: Fleet,
    caps: FloatArray,
    *,
    epoch: int,
    seq: int,
    ttl_s: float,
    slope_w_per_s: float,
    is_release: bool,
    is_due: BoolArray | None = None,
) -> tuple[NodeCommand, ...]:
    """One command per node, or per node with a GPU that `is_due` (n,).

    `slope_w_per_s` is what the contract lets the whole site move at; inf: nothing bounds it.
    Nodes release one after the other: each waits until those before it could have moved at that slope.
    """
    table, found, wait_s = fleet.table, [], 0.0
    slope = slope_w_per_s if math.isfinite(slope_w_per_s) else NO_LIMIT_W_PER_S
    # One pass over the fleet before the loop: a hundred thousand small slices would cost more than the loop itself.
    swings_w = np.nan_to_num(np.maximum(table.peak_w - table.idle_w, 0.0))
    before_w = np.concatenate([[0.0], np.cumsum(swings_w)])
    due = None if is_due is None else np.concatenate([[0], np.cumsum(is_due)])
    clocks, limits = caps.tolist()
    for reading in nodes:
        report = reading.value
        span = table.spans[report.node_id]
        own_slope = slope / report.stands_for
        if due is None or due[span.stop] > due[span.start]:
            node_caps = () if is_release else _caps(report, clocks[span], limits[span])
            found.append(
                NodeCommand(
                    node_id=NodeId(report.node_id),
                    epoch=epoch,
                    seq=seq,
                    ttl_s=ttl_s,
                    caps=node_caps,
                    release_slot_s=wait_s,
                    release_w_per_s=own_slope,
                    is_release=is_release,
                )
            )
        swing_w = float(before_w[span.stop] - before_w[span.start])
        wait_s += swing_w / own_slope if own_slope > 0.0 else 0.0
    return tuple(found)


def _caps(report: NodeReport, clocks: Sequence[float], limits: Sequence[float]) -> tuple[GpuCap, ...]:
    return tuple(
        GpuCap(gpu_id, None if clock == math.inf else int(clock), None if limit_w == math.inf else limit_w)
        for gpu_id, clock, limit_w in zip(report.gpu_ids, clocks, limits, strict=True)
    )
