"""A battery that comes back goes on from what the meter says, not from the target of before."""

from __future__ import annotations

from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab

STEPS_PER_S = 200


def test_a_battery_that_was_silent_takes_the_load_up_where_it_is() -> None:
    """The meter was away for 2 s, so nothing may rise; the battery is silent while 4 MW come back, and then answers.

    The target from before is 4 MW below what is drawn by then: taken up again it would be a step of that size.
    """

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(22.0)
        lab.fault("meter", "off", for_s=2.0)
        await lab.run(2.0)
        lab.fault("battery", "off", for_s=4.5)
        await lab.run(8.0)

    event = {"kind": "drop", "t_s": 6.0, "megawatt": 4, "within_s": 3.0}
    drop = event | {"restart_after_s": 18.0, "restart_within_s": 3.0}
    flat = {"exchange_w": 560}
    scenario = lab_scenario("steady", following="software", duration_s=60.0, events_docs=[drop], workload=flat)
    lab = in_lab(story, scenario)
    assert lab.broken() == []
    power_w = lab.pcc_w()
    before_w, after_w = power_w[28 * STEPS_PER_S], power_w[30 * STEPS_PER_S]
    assert before_w > 67e6 and abs(after_w - before_w) < 1e6
