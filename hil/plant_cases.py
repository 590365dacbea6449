"""Which runs the plant bench makes: the named figures, then every trace on every follower, with and without a target.

Order is importance: what an interrupted bench has not reached is the least of it. `must` is what a row promises; the
bench fails where a promise is not kept. Rows without one are measured and shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from controller.types import frozen, replace

TARGET_FRAC = 0.75  # of the record's mean load: a quarter less
TARGET_FROM_S = 300.0
TARGET_S = 3600.0
TARGET_BY_S = 300.0  # judged from then on: 25 MW take 75 s at 20 MW a minute, and the battery must stay crash-safe
IESO = ("ieso-ramp",)
ALL_AT_ONCE = ("ieso-ramp", "caiso", "ercot", "aeso", "southern", "atc-spp")
FIGURE_TRACE = "mlperf_gpt3_175b_64node_512h100_AC_2s.csv"
# Default lengths, so that all of it takes minutes: whole records where a figure is quoted, beginnings elsewhere.
WHOLE_S = 4000.0
PART_S, LONG_PART_S = 300.0, 900.0
START_S = {"mlperf_h200x8_llama2-70b-99_offline_maxq500w_1s.csv": 600.0}  # idle until 500 s
EIGHT, SWITCHED = "all-contracts", "all-contracts-switched"
CRASH, CRASH_S = "campus-90mw-crash", 2000.0  # the second job is back at 1,940 s
LOST_FRAC_MAX = 0.01  # of the work, where a figure promises that the contract costs almost nothing

Edge = Literal["linear", "hold"]
Follow = Literal["device", "software", ""]  # none: nobody follows
Must = Literal["", "held", "broken"]
Group = Literal["figures", "traces", "field"]


@frozen
class Case:
    """One row. `must` is judged on the contract, `lost_frac_max` on the work; both only where the run is not cut."""

    group: Group
    title: str
    scenario: str
    trace: str
    edge: Edge
    follow: Follow
    controller: Literal["mpc", "rule", "none"]
    contracts: tuple[str, ...]  # none: the scenario's own
    has_target: bool = False
    seconds_max: float = WHOLE_S
    must: Must = ""
    lost_frac_max: float | None = None

    def whole(self) -> Case:
        """The same over the whole record."""
        return replace(self, seconds_max=CRASH_S if self.scenario == CRASH else WHOLE_S)

    def inputs(self) -> list[object]:
        """What decides the run: all but the words and promises around it."""
        return [self.scenario, self.trace, self.edge, self.follow, self.controller, self.contracts, self.has_target]


def figure_cases(trace: str) -> tuple[Case, ...]:
    """The named figures of campus-90mw: profiles alone and at once, hold edges, crashes, a switched contract."""
    cheap = LOST_FRAC_MAX
    alone = [
        _figure(trace, name, (name,), seconds_max=PART_S, must="held", lost_frac_max=cheap)
        for name in ALL_AT_ONCE
        if name not in IESO
    ]
    six = "six profiles at once"
    return (
        _figure(trace, "ieso-ramp", IESO, must="held", lost_frac_max=cheap),
        _figure(trace, "ieso-ramp, no controller", IESO, follow=""),
        _figure(trace, six, ALL_AT_ONCE, must="held", lost_frac_max=cheap),
        _figure(trace, f"{six}, no controller", ALL_AT_ONCE, follow=""),
        _figure(trace, "ieso-ramp", IESO, edge="hold", seconds_max=LONG_PART_S),
        _figure(
            trace,
            "ieso-ramp",
            IESO,
            edge="hold",
            follow="device",
            seconds_max=LONG_PART_S,
            must="held",
            lost_frac_max=cheap,
        ),
        _figure(trace, six, ALL_AT_ONCE, edge="hold", seconds_max=LONG_PART_S),
        _figure(trace, six, ALL_AT_ONCE, edge="hold", follow="device", seconds_max=LONG_PART_S, must="held"),
        _figure(trace, "two crashes of 62 MW", (), scenario=CRASH, follow="device", must="held"),
        _figure(trace, "two crashes of 62 MW", (), scenario=CRASH, must="broken"),
        _figure(trace, "contract switched", (), scenario=SWITCHED, follow="device", seconds_max=3100.0, must="held"),
        _figure(trace, "eight profiles at once", (), scenario=EIGHT, follow="device", seconds_max=1800.0, must="held"),
        _figure(trace, "ieso, with its oscillation row", ("ieso",), seconds_max=LONG_PART_S),
        _figure(trace, "ieso, with its oscillation row", ("ieso",), follow="device", seconds_max=LONG_PART_S),
        _figure(trace, "ieso, with its oscillation row", ("ieso",), edge="hold", seconds_max=PART_S),
        _figure(trace, "ieso, with its oscillation row", ("ieso",), edge="hold", follow="device", seconds_max=PART_S),
        *alone,
    )


def trace_cases(traces: Sequence[tuple[str, bool]]) -> tuple[Case, ...]:
    """Every trace (name, whether it is too fine for edges to matter) under every follower and target."""
    cases: list[Case] = []
    for has_target in (False, True):
        for name, is_fine in traces:
            for edge in _edges(is_fine):
                if not has_target:
                    cases.append(_on_trace(name, edge, follow=""))
                cases += [_on_trace(name, edge, follow=f, has_target=has_target) for f in _FOLLOWERS]
    return tuple(cases)


def field_cases(traces: Sequence[tuple[str, bool]]) -> tuple[Case, ...]:
    """The slow site, by its own loop and by its battery's."""
    return tuple(
        Case(
            group="field",
            title=f"field, {name}",
            scenario="field",
            trace=name,
            edge=edge,
            follow=follow,
            controller="mpc",
            contracts=IESO,
            seconds_max=START_S.get(name, PART_S),
        )
        for name, is_fine in traces
        for edge in _edges(is_fine)
        for follow in (_FOLLOWERS if name == FIGURE_TRACE else _SOFTWARE)
    )


