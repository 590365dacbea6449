"""Why the mode is what it is, one sentence a reason: what is wrong, with whom, what to do, and what ends it.

For status, the log and the list of events. Reads the image only to name who is meant; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.advice import ADVICE
from controller.modes import Flag, Reason
from controller.types import AgentState, Quality, SiteImage

NAMED_MAX = 3  # more are counted


def said(reason: Reason, image: SiteImage) -> str:
    """The sentence; who is meant is named as long as the cause is there."""
    who = _named(_subjects(reason.flag, image)) if reason.is_set else "over"
    about = f" ({who})" if who else ""
    return f"{reason.words}{about}: {ADVICE[reason.flag]}; clears {reason.clears}"


def _subjects(flag: Flag, image: SiteImage) -> list[str]:
    """Devices, issuers or nodes that the flag is about, in order; empty where it is about the whole site."""
    found = {trouble.subject for trouble in image.troubles if trouble.fault.value == flag.value}
    for reading in image.nodes:
        report, is_heard = reading.value, reading.quality is not Quality.MISSING
        is_told = is_heard and any(fault.value == flag.value for fault in report.faults)
        if is_told or _shows(flag, report.state, is_heard=is_heard, is_read=bool((report.quality <= 1).all())):
            found.add(report.node_id)
    return sorted(found - {""})


def _shows(flag: Flag, state: AgentState, *, is_heard: bool, is_read: bool) -> bool:
    """What a node shows without saying it."""
    if flag is Flag.NODE_LOST:
        return not is_heard
    if flag is Flag.GPU_PERMISSION:
        return is_heard and state is AgentState.MONITOR_ONLY
    return flag is Flag.GPU_HUNG and is_heard and not is_read


def _named(subjects: Iterable[str]) -> str:
    names = list(subjects)
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
