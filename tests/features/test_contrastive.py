import math

import pytest
import torch
from torch import nn

from features import CLASSES, WIDTH, batch, loader, network
from regraft.errors import InputError
from regraft.features import CoreTuning, SupCon, contrastive_loss
from regraft.features.core_tuning import equal_rows, hard_pairs

F64 = torch.float64


def unit(n, d, seed=0):
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return nn.functional.normalize(z, dim=1)


def slow_contrast(z, same, tau, focal=False):
    z, losses = z.detach(), []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        total = sum(math.exp(z[i] @ z[a] / tau) for a in others)
        terms = []
        for p in others:
            if same[i][p]:
                share = math.exp(z[i] @ z[p] / tau) / total
                terms.append(-math.log(share) * ((1 - share) if focal else 1))
        if terms:
            losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("focal", [False, True])
def test_the_contrastive_loss_is_its_formula(focal):
    y = [0, 1, 0, 2, 1, 1, 0]  # class 2 has one image
    same = [[a == b for b in y] for a in y]
    z = unit(7, 4)
    found = contrastive_loss(z, torch.tensor(same), 0.3, focal=focal)
    assert found.item() == pytest.approx(slow_contrast(z, same, 0.3, focal))


@pytest.mark.parametrize("focal", [False, True])
def test_its_gradient_is_finite_and_a_batch_without_pairs_costs_nothing(focal):
    z = unit(3, 4).requires_grad_(True)
    loss = contrastive_loss(z, torch.eye(3, dtype=torch.bool), 0.07, focal=focal)
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.equal(gradient, torch.zeros_like(z))
    same = torch.ones(3, 3, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(contrastive_loss(z, same, 0.07, focal=focal), z)
    assert gradient.isfinite().all()
    one = unit(1, 4).requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        contrastive_loss(one, torch.ones(1, 1, dtype=torch.bool), 0.07), one
    )
    assert gradient.isfinite().all()


def test_supcon_projects_and_weighs():
    net = network(1)
    method = SupCon(0.5, temperature=0.2, size=5).prepare(net)
    x, y = batch()
    net(x)
    f = method.tap.features
    z = nn.functional.normalize(method.projection(f), dim=1).double()
    same = [[a == b for b in y.tolist()] for a in y.tolist()]
    found = method.loss(f, y)
    assert found.item() == pytest.approx(0.5 * slow_contrast(z, same, 0.2), rel=1e-5)
    assert len(method.extra_parameters()) == 4
    assert method.param_groups(0.3)[0]["lr"] == 0.3
    assert SupCon(size=0).prepare(net).extra_parameters() == []


def test_hard_pairs_are_the_least_similar_alike_and_the_most_similar_unlike():
    f, y = unit(9, 4, 3), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 0])
    positive, negative = hard_pairs(f, y)
    for i in range(9):
        alike = [j for j in range(9) if j != i and y[j] == y[i]]
        unlike = [j for j in range(9) if y[j] != y[i]]
        assert positive[i] == (min(alike, key=lambda j: f[i] @ f[j]) if alike else i)
        assert negative[i] == max(unlike, key=lambda j: f[i] @ f[j])
    positive, negative = hard_pairs(f[:3], y[:3])
    assert torch.equal(positive, negative)


def test_equal_labels_are_found_up_to_rounding():
    q = torch.tensor([[0.2, 0.8], [0.2 + 1e-8, 0.8], [0.8, 0.2], [1.0, 0.0]])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(equal_rows(q), expected)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_core_tuning_is_soft_cross_entropy_and_focal_contrast_on_mixtures(alpha):
    net = network(1).to(F64)
    method = CoreTuning(0.7, temperature=0.3, size=5, alpha=alpha, floor=0.6, seed=2)
    method.prepare(net, loader(dtype=F64))
    x, y = batch(dtype=F64)
    net(x)
    f = method.tap.features
    method._draws = 0
    g, q = method.mixed(f, y)
    b = len(f)
    one_hot = nn.functional.one_hot(y, CLASSES).to(F64)
    assert torch.equal(g[:b], f)
    assert torch.equal(q[:b], one_hot)
    positive, negative = hard_pairs(f, y)
    hard = q[2 * b, y[0]].item()  # the weight of the positive, whose class it has
    assert 0.6 <= hard <= 1
    for i in range(b):
        expected = hard * f[positive[i]] + (1 - hard) * f[negative[i]]
        torch.testing.assert_close(g[2 * b + i], expected)
        label = hard * one_hot[positive[i]] + (1 - hard) * one_hot[negative[i]]
        torch.testing.assert_close(q[2 * b + i], label)
    # The random mixtures: (1 - lam) f + lam f[perm] for some permutation, with one lam >= 0.6.
    shares = q[b : 2 * b].max(1).values
    lam = min(s.item() for s in shares)
    assert 0.6 <= lam <= 1
    found = {
        next(
            j for j in range(b)
            if torch.allclose(g[b + i], (1 - lam) * f[i] + lam * f[j])
            and torch.allclose(q[b + i], (1 - lam) * one_hot[i] + lam * one_hot[j])
        )
        for i in range(b)
    }  # fmt: skip
    assert found == set(range(b))

    method._draws = 0
    logits = net[-1](g)
    smooth = -(q * logits.log_softmax(1)).sum(1).mean()
    z = nn.functional.normalize(method.projection(g), dim=1)
    same = [[torch.allclose(q[i], q[j]) for j in range(3 * b)] for i in range(3 * b)]
    expected = smooth.item() + 0.7 * slow_contrast(z, same, 0.3, focal=True)
    net(x)
    total = method(torch.tensor(1e9), y)  # the base loss is not used
    assert total.item() == pytest.approx(expected)
    total.backward()
    assert all(p.grad is not None for p in [*net.parameters(), *method.extra_parameters()])


def test_mixed_targets_are_refused_where_classes_are_compared():
    net = network(1)
    for make in (SupCon, CoreTuning):
        method = make().prepare(net)
        net(batch()[0])
        with pytest.raises(InputError, match="leave out mixup and cutmix"):
            method(torch.zeros(()), torch.full((12, CLASSES), 1 / 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SupCon(temperature=0),
        lambda: SupCon(size=-1),
        lambda: CoreTuning(alpha=0),
        lambda: CoreTuning(floor=1.5),
        lambda: CoreTuning(size=0),
        lambda: CoreTuning(-1),
    ],
)
def test_wrong_options_are_refused(make):
    with pytest.raises(InputError, match="expected"):
        make()


def test_the_projection_has_the_networks_width():
    method = SupCon(size=16).prepare(network(1))
    assert [p.shape for p in method.extra_parameters()] == [
        (WIDTH, WIDTH), (WIDTH,), (16, WIDTH), (16,)
    ]  # fmt: skip
