import pytest
import torch
import torch.nn.functional as F
from networks import conv_net, images
from torch import nn

from regraft.errors import InputError
from regraft.tickets import IteRand, bake, edge_popup, masks, named_masks, sparsity
from regraft.tickets.freeze import Freezing, FrozenPattern
from regraft.tickets.frozen import FrozenMask, build_mask
from regraft.tickets.mask import Mask
from regraft.tickets.partly import partly_masked_weight
from regraft.tickets.source import WeightSource
from regraft.tickets.straight_through import masked_weight

FROZEN = Freezing(0.3, 0.2, "uniform")
LAWS = ["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"]


def frozen_net(seed=3, **options):
    options = {"sparsity": 0.6, "freezing": FROZEN, "score": "magnitude"} | options
    return edge_popup(conv_net(), seed=seed, **options)


def full_scores(mask, scores):
    """The slow twin's view: -inf where pruned for good, +inf where locked."""
    full = torch.from_numpy(mask.pattern.parts()).float() * torch.inf
    full[torch.from_numpy(mask.pattern.free())] = scores.detach().abs()
    return full


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("score", ["signed", "magnitude"])
def test_the_mask_is_that_of_the_definition(scope, score):
    """M = 1[v >= tau] over all weights, v infinite at the frozen ones, tau of the total sparsity."""
    model = frozen_net(scope=scope, score=score)
    parts = {}
    for name, entry, mask in named_masks(model):
        scores = entry.original.detach()
        full = torch.from_numpy(mask.pattern.parts()).float() * torch.inf
        full[torch.from_numpy(mask.pattern.free())] = (
            scores.abs() if score == "magnitude" else scores
        )
        parts[name] = full
    groups = [parts] if scope == "global" else [{n: p} for n, p in parts.items()]
    found = masks(model)
    for group in groups:
        together = torch.cat(list(group.values()))
        tau = together.sort().values[round(0.6 * (together.numel() - 1))]
        for name, values in group.items():
            assert torch.equal(found[name].reshape(-1), values >= tau)


def test_only_free_positions_have_scores_gradients_and_momenta():
    model = frozen_net()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9
    )
    x, y = images()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    for _, entry, mask in named_masks(model):
        free = (mask.pattern.searched,)
        assert entry.original.shape == entry.original.grad.shape == free
        assert optimizer.state[entry.original]["momentum_buffer"].shape == free


@pytest.mark.parametrize("law", LAWS)
def test_frozen_positions_never_change_and_free_ones_do(law):
    model = frozen_net(weight_init=law)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=5.0)
    first = masks(model)
    for step in range(5):
        x, y = images(seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for name, entry, mask in named_masks(model):
        parts = torch.from_numpy(mask.pattern.parts())
        weight = mask(entry.original).detach().reshape(-1)
        assert torch.equal(weight[parts == -1], torch.zeros(mask.pattern.pruned))
        assert torch.equal(weight[parts == 1], mask.source.draw()[parts == 1])
        assert not torch.equal(masks(model)[name], first[name])
    assert sparsity(model) == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [30, 150_000])
