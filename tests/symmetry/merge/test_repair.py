import copy

import pytest
import torch
from repairing import batches, network
from torch import nn

from regraft.errors import InputError
from regraft.models import MLP
from regraft.symmetry.merge.merge import merge
from regraft.symmetry.merge.repair import repair, repair_, reset_batch_norm_

SHAPES = {"mlp": (12,), "conv": (2, 6, 6), "norm": (2, 6, 6), "mixed": (2, 6, 6)}
LAYERS = {
    "mlp": ["features.1", "features.3", "features.5"],
    "conv": ["features.0", "features.2", "hidden.1", "hidden.3"],
    "mixed": ["1", "3", "5"],
}


def outputs(model, name, data):
    """Every output of a layer over all batches, by hand, float64 [C, positions]."""
    seen = []
    model = copy.deepcopy(model).eval().double()
    layer = model.get_submodule(name)
    layer.register_forward_hook(lambda _m, _i, y: seen.append(y.detach().clone()))
    for x in data:
        model(x.double())
    whole = torch.cat(seen)
    return whole.movedim(1, 0).flatten(1)


def merged_of(kind, weights=(0.5, 0.5)):
    parents = [network(kind, seed) for seed in range(len(weights))]
    # Statistics of their own, and no two channels alike.
    for i, parent in enumerate(parents):
        reset_batch_norm_(parent, batches(SHAPES[kind], seed=10 + i))
    model = network(kind)
    states = [parent.state_dict() for parent in parents]
    model.load_state_dict(merge(states, weights=weights))
    return model, parents, states


@pytest.mark.parametrize("kind", ["mlp", "conv", "mixed"])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.5, 0.3)])
def test_repaired_channels_have_their_parents_moments(kind, weights):
    model, parents, states = merged_of(kind, weights)
    data = batches(SHAPES[kind])
    before = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    done = repair_(model, states, data, weights=weights, mode="repair")
    assert done.mode == "repair"
    assert list(done.layers) == LAYERS[kind]
    assert done.images == 19
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == before
    for name in LAYERS[kind]:
        goals = [outputs(parent, name, data) for parent in parents]
        mean = sum(w * g.mean(1) for w, g in zip(weights, goals, strict=True))
        std = sum(w * g.std(1, correction=0) for w, g in zip(weights, goals, strict=True))
        found = outputs(model, name, data)
        torch.testing.assert_close(found.mean(1), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.std(1, correction=0), std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "conv", "mixed"])
def test_one_pass_over_one_batch_is_exact_and_over_several_it_is_near(kind):
    model, _, states = merged_of(kind)
    one = batches(SHAPES[kind], sizes=(40,))
    exact, _ = repair(model, model.state_dict(), states, one, mode="repair")
    quick, _ = repair(model, model.state_dict(), states, one, mode="repair", exact=False)
    for name in exact:
        torch.testing.assert_close(quick[name], exact[name], rtol=1e-3, atol=1e-4)
    parts = list(one[0].split(20))
    near, _ = repair(model, model.state_dict(), states, parts, mode="repair", exact=False)
    distance = sum(float((near[k] - exact[k]).abs().sum()) for k in exact)
    moved = sum(float((model.state_dict()[k] - exact[k]).abs().sum()) for k in exact)
    assert 0 < distance < 0.5 * moved


def test_the_merge_of_a_model_with_itself_needs_no_repair():
    model = network("mlp")
    state = model.state_dict()
    repaired, _ = repair(model, state, [state, state], batches((12,)))
    for name in state:
        torch.testing.assert_close(repaired[name], state[name], rtol=1e-4, atol=1e-5)


def test_repair_undoes_a_change_of_scale():
    model = network("mlp")
    state = model.state_dict()
    changed = {k: v * 0.3 if "features" in k else v for k, v in state.items()}
    repaired, _ = repair(model, changed, [state], batches((12,)))
    x = batches((12,), (50,), seed=4)[0]
    model.load_state_dict(repaired)
    twin = network("mlp")
    twin.load_state_dict(state)
    torch.testing.assert_close(model(x), twin(x), rtol=1e-3, atol=1e-4)


