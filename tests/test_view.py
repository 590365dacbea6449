"""What the envelope is shown: facts that the estimate stands for, never a meter that was found to lie."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.estimate import LoadSource
from controller.types import Quality, RampLimit, SiteImage
from controller.view import believed, rings_for, window_checks
from tests.estimate_kit import Bench, meter
from tests.tracker_kit import IESO_RAMP


def image(power_w: float) -> SiteImage:
    return SiteImage(
        t_mono_s=10.0,
        wall_utc_s=0.0,
        tick=1,
        pcc=meter(power_w, 10.0),
        battery=None,
        ups={},
        nodes=(),
        signals=(),
        is_grid_link_up=True,
    )


def test_a_meter_that_reads_ten_times_too_much_moves_no_cap() -> None:
    """The envelope takes off caps what is measured above a ceiling; 590 of 62 MW would take all of it at once."""
    estimate = replace(Bench().warm(), source=LoadSource.NODES, pcc_w=None, grid_w=59e6)
    shown = believed(image(590e6), estimate).pcc
    assert shown is not None and shown.value.power_w == 59e6 and shown.quality is Quality.SUSPECT


def test_a_good_meter_is_shown_as_it_is() -> None:
    estimate = replace(Bench().warm(), pcc_w=60e6, grid_w=60e6)
    shown = believed(image(60e6), estimate).pcc
    assert shown is not None and shown.is_good and shown.value.power_w == 60e6


def test_a_step_may_use_the_row_but_for_its_last_hundredth_and_a_ramp_what_the_mean_lags_too() -> None:
    row = next(limit for limit in IESO_RAMP if isinstance(limit, RampLimit))
    assert (row.max_w, row.window_s, row.mean_s) == (20e6, 60.0, 1.0)
    rings = rings_for([row])
    rings.add(0.0, 60e6)
    found = window_checks([row], rings, 0.0)[0]
    assert found.room_w == pytest.approx(20e6 * (1.0 + 0.5 / 60.0))
    assert found.room_w - found.kept_w == pytest.approx(0.99 * 20e6)


def test_a_site_without_a_meter_has_none() -> None:
    assert believed(replace(image(0.0), pcc=None), Bench().warm()).pcc is None
