import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.models import MLP, ResNet
from regraft.symmetry.merge.heads import (
    Ensemble,
    Head,
    find_head,
    separate_heads,
    share_rows,
    union_classes,
    union_heads,
    widen_heads,
)
from regraft.symmetry.merge.merge import merge
from regraft.symmetry.merge.output_layers import output_layers


def mlp(classes, seed, **options):
    torch.manual_seed(seed)
    model = MLP(4, [5], classes, **options)
    with torch.no_grad():
        model.head.weight.normal_()
        if model.head.bias is not None:
            model.head.bias.normal_()
    return model


def test_the_head_is_found_by_protocol_and_else_is_the_last_linear_layer():
    assert find_head(MLP(4, [5], 3)) == Head("head.weight", "head.bias", 3)
    assert find_head(ResNet(18, 7, bias=False, width=0.1)) == Head("head.weight", None, 7)
    assert (
        find_head(nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 4))).weight == "2.weight"
    )
    assert find_head(nn.Linear(2, 9)) == Head("weight", "bias", 9)
    with pytest.raises(InputError, match="no linear layer"):
        find_head(nn.Conv2d(1, 1, 1))


def test_timm_heads_are_found():
    timm = pytest.importorskip("timm")
    for name, weight in (("resnet18", "fc.weight"), ("vit_tiny_patch16_224", "head.weight")):
        with torch.device("meta"):
            assert find_head(timm.create_model(name, num_classes=5)) == Head(
                weight, weight.replace("weight", "bias"), 5
            )


def test_a_distilled_transformer_has_two_heads_that_are_kept_apart_together():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=32)
    head = find_head(model)
    assert head.names == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    by_running = output_layers(model, torch.zeros(2, 3, 32, 32, device="meta"))
    assert {id(m) for m in by_running} == {id(model.head), id(model.head_dist)}
    states = [{k: torch.full((5, 2), float(i)) for k in head.names} for i in (1, 2)]
    merged = {**merge(states), "body": torch.zeros(2)}
    for own, state in zip(separate_heads(merged, states, head), states, strict=True):
        assert all(torch.equal(own[k], state[k]) for k in head.names)


class HeadFirst(nn.Module):
    """Declares its classifier before its body; `end` is what it does with the logits."""

    def __init__(self, end=lambda logits, features: logits, classes=3):
        super().__init__()
        self.head = nn.Linear(6, classes)
        self.scale = nn.Parameter(torch.ones(()))
        self.body, self.last = nn.Linear(4, 6), nn.Linear(6, 6)
        self.end = end

    def forward(self, x):
        features = self.last(self.body(x.flatten(1)).relu())
        return self.end(self.head(features), features)


ENDS = {
    "logits": lambda z, h: z,
    "log_softmax": lambda z, h: z.log_softmax(-1),
    "in place": lambda z, h: z.div_(2.0),
    "tuple": lambda z, h: (z, h),
    "mapping": lambda z, h: {"hidden": h, "logits": z},
    "squeezed": lambda z, h: z[:, :, None, None].mean((2, 3)),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_the_head_is_what_the_output_comes_out_of_and_not_what_is_declared_last(
    end, frozen, device
):
    with torch.device(device):
        model = HeadFirst(ENDS[end]).requires_grad_(not frozen)
        example = torch.zeros(2, 1, 2, 2)
    assert find_head(model).weight == "last.weight"  # without an example nothing else is known
    assert find_head(model, example=example) == Head("head.weight", "head.bias", 3)
    assert model.training
    assert not model.head._forward_hooks
    assert not example.requires_grad


def test_where_a_pass_does_not_tell_the_head_is_declared_last():
    example = torch.zeros(2, 1, 2, 2)
    mixed = torch.ones(3, 3)
    for end in (
        lambda z, h: z @ mixed,  # another layer's work, without a layer
        lambda z, h: z.detach(),
        lambda z, h: z[:, :2],
        lambda z, h: 1 / 0,
        lambda z, h: h.sum(1),
        lambda z, h: "no tensor",
    ):
        model = HeadFirst(end)
        assert output_layers(model, example) == []
        assert find_head(model, example=example).weight == "last.weight"
    two = HeadFirst(lambda z, h: z, classes=6)
    two.end = lambda z, h: z + h  # a skip around the classifier: both make the logits
    assert output_layers(two, example) == [two.head, two.last]


def test_classifiers_of_different_numbers_of_classes_are_refused():
    model = HeadFirst()
    model.get_classifier = lambda: (model.head, nn.Identity(), model.last)
    with pytest.raises(InputError, match="HeadFirst has classifiers of 3 and 6 classes"):
        find_head(model)


def test_separate_heads_share_the_body_and_keep_their_own_classifier():
    states = [mlp(3, seed).state_dict() for seed in (0, 1)]
    merged, head = merge(states), find_head(mlp(3, 0))
    for own, state in zip(separate_heads(merged, states, head), states, strict=True):
        for name in own:
            expected = state if name in head.names else merged
            assert torch.equal(own[name], expected[name])
            assert own[name] is not expected[name]


@pytest.mark.parametrize("bias", [True, False])
def test_a_union_head_has_every_class_of_both_by_name(bias):
    models = [mlp(3, 0, bias=bias), mlp(2, 1, bias=bias)]
    lists = [["cat", "dog", "eel"], ["dog", "fox"]]
    states = [m.state_dict() for m in models]
    wide, union = union_heads(states, lists, find_head(models[0]))
    assert union == ("cat", "dog", "eel", "fox")
    merged = merge(wide)
    a, b = states
    names = ["head.weight", "head.bias"] if bias else ["head.weight"]
    for k in names:
        assert torch.equal(wide[0][k][:3], a[k])
        assert torch.equal(wide[1][k][[1, 3]], b[k])
        torch.testing.assert_close(merged[k][0], a[k][0])
        torch.testing.assert_close(merged[k][1], (a[k][1] + b[k][0]) / 2)
        torch.testing.assert_close(merged[k][2], a[k][2])
        torch.testing.assert_close(merged[k][3], b[k][1])
    model = mlp(4, 2, bias=bias)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    model.load_state_dict(wide[0])
    torch.testing.assert_close(model(x)[:, :3], models[0](x))
    assert states[0]["head.weight"].shape == (3, 5)  # the input is as it was


def test_three_models_and_a_half_head_keep_their_dtype():
    lists = [["a", "b"], ["b", "c"], ["c"]]
    states = [mlp(len(k), i).half().state_dict() for i, k in enumerate(lists)]
    wide, union = union_heads(states, lists, Head("head.weight", "head.bias", 2))
    assert union == union_classes(lists) == ("a", "b", "c")
    assert {s["head.weight"].dtype for s in wide} == {torch.float16}
    expected = (states[0]["head.weight"][1].double() + states[1]["head.weight"][0]) / 2
    assert torch.equal(wide[2]["head.weight"][1], expected.half())


def test_class_lists_that_do_not_fit_are_said():
    states = [mlp(3, 0).state_dict(), mlp(2, 1).state_dict()]
    head = Head("head.weight", "head.bias", 3)
    with pytest.raises(InputError, match=r"model 2 has 2 rows in head.weight and 3 class names"):
        union_heads(states, [list("abc"), list("abc")], head)
    with pytest.raises(InputError, match="model 1 has the class 'a' twice"):
        union_heads(states, [list("aba"), list("ab")], head)


def test_an_ensemble_is_the_mean_of_its_models():
    models = [mlp(3, seed) for seed in range(3)]
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    logits = torch.stack([m(x) for m in models])
    states = [m.state_dict() for m in models]
    torch.testing.assert_close(Ensemble.of(models[0], states)(x), logits.mean(0))
    found = Ensemble(models, mean="probabilities")(x)
    torch.testing.assert_close(found.exp(), logits.softmax(-1).mean(0))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(6))
    with pytest.raises(InputError, match="no models"):
        Ensemble([])
    with pytest.raises(InputError, match="mean='votes'"):
        Ensemble(models, mean="votes")


