"""The hypergradient is that of the whole unrolled step."""

import pytest
import torch
from generating import SmoothSource, SmoothViews, cross_entropy, real_images, small_net
from torch.func import functional_call

from regraft.generators.mgr import Finder, ImageLosses, MGRConfig, directional, exact
from regraft.generators.mgr.batches import Fitted, PseudoBatch, push_back
from regraft.generators.mgr.folds import Folds
from regraft.generators.mgr.hypergradient import finite_difference, gradient, leaf_weights
from regraft.generators.mgr.meta import MetaStep
from regraft.generators.mgr.passes import Passes

ETA, WEIGHT = 0.3, 0.7
KINDS = ("pcr", "ce", "strong_ce")


def setting(kind, branch="both", norm="none", distance="squared", **config):
    """Everything a meta step is about, in float64, with a finder that has moved from the identity."""
    torch.manual_seed(3)
    source, views, net = SmoothSource(), SmoothViews(), small_net(norm=norm)
    finder = Finder(source.latent_shape, source.classes, kind="conditional", width=8).double()
    for p in finder.parameters():
        p.data += 0.3 * torch.randn_like(p)
    draw = torch.Generator().manual_seed(5)
    labels = torch.arange(8) % source.classes
    latents, record = source.latents(8, draw), views.draw(8, draw)
    passes = Passes(net)
    losses = ImageLosses(passes, kind, distance=distance, gradient=branch)
    images, y = real_images()
    settings = MGRConfig(unroll_lr=ETA, weight=WEIGHT, **config)
    folds = Folds(images, y, classes=3)
    meta = MetaStep(passes, losses, folds, settings, Fitted(1, (6, 6), (0.2,), (0.5,)))
    with torch.no_grad():
        clean = source.sample(8, labels=labels, latents=finder(latents, labels))
        made = PseudoBatch(latents, labels, record, clean, views.apply(clean, record))
    return source, views, net, finder, losses, meta, made


def unrolled(source, views, net, finder, losses, meta, made, fold=1):
    """The slow twin: the whole step as one graph, the second derivative through everything."""
    draw = torch.Generator().manual_seed(9)
    folds, fitted = meta.folds, meta.fitted
    x, y = folds.train(fold, 8, draw)
    folds.validation(fold, 8, draw)
    folds.train(fold, 8, draw)
    xv, yv = folds.validation(fold, 8, draw)
    weights = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    clean = source.sample(8, labels=made.labels, latents=finder(made.latents, made.labels))
    strong = views.apply(clean, made.record)
    inner = losses(weights, fitted.normalise(clean), fitted.normalise(strong), made.labels).mean()
    loss = cross_entropy(net, weights, fitted.normalise(x), y) + WEIGHT * inner
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    ahead = {n: w - ETA * s for (n, w), s in zip(weights.items(), slopes, strict=True)}
    value = cross_entropy(net, ahead, fitted.normalise(xv), yv)
    return torch.autograd.grad(value, list(finder.parameters()))


def ours(source, views, net, finder, losses, meta, made, fold=1, chunk=None):
    slopes, _ = meta.slopes(made, fold, torch.Generator().manual_seed(9))

    def make(rows):
        z = finder(made.latents[rows], made.labels[rows])
        return source.sample(len(z), labels=made.labels[rows], latents=z)

    return push_back(made, slopes, views, make, finder.parameters(), chunk=chunk)


@pytest.mark.parametrize("distance", ["squared", "normalised"])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_is_the_full_unroll(kind, distance):
    parts = setting(kind, distance=distance)
    for mine, twin in zip(ours(*parts), unrolled(*parts), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-9, atol=1e-14)
    assert max(float(t.abs().max()) for t in unrolled(*parts)) > 1e-6


@pytest.mark.parametrize("branch", ["strong", "clean"])
def test_exact_is_the_full_unroll_where_one_branch_has_the_gradient(branch):
    parts = setting("pcr", branch)
    for mine, twin in zip(ours(*parts), unrolled(*parts), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-9, atol=1e-14)


