"""The load bank in the daemon that ships: work saved, rows held, and what every fault of the bank leads to."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from controller import check
from controller.app import make_core
from controller.config.load import data_root
from controller.modes import Flag
from controller.replay import replay
from controller.settings import OwnSlope, SiteSettings
from controller.telemetry import Reporter
from controller.types import LoadBankState, Mode
from drivers.metrics import Metrics
from hil.bench import RunRecord, run
from hil.matrix_lab import Lab, in_lab
from hil.result import result_of
from hil.run_log import BriefRecorder
from hil.scenario import Overrides, Scenario, parse_scenario
from hil.truth_log import Rows

CRASH_S = 32.0


def scenario(
    change: Callable[[dict[str, Any]], None] = lambda raw: None, *, overrides: Overrides | None = None
) -> Scenario:
    """The shipped scenario, shorter: little in the battery, the crash at 32 s."""
    text = (data_root() / "configs" / "scenarios" / "load-bank.yaml").read_text(encoding="utf-8")
    raw = copy.deepcopy(yaml.safe_load(text))
    raw["duration_s"] = 62
    raw["plant"]["battery"]["start_soc"] = 0.065
    raw["events"] = [{"kind": "drop", "t_s": CRASH_S, "slew_per_s": 1.9, "at_full_load": True}]
    change(raw)
    return parse_scenario(raw, overrides or Overrides(), origin="test.yaml")


@lru_cache(maxsize=4)
def shown(*, has_bank: bool = True, follow: str | None = None, policy: str | None = None) -> RunRecord:
    return run(scenario(overrides=Overrides(without_load_bank=not has_bank, follow=follow, controller=policy)))


def lost_frac(record: RunRecord) -> float:
    work: Any = result_of(record)["work"]
    return float(work["lost_frac"])


def at(rows: Rows, name: str, t_s: float) -> float:
    return float(rows.columns[name][int(np.searchsorted(rows.columns["t_s"], t_s))])


# ------------------------------------------------------------------------------------------------ what it is for


def test_a_bank_that_only_stands_ready_saves_the_work_that_a_crash_might_cost() -> None:
    """The same site, job, battery and crash: without the bank a tenth of the work is capped away, with it nothing."""
    with_bank, without = shown(), shown(has_bank=False)
    assert lost_frac(without) > 0.08 and lost_frac(with_bank) < 0.002
    assert result_of(with_bank)["compliant"] and result_of(without)["compliant"]
    ballast_w = with_bank.rows.columns["ballast_w"]
    before = with_bank.rows.columns["t_s"] < CRASH_S
    assert ballast_w[before].max() == 0.0, "it saves work without a watt drawn"
    assert 4e6 < ballast_w.max() <= 8e6 and ballast_w[-1] < ballast_w.max(), "and lets go as the target comes down"
    assert result_of(without)["load_bank"] is None


def test_the_battery_alone_could_not_have_ridden_this_crash_down() -> None:
    """Target less load is more than the battery takes; the meter stays on the target all the same."""
    rows = shown().rows
    t_s = float(rows.columns["t_s"][int(np.argmax(rows.columns["ballast_w"]))])
    assert at(rows, "ref_w", t_s) - at(rows, "load_w", t_s) > 14e6
    after = (rows.columns["t_s"] > t_s + 1.0) & (rows.columns["t_s"] < t_s + 30.0)
    assert np.abs(rows.columns["pcc_w"] - rows.columns["ref_w"])[after].max() < 0.3e6


@pytest.mark.slow
@pytest.mark.parametrize(("follow", "policy"), [("software", None), (None, "rule-max")])
def test_it_holds_with_our_own_loop_and_with_a_planner_that_knows_no_ballast(
    follow: str | None, policy: str | None
) -> None:
    record = shown(follow=follow, policy=policy)
    assert result_of(record)["compliant"] and lost_frac(record) < 0.01
    assert record.rows.columns["ballast_w"].max() > 4e6


def test_the_envelope_had_nothing_to_say() -> None:
    """What the bank is told is inside its bounds by itself."""
    assert result_of(shown())["envelope"] == {"violations": {}}


@pytest.mark.slow
def test_a_full_battery_leans_on_the_bank_until_the_target_is_down() -> None:
    """Nearly full, the battery takes less and less: the bank takes the rest, no plan fails, and the rows hold."""

    def full(raw: dict[str, Any]) -> None:
        raw["plant"]["battery"]["start_soc"] = 0.93
        raw["duration_s"] = 90

    record = run(scenario(full))
    result: Any = result_of(record)
    assert result["compliant"] and result["modes"] == {"normal": 1.0}
    assert result["load_bank"]["peak_w"] > 7.5e6 and result["battery"]["end_soc_frac"] < 0.951


# ------------------------------------------------------------------------------------------------ replay


def test_every_command_is_the_same_again(tmp_path: Path) -> None:
    """Image, command and acknowledgement of the bank are in the recording, and all that is needed is."""
    given = scenario()
    path = tmp_path / "run.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:

        async def story(lab: Lab) -> None:
            lab.recorder = BriefRecorder(file, lab.clock, until_s=1e9, header={"settings": given.settings})
            lab.start()
            await lab.run(10.0)
            lab.drop(18.0, 0.5)
            await lab.run(6.0)

        in_lab(story, given)
    found = replay(path, make_core)
    assert (found.different, found.first, found.missing_seq) == (0, None, None) and found.cycles >= 300
    with gzip.open(path, "rt", encoding="utf-8") as file:
        commands = [json.loads(line).get("command") for line in file]
    assert max(c["load_bank"]["setpoint_w"] for c in commands if c and c["load_bank"]) > 3e6


# ------------------------------------------------------------------------------------------------ faults


def bank_of(lab: Lab) -> Any:
    bank = lab.world.plant.load_bank
    assert bank is not None
    return bank


def floor_w(lab: Lab) -> float:
    return lab.traces[-1].decision.floor.sure_w


def safe_w(lab: Lab) -> float:
    track = lab.traces[-1].decision.track
    assert track is not None
    return track.g_safe_w


async def armed(lab: Lab) -> None:
    lab.start()
    await lab.until(lambda: bool(lab.traces) and floor_w(lab) > 7e6, within_s=10.0)
    await lab.run(4.0)


def trip(lab: Lab) -> None:
    bank_of(lab).trip()


def local(lab: Lab) -> None:
    bank_of(lab).is_remote = False


def wire_off(lab: Lab) -> None:
    lab.fault("load_bank", "off")


def garbage(lab: Lab) -> None:
    lab.fault("load_bank", "garbage")


FAULTS: dict[str, tuple[Callable[[Lab], None], Flag]] = {
    "trips": (trip, Flag.LOAD_BANK_LIMITED),
    "local control": (local, Flag.LOAD_BANK_LIMITED),
    "no answer": (wire_off, Flag.LOAD_BANK_LOST),
    "garbage": (garbage, Flag.LOAD_BANK_LOST),
}


def heal(lab: Lab) -> None:
    lab.heal()
    bank_of(lab).reset()
    bank_of(lab).is_remote = True


@pytest.mark.parametrize("name", FAULTS)
def test_a_bank_that_is_lost_counts_for_nothing_at_once_and_comes_back(name: str) -> None:
    """The floor goes, the set of safe targets with it, and caps make up for it; nothing breaks; then all returns."""
    begin, flag = FAULTS[name]

    async def story(lab: Lab) -> None:
        await armed(lab)
        before_w = safe_w(lab)
        since_s = lab.now_s
        begin(lab)
        await lab.until(lambda: floor_w(lab) == 0.0, within_s=0.6)
        assert safe_w(lab) < before_w - 5e6
        await lab.until(lambda: lab.saw(flag, since_s=since_s), within_s=1.0)
        assert lab.worst_mode(since_s) is Mode.DEGRADED
        assert lab.traces[-1].decision.why_no_floor
        await lab.run(4.0)
        heal(lab)
        await lab.until(lambda: floor_w(lab) > 7e6, within_s=3.0)
        await lab.until(lambda: lab.last.mode is Mode.NORMAL, within_s=15.0)

    assert in_lab(story, scenario()).broken() == []


def test_a_bank_that_reports_its_last_for_ever_is_found_out_when_it_is_needed() -> None:
    """Stuck at nothing while it is told to draw: after a second it counts no more, and that is said."""

    async def story(lab: Lab) -> None:
        await armed(lab)
        lab.fault("load_bank", "stuck")
        lab.drop(18.0, 0.5)
        await lab.until(lambda: lab.saw(Flag.LOAD_BANK_NOT_OBEYING), within_s=4.0)
        assert floor_w(lab) == 0.0

    in_lab(story, scenario())


def test_a_deaf_bank_is_found_out_and_the_rest_of_the_site_goes_on() -> None:
    """It acknowledges and draws nothing in the very crash it was for: what it lacks shows on the meter, once."""

    async def story(lab: Lab) -> None:
        await armed(lab)
        bank_of(lab).is_deaf = True
        lab.drop(18.0, 0.5)
        await lab.until(lambda: lab.saw(Flag.LOAD_BANK_NOT_OBEYING), within_s=4.0)
        assert floor_w(lab) == 0.0 and lab.last.mode is Mode.DEGRADED
        await lab.run(10.0)
        assert lab.traces[-1].acks.battery

    in_lab(story, scenario())


def test_a_bank_that_trips_in_the_middle_of_the_ride_is_one_step_and_not_two() -> None:
    """Some 3 MW are gone at once, whoever controls; the battery goes on at its limit and the target comes down."""

    async def story(lab: Lab) -> None:
        await armed(lab)
        lab.drop(18.0, 0.5)
        await lab.until(lambda: bank_of(lab).power_w > 2.5e6, within_s=3.0)
        await lab.run(1.0)
        bank_of(lab).trip()
        await lab.run(20.0)
        assert lab.last.mode is Mode.DEGRADED and lab.traces[-1].checked.command.load_bank is None

    lab = in_lab(story, scenario())
    swings = [r for r in lab.verdicts().limits if "swing" in r.id]
    assert swings[0].worst < 5e6 + 3.6e6, "the trip's own step, and what the row allows beside it"


def test_hot_it_stops_and_says_so_before_it_is_counted_on() -> None:
    """A bank with little heat left is worth little: the floor shrinks to what it can hold until the target is down."""

    def small(raw: dict[str, Any]) -> None:
        raw["site"]["load_bank"] |= {"energy_megawatt_hour": 0.03, "recovery_megawatt": 0}

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(8.0)
        assert 0.5e6 < floor_w(lab) < 4e6

    in_lab(story, scenario(small))


def test_without_the_controller_the_bank_lets_go_by_itself_inside_the_rows() -> None:
    """Killed in the middle of the ride: orders lapse, bank and battery come back together at the contract's slope."""

    async def story(lab: Lab) -> None:
        await armed(lab)
        lab.drop(18.0, 0.5)
        await lab.until(lambda: bank_of(lab).power_w > 2.5e6, within_s=3.0)
        await lab.run(1.0)
        await lab.kill()
        await lab.run(5.5)
        assert bank_of(lab).state is LoadBankState.STANDBY and bank_of(lab).power_w > 1e6
        await lab.run(40.0)
        assert bank_of(lab).power_w < 0.05e6

    assert in_lab(story, scenario()).broken() == []


