import copy

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from networks import conv_net, images
from torch import nn
from torch.func import functional_call, grad, vmap

from regraft.errors import InputError
from regraft.tickets import edge_popup, masks, named_masks, pruned_count, sparsity

SCORES = [
    "0.parametrizations.weight.original",
    "3.parametrizations.weight.original",
    "7.parametrizations.weight.original",
]


def test_only_scores_are_trainable_and_get_gradients():
    model = edge_popup(conv_net(), seed=1)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == SCORES
    x, y = images()
    F.cross_entropy(model(x), y).backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == SCORES


def test_biases_are_zero_norms_plain_and_running_statistics_go_on():
    model = conv_net()
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(1, 2)
    edge_popup(model)
    assert (model[0].bias == 0).all()
    assert (model[1].weight == 1).all()
    assert (model[4].bias == 0).all()
    before = model[1].running_mean.clone()
    model(images()[0])
    assert not torch.equal(before, model[1].running_mean)


@pytest.mark.parametrize("score", ["signed", "magnitude"])
@pytest.mark.parametrize("s", [0.0, 0.3, 0.5, 0.97, 1.0])
def test_every_layer_loses_exactly_its_share(score, s):
    for mask in masks(edge_popup(conv_net(), sparsity=s, score=score, seed=2)).values():
        assert int((~mask).sum()) == pruned_count(mask.numel(), s)


def test_a_global_threshold_removes_the_share_of_all_layers_together():
    model = edge_popup(
        conv_net(), sparsity=0.8, scope="global", score_init="kaiming_normal", seed=2
    )
    found = masks(model)
    n = sum(m.numel() for m in found.values())
    assert sum(int((~m).sum()) for m in found.values()) == pruned_count(n, 0.8)
    shares = {name: 1 - m.float().mean().item() for name, m in found.items()}
    assert max(shares.values()) - min(shares.values()) > 0.05


def test_a_global_threshold_follows_every_change_of_scores():
    model = edge_popup(conv_net(), sparsity=0.5, scope="global", seed=2)
    x, _ = images()
    model(x)
    for _, _, mask in named_masks(model):
        mask.sparsity = 0.8
    model[3](torch.randn(1, 8, 8, 8))  # only one layer is used, and still it must see the change
    assert sparsity(model) == pytest.approx(0.8, abs=0.01)
    for _, _, mask in named_masks(model):
        mask.sparsity = 0.5
    with torch.no_grad():
        model[3].parametrizations.weight.original += 10.0  # this small layer now keeps everything
    assert masks(model)["3.weight"].all()
    assert sparsity(model) == pytest.approx(0.5, abs=0.01)
    model(x)
    with torch.no_grad():
        model[3].parametrizations.weight.original.data.sub_(20.0)  # `.data` bumps no version
    model(x)
    model(x)
    assert not masks(model)["3.weight"].any()


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    a, b, c = (edge_popup(conv_net(), seed=s) for s in (1, 1, 2))
    for (_, ea, ma), (_, eb, mb), (_, ec, mc) in zip(
        *(named_masks(m) for m in (a, b, c)), strict=True
    ):
        assert torch.equal(ma.weight, mb.weight)
        assert torch.equal(ea.original, eb.original)
        assert not torch.equal(ma.weight, mc.weight)
        assert not torch.equal(ea.original, ec.original)


@pytest.mark.parametrize(
    ("init", "size"),
    [
        ("signed_kaiming_constant", lambda w: w.abs().max()),
        ("kaiming_uniform", lambda w: w.abs().max() / 3**0.5),
        ("kaiming_normal", lambda w: w.std()),
    ],
)
def test_weights_have_the_kaiming_scale_of_their_fan_in(init, size):
    model = edge_popup(nn.Sequential(nn.Conv2d(16, 200, 3), nn.Linear(500, 100)), weight_init=init)
    for (_, _, mask), fan in zip(named_masks(model), (16 * 9, 500), strict=True):
        assert size(mask.weight) == pytest.approx((2 / fan) ** 0.5, rel=0.02)


