import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.jobs.finetune.analysis import conditional_entropy, describe, entropy


def slow_entropy(f):
    n, d = f.shape
    return (
        d
        / (n * (n - 1))
        * sum(math.log((f[i] - f[j]).norm()) for i in range(n) for j in range(n) if i != j)
    )


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 10**6))
def test_entropy_is_the_formula(n, d, seed):
    f = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert entropy(f) == pytest.approx(slow_entropy(f))
    assert entropy(3.0 * f + 1.0) == pytest.approx(entropy(f) + d * math.log(3.0))


def test_mutual_information_is_what_classes_take_away():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(10)
    noise = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    apart = noise + 100.0 * torch.eye(4, 6, dtype=torch.float64)[labels]
    nothing, much = describe(noise, labels), describe(apart, labels)
    assert abs(nothing["mutual_information"]) < 0.5
    assert much["mutual_information"] > 5
    assert describe(7.0 * apart, labels)["mutual_information"] == pytest.approx(
        much["mutual_information"]
    )
    within = [slow_entropy(apart[labels == k]) for k in range(4)]
    assert conditional_entropy(apart, labels) == pytest.approx(sum(within) / 4)
    assert much["feature_norm"] == pytest.approx(apart.norm(dim=1).mean().item())


def test_equal_features_and_lonely_classes_have_a_finite_entropy():
    f = torch.ones(3, 2)
    assert math.isfinite(entropy(f))
    assert conditional_entropy(f, torch.tensor([0, 0, 1])) == pytest.approx(entropy(f[:2]))
