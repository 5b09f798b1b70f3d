import math

import pytest
import torch
from prior_twin import prior_loss
from torch import nn

from features import CLASSES, STEPS, WIDTH, batch, loader, network, sgd, train
from regraft.errors import InputError
from regraft.features import AdaRand

F64 = torch.float64


def made(net=None, data=None, steps=STEPS, **options):
    net = net or network(1)
    return net, AdaRand(seed=3, **options).prepare(net, data or loader(), steps=steps)


@pytest.mark.parametrize("prior", ["repel", "orthogonal"])
@pytest.mark.parametrize("spread", ["diagonal", "isotropic", "none"])
def test_training_is_the_algorithm_written_out_slowly(prior, spread):
    net, method = made(network(1).to(F64), loader(dtype=F64), prior=prior, spread=spread, alpha=0.3)
    mu = nn.Parameter(method.mean.clone())
    sigma, r, lam = method.std.clone(), method.mean.clone(), 1.0 / method.variance
    adam = torch.optim.Adam([mu], lr=method.rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    optimizer = sgd(net, method)
    for step in range(STEPS):
        # Class 1 is absent in some batches.
        x, y = batch(seed=step, dtype=F64)
        x, y = (x, y) if step % 2 else (x[y != 1], y[y != 1])
        base = nn.functional.cross_entropy(net(x), y)
        f = method.tap.features.clone()
        draws = method.state_dict()["_extra_state"]["draws"]
        loss = method(base, y)

        twin = AdaRand(seed=3)
        twin._draws = draws
        noise = twin.noise(torch.empty(len(y), WIDTH, dtype=F64)) if spread != "none" else 0.0
        z = mu.detach()[y] + sigma[y] * noise
        expected = base + lam * sum(((f[i] - z[i]) ** 2).mean() for i in range(len(y))) / len(y)
        torch.testing.assert_close(loss, expected)

        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.step()
        for k in range(CLASSES):
            if (y == k).any():
                r[k] = 0.3 * r[k] + 0.7 * f[y == k].mean(0).detach()
        adam.zero_grad()
        prior_loss(mu, r, prior).backward()
        adam.step()
        cosine.step()
        torch.testing.assert_close(method.running, r)
        torch.testing.assert_close(method.mean, mu.detach())


def test_means_and_spreads_are_those_of_each_class_in_the_mode_of_training():
    net, method = made()
    net.train()
    f = torch.cat([net[:-1](x) for x, _ in loader()]).detach()
    y = torch.cat([y for _, y in loader()])
    for k in range(CLASSES):
        torch.testing.assert_close(method.mean[k], f[y == k].mean(0))
        torch.testing.assert_close(method.std[k], f[y == k].std(0))
    assert method.variance == pytest.approx(f.var(0).mean().item(), rel=1e-5)
    _, other = made(network(1), spread="isotropic")
    torch.testing.assert_close(
        other.std[:, 0], torch.stack([f[y == k].var(0).mean().sqrt() for k in range(CLASSES)])
    )


def test_a_network_of_another_feature_scale_gives_the_same_loss_and_relative_steps():
    one, two = network(1), network(1)
    for net, factor in ((one, 1.0), (two, 100.0)):
        net[4].weight.data *= factor
        net[4].bias.data *= factor
    (_, a), (_, b) = made(one), made(two)
    x, y = batch()
    losses = []
    for net, method in ((one, a), (two, b)):
        net(x)
        losses.append(method.loss(method.tap.features, y))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    assert b.rate == pytest.approx(100 * a.rate, rel=1e-4)


def test_the_default_rate_is_the_papers_for_its_run_and_smaller_for_a_shorter_one():
    rates = {n: made(steps=n)[1] for n in (200, 25_000, 100_000)}
    s = math.sqrt(rates[200].variance)
    assert rates[25_000].rate == pytest.approx(1e-2 * s / 0.4)
    assert rates[100_000].rate == rates[25_000].rate
    assert rates[200].rate == pytest.approx(rates[25_000].rate * math.sqrt(200 / 25_000))


def test_one_image_classes_take_the_pooled_spread_and_missing_ones_are_left_alone():
    x, y = batch(9)
    keep = [0, 1, 3, 6]  # classes 0 1 0 0: one image of 1, none of 2
    _, method = made(network(1), [(x[keep], y[keep])], prior_lr=0.1)
    assert torch.isfinite(method.mean).all()
    torch.testing.assert_close(method.std[1], method.std[0])
    before = method.mean[2].clone()
    net, _ = method.tap.model, None
    train(net, method, sgd(net, method), 0, 1)
    assert torch.equal(method.mean[2], before)
    assert not torch.equal(method.mean[0], method.running[0])


def test_where_every_class_has_one_image_there_is_no_spread():
    x, y = batch(3)
    _, method = made(network(1), [(x, y)])
    assert torch.equal(method.std, torch.zeros_like(method.std))


def test_mixed_targets_mix_references_and_leave_running_means():
    net, method = made(spread="none", prior_lr=0.0)
    x, y = batch()
    p = 0.5 * nn.functional.one_hot(y, CLASSES) + 0.5 * nn.functional.one_hot(y.flip(0), CLASSES)
    before = method.running.clone()
    net(x)
    f = method.tap.features
    loss = method.loss(f, p)
    z = 0.5 * method.mean[y] + 0.5 * method.mean[y.flip(0)]
    torch.testing.assert_close(loss, (f - z).square().mean() / method.variance)
    method.step()
    pure = {k for a, b in zip(y, y.flip(0), strict=True) for k in [int(a)] if a == b}
    moved = (method.running != before).any(1)
    assert {k for k in range(CLASSES) if moved[k]} == pure


def test_mixed_references_have_the_variance_of_independent_draws():
    _, method = made()
    p = torch.tensor([0.25, 0.75, 0.0]).expand(20_000, 3)
    z = method.reference(p)
    expected = (0.25 * method.std[0]).square() + (0.75 * method.std[1]).square()
    torch.testing.assert_close(z.var(0), expected, rtol=0.06, atol=1e-9)


def test_gradient_accumulation_counts_every_part():
    (one, a), (two, b) = (
        made(network(1).to(F64), loader(dtype=F64)),
        made(network(1).to(F64), loader(dtype=F64)),
    )
    x, y = batch(dtype=F64)
    one.eval(), two.eval()
    a(one(x).sum() * 0, y)
    for part in (slice(0, 5), slice(5, 12)):
        b(two(x[part]).sum() * 0, y[part])
    a.step(), b.step()
    torch.testing.assert_close(a.running, b.running)


def test_a_step_that_overflowed_moves_no_running_mean():
    _, method = made(prior_lr=0.0)
    before = method.running.clone()
    f = torch.full((2, WIDTH), torch.inf)
    method.loss(f, torch.tensor([0, 1]))
    method.step()
    assert torch.equal(method.running, before)


def test_a_frozen_prior_stands_still():
    net, method = made(prior_lr=0.0)
    before = method.mean.clone()
    train(net, method, sgd(net, method), 0, STEPS)
    assert torch.equal(method.mean, before)
    assert not torch.equal(method.running, before)


def test_noise_differs_between_steps_and_seeds():
    y = batch()[1]
    found = []
    for seed in (1, 1, 2):
        net = network(1)
        method = AdaRand(seed=seed).prepare(net, loader(), steps=STEPS)
        found.append([method.reference(y) for _ in range(2)])
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[0][1])
    assert not torch.equal(found[0][0], found[2][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0: expected a finite number"),
        ({"alpha": 1.0}, r"alpha=1.0: expected the kept share"),
        ({"prior": "repulse"}, "prior='repulse': expected one of repel, orthogonal"),
        ({"spread": "full"}, "spread='full': expected one of diagonal"),
        ({"negatives": 0}, "negatives=0"),
        ({"prior_lr": float("nan")}, "prior_lr=nan"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AdaRand(**options)


def test_wrong_data_are_refused():
    x, y = batch()
    head = network(1)
    cases = [
        ([(x, y * 0)], {}, "one class: expected two"),
        ([(x, y + 2)], {}, "labels go from 2 to 4: expected 0 to 2 for a head of 3"),
        ([], {}, "no batch"),
        (None, {}, "loader is missing"),
        ([x], {}, "expected .inputs, labels."),
        ([{"pixels": x}], {}, "keys pixels: expected labels"),
        ([(x, y.float())], {}, "expected one class an image"),
        (3, {}, "loader is a int"),
        ([(x, y)], {"steps": None}, "pass steps="),
        ([(x, y)], {"steps": 0}, "steps=0"),
        ([(x, y)], {"mode": "training"}, "mode='training'"),
        ([(x * 0, y)], {}, "equal for all"),
        ([(x * float("nan"), y)], {}, "not finite"),
    ]
    for data, changes, message in cases:
        with pytest.raises(InputError, match=message):
            AdaRand().prepare(head, data, **{"steps": 5, **changes})


def test_wrong_targets_are_refused():
    net, method = made()
    x, y = batch()
    for targets, message in [
        (y[:3], r"targets of shape \(3,\) with features \(12, 8\)"),
        (y.float(), "expected classes as integers"),
        (torch.zeros(12, 4), "probabilities of 3 classes"),
    ]:
        net(x)
        with pytest.raises(InputError, match=message):
            method(torch.zeros(()), targets)
    net(x)
    method(torch.zeros(()), y)
    with pytest.raises(InputError, match="no features: the network has not been called"):
        method(torch.zeros(()), y)


@pytest.mark.parametrize("prior", ["repel", "orthogonal"])
def test_ten_thousand_classes_take_no_more_than_classes_by_features(prior):
    k, d = 10_000, 300
    net = nn.Sequential(nn.Linear(4, d), nn.ReLU(), nn.Linear(d, k))
    x, y = torch.randn(64, 4), torch.randint(0, k, (64,))
    method = AdaRand(prior=prior).prepare(net, [(x, y)], steps=5)
    method.present |= True
    method(nn.functional.cross_entropy(net(x), y), y).backward()
    with torch.profiler.profile(profile_memory=True) as profile:
        method.step()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 1.1 * 4 * k * d
    assert sum(b.numel() for b in method.buffers()) <= 5 * k * d + k
