import copy

import pytest
import torch
from networks import conv_net, images
from torch import nn

from regraft import streams
from regraft.errors import InputError
from regraft.tickets import IteRand, bake, edge_popup, masks, named_masks
from regraft.tickets.source import WeightSource

LAWS = ["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"]


def weights(model):
    return {n: m.weight.clone() for n, _, m in named_masks(model)}


def stir(model, seed):
    """Move the scores, as an optimiser step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, entry, _ in named_masks(model):
            entry.original += 0.05 * torch.randn(entry.original.shape, generator=generator)


def reference_step(weight, mask, source, event, rate):
    """The slow twin: W <- W M + (1 - M) [(1 - B) W + B W']."""
    m = mask.to(weight.dtype)
    n = weight.numel()
    b = streams.bernoulli(source.seed, f"{source.name}#redraw", event, n, rate)
    b = b.reshape(weight.shape).to(weight.dtype)
    fresh = source.draw(event).reshape(weight.shape)
    return weight * m + (1 - m) * ((1 - b) * weight + b * fresh)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_redraws_follow_the_formula(law, rate):
    model = edge_popup(conv_net(), weight_init=law, sparsity=0.6, seed=4)
    iterand = IteRand(model, every=1, rate=rate)
    for event in range(1, 6):
        stir(model, event)
        before, kept = weights(model), masks(model)
        iterand.step()
        for name, _, mask in named_masks(model):
            expected = reference_step(before[name], kept[name], mask.source, event, rate)
            assert torch.equal(mask.weight, expected)


def test_kept_weights_scores_and_outputs_do_not_change_at_a_redraw():
    model = edge_popup(conv_net(), seed=4).eval()
    x, _ = images()
    before, scores = model(x), {n: p.clone() for n, p in model.named_parameters()}
    old = weights(model)
    IteRand(model, every=1, rate=1.0).step()
    assert torch.equal(model(x), before)
    assert all(torch.equal(p, scores[n]) for n, p in model.named_parameters())
    assert any(not torch.equal(w, old[n]) for n, w in weights(model).items())


def test_weights_are_redrawn_before_the_iterations_of_the_paper():
    model = edge_popup(nn.Linear(50, 50), seed=1)
    iterand = IteRand(model, every=4, rate=1.0)
    changed = []
    for iteration in range(1, 13):  # after step() the next iteration has this number
        before = weights(model)["weight"]
        iterand.step()
        if not torch.equal(weights(model)["weight"], before):
            changed.append(iteration)
    assert [(it + 1) % 4 for it in changed] == [0, 0, 0]
    assert changed == [3, 7, 11]


def test_rate_zero_is_edge_popup():
    model = edge_popup(conv_net(), seed=4)
    before = weights(model)
    iterand = IteRand(model, every=1, rate=0.0)
    for _ in range(5):
        iterand.step()
    assert all(torch.equal(w, before[n]) for n, w in weights(model).items())


def test_the_share_redrawn_is_the_rate():
    model = edge_popup(nn.Linear(300, 300), sparsity=0.5, seed=1, weight_init="kaiming_uniform")
    before = weights(model)["weight"]
    IteRand(model, every=1, rate=0.1).step()
    share = (weights(model)["weight"] != before).float().mean().item()
    assert share == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize("law", LAWS)
def test_a_checkpoint_rebuilds_every_redrawn_weight(law):
    model = edge_popup(conv_net(), weight_init=law, seed=4)
    iterand = IteRand(model, every=1, rate=0.3)
    for event in range(6):
        stir(model, event)
        iterand.step()
    other = edge_popup(conv_net(), seed=77)
    other.load_state_dict(model.state_dict())
    for a, b in zip(weights(model).values(), weights(other).values(), strict=True):
        assert torch.equal(a, b)
    # And it goes on the same: the draws, not only the values, are in the checkpoint.
    again = IteRand(other, every=1, rate=0.3)
    again.load_state_dict(iterand.state_dict())
    stir(model, 9), stir(other, 9)
    iterand.step(), again.step()
    for a, b in zip(weights(model).values(), weights(other).values(), strict=True):
        assert torch.equal(a, b)


def test_loading_a_search_without_redraws_forgets_the_redraws():
    plain = edge_popup(conv_net(), seed=4)
    state = copy.deepcopy(plain.state_dict())
    model = edge_popup(conv_net(), seed=4)
    IteRand(model, every=1, rate=1.0).step()
    model.load_state_dict(state)
    assert all(torch.equal(w, weights(plain)[n]) for n, w in weights(model).items())


def test_a_partial_load_leaves_the_draws_alone():
    model = edge_popup(conv_net(), seed=4)
    IteRand(model, every=1, rate=1.0).step()
    state = model.state_dict()
    model.load_state_dict({"0.bias": state["0.bias"]}, strict=False)
    other = edge_popup(conv_net(), seed=4)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(w, weights(other)[n]) for n, w in weights(model).items())


