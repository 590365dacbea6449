"""What the envelope is shown: facts that the estimate stands for, never a meter that was found to lie."""

from __future__ import annotations

from dataclasses import replace

from controller.estimate import LoadSource
from controller.types import Quality, SiteImage
from controller.view import believed
from tests.estimate_kit import Bench, meter


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


def test_a_site_without_a_meter_has_none() -> None:
    assert believed(replace(image(0.0), pcc=None), Bench().warm()).pcc is None