@pytest.mark.parametrize("path", ["chunks", "generic"])
def test_weight_and_gradient_are_those_of_the_formula(magnitude, dtype, n, path, monkeypatch):
    if path == "generic":
        monkeypatch.setattr("regraft.tickets.partly._flat", lambda *tensors: None)
    generator = torch.Generator().manual_seed(0)
    pattern = FrozenPattern(1, "w", n, n // 4, n // 6)
    parts = torch.from_numpy(pattern.parts()).reshape(-1, 5)
    weight = torch.randn(n // 5, 5, generator=generator, dtype=dtype) * (parts >= 0)
    free = parts == 0
    scores = torch.randn(pattern.searched, generator=generator, dtype=dtype, requires_grad=True)
    size = scores.detach().abs() if magnitude else scores.detach()
    tau = size.sort().values[pattern.searched // 3].item()  # a score that equals it is kept
    out = partly_masked_weight(weight, scores, free, tau, magnitude=magnitude)
    mask = parts == 1
    mask[free] = size >= tau
    assert torch.equal(out, weight * mask)
    upstream = torch.randn(weight.shape, generator=generator, dtype=dtype)
    out.backward(upstream.t().contiguous().t())  # gradients come in any memory order
    expected = (upstream * weight)[free]
    assert torch.equal(scores.grad, expected * scores.detach().sign() if magnitude else expected)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("path", ["chunks", "generic"])
def test_second_derivatives_are_those_of_the_plain_masked_weight(magnitude, path, monkeypatch):
    if path == "generic":
        monkeypatch.setattr("regraft.tickets.partly._flat", lambda *tensors: None)
    generator = torch.Generator().manual_seed(0)
    parts = torch.from_numpy(FrozenPattern(1, "w", 30, 8, 7).parts()).reshape(6, 5)
    weight = torch.randn(6, 5, generator=generator) * (parts >= 0)
    free = parts == 0
    scores = torch.randn(15, generator=generator, requires_grad=True)

    def second(masked):
        (first,) = torch.autograd.grad(masked(scores).pow(3).sum(), scores, create_graph=True)
        return torch.autograd.grad(first.square().sum(), scores)[0]

    def plain(scores):  # infinite scores where the weight is locked or pruned for good
        full = (parts * torch.inf).nan_to_num(0, torch.inf, -torch.inf)
        # Of a score's size -inf would be as large as +inf, but W is 0 there.
        full = full.masked_scatter(free, scores)
        return masked_weight(weight, full, 0.2, magnitude=magnitude)

    def ours(scores):
        return partly_masked_weight(weight, scores, free, 0.2, magnitude=magnitude)

    expected = second(plain)
    assert expected.ne(0).any()
    torch.testing.assert_close(second(ours), expected)


def test_it_works_inside_vmap_and_functional_call():
    mask = build_mask(
        WeightSource("kaiming_uniform", 1, "w", (4, 5)),
        WeightSource("kaiming_uniform", 1, "s", (4, 5)),
        FrozenPattern(1, "w", 20, 4, 3),
        sparsity=0.5,
    )
    scores = torch.randn(6, 13, generator=torch.Generator().manual_seed(0))
    together = torch.func.vmap(mask)(scores)
    assert torch.equal(together, torch.stack([mask(s) for s in scores]))
    grad = torch.func.vmap(torch.func.grad(lambda s: mask(s).square().sum()))(scores)
    assert grad.shape == scores.shape
    assert grad.ne(0).any()


def test_dynamic_scale_is_one_over_the_root_of_the_kept_share():
    plain, scaled = frozen_net(), frozen_net(dynamic_scale=True)
    found = masks(plain)
    for (name, entry, mask), (_, _, other) in zip(
        named_masks(plain), named_masks(scaled), strict=True
    ):
        c = (1 / found[name].double().mean()).sqrt().float()
        weight = mask(entry.original)
        assert torch.equal(other(entry.original), weight * c)
        free = mask.pattern.searched
        (direct,) = torch.autograd.grad(weight.sum(), entry.original)
        (through,) = torch.autograd.grad(other(entry.original).sum(), entry.original)
        assert torch.equal(through, direct * c)
        assert direct.shape == (free,)


@pytest.mark.parametrize("law", LAWS)
def test_redraws_touch_pruned_free_positions_only(law):
    model = frozen_net(weight_init=law)
    iterand = IteRand(model, every=1, rate=1.0)
    before = {n: m.weight.clone() for n, _, m in named_masks(model)}
    kept = masks(model)
    iterand.step()
    for name, _, mask in named_masks(model):
        free = torch.from_numpy(mask.pattern.parts() == 0).reshape(mask.weight.shape)
        moved = free & ~kept[name]
        fresh = mask.source.draw(1).reshape(mask.weight.shape)
        assert torch.equal(mask.weight, torch.where(moved, fresh, before[name]))
        assert mask.draw.shape == (mask.pattern.searched,)


@pytest.mark.parametrize("freezing", [None, FROZEN])
def test_in_float64_it_has_the_values_of_float32_and_gradients_of_its_own(freezing):
    options = {"freezing": freezing, "dynamic_scale": True, "score": "signed"}
    single = frozen_net(weight_init="kaiming_normal", **options)
    double = frozen_net(weight_init="kaiming_normal", **options).double()
    for (name, entry, mask), (_, other_entry, other) in zip(
        named_masks(single), named_masks(double), strict=True
    ):
        weight = other(other_entry.original)
        assert weight.dtype == torch.float64
        assert torch.equal(weight, mask(entry.original).double()), name
        upstream = torch.full_like(weight, 1 / 3)
        (grad,) = torch.autograd.grad(weight, other_entry.original, upstream)
        c = (1 / other.mask(other_entry.original).double().mean()).sqrt().float().double()
        searched = other.weight if freezing is None else other.weight[other.free]
        torch.testing.assert_close(grad, searched * c / 3, rtol=1e-14, atol=0)


def test_its_whole_weight_is_the_stream_of_each_position():
    model = frozen_net(weight_init="kaiming_uniform")
    IteRand(model, every=1, rate=1.0).step()
    for _, _, mask in named_masks(model):
        parts = torch.from_numpy(mask.pattern.parts()).reshape(mask.weight.shape)
        first = mask.source.rebuild()
        assert torch.equal(mask.whole()[parts >= 0], mask.weight[parts >= 0])
        assert torch.equal(mask.whole()[parts != 0], first[parts != 0])
        assert not torch.equal(mask.whole(), first)


@pytest.mark.parametrize("made", ["moved", "masked"])
@pytest.mark.parametrize("redraw", [False, True])
def test_a_frozen_model_rises_from_the_meta_device(made, redraw):
    found = frozen_net(weight_init="kaiming_normal", dynamic_scale=True).eval()
    if redraw:
        IteRand(found, every=1, rate=1.0).step()
    if made == "masked":
        with torch.device("meta"):
            bare = frozen_net(seed=8, weight_init="kaiming_normal", dynamic_scale=True)
    else:
        bare = frozen_net(seed=8, weight_init="kaiming_normal", dynamic_scale=True).to("meta")
    assert {p.device.type for p in bare.parameters()} == {"meta"}
    bare = bare.to_empty(device="cpu").eval()
    for _, _, mask in named_masks(bare):
        pruned = torch.from_numpy(mask.pattern.parts() == -1).reshape(mask.weight.shape)
        expected = mask.source.rebuild().masked_fill(pruned, 0)
        assert torch.equal(mask.weight, expected)
    bare.load_state_dict(found.state_dict())
    x, _ = images()
    assert torch.equal(bare(x), found(x))


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "backend"), [("layer", "aot_eager"), ("global", "inductor")])
def test_compiled_in_one_graph_it_gives_the_same(scope, backend):
    model = frozen_net(scope=scope, dynamic_scale=True).eval()
    x, _ = images()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    model(x).sum().backward()
    expected = model[7].parametrizations.weight.original.grad.clone()
    model.zero_grad()
    compiled(x).sum().backward()
    torch.testing.assert_close(model[7].parametrizations.weight.original.grad, expected)


def test_exported_it_needs_nothing_of_ours():
    model = frozen_net(dynamic_scale=True).eval()
    x, _ = images()
    program = torch.export.export(model, (x,))
    assert "regraft" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize(
    ("sparsity", "words"), [(0.3, "keeps all free weights"), (0.8, "prunes all free weights")]
)
def test_a_search_without_a_choice_warns_its_caller(sparsity, words):
    with pytest.warns(UserWarning, match=words) as caught:
        frozen_net(sparsity=sparsity, scope="global")
    assert [w.filename for w in caught] == [__file__]


def test_a_baked_frozen_model_gives_equal_outputs():
    model = frozen_net(dynamic_scale=True).eval()
    x, _ = images()
    assert torch.equal(bake(model)(x), model(x))


def test_nothing_frozen_is_the_plain_mask():
    model = frozen_net(freezing=Freezing(0.0, 0.0))
    assert all(type(mask) is Mask for _, _, mask in named_masks(model))
    small = edge_popup(nn.Linear(2, 1), freezing=Freezing(0.1, 0.1), sparsity=0.5)
    assert not isinstance(small.parametrizations.weight[0], FrozenMask)


def test_tied_weights_freeze_once():
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    model[1].weight = model[0].weight
    edge_popup(model, freezing=FROZEN, sparsity=0.5)
    assert torch.equal(model[0].weight, model[1].weight)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 450


def test_a_checkpoint_of_another_freezing_is_refused():
    state = frozen_net().state_dict()
    plain = edge_popup(conv_net(), sparsity=0.6, score="magnitude")
    with pytest.raises((InputError, RuntimeError), match=r"freezing|size mismatch"):
        plain.load_state_dict(state)
    other = frozen_net(freezing=Freezing(0.2, 0.3))
    with pytest.raises((InputError, RuntimeError), match="same `freezing`"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 0.2}, r"\[0.3, 0.8\]"),
        ({"sparsity": 0.9, "scope": "global"}, r"\[0.3, 0.8\]"),
        ({"sparsity": {"0.*": 0.5, "*": 0.1}}, "weight '3.weight'"),
        ({"freezing": Freezing(0.5, 0.3, "erk"), "sparsity": 0.55}, "scope='global'"),
        ({"rescale": True, "dynamic_scale": True}, "choose one"),
    ],
)
def test_unreachable_sparsity_is_refused_before_anything_changes(options, words):
    model = conv_net()
    before = model.state_dict()
    with pytest.raises(InputError, match=words):
        edge_popup(model, **{"sparsity": 0.6, "freezing": FROZEN, **options})
    assert model.state_dict().keys() == before.keys()


def test_a_pattern_for_another_tensor_is_refused():
    source = WeightSource("kaiming_uniform", 1, "w", (4, 5))
    with pytest.raises(InputError, match="19 positions"):
        build_mask(source, source, FrozenPattern(1, "w", 19, 2, 2), sparsity=0.5)
