"""The codec gives back exactly what it was given, and refuses what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from controller.codec import decode, encode
from controller.types import AgentState as Agent
from controller.types import (
    CeilingLimit,
    Contract,
    Direction,
    GpuId,
    LimitId,
    LimitStatus,
    MeterSample,
    NodeId,
    NodeReport,
    Provenance,
    Quality,
    RampLimit,
    Reading,
    SiteImage,
)

SOURCE = Provenance("test", "2026-01-01", LimitStatus.LOCAL)


def report() -> NodeReport:
    return NodeReport(
        node_id=NodeId("n1"),
        boot_id="b",
        t_mono_s=1.5,
        state=Agent.ARMED,
        stands_for=3,
        gpu_ids=(GpuId("GPU-1"), GpuId("GPU-2")),
        power_w=np.array([100.0, float("nan")]),
        clock_mhz=np.array([1410.0, 1410.0]),
        clock_cap_mhz=np.array([1410.0, 1410.0]),
        power_limit_w=np.array([400.0, 400.0]),
        quality=np.array([0, 3], dtype=np.int8),
        is_controllable=np.array([True, False]),
        other_w=500.0,
        acked_epoch=1,
        acked_seq=2,
        specs=(),
        fallback_clock_mhz=1000.0,
    )


def test_image_survives_a_round_trip_through_json() -> None:
    """A recorded image is the image: arrays, nested readings, NaN and enums included."""
    image = SiteImage(
        t_mono_s=1.0,
        wall_utc_s=2.0,
        tick=3,
        pcc=Reading(MeterSample(5.0, frequency_hz=60.0), 0.97, Quality.GOOD, "pcc"),
        battery=None,
        ups={},
        nodes=(Reading(report(), 1.5, Quality.STALE, "n1"),),
        signals=(),
        is_grid_link_up=True,
    )
    back = decode(SiteImage, json.loads(json.dumps(encode(image), allow_nan=False)))
    assert encode(back) == encode(image)
    assert isinstance(back, SiteImage) and back.nodes[0].value.quality.dtype == np.int8


def test_union_members_are_told_apart() -> None:
    """Limits of different kinds keep their kind, and infinities survive."""
    ramp = RampLimit(LimitId("r"), 5e6, 15.0, Direction.BOTH, 1.0, SOURCE)
    ceiling = CeilingLimit(LimitId("c"), 9e7, float("-inf"), SOURCE)
    contract = Contract("x", (ramp, ceiling), 1e8)
    assert decode(Contract, json.loads(json.dumps(encode(contract)))) == contract


@pytest.mark.parametrize(
    "raw",
    [
        {"power_w": "much"},
        {"power_w": 1.0, "unknown": 2},
        {},
        [],
        {"power_w": 10**400, "frequency_hz": None, "voltage_pu": None, "import_wh": None, "export_wh": None},
        {"power_w": True, "frequency_hz": None, "voltage_pu": None, "import_wh": None, "export_wh": None},
    ],
)
def test_wrong_shape_is_refused_with_its_place(raw: object) -> None:
    """Nothing half-read comes out of a damaged record."""
    with pytest.raises(ValueError, match=r"^image"):
        decode(MeterSample, raw, at="image")
