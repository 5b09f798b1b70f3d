import sys

import pytest
import torch
from torch import nn

from regraft.config import ModelConfig
from regraft.errors import InputError, MissingExtraError
from regraft.models import MLP, ConvN, ResNet, build

SHAPE = {"num_classes": 5, "channels": 3, "image_size": 32}


def made(name, shape=SHAPE, width=1.0, **options):
    return build(ModelConfig(name=name, width=width, options=options), **shape)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module into the current folder and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = []

    def write(text):
        name = f"own_{abs(hash(tmp_path))}"
        (tmp_path / f"{name}.py").write_text("import torch\nfrom torch import nn\n" + text)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


LINEAR = "return nn.Sequential(nn.Flatten(), nn.Linear(channels * size ** 2, classes))"


class TestBuiltIn:
    def test_names_lead_to_their_networks(self):
        assert isinstance(made("mlp"), MLP)
        assert isinstance(made("conv4"), ConvN)
        assert isinstance(made("resnet18", width=0.25), ResNet)

    def test_options_reach_the_network(self):
        model = made("mlp", width=0.5, widths=[10, 20, 30], norm="batch")
        assert [m.out_features for m in model.modules() if type(m) is nn.Linear] == [5, 10, 15, 5]

    def test_an_unknown_name_comes_with_a_suggestion(self):
        with pytest.raises(InputError, match=r"'conv_smal'.*did you mean 'conv_small'\?.*mlp"):
            made("conv_smal")

    @pytest.mark.parametrize("width", [0, -1.0])
    def test_a_width_that_is_not_positive_is_refused(self, width):
        with pytest.raises(InputError, match=r"width=.*above 0"):
            made("conv4", width=width)

    def test_an_unknown_option_is_refused(self):
        with pytest.raises(InputError, match=r"conv4 could not be built .*'colour'.*model.options"):
            made("conv4", colour="red")

    def test_a_network_of_another_image_size_explains_itself(self):
        with pytest.raises(InputError, match="image_size=8: conv8"):
            made("conv8", {**SHAPE, "image_size": 8})


class TestTorchvision:
    @pytest.fixture(autouse=True)
    def needs_torchvision(self):
        pytest.importorskip("torchvision")

    def test_a_network_with_the_classes_asked(self):
        assert made("torchvision/shufflenet_v2_x0_5").eval()(torch.randn(1, 3, 32, 32)).shape == (
            1,
            5,
        )

    def test_trying_the_network_leaves_no_trace(self):
        model = made("torchvision/shufflenet_v2_x0_5")
        assert all(m.training for m in model.modules())
        assert float(model.state_dict()["conv1.1.running_mean"].abs().sum()) == 0

    def test_an_unknown_name_comes_with_a_suggestion(self):
        with pytest.raises(InputError, match=r"torchvision has no model 'resnet19'.*resnet18"):
            made("torchvision/resnet19")

    def test_images_of_another_number_of_channels_are_refused(self):
        with pytest.raises(InputError, match="takes images of 3 channels and these have 1"):
            made("torchvision/resnet18", {**SHAPE, "channels": 1})

    def test_images_of_another_size_are_refused(self):
        with pytest.raises(InputError, match=r"cannot take an image of 3x32x32.*data.image_size"):
            made("torchvision/vit_b_16")

    def test_width_is_refused(self):
        with pytest.raises(InputError, match="torchvision/resnet18 has no width factor"):
            made("torchvision/resnet18", width=0.5)

    def test_pretrained_weights_get_a_new_classifier(self, monkeypatch):
        from torchvision import models

        original = models.shufflenet_v2_x0_5
        monkeypatch.setattr(models, "shufflenet_v2_x0_5", lambda weights: original())
        model = made("torchvision/shufflenet_v2_x0_5", weights="DEFAULT")
        assert model.get_submodule("fc").out_features == 5  # type: ignore[union-attr]

    def test_without_torchvision_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision.models", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'regraft\[vision\]'"):
            made("torchvision/resnet18")


class TestTimm:
    @pytest.fixture(autouse=True)
    def needs_timm(self):
        pytest.importorskip("timm")

    def test_a_network_with_classes_and_channels_asked(self):
        model = made("timm/test_resnet", {**SHAPE, "channels": 1})
        assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 5)

    def test_options_reach_timm(self):
        model = made("timm/test_vit", img_size=32)
        assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)

    def test_an_unknown_name_comes_with_a_suggestion(self):
        with pytest.raises(InputError, match=r"timm has no model 'resnet5O'.*resnet50"):
            made("timm/resnet5O")

    def test_a_wrong_option_is_refused(self):
        with pytest.raises(InputError, match="timm/test_resnet could not be built"):
            made("timm/test_resnet", colour="red")

    def test_width_is_refused(self):
        with pytest.raises(InputError, match="timm/test_resnet has no width factor"):
            made("timm/test_resnet", width=2)

    def test_without_timm_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'regraft\[vision\]'"):
            made("timm/resnet18")


