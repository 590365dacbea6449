"""What `rampart status` says: reasons, limits, signals, modes, in words a person acts on."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from controller.cli.status import _print
from controller.cli.status_words import lines
from controller.reasons import MEANS, said
from controller.telemetry import NOTHING_YET, Reporter
from controller.types import Mode, NodeReport, Reading
from drivers.metrics import Metrics
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab


def test_a_refresh_declared_too_short_is_told_with_what_it_is_and_what_to_correct() -> None:
    told: list[object] = []

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        reporter = Reporter(lab.site, metrics=Metrics(None), core=lab.daemon.core)
        lab.daemon.observe(reporter.observe)
        await lab.run(4.0)
        told.append(reporter.document()["reasons"])

    in_lab(story, lab_scenario("steady", meter_plant={"refresh_s": 0.2}))
    assert told == [
        [
            "the site meter's values stand for longer than declared (0.2 s): correct pcc_meter.update_s in the site"
            " file; clears once its cause has been gone for ten planner periods"
        ]
    ]


def test_a_reason_names_who_is_meant_what_to_do_and_what_ends_it() -> None:
    sentences: list[str] = []

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(6.0)
        lab.fault("node:training-0", "off")
        await lab.run(9.0)
        trace = lab.traces[-1]
        sentences.extend(
            said(reason, trace.image, epoch=trace.checked.command.epoch) for reason in trace.decision.mode.reasons
        )
        lab.heal()
        await lab.run(4.0)
        trace = lab.traces[-1]
        sentences.extend(
            said(reason, trace.image, epoch=trace.checked.command.epoch) for reason in trace.decision.mode.reasons
        )

    in_lab(story, lab_scenario("steady"))
    assert (
        "a node agent is silent; its node counts at nameplate (training-0): look at rampart-node there, and at the"
        " broker; clears once its cause has been gone for ten planner periods"
    ) in sentences
    assert any("(over)" in sentence for sentence in sentences)


def test_status_prints_every_reason_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    shed = {"site": "lab", "mode": "SHED", "mode_since_s": 200.0, "contract": "c", "reasons": ["a", "b"],
            "unmet": ["x"], "power": {"pcc_w": 64_844_786.577, "soc_frac": 0.5, "load_source": "nodes"},
            "margins": []}  # fmt: skip
    _print(shed)
    shown = capsys.readouterr().out
    assert "because a" in shown and "because b" in shown and "SHED for 3 min" in shown
    assert "not met now, though control has begun: x" in shown, "limits are kept all the same"
    assert "64.84 MW" in shown and "state of charge 50.0 %" in shown
    _print(shed | {"mode": "STARTING"})
    assert "not armed: x" in capsys.readouterr().out, "nothing is written"


def test_status_says_how_near_each_limit_is_the_nearest_first() -> None:
    """What the runbook promises of it, on a living site: rows with what is left, caps, classes, signals, the loop."""
    found: list[list[str]] = []

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        reporter = Reporter(lab.site, metrics=Metrics(None), core=lab.daemon.core)
        lab.daemon.observe(reporter.observe)
        await lab.run(8.0)
        found.append(list(lines(json.loads(json.dumps(reporter.document())))))

    in_lab(story, lab_scenario("steady"))
    (told,) = found
    rows = [line for line in told if line.startswith("limit ")]
    assert len(rows) == 2 and "ieso-ramp.swing-15s" in rows[0] and "ieso-ramp.ramp-60s" in rows[1]
    assert all(re.search(r": [\d.]+ [kM]?W of [\d.]+ MW, [\d.]+ [kM]W left", row) for row in rows)
    for start, words in (("grid ", "admissible"), ("load ", "by the meter"), ("battery ", "state of charge"),
                         ("GPUs ", "on "), ("loop ", "skipped")):  # fmt: skip
        assert [line for line in told if line.startswith(start) and words in line], start


def test_status_names_signals_slowed_classes_and_what_runs_out() -> None:
    """Each part by its own words; a controller that only starts has none of them."""
    row = {"id": "r", "worst_w": 4e6, "limit_w": 5e6, "headroom_w": 1e6, "breach_s": 12.0, "is_estimate": True}
    empty = {"id": "s", "worst_w": None, "limit_w": 5e6, "headroom_w": None, "breach_s": None, "is_estimate": False}
    tier = {"class": "train", "tolerated_loss_frac": 0.1, "lost_frac": 0.2, "window_s": 3600.0, "is_exceeded": True}
    starting = {"site": "lab", "mode": "STARTING", "contract": "c", "reasons": [], "unmet": [], "margins": []}
    assert list(lines(starting)) == []
    told = list(lines(starting | {
        "power": {"target_w": 2e6, "load_w": 2e6, "load_source": "lost", "cap_frac": 0.5, "t_eff_s": 0.7},
        "gpus": 8, "nodes": 1, "tiers": [tier, tier | {"class": "calm", "lost_frac": 0.0}],
        "rows": [row, empty, empty | {"id": "target.1"}],
        "signals": [{"id": "1", "kind": "load_target", "issuer": "iso", "target_w": 15e6},
                    {"id": "2", "kind": "ramp_limit", "issuer": "iso", "target_w": None}],
    }))  # fmt: skip
    assert told == [
        "grid    not metered, target 2.00 MW, admissible any to any",
        "load    2.00 MW, nobody measures: the last value, its margin grows",
        "GPUs    8 on 1 node: caps leave 50.0 % of full in the mean",
        "class   train lost 20.00 % of its work within 60 min; 10 % is tolerated  EXCEEDED",
        "signal  load target of 15.00 MW, asked by iso",
        "signal  ramp limit, asked by iso",
        "limit   s: ? of 5.00 MW, ?",
        "limit   target of iso: ? of 5.00 MW, ?",
        "limit   r: 4.00 MW of 5.00 MW, 1.00 MW left (estimate), reached in 12 s at the present slope",
    ]


def test_status_says_what_every_mode_does() -> None:
    """Whoever reads FALLBACK at night need not know the table of modes."""
    assert set(MEANS) == set(Mode)
    seen: dict[str, str] = {}

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        reporter = Reporter(lab.site, metrics=Metrics(None), core=lab.daemon.core)
        lab.daemon.observe(reporter.observe)
        for seconds in (0.05, 3.0, 3.0, 3.0):
            document = reporter.document()
            seen[str(document["mode"])] = str(document["mode_means"])
            await lab.run(seconds)
            if seconds == 3.0:
                lab.fault("meter", "wrong", -1.0)
        seen["last"] = str(reporter.document()["mode_means"])

    in_lab(story, lab_scenario("steady"))
    assert seen["STARTING"] == NOTHING_YET and seen["NORMAL"] == MEANS[Mode.NORMAL]
    assert seen["last"] == MEANS[Mode.FALLBACK]


def test_a_gpu_above_its_limit_is_found_by_its_node() -> None:
    said_of: list[str] = []

    async def story(lab: Lab) -> None:
        def above(reading: Reading[NodeReport]) -> Reading[NodeReport]:
            report = reading.value
            power_w = 1.2 * report.power_limit_w if report.node_id == "training-2" else report.power_w
            return replace(reading, value=replace(report, power_w=power_w))

        lab.hooks.report = above
        lab.start()
        await lab.run(9.0)
        trace = lab.traces[-1]
        said_of.extend(
            said(reason, trace.image, epoch=trace.checked.command.epoch) for reason in trace.decision.mode.reasons
        )

    in_lab(story, lab_scenario("steady"))
    assert any("more than its power limit" in words and "(training-2)" in words for words in said_of), said_of
