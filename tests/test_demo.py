"""The demo's files and words: what the bench may change in a shipped file, and what it says of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from controller.check import check_site, crash_reading, with_ramp
from controller.config.load import data_root
from controller.config.site import load_settings
from controller.errors import BadInput
from controller.types import Direction, FloatArray, GridSignal, LimitId, LimitStatus, Provenance, RampLimit, SignalKind
from drivers.dsx_extension import SetRampLimitData
from drivers.dsx_payloads import SetLoadTargetData
from hil.bench import Progress
from hil.command import run_and_report
from hil.demo import Board
from hil.plant.site import TruthBlock
from hil.report_limits import window_uses
from hil.scenario import Overrides, load_scenario
from hil.truth_log import CSV_COLUMNS, ROW_S, Rows
from hil.wire import Snapshot
from hil.wire_config import Ports, filled_node, filled_site, write_files
from hil.wire_gpus import check_sample
from hil.wire_record import Account, Crash, cut, dropped_w, predictions, view_of, wire_facts, words_of
from hil.wire_run import run_wire
from hil.wire_signals import payload_of
from hil.world import Happening, build_world

DEMO = data_root() / "configs" / "demo"
PORTS = Ports(broker=1, meter=2, battery=3, ups=4)
ADDRESSES = {"host", "port", "key_files", "signing_key_file", "state_dir", "runtime_dir"}
SOURCE = Provenance(source="test", date="", status=LimitStatus.LOCAL)


def differing_keys(a: Any, b: Any, name: str = "") -> set[str]:
    """Names of the leaves at which two documents differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {k for key in a.keys() | b.keys() for k in differing_keys(a.get(key), b.get(key), key)}
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and a and isinstance(a[0], dict):
        return {k for x, y in zip(a, b, strict=True) for k in differing_keys(x, y, name)}
    return set() if a == b else {name}


@pytest.mark.parametrize("name", ["site", "node"])
def test_only_addresses_of_a_shipped_file_are_filled_in(name: str, tmp_path: Path) -> None:
    """The processes run from what ships: hosts, ports, keys and folders apart, not a value differs."""
    raw = yaml.safe_load((DEMO / f"{name}.yaml").read_text(encoding="utf-8"))
    if name == "site":
        made = filled_site(raw, tmp_path, tmp_path, PORTS, agent_key=tmp_path / "agent.jwk")
    else:
        made = filled_node(raw, tmp_path, tmp_path, PORTS)
    assert differing_keys(raw, made) <= ADDRESSES


def test_the_files_written_are_valid_and_name_real_keys(tmp_path: Path) -> None:
    """Both load; every key they name is on disk, private keys for nobody else to read."""
    files = write_files(load_scenario("demo", Overrides()), tmp_path / "wire", tmp_path, PORTS)
    assert files.site.site is not None and files.node.node is not None and files.site.grid is not None
    assert files.site.battery is not None and files.site.battery.port == PORTS.battery
    keys = [Path(k) for issuer in files.site.grid.issuers for k in issuer.key_files]
    assert all(k.is_file() for k in keys)
    assert all(k.stat().st_mode & 0o077 == 0 for k in files.issuer_keys.values())