def test_models_that_do_not_know_a_class_have_no_voice_on_it():
    models = [mlp(4, seed) for seed in range(3)]
    known = [[0, 1], [1, 3], [1, 2, 3]]
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    a, b, c = (m(x) for m in models)
    expected = torch.stack(
        [a[:, 0], (a[:, 1] + b[:, 1] + c[:, 1]) / 3, c[:, 2], (b[:, 3] + c[:, 3]) / 2], 1
    )
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    ensemble = Ensemble.of(models[0], states, known=known)
    torch.testing.assert_close(ensemble(x), expected)
    assert "knows" not in ensemble.state_dict()
    # What a model says of other classes changes nothing, be it infinite.
    for state, own in zip(states, known, strict=True):
        others = [row for row in range(4) if row not in own]
        state["head.bias"][others] = float("inf")
    torch.testing.assert_close(Ensemble.of(models[0], states, known=known)(x), expected)

    everything = [range(4)] * 3
    for mean in ("logits", "probabilities"):
        torch.testing.assert_close(
            Ensemble(models, mean=mean, known=everything)(x), Ensemble(models, mean=mean)(x)
        )
    found = Ensemble(models, mean="probabilities", known=known)(x).exp()
    own = [m(x)[:, k].softmax(-1) for m, k in zip(models, known, strict=True)]
    raw = torch.stack(
        [
            own[0][:, 0],
            (own[0][:, 1] + own[1][:, 0] + own[2][:, 0]) / 3,
            own[2][:, 1],
            (own[1][:, 1] + own[2][:, 2]) / 2,
        ],
        1,
    )
    torch.testing.assert_close(found, raw / raw.sum(1, keepdim=True))
    with pytest.raises(InputError, match="2 lists of rows for 3 models"):
        Ensemble(models, known=known[:2])
    with pytest.raises(InputError, match="no model knows class 0"):
        Ensemble(models, known=[[1], [2], [3]])


def test_rows_of_unknown_classes_say_nothing_until_they_are_shared():
    lists = [["cat", "dog"], ["dog", "eel"]]
    states = [mlp(2, seed).state_dict() for seed in (0, 1)]
    head = Head("head.weight", "head.bias", 2)
    wide, union = widen_heads(states, lists, head)
    assert union == ("cat", "dog", "eel")
    for k in head.names:
        assert not wide[0][k][2].any()
        assert not wide[1][k][0].any()
        shared = share_rows(wide, lists, head)
        assert torch.equal(shared[0][k][2], states[1][k][1])
        assert torch.equal(shared[1][k][0], states[0][k][0])
        assert torch.equal(shared[0][k][1], states[0][k][1])
    both, _ = union_heads(states, lists, head)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(shared, both, strict=True) for k in a)
