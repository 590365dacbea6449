"""The site's other meters: held against the PCC's at one instant, and not in its place where our loop closes on it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from controller.config.site import parse_site
from controller.errors import BadInput
from controller.estimate import LoadEstimator, LoadSource
from controller.estimate_checks import MeterView
from controller.estimate_subs import SubMeters
from controller.settings import SiteSettings
from controller.types import Following, MeterFlag, MeterSample, Quality, Reading
from hil.lab_site import MW, SITE

SUB: dict[str, Any] = {"profile": "sunspec-meter", "delay_s": 0.1, "update_s": 0.2, "nameplate_megawatt": 120}


def site_with(*names: str) -> SiteSettings:
    site = parse_site({**SITE, "mqtt": {}, "sub_meters": [{"name": n} | SUB for n in names]}, origin="site.yaml").site
    assert site is not None
    return site


def at(power_w: float, t_s: float) -> Reading[MeterSample]:
    return Reading(MeterSample(power_w), t_s, Quality.GOOD, "meter")


@pytest.mark.parametrize("names", [("pcc",), ("battery",), ("a", "a")])
def test_a_name_that_is_another_devices_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="sub_meters: names must differ"):
        site_with(*names)


def test_sub_meters_need_the_meter_that_they_are_held_against() -> None:
    raw = {**SITE, "mqtt": {}, "battery": None, "pcc_meter": None, "sub_meters": [{"name": "a"} | SUB]}
    with pytest.raises(BadInput, match="sub_meters needs pcc_meter"):
        parse_site(raw, origin="site.yaml")


def test_a_drop_that_one_shows_a_moment_later_is_no_quarrel() -> None:
    """30 MW leave within a second; the other meter is 0.4 s behind all the time, and shows the same at one instant."""
    subs, found = SubMeters(site_with("a", "b")), []

    def power_w(t_s: float) -> float:
        return 70 * MW - 30 * MW * min(max(t_s - 2.0, 0.0), 1.0)

    for k in range(60):
        now_s = 0.1 * k
        view = MeterView(now_s=now_s, battery_w=0.0, gpu_w=None, others_w=None)
        half = at(0.5 * power_w(now_s - 0.4), now_s - 0.3)  # half of its refresh of 0.2 s ago, by its stamp
        total_w = subs.take(view, meters={"a": half, "b": half}, pcc=at(power_w(now_s), now_s))
        if now_s > 1.0:
            assert total_w is not None
            found.append(abs(total_w - power_w(now_s)))
    assert max(found) < 0.01 * MW


def test_one_that_cannot_be_trusted_leaves_no_sum() -> None:
    subs = SubMeters(site_with("a", "b"))
    view = MeterView(now_s=10.0, battery_w=0.0, gpu_w=None, others_w=None)
    for bad in (at(math.nan, 9.9), at(30 * MW, 5.0), replace(at(30 * MW, 9.9), quality=Quality.MISSING)):
        assert subs.take(view, meters={"a": at(30 * MW, 9.9), "b": bad}, pcc=None) is None
    assert subs.take(view, meters={}, pcc=None) is None


@pytest.mark.parametrize(("following", "stands_in"), [(Following.DEVICE, True), (Following.SOFTWARE, False)])
def test_they_stand_in_only_where_no_loop_of_ours_closes_on_them(following: Following, stands_in: bool) -> None:
    estimator = LoadEstimator(replace(site_with("a"), following=following))
    for k in range(40):
        t_s = 0.1 * k
        pcc = at(60 * MW + k, t_s) if k < 20 else replace(at(math.nan, t_s), quality=Quality.MISSING)
        found = estimator.step(t_s, pcc=pcc, battery=None, nodes=(), meters={"a": at(60 * MW + k, t_s)})
    assert MeterFlag.METER_MISSING in found.flags
    assert (found.source is LoadSource.SUB_METERS) is stands_in
