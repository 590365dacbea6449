"""Stories that the swarm failed on, up to where they broke: site, workload, signals and faults as a seed draws them."""

from __future__ import annotations

import pytest

from controller.modes import Flag
from hil import swarm as swarms
from hil.faults import Fault
from hil.matrix_lab import Lab, in_lab
from hil.swarm import draw


@pytest.mark.parametrize(
    ("seed", "until_s"),
    [
        (1000054, 62.0),  # the target took what its row left, and caps the same in the same cycle: 10.3 of 10 MW
        (5261, 76.0),  # one of four nodes 2.5 s late, a job that leaves in 0.9 s, no meter: 5.95 of 5 MW
        (6169, 71.5),  # nodes back one after the other, held against the last numbers of the rest: 12.4 of 10 MW
        (1001285, 131.0),  # caps that no GPU took, lowered on, and then taken by all at once: 11.6 of 10 MW
        (1001607, 97.0),  # a meter late for 3 s, called late for on beside a battery that stood still: 21.5 of 5 MW
        (1001628, 76.0),  # the phase of a refresh counted twice, without a node to gainsay it: 5.5 of 5 MW
        (1001903, 78.0),  # clocks on their way to fallback, beside a battery that let go by itself: 5.2 of 5 MW
        (1002454, 30.0),  # of a late meter, ages tried beside the battery of another time: 21.8 of 10 MW
        (1002748, 82.0),  # in time again, and still as old as its values were when it was late: 13.3 of 10 MW
        (1002462, 76.0),  # a target that stepped to the edge of its row, and a plan's clocks beside it: 10.6 of 10 MW
        (1002419, 66.0),  # a clock that came down beside the limit that held power: 5.01 of 5 MW
        (1002995, 72.0),  # the same with a limit that went lower, by a curve that was learnt anew: 5.004 of 5 MW
        (1000242, 95.0),  # a battery that tripped while a ceiling is met: caps took what the ripple needed, 31 of 20 MW
    ],
)
def test_a_story_that_broke_a_row_holds(seed: int, until_s: float) -> None:
    assert told(seed, until_s).broken() == []


def test_an_age_within_the_refresh_is_no_lateness() -> None:
    """1001929: our own moves came back 0.2 s late from a meter that refreshes every 0.2 s: DEGRADED for good."""
    assert Flag.METER_LATE not in told(1001929, 140.0).last.flags


def told(seed: int, until_s: float) -> Lab:
    """The story of the seed, and nothing healed before its time."""
    tale = draw(seed)

    async def story(lab: Lab) -> None:
        for k, b in enumerate(tale.blows):
            value = 0.0 if b.value is None else b.value
            lab.plan.add(Fault(str(k), b.port, b.verb, b.from_s, b.from_s + b.for_s, value))  # type: ignore[arg-type]
        lab.start()
        await lab.run(until_s)

    return in_lab(story, swarms._scenario(tale))
