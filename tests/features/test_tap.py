import copy

import pytest
import torch
from torch import nn

from features import batch, network
from regraft.errors import InputError
from regraft.features import find_classifier, tap


def agrees(model, found, *args, name=None, **kwargs):
    """Check that what was tapped, put through the classifier, is what the network returns."""
    model.eval()
    out = model(*args, **kwargs)
    out = getattr(out, "logits", out)
    taken = found.take()
    assert taken.features.dim() == 2
    assert len(taken.features) == len(out)
    torch.testing.assert_close(found.head(taken.features), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(taken.logits.flatten(1), out)
    assert taken.features.requires_grad
    if name is not None:
        assert found.name == name


TIMM = {
    "resnet18": "fc",
    "vit_tiny_patch16_224": "head",
    "convnext_atto": "head.fc",
    "mobilenetv3_small_050": "classifier",
    "efficientnet_b0": "classifier",
    "swin_tiny_patch4_window7_224": "head.fc",
    "densenet121": "classifier",
    "resnetv2_50": "head.fc",
    "regnety_002": "head.fc",
    "vgg11": "head.fc",
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    options = {"img_size": 32} if name.startswith(("vit", "swin")) else {}
    if name.startswith("vit"):
        options["patch_size"] = 8
    if name.startswith("swin"):
        options |= {"patch_size": 2, "window_size": 4}
    model = timm.create_model(name, num_classes=5, **options)
    agrees(model, tap(model), torch.randn(2, 3, 32, 32), name=TIMM[name])


def test_timm_without_a_classifier_or_with_two():
    timm = pytest.importorskip("timm")
    with pytest.raises(InputError, match=r"has no classifier .num_classes=0.: call reset_classif"):
        tap(timm.create_model("resnet18", num_classes=0))
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5)
    with pytest.raises(InputError, match=r"returns tuple instead of one module.*ambiguous"):
        tap(model)
    assert tap(model, classifier="head").name == "head"
    model = timm.create_model("repvit_m1", num_classes=5)
    with pytest.raises(InputError, match="'head' with 2 linear layers, so the classifier is ambig"):
        tap(model)
    model = timm.create_model("crossvit_tiny_240", num_classes=5)
    with pytest.raises(InputError, match="a ModuleList that is not a linear layer"):
        tap(model)


TORCHVISION = {
    "resnet18": "fc",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "vit_b_16": "heads.head",
    "swin_t": "head",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "regnet_y_400mf": "fc",
    "shufflenet_v2_x0_5": "fc",
    "alexnet": "classifier.6",
}


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    options = {"image_size": 32} if name == "vit_b_16" else {}
    model = getattr(models, name)(num_classes=5, **options)
    side = 64 if name == "alexnet" else 32
    agrees(model, tap(model), torch.randn(2, 3, side, side), name=TORCHVISION[name])


def transformers_models():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 4}
    image = {**small, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    text = {**small, "intermediate_size": 16, "vocab_size": 20, "max_position_embeddings": 12}
    return transformers, image, text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ViT", "classifier"),
        ("Bert", "classifier"),
        ("Roberta", "classifier.out_proj"),
        ("DistilBert", "classifier"),
        ("ResNet", "classifier.1"),
    ],
)
def test_hugging_face(kind, name):
    transformers, image, text = transformers_models()
    if kind == "ViT":
        config = transformers.ViTConfig(**image)
        model = transformers.ViTForImageClassification(config)
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    elif kind == "ResNet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4
        )
        model = transformers.ResNetForImageClassification(config)
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    else:
        if kind == "DistilBert":
            config = transformers.DistilBertConfig(
                dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=20, num_labels=4
            )
        else:
            config = getattr(transformers, f"{kind}Config")(**text)
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        inputs = {"input_ids": torch.randint(3, 20, (2, 6)), "attention_mask": torch.ones(2, 6)}
    agrees(model, tap(model), name=name, **inputs)


def test_a_decoder_that_classifies_every_token_gives_the_features_of_the_one_it_keeps():
    transformers, _, _ = transformers_models()
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=12, num_labels=4, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    agrees(model, found := tap(model), name="score", input_ids=ids)
    model(input_ids=ids)
    hidden = model.transformer(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found.features, hidden[[0, 1], [3, 1]])


class HandWritten(nn.Module):
    """Registers its layers in another order than it runs them, under names of its own."""

    def __init__(self, temperature=1.0, heads=1):
        super().__init__()
        self.to_classes = nn.Linear(6, 3)
        self.second = nn.Linear(6, 3) if heads == 2 else None
        self.body = nn.Linear(8, 6)
        self.temperature = temperature

    def forward(self, x):
        h = self.body(x.flatten(1)[:, :8]).relu()
        out = self.to_classes(h) * self.temperature
        return out if self.second is None else out + self.second(h)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_hand_written_network_is_run_to_find_its_classifier(temperature):
    model = HandWritten(temperature)
    model.train()
    with pytest.raises(InputError, match="does not tell which of its linear layers"):
        tap(model)
    x = batch()[0]
    assert tap(model, example=x).name == "to_classes"
    assert tap(model, example=(x,)).name == "to_classes"
    assert tap(model, example={"x": x}).name == "to_classes"
    assert model.training
    assert not model.body._forward_hooks


