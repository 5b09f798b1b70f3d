"""MGR in a plain loop: what it adds, what it leaves alone, and that it goes on where it stopped."""

import pytest
import torch
import torch.nn.functional as F
from generating import CLASSES, SmoothSource, made, net32, real_images, real_source

from regraft.data.views import strong as strong_views
from regraft.generators.mgr import MGRConfig, consistency
from regraft.train import load_state, save_state


def train(net, mgr, steps, start=0, lr=0.1):
    images, labels = real_images(dtype=torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    losses = []
    for step in range(start, start + steps):
        loss = F.cross_entropy(net((images - 0.2) / 0.5), labels) + mgr.loss(net, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


VARIANTS = {
    "mgr": {},
    "finite": {"hypergradient": "finite"},
    "pcr": {"select": "uniform"},
    "gda": {"select": "uniform", "loss": "ce"},
    "mps_gda": {"loss": "ce"},
    "strong_ce": {"select": "uniform", "loss": "strong_ce"},
    "head": {"select": "uniform", "loss": "head"},
    "self_training": {"select": "uniform", "loss": "self_training"},
    "gradient": {"select": "gradient", "draws": 2},
    "pairs": {"select": "gradient", "pairs": True},
    "entropy": {"select": "entropy"},
    "copies": {"copies": True, "folds": 2},
    "average": {"average": 0.9},
    "fisher": {"damping": 0.1},
    "classes": {"finder": "per_class", "validation_batches": 2, "chunk": 3},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_and_loaded_it_ends_with_the_same_weights(name, tmp_path):
    whole = net32()
    mgr = made(whole, every=2, **VARIANTS[name])
    losses = train(whole, mgr, 7)
    first = net32()
    before = made(first, every=2, **VARIANTS[name])
    kept = train(first, before, 4)
    save_state(tmp_path / "state.safetensors", before.state_dict())
    second = net32(seed=1)
    second.load_state_dict(first.state_dict())
    after = made(second, every=2, **VARIANTS[name])
    after.load_state_dict(load_state(tmp_path / "state.safetensors"))
    kept += train(second, after, 3, start=4)
    assert kept == losses
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert after.logged == mgr.logged


@pytest.mark.parametrize("name", ["mgr", "copies", "classes"])
def test_the_finder_moves_and_what_it_does_is_logged(name):
    net = net32()
    mgr = made(net, every=2, finder_lr=0.05, **VARIANTS[name])
    train(net, mgr, 6)
    assert [row["step"] for row in mgr.logged] == [0, 2, 4]
    assert mgr.logged[-1]["latent_move"] > 0
    assert mgr.logged[-1]["latent_norm"] > 0
    assert 0 < mgr.logged[-1]["latent_diversity"] < 10


def test_with_the_identity_as_finder_mgr_is_pcr():
    """The paper's finder starts as the identity: at rate 0 it stays so, and MGR is PCR to the bit."""
    one, two = net32(), net32()
    mgr = made(one, every=1, finder_lr=0.0, warmup=0)
    pcr = made(two, select="uniform")
    images, labels = real_images(dtype=torch.float32)
    for net, loss in ((one, mgr), (two, pcr)):
        F.cross_entropy(net(images), labels).backward()
        loss._draws = 40  # the finder's meta steps draw as well
        loss._loss(1, 8, None).backward() if loss is pcr else _without_update(loss).backward()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def _without_update(mgr):
    mgr.config = MGRConfig(finder_lr=0.0, warmup=10)
    return mgr._loss(1, 8, None)


def test_an_update_of_the_finder_may_take_fewer_images():
    source = SmoothSource(dtype=torch.float32)
    net = net32()
    mgr = made(net, source=source, meta_batch=3)
    source.most.clear()
    mgr.loss(net, 0)
    assert source.most == [3, 3, 8]  # the meta step, its backward pass, the step


def test_before_the_warm_up_ends_nothing_is_learned():
    net = net32()
    mgr = made(net, every=1, warmup=3)
    train(net, mgr, 3)
    assert mgr.logged == []
    train(net, mgr, 1, start=3)
    assert len(mgr.logged) == 1


def test_pcr_has_no_gradient_to_the_classifier_and_none_to_the_generator():
    net = net32()
    source = SmoothSource(dtype=torch.float32)
    source.map.requires_grad_()
    made(net, source=source, select="uniform").loss(net, 0).backward()
    assert net.fc.weight.grad is None or not net.fc.weight.grad.any()
    assert net.body[0].weight.grad.any()
    assert source.map.grad is None


@pytest.mark.parametrize("name", ["mgr", "gradient", "entropy", "finite", "copies"])
def test_the_choice_leaves_no_gradient_in_the_network(name):
    net = net32(norm="batch")
    mgr = made(net, **VARIANTS[name])
    kept = {n: b.clone() for n, b in net.named_buffers()}
    value = mgr.loss(net, 0)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(b, kept[n]) for n, b in net.named_buffers())
    value.backward()
    assert net.body[0].weight.grad is not None


@pytest.mark.parametrize("norm", ["own", "update", "running"])
def test_batchnorm_does_what_the_policy_says(norm):
    net = net32(norm="batch")
    mgr = made(net, select="uniform", norm=norm)
    before = net.body[1].running_mean.clone()
    mgr.loss(net, 0).backward()
    assert torch.equal(net.body[1].running_mean, before) == (norm != "update")
    assert net.body[1].training
    if norm == "running":
        images = torch.rand(4, 1, 6, 6)
        alone = mgr.passes(images[:1]).logits
        torch.testing.assert_close(mgr.passes(images).logits[:1], alone)


def test_the_same_seed_draws_the_same_images_and_another_does_not():
    def value(seed):
        net = net32()
        return made(net, seed=seed, select="uniform").loss(net, 0).item()

    assert value(1) == value(1) != value(2)


def test_consistency_by_hand():
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert consistency(a, b, "squared").item() == 2.0
    torch.testing.assert_close(consistency(a, b), torch.tensor([2 - 2 * 24 / 25]))
    torch.testing.assert_close(consistency(5 * a, b), consistency(a, b))


@pytest.mark.parametrize("branch", ["both", "strong", "clean"])
def test_the_branch_with_a_gradient(branch):
    net = net32()
    mgr = made(net, select="uniform", gradient=branch, distance="squared")
    batch = mgr._batch(8)
    clean, strong, labels = mgr._fed(batch)
    mgr.losses(None, clean, strong, labels).mean().backward()
    mine = net.body[0].weight.grad.clone()
    net.zero_grad()
    a, b = net.body(clean), net.body(strong)
    a = a.detach() if branch == "strong" else a
    b = b.detach() if branch == "clean" else b
    (a - b).square().sum(1).mean().backward()
    torch.testing.assert_close(mine, net.body[0].weight.grad)


def test_pairs_replay_the_views_they_were_chosen_with():
    net = net32()
    mgr = made(net, select="gradient", pairs=True, pool=4, norm="running")
    mgr.loss(net, 0)
    chosen = mgr._chosen
    whole = mgr.views.draw(chosen.size, torch.Generator().manual_seed(chosen.seed))
    batch = mgr._batch(5)
    clean = chosen.pixels.float() / 255
    for image, strong in zip(batch.clean, batch.strong, strict=True):
        at = next(i for i in range(len(clean)) if torch.equal(clean[i], image))
        view = mgr.views.apply(image[None], whole[chosen.rows[at : at + 1]])
        torch.testing.assert_close(view[0], strong)


def test_a_chosen_pool_has_the_best_of_each_class():
    net = net32()
    mgr = made(net, select="entropy", pool=16, pool_share=0.25)
    mgr.loss(net, 0)
    counts = torch.bincount(mgr._chosen.labels, minlength=CLASSES)
    assert counts.min() >= 1
    assert int(counts.sum()) == pytest.approx(16 * 8 / 4, abs=2)


def test_bfloat16_computes_the_loss_and_keeps_the_weights_types():
    net = net32()
    mgr = made(net, bf16=True, every=1)
    value = mgr.loss(net, 0)
    value.backward()
    assert value.isfinite()
    assert net.body[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", VARIANTS)
def test_in_bfloat16_the_loss_and_its_gradient_are_close_with_the_views_that_there_are(name):
    def computed(bf16):
        net = net32(norm="batch")
        # With a finder that stands still both see the same images, but for their rounding.
        mgr = made(net, bf16=bf16, views=strong_views(), finder_lr=0.0, **VARIANTS[name])
        value = mgr.loss(net, 0)
        value.backward()
        return value.detach(), net.body[0].weight.grad.flatten()

    (wide, slope), (narrow, other) = computed(False), computed(True)
    assert narrow.dtype == torch.float32
    if name in ("gradient", "pairs", "entropy"):
        assert narrow.isfinite()  # another image may be chosen
        return
    assert narrow.item() == pytest.approx(wide.item(), rel=0.05, abs=0.02)
    if name != "self_training":  # few are confident
        assert F.cosine_similarity(slope, other, dim=0) > 0.98
        assert not torch.equal(slope, other)


@pytest.mark.parametrize("rule", ["exact", "finite"])
def test_the_hypergradient_in_bfloat16_is_close_to_that_in_float32(rule):
    def slopes(bf16):
        net = net32(norm="batch")
        mgr = made(net, bf16=bf16, views=strong_views(), hypergradient=rule, distance="squared")
        mgr.passes.narrow = mgr._narrow()
        batch = mgr._made(8, torch.Generator().manual_seed(0))
        return mgr._meta.slopes(batch, 0, torch.Generator().manual_seed(1))[0]

    for wide, narrow in zip(slopes(False), slopes(True), strict=True):
        assert narrow.isfinite().all()
        assert narrow.dtype == torch.float32
        assert F.cosine_similarity(wide.flatten(), narrow.flatten(), dim=0) > 0.97
        assert narrow.norm().item() == pytest.approx(wide.norm().item(), rel=0.1)
        assert not torch.equal(wide, narrow)


@pytest.mark.parametrize("name", ["mgr", "pcr"])
def test_autocast_around_a_loop_is_that_of_the_option(name):
    def computed(around, **options):
        net = net32()
        mgr = made(net, every=1, views=strong_views(), **VARIANTS[name], **options)
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            return torch.stack([mgr.loss(net, step) for step in range(2)])

    assert torch.equal(computed(True), computed(False, bf16=True))
    assert not torch.equal(computed(True), computed(False))


def test_a_meta_step_is_in_float32_under_bfloat16():
    passed = []
    net = net32()
    mgr = made(net, bf16=True, every=1)
    net.body[0].register_forward_hook(lambda module, args, out: passed.append(out.dtype))
    mgr.loss(net, 0)
    # Loss on generated images; one step ahead; validation. Then the loss of the step itself.
    assert passed == [*[torch.float32] * 3, torch.bfloat16]


def test_real_images_can_stand_in_for_generated_ones():
    net = net32()
    mgr = made(net, source=real_source(), select="uniform")
    batch = mgr._batch(8)
    images, labels = real_images(dtype=torch.float32)
    for image, label in zip(batch.clean, batch.labels, strict=True):
        near = ((images - image).abs() < 0.003).flatten(1).all(1).nonzero().flatten()
        assert label in labels[near]
    assert mgr.loss(net, 0).isfinite()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_network_may_compute_in_double_precision(name):
    plain, net = net32(), net32().double()
    wanted = made(plain, every=1, **VARIANTS[name]).loss(plain, 0)
    mgr = made(net, every=1, **VARIANTS[name])
    value = mgr.loss(net, 0)
    value.backward()
    assert value.dtype is torch.float64
    torch.testing.assert_close(value.float(), wanted, rtol=1e-3, atol=1e-5)
    mgr.loss(net, 1).backward()


class Spectral(torch.nn.Module):
    """A convolution under a spectral norm and a normalisation that records."""

    def __init__(self):
        super().__init__()
        conv = torch.nn.Conv2d(1, 4, 3)
        self.body = torch.nn.utils.parametrizations.spectral_norm(conv)
        self.norm = torch.nn.InstanceNorm2d(4, track_running_stats=True)
        self.fc = torch.nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.fc(self.norm(self.body(x)).relu().square().mean((2, 3)))


@pytest.mark.parametrize("name", ["mgr", "copies", "pcr"])
def test_no_buffer_is_written(name):
    torch.manual_seed(0)
    net = Spectral().train()
    mgr = made(net, every=1, **VARIANTS[name])
    before = {n: b.clone() for n, b in net.named_buffers()}
    mgr.loss(net, 0).backward()
    assert len(before) == 5
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
