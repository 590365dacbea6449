"""An MQTT broker inside the process, so that the demo and the bench need no server to be installed.

MQTT 3.1.1 only, anonymous, on loopback unless told otherwise; a site runs a real broker with TLS and an ACL. asyncio
switches Nagle's delay off on every accepted connection, which keeps QoS 1 round trips at a millisecond.
"""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import suppress
from types import TracebackType

from amqtt.broker import Broker
from amqtt.errors import AMQTTError, BrokerError

from controller.errors import BadInput

LOOPBACK = "127.0.0.1"


class EmbeddedBroker:
    """Starts and stops an amqtt broker; `port` 0 takes a free one. Usable as `async with`."""

    def __init__(self, *, host: str = LOOPBACK, port: int = 0) -> None:
        self.host = host
        self.port = port
        self._broker: Broker | None = None

    async def start(self) -> None:
        """Listen. Raises BadInput when the port is taken or the address is not ours."""
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it logs each packet and each client that goes
        if self.port == 0:
            self.port = free_port(self.host)
        check_bindable(self.host, self.port)
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"{self.host}:{self.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = Broker(config)
        try:
            await broker.start()
        except BrokerError as error:
            raise BadInput(f"embedded broker: cannot listen on {self.host}:{self.port}: {error}") from None
        self._broker = broker

    async def stop(self) -> None:
        """Disconnect everyone and free the port; harmless when not started."""
        broker, self._broker = self._broker, None
        if broker is not None:
            with suppress(AMQTTError):
                await broker.shutdown()

    async def __aenter__(self) -> EmbeddedBroker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def free_port(host: str = LOOPBACK) -> int:
    """A TCP port nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def check_bindable(host: str, port: int) -> None:
    """BadInput, in one line, when `host:port` cannot be listened on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise BadInput(f"embedded broker: cannot listen on {host}:{port}: {why}") from None