def test_ambiguity_is_an_error_that_a_name_resolves():
    model = HandWritten(heads=2)
    x = batch()[0]
    with pytest.raises(InputError, match=r"no linear layers that give its output \(12, 3\)"):
        tap(model, example=x)
    found = tap(model, classifier="second")
    model(x)
    assert found.features.shape == (12, 6)
    with pytest.raises(
        InputError, match=r"'third'.*last linear layers are to_classes, second, body"
    ):
        tap(model, classifier="third")
    with pytest.raises(InputError, match="has no linear layer"):
        tap(nn.Sequential(nn.ReLU()))
    with pytest.raises(InputError, match="ran through no linear layer"):
        tap(nn.ReLU(), example=x)


def test_a_hidden_layer_named_like_a_classifier_is_not_taken_for_one():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(64, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.out(self.fc(x.flatten(1)).relu())

    with pytest.raises(
        InputError, match=r"does not tell which of its linear layers .* \(fc, out\)"
    ):
        tap(Hidden())
    assert tap(Hidden(), example=batch()[0]).name == "out"


def test_a_sequential_network_needs_no_example():
    assert find_classifier(network())[0] == "8"
    nested = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    assert find_classifier(nested)[0] == "1.1"


def test_a_classifier_of_one_by_one_convolution_is_pooled():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 3, 1))
    found = tap(nn.Sequential(model, nn.Flatten()), classifier="0.2")
    agrees(found.model, found, batch()[0])


def test_token_classifiers_are_refused():
    model = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (8, 8)), nn.Linear(8, 3))
    found = tap(model)
    model(batch()[0])
    with pytest.raises(InputError, match=r"sees features of shape \(12, 8, 8\): expected one"):
        _ = found.features


def test_the_network_is_as_before_when_the_tap_is_removed():
    model = network()
    before = list(model.state_dict())
    found = tap(model)
    assert list(model.state_dict()) == before
    model(batch()[0])
    found.remove()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    with pytest.raises(InputError, match="no features"):
        _ = found.features


def test_features_are_those_of_the_latest_pass_and_all_can_be_recorded():
    model = network()
    found = tap(model)
    a, b = batch(seed=1)[0], batch(5, seed=2)[0]
    with found.recording() as both:
        model(a)
        model(b)
    torch.testing.assert_close(both[0], model[:-1](a))
    torch.testing.assert_close(found.features, model[:-1](b))
    with found.paused():
        model(a)
    assert len(found.features) == 5
    assert found.take().args[0] is b
    with pytest.raises(InputError, match="no features"):
        found.take()


def test_a_pass_that_does_not_reach_the_classifier_leaves_no_old_features():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 3)

        def forward(self, x, classify=True):
            return self.fc(x.flatten(1)) if classify else x

    model = Sometimes()
    found = tap(model)
    model(batch()[0])
    model(batch()[0], classify=False)
    with pytest.raises(InputError, match="does not call its classifier 'fc'"):
        _ = found.features


def test_a_copy_of_the_network_has_a_tap_of_its_own():
    model = network()
    found = tap(model)
    x = batch()[0]
    model(x)
    other, its = copy.deepcopy((model, found))
    kept = found.features
    other(x[:2])
    assert found.features is kept
    assert len(its.features) == 2
    ema = torch.optim.swa_utils.AveragedModel(model)
    ema(x[:3])
    assert found.features is kept


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_one_graph_it_gives_the_same_features_and_gradients(backend):
    model = network()
    found = tap(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert tap(compiled).model is model
    x = batch()[0]
    for _ in range(2):
        compiled(x)
        features = found.features
        (gradient,) = torch.autograd.grad(features.square().sum(), model[0].weight)
        model(x)
        torch.testing.assert_close(features, found.features)
        (expected,) = torch.autograd.grad(found.features.square().sum(), model[0].weight)
        torch.testing.assert_close(gradient, expected)


def test_under_checkpointing_and_dictionary_outputs():
    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            h = torch.utils.checkpoint.checkpoint(self.net[:-1], x, use_reentrant=False)
            return {"logits": self.net[-1](h), "hidden": h}

    model = Outputs()
    x = batch()[0]
    found = tap(model, example=x)
    assert found.name == "net.8"
    model(x)
    found.features.sum().backward()
    assert model.net[0].weight.grad.abs().sum() > 0
