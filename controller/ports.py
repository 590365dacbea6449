"""What the core expects of the outside, as Protocols with one job each.

Drivers and the bench implement these; the composition in `app` joins them. Every method that touches the outside is
async, has a deadline of its own, raises only `DriverError` (or CancelledError), and never returns a bare float.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from controller.types import (
    BatteryCommand,
    BatterySample,
    EnergyPrice,
    FeedTarget,
    GpuCap,
    GpuId,
    GpuOriginals,
    GpuSpec,
    GpuTelemetry,
    GridSignal,
    Job,
    LoadBankCommand,
    LoadBankSample,
    Margin,
    MeterSample,
    NodeCommand,
    NodeReport,
    OperatorOrder,
    Outlook,
    Reading,
    RefusalReason,
    SignalOffer,
    SignalOutcome,
    SiteCommand,
    SiteFault,
    SiteImage,
    SmoothingProfile,
    Trouble,
    UpsSample,
)


class DriverError(Exception):
    """An expected fault of a device or wire. Kinds are subclasses in `drivers.errors`; `device` names the culprit."""

    fault = SiteFault.DEVICE_TIMEOUT  # what it means for the site when a device of its own stays that way

    def __init__(self, device: str, message: str) -> None:
        super().__init__(f"{device}: {message}")
        self.device = device


class Clock(Protocol):
    """Time as the process sees it; the only way to learn it or to wait."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""

    def now_s(self) -> float:
        """Monotonic seconds; the same clock as `now_ns`."""

    def wall_utc_s(self) -> float:
        """Seconds since 1970 UTC; for signals and records, never for control."""

    async def sleep_until_ns(self, t_ns: int) -> None:
        """Return at or after monotonic `t_ns`."""


class WallSync(Protocol):
    @property
    def is_synced(self) -> bool:
        """Whether a source of time disciplines the wall clock now; never blocks."""


class PowerMeter(Protocol):
    async def read(self) -> Reading[MeterSample]:
        """The newest sample, stamped with the instant it was true at (arrival less the declared delay)."""


class Battery(Protocol):
    async def read(self) -> Reading[BatterySample]:
        """State, limits and the reference read back, stamped like a meter sample."""

    async def write(self, command: BatteryCommand) -> None:
        """Write reference, slope and reversion timer in the safe order; returns once the device acknowledged."""


class Ups(Protocol):
    async def read(self) -> Reading[UpsSample]:
        """State of the UPS."""


class GpuNode(Protocol):
    """One GPU as a node agent drives it; calls are made from that GPU's own worker."""

    spec: GpuSpec

    async def read(self) -> Reading[GpuTelemetry]:
        """Power, clocks and the limits in force."""

    async def write(self, cap: GpuCap) -> None:
        """Apply a cap; returns once the driver accepted it. Read back with `read`."""

    async def restore(self, originals: GpuOriginals) -> None:
        """Give the saved settings back."""

    async def originals(self, *, preset: int | None = None) -> GpuOriginals:
        """The settings in force now, to be saved before the first write; with power smoothing where `preset` is."""

    async def holds_floor(self, floor: SmoothingProfile, *, preset: int) -> bool:
        """Whether power smoothing is on with this preset and reads back as `floor`; NotSupported without a circuit."""

    async def arm_floor(self, floor: SmoothingProfile, *, preset: int) -> None:
        """Store `floor` as the preset, activate it, switch smoothing on; returns once read back."""


class NodeLink(Protocol):
    """The site's end of the wire to its node agents."""

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        """The newest report of every node heard from, by node id; never blocks."""

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        """Send each command to its node; delivery is proven by a later report's acknowledged sequence."""


class AgentLink(Protocol):
    """The node agent's end of the same wire."""

    async def publish(self, report: NodeReport) -> None: ...

    def commands(self) -> AsyncIterator[NodeCommand]:
        """Commands for this node in order of arrival; bounded, the newest kept."""


