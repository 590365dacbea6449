"""Prometheus metrics over HTTP on the loopback interface, served by a thread of the client library.

Values are set, never computed, here; a metric appears the first time it is set.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from controller.errors import BadInput

LOOPBACK = "127.0.0.1"


class Metrics:
    """Named gauges with labels."""

    def __init__(self, port: int | None) -> None:
        """`port` None keeps values without serving them. Raises BadInput when the port is taken."""
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._server = None
        if port is not None:
            try:
                self._server, _ = start_http_server(port, addr=LOOPBACK, registry=self._registry)
            except OSError as error:
                raise BadInput(f"metrics_port: {port}: {error.strerror or error}; choose a free port") from None

    def set(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Set one value; `name` carries its unit."""
        labels = labels or {}
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = Gauge(name, name.replace("_", " "), tuple(sorted(labels)), registry=self._registry)
            self._gauges[name] = gauge
        (gauge.labels(**labels) if labels else gauge).set(value)

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
