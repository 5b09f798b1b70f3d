import pytest
import torch

from regraft.errors import InputError
from regraft.models import ConvSmall
from regraft.symmetry.spec.permuted import Permuted
from regraft.symmetry.trace.trace import trace


def test_a_lazy_state_is_what_apply_returns():
    model = ConvSmall(3, image_size=8, width=0.25)
    spec = trace(model, torch.randn(2, 1, 8, 8))
    state, permutation = model.state_dict(), spec.random(3)
    asked = []

    class Watched(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    lazy = Permuted(spec, Watched(state), permutation)
    asked.clear()
    whole = spec.apply(state, permutation)
    assert list(lazy) == list(whole)
    assert len(lazy) == len(whole)
    assert torch.equal(lazy["head.weight"], whole["head.weight"])
    assert asked == ["head.weight"]
    assert all(torch.equal(lazy[k], v) for k, v in whole.items())


def test_what_does_not_fit_is_refused_at_once():
    model = ConvSmall(3, image_size=8, width=0.25)
    spec = trace(model, torch.randn(2, 1, 8, 8))
    with pytest.raises(InputError, match=r"has no tensor 'features.0.weight'"):
        Permuted(spec, {}, spec.random(1))
    with pytest.raises(InputError, match="is no group"):
        Permuted(spec, model.state_dict(), {"x": torch.arange(3)})
