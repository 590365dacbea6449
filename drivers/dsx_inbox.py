"""One grid topic behind a token bucket: a flood of it costs neither the loop nor the other issuers anything."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from controller.ports import Clock
from drivers.mqtt import Incoming, MqttSession

RATE_PER_S_MAX = 20.0  # messages of one topic that are looked at; verifying one takes 0.2 ms
BURST_MAX = 20.0
WAITING_MAX = 16  # messages of one topic beyond the rate; when full the oldest goes


class Inbox:
    """One topic behind a token bucket: a flood of it costs neither the loop nor the other issuers anything."""

    def __init__(
        self,
        session: MqttSession,
        topic: str,
        handler: Callable[[Incoming], None],
        clock: Clock,
        dropped: Callable[[], None],
        *,
        qos: int,
    ) -> None:
        self._handler = handler
        self._dropped = dropped
        self._clock = clock
        self._tokens = BURST_MAX
        self._filled_s = clock.now_s()
        self._waiting: deque[Incoming] = deque(maxlen=WAITING_MAX)
        session.on_message(topic, self.put, qos=qos)

    def put(self, message: Incoming) -> None:
        if len(self._waiting) == WAITING_MAX:
            self._dropped()
        self._waiting.append(message)
        self.work_off()

    def work_off(self) -> None:
        now_s = self._clock.now_s()
        self._tokens = min(BURST_MAX, self._tokens + (now_s - self._filled_s) * RATE_PER_S_MAX)
        self._filled_s = now_s
        while self._waiting and self._tokens >= 1.0:
            self._tokens -= 1.0
            self._handler(self._waiting.popleft())
