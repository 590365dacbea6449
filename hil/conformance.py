"""What a test of the grid interface says: a verdict on each rule, and on the whole.

The rules themselves are in `hil.conformance_agent` and `hil.conformance_issuer`.
"""

from __future__ import annotations

from enum import StrEnum, unique

from controller.types import frozen


@unique
class Verdict(StrEnum):
    """What a test says of one rule."""

    HOLDS = "holds"
    BROKEN = "broken"
    ABSENT = "absent"  # an optional part that the implementation does not have
    UNTESTED = "untested"  # what it needs did not come about


@frozen
class RuleResult:
    """One rule of the interface, and what was seen."""

    rule: str
    verdict: Verdict
    detail: str


def is_conformant(results: list[RuleResult]) -> bool:
    """True when nothing is broken and something held."""
    verdicts = [r.verdict for r in results]
    return Verdict.BROKEN not in verdicts and Verdict.HOLDS in verdicts
