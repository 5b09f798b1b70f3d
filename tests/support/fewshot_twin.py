"""Episodes, small networks and the plain second-order loop that few-shot learners are held to."""

import torch
from torch import nn
from torch.nn import functional as F

from regraft.fewshot import EpisodeSampler, MetaTicket
from regraft.models import MLP

WAYS = 3


def episodes(tasks=4, shots=2, queries=3, size=5, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8 * 6, 1, size, size, generator=generator)
    labels = torch.arange(8).repeat_interleave(6)
    sampler = EpisodeSampler(images, labels, ways=WAYS, shots=shots, queries=queries, seed=seed)
    return sampler.batch(0, tasks).to(dtype)


def mlp(norm="batch", seed=0):
    torch.manual_seed(seed)
    return MLP(25, (12, 8), WAYS, norm=norm).double()


def conv(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, WAYS),
    ).double()


def plain(network, values, x, norm=None):
    """The network with these parameters, BatchNorm by the batch's or by given statistics."""
    modules = [*network.features, network.head] if isinstance(network, MLP) else list(network)
    names = {id(m): n for n, m in network.named_modules()}
    kept = []
    for module in modules:
        at = names[id(module)]
        if isinstance(module, nn.Linear):
            x = F.linear(x, values[f"{at}.weight"], values[f"{at}.bias"])
        elif isinstance(module, nn.Conv2d):
            x = F.conv2d(x, values[f"{at}.weight"], values[f"{at}.bias"], padding=1)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            axes = [0, *range(2, x.ndim)]
            by = [1, -1] + [1] * (x.ndim - 2)
            mean, var = x.mean(axes), x.var(axes, unbiased=False)
            kept.append((mean, var))
            if norm is not None:
                mean, var = norm[len(kept) - 1]
            x = (x - mean.view(by)) / (var.view(by) + module.eps).sqrt()
            x = x * values[f"{at}.weight"].view(by) + values[f"{at}.bias"].view(by)
        else:
            x = module(x)
    return x, kept


def twin_loss(network, phi, masks, rates, tasks, steps, first_order=False, policy="transductive"):
    """The plain loop over tasks that users write."""
    losses = []
    for t in range(len(tasks)):
        values = dict(phi)
        for _ in range(steps):
            weights = {n: v * masks.get(n, 1.0) for n, v in values.items()}
            loss = F.cross_entropy(
                plain(network, weights, tasks.support_x[t])[0], tasks.support_y[t]
            )
            moving = [n for n in values if n in rates]
            grads = torch.autograd.grad(
                loss, [weights[n] for n in moving], create_graph=not first_order
            )
            for n, g in zip(moving, grads, strict=True):
                values[n] = values[n] - rates[n] * masks.get(n, 1.0) * g
        weights = {n: v * masks.get(n, 1.0) for n, v in values.items()}
        norm = None
        if policy == "support":
            norm = plain(network, weights, tasks.support_x[t])[1]
        output, _ = plain(network, weights, tasks.query_x[t], norm)
        losses.append(F.cross_entropy(output, tasks.query_y[t]))
    return torch.stack(losses).mean()


def close(ours, theirs):
    # Biases below BatchNorm have no gradient but rounding: the scale is that of all of it together.
    scale = max(float(b.abs().max()) for b in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) < 1e-10 * scale


def masked(network, **how):
    learner = MetaTicket(network, seed=3, sparsity=0.5, lr=0.3, **how).double()
    assert 0.4 < learner.sparsity()["features.1.weight"] < 0.6
    return learner
