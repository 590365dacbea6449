"""Makes a failing story small: what can be taken away, shortened or calmed while it still fails is.

Greedy and deterministic; the answer fails like the first, and no single step of those tried would keep it failing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from controller.types import replace
from hil.swarm import Tale

STEPS_MAX = 60


def shrink(tale: Tale, fails: Callable[[Tale], bool]) -> Tale:
    """The smallest story found that still fails; `tale` itself when it does not fail."""
    if not fails(tale):
        return tale
    tried = 0
    is_smaller = True
    while is_smaller and tried < STEPS_MAX:
        is_smaller = False
        for smaller in smaller_tales(tale):
            tried += 1
            if fails(smaller):
                tale, is_smaller = smaller, True
                break
            if tried >= STEPS_MAX:
                break
    return tale


def smaller_tales(tale: Tale) -> Iterator[Tale]:
    """Each story that is one step smaller, the largest steps first."""
    for k in range(len(tale.blows)):
        yield replace(tale, blows=tale.blows[:k] + tale.blows[k + 1 :])
    for change in ({"ceiling_megawatt": None}, {"drop_megawatt": None}, {"battery_event": None}):
        name = next(iter(change))
        if getattr(tale, name) is not None:
            yield replace(tale, **change)  # type: ignore[arg-type]
    if tale.exchange_w != tale.compute_w:
        yield replace(tale, exchange_w=tale.compute_w)
    if len(tale.contract) > 1:
        yield replace(tale, contract=tale.contract[:1])
    for k, blow in enumerate(tale.blows):
        if blow.for_s > 2.0:
            shorter = replace(blow, for_s=round(blow.for_s / 2.0, 2))
            yield replace(tale, blows=(*tale.blows[:k], shorter, *tale.blows[k + 1 :]))
