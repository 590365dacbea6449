"""What operators see of the links: how often each was made, and what it dropped and why. Decides nothing.

What is counted is the drivers' own affair; here it gets one name each in the status document and in the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from drivers.metrics import Metrics

Counter = Callable[[], Mapping[str, int]]  # of one link: how often each thing happened since the start


class LinkTelemetry:
    """Counters of all links by name."""

    def __init__(self, counters: Mapping[str, Counter]) -> None:
        self._counters = counters

    def document(self) -> dict[str, object]:
        """The key `links` of the status document: counts by link and by what happened."""
        return {"links": {link: dict(counter()) for link, counter in sorted(self._counters.items())}}

    def set_metrics(self, metrics: Metrics) -> None:
        """`rampart_link_count` by link and by what happened; 0 is told, so that a first drop is a change."""
        for link, counter in self._counters.items():
            for what, count in counter().items():
                metrics.set("rampart_link_count", float(count), {"link": link, "what": what})
