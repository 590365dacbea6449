"""Faults of ports: the seven verbs, when each is in force, and ports that lie as they say.

A fault names a port (`meter`, `battery`, `load_bank`, `ups`, `grid`, `node:<pattern>`), a verb and a span of time:

* off: no answer at all            * stuck: the last value for ever, freshly stamped
* garbage: answers that cannot be  * wrong: the value times a factor (1000, -1, 0.97); a node: accepted, not applied
* slow: the answer comes late      * delayed: the answer is in time and old       * intermittent: off now and then

Each wrapper has its inner port's interface, so that nothing above can tell it from a sick device.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

import numpy as np

from controller.ports import Clock, PowerMeter, Ups
from controller.types import (
    BatteryCommand,
    BatterySample,
    LoadBankCommand,
    LoadBankSample,
    MeterSample,
    Reading,
    UpsSample,
    frozen,
    replace,
)
from drivers.errors import BadReply, DeviceGone, DeviceTimeout
from hil.scenario_documents import FaultDoc, Verb
from hil.vtime import NS_PER_S

V = TypeVar("V")
S = TypeVar("S", BatterySample, LoadBankSample)
C = TypeVar("C", BatteryCommand, LoadBankCommand)

DEFAULT_VALUE: dict[str, float] = {"wrong": 1.03, "slow": 1.0, "delayed": 1.0, "intermittent": 0.5}
GARBAGE = (math.nan, math.inf, -1e12, 4.2e9)  # not a number, overflow, and the two ends of a misread word


@frozen
class Fault:
    """One fault and its span. `value` has the meaning its verb gives it."""

    id: str
    port: str
    verb: Verb
    from_s: float
    until_s: float
    value: float

    def is_on(self, t_s: float) -> bool:
        return self.from_s <= t_s < self.until_s


class FaultPlan:
    """Every fault of a run, fixed before it starts; further ones may be added while it runs."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = list(faults)

    @classmethod
    def of(cls, docs: Sequence[FaultDoc]) -> FaultPlan:
        return cls(
            [
                Fault(
                    id=doc.id or f"{doc.port}-{doc.verb}-{number}",
                    port=doc.port,
                    verb=doc.verb,
                    from_s=doc.t_s,
                    until_s=math.inf if doc.duration_s is None else doc.t_s + doc.duration_s,
                    value=DEFAULT_VALUE.get(doc.verb, 0.0) if doc.value is None else doc.value,
                )
                for number, doc in enumerate(docs)
            ]
        )

    def add(self, fault: Fault) -> None:
        self.faults.append(fault)

    def clear(self) -> None:
        """Everything heals."""
        self.faults.clear()

    def on(self, port: str, t_s: float) -> Fault | None:
        """The fault of `port` in force at `t_s`; of several, the one that began last."""
        now = [f for f in self.faults if f.is_on(t_s) and _is_for(f, port)]
        return max(now, key=lambda f: f.from_s) if now else None


def _is_for(fault: Fault, port: str) -> bool:
    if not port.startswith("node:"):
        return fault.port == port
    return fault.port.startswith("node:") and fnmatchcase(port[5:], fault.port[5:])


class _Sick:
    """What every wrapper needs: the plan, the time, and dice of its own."""

    def __init__(self, port: str, plan: FaultPlan, clock: Clock, rng: np.random.Generator) -> None:
        self._port, self._plan, self._clock, self._rng = port, plan, clock, rng

    def _fault(self) -> Fault | None:
        return self._plan.on(self._port, self._clock.now_s()) if self._plan.faults else None

    async def _suffer(self, fault: Fault) -> None:
        """The part of a verb that is the same for every device: silence, lateness, dice."""
        if fault.verb == "off":
            raise DeviceTimeout(self._port, "no answer")
        if fault.verb == "intermittent" and self._rng.random() < fault.value:
            raise DeviceGone(self._port, "connection lost")
        if fault.verb == "slow":
            await self._clock.sleep_until_ns(self._clock.now_ns() + round(fault.value * NS_PER_S))