def test_the_next_controller_arms_it_again() -> None:
    """Not by the word of the last one: its own command, read back."""

    async def story(lab: Lab) -> None:
        await armed(lab)
        await lab.kill()
        lab.traces.clear()
        await lab.restart()
        await lab.run(0.12)
        assert lab.traces[0].decision.floor.sure_w == 0.0 and lab.traces[0].decision.why_no_floor
        await lab.until(lambda: floor_w(lab) > 7e6, within_s=5.0)

    assert in_lab(story, scenario()).broken() == []


def test_a_ceiling_comes_before_the_bank() -> None:
    """A load target below what the site draws: no ballast is bought against it, and import stays under it."""

    def limited(raw: dict[str, Any]) -> None:
        raw["signals"] = [{"t_s": 5, "kind": "load_target", "megawatt": 24, "by_s": 25}]

    async def story(lab: Lab) -> None:
        await armed(lab)
        await lab.run(25.0)
        since_s = lab.now_s
        lab.drop(14.0, 0.5)
        await lab.run(15.0)
        assert since_s > 0.0

    lab = in_lab(story, scenario(limited))
    assert lab.broken() == []
    pcc_w = lab.pcc_w()
    assert pcc_w[int(35.0 / 0.005) :].max() < 24.2e6


# ------------------------------------------------------------------------------------------------ told


