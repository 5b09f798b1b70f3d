import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.checkpoints.model_card import (
    KEY,
    ModelCard,
    allowed_options,
    header,
    model_of,
    read_header,
)
from regraft.config import ModelConfig
from regraft.errors import InputError

ABOUT = {
    "model": {"name": "conv4", "width": 0.5, "options": {"bias": True}},
    "input": {"channels": 3, "image_size": 8},
    "classes": ["a", "b"],
}


def test_what_is_written_is_read():
    card = ModelCard.read(read_header(header(ABOUT)), Path("x"))
    assert card.model == ModelConfig(name="conv4", width=0.5, options={"bias": True})
    assert card.shape == {"num_classes": 2, "channels": 3, "image_size": 8}
    assert card.classes == ("a", "b")


@pytest.mark.parametrize(
    "options",
    [
        {"model_name": "hf-hub:evil/net"},
        {"file": "x"},
        {"url": "x"},
        {"trust_remote_code": True},
        {"img_size": "../../x"},
        {"act_layer": "http://x"},
        {"act_layer": {"url": 1}},
        {"act_layer": {"a": {"b": {"c": {"d": 1}}}}},
        {"norm": ".x"},
        {"norm": "a..b"},
        {"depth": 1e300},
        {"depth": float("nan")},
        {"depths": [[[[[1]]]]]},
        {"__class__": 1},
        {"Depth": 1},
    ],
)
def test_no_file_chooses_a_hub_a_folder_weights_or_code(options):
    with pytest.raises(TypeError, match="no file may choose"):
        allowed_options(options)
    # It is never dropped in silence: the network would be another one.
    about = {**ABOUT, "model": {"name": "conv4", "options": options}}
    with pytest.raises(InputError, match="no file may choose"):
        ModelCard.read(about, Path("x"))


@pytest.mark.parametrize(
    "options",
    [
        {"cache_dir": "somewhere"},
        {"pretrained": True},
        {"pretrained_cfg_overlay": {"url": "http://x"}},
        {"checkpoint_path": "x.pth"},
        {"weights": "DEFAULT"},
        {"weights_backbone": "DEFAULT"},
        {"hf_hub_id": "x"},
    ],
)
def test_where_weights_came_from_is_left_out(options):
    assert allowed_options({**options, "depth": 2}) == {"depth": 2}


@pytest.mark.parametrize(
    "options",
    [
        {"img_size": 32, "patch_size": 4, "depths": [2, 2, 6], "mlp_ratio": 4.0},
        {"global_pool": "avg", "act_layer": "gelu", "dynamic_img_size": True},
        {"aux_logits": False, "init_weights": False, "transform_input": True},
        {"widths": [64, 64], "init": "torch", "norm": None},
        {"act_layer": "silu", "block": {"norm": "layer", "ratio": 0.5}, "variant": "v1.5"},
    ],
)
def test_a_file_chooses_the_form_of_a_network(options):
    assert allowed_options(options) == options


def test_the_name_of_a_timm_network_is_not_an_option(monkeypatch):
    timm = pytest.importorskip("timm")
    from regraft.models import build

    called = {}

    def create(**arguments):
        called.update(arguments)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))

    monkeypatch.setattr(timm, "create_model", create)
    config = ModelConfig(name="timm/resnet18", options={"model_name": "hf-hub:x"})
    build(config, num_classes=2, channels=3, image_size=2)
    assert called["model_name"] == "resnet18"


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {"name": 3}},
        {"model": {"name": "mlp", "code": "x"}},
        {"model": {"name": "mlp", "width": "1"}},
        {"model": {"name": "mlp", "width": float("inf")}},
        {"model": {"name": "mlp", "options": [1]}},
        {"classes": "ab"},
        {"classes": [1, 2]},
        {"input": {"channels": 3}},
        {"input": {"channels": 3, "image_size": -1}},
        {"input": {"channels": 3, "image_size": 1 << 40}},
        {"input": [3, 8]},
    ],
)
def test_what_is_not_as_it_should_be_is_refused_in_one_sentence(change):
    with pytest.raises(InputError, match="x says what it is of in a way"):
        ModelCard.read({**ABOUT, **change}, Path("x"))


@pytest.mark.parametrize("key", ["model", "input", "classes"])
def test_what_is_missing_is_named(key):
    about = {k: v for k, v in ABOUT.items() if k != key}
    with pytest.raises(InputError, match=f"does not say which {key} it is of"):
        ModelCard.read(about, Path("x"))


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_headers_that_hold_no_card_are_those_of_others(text):
    assert read_header({KEY: text}) == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.fixed_dictionaries({"model": _JSON, "input": _JSON, "classes": _JSON}))
def test_whatever_a_header_holds_it_is_read_or_refused(about):
    try:
        ModelCard.read(json.loads(json.dumps(about)), Path("x"))
    except InputError:
        return


@given(_JSON)
def test_whatever_a_model_is_it_is_read_or_refused(stored):
    try:
        config = model_of(stored)
    except TypeError:
        return
    assert isinstance(config, ModelConfig)
