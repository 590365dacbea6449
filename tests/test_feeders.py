"""Breakers and feeders of the site: laid on the fleet, kept by caps before the envelope has to, proven at fallback."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controller.check import check_site
from controller.config.site import parse_site
from controller.errors import BadInput
from controller.feeders import FeederTree, above
from controller.settings import SiteSettings
from controller.types import BoolArray, FloatArray, Mode
from hil.lab_site import MW, SITE, lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.faults_kit import play

HALL = {
    "name": "hall",
    "nodes": ["training-0"],
    "limit_megawatt": 26.0,
    "gpu_peak_megawatt": 35.84,
    "gpu_fallback_megawatt": 22.0,
    "other_max_megawatt": 1.0,
}
ROW = HALL | {
    "name": "row",
    "within": "hall",
    "nodes": ["training-1"],
    "limit_megawatt": 12.0,
    "gpu_peak_megawatt": 17.92,
    "gpu_fallback_megawatt": 11.0,
    "other_max_megawatt": 0.5,
}


def site_with(*feeders: dict[str, Any]) -> SiteSettings:
    site = parse_site({**SITE, "mqtt": {}, "feeders": list(feeders)}, origin="site.yaml").site
    assert site is not None
    return site


@pytest.mark.parametrize(
    ("feeders", "word"),
    [
        ([HALL, HALL], "names must differ"),
        ([ROW], "no feeder is called hall"),
        ([HALL | {"within": "row"}, ROW], "hangs on itself"),
        ([HALL | {"gpu_fallback_megawatt": 40.0}], "gpu_fallback_megawatt <= gpu_peak_megawatt"),
        ([HALL | {"limit_megawatt": 0.0}], "limit_megawatt"),
    ],
)
def test_a_tree_that_is_none_is_refused_in_one_line(feeders: list[dict[str, Any]], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        site_with(*feeders)


def worst_w(lab: Lab, is_below: BoolArray) -> float:
    """What the GPUs may draw at their worst by the envelope's books."""
    assert lab.daemon is not None
    table, caps = lab.traces[-1].decision.fleet.table, lab.daemon.core._written.caps
    chord_w = table.idle_w + (table.peak_w - table.idle_w) * np.minimum(caps[0] / table.cap_max[0], 1.0)
    each_w = np.minimum(chord_w, np.minimum(caps[1], table.peak_w)) * table.stands_for
    return float(each_w[is_below].sum())


def feeders_of(lab: Lab) -> dict[str, Any]:
    found = FeederTree(lab.site.feeders).at(lab.traces[-1].decision.fleet.table)
    return {feeder.name: feeder for feeder in found}


def test_caps_keep_each_feeder_and_the_envelope_finds_nothing_to_do() -> None:
    """Two of four nodes hang in the hall, one of them in a row of it; the others are free, and every row holds."""
    said: list[int] = []

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        lab.daemon.observe(lambda trace: said.extend(v.invariant for v in trace.checked.violations))
        await lab.run(20.0)
        found = feeders_of(lab)
        assert list(found) == ["row", "hall"]
        assert found["row"].room_w == pytest.approx(11.5 * MW) and found["hall"].room_w == pytest.approx(24.5 * MW)
        for feeder in found.values():
            assert 0.9 * feeder.room_w < worst_w(lab, feeder.is_below) <= feeder.room_w
        clocks = [node.clock_cap_mhz for node in lab.link.nodes.values()]
        assert all(np.isnan(clocks[2:])) and clocks[0] > clocks[1] > 0.0
        assert lab.last.mode is Mode.NORMAL

    jobs = [{"name": f"job-{k}", "nodes": [f"training-{k}"], "priority": 50, "tolerated_loss": 0.1} for k in range(4)]
    lab = in_lab(story, lab_scenario("steady", site={"feeders": [HALL, ROW], "classes": jobs}))
    assert not said and not lab.broken()


def test_the_envelope_keeps_the_breaker_whoever_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that knows nothing of the tree is narrowed, and what is written fits all the same."""

    def unfitted(fleet: object, curves: object, caps: FloatArray, feeders: object, **_: object) -> FloatArray:
        return caps

    monkeypatch.setattr("controller.planning.fit_feeders", unfitted)
    said: set[int] = set()

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        lab.daemon.observe(lambda trace: said.update(v.invariant for v in trace.checked.violations))
        for _ in range(8):
            await lab.run(1.0)
            assert lab.now_s < 2.0 or all(worst_w(lab, f.is_below) <= f.room_w for f in feeders_of(lab).values())

    in_lab(story, lab_scenario("steady", site={"feeders": [HALL, ROW]}))
    assert 2 in said


def test_a_node_that_has_not_reported_counts_at_its_nameplate() -> None:
    """Until the second node of the hall is heard of its GPUs take their peak off what the first may draw."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(6.0)
        hall = feeders_of(lab)["hall"]
        assert hall.room_w == pytest.approx((30.0 - 1.0 - 17.92) * MW, rel=1e-3)
        assert worst_w(lab, hall.is_below) <= hall.room_w

    feeder = HALL | {"limit_megawatt": 30.0, "nodes": ["training-0", "training-9"]}
    play("steady", begin=lambda lab: None, react=react, site={"feeders": [feeder]})


def test_fallback_must_fit_every_feeder() -> None:
    """Without a controller the fallback caps are all that keeps a breaker: `rampart check` proves them, or says no."""
    good, bad = site_with(HALL, ROW), site_with(HALL | {"other_max_megawatt": 5.0}, ROW)
    assert check_site(good).is_good and not check_site(bad).is_good
    (found,) = [proof for proof in check_site(bad).proofs if not proof.is_proven]
    assert found.name == "fallback fits feeder hall" and "27.5 MW" in found.words and "26 MW" in found.words


def test_a_tree_made_by_hand_that_bites_its_tail_ends() -> None:
    """The reader refuses it; whoever builds settings otherwise must not hang a cycle."""
    site = site_with(HALL, ROW)
    hall, row = site.feeders
    loop = (replace(hall, within="row"), row)
    assert above("hall", loop) == ("row",)
