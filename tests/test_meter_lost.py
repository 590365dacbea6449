"""A job that leaves while the site meter is away or stands still: its power is followed from what GPUs report."""

from __future__ import annotations

import pytest

from controller.estimate import LoadSource
from hil.matrix_lab import MW, Lab
from hil.plant.site import LOAD
from tests.faults_kit import play

SEES_WITHIN_S = 0.3  # a sample is 0.1 s old, half a period of five reports a second, and the wire


@pytest.mark.parametrize("verb", ["off", "stuck"])
def test_a_job_that_leaves_in_half_a_second_is_followed_from_the_newest_samples(verb: str) -> None:
    """14 MW of 66 in 0.6 s; means of a second, 0.6 s old, put 8 to 13 MW on the meter where 5 are allowed."""

    async def react(lab: Lab, _: float) -> None:
        await lab.run(6.0)
        lab.drop(14.0, 0.6)
        await lab.run(0.6 + SEES_WITHIN_S)
        estimate = lab.traces[-1].decision.estimate
        assert estimate.source is LoadSource.NODES
        assert lab.now_s - estimate.t_s < SEES_WITHIN_S
        assert abs(estimate.load_w - lab.world.plant.value(LOAD, estimate.t_s)) < 1.0 * MW
        await lab.run(15.0)

    play("steady", begin=lambda lab: lab.fault("meter", verb), react=react)
