import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.report.stats import estimate, paired_difference

values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20)


def test_by_hand():
    # s = 1, t(0.975, 2) = 4.302653, so the half width is 4.302653 / sqrt(3).
    result = estimate([1.0, 2.0, 3.0])
    assert (result.n, result.mean) == (3, 2.0)
    assert result.high == pytest.approx(2 + 2.484138, abs=1e-6)
    assert result.low == pytest.approx(2 - 2.484138, abs=1e-6)


@given(values)
def test_against_scipy(values):
    result = estimate(values)
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    assert result.mean == pytest.approx(np.mean(values), abs=1e-6)
    if scale > 1e-6:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale)
        assert (result.low, result.high) == pytest.approx((low, high), rel=1e-6, abs=1e-5)


@given(values, st.randoms(use_true_random=False))
def test_order_does_not_matter(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert estimate(shuffled) == estimate(values)


@given(values)
def test_the_interval_holds_the_mean(values):
    result = estimate(values)
    assert result.low is not None
    assert result.high is not None
    assert result.low <= result.mean <= result.high


@given(values, st.floats(-1e3, 1e3))
def test_a_constant_difference_is_found_exactly(values, shift):
    control = dict(enumerate(values))
    result = paired_difference({seed: value + shift for seed, value in control.items()}, control)
    assert result.mean == pytest.approx(shift, abs=1e-6)
    assert (result.low, result.high) == pytest.approx((shift, shift), abs=1e-6)


@given(values)
def test_swapping_the_arms_flips_the_sign(values):
    arm, control = dict(enumerate(values)), dict(enumerate(reversed(values)))
    there, back = paired_difference(arm, control), paired_difference(control, arm)
    assert there.mean == -back.mean
    assert there.low == -back.high


def test_pairing_uses_common_seeds_alone():
    result = paired_difference({1: 5.0, 2: 7.0, 9: 1000.0}, {2: 6.0, 1: 4.5, 8: -1000.0})
    assert (result.n, result.mean) == (2, 0.75)


def test_one_value_has_no_interval():
    assert estimate([3.5]) == (1, 3.5, None, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_nothing_and_what_is_no_number_are_refused(values):
    with pytest.raises(InputError, match="values"):
        estimate(values)


def test_no_common_seed_is_refused():
    with pytest.raises(InputError, match="common seed"):
        paired_difference({1: 1.0}, {2: 1.0})