class SignalRules(Protocol):
    """The acceptance rules a grid source asks; pure, so every call says what time it is."""

    def offer(
        self, offer: SignalOffer, *, now_s: float, utc_s: float, present_w: float | None
    ) -> tuple[SignalOutcome, ...]:
        """One outcome per request of a verified message."""

    def step(self, *, now_s: float, utc_s: float, is_link_up: bool, is_clock_synced: bool) -> None:
        """Let time pass: expiry, silence, a wall clock that stepped or lost its source."""

    def active(self, now_s: float) -> tuple[GridSignal, ...]:
        """What is in force now or scheduled, at the point of common coupling; sorted by start."""

    def feed_targets(self, now_s: float) -> tuple[FeedTarget, ...]:
        """The targets of every feed, active and scheduled, as their issuers set them."""

    @property
    def is_silent(self) -> bool:
        """The link has been gone for longer than the grace: the fallback contract is due."""

    @property
    def is_raise_held(self) -> bool:
        """An issuer raises too often: the newest raise waits."""


class GridSource(Protocol):
    """Grid signals that passed the acceptance rules, and the way back to their issuers."""

    def active(self, now_s: float) -> tuple[GridSignal, ...]:
        """Accepted signals that are in force now or scheduled; sorted by start."""

    @property
    def is_link_up(self) -> bool: ...

    @property
    def is_raise_held(self) -> bool:
        """An issuer raises too often: the newest raise waits."""

    def alarms(self, now_s: float) -> tuple[RefusalReason, ...]:
        """Why messages were not followed lately; sorted. For people: nothing is decided by it."""

    def report(
        self,
        image: SiteImage,
        command: SiteCommand,
        margins: Sequence[Margin],
        *,
        outlook: Callable[[], Outlook | None] = lambda: None,
    ) -> None:
        """Publish status to the grid; drops rather than waits. `outlook` is asked only when one is due."""


class JobFeed(Protocol):
    """One place that knows of jobs: a topic or a scheduler."""

    @property
    def name(self) -> str: ...

    def listing(self) -> Reading[tuple[Job, ...]] | None:
        """The whole list as last heard, stamped with the instant it was true at; None before the first."""

    @property
    def trouble(self) -> str:
        """Why the newest attempt failed; empty when it did not."""


class PriceSource(Protocol):
    def prices(self, utc_s: float) -> tuple[EnergyPrice, ...]:
        """Prices in force or to come at `utc_s`, sorted by start."""


class JobSource(Protocol):
    """All feeds together."""

    def jobs(self, now_s: float) -> tuple[Job, ...]:
        """Jobs of the feeds that are fresh, those that win first; the same object while nothing changed."""

    def assignment(self) -> Mapping[GpuId, str]:
        """Job class of each GPU that a job names or holds; a GPU not named is of its node's class."""


class LoadBank(Protocol):
    async def read(self) -> Reading[LoadBankSample]:
        """What it draws and can draw, and the set-point read back, stamped like a meter sample."""

    async def write(self, command: LoadBankCommand) -> None:
        """Write set-point, slopes and reversion timer in the safe order; returns once read back."""


class OperatorSource(Protocol):
    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What is wrong with the files that operators changed."""

    def order(self) -> OperatorOrder | None:
        """What operators ask for now, for one image; a reset is told once."""


class Recorder(Protocol):
    @property
    def has_failed(self) -> bool:
        """Nothing is recorded any more: the disk is full or gone."""

    def record(self, kind: str, payload: Mapping[str, object]) -> None:
        """Queue one record; never blocks control and never raises."""


class Lease(Protocol):
    @property
    def epoch(self) -> int:
        """Monotonically increasing over restarts; a higher one deposes a lower."""

    @property
    def is_held(self) -> bool: ...

    def see(self, acked: Sequence[int]) -> None:
        """The epochs that the nodes heard from obey: where half of them obey a higher one than ours, we step down."""
