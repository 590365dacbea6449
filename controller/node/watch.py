"""What a node's GPUs and links tell by themselves, GPUs that appear meanwhile, and a log that repeats do not fill.

All only ever inform: a word to the log and a nudge to that GPU's worker, which reads it and finds out what is true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from controller.clock import NS_PER_S
from controller.ports import Clock, DriverError, GpuNode
from controller.types import GpuEvent, GpuId

LOOK_S = 30.0  # between two looks for GPUs that were not there
RETRY_S = 30.0  # before listening again where listening failed
REPEAT_S = 60.0  # the same word of the same GPU is not repeated sooner: Xid errors come in storms

DROPS_LOOK_S = 60.0
NO_DROPS = frozenset(
    {"sessions", "dropped_without_session"}
)  # counts that are no fault of anybody's: the link is told of

Events = Callable[[Sequence[GpuId]], AsyncIterator[GpuEvent]]
MoreGpus = Callable[[frozenset[GpuId]], Awaitable[Sequence[GpuNode]]]


class EventLog:
    """Tells each event once, with how often it came while nobody was told."""

    def __init__(self, clock: Clock, say: Callable[[str, str], None]) -> None:
        self._clock = clock
        self._say = say
        self._told_s: dict[tuple[str, str], float] = {}
        self._held_back: dict[tuple[str, str], int] = {}

    def tell(self, event: GpuEvent) -> None:
        self.say(event.gpu_id or "nvml", event.text, kind=event.text)

    def say(self, subject: str, text: str, *, kind: str) -> None:
        """`kind`: what counts as the same word, however its numbers differ."""
        key = (subject, kind)
        now_s = self._clock.now_s()
        if now_s - self._told_s.get(key, -REPEAT_S) < REPEAT_S:
            self._held_back[key] = self._held_back.get(key, 0) + 1
            return
        self._told_s[key] = now_s
        more = self._held_back.pop(key, 0)
        self._say(subject, f"{text} (and {more} more since)" if more else text)


async def hear_events(
    events: Events, gpu_ids: Sequence[GpuId], *, log: EventLog, nudge: Callable[[GpuId], None], clock: Clock
) -> None:
    """Listen for as long as the node runs; where listening is not possible, try again now and then, quietly."""
    while True:
        try:
            async for event in events(gpu_ids):
                log.tell(event)
                if event.gpu_id is not None:
                    nudge(event.gpu_id)
        except DriverError:
            pass  # no events on these GPUs, or the driver went away: readings tell the same, a little later
        await clock.sleep_until_ns(clock.now_ns() + round(RETRY_S * NS_PER_S))


async def tell_drops(counts: Callable[[], Mapping[str, int]], *, say: Callable[[str, str], None], clock: Clock) -> None:
    """Once a minute, what the agent's link dropped or lost since the last look; nothing where nothing was."""
    before = Counter(counts())
    while True:
        await clock.sleep_until_ns(clock.now_ns() + round(DROPS_LOOK_S * NS_PER_S))
        now = Counter(counts())
        found = {what: count for what, count in (now - before).items() if what not in NO_DROPS}
        before = now
        if found:
            said = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in sorted(found.items()))
            say("link", f"in the last minute: {said}")