class TestFactory:
    @pytest.mark.parametrize("channels", ["in_channels", "in_chans"])
    @pytest.mark.parametrize("size", ["image_size", "img_size"])
    def test_arguments_go_where_the_signature_takes_them(self, own, channels, size):
        name = own(
            f"def make(num_classes, *, {channels}, {size}):\n"
            f"    channels, size, classes = {channels}, {size}, num_classes\n    {LINEAR}\n"
        )
        assert made(f"{name}:make")(torch.randn(2, 3, 32, 32)).shape == (2, 5)

    def test_a_class_with_fixed_sizes_and_options_will_do(self, own):
        name = own(
            "class Net(nn.Sequential):\n    def __init__(self, hidden=4):\n"
            "        first = nn.Linear(3072, hidden)\n"
            "        super().__init__(nn.Flatten(), first, nn.Linear(hidden, 5))\n"
        )
        assert made(f"{name}:Net", hidden=9).get_submodule("1").weight.shape == (9, 3072)

    def test_options_win_over_what_would_be_given(self, own):
        name = own(
            "def make(num_classes, in_channels):\n"
            "    assert in_channels == 4\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))\n"
        )
        made(f"{name}:make", in_channels=4)

    def test_width_is_passed_on_or_refused(self, own):
        body = "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5 * int(width) // 2))\n"
        name = own(f"def wide(width):\n{body}\ndef fixed():\n    width = 2\n{body}")
        made(f"{name}:wide", width=2.0)
        with pytest.raises(InputError, match="takes no argument `width`"):
            made(f"{name}:fixed", width=2.0)

    def test_trying_leaves_modes_alone(self, own):
        name = own(
            "def make():\n    frozen = nn.BatchNorm2d(3).eval()\n"
            "    return nn.Sequential(frozen, nn.Flatten(), nn.Linear(3072, 5))\n"
        )
        model = made(f"{name}:make")
        assert model.training
        assert not model.get_submodule("0").training

    def test_a_module_that_is_not_there_is_refused(self):
        with pytest.raises(InputError, match=r"'no_such_module' cannot be imported .*No module"):
            made("no_such_module:make")

    def test_a_module_that_fails_is_refused(self, own):
        name = own("raise RuntimeError('broken inside')\n")
        with pytest.raises(InputError, match=r"cannot be imported .*broken inside"):
            made(f"{name}:make")

    def test_a_missing_attribute_comes_with_a_suggestion(self, own):
        name = own("def build_net():\n    return 1\n")
        with pytest.raises(InputError, match=r"has no 'build_nett': did you mean 'build_net'"):
            made(f"{name}:build_nett")

    def test_an_attribute_that_cannot_be_called_is_refused(self, own):
        with pytest.raises(InputError, match="holds something not callable as 'make'"):
            made(f"{own('make = 3')}:make")

    def test_a_factory_that_raises_is_chained(self, own):
        name = own("def make():\n    raise KeyError('depth')\n")
        with pytest.raises(InputError, match=r"could not be built .*KeyError: 'depth'") as caught:
            made(f"{name}:make")
        assert isinstance(caught.value.__cause__, KeyError)

    def test_a_factory_that_gives_no_network_is_refused(self, own):
        name = own("def make():\n    return [1]\n")
        with pytest.raises(InputError, match=r"gave a list: expected .* torch.nn.Module"):
            made(f"{name}:make")

    def test_a_network_of_other_classes_is_refused(self, own):
        name = own("def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))\n")
        with pytest.raises(InputError, match=r"returns \(1, 4\) .*shape \(1, 5\)"):
            made(f"{name}:make")

    def test_a_network_of_another_output_is_refused(self, own):
        name = own(
            "class Net(nn.Module):\n    def forward(self, x):\n        return {'logits': x}\n"
        )
        with pytest.raises(InputError, match=r"returns dict .*expected logits"):
            made(f"{name}:Net")

    def test_a_network_for_other_images_is_refused(self, own):
        name = own("def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(7, 5))\n")
        with pytest.raises(InputError, match="cannot take an image of 3x32x32"):
            made(f"{name}:make")
