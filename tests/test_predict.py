"""The follower's arithmetic agrees with independently measured figures, and with itself."""

from __future__ import annotations

import math

import pytest

from controller.predict import Follower, crash_dip, largest_drop_w

SOFTWARE = Follower(delay_s=0.03, period_s=0.05, lag_s=0.06, power_w_max=70e6, slope_w_per_s=1e9)
DEVICE = Follower(delay_s=0.0, period_s=0.0, lag_s=0.023, power_w_max=70e6, slope_w_per_s=3e9)


@pytest.mark.parametrize(
    ("slew_frac_per_s", "raw_w", "mean_w"), [(math.inf, 62e6, 6.8e6), (1.9, 13.9e6, 7.1e6)], ids=["step", "1.9 pu/s"]
)
def test_crash_dip_matches_the_measured_follower(slew_frac_per_s: float, raw_w: float, mean_w: float) -> None:
    """62 MW through a 20 Hz / 30 ms / 60 ms loop: 62 and 13.9 MW raw, 6.8 and 7.1 MW on 1 s means were measured."""
    dip = crash_dip(SOFTWARE, drop_w=62e6, slew_w_per_s=slew_frac_per_s * 62e6, mean_s=1.0)
    assert dip.raw_w == pytest.approx(raw_w, rel=0.03)
    assert dip.mean_w == pytest.approx(mean_w, rel=0.03)


def test_device_following_hides_a_step_from_a_one_second_mean() -> None:
    """A 23 ms lag leaves about drop x lag on the mean: 1.4 MW of 62 MW."""
    assert crash_dip(DEVICE, drop_w=62e6, slew_w_per_s=math.inf, mean_s=1.0).mean_w == pytest.approx(1.43e6, rel=0.05)


def test_following_amplifies_where_it_was_seen_to() -> None:
    """Below 0.3 / (2 pi T_eff) following removes 70 %; above about 1.7 Hz it makes things worse, by 1.4 at 4-5 Hz."""
    assert SOFTWARE.leftover(0.3 / (2 * math.pi * SOFTWARE.t_eff_s)) == pytest.approx(0.25, abs=0.06)
    assert SOFTWARE.leftover(1.5) < 1.0 < SOFTWARE.leftover(2.0)
    assert SOFTWARE.leftover(4.5) == pytest.approx(1.4, abs=0.1)


def test_the_largest_drop_is_the_edge() -> None:
    """The drop found just fits; one a hundredth larger does not."""
    edge_w = largest_drop_w(SOFTWARE, slew_frac_per_s=1.9, mean_s=1.0, allowed_w=5e6, drop_w_max=70e6)
    assert crash_dip(SOFTWARE, drop_w=edge_w, slew_w_per_s=1.9 * edge_w, mean_s=1.0).mean_w <= 5e6
    larger_w = 1.01 * edge_w
    assert crash_dip(SOFTWARE, drop_w=larger_w, slew_w_per_s=1.9 * larger_w, mean_s=1.0).mean_w > 5e6


def test_a_drop_beyond_the_battery_stays_on_the_meter() -> None:
    """What the battery cannot take is seen for ever."""
    small = Follower(delay_s=0.0, period_s=0.0, lag_s=0.02, power_w_max=10e6, slope_w_per_s=1e9)
    assert crash_dip(small, drop_w=30e6, slew_w_per_s=math.inf, mean_s=1.0).mean_w == pytest.approx(20e6, rel=0.01)


def test_no_drop_leaves_nothing() -> None:
    """A site whose guaranteed floor is all of its load: no drop, and no slew of one either."""
    dip = crash_dip(SOFTWARE, drop_w=0.0, slew_w_per_s=0.0, mean_s=1.0)
    assert (dip.raw_w, dip.mean_w, dip.change_w, dip.back_s) == (0.0, 0.0, 0.0, 0.0)