def test_the_scenario_speaks_of_the_nodes_own_gpus() -> None:
    """One group per GPU of the sampled node, each as large as the sample; another number is refused."""
    scenario = load_scenario("demo", Overrides())
    node = load_settings(DEMO / "node.yaml").node
    assert node is not None and scenario.doc.wire is not None
    plant = build_world(scenario).plant
    assert len(plant.fleet.groups) == 8
    check_sample(node.stands_for, plant, origin="node.yaml")
    with pytest.raises(BadInput, match=r"sampled.nodes: 7: .* 4000"):
        check_sample(7, plant, origin="node.yaml")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (Overrides(clock="virtual"), "--clock virtual"),
        (Overrides(controller="none"), "--controller none"),
    ],
)
def test_what_wires_cannot_do_is_refused(overrides: Overrides, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        run_and_report("demo", overrides, out=tmp_path, is_wire=True)


def test_a_scenario_without_wires_is_refused(tmp_path: Path) -> None:
    scenario = load_scenario("campus-90mw", Overrides(clock="real"))
    with pytest.raises(BadInput, match=r"wire|grid"):
        run_wire(scenario, out=tmp_path, show=lambda _: None)


def signal_of(kind: SignalKind, *, target_w: float | None = None, limits: tuple[RampLimit, ...] = ()) -> GridSignal:
    return GridSignal(
        kind=kind,
        issuer="grid-operator",
        signal_id="s",
        correlation_id="s",
        feeds=("main",),
        from_s=10.0,
        until_s=70.0,
        target_w=target_w,
        limits=limits,
        is_best_effort=False,
        ramp_exempt=False,
    )


EVENING = RampLimit(LimitId("local.evening"), 2e6, 5.0, Direction.BOTH, 0.2, SOURCE)


def test_signals_become_the_messages_an_issuer_would_send() -> None:
    """Power, window, direction and end survive the way into the payload; a start that is now is left out."""
    target = payload_of(signal_of(SignalKind.LOAD_TARGET, target_w=19e6), now_s=10.0, utc_s=1_800_000_000.0)
    assert isinstance(target, SetLoadTargetData)
    constraint, interval = target.targets[0].load_constraint, target.targets[0].interval
    assert constraint is not None and constraint.watts == 19e6
    assert interval.start_time is None and interval.end_time == "2027-01-15T08:01:00.000000Z"
    ramp = payload_of(signal_of(SignalKind.RAMP_LIMIT, limits=(EVENING,)), now_s=0.0, utc_s=1_800_000_000.0)
    assert isinstance(ramp, SetRampLimitData) and ramp.requests[0].limits is not None
    assert ramp.requests[0].interval.start_time == "2027-01-15T08:00:10.000000Z"
    row = ramp.requests[0].limits[0].model_dump()
    assert (row["id"], row["max"]["value"], row["window_s"], row["direction"]) == ("evening", 2e6, 5.0, "both")


def test_signals_in_words() -> None:
    assert words_of(signal_of(SignalKind.LOAD_TARGET, target_w=19e6)) == "grid-operator asks: load target 19 MW"
    said = words_of(signal_of(SignalKind.RAMP_LIMIT, limits=(EVENING,)))
    assert said == "grid-operator asks: at most 2 MW within any 5 s"


def test_the_truth_ends_where_the_run_ends() -> None:
    """A run in real time goes a few steps beyond its end; they are not judged."""
    blocks = [block(0.0, 200), block(1.0, 200), block(2.0, 200)]
    kept = list(cut(blocks, until_s=1.5))
    assert [b.pcc_w.size for b in kept] == [200, 101]
    assert kept[-1].t0_s + (kept[-1].pcc_w.size - 1) * kept[-1].dt_s == pytest.approx(1.5)


def block(t0_s: float, n: int) -> TruthBlock:
    ones: FloatArray = np.ones(n)
    return TruthBlock(t0_s, 0.005, ones, ones, ones, ones, ones, ones, ones)


def test_a_status_becomes_a_tick_on_the_runs_time() -> None:
    """Unknown numbers become NaN, margins without end are left out, a controller that only starts gives nothing."""
    power = {"target_w": 1e6, "low_w": None, "high_w": 2e6, "cap_frac": 0.9}
    margins = [
        {"name": "power", "contingency": "full_site", "value": 5.0, "unit": "W"},
        {"name": "energy", "contingency": "full_site", "value": None, "unit": "J"},
    ]
    status = {"mode": "NORMAL", "t_mono_s": 112.5, "power": power, "margins": margins, "tick": {"overruns": 1}}
    status["reasons"] = [
        "the site meter is silent: look at its wire; clears on reset",
        "a node is lost (over): look; clears on reset",
    ]
    view = view_of(status, begin_s=100.0)
    assert view is not None and view.t_s == 12.5 and view.ref_w == 1e6 and np.isnan(view.low_w)
    assert [m.name for m in view.margins] == ["power"]
    assert view.reasons == ("the site meter is silent: look at its wire",)
    assert view_of({"mode": "STARTING"}, begin_s=100.0) is None
    waiting = view_of(status | {"mode": "SHED", "reasons": status["reasons"][1:]}, begin_s=100.0)
    assert waiting is not None and waiting.reasons == ("a node is lost (over): look",)


def test_what_the_envelope_narrowed_is_counted_by_the_controller_itself() -> None:
    """The bench sees a few status documents a second, not every cycle: a narrowed command between two would be lost."""
    account = Account(status={"envelope": {"by_invariant": {"6": 2, "11": 1}}})
    assert wire_facts(account, {}).violations == {6: 2, 11: 1}
    assert wire_facts(Account(), {}).violations == {}


def software_site() -> Any:
    return load_scenario("demo", Overrides(follow="software")).settings.site


def crash_of(depth_w: float) -> Crash:
    """Power that rises slowly, falls by `depth_w` for 0.5 s at 80 s, and is back."""
    t_s = np.arange(78.0, 100.0, 0.005)
    pcc_w = 2e7 + 1e4 * (t_s - 78.0) - np.where((t_s >= 80.0) & (t_s < 80.5), depth_w, 0.0)
    return Crash(80.0, t_s, pcc_w, 20.09e6)


def test_the_crash_is_foreseen_per_row_and_beside_it_what_it_read() -> None:
    """The row that the grid tightened breaks by prediction under software following, and holds at device level."""
    signals = [signal_of(SignalKind.RAMP_LIMIT, limits=(EVENING,))]
    device = load_scenario("demo", Overrides()).settings.site
    assert device is not None
    for site, breaks in ((software_site(), True), (device, False)):
        found = {str(p["limit"]): p for p in predictions(site, signals, crash_of(2e6))}
        assert found["local.evening"]["full_breaks"] is breaks
        assert found["local.evening"]["predicted_w"] == pytest.approx(found["local.evening"]["full_w"], rel=0.01)
        assert found["local.evening"]["measured_w"] == pytest.approx(2e6, rel=0.02), "0.2 s mean: all of it"
        assert found["ieso-ramp.swing-15s"]["measured_w"] == pytest.approx(1e6, rel=0.02), "1 s mean: half of it"


def test_a_smaller_drop_is_foreseen_smaller() -> None:
    """Caps at the time of the crash make the block smaller; the figure for the whole site stays beside it."""
    whole = crash_of(1e6)
    half = predictions(software_site(), [], Crash(whole.at_s, whole.t_s, whole.pcc_w, 10.0e6))[0]
    assert half["predicted_w"] == pytest.approx(0.5 * half["full_w"], rel=0.05)  # type: ignore[operator]


def test_the_drop_that_came_is_read_from_the_load() -> None:
    t_s = np.arange(0.0, 10.0, ROW_S)
    load_w = np.where(t_s < 5.0, 3e7, np.where(t_s < 5.5, 2e7, 1e7))
    rows = Rows({"t_s": t_s, "load_w": load_w})
    happening = Happening(t_s=4.98, id="drop", kind="drop", detail="", drop_w=2.2e7, within_s=0.526)
    assert dropped_w(rows, happening) == 2e7
    load_w[t_s == t_s[t_s <= happening.t_s][-1]] = 2.6e7  # the row in which it begins holds a part of the fall
    assert dropped_w(Rows({"t_s": t_s, "load_w": load_w}), happening) == 2e7


def test_without_a_crash_nothing_is_compared() -> None:
    assert predictions(software_site(), [], None) == []


def test_check_explains_a_limit_the_grid_might_ask_for() -> None:
    """The extra row is found with the same figure that the demo compares with."""
    site = software_site()
    findings = check_site(with_ramp(site, max_w=2e6, window_s=5.0, mean_s=0.2))
    reading = crash_reading(site, mean_s=0.2)
    assert reading is not None
    row = next(r for r in findings.rows if r.id == "asked")
    assert row.holds is False and f"{reading.dip.mean_w / 1e6:.3g} MW" in row.hardware


def test_window_use_finds_the_change_within_the_window_and_no_other() -> None:
    """A ramp of 0.1 MW/s uses 0.5 MW of a 5 s window once it has run that long, whatever came before."""
    t_s = np.arange(0.0, 40.0, ROW_S)
    power_w = np.where(t_s < 10.0, 5e6, 5e6 + np.minimum(t_s - 10.0, 20.0) * 1e5)
    rows = Rows({name: np.zeros(t_s.size) for name in CSV_COLUMNS} | {"t_s": t_s, "pcc_w": power_w})
    site = software_site()
    late = signal_of(SignalKind.RAMP_LIMIT, limits=(EVENING,))
    use = next(u for u in window_uses(rows, site, [late]) if u.label.endswith("evening"))
    at = dict(zip(np.round(use.t_s, 2).tolist(), use.change_w.tolist(), strict=True))
    assert at[10.0] == 0.0
    assert at[25.0] == pytest.approx(0.5e6, rel=0.02)
    assert at[39.0] == pytest.approx(0.0, abs=1.0)


def test_window_use_begins_where_a_mean_has_its_length() -> None:
    """The first instant of a run is no mean: 6 MW for 0.2 s, of which a 1 s mean sees 1.2, must not be drawn as 6."""
    t_s = np.arange(0.0, 20.0, ROW_S)
    rows = Rows({name: np.zeros(t_s.size) for name in CSV_COLUMNS})
    rows = Rows(rows.columns | {"t_s": t_s, "pcc_w": np.where(t_s < 0.2, 11e6, 5e6)})
    uses = [u for u in window_uses(rows, software_site(), []) if "swing" in u.label]
    assert uses and all(u.change_w.max() == pytest.approx(1.2e6, rel=0.01) for u in uses)
    assert all(u.t_s[0] == pytest.approx(0.95) for u in uses)
    short = Rows({name: column[:5] for name, column in rows.columns.items()})
    assert window_uses(short, software_site(), []) == (), "nothing of it is a mean"


def test_the_board_draws_and_speaks() -> None:
    """On a terminal it draws; elsewhere it says a line per stage and one every few seconds."""
    progress = Progress(
        t_s=1.0,
        duration_s=9.0,
        pcc_w=1e7,
        load_w=2e7,
        battery_w=1e7,
        soc_frac=0.5,
        ref_w=1e7,
        low_w=float("-inf"),
        high_w=float("nan"),
        cap_frac=0.9,
        ratio=1.0,
    )
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
        with Board(console, "demo") as board:
            board.show(Snapshot("opening ports"))
            board.show(Snapshot("running", progress, "NORMAL"))
        written = console.file
        assert isinstance(written, io.StringIO)
        assert "10.00" in written.getvalue()
