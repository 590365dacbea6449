"""The envelope's pair on the node: what came over the wire is checked again before any GPU is written.

Invariants 1 (numbers, known GPUs), 2 (each cap within its GPU's range) and 9 (order and time to live), by code that
shares nothing with the site's side. Pure; never raises; an unusable command is refused whole, so that the last good one
runs on until it expires.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from controller.types import GpuCap, GpuId, GpuSpec, NodeCommand, NodeId, Violation, frozen, replace

TTL_S_MAX = 100.0  # ten periods of the slowest planner (0.1 Hz)


@frozen
class NodeVerdict:
    """What may be carried out (None: nothing) and what was wrong."""

    command: NodeCommand | None
    violations: tuple[Violation, ...]


def check_node(
    command: NodeCommand,
    *,
    node_id: NodeId,
    specs: Mapping[GpuId, GpuSpec],
    last: tuple[int, int],
) -> NodeVerdict:
    """`command` as this node may carry it out, given the epoch and sequence of the last it took."""
    found: list[Violation] = []
    if command.node_id != node_id:
        return NodeVerdict(None, (Violation(1, str(command.node_id), f"not for {node_id}"),))
    if not _is_newer((command.epoch, command.seq), last):
        detail = f"epoch {command.epoch} seq {command.seq} after {last[0]}, {last[1]}"
        return NodeVerdict(None, (Violation(9, "command", detail),))
    numbers = (command.ttl_s, command.release_slot_s, command.ceiling_s, command.ceiling_frac)
    if not all(math.isfinite(x) and x >= 0 for x in numbers) or not command.release_w_per_s >= 0:
        return NodeVerdict(None, (Violation(1, "command", "a time, slope or share is negative or not a number"),))
    if command.ttl_s <= 0:
        return NodeVerdict(None, (Violation(9, "command", f"ttl {command.ttl_s} s"),))
    if command.ttl_s > TTL_S_MAX:
        found.append(Violation(9, "command", f"ttl {command.ttl_s} s"))
        command = replace(command, ttl_s=TTL_S_MAX)
    caps: dict[GpuId, GpuCap] = {}
    for cap in command.caps:
        spec = specs.get(cap.gpu_id)
        if spec is None or cap.gpu_id in caps or not _are_numbers(cap):
            found.append(Violation(1, cap.gpu_id, "unknown, named twice, or not a number"))
            continue
        caps[cap.gpu_id] = _within(cap, spec)
        if not _is_in_range(cap, spec):
            found.append(Violation(2, cap.gpu_id, f"{cap.clock_mhz} MHz, {cap.power_limit_w} W out of range"))
    return NodeVerdict(replace(command, caps=tuple(caps.values())), tuple(found))


def _is_newer(order: tuple[int, int], last: tuple[int, int]) -> bool:
    return all(isinstance(x, int) and x >= 0 for x in order) and order > last


def _are_numbers(cap: GpuCap) -> bool:
    return all(x is None or math.isfinite(x) for x in (cap.clock_mhz, cap.power_limit_w))


def _is_in_range(cap: GpuCap, spec: GpuSpec) -> bool:
    clock, limit_w = cap.clock_mhz, cap.power_limit_w
    is_clock = clock is None or spec.clock_mhz_min <= clock <= spec.clock_mhz_max
    return is_clock and (limit_w is None or spec.power_limit_w_min <= limit_w <= spec.power_limit_w_max)


def _within(cap: GpuCap, spec: GpuSpec) -> GpuCap:
    """The nearest cap at or below the asked one that the GPU knows; its least where none is."""
    clock, limit_w = cap.clock_mhz, cap.power_limit_w
    if clock is not None:
        clock = max((c for c in spec.clocks_mhz if c <= clock), default=spec.clock_mhz_min)
    if limit_w is not None:
        limit_w = min(max(limit_w, spec.power_limit_w_min), spec.power_limit_w_max)
    return GpuCap(cap.gpu_id, clock, limit_w)
