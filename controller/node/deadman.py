"""The node's dead-man: which cap each GPU should have now, given the last command and how long ago it came. Pure.

While a command lives, its caps. When it expires no GPU stays free, and after this node's slot comes a glide to the
fallback cap no faster than the slope the command carried; the same glide to free clocks when the site asks for release.
Where the command told of a ceiling that lasts, the way up ends at its share of the fallback clock until that is over.
Without any command yet: the settings as found, or the fallback cap where an earlier agent left its caps behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from controller.glide import STEEPNESS
from controller.types import AgentState, GpuCap, GpuId, GpuSpec, NodeCommand, frozen, replace

GLIDE_S_MAX = 1.0  # a pause of the process buys no larger step than one clock write's worth


@frozen
class Orders:
    """What the GPUs should be set to. A GPU not in `caps` is left as it is; `gives_back`: originals instead of caps."""

    state: AgentState
    caps: Mapping[GpuId, GpuCap]
    gives_back: bool
    order: tuple[int, int]  # epoch and sequence this obeys, to be acknowledged once applied


class Deadman:
    """Holds the last command and the glide; every method is given the time."""

    def __init__(
        self,
        specs: Sequence[GpuSpec],
        *,
        fallback_clock_mhz: int,
        fallback_power_limit_w: float | None,
        is_inherited: bool,
    ) -> None:
        self._specs = {spec.gpu_id: spec for spec in specs}
        self._fallback_clock_mhz, self._fallback_limit_w = fallback_clock_mhz, fallback_power_limit_w
        self._fallback = {spec.gpu_id: self._fallback_of(spec) for spec in specs}
        self._swing_w = sum(s.power_limit_w_max - s.idle_w for s in specs)
        self._command: NodeCommand | None = None
        self._expires_s = self._slot_s = -math.inf  # of the last command: its end, and from when clocks may glide
        self._ceiling_s = -math.inf  # until when a ceiling of the grid lowers the fallback clocks
        self._caps: dict[GpuId, GpuCap] = dict(self._fallback) if is_inherited else {}
        self._state = AgentState.FALLBACK if is_inherited else AgentState.STARTING
        self._level: dict[GpuId, float] = {}  # clock over its maximum, while gliding
        self._stepped_s = -math.inf

    @property
    def last(self) -> tuple[int, int]:
        return (self._command.epoch, self._command.seq) if self._command else (-1, -1)

    @property
    def state(self) -> AgentState:
        return self._state

    def add(self, spec: GpuSpec, *, is_inherited: bool) -> None:
        """A GPU that appeared later: left as it is until it is commanded, or at fallback where caps were left on it."""
        self._specs[spec.gpu_id] = spec
        self._fallback[spec.gpu_id] = self._fallback_of(spec)
        self._swing_w += spec.power_limit_w_max - spec.idle_w
        if is_inherited:
            self._caps[spec.gpu_id] = self._fallback[spec.gpu_id]

    @property
    def due_s(self) -> float:
        """When `step` is next to be asked although nobody said anything: expiry, then the slot; inf: it can wait."""
        waits = (at_s for at_s in (self._expires_s, self._slot_s, self._ceiling_s) if at_s > self._stepped_s)
        return min(waits, default=math.inf)

    def accept(self, command: NodeCommand, *, now_s: float) -> None:
        """Obey `command` (checked before) from now on; a GPU it does not name keeps its cap."""
        is_renewed = command.is_release and self._command is not None and self._command.is_release
        self._command = command
        if is_renewed:  # the release goes on: its slot counts from the first word of it
            return
        self._expires_s = math.inf if command.is_release else now_s + command.ttl_s
        self._slot_s = (now_s if command.is_release else self._expires_s) + command.release_slot_s
        self._ceiling_s = now_s + command.ceiling_s if command.ceiling_frac < 1.0 else -math.inf
        self._level = {}
        if not command.is_release:
            self._state = AgentState.ARMED
            self._caps.update({cap.gpu_id: cap for cap in command.caps})

    def forget(self) -> None:
        """Expire the last command at once: the process was suspended, or its commands can no longer be trusted."""
        self._expires_s = self._slot_s = -math.inf

    def step(self, *, now_s: float) -> Orders:
        """The orders at `now_s`; glides by what has passed since the last step."""
        dt_s = min(max(now_s - self._stepped_s, 0.0), GLIDE_S_MAX)
        self._stepped_s = now_s
        command = self._command
        if command is None:
            return Orders(self._state, dict(self._caps), False, self.last)
        if command.is_release:
            return self._release(command, now_s, dt_s)
        if now_s >= self._expires_s:
            self._state = AgentState.FALLBACK
            self._hold()
            if now_s >= self._slot_s:
                self._glide(self._goals(command, now_s), _step_w(command, dt_s))
        return Orders(self._state, dict(self._caps), False, self.last)

    def _goals(self, command: NodeCommand, now_s: float) -> Mapping[GpuId, GpuCap]:
        """The fallback caps; under a ceiling that lasts, at its share of their clocks."""
        if now_s >= self._ceiling_s:
            return self._fallback
        return {gpu_id: self._fallback_of(spec, command.ceiling_frac) for gpu_id, spec in self._specs.items()}

    def _fallback_of(self, spec: GpuSpec, clock_frac: float = 1.0) -> GpuCap:
        clock_mhz = _snapped(spec, clock_frac * self._fallback_clock_mhz)
        return GpuCap(spec.gpu_id, clock_mhz, _limit(spec, self._fallback_limit_w))

    def _hold(self) -> None:
        """No GPU stays free: until its slot comes it is held where it is, at its top clock at most."""
        for gpu_id, spec in self._specs.items():
            now = self._caps.get(gpu_id, GpuCap(gpu_id, None, None))
            if now.clock_mhz is None and now != self._fallback[gpu_id]:
                self._caps[gpu_id] = replace(now, clock_mhz=spec.clock_mhz_max)

    def _release(self, command: NodeCommand, now_s: float, dt_s: float) -> Orders:
        """Clocks rise in this node's slot; where nothing is capped any more, the originals come back."""
        if self._state is not AgentState.RELEASED and now_s >= self._slot_s:
            free = {gpu_id: GpuCap(gpu_id, None, None) for gpu_id in self._specs}
            if self._glide(free, _step_w(command, dt_s)):
                self._state = AgentState.RELEASED
                self._caps = {}
        gives_back = self._state is AgentState.RELEASED
        return Orders(self._state, dict(self._caps), gives_back, self.last)

    def _glide(self, goals: Mapping[GpuId, GpuCap], step_w: float) -> bool:
        """One step of every GPU towards its goal, together worth at most `step_w`; True when all have arrived."""
        share = step_w / self._swing_w if self._swing_w > 0 else math.inf
        has_arrived = True
        for gpu_id, spec in self._specs.items():
            goal, now = goals[gpu_id], self._caps.get(gpu_id, GpuCap(gpu_id, None, None))
            if now == goal:
                continue
            aim = 1.0 if goal.clock_mhz is None else goal.clock_mhz / spec.clock_mhz_max
            here = 1.0 if now.clock_mhz is None else now.clock_mhz / spec.clock_mhz_max
            level = glided(self._level.get(gpu_id, here), aim, share)
            self._level[gpu_id] = level
            if level == aim:  # the power limit is the backstop: it follows once the clock is where it belongs
                self._caps[gpu_id] = goal
                continue
            has_arrived = False
            clock = _snapped(spec, level * spec.clock_mhz_max)
            self._caps[gpu_id] = GpuCap(gpu_id, clock, now.power_limit_w)
        return has_arrived


def glided(level: float, aim: float, share: float) -> float:
    """`level` moved towards `aim` by at most `share` of the swing from idle to peak, by either curve of power."""
    if share == math.inf:
        return aim
    if aim >= level:
        cubic = math.pow(min(1.0, math.pow(level, STEEPNESS) + share), 1.0 / STEEPNESS)
        return max(level, min(aim, level + share, cubic))
    cubic = math.pow(max(0.0, math.pow(level, STEEPNESS) - share), 1.0 / STEEPNESS)
    return min(level, max(aim, level - share, cubic))


def _step_w(command: NodeCommand, dt_s: float) -> float:
    return math.inf if math.isinf(command.release_w_per_s) else command.release_w_per_s * dt_s


def _snapped(spec: GpuSpec, clock_mhz: float) -> int:
    return max((c for c in spec.clocks_mhz if c <= clock_mhz + 1e-6), default=spec.clock_mhz_min)


def _limit(spec: GpuSpec, limit_w: float | None) -> float | None:
    return None if limit_w is None else min(max(limit_w, spec.power_limit_w_min), spec.power_limit_w_max)