def test_a_second_object_does_not_draw_the_same_events_again():
    model = edge_popup(nn.Linear(50, 50), seed=4)
    IteRand(model, every=1, rate=1.0).step()
    before = weights(model)["weight"]
    IteRand(model, every=1, rate=1.0).step()
    assert not torch.equal(weights(model)["weight"], before)


def test_weight_averages_made_before_a_redraw_keep_up():
    model = edge_popup(conv_net(), seed=4)
    iterand = IteRand(model, every=1, rate=1.0)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    iterand.step()
    average.update_parameters(model)
    average.update_parameters(model)


def test_a_state_loaded_after_it_was_made_is_redrawn_from_newer_events():
    def search():
        model = edge_popup(conv_net(), sparsity=0.5, seed=1)
        return model, IteRand(model, every=1, rate=1.0)

    model, iterand = search()
    for _ in range(3):
        iterand.step()
    state = copy.deepcopy(model.state_dict())
    model, iterand = search()
    model.load_state_dict(state)
    before = {name: mask.weight.clone() for name, _, mask in named_masks(model)}
    iterand.step()
    assert iterand.events == 4
    for name, entry, mask in named_masks(model):
        pruned = ~mask.mask(entry.original).bool()
        assert bool((mask.draw[pruned] == 4).all())
        changed = mask.weight != before[name]
        assert 0 < int(changed.sum()) <= int(pruned.sum())


def test_many_events_outgrow_small_integers_without_loss():
    model = edge_popup(nn.Linear(4, 4), seed=1)
    mask = next(m for _, _, m in named_masks(model))
    mask.redraw_(torch.tensor([3]), 5)
    mask.redraw_(torch.tensor([7]), 40_000)
    assert mask.draw.dtype == torch.int32
    assert mask.draw.flatten()[[3, 7]].tolist() == [5, 40_000]
    assert torch.equal(mask.source.rebuild(mask.draw), mask.weight)


def test_a_redraw_keeps_dtype_and_memory_order():
    model = edge_popup(nn.Conv2d(4, 4, 3), seed=1).double().to(memory_format=torch.channels_last)
    IteRand(model, every=1, rate=1.0).step()
    weight = weights(model)["weight"]
    assert weight.dtype == torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_baking_after_redraws_keeps_the_outputs():
    model = edge_popup(conv_net(), seed=4).eval()
    iterand = IteRand(model, every=1, rate=1.0)
    stir(model, 1)
    iterand.step()
    x, _ = images()
    assert torch.equal(bake(model)(x), model(x))


@pytest.mark.parametrize("law", LAWS)
def test_rebuilding_agrees_with_drawing_event_by_event(law):
    source = WeightSource(law, 3, "w", (40, 30))
    draw = torch.randint(0, 4, (40, 30), generator=torch.Generator().manual_seed(1))
    slow = torch.stack([source.draw(e).reshape(40, 30) for e in range(4)])
    assert torch.equal(source.rebuild(draw), slow.gather(0, draw[None])[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 5, "rate": -0.1}, r"rate=-0\.1"),
        ({"every": 5, "rate": 1.1}, r"rate=1\.1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        IteRand(edge_popup(nn.Linear(3, 3)), **arguments)


def test_a_model_without_masks_is_refused():
    with pytest.raises(InputError, match="no edge-popup mask"):
        IteRand(nn.Linear(3, 3), every=5)