def test_rescaling_divides_by_the_root_of_the_density():
    plain = edge_popup(nn.Linear(100, 100), sparsity=0.75, seed=1)
    scaled = edge_popup(nn.Linear(100, 100), sparsity=0.75, seed=1, rescale=True)
    torch.testing.assert_close(scaled.weight, 2 * plain.weight)


def test_checkpoints_hold_scores_and_a_seed_but_no_frozen_weight():
    model = edge_popup(conv_net(), seed=3)
    keys = model.state_dict().keys()
    assert {k for k in keys if "parametrizations" in k} == {
        f"{i}.parametrizations.weight.{part}"
        for i in (0, 3, 7)
        for part in ("original", "0._extra_state")
    }
    other = edge_popup(conv_net(), seed=99, sparsity=0.1)
    other.load_state_dict(model.state_dict())
    x, _ = images()
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_casting_down_and_up_again_gives_back_the_exact_weights():
    model = edge_popup(conv_net(), weight_init="kaiming_normal", seed=3)
    before = [m.weight.clone() for _, _, m in named_masks(model)]
    model.to(torch.bfloat16).to(torch.float32)
    for (_, _, mask), weight in zip(named_masks(model), before, strict=True):
        assert torch.equal(mask.weight, weight)


@pytest.mark.parametrize("made", ["moved", "masked"])
def test_a_model_rises_from_the_meta_device_with_its_weights(made):
    model = edge_popup(conv_net(), weight_init="kaiming_normal", seed=3)
    if made == "moved":
        other = copy.deepcopy(model).to("meta")
    else:
        with torch.device("meta"):
            other = edge_popup(conv_net(), weight_init="kaiming_normal", seed=3)
    other.to_empty(device="cpu")
    for (_, _, mask), (_, _, expected) in zip(named_masks(other), named_masks(model), strict=True):
        assert torch.equal(mask.weight, expected.weight)
    other.load_state_dict(model.state_dict())
    x, _ = images()
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_names_patterns_and_exceptions_choose_what_is_masked():
    assert masks(edge_popup(conv_net(), params=["7.we*"])).keys() == {"7.weight"}
    model = edge_popup(conv_net(), params=["*.weight"], trainable=["7.*", "1.*", "4.*"])
    assert masks(model).keys() == {"0.weight", "3.weight"}
    assert model[7].weight.requires_grad
    assert model[1].bias.requires_grad


def test_sparsity_by_pattern():
    model = edge_popup(conv_net(), sparsity={"7.*": 0.9, "*": 0.2})
    found = {n: 1 - m.float().mean().item() for n, m in masks(model).items()}
    assert found == pytest.approx({"0.weight": 0.2, "3.weight": 0.2, "7.weight": 0.9}, abs=0.01)


def test_a_tied_weight_stays_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = edge_popup(Tied(), seed=1)
    assert torch.equal(model.a.weight, model.b.weight)
    assert len([p for p in model.parameters() if p.requires_grad]) == 1
    model(torch.randn(2, 6)).sum().backward()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).normal_()
    assert torch.equal(model.a.weight, model.b.weight)


def test_tying_does_not_change_the_first_scores():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[1].weight = net[0].weight
    edge_popup(net, seed=1)
    ((_, entry, mask),) = named_masks(net)
    assert torch.equal(entry.original, mask.score_source.rebuild())


def test_a_weight_tied_to_an_embedding_is_refused_and_left_alone():
    net = nn.ModuleDict({"emb": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    net["head"].weight = net["emb"].weight
    with pytest.raises(InputError, match=r"'head.weight' is tied to 'emb.weight'"):
        edge_popup(net)
    assert net["head"].weight is net["emb"].weight
    edge_popup(net, params=["*.weight"])
    assert torch.equal(net["head"].weight, net["emb"].weight)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 4), (2, 5)),
        (nn.Conv1d(2, 4, 3), (2, 2, 9)),
        (nn.Conv2d(2, 4, 3), (2, 2, 9, 9)),
        (nn.Conv3d(2, 4, 3), (2, 2, 5, 5, 5)),
    ],
)
def test_every_layer_of_the_list_is_masked(layer, shape):
    model = edge_popup(layer, seed=1)
    model(torch.randn(shape)).sum().backward()
    assert sparsity(model) == pytest.approx(0.5, abs=0.1)


