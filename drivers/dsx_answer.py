"""What became of one grid request, as a line of the audit log and as the answer its issuer gets."""

from __future__ import annotations

import math

from controller.types import SignalOutcome
from drivers.dsx_extension import RequestAnswer
from drivers.dsx_payloads import power, utc_text


def audit_line(o: SignalOutcome, now_s: float, utc_s: float) -> dict[str, object]:
    def utc(t_s: float | None) -> str | None:
        return None if t_s is None or not math.isfinite(t_s) else utc_text(utc_s + t_s - now_s)

    return {
        "event": "signal",
        "kind": str(o.kind),
        "issuer": o.issuer,
        "key_id": o.key_id,
        "message_id": o.message_id,
        "correlation_id": o.correlation_id,
        "index": o.index,
        "feeds": list(o.feeds),
        "acceptance": str(o.acceptance),
        "reason": str(o.reason) if o.reason else None,
        "detail": o.detail,
        "asked_w": o.asked_w,
        "applied_w": o.applied_w,
        "from": utc(o.from_s),
        "until": utc(o.until_s),
        "met_at": utc(o.met_at_s),
    }


def request_answer(o: SignalOutcome, now_s: float, utc_s: float) -> RequestAnswer:
    fields: dict[str, object] = {}
    if o.reason is not None:
        fields["reason"] = str(o.reason)
    if o.applied_w is not None:
        fields["applied"] = power(o.applied_w)
    if o.met_at_s is not None and math.isfinite(o.met_at_s):
        fields["met_at"] = utc_text(utc_s + o.met_at_s - now_s)
    return RequestAnswer.model_validate(
        {"index": o.index, "feed_tags": o.feeds, "acceptance": o.acceptance.value, "detail": o.detail, **fields}
    )
