import pytest
import torch
from torch.func import grad, vmap

from regraft.tickets import masked_weight


def reference(weight, scores, threshold, magnitude):
    """The slow twin: the mask with its straight-through gradient, written out."""
    size = scores.abs() if magnitude else scores
    mask = (size >= threshold).to(weight.dtype)
    return weight * (mask + (size - size.detach()))


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_value_and_gradients_are_those_of_the_formula(magnitude, as_tensor, dtype):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(7, 5, generator=generator).to(dtype).requires_grad_()
    scores = torch.randn(7, 5, generator=generator).to(dtype).requires_grad_()
    size = scores.detach().abs() if magnitude else scores.detach()
    tau = size.flatten().sort().values[17]
    upstream = torch.randn(7, 5, generator=generator).to(dtype)
    out = masked_weight(weight, scores, tau if as_tensor else tau.item(), magnitude=magnitude)
    expected = reference(weight, scores, tau, magnitude)
    got = torch.autograd.grad(out, (weight, scores), upstream)
    # dL/dW of the twin would carry the straight-through term's zero as well; both are M * upstream.
    want = torch.autograd.grad(expected, (weight, scores), upstream)
    assert torch.equal(out, expected)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_the_threshold_itself_is_kept_and_the_next_number_below_is_not():
    tau = 0.1
    scores = torch.tensor([tau, torch.nextafter(torch.tensor(tau), torch.tensor(-1.0)).item()])
    tau = scores[0].item()
    assert masked_weight(torch.ones(2), scores, tau).tolist() == [1.0, 0.0]
    assert masked_weight(torch.ones(2), -scores, tau, magnitude=True).tolist() == [1.0, 0.0]


def test_a_threshold_of_zero_keeps_everything_by_magnitude():
    assert masked_weight(torch.ones(3), torch.tensor([0.0, 1, -1]), 0.0, magnitude=True).sum() == 3


def test_no_gradient_is_computed_or_kept_for_a_frozen_weight():
    weight = torch.randn(4, 4)
    scores = torch.randn(4, 4, requires_grad=True)
    out = masked_weight(weight, scores, 0.0)
    # Of the two tensors only W is needed for dL/dS, so only W is kept.
    assert [t is None for t in out.grad_fn.saved_tensors] == [False, True, True]
    out.sum().backward()
    assert weight.grad is None
    assert torch.equal(scores.grad, weight)


@pytest.mark.parametrize("magnitude", [False, True])
def test_second_derivatives_are_those_of_the_formula(magnitude):
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def outer(function):
        y = function(weight, scores)
        (inner,) = torch.autograd.grad((y**3).sum(), scores, create_graph=True)
        return torch.autograd.grad((inner**2).sum(), (weight, scores))

    got = outer(lambda w, s: masked_weight(w, s, 0.1, magnitude=magnitude))
    want = outer(lambda w, s: reference(w, s, 0.1, magnitude))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_vmap_of_grad_over_scores_equals_a_loop():
    weight, scores = torch.randn(5), torch.randn(3, 5)
    one = grad(lambda s: (masked_weight(weight, s, torch.tensor(0.0)) ** 2).sum())
    torch.testing.assert_close(vmap(one)(scores), torch.stack([one(s) for s in scores]))