def test_attention_projections_are_masked():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8)
    model = edge_popup(layer, seed=1)
    assert masks(model).keys() == {"in_proj_weight", "out_proj.weight"}
    model(x, x, x)[0].sum().backward()
    model.eval()
    with torch.no_grad():
        assert torch.isfinite(model(x, x, x)[0]).all()


def test_pyg_linear_is_masked():
    pyg = pytest.importorskip("torch_geometric.nn", reason="needs the extra 'graph'")
    model = edge_popup(pyg.GCNConv(4, 3), seed=1)
    assert masks(model).keys() == {"lin.weight"}
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    model(torch.randn(3, 4), edges).sum().backward()


def test_any_named_weight_can_be_masked():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 6))

        def forward(self, x):
            return x @ self.table

    model = edge_popup(Own(), params=["table"])
    model(torch.randn(2, 4)).sum().backward()
    assert masks(model).keys() == {"table"}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_functional_call_grad_and_vmap_agree_with_the_module(scope):
    model = edge_popup(conv_net(), seed=1, scope=scope).eval()
    x, _ = images()
    scores = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(s):
        return functional_call(model, s, (x,)).square().mean()

    model.zero_grad()
    model(x).square().mean().backward()
    for name, value in grad(loss)(scores).items():
        torch.testing.assert_close(value, model.get_parameter(name).grad)
    stacked = {n: torch.stack([s, s.flip(0)]) for n, s in scores.items()}
    both = vmap(loss)(stacked)
    one_by_one = [loss({n: s[i] for n, s in stacked.items()}) for i in range(2)]
    torch.testing.assert_close(both, torch.stack(one_by_one))


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "backend"), [("layer", "inductor"), ("global", "aot_eager")])
def test_compiled_in_one_graph_it_gives_the_same(scope, backend):
    model = edge_popup(conv_net(), seed=1, scope=scope).eval()
    x, _ = images()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    model(x).sum().backward()
    expected = model[7].parametrizations.weight.original.grad.clone()
    model.zero_grad()
    compiled(x).sum().backward()
    torch.testing.assert_close(model[7].parametrizations.weight.original.grad, expected)


def test_exported_it_needs_nothing_of_ours():
    model = edge_popup(conv_net(), seed=1).eval()
    x, _ = images()
    program = torch.export.export(model, (x,))
    assert "regraft" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x))


def test_under_autocast_it_computes_in_bfloat16():
    model = edge_popup(conv_net(), seed=1)
    x, y = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
        F.cross_entropy(out, y).backward()
    assert out.dtype == torch.bfloat16
    assert model[7].parametrizations.weight.original.grad.dtype == torch.float32


def test_channels_last_gives_the_same_mask():
    model = edge_popup(conv_net(), seed=1).eval()
    x, _ = images()
    expected = model(x)
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected)


def test_ddp_is_told_not_to_broadcast_frozen_weights():
    model = edge_popup(conv_net())
    ignored = set(model._ddp_params_and_buffers_to_ignore)
    # `draw` comes only with the first redraw, but a resumed model has it when DDP takes it.
    assert ignored == {
        f"{i}.parametrizations.weight.0.{buffer}"
        for i in (0, 3, 7)
        for buffer in ("weight", "draw", "free")
    }


# Wrong input.


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("params", [None, ["*.weight"]])
def test_layers_of_no_units_are_left_alone(params):
    model = nn.ModuleList([nn.Linear(4, 0), nn.Linear(0, 3), nn.Linear(4, 3)])
    edge_popup(model, params=params, seed=1)
    assert masks(model).keys() == {"2.weight"}
    with pytest.raises(InputError, match="no maskable weight"):
        edge_popup(nn.Linear(4, 0))
