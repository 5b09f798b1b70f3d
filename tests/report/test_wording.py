import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.report import wording


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (12_345, "12.3 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (2.5e9, "2.50 GB"),
        (7e15, "7000 TB"),
        (None, "–"),
    ],
)
def test_sizes(count, text):
    assert wording.size(count) == text


@given(st.integers(1000, 10**14))
def test_a_size_keeps_three_digits(count):
    number, unit = wording.size(count).split()
    assert len(re.sub(r"\D", "", number)) == 3
    factor = 1000 ** ["kB", "MB", "GB", "TB"].index(unit) * 1000
    assert float(number) * factor == pytest.approx(count, rel=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.96, "10 s"), (61, "61 s"), (1250, "21 min"), (12_240, "3.4 h")],
)
def test_durations(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.25, "+1.2"), (-0.55, "−0.6"), (-0.04, "0.0"), (0.04, "0.0")]
)
def test_signs(value, text):
    assert wording.number(value, 1, signed=True) == text


def test_with_interval():
    assert wording.with_interval(88.1, 87.6, 88.6, 1) == "88.1 [87.6, 88.6]"
    assert wording.with_interval(1.2, -0.4, 2, 1, signed=True) == "+1.2 [−0.4, 2.0]"
    assert wording.with_interval(88.1, None, None, 1) == "88.1 –"
    assert wording.with_interval(None, None, None, 1) == "–"


def test_decimals():
    assert wording.decimals("%", [0.001]) == 1
    assert wording.decimals("", [0.345, 0.012]) == 3
    assert wording.decimals("", [345.0]) == 0
    assert wording.decimals("", [0.0]) == 2


def test_headings():
    assert wording.heading("test_accuracy", "%") == "Test accuracy (%)"
    assert wording.heading("barrier", "") == "Barrier"