def slow_reset(model, data):
    """Mean over batches, by their sizes, of what each BatchNorm sees, layer by layer by hand."""
    seen = {}
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()

            def hook(_m, inputs, name=name):
                x = inputs[0].detach().movedim(1, 0).flatten(1)
                seen.setdefault(name, []).append((x.mean(1), x.var(1)))

            module.register_forward_pre_hook(hook)
    for x in data:
        model(x)
    shares = torch.tensor([len(x) for x in data]) / sum(len(x) for x in data)
    return {
        name: tuple(
            torch.tensordot(shares, torch.stack(part), 1) for part in zip(*found, strict=True)
        )
        for name, found in seen.items()
    }


def test_batch_norm_is_reset_to_the_mean_over_batches():
    model, _, states = merged_of("norm")
    data = batches(SHAPES["norm"])
    expected = slow_reset(model, data)
    momenta = [m.momentum for m in model.modules() if hasattr(m, "momentum")]
    model.train()
    model.features[0].eval()
    done = repair_(model, states, data)
    assert (done.mode, done.norms, done.layers) == ("reset", 3, ())
    assert "BatchNorm" in done.reason
    for name, (mean, var) in expected.items():
        norm = model.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, var)
    assert momenta == [m.momentum for m in model.modules() if hasattr(m, "momentum")]
    assert model.training
    assert not model.features[0].training


def test_repair_after_batch_norm_corrects_the_norms_outputs():
    model, parents, states = merged_of("norm")
    data = batches(SHAPES["norm"])
    done = repair_(model, states, data, mode="repair")
    assert done.norms == 3
    assert list(done.layers) == ["features.1", "features.4", "features.7"]
    goal = [outputs(parent, "features.4", data).mean(1) for parent in parents]
    found = outputs(model, "features.4", data).mean(1)
    torch.testing.assert_close(found, (goal[0] + goal[1]) / 2, rtol=1e-4, atol=1e-5)


def test_networks_without_statistics_are_left_as_they_are():
    model, _, states = merged_of("mlp")
    before = copy.deepcopy(model.state_dict())
    assert reset_batch_norm_(model, batches((12,))) == 0
    done = repair_(model, states, batches((12,)), mode="reset")
    assert done.mode == "none"
    assert "no running statistics" in done.reason
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert repair_(model, states, [], mode="none").mode == "none"


def test_a_layer_without_bias_is_scaled_only_and_said_so():
    torch.manual_seed(0)
    parents = [MLP(12, [9, 8], 3, bias=False) for _ in range(2)]
    model = MLP(12, [9, 8], 3, bias=False)
    states = [parent.state_dict() for parent in parents]
    model.load_state_dict(merge(states))
    data = batches((12,))
    done = repair_(model, states, data)
    assert done.scaled_only == done.layers == ("features.1", "features.3")
    std = [outputs(m, "features.3", data).std(1, correction=0) for m in (model, *parents)]
    torch.testing.assert_close(std[0], (std[1] + std[2]) / 2, rtol=1e-4, atol=1e-5)


def test_dead_channels_are_moved_and_not_blown_up():
    model, _, states = merged_of("mlp")
    with torch.no_grad():
        model.features[1].weight[2] = 0
    repair_(model, states, batches((12,)))
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_a_head_and_tied_layers_are_not_touched():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(self.b(self.a(x).relu()).relu())

    torch.manual_seed(0)
    model, parent = Tied(), Tied()
    done = repair_(model, [parent.state_dict()], batches((5,)), mode="repair")
    assert done.layers == ()
    assert done.reused == ("a", "b")
    assert "no layer" in done.reason


