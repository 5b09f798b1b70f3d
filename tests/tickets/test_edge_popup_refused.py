import warnings

import pytest
from networks import conv_net
from torch import nn
from torch.nn.utils import parametrizations, prune

from regraft.errors import InputError
from regraft.tickets import edge_popup, masks


def test_a_model_without_a_maskable_weight_is_refused():
    with pytest.raises(InputError, match="no maskable weight"):
        edge_popup(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


@pytest.mark.parametrize("s", [-0.1, 1.5, float("nan")])
def test_a_sparsity_outside_zero_and_one_is_refused_and_nothing_is_changed(s):
    model = conv_net()
    with pytest.raises(InputError, match="sparsity="):
        edge_popup(model, sparsity=s)
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": ["nothing.*"]}, "matches no parameter"),
        ({"trainable": ["fcc.*"]}, r"pattern 'fcc.\*' matches no parameter"),
        ({"scope": "globl"}, "scope='globl'"),
        ({"score": "abs"}, "score='abs'"),
        ({"score_init": "signed_kaiming_constant"}, "score_init="),
        ({"sparsity": None}, "sparsity=None"),
        ({"params": ["0.bias"]}, "two or more dimensions"),
        ({"weight_init": "zeros"}, "init='zeros'"),
        ({"sparsity": {"7.*": 0.5}}, "no pattern matches weight '0.weight'"),
        ({"sparsity": {"*": 0.5}, "scope": "global"}, "one threshold"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    model = conv_net()
    with pytest.raises(InputError, match=message):
        edge_popup(model, **arguments)
    assert type(model[0]) is nn.Conv2d


def test_a_lazy_layer_is_refused():
    with pytest.raises(InputError, match="lazy parameter"):
        edge_popup(nn.LazyLinear(3))


def test_a_weight_that_is_parametrised_already_is_refused():
    with pytest.raises(InputError, match="already parametrised"):
        edge_popup(parametrizations.weight_norm(nn.Linear(3, 3)))
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    edge_popup(model, trainable=["0.*"])
    assert masks(model).keys() == {"1.weight"}


def test_masks_of_a_plain_model_are_refused():
    with pytest.raises(InputError, match="no masked weight"):
        masks(conv_net())


def test_a_checkpoint_of_another_scope_is_refused():
    state = edge_popup(conv_net(), scope="global").state_dict()
    with pytest.raises(InputError, match="scope 'global' in the checkpoint and 'layer'"):
        edge_popup(conv_net()).load_state_dict(state)


def test_a_checkpoint_of_another_shape_or_a_newer_schema_is_refused(monkeypatch):
    state = edge_popup(nn.Linear(4, 4)).state_dict()
    monkeypatch.setattr("regraft.tickets.mask.SCHEMA", 0)
    with pytest.raises(InputError, match="schema 1"):
        edge_popup(nn.Linear(4, 4)).load_state_dict(state)
    monkeypatch.undo()
    mask = edge_popup(nn.Linear(4, 3)).parametrizations.weight[0]
    with pytest.raises(InputError, match=r"has shape \(4, 4\) in the checkpoint"):
        mask.set_extra_state(state["parametrizations.weight.0._extra_state"])


@pytest.mark.parametrize("how", ["weight_norm", "prune"])
def test_weights_that_a_hook_computes_are_refused_by_name(how):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    if how == "weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has a newer one
            nn.utils.weight_norm(model[1])
    else:
        prune.l1_unstructured(model[1], "weight", 0.5)
    with pytest.raises(InputError, match=r"weight '1.weight' is no parameter but computed"):
        edge_popup(model)
    edge_popup(model, trainable=["1.weight*"])
