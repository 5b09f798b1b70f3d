import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prior_twin import prior_loss

from regraft.features import prior_gradient


def vectors(k, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, k, d, generator=generator, dtype=torch.float64).unbind()


@given(
    k=st.integers(2, 6),
    d=st.integers(2, 9),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["repel", "orthogonal"]),
    intra=st.sampled_from([0.0, 1.0]),
    inter=st.sampled_from([0.0, 1.0]),
)
def test_the_gradient_is_that_of_the_loss_written_out(k, d, seed, kind, intra, inter):
    mu, r = vectors(k, d, seed)
    leaf = mu.clone().requires_grad_(True)
    prior_loss(leaf, r, kind, intra, inter).backward()
    found = prior_gradient(mu, r, kind, intra=intra, inter=inter)
    torch.testing.assert_close(found, leaf.grad, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 99), kind=st.sampled_from(["repel", "orthogonal"]))
def test_it_does_not_lengthen_means_and_leaves_its_inputs(seed, kind):
    mu, r = vectors(4, 7, seed)
    before = mu.clone(), r.clone()
    gradient = prior_gradient(mu, r, kind)
    assert (gradient * mu).sum(1).abs().max() < 1e-12
    assert torch.equal(mu, before[0])
    assert torch.equal(r, before[1])


def test_sampled_classes_estimate_the_sum_over_all_without_bias():
    mu, r = vectors(5, 3, 0)
    whole = prior_gradient(mu, r, "orthogonal")
    pairs = torch.combinations(torch.arange(5), 2)
    sampled = [prior_gradient(mu, r, "orthogonal", negatives=pair) for pair in pairs]
    torch.testing.assert_close(torch.stack(sampled).mean(0), whole)


@pytest.mark.parametrize("kind", ["repel", "orthogonal"])
def test_ten_thousand_classes_need_no_square_of_them(kind):
    # K x K alone would be 400 MB, K x K x d 6 GB: the allocator's record says what was asked for.
    mu, r = torch.randn(2, 10_000, 16).unbind()
    with torch.profiler.profile(profile_memory=True) as profile:
        prior_gradient(mu, r, kind)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 2 * mu.numel() * 4
