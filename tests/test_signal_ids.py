"""The id of an event is not signed: a broker that gives two messages one id hides nothing of either."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.types import SignalKind
from tests.dsx_kit import MW
from tests.signals_kit import Story, ramp, two_feeds


class OneId(Story):
    """Behind a broker that gives every message the same id."""

    def give(self, offer):  # type: ignore[no-untyped-def]
        return super().give(replace(offer, message_id="same"))


@pytest.mark.parametrize("in_s", [0.0, 20.0, 60.0])
def test_rows_of_two_messages_with_one_id_are_both_held(in_s: float) -> None:
    """One with a signed time, and a stricter one without, which lies beside it as it only tightens."""
    site = OneId()
    site.rows(ramp(5 * MW, 15.0, "tight"), end=100.0)
    assert site.rows(ramp(4 * MW, 60.0, "tighter"), end=50.0, iat=None).reason is None
    site.wait(in_s)
    assert site.row_ids() == ({"tight", "tighter"} if in_s < 50.0 else {"tight"})


def test_targets_of_two_messages_with_one_id_are_both_told() -> None:
    site = OneId()
    site.say(60 * MW, end=100.0)
    site.say(50 * MW, end=50.0, iat=None)
    site.wait(1.0)
    told = site.rules.feed_targets(site.now_s)
    assert [(t.asked_w, t.is_active) for t in sorted(told, key=lambda t: t.until_s)] == [
        (50 * MW, True),
        (60 * MW, True),
    ]


def test_rows_of_two_issuers_with_one_id_and_one_time_are_both_held() -> None:
    site = two_feeds()
    site.__class__ = type("OneIdOfTwo", (OneId,), {})
    for by, name in (("acme", "a-row"), ("bolt", "b-row")):
        site.rows(ramp(10 * MW, 15.0, name), start=5.0, end=50.0, by=by)
    site.wait(6.0)
    assert site.row_ids() == {"a-row", "b-row"}
    kinds = [s.kind for s in site.rules.active(site.now_s)]
    assert kinds.count(SignalKind.RAMP_LIMIT) == 2
