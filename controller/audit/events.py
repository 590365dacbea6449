"""What one unannounced event did to power at the point of common coupling, reported alone and not only within a row.

A job crash, a battery trip, a controller's death: how much load moved and how fast, how far power left its reference
before anything answered, how much energy that was, and when it was back inside for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.types import FloatArray

BEFORE_S = 1.0  # load and power before an event are their means over this
SETTLE_S = 2.0  # a drop is over by then (a 50 MW block at 1.9 pu/s takes half a second; NERC white paper, 2025)
SLEW_S = 0.02  # slopes are taken over at least one mains cycle
STAYS_S = 1.0  # back inside means inside for this long


@dataclass(frozen=True, slots=True)
class EventReport:
    """`drop_w` is positive for a fall of load. `back_inside_s` is None where power was not back when watching ended."""

    t_s: float
    kind: str
    drop_w: float
    slew_w_per_s: float
    dip_raw_w: float
    area_j: float
    back_inside_s: float | None

    def to_json(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


def analyse_events(
    events: Sequence[tuple[float, str]],
    *,
    t_s: FloatArray,
    pcc_w: FloatArray,
    load_w: FloatArray,
    inside_w: float,
    reference_w: FloatArray | None = None,
    watch_s: float = 60.0,
) -> tuple[EventReport, ...]:
    """One report per (time, kind), in order; each is watched until the next, or for `watch_s`.

    `reference_w` is where power should have been (the grid target); without it, its mean before the event.
    """
    times = [at for at, _ in events] + [np.inf]
    return tuple(
        analyse_event(
            at,
            kind,
            t_s=t_s,
            pcc_w=pcc_w,
            load_w=load_w,
            inside_w=inside_w,
            reference_w=reference_w,
            watch_s=min(watch_s, times[i + 1] - at),
        )
        for i, (at, kind) in enumerate(events)
    )


def analyse_event(
    event_s: float,
    kind: str,
    *,
    t_s: FloatArray,
    pcc_w: FloatArray,
    load_w: FloatArray,
    inside_w: float,
    reference_w: FloatArray | None = None,
    watch_s: float = 60.0,
) -> EventReport:
    """The report on one event; `inside_w` is how near the reference counts as back. ValueError outside the record."""
    first = int(np.searchsorted(t_s, event_s))
    end = int(np.searchsorted(t_s, event_s + watch_s, side="right"))
    if first >= t_s.size or end <= first:
        raise ValueError(f"no samples after the event at {event_s:g} s")
    early = slice(int(np.searchsorted(t_s, event_s - BEFORE_S)), max(first, 1))
    t = t_s[first:end]
    load_before = float(load_w[early].mean())
    drop_w = _furthest(load_before - load_w[first:end][t <= event_s + SETTLE_S])
    ahead = pcc_w[first:end] - (float(pcc_w[early].mean()) if reference_w is None else reference_w[first:end])
    back = _back_inside(t, ahead, inside_w)
    until = t <= (event_s + watch_s if back is None else back)
    return EventReport(
        t_s=event_s,
        kind=kind,
        drop_w=drop_w,
        slew_w_per_s=_steepest(t_s, load_w, event_s),
        dip_raw_w=abs(_furthest(ahead)),
        area_j=float(np.trapezoid(np.abs(ahead[until]), t[until])),
        back_inside_s=None if back is None else max(back - event_s, 0.0),
    )


def _furthest(values: FloatArray) -> float:
    """The value furthest from zero, with its sign."""
    return float(values[int(np.argmax(np.abs(values)))]) if values.size else 0.0


def _steepest(t: FloatArray, load: FloatArray, event_s: float) -> float:
    """Steepest slope of load from just before the event until it has settled."""
    a = max(int(np.searchsorted(t, event_s)) - 1, 0)
    b = int(np.searchsorted(t, event_s + SETTLE_S, side="right"))
    t, load = t[a:b], load[a:b]
    if t.size < 2:
        return 0.0
    later = np.minimum(np.searchsorted(t, t + SLEW_S * (1.0 - 1e-9)), t.size - 1)
    span = t[later] - t
    known = span > 0.0
    return float(np.max(np.abs(load[later] - load)[known] / span[known])) if known.any() else 0.0


def _back_inside(t: FloatArray, ahead: FloatArray, inside_w: float) -> float | None:
    """First time after leaving at which power is inside and stays so; the first sample where it never left."""
    outside = np.flatnonzero(np.abs(ahead) > inside_w)
    if not outside.size:
        return float(t[0])
    stops = np.append(np.flatnonzero(np.diff(outside) > 1), outside.size - 1)
    for stop in stops:
        back = int(outside[stop]) + 1
        if back >= t.size:
            return None
        following = outside[outside > back]
        leaves_s = float(t[following[0]]) if following.size else float("inf")
        if leaves_s - t[back] >= STAYS_S:
            return float(t[back])
    return None
