"""A site of two nodes and four GPUs as the envelope sees it, and commands to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from controller.types import (
    BatteryCommand,
    EnvelopeBattery,
    EnvelopeState,
    EnvelopeVerdict,
    EnvelopeView,
    Feeder,
    FleetAcks,
    FleetTable,
    Following,
    GpuCap,
    GpuId,
    LimitId,
    Margin,
    MeterSample,
    Mode,
    NodeCommand,
    NodeId,
    PccRing,
    Quality,
    Reading,
    SiteCommand,
    SiteImage,
    WindowCheck,
)

GPUS = tuple(GpuId(f"GPU-{i}") for i in range(4))
NODES = (NodeId("a"), NodeId("b"))
NOW_S = 100.0
IDLE_W, PEAK_W, CLOCK_MAX, CLOCK_MIN, FLOOR = 100.0, 700.0, 2000, 200, 600
T_S = 1.0
INF = float("inf")


def fleet(n_free: int = 4) -> FleetTable:
    def one(value: float) -> np.ndarray[Any, Any]:
        return np.full(4, float(value))

    return FleetTable(
        gpu_ids=GPUS,
        index={g: i for i, g in enumerate(GPUS)},
        spans={NODES[0]: slice(0, 2), NODES[1]: slice(2, 4)},
        cap_min=np.array([one(CLOCK_MIN), one(200.0)]),
        cap_max=np.array([one(CLOCK_MAX), one(PEAK_W)]),
        floor_mhz=one(FLOOR),
        idle_w=one(IDLE_W),
        peak_w=one(PEAK_W),
        stands_for=one(1.0),
        power_exponent=1.0,
    )


FLEET = fleet()


def caps_array(clocks: tuple[float, ...], limits: tuple[float, ...] = (INF,) * 4) -> np.ndarray[Any, Any]:
    return np.array([clocks, limits], dtype=float)


def ring(power_w: float | list[float], *, head_s: float = 0.0) -> PccRing:
    low, high = np.full(601, INF), np.full(601, -INF)
    past = [power_w] * 601 if isinstance(power_w, float) else power_w
    low[: len(past)] = high[: len(past)] = past
    return PccRing(step_s=1.0, head_s=head_s, mean_s=1.0, min_w=low, max_w=high)


def window(
    max_w: float = 200.0,
    window_s: float = 60.0,
    *,
    past: PccRing | None = None,
    up: bool = True,
    down: bool = True,
    kept_w: float = 0.0,
) -> WindowCheck:
    return WindowCheck(LimitId("ramp"), window_s, max_w, 0.0, kept_w, up, down, past or ring(1000.0))


BATTERY = EnvelopeBattery(
    charge_w_max=500.0,
    discharge_w_max=400.0,
    ramp_w_per_s_max=1000.0,
    supply_w=0.0,
    spare_w=0.0,
    deadband_w=0.0,
    dwell_s=0.0,
    is_eligible=True,
)


def image(power_w: float | None = 1000.0, *, quality: Quality = Quality.GOOD, age_s: float = 0.0) -> SiteImage:
    pcc = None if power_w is None else Reading(MeterSample(power_w), NOW_S - age_s, quality, "pcc")
    return SiteImage(
        t_mono_s=NOW_S,
        wall_utc_s=0.0,
        tick=0,
        pcc=pcc,
        battery=None,
        ups={},
        nodes=(),
        signals=(),
        is_grid_link_up=True,
    )


def state(clocks: tuple[float, ...] = (1000.0,) * 4, **changes: Any) -> EnvelopeState:
    base = EnvelopeState(
        epoch=1,
        seq=10,
        t_s=NOW_S - 0.05,
        gpu_ids=FLEET.gpu_ids,
        caps=caps_array(clocks),
        clock_written_s=np.full(4, -INF),
        target_w=1000.0,
        reference_w=1000.0,
        reference_t_s=0.0,
    )
    return replace(base, **changes)


def acks(clocks: tuple[float, ...] = (1000.0,) * 4, **changes: Any) -> FleetAcks:
    base = FleetAcks(caps=caps_array(clocks), is_fresh=np.ones(4, bool), fixed_w=np.full(4, np.nan))
    return replace(base, **changes)


def view(**changes: Any) -> EnvelopeView:
    base = EnvelopeView(
        image=image(),
        fleet=FLEET,
        acks=acks(),
        feeders=(),
        windows=(),
        target_step_w=INF,
        import_w_max=INF,
        margin_w=0.0,
        unmanaged_w_max=0.0,
        load_w=1000.0,
        battery=BATTERY,
        drop_safe_target_w=INF,
        margins=(),
        mode=Mode.NORMAL,
        is_leader=True,
        is_clock_sane=True,
        is_emergency=False,
        planner_period_s=T_S,
        meter_age_s_max=0.3,
        max_export_w=0.0,
        violations_max=30,
        state=state(),
    )
    return replace(base, **changes)


def node(node_id: NodeId, *clocks: int | None, **changes: Any) -> NodeCommand:
    mine = GPUS[:2] if node_id == "a" else GPUS[2:]
    caps = tuple(GpuCap(g, clock, None) for g, clock in zip(mine, clocks, strict=False))
    base = NodeCommand(node_id, epoch=1, seq=11, ttl_s=5.0, caps=caps, release_slot_s=0.0, release_w_per_s=1.0)
    return replace(base, **changes)


def battery(reference_w: float, following: Following = Following.DEVICE, **changes: Any) -> BatteryCommand:
    return replace(BatteryCommand(following, reference_w, 500.0, 1, 11, 5.0), **changes)


def command(*nodes: NodeCommand, power: BatteryCommand | None = None, epoch: int = 1, seq: int = 11) -> SiteCommand:
    return SiteCommand(epoch, seq, power, nodes)


def clocks(verdict: EnvelopeVerdict) -> dict[str, int | None]:
    return {cap.gpu_id: cap.clock_mhz for n in verdict.command.nodes for cap in n.caps}


def broken(verdict: EnvelopeVerdict) -> set[int]:
    return {v.invariant for v in verdict.violations}


def target(verdict: EnvelopeVerdict) -> float:
    assert verdict.command.battery is not None
    return verdict.command.battery.reference_w


def feeder(room_w: float) -> tuple[Feeder, ...]:
    return (Feeder("row 1", room_w, np.array([True, True, False, False])),)


def draw_w(clock: int | None) -> float:
    return IDLE_W + (PEAK_W - IDLE_W) * (CLOCK_MAX if clock is None else clock) / CLOCK_MAX


NO_LEAVE: list[dict[str, Any]] = [
    {"is_leader": False},
    {"is_clock_sane": False},
    {"mode": Mode.SHED},
    {"image": image(1000.0, quality=Quality.SUSPECT)},
    {"image": image(1000.0, quality=Quality.STALE)},
    {"image": image(1000.0, age_s=0.4)},
    {"image": image(float("nan"))},
    {"state": state(is_distrusted=True)},
    {"margins": (Margin("power", "full_site", -1.0, "W"),)},
]


def limited(seen: EnvelopeView, limits: tuple[float, ...], clock: float = INF) -> EnvelopeView:
    """The same GPUs with power limits in force and read back."""
    caps = caps_array((clock,) * 4, limits)
    return replace(seen, state=state(caps=caps), acks=acks(caps=caps))


def limit_command(*limits: float) -> SiteCommand:
    mine = [tuple(GpuCap(g, None, w) for g, w in zip(GPUS[k : k + 2], limits[k : k + 2], strict=True)) for k in (0, 2)]
    return command(*(node(n, caps=caps) for n, caps in zip(NODES, mine, strict=True)))


def out_caps(verdict: EnvelopeVerdict) -> list[tuple[int | None, float | None]]:
    return [(cap.clock_mhz, cap.power_limit_w) for part in verdict.command.nodes for cap in part.caps]
