"""Why the mode is what it is, one sentence a reason: what is wrong, with whom, what to do, and what ends it.

For status, the log and the list of events. Reads the image only to name who is meant; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from controller.advice import ADVICE
from controller.fleet import ABOVE_CAP_FRAC
from controller.modes import Flag, Reason
from controller.types import WORST_READ, AgentState, Mode, NodeReport, Quality, Reading, SiteImage, UpsSample

NAMED_MAX = 3  # more are counted
# What each mode does, for whoever reads it at night.
MEANS: dict[Mode, str] = {
    Mode.NORMAL: "all is controlled as planned",
    Mode.DEGRADED: "all is controlled with larger margins, because something is missing",
    Mode.SHED: "rules decide in place of the planner, limits are kept, and nothing rises",
    Mode.HOLD: "the last safe target is held by the battery, and no cap rises",
    Mode.RELEASE: "GPUs get their own settings back, one node after the other",
    Mode.FALLBACK: "nodes go to their fallback caps and the battery to nothing, at the contract's slope",
    Mode.LOCKOUT: "nothing is written: nodes and battery fall back by themselves",
}


def said(
    reason: Reason,
    image: SiteImage,
    *,
    epoch: int,
    seconds: Mapping[Flag, float] | None = None,
    late_nodes: Sequence[str] = (),
) -> str:
    """The sentence; who is meant is named as long as the cause is there.

    `epoch` is this controller's; `seconds`: how long a flag says that something takes, as seen.
    """
    subjects = late_nodes if reason.flag is Flag.NODE_LATE else _subjects(reason.flag, image, epoch)
    who = _named(subjects) if reason.is_set else "over"
    if reason.is_set and seconds is not None and reason.flag in seconds:
        who = f"{seconds[reason.flag]:.2g} s"
    about = f" ({who})" if who else ""
    return f"{reason.words}{about}: {ADVICE[reason.flag]}; clears {reason.clears}"


def _subjects(flag: Flag, image: SiteImage, epoch: int) -> list[str]:
    """Devices, issuers or nodes that the flag is about, in order; empty where it is about the whole site."""
    found = {trouble.subject for trouble in image.troubles if trouble.fault.value == flag.value}
    if flag in (Flag.NODE_OBEYS_OTHER, Flag.LEADERSHIP_LOST):
        found |= {f"{r.value.node_id}: epoch {r.value.acked_epoch} over our {epoch}" for r in _of_others(image, epoch)}
    found |= {name for name, ups in image.ups.items() if _tells(flag, ups)}
    for reading in image.nodes:
        report, is_heard = reading.value, reading.quality is not Quality.MISSING
        is_told = is_heard and any(fault.value == flag.value for fault in report.faults)
        if is_told or _shows(flag, report, is_heard=is_heard):
            found.add(report.node_id)
    return sorted(found - {""})


def _of_others(image: SiteImage, epoch: int) -> Iterable[Reading[NodeReport]]:
    """Nodes that obey a higher epoch than `epoch`."""
    return (r for r in image.nodes if r.quality is not Quality.MISSING and r.value.acked_epoch > epoch)


def _tells(flag: Flag, ups: Reading[UpsSample]) -> bool:
    if ups.quality is Quality.MISSING:
        return False
    is_on_battery = flag in (Flag.UPS_ON_BATTERY, Flag.UPS_LOW) and ups.value.is_on_battery
    return is_on_battery or (flag is Flag.UPS_ON_BYPASS and ups.value.is_on_bypass)


def _shows(flag: Flag, report: NodeReport, *, is_heard: bool) -> bool:
    """What a node shows without saying it."""
    if flag is Flag.NODE_LOST or not is_heard:
        return flag is Flag.NODE_LOST and not is_heard
    if flag is Flag.GPU_PERMISSION:
        return report.state is AgentState.MONITOR_ONLY
    if flag is Flag.POWER_ABOVE_CAP:
        return bool((report.power_w > ABOVE_CAP_FRAC * report.power_limit_w).any())
    return flag is Flag.GPU_HUNG and not bool((report.quality <= WORST_READ).all())


def _named(subjects: Iterable[str]) -> str:
    names = list(subjects)
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
