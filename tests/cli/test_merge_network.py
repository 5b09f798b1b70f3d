"""What a checkpoint may say of the network that it is of."""

from pathlib import Path

import pytest

from regraft.errors import InputError
from regraft.jobs.merge.config import AlignConfig
from regraft.jobs.merge.network import network_config

CONFIG = AlignConfig(checkpoints=(Path("a.safetensors"), Path("b.safetensors")))


@pytest.mark.parametrize(
    "option",
    [
        "pretrained",
        "checkpoint",
        "checkpoint_path",
        "pretrained_backbone",
        "pretrained_cfg_overlay",
    ],
)
def test_a_header_cannot_make_a_merge_fetch_or_open_anything(option):
    about = {"model": {"name": "timm/resnet18", "options": {option: "there", "drop_rate": 0.1}}}
    assert network_config(CONFIG, about).options == {"drop_rate": 0.1}


@pytest.mark.parametrize("name", ["os:getcwd", "timm/hf-hub:some/one", "elsewhere/net"])
def test_code_that_a_header_names_is_not_run(name):
    with pytest.raises(InputError, match="which is code outside the checkpoint"):
        network_config(CONFIG, {"model": {"name": name}})