def test_status_and_metrics_tell_of_it() -> None:
    """State, whether it counts, why not, and what it adds."""
    told: dict[str, Any] = {}

    async def story(lab: Lab) -> None:
        assert lab.site is not None
        metrics = Metrics(port=None)
        reporter = Reporter(lab.site, metrics=metrics)
        lab.start()
        assert lab.daemon is not None
        lab.daemon.observe(reporter.observe)
        await lab.run(6.0)
        told["armed"] = dict(reporter.document())["load_bank"]
        told["metrics"] = metrics
        bank_of(lab).is_remote = False
        await lab.run(1.0)
        told["local"] = dict(reporter.document())["load_bank"]

    in_lab(story, scenario())
    assert told["armed"]["is_armed"] and told["armed"]["floor_w"] > 7e6 and told["armed"]["state"] == "running"
    assert not told["local"]["is_armed"] and told["local"]["why_not"] == "it is in local control"
    assert told["local"]["floor_w"] == 0.0


def bank_site(change: Callable[[dict[str, Any]], None] = lambda raw: None) -> SiteSettings:
    site = scenario(change).settings.site
    assert site is not None
    return site


def test_check_counts_it_in_the_death_step_and_in_the_proof_of_fallback() -> None:
    """Until its order lapses a bank may draw all it has; one without a ramp of its own then drops out at once."""

    def stepping(raw: dict[str, Any]) -> None:
        raw["site"]["load_bank"]["own_ramp"] = False

    def tight(raw: dict[str, Any]) -> None:
        raw["site"]["registered_peak_megawatt"] = 24

    good, stepped, small = (
        check.check_site(bank_site()),
        check.check_site(bank_site(stepping)),
        check.check_site(bank_site(tight)),
    )
    assert good.death_step_w == 0.0 and good.is_good and "load bank until its order lapses 8 MW" in good.proofs[0].words
    assert stepped.death_step_w == 8e6 and any("drops out at once" in note for note in stepped.notes)
    assert not small.proofs[0].is_proven, "12.5 + 8.5 MW would fit 24 MW, with the bank's 8 they do not"
    assert any("count as load that stays after a crash" in note for note in good.notes)
    coarse = OwnSlope(min_w_per_s=1e6, step_w_per_s=0.0, where="x", is_shared=False)
    assert check.check_site(bank_site(), bank_slope=coarse).death_step_w == 8e6


def test_check_foresees_the_dip_until_the_bank_has_come_on() -> None:
    """A drop of 18 MW on a battery of 13: 5 MW are missing for the bank's 0.2 s, a megawatt on means of a second."""
    alone = check.crash_reading(bank_site(lambda raw: raw["site"].pop("load_bank")), mean_s=1.0, drop_w=18e6)
    lent = check.crash_reading(bank_site(), mean_s=1.0, drop_w=18e6)
    small = check.crash_reading(bank_site(), mean_s=1.0, drop_w=12e6)
    assert alone is not None and lent is not None and small is not None
    assert lent.dip.mean_w - alone.dip.mean_w == pytest.approx(5e6 * 0.175, rel=0.05)
    assert small.dip.mean_w < alone.dip.mean_w, "what the battery takes alone waits for nobody"
