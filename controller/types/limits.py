"""Grid limits as controller and auditor share them, and the contract they make up.

Fractions of the registered peak are already resolved, so every row holds watts. A new kind of limit begins here.
"""

from __future__ import annotations

from enum import StrEnum, unique

from controller.types.records import frozen
from controller.types.scalars import LimitId

# What a row may ask for, whoever wrote it. Beyond it no text goes, and sums and filters leave the range of numbers.
ROW_POWER_W_MAX = 1e12
ROW_TIME_S_MAX = 1e6
ROW_BAND_HZ = (0.01, 1000.0)  # least and greatest edge
ROW_SPAN_S_MAX = 600.0
ROW_SPAN_S_MIN = 0.1


@unique
class Direction(StrEnum):
    """Which way of moving a row bounds."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"


@unique
class RampReading(StrEnum):
    """What a ramp row compares."""

    WITHIN = "within"  # every pair of instants in the window
    ENDPOINT = "endpoint"  # the window's two ends only; the auditor's reading, never the controller's


@unique
class LimitStatus(StrEnum):
    """How binding the text is that a row was taken from."""

    PUBLISHED = "published"
    PROPOSED = "proposed"
    QUOTED = "quoted"
    LOCAL = "local"  # the site's own, or set over the wire


@frozen
class Provenance:
    """Where a limit comes from and what in it is our assumption."""

    source: str
    date: str
    status: LimitStatus
    assumption: str = ""


@frozen
class RampLimit:
    """P may move by at most `max_w` within `window_s`, in `direction`.

    That holds for every pair of instants in the window or, read as `ENDPOINT`, for its two ends. P is metered power,
    here and below after a trailing mean of `mean_s`.
    """

    id: LimitId
    max_w: float
    window_s: float
    direction: Direction
    mean_s: float
    provenance: Provenance
    reading: RampReading = RampReading.WITHIN
    percentile: float | None = None  # None: every window; else this share (0..1] of windows must hold


@frozen
class SwingLimit:
    """The greatest less the least P in any window of `window_s` is at most `max_w`; with `band_hz`, of filtered P."""

    id: LimitId
    max_w: float
    window_s: float
    mean_s: float
    provenance: Provenance
    band_hz: tuple[float, float] | None = None


@frozen
class RateLimit:
    """P may differ from any P of the last `horizon_s` by `above_w` or, where that is more, `max_w_per_s` times the time
    between them; either way."""

    id: LimitId
    max_w_per_s: float
    above_w: float
    mean_s: float
    provenance: Provenance
    horizon_s: float = 600.0  # how far back s reaches


@frozen
class BandLimit:
    """P filtered to `band_hz` stays within `max_w` of zero, either way."""

    id: LimitId
    max_w: float
    band_hz: tuple[float, float]
    provenance: Provenance
    mean_s: float = 0.0


@frozen
class OscillationLimit:
    """The largest spectral line of P in `band_hz`, over any `span_s`, has an amplitude of at most `max_w`
    (`controller.audit.spectrum` says what counts as a line)."""

    id: LimitId
    max_w: float
    band_hz: tuple[float, float]
    span_s: float
    provenance: Provenance
    mean_s: float = 0.0


@frozen
class CeilingLimit:
    """P is at most `max_w` from `from_s` to `until_s`."""

    id: LimitId
    max_w: float
    from_s: float  # on the record's or controller's time axis; -inf: always
    provenance: Provenance
    mean_s: float = 0.0
    until_s: float = float("inf")


@frozen
class FloorLimit:
    """P is at least `min_w` from `from_s` to `until_s`."""

    id: LimitId
    min_w: float
    from_s: float
    provenance: Provenance
    mean_s: float = 0.0
    until_s: float = float("inf")


@frozen
class CurveSegment:
    """A box of a ride-through curve: stay connected for `hold_s` while the quantity is in [low, high)."""

    low: float
    high: float
    hold_s: float  # inf: continuous


@frozen
class RideThroughLimit:
    """The site stays connected inside the curves, and is back at `recover_frac` of its load `recover_s` after.

    `suspends_ramps`: ramp rows do not count during that recovery.
    """

    id: LimitId
    voltage_pu: tuple[CurveSegment, ...]
    frequency_hz: tuple[CurveSegment, ...]
    recover_frac: float
    recover_s: float
    suspends_ramps: bool
    provenance: Provenance
    mean_s: float = 0.0


@frozen
class DroopLimit:
    """Load answers frequency: `w_per_hz` for each hertz beyond `deadband_hz` of `nominal_hz`, at most `max_w`."""

    id: LimitId
    deadband_hz: float
    w_per_hz: float
    max_w: float
    provenance: Provenance
    nominal_hz: float = 60.0
    mean_s: float = 0.0


Limit = (
    RampLimit
    | SwingLimit
    | RateLimit
    | BandLimit
    | OscillationLimit
    | CeilingLimit
    | FloorLimit
    | RideThroughLimit
    | DroopLimit
)

ChangeLimit = RampLimit | SwingLimit | RateLimit  # rows on differences of power; the others judge its level


@frozen
class Contract:
    """A set of limits, all in force at once at the point of common coupling; fractions already resolved."""

    name: str
    limits: tuple[Limit, ...]
    registered_peak_w: float


@unique
class RowVerdict(StrEnum):
    """What the referee says of one row on one record."""

    HELD = "held"
    HELD_PARTIAL = "held_partial"  # the band was cut at the record's Nyquist frequency, or the record has gaps
    BROKEN = "broken"
    NOT_COVERED = "not_covered"  # the record does not hold what the row is about
    NOT_BINDING = "not_binding"  # above any change that the site can make
