"""A clock in the hand of a test."""

from __future__ import annotations


class HandClock:
    """Monotonic and wall time that stand until the test, or a sleep, moves them."""

    def __init__(self, *, start_s: float = 100.0, zero_utc_s: float = 1.8e9) -> None:
        self.t_ns = round(start_s * 1e9)
        self._zero_utc_s = zero_utc_s

    @property
    def t_s(self) -> float:
        return self.t_ns / 1e9

    @t_s.setter
    def t_s(self, t_s: float) -> None:
        self.t_ns = round(t_s * 1e9)

    def now_ns(self) -> int:
        return self.t_ns

    def now_s(self) -> float:
        return self.t_s

    def wall_utc_s(self) -> float:
        return self._zero_utc_s + self.t_s

    async def sleep_until_ns(self, t_ns: int) -> None:
        self.t_ns = max(self.t_ns, t_ns)