class _Past(Generic[V]):
    """What a device answered lately, for one that answers in time and old."""

    def __init__(self) -> None:
        self._history: list[Reading[V]] = []

    def remember(self, reading: Reading[V]) -> None:
        self._history.append(reading)
        if len(self._history) > 4_000:
            del self._history[:2_000]

    def at(self, t_s: float) -> V:
        """The newest answer that was true at `t_s`, else the oldest kept."""
        older = [r for r in self._history if r.t_mono_s <= t_s]
        return (older[-1] if older else self._history[0]).value


class SickMeter(_Sick):
    """A meter that may be ill."""

    def __init__(
        self, inner: PowerMeter, plan: FaultPlan, clock: Clock, rng: np.random.Generator, *, port: str = "meter"
    ) -> None:
        super().__init__(port, plan, clock, rng)
        self._inner = inner
        self._past: _Past[MeterSample] = _Past()
        self._stuck: MeterSample | None = None

    async def read(self) -> Reading[MeterSample]:
        fault = self._fault()
        if fault is None:
            self._stuck = None
            reading = await self._inner.read()
            if self._plan.faults:
                self._past.remember(reading)
            return reading
        await self._suffer(fault)
        reading = await self._inner.read()
        self._past.remember(reading)
        return replace(reading, value=self._ill(fault, reading))

    def _ill(self, fault: Fault, reading: Reading[MeterSample]) -> MeterSample:
        sample = reading.value
        if fault.verb == "stuck":
            self._stuck = self._stuck or sample
            return self._stuck
        if fault.verb == "garbage":
            return replace(sample, power_w=GARBAGE[int(self._rng.integers(len(GARBAGE)))])
        if fault.verb == "wrong":
            return replace(sample, power_w=sample.power_w * fault.value)
        if fault.verb == "delayed":
            return self._past.at(reading.t_mono_s - fault.value)
        return sample


class SickDevice(_Sick, Generic[S, C]):
    """A battery or load bank, `port`, whose wire may be ill; what is wrong with the device itself is the plant's."""

    def __init__(
        self,
        port: str,
        plan: FaultPlan,
        clock: Clock,
        rng: np.random.Generator,
        *,
        read: Callable[[], Awaitable[Reading[S]]],
        write: Callable[[C], Awaitable[None]],
    ) -> None:
        """`read` and `write` are those of the device inside."""
        super().__init__(port, plan, clock, rng)
        self._read: Callable[[], Awaitable[Reading[S]]] = read
        self._write: Callable[[C], Awaitable[None]] = write
        self._past: _Past[S] = _Past()
        self._stuck: S | None = None

    async def read(self) -> Reading[S]:
        fault = self._fault()
        if fault is None:
            self._stuck = None
            reading = await self._read()
            if self._plan.faults:
                self._past.remember(reading)
            return reading
        await self._suffer(fault)
        reading = await self._read()
        self._past.remember(reading)
        sample = reading.value
        if fault.verb == "stuck":
            self._stuck = self._stuck or sample
            return replace(reading, value=self._stuck)
        if fault.verb == "garbage":
            raise BadReply(self._port, "reply of another length than asked for")
        if fault.verb == "wrong":
            return replace(reading, value=replace(sample, power_w=sample.power_w * fault.value))
        if fault.verb == "delayed":
            return replace(reading, value=self._past.at(reading.t_mono_s - fault.value))
        return reading

    async def write(self, command: C) -> None:
        fault = self._fault()
        if fault is not None:
            await self._suffer(fault)
            if fault.verb == "garbage":
                raise BadReply(self._port, "acknowledgement of another register")
        await self._write(command)


class SickUps(_Sick):
    """A UPS card that may be ill."""

    def __init__(self, inner: Ups, plan: FaultPlan, clock: Clock, rng: np.random.Generator) -> None:
        super().__init__("ups", plan, clock, rng)
        self._inner = inner

    async def read(self) -> Reading[UpsSample]:
        fault = self._fault()
        if fault is not None:
            await self._suffer(fault)
            if fault.verb == "garbage":
                raise BadReply("ups", "reply of another unit")
        return await self._inner.read()
