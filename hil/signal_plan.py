"""The signals a scenario declares: as the controller will know them, and as the referee will judge them."""

from __future__ import annotations

from dataclasses import dataclass

from controller.audit.referee import Referee
from controller.config.contract import load_contract, with_local_rows
from controller.settings import SiteSettings
from controller.types import (
    CeilingLimit,
    Contract,
    GridSignal,
    Limit,
    LimitId,
    LimitStatus,
    Provenance,
    SignalKind,
    replace,
)
from hil.scenario import Scenario
from hil.scenario_documents import SignalDoc

# DSX Flex does not say how a load is averaged: assumed as for ramp rows; the figure without a mean stands beside it.
TARGET_MEAN_S = 1.0


@dataclass(slots=True)
class SpanReferee:
    """A referee of its own for the span in which a signal had to be met."""

    signal_id: str
    referee: Referee
    from_s: float
    until_s: float
    is_fed: bool = False


def grid_signals(scenario: Scenario, site: SiteSettings) -> list[tuple[float, GridSignal]]:
    """Each declared signal with the time from which it is known."""
    feeds = scenario.settings.grid.feeds if scenario.settings.grid else ("main",)
    signals = []
    for number, doc in enumerate(scenario.doc.signals):
        limits = _rows(doc, site, origin=f"{scenario.doc.name}: signals.{number}") if doc.kind == "ramp_limit" else ()
        signals.append(
            (
                doc.t_s,
                GridSignal(
                    kind=SignalKind(doc.kind),
                    issuer=doc.issuer,
                    signal_id=_signal_id(number, doc),
                    correlation_id=_signal_id(number, doc),
                    feeds=feeds,
                    from_s=doc.t_s if doc.from_s is None else doc.from_s,
                    until_s=float("inf") if doc.until_s is None else doc.until_s,
                    target_w=None if doc.megawatt is None else doc.megawatt * 1e6,
                    limits=limits,
                    is_best_effort=doc.is_best_effort,
                    ramp_exempt=doc.ramp_exempt,
                ),
            )
        )
    return signals


def span_referees(scenario: Scenario, site: SiteSettings) -> list[SpanReferee]:
    spans = []
    for number, doc in enumerate(scenario.doc.signals):
        if doc.by_s is None:
            continue
        from_s = (doc.t_s if doc.from_s is None else doc.from_s) + doc.by_s
        until_s = float("inf") if doc.until_s is None else doc.until_s
        name = _signal_id(number, doc)
        if doc.kind == "ramp_limit":
            rows = _rows(doc, site, origin=f"{scenario.doc.name}: signals.{number}")
        else:
            assert doc.megawatt is not None
            source = Provenance(source=doc.issuer, date="", status=LimitStatus.LOCAL)
            rows = (CeilingLimit(LimitId("target"), doc.megawatt * 1e6, from_s, source, TARGET_MEAN_S, until_s),)
        renamed = tuple(replace(row, id=LimitId(f"signal.{name}.{row.id}")) for row in rows)
        contract = Contract(name=name, limits=renamed, registered_peak_w=site.registered_peak_w)
        spans.append(SpanReferee(name, Referee(contract, with_moments=False), from_s, until_s))
    return spans


def _rows(doc: SignalDoc, site: SiteSettings, *, origin: str) -> tuple[Limit, ...]:
    peak_w = site.registered_peak_w
    named = load_contract(doc.contract, registered_peak_w=peak_w) if doc.contract else None
    return with_local_rows(named, doc.limits, origin=origin, registered_peak_w=peak_w).limits


def _signal_id(number: int, doc: SignalDoc) -> str:
    return f"{doc.kind.replace('_', '-')}-{number}"