def test_finite_difference_is_the_full_unroll_in_the_limit_for_smooth_networks():
    parts = setting("pcr", hypergradient="finite", epsilon=1e-4)
    for mine, twin in zip(ours(*parts), unrolled(*parts), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-5, atol=1e-10)


def test_chunks_of_the_generator_change_no_number_and_bound_its_batch():
    parts = setting("pcr")
    source = parts[0]
    whole = ours(*parts)
    source.most.clear()
    for mine, twin in zip(ours(*parts, chunk=3), whole, strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-10, atol=1e-14)
    assert source.most == [3, 3, 2]


def test_batchnorm_keeps_nothing_of_a_meta_step():
    parts = setting("pcr", norm="batch")
    net = parts[2]
    before = {n: b.clone() for n, b in net.named_buffers()}
    for mine, twin in zip(ours(*parts), unrolled_with_norms(*parts), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-8, atol=1e-13)
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())


def unrolled_with_norms(*parts):
    net = parts[2]
    kept = {n: b.clone() for n, b in net.named_buffers()}
    slopes = unrolled(*parts)
    net.load_state_dict(kept, strict=False)
    return slopes


def test_no_gradient_of_a_meta_step_reaches_network_or_generator():
    parts = setting("pcr")
    ours(*parts)
    assert all(p.grad is None for p in parts[2].parameters())


def test_the_directional_derivative_is_each_images_own_gradient_along_the_direction():
    _, _, net, _, losses, meta, made = setting("pcr")
    weights = leaf_weights(meta.passes.weights())
    images, y = real_images(9)
    direction = gradient(cross_entropy(net, weights, images, y), weights)
    fed = (made.clean, made.strong, made.labels)
    scores = directional(lambda w: losses(w, *fed), weights, direction)
    for i in range(len(made.clean)):
        slopes = gradient(losses(weights, *fed)[i], weights)
        slow = sum((slopes[n] * direction[n]).sum() for n in slopes)
        torch.testing.assert_close(scores[i], slow, rtol=1e-9, atol=1e-13)


def test_a_direction_of_length_zero_moves_nothing():
    *_, losses, meta, made = setting("pcr")
    weights = meta.passes.weights()
    zero = {n: torch.zeros_like(w) for n, w in weights.items()}

    def inner(w, clean, strong):
        return losses(w, clean, strong, made.labels).mean()

    for rule in (exact, finite_difference):
        slopes = rule(inner, weights, zero, (made.clean, made.strong))
        assert all(not s.any() for s in slopes)


def test_kinks_spoil_the_finite_difference_and_not_the_exact_one():
    parts = setting("pcr")
    source, views, net, finder, _, meta, made = parts
    net.body[1] = torch.nn.ReLU()
    net.body[3] = torch.nn.ReLU()
    losses = ImageLosses(Passes(net), "pcr", distance="squared")
    meta = MetaStep(Passes(net), losses, meta.folds, meta.config, meta.fitted)
    parts = (source, views, net, finder, losses, meta, made)
    for mine, twin in zip(ours(*parts), unrolled(*parts), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-9, atol=1e-14)


def test_functional_passes_give_the_networks_own_outputs():
    net = small_net()
    x, _ = real_images(4)
    out = Passes(net)(x)
    torch.testing.assert_close(out.logits, functional_call(net, {}, (x,)))
    torch.testing.assert_close(out.features, net.body(x))


def test_both_sides_of_a_finite_difference_drop_the_same_units():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(20, 32), torch.nn.SiLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 8)
    ).double()
    weights = {n: p.detach() for n, p in net.named_parameters()}
    direction = {n: torch.randn_like(w) for n, w in weights.items()}
    x = torch.randn(16, 20, dtype=torch.float64)

    def inner(weights, images):
        return functional_call(net, weights, (images,)).square().mean()

    torch.manual_seed(1)
    (wanted,) = exact(inner, weights, direction, (x,))
    after = torch.get_rng_state()
    torch.manual_seed(1)
    (got,) = finite_difference(inner, weights, direction, (x,))
    assert torch.cosine_similarity(wanted.flatten(), got.flatten(), 0) > 0.99
    assert torch.equal(torch.get_rng_state(), after)  # advanced as by one side
