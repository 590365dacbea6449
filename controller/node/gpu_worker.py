"""One GPU of the node: reads it, keeps it at the cap it was given, and says when it cannot.

Writes on change only, at most one clock write a second, each read back. A cap that does not take after two retries
makes the GPU uncontrollable for a while; missing permission or a refused driver for longer. So does a locked clock that
was accepted and that the GPU runs above: a lock cannot be read back, so it counts as taken once the clock bore it out.
Another tool that raises what we set is overruled three times, then left to win; one that lowers it is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from controller.ports import Clock, DriverError, GpuNode
from controller.settings import SmoothingSettings
from controller.types import GpuCap, GpuTelemetry, NodeFault, Quality, Reading

CLOCK_WRITE_S = 1.0  # clock writes every ~50 ms delayed NCCL (nccl 1551)
JUDGED_S = 0.6  # after a clock write: from then on the driver looks whether the GPU keeps to its lock
RETRIES = 2
FIGHTS_MAX = 3
PEACE_S = 600.0  # without another fight the count starts again
REFUSED_S = 30.0  # before another try on a GPU that ignored us
FORBIDDEN_S = 60.0  # before another try where we may not write
LIMIT_TOLERANCE_W = 1.5
FLOOR_LOOK_S = 1.0  # two field reads a look; smoothing is set by people and drivers, not by loops
MISSING_S = 2.0  # a GPU not read for this long counts as missing

OTHER_LIMIT = "another tool set its power limit to"
FORBIDDING = frozenset({"PermissionDenied", "WrongDevice", "NotSupported"})
FOUGHT_TOLD_S = 60.0  # after a fight the site is told of the other tool for so long
# nvmlClocksEventReason: hardware slowdown, software and hardware thermal slowdown, power brake.
SLOWED_BY_ITSELF = 0x08 | 0x20 | 0x40 | 0x80

Say = Callable[[str, str], None]  # subject, what happened


@dataclass(slots=True)
class GpuStatus:
    """What is known of one GPU, for the report."""

    reading: Reading[GpuTelemetry] | None = None
    is_controllable: bool = True
    is_forbidden: bool = False
    applied: tuple[int, int] = (-1, -1)  # epoch and sequence whose cap was read back
    write_count: int = 0
    has_floor: bool = False  # power smoothing reads back as it was armed


class GpuWorker:
    """Drives one GPU; `step` is called about every telemetry period, by one caller at a time."""

    def __init__(self, gpu: GpuNode, *, clock: Clock, say: Say) -> None:
        self.gpu = gpu
        self.status = GpuStatus()
        self.was_written = False
        self.news = asyncio.Event()  # set when there is something to write
        self._clock = clock
        self._say = say
        self._wish: GpuCap | None = None
        self._order = (-1, -1)
        self._set: GpuCap | None = None  # what was last written and read back
        self._is_borne_out = True  # no clock was locked since, or the GPU was seen to keep to it
        self._failures = 0
        self._fights = 0
        self._read_fault: NodeFault | None = None
        self._is_deaf = self._is_left = False  # it ignores its caps; it is left to another tool
        self._fought_s = -PEACE_S
        self._wrote_clock_s = -CLOCK_WRITE_S
        self._retry_s = 0.0
        self._told = ""
        self._found_limit_w: float | None = None  # requested when first read
        self._floor: SmoothingSettings | None = None
        self._floor_due_s = 0.0
        self._floor_fights = 0
        self._told_floor = ""

    @property
    def is_left(self) -> bool:
        """Another tool won the fight for it."""
        return self._is_left

    def faults(self, now_s: float) -> set[NodeFault]:
        """What is wrong with this GPU, for the report."""
        found = {self._read_fault} if self._read_fault is not None else set()
        reading = self.status.reading
        if self.status.is_forbidden:
            found.add(NodeFault.GPU_PERMISSION)
        if self._is_deaf:
            found.add(NodeFault.GPU_IGNORES_CAPS)
        if self._is_left or now_s - self._fought_s < FOUGHT_TOLD_S or self._told.startswith(OTHER_LIMIT):
            found.add(NodeFault.FOREIGN_WRITER)
        if reading is not None and reading.is_good and reading.value.throttle_reasons & SLOWED_BY_ITSELF:
            found.add(NodeFault.GPU_THROTTLED)
        return found

    def want(self, cap: GpuCap | None, order: tuple[int, int]) -> None:
        """Keep the GPU at `cap` from the next step on; None: leave it as it is."""
        if cap != self._wish:
            self.news.set()
        self._wish, self._order = cap, order

    def want_floor(self, floor: SmoothingSettings | None) -> None:
        """Keep power smoothing at `floor` from the next look on; None: leave it as it is."""
        self._floor = floor
        if floor is None:
            self.status.has_floor = False

    async def keep_floor(self) -> None:
        """Once a second see whether the GPU still holds its floor, and arm it where it does not.

        Another tool that changes it is overruled three times, then left to win.
        """
        floor, now_s = self._floor, self._clock.now_s()
        if floor is None or now_s < self._floor_due_s:
            return
        self._floor_due_s = now_s + FLOOR_LOOK_S
        had_floor = self.status.has_floor
        try:
            self.status.has_floor = await self.gpu.holds_floor(floor.profile, preset=floor.preset)
            if not self.status.has_floor and self._may_arm(had_floor=had_floor, now_s=now_s):
                self.was_written = True
                await self.gpu.arm_floor(floor.profile, preset=floor.preset)
                self.status.has_floor = self._floor is floor
            if self.status.has_floor:
                self._tell_floor("")
        except DriverError as error:
            self.status.has_floor = False
            self._floor_due_s = now_s + (FORBIDDEN_S if type(error).__name__ in FORBIDDING else REFUSED_S)
            self._tell_floor(f"has no power floor: {error}")

    def _may_arm(self, *, had_floor: bool, now_s: float) -> bool:
        if not had_floor:
            return True
        self._floor_fights += 1
        if self._floor_fights <= FIGHTS_MAX:
            return True
        self._floor_fights, self._floor_due_s = 0, now_s + PEACE_S
        self._tell_floor("another tool keeps changing its power smoothing; left to it")
        return False

    def _tell_floor(self, what: str) -> None:
        """One line per change of state."""
        if what != self._told_floor:
            self._told_floor = what
            self._say(self.gpu.spec.gpu_id, what or "holds its power floor")

    def forget_settings(self) -> None:
        """The settings found were given back: nothing of ours is in force, and the limit is whosever it was."""
        self._set = None
        self._found_limit_w = None

    async def step(self) -> None:
        """Read, then write if something is to be changed, then read back; news for a healthy GPU is written at once."""
        now_s = self._clock.now_s()
        if self._wish is not None and self._is_healthy() and self._is_due(now_s):
            await self._apply(self._wish, self._order, now_s)
            return
        if not await self._read():
            return
        if self._wish is None:
            self.status.applied = self._order
            return
        now_s = self._clock.now_s()
        self._judge_clock(now_s)
        self._notice_foreign(now_s)
        self._notice_other_limit()
        if self._set == self._wish:
            self.status.applied = self._order
        elif self._is_due(now_s):
            await self._apply(self._wish, self._order, now_s)

    def _is_healthy(self) -> bool:
        """It answered when last read, and what was last written to it took."""
        reading = self.status.reading
        return reading is not None and reading.quality is not Quality.MISSING and self._failures == 0

    def _is_due(self, now_s: float) -> bool:
        return self._set != self._wish and now_s >= self._retry_s and self._may_write(now_s)

    async def _read(self) -> bool:
        try:
            self.status.reading = await self.gpu.read()
        except DriverError as error:
            self._read_fault = NodeFault.GPU_LOST if type(error).__name__ == "DeviceGone" else NodeFault.GPU_HUNG
            self._tell(f"cannot be read: {error}")
            last = self.status.reading
            if last is not None:
                self.status.reading = Reading(last.value, last.t_mono_s, Quality.MISSING, last.source)
            return False
        self._read_fault = None
        if self._told.startswith("cannot be read"):
            self._tell("")
        return True

    def _may_write(self, now_s: float) -> bool:
        """At most one clock write a second; a change of the power limit alone need not wait."""
        has_new_clock = self._set is None or self._wish is None or self._set.clock_mhz != self._wish.clock_mhz
        return not has_new_clock or now_s - self._wrote_clock_s >= CLOCK_WRITE_S

    async def _apply(self, cap: GpuCap, order: tuple[int, int], now_s: float) -> None:
        if self._set is None or self._set.clock_mhz != cap.clock_mhz:
            self._wrote_clock_s = now_s
            self._is_borne_out = cap.clock_mhz is None
        self.was_written = True
        self.status.write_count += 1
        try:
            await self.gpu.write(cap)
        except DriverError as error:
            self._set = None  # it may have taken effect in part
            if type(error).__name__ in FORBIDDING:
                self.status.is_controllable, self.status.is_forbidden = False, True
                self._retry_s = now_s + FORBIDDEN_S
                self._tell(f"may not be controlled: {error}")
            else:
                self._failed(str(error), now_s)
            return
        if await self._read() and self._is_applied(cap):
            self._set = cap
            self.status.applied = order
            self.status.is_forbidden = False
            self._is_left = False
            if self._is_borne_out or not (self._failures or self._is_deaf):
                self._obeys()
        else:
            self._set = None
            self._failed("the read-back differs", now_s)

    def _judge_clock(self, now_s: float) -> None:
        """Whether the clock that was locked last is kept to; the driver withdraws a lock that the GPU runs above.

        One that is gone sooner, or after it was kept to, somebody took away.
        """
        reading, ours = self.status.reading, self._set
        if self._is_borne_out or ours is None or reading is None or reading.t_mono_s - self._wrote_clock_s < JUDGED_S:
            return
        if reading.value.clock_cap_mhz is None:
            self._set = None
            what = f"it runs at {reading.value.clock_mhz:g} MHz, locked to {ours.clock_mhz}"
            self._failed(f"{what}; tried again every {REFUSED_S:g} s", now_s)
        else:
            self._is_borne_out = True
            self._obeys()

    def _obeys(self) -> None:
        """What was written last took."""
        self._failures = 0
        self.status.is_controllable = True
        self._is_deaf = False
        self._tell("")

    def _failed(self, why: str, now_s: float) -> None:
        self._failures += 1
        if self._failures > RETRIES:
            self.status.is_controllable = False
            self._is_deaf = True
            self._failures = 0
            self._retry_s = now_s + REFUSED_S
            self._tell(f"does not take its cap: {why}")

    def _is_applied(self, cap: GpuCap) -> bool:
        if self.status.reading is None:
            return False
        seen = self.status.reading.value
        if cap.clock_mhz is not None and seen.clock_cap_mhz is not None and seen.clock_cap_mhz != cap.clock_mhz:
            return False
        if (cap.clock_mhz is None) != (seen.clock_cap_mhz is None):
            return False
        return cap.power_limit_w is None or seen.power_limit_w <= cap.power_limit_w + LIMIT_TOLERANCE_W

    def _notice_foreign(self, now_s: float) -> None:
        """Someone else changed what we set: overrule a raise up to three times, respect a lower setting."""
        if self._set is None or self._set != self._wish or self._is_applied(self._set):
            return
        if now_s - self._fought_s > PEACE_S:
            self._fights = 0
        self._fights, self._fought_s = self._fights + 1, now_s
        self._set = None
        if self._fights > FIGHTS_MAX:
            self.status.is_controllable = False
            self._is_left = True
            self._retry_s = now_s + PEACE_S
            self._tell("another tool keeps changing its settings; left to it")
        else:
            self._tell(f"another tool changed its settings; set again ({self._fights} of {FIGHTS_MAX})")

    def _notice_other_limit(self) -> None:
        """Someone set a limit that we let stand: a lower one than ours, or any where we ask for none. Said only."""
        reading = self.status.reading
        requested_w = None if reading is None else reading.value.requested_limit_w
        if requested_w is None:
            return
        if self._found_limit_w is None:
            self._found_limit_w = requested_w
        ours_w = None if self._set is None else self._set.power_limit_w
        expected_w = self._found_limit_w if ours_w is None else ours_w
        gap_w = requested_w - expected_w
        is_theirs = gap_w < -LIMIT_TOLERANCE_W or (gap_w > LIMIT_TOLERANCE_W and ours_w is None)
        if is_theirs and (self._set is None or self._set == self._wish):
            self._tell(f"{OTHER_LIMIT} {requested_w:g} W, in place of {expected_w:g} W; left as it is")
        elif self._told.startswith(OTHER_LIMIT):
            self._tell("")

    def _tell(self, what: str) -> None:
        """One line per change of state."""
        if what != self._told:
            self._told = what
            self._say(self.gpu.spec.gpu_id, what or "recovered")
