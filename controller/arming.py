"""What must be true before the first write of this process, and what of it is missing, in words. Pure.

Once power, clock and limits were in order control begins and does not end for want of them: then faults and modes
decide. What only a node can know (originals on disk, settings read back, a dead-man in place) the node itself insists
on before it obeys, GPU by GPU; here it is only told. A battery is held where it stands until it took a whole command
and its reversion timer was seen to count down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from controller.estimate import Estimate, LoadSource
from controller.settings import SiteSettings
from controller.types import AgentState, BatterySample, MeterFlag, NodeReport, Reading, SiteImage, frozen

ARRIVAL_S = 2.0  # after the first cycle, or a pause: what has not been seen by then is missing, not late
NAMED_MAX = 3


@frozen
class ArmingFacts:
    """The conditions of one instant; None where the site has no such part."""

    is_power_known: bool  # a fresh meter that the nodes confirm, or on a site without one the nodes' sum
    is_clock_trusted: bool
    has_limits: bool  # a verified signal, or the contract of the site file
    is_leader: bool
    is_battery_proven: bool | None  # it took a whole command, read back, and was seen to count down to its end
    unready_nodes: tuple[str, ...]  # heard, and not ready to obey


def holds_back(facts: ArmingFacts) -> tuple[str, ...]:
    """What keeps this process from controlling at all, in the words status shows; empty when it may begin."""
    return _words(
        (
            (facts.is_power_known, "no fresh reading of the site's power that the nodes confirm"),
            (facts.is_clock_trusted, "the wall clock is not synchronised (waited for until the grace is over)"),
            (facts.has_limits, "no verified grid signal and no contract is in force"),
        )
    )


def unmet(facts: ArmingFacts) -> tuple[str, ...]:
    """Every arming condition not met now, whatever it holds back."""
    more = len(facts.unready_nodes) - NAMED_MAX
    named = ", ".join(facts.unready_nodes[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    return holds_back(facts) + _words(
        (
            (facts.is_leader, "another controller holds this site's lease"),
            (
                facts.is_battery_proven is not False,
                "the battery was not seen to take a whole command and count down its timer: it is held where it stands",
            ),
            (
                not facts.unready_nodes,
                f"originals not saved, settings not read back, or no right to write: {named}; only reporting",
            ),
        )
    )


class BatteryProof:
    """Whether the battery was seen to take a whole command of ours and to count down to its end.

    One that tells of no timer is proven by what it took.
    """

    def __init__(self) -> None:
        self.is_given = False
        self._took: tuple[float, float] | None = None  # when it took the last command, and how long that lives

    @property
    def is_awaited(self) -> bool:
        """It took a command and was not seen to count down yet: it stands where it is told to stand."""
        return not self.is_given and self._took is not None

    def took(self, now_s: float, *, ttl_s: float) -> None:
        """A command was acknowledged."""
        self._took = now_s, ttl_s

    def see(self, battery: Reading[BatterySample] | None) -> None:
        """Given once its timer is seen below what it was told, by a reading younger than the command."""
        if self.is_given or self._took is None or battery is None or not battery.is_good:
            return
        left_s, (took_s, ttl_s) = battery.value.reversion_s_left, self._took
        self.is_given = left_s is None or (battery.t_mono_s > took_s and 0.0 < left_s < ttl_s)

    def waits(self, now_s: float) -> bool:
        """Renewed at once a timer of whole seconds would never be seen to move; half its time is enough."""
        return not self.is_given and self._took is not None and now_s - self._took[0] < 0.5 * self._took[1]


class Arming:
    """What this process has seen since it woke; `wake` first in every cycle, `facts` once its mode is known."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._woke_s: float | None = None
        self.battery = BatteryProof()

    def wake(self, now_s: float) -> None:
        """The first cycle is when waiting began."""
        if self._woke_s is None:
            self._woke_s = now_s

    def waited_s(self, now_s: float) -> float:
        """Since the first cycle."""
        return now_s - self._woke_s if self._woke_s is not None else 0.0

    def facts(self, image: SiteImage, estimate: Estimate, *, is_leader: bool) -> ArmingFacts:
        """The conditions as they stand."""
        self.battery.see(image.battery)
        waited_s = self.waited_s(image.t_mono_s)
        return ArmingFacts(
            is_power_known=_is_power_known(image, estimate, waited_s=waited_s),
            is_clock_trusted=is_clock_trusted(image, waited_s=waited_s, grace_s=self._site.grace_s),
            has_limits=bool(self._site.contract.limits or image.signals),
            is_leader=is_leader,
            is_battery_proven=self.battery.is_given if image.battery is not None else None,
            unready_nodes=unready(image.nodes),
        )


def _is_power_known(image: SiteImage, estimate: Estimate, *, waited_s: float) -> bool:
    """The site's power has been seen: by its meter, held against the nodes, or on a site without one by its nodes.

    Nothing is written on the word of a meter alone that reads kilowatts for watts.
    """
    if image.pcc is None:
        return estimate.source is LoadSource.NODES
    is_checked = bool(image.nodes) or waited_s >= ARRIVAL_S
    return estimate.source is LoadSource.METER and MeterFlag.METER_SPIKE not in estimate.flags and is_checked


def is_clock_trusted(image: SiteImage, *, waited_s: float, grace_s: float) -> bool:
    """Synchronised, or waited for as long as a site can: then the contract is held, and signals may only tighten.

    A controller that takes over from another does not wait: its nodes and its battery would fall back meanwhile.
    """
    return image.is_clock_synced or waited_s >= grace_s or any(_is_led(reading.value) for reading in image.nodes)


def unready(nodes: Sequence[Reading[NodeReport]]) -> tuple[str, ...]:
    """Nodes that obey nobody: what was found on them is not saved, or they may not write."""
    return tuple(r.value.node_id for r in nodes if r.value.state is AgentState.MONITOR_ONLY)


def _is_led(report: NodeReport) -> bool:
    return report.acked_epoch > 0 and report.state in (AgentState.ARMED, AgentState.FALLBACK)


def _words(checks: Iterable[tuple[bool, str]]) -> tuple[str, ...]:
    return tuple(words for holds, words in checks if not holds)
