import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.train import calibration_error, fit_temperature, reliability


def drawn(n, k, seed, scale):
    """Return logits, and labels drawn from the probabilities of logits / scale."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * scale, labels


@given(st.integers(0, 50), st.floats(0.3, 4.0))
def test_the_temperature_is_the_best_of_a_fine_grid(seed, scale):
    logits, labels = drawn(60, 4, seed, scale)
    found = fit_temperature(logits, labels)

    def loss(t):
        return F.cross_entropy(logits.double() / t, labels).item()

    grid = [math.exp(x / 200) for x in range(-500, 500)]
    assert loss(found) <= min(map(loss, grid)) + 1e-9


def test_the_temperature_that_labels_were_drawn_at_is_found_again():
    logits, labels = drawn(40_000, 5, 0, 3.0)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.03)


def test_images_that_are_all_right_do_not_make_it_sure_of_everything():
    logits = torch.eye(3) * 2
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(1.0)
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(20.0)


@pytest.mark.parametrize("logits", [torch.empty(0, 3), torch.full((2, 3), float("nan"))])
def test_no_images_and_no_numbers_are_refused(logits):
    with pytest.raises(InputError, match="logits for a temperature"):
        fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64))


@given(st.integers(0, 50), st.integers(1, 20), st.integers(2, 6))
def test_the_calibration_error_is_the_sum_written_out(seed, bins, k):
    logits, labels = drawn(37, k, seed, 1.7)
    p = logits.double().softmax(1)
    error = 0.0
    for b in range(bins):
        inside = [i for i in range(37) if b / bins < p[i].max().item() <= (b + 1) / bins]
        if inside:
            right = sum(int(p[i].argmax()) == int(labels[i]) for i in inside) / len(inside)
            sure = sum(p[i].max().item() for i in inside) / len(inside)
            error += len(inside) / 37 * abs(right - sure)
    found = reliability(p, labels, bins=bins)
    assert calibration_error(found) == pytest.approx(error, abs=1e-12)
    assert sum(b.count for b in found) == 37
    assert all(b.low < b.confidence <= b.high + 1e-12 for b in found)


def test_true_probabilities_have_nearly_no_error_and_false_ones_have():
    logits, labels = drawn(40_000, 5, 1, 3.0)

    def error(t):
        return calibration_error(reliability((logits / t).softmax(1), labels))

    assert error(3.0) < 0.01
    assert error(1.0) > 0.1


def test_fewer_than_one_bin_is_refused():
    with pytest.raises(InputError, match="bins=0"):
        reliability(torch.eye(2), torch.arange(2), bins=0)
