import pytest
import torch
from torch import nn

from features import CLASSES, batch, loader, network, sgd, train
from regraft.errors import InputError
from regraft.features import LPFT, LinearProbe, fit_probe, freeze_batchnorm_

F64 = torch.float64


def data(n=90, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randn(n, d, generator=generator, dtype=F64) * 7 + 20
    x[:, 0] += 5 * y
    return x, y


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_probe_is_scikit_learns_logistic_regression(strength):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = data()
    w, b, chosen = fit_probe(x, y, 3, strengths=[strength], iterations=2000)
    assert chosen == strength
    scale = x.std()
    twin = linear_model.LogisticRegression(C=strength, tol=1e-10, max_iter=5000)
    twin.fit(((x - x.mean(0)) / scale).numpy(), y.numpy())
    torch.testing.assert_close(w * scale, torch.from_numpy(twin.coef_), rtol=2e-3, atol=2e-4)
    probabilities = (x @ w.T + b).softmax(1)
    expected = torch.from_numpy(twin.predict_proba(((x - x.mean(0)) / scale).numpy()))
    torch.testing.assert_close(probabilities, expected, rtol=1e-3, atol=1e-4)


def test_the_strength_is_chosen_on_held_out_images():
    x, y = data(60, 40)
    # Noise dimensions: weak penalties overfit, so that the chosen one is at neither end.
    _, _, chosen = fit_probe(x, y, 3, strengths=[1e-6, 1e-2, 1e6])
    assert chosen == 1e-2
    rescaled = fit_probe(x * 1000, y, 3, strengths=[1e-6, 1e-2, 1e6])
    assert rescaled[2] == chosen


def test_one_image_a_class_leaves_nothing_to_choose_on():
    x, y = data(3)
    _, _, chosen = fit_probe(x, y, 3)
    assert chosen == 1.0


def test_the_classifier_starts_as_the_probe():
    net = network(1)
    LPFT(seed=4).prepare(net, loader())
    net.eval()
    f = torch.cat([net[:-1](x) for x, _ in loader()]).detach()
    w, b, _ = fit_probe(f, torch.cat([y for _, y in loader()]), CLASSES, seed=4)
    torch.testing.assert_close(net[-1].weight.detach(), w)
    torch.testing.assert_close(net[-1].bias.detach(), b)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("make", [LPFT, LinearProbe])
def test_batchnorm_stays_as_it_was_whatever_train_says(make):
    net = network(1)
    method = make().prepare(net, loader())
    before = {n: b.clone() for n, b in net.named_buffers()}
    train(net, method, sgd(net, method), 0, 3)
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())


def test_the_probe_alone_trains_the_classifier_only():
    net = network(1)
    LinearProbe().prepare(net, loader())
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {"8.weight", "8.bias"}


def test_without_freezing_batchnorm_goes_on():
    net = network(1)
    method = LPFT(norm="train").prepare(net, loader())
    before = net[1].running_mean.clone()
    train(net, method, sgd(net, method), 0, 1)
    assert not torch.equal(net[1].running_mean, before)


def test_freezing_batchnorm_twice_and_its_scales():
    net = network(1)
    assert freeze_batchnorm_(freeze_batchnorm_(net), affine=True) is net
    assert len(net._forward_pre_hooks) == 1
    assert not net[1].weight.requires_grad
    net.train()(batch()[0])
    assert not net[1].training
    assert net[0].training


def test_what_it_needs_is_said():
    with pytest.raises(InputError, match="loader is missing"):
        LPFT().prepare(network(1))
    with pytest.raises(InputError, match="labels go from 0 to 2: expected 0 to 1"):
        LPFT().prepare(network(1, 2), loader())
    with pytest.raises(InputError, match="can only start a linear one"):
        LPFT().prepare(nn.Sequential(nn.Flatten(), nn.ReLU()), loader(), classifier="1")
    with pytest.raises(InputError, match="strengths="):
        LPFT(strengths=[0.0]).prepare(network(1), loader())
    with pytest.raises(InputError, match=r"holdout=1\.0"):
        LPFT(holdout=1.0).prepare(network(1), loader())