_SOFTWARE: tuple[Follow, ...] = ("software",)
_FOLLOWERS: tuple[Follow, ...] = ("device", "software")


def _edges(is_fine: bool) -> tuple[Edge, ...]:
    return ("linear",) if is_fine else ("linear", "hold")


def _on_trace(name: str, edge: Edge, *, follow: Follow, has_target: bool = False) -> Case:
    return Case(
        group="traces",
        title=name,
        scenario="campus-90mw",
        trace=name,
        edge=edge,
        follow=follow,
        controller="mpc" if follow else "none",
        contracts=IESO,
        has_target=has_target,
        seconds_max=_trace_seconds(name, edge, follow, has_target=has_target),
    )


def _trace_seconds(name: str, edge: Edge, follow: Follow, *, has_target: bool) -> float:
    """Of the record that the figures are quoted on, all where they run it whole, and an hour of a target."""
    if name != FIGURE_TRACE:
        return START_S.get(name, PART_S)
    if has_target:
        return PART_S if edge == "hold" else WHOLE_S
    return LONG_PART_S if follow == "device" or edge == "hold" else WHOLE_S


def _figure(
    trace: str,
    title: str,
    contracts: tuple[str, ...],
    *,
    scenario: str = "campus-90mw",
    edge: Edge = "linear",
    follow: Follow = "software",
    seconds_max: float = WHOLE_S,
    must: Must = "",
    lost_frac_max: float | None = None,
) -> Case:
    return Case(
        group="figures",
        title=title,
        scenario=scenario,
        trace=trace,
        edge=edge,
        follow=follow,
        controller="mpc" if follow else "none",
        contracts=contracts,
        seconds_max=CRASH_S if scenario == CRASH else seconds_max,
        must=must,
        lost_frac_max=lost_frac_max,
    )
