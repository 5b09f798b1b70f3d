import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.checkpoints import fit_names, header, read_checkpoint, unwrapped
from regraft.checkpoints.names import with_positions
from regraft.errors import InputError
from regraft.files import write_tensors


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))


class Holder(nn.Module):
    """A network whose tensors all lie under a name that wrappers use."""

    def __init__(self, name):
        super().__init__()
        setattr(self, name, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))


def saved(path, state, metadata=None):
    tensors = {k: v.clone() for k, v in state.items()}
    if metadata is None:
        save_file(tensors, path)
    else:
        write_tensors(path, tensors, metadata)
    return read_checkpoint(path)


@pytest.mark.parametrize("name", ["model", "module", "net", "backbone"])
def test_a_network_whose_own_names_begin_so_keeps_them(tmp_path, name):
    model = Holder(name)
    checkpoint = saved(tmp_path / "a.safetensors", model.state_dict())
    assert set(fit_names(checkpoint, model)) == set(model.state_dict())
    assert not fit_names(checkpoint, model).notes


@pytest.mark.parametrize(
    "wrapper", ["module.", "_orig_mod.module.", "model.module.", "module.model."]
)
def test_wrappers_come_off_in_any_order_down_to_the_networks_own_names(tmp_path, wrapper):
    model = Holder("model")
    state = {wrapper + k: v for k, v in model.state_dict().items()}
    checkpoint = fit_names(saved(tmp_path / "a.safetensors", state), model)
    assert set(checkpoint) == set(model.state_dict())
    assert all("was dropped" in note for note in checkpoint.notes)
    assert torch.equal(checkpoint["model.0.weight"], model.model[0].weight)


def test_our_own_files_are_taken_as_they_are(tmp_path):
    state = {"module.a": torch.ones(2)}
    checkpoint = saved(tmp_path / "a.safetensors", state, header({"model": {"name": "mlp"}}))
    assert list(unwrapped(checkpoint, ["a"])) == ["module.a"]
    foreign = saved(tmp_path / "b.safetensors", state)
    assert list(unwrapped(foreign, ["a"])) == ["a"]


def test_without_a_network_only_the_wrappers_of_torch_come_off(tmp_path):
    assert list(unwrapped(saved(tmp_path / "a.safetensors", {"module.a": torch.ones(1)}))) == ["a"]
    kept = saved(tmp_path / "b.safetensors", {"model.a": torch.ones(1)})
    assert list(unwrapped(kept)) == ["model.a"]


def test_counters_of_batches_may_be_missing(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    checkpoint = fit_names(saved(tmp_path / "a.safetensors", state), model)
    assert checkpoint["1.num_batches_tracked"] == 0
    model.load_state_dict(dict(checkpoint))
    del state["1.running_mean"]
    with pytest.raises(InputError, match=r"has no tensor '1\.running_mean'"):
        fit_names(saved(tmp_path / "b.safetensors", state), model)


@pytest.mark.parametrize("prefixes", [0, 1, 2])
def test_embeddings_of_positions_are_resampled_as_timm_does(tmp_path, prefixes):
    layers = pytest.importorskip("timm.layers")
    old = torch.randn(1, prefixes + 100, 8)
    expected = {"encoder.pos_embed": torch.zeros(1, prefixes + 16, 8)}
    checkpoint = saved(tmp_path / "a.safetensors", {"encoder.pos_embed": old})
    resampled = with_positions(checkpoint, expected)
    theirs = layers.resample_abs_pos_embed(old, new_size=(4, 4), num_prefix_tokens=prefixes)
    torch.testing.assert_close(resampled["encoder.pos_embed"], theirs)
    assert "from 10^2 to 4^2 places" in resampled.notes[0]
    assert resampled.sketch["encoder.pos_embed"].shape == theirs.shape


def test_embeddings_that_are_no_grid_stay(tmp_path):
    checkpoint = saved(tmp_path / "a.safetensors", {"pos_embed": torch.randn(1, 23, 8)})
    same = with_positions(checkpoint, {"pos_embed": torch.zeros(1, 17, 8)})
    assert torch.equal(same["pos_embed"], checkpoint["pos_embed"])