class Recurrent(nn.Module):
    """A block that runs three times, and what `after` makes of the output."""

    def __init__(self, after=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.block = nn.Linear(5, 8), nn.Linear(8, 8)
        self.tail, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.relu = nn.ReLU(inplace=True)
        self.after = after or nn.Identity()

    def forward(self, x):
        h = self.relu(self.stem(x))
        for _ in range(3):
            h = h + self.relu(self.block(h))
        return self.after(self.head(self.relu(self.tail(h))))


@pytest.mark.parametrize("exact", [True, False])
def test_a_layer_that_runs_several_times_is_left_alone_and_said_so(exact):
    parents = [Recurrent(seed=seed) for seed in (1, 2)]
    states = [parent.state_dict() for parent in parents]
    model = Recurrent()
    model.load_state_dict(merge(states))
    data = batches((5,), sizes=(40,))
    done = repair_(model, states, data, exact=exact)
    assert done.layers == ("stem", "tail")
    assert done.reused == ("block",)
    assert torch.equal(model.block.weight, merge(states)["block.weight"])
    for name in done.layers:
        goals = [outputs(parent, name, data) for parent in parents]
        goal = (goals[0].std(1, correction=0) + goals[1].std(1, correction=0)) / 2
        found = outputs(model, name, data).std(1, correction=0)
        torch.testing.assert_close(found, goal, rtol=1e-3, atol=1e-4)


def test_a_recurrent_network_repaired_to_itself_stays_as_it_is():
    model = Recurrent()
    state = model.state_dict()
    repaired, _ = repair(model, state, [state, state], batches((5,)))
    for name in state:
        torch.testing.assert_close(repaired[name], state[name], rtol=1e-4, atol=1e-5)


class Dict(nn.Module):
    def forward(self, x):
        return {"logits": x * 2, "argmax": x.argmax(1)}


@pytest.mark.parametrize(
    "after", [nn.LogSoftmax(1), nn.Unflatten(1, (3, 1)), nn.Softplus(), Dict()], ids=str
)
def test_what_comes_after_the_last_layer_does_not_make_it_another(after):
    states = [Recurrent(after, seed).state_dict() for seed in (1, 2)]
    model = Recurrent(after)
    model.load_state_dict(merge(states))
    assert repair_(model, states, batches((5,))).layers == ("stem", "tail")


def test_all_heads_are_left_alone_and_a_residual_stream_is_not_taken_for_one():
    class Heads(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
            self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 2)

        def features(self, x):
            h = x + self.a(x).relu()
            h = h + self.b(h).relu()
            return h + self.c(h).relu()

        def forward(self, x):
            h = self.features(x)
            return (self.one(h) + self.two(h.detach())) / 2

    class Body(Heads):
        def forward(self, x):
            return self.features(x)

    class Frozen(Heads):
        def forward(self, x):
            with torch.no_grad():
                h = self.features(x)
            return self.one(h).log_softmax(1)

    class Unfollowed(Heads):
        def forward(self, x):
            with torch.no_grad():
                return self.one(self.features(x)).log_softmax(1)

    for kind, layers in (
        (Heads, ("a", "b", "c")),
        (Body, ("a", "b")),
        (Frozen, ("a", "b", "c")),
        (Unfollowed, ("a", "b", "c")),
    ):
        states = [kind(seed).state_dict() for seed in (1, 2)]
        model = kind(0)
        model.load_state_dict(merge(states))
        assert repair_(model, states, batches((6,))).layers == layers, kind.__name__


def test_one_pass_weighs_batches_by_their_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state, x = copy.deepcopy(model.state_dict()), torch.randn(40, 3)
    other, parent = torch.randn(6, 3) * 4, network("pair", 5).state_dict()
    states = [
        repair(model, state, [parent], data, mode="repair", exact=False)[0]
        for data in ([torch.cat([x, x]), other], [x, x, other])
    ]
    for name in state:
        torch.testing.assert_close(states[0][name], states[1][name])


@pytest.mark.parametrize("mode", ["auto", "reset", "repair"])
def test_no_batches_are_refused(mode):
    model, _, states = merged_of("norm")
    with pytest.raises(InputError, match="no batches"):
        repair_(model, states, [], mode=mode)


def test_wrong_input_is_said():
    model, _, states = merged_of("mlp")
    with pytest.raises(InputError, match="repair='fix'"):
        repair_(model, states, batches((12,)), mode="fix")
    with pytest.raises(InputError, match="parent 2 has no tensor"):
        repair_(model, [states[0], {}], batches((12,)))
    small = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(InputError, match="use larger ones"):
        reset_batch_norm_(small, [torch.zeros(1, 4)])


class Standardised(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


class Activated(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x).relu()


class Named(nn.Linear):
    pass


def test_layers_that_do_more_than_their_base_class_are_left_alone():
    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(
            Named(5, 6), nn.ReLU(), Standardised(6, 4), nn.ReLU(),
            nn.Linear(4, 4), Activated(4), nn.Linear(4, 2),
        )  # fmt: skip

    parents = [make(seed).state_dict() for seed in (1, 2)]
    model = make(0)
    model.load_state_dict(merge(parents))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = repair_(model, parents, batches((5,)), mode="repair")
    assert done.layers == ("0",)
    assert done.norms == 1
    for name in ("2.weight", "2.bias", "4.weight", "5.weight", "5.bias", "6.weight"):
        assert torch.equal(model.state_dict()[name], before[name])
