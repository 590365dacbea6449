"""What of a message of ours is left out where the whole would not fit into a packet.

How much we have to say is for others to decide: a schedule of many targets, a request for many feeds. A message that is
too long for the broker is lost whole, so the short form goes out: the soonest targets, the bare answers.
"""

from __future__ import annotations

from drivers.dsx_extension import SignalAnswerData
from drivers.dsx_payloads import FeedState, Payload, PowerStateStatusData

TARGETS_TOLD_MAX = 64  # in the short form of a status, over all feeds: 300 bytes each


def shortened(data: Payload) -> Payload:
    """The short form of `data`; itself where it has none."""
    if isinstance(data, PowerStateStatusData):
        each = max(1, TARGETS_TOLD_MAX // max(1, len(data.feeds)))
        return data.model_copy(update={"feeds": {name: _soonest(feed, each) for name, feed in data.feeds.items()}})
    if isinstance(data, SignalAnswerData):
        bare = tuple(answer.model_copy(update={"feed_tags": (), "detail": ""}) for answer in data.answers)
        return data.model_copy(update={"answers": bare})
    return data


def _soonest(feed: FeedState, count: int) -> FeedState:
    """The feed with the targets in force, then those that begin first."""
    in_order = sorted(feed.targets, key=lambda t: (not t.active, t.interval.start_time or ""))
    return feed.model_copy(update={"targets": tuple(in_order[:count])})
