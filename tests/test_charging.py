"""A battery that is low on a site whose registered peak is near: what its charging may bring the meter to."""

from __future__ import annotations

import pytest

from hil.lab_site import MW, TOP_MHZ, lab_scenario
from hil.matrix_lab import Lab, in_lab

FROM_S, UNTIL_S = 60.0, 110.0
TRACKED_W = 1.0 * MW  # how far the meter stands beside the target while the load ripples


def charged(peak_megawatt: float) -> Lab:
    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(UNTIL_S)

    return in_lab(story, lab_scenario("steady", site={"registered_peak_megawatt": peak_megawatt}, start_soc=0.1))


@pytest.mark.parametrize("peak_megawatt", [75.0, 60.0])
def test_import_is_no_higher_than_the_registered_peak_or_what_load_comes_to_by_itself(peak_megawatt: float) -> None:
    """The load is 66 to 68 MW, and its own. It is not capped for a peak that no row of the contract names."""
    lab = charged(peak_megawatt)
    power_w, battery_w = lab.pcc_w(), lab.battery_w()
    since = int(power_w.size * FROM_S / UNTIL_S)
    load_w = (power_w + battery_w)[since:]
    most_w = max(peak_megawatt * MW, float(load_w.max()))
    assert power_w[since:].max() < most_w + TRACKED_W
    assert max(lab.caps_mhz()) == min(lab.caps_mhz()) == TOP_MHZ, "nothing is capped"
    assert battery_w[since:].mean() < 0.0, "it charges all the same"
