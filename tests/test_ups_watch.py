"""A UPS on its battery: said in every case, and with little time left the GPUs behind it come down at the slope."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.modes import Flag
from controller.settings import UpsSettings
from controller.types import Mode, Quality, Reading, UpsSample
from controller.ups_watch import OVER_S, SURE_S, UNKNOWN_S, UpsWatch
from hil.lab_site import MW, lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.test_feeders import worst_w

SLOPE_W_PER_S = 5.0 * MW / 15.0  # ieso-ramp
ON_GRID = UpsSample(output_w=30e6, is_on_battery=False, is_on_bypass=False, minutes_left=8.0, load_frac=None)


def watch() -> UpsWatch:
    return UpsWatch((UpsSettings("ups", ("*",), 3.0),), fallback_frac=0.6)


def says(t_s: float, sample: UpsSample, *, quality: Quality = Quality.GOOD) -> dict[str, Reading[UpsSample]]:
    return {"ups": Reading(sample, t_s, quality, "ups")}


def test_little_time_left_counts_once_it_was_said_twice() -> None:
    found, low = watch(), replace(ON_GRID, is_on_battery=True, minutes_left=2.0)
    found.see(0.0, says(0.0, low))
    assert not found.is_low
    found.see(SURE_S, says(SURE_S, low))
    assert found.is_low


def test_time_enough_is_no_reason_to_cap_and_an_unknown_time_is_after_a_minute() -> None:
    found, unknown = watch(), replace(ON_GRID, is_on_battery=True, minutes_left=None)
    found.see(0.0, says(0.0, replace(unknown, minutes_left=8.0)))
    found.see(UNKNOWN_S - 1.0, says(0.0, replace(unknown, minutes_left=8.0)))
    assert not found.is_low
    found = watch()
    for t_s in (0.0, UNKNOWN_S - 0.1):
        found.see(t_s, says(t_s, unknown))
        assert not found.is_low
    found.see(UNKNOWN_S, says(UNKNOWN_S, unknown))
    assert found.is_low


def test_caps_end_a_while_after_the_grid_is_back_and_not_with_the_card() -> None:
    found, low = watch(), replace(ON_GRID, is_on_battery=True, minutes_left=2.0)
    for t_s in (0.0, SURE_S):
        found.see(t_s, says(t_s, low))
    found.see(100.0, says(100.0, ON_GRID, quality=Quality.MISSING))
    assert found.is_low, "silent is not well"
    found.see(101.0, says(101.0, low))
    found.see(101.0 + OVER_S - 0.1, says(0.0, ON_GRID))
    assert found.is_low
    found.see(101.0 + OVER_S, says(0.0, ON_GRID))
    assert not found.is_low


def test_a_sag_that_the_ups_must_carry_for_long_caps_the_gpus_behind_it_and_frees_them_again() -> None:
    """Half of the site hangs on a UPS with two minutes left; it carries its load for 100 s after a sag."""
    said: set[int] = set()
    seen_w: list[float] = []

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        lab.daemon.observe(lambda trace: said.update(v.invariant for v in trace.checked.violations))
        await lab.run(17.0)
        assert lab.last.flags >= {Flag.UPS_ON_BATTERY} and lab.last.mode is Mode.DEGRADED
        table = lab.traces[-1].decision.fleet.table
        is_behind = np.zeros(len(table.gpu_ids), dtype=np.bool_)
        for node in ("training-0", "training-1"):
            is_behind[table.spans[node]] = True  # type: ignore[index]
        full_w = float((table.peak_w * table.stands_for)[is_behind].sum())
        for _ in range(70):
            await lab.run(1.0)
            seen_w.append(worst_w(lab, is_behind))
        least_w = lab.site.gpu_fallback_w / lab.site.gpu_peak_w * full_w
        assert Flag.UPS_LOW in lab.last.flags and 0.95 * least_w < seen_w[-1] <= least_w
        falls_w = -np.diff([full_w, *seen_w])
        assert falls_w[0] <= 4.0 * SLOPE_W_PER_S and falls_w[1:].max() <= 1.05 * SLOPE_W_PER_S, "the contract's slope"
        assert worst_w(lab, ~is_behind) == pytest.approx(full_w), "who does not hang on it is not slowed"
        await lab.until(lambda: lab.last.mode is Mode.NORMAL, within_s=90.0)
        await lab.until(lambda: worst_w(lab, is_behind) == pytest.approx(full_w), within_s=120.0)

    in_lab(
        story,
        lab_scenario(
            "steady",
            site={
                "ups": [{"name": "ups", "profile": "liebert-apm", "nodes": ["training-[01]"]}],
                "classes": [{"name": f"job-{k}", "nodes": [f"training-{k}"]} for k in range(4)],
            },
            facility={"ups_share": 0.5, "ups_minutes": 2.0, "ups_hold_s": 100.0},
            events_docs=[{"kind": "sag", "t_s": 12.0, "voltage_pu": 0.7, "duration_s": 0.2}],
        ),
    )
    assert 2 not in said, "plans knew of it before the envelope had to"
