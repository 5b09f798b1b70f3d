import copy

import pytest
import torch
from torch import nn

from regraft.data.views import strong, weak
from regraft.errors import InputError
from regraft.generators.pseudo import ImagePool, PseudoTerm, ssl_loss, unrecorded
from regraft.models import ConvSmall
from regraft.streams import Counter

POOL = torch.randint(0, 256, (40, 1, 12, 12), generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return ConvSmall(4, image_size=12)


def term(**options):
    ssl = options.pop("ssl", None) or ssl_loss("uda", threshold=0.0)
    return PseudoTerm(
        ImagePool(POOL.byte(), seed=0), ssl, batch_size=16, warmup=4, seed=5, **options
    )


def test_the_term_is_the_loss_on_views_of_the_steps_images():
    model, t = network().eval(), term(mean=(0.5,), std=(0.25,), weight=2.0)
    value = t.loss(model, 2)
    x = ImagePool(POOL.byte(), seed=0).take(32, 16)
    w, s = (
        (v(x, Counter(5, name, 32)) - 0.5) / 0.25
        for v, name in ((weak(), "ssl/weak"), (strong(), "ssl/strong"))
    )
    expected = ssl_loss("uda", threshold=0.0)(model, w, s)
    torch.testing.assert_close(value, 2.0 * 3 / 4 * expected)
    assert t.loss(model, 3).item() > 0
    torch.testing.assert_close(t.loss(model, 2), value)


def test_the_weight_rises_over_the_warm_up():
    model = network().eval()
    t = term()
    later = term()
    later.warmup = 0
    shares = [(t.loss(model, i) / later.loss(model, i)).item() for i in range(6)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_statistics_of_generated_images_are_not_recorded():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    term().loss(model, 0).backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with unrecorded(model):
        model(torch.randn(8, 1, 12, 12))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model(torch.randn(8, 1, 12, 12))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert int(norm.num_batches_tracked) == 1
    assert norm.momentum == 0.1


def test_with_its_own_head_the_classifier_is_left_alone():
    model, t = network().train(), term(own_head=True)
    t.loss(model, 0).backward()
    assert model.head.weight.grad is None
    assert model.features[0].weight.grad.abs().sum() > 0
    head = t.head.weight.detach().clone()
    assert t.head.weight.grad.abs().sum() > 0
    expected = head - t.head_lr * t.head.weight.grad
    t.loss(model, 1)
    torch.testing.assert_close(t.head.weight.detach(), expected)
    plain, shared = network().train(), term()
    shared.loss(plain, 0).backward()
    assert plain.head.weight.grad is not None


def _train(steps, state=None, model=None, t=None, start=0):
    model, t = model or network().train(), t or term(own_head=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    if state is not None:
        model.load_state_dict(state[0])
        t.load_state_dict(state[1])
    for step in range(start, start + steps):
        optimizer.zero_grad()
        t.loss(model, step).backward()
        optimizer.step()
    return model, t


def test_an_interrupted_training_goes_on_to_the_same_bits():
    whole, t = _train(6)
    half, s = _train(3)
    state = (copy.deepcopy(half.state_dict()), copy.deepcopy(s.state_dict()))
    rest, r = _train(3, state, start=3)
    for a, b in zip(whole.state_dict().values(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(t.state_dict()["head"]["weight"], r.state_dict()["head"]["weight"])
    assert t.ssl.confidence.summary() == r.ssl.confidence.summary()


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"weight": float("nan")}])
def test_a_weight_that_is_none_is_refused(options):
    with pytest.raises(InputError, match="expected a number above 0"):
        term(**options)


class Normed(nn.Module):
    """A convolution, a normalisation, and a classifier of a name of its own, registered first."""

    def __init__(self, kind="batch"):
        super().__init__()
        self.out = nn.Linear(8, 4)
        conv = nn.Conv2d(1, 8, 3)
        self.body = nn.utils.parametrizations.spectral_norm(conv) if kind == "spectral" else conv
        norms = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
        self.norm = nn.Identity()
        if kind in norms:
            self.norm = norms[kind](8, track_running_stats=True)
        self.more = nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.more(self.norm(self.body(x)).relu().mean((2, 3))))


@pytest.mark.parametrize("kind", ["batch", "instance", "spectral"])
def test_no_buffer_is_written(kind):
    model = Normed(kind).train()
    before, own = copy.deepcopy(model.state_dict()), dict(model.named_buffers())
    term().loss(model, 0).backward()
    assert own
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(v is own[k] for k, v in model.named_buffers())
    model(torch.randn(8, 1, 12, 12))
    assert any(not torch.equal(v, before[k]) for k, v in model.named_buffers())


def test_the_classifier_may_be_named():
    with pytest.raises(InputError, match="does not tell which"):
        term(own_head=True).loss(Normed(), 0)
    model = Normed()
    term(own_head=True, classifier="out").loss(model, 0).backward()
    assert model.out.weight.grad is None
    assert model.more.weight.grad.abs().sum() > 0


def test_a_classifier_on_maps_is_replaced_by_a_head_on_their_means():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("features", nn.Conv2d(1, 8, 3))
    model.add_module("classifier", nn.Conv2d(8, 4, 1))
    model.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    t = term(own_head=True)
    t.loss(model, 0).backward()
    assert t.head.weight.shape == (4, 8)
    assert t.head.weight.grad.abs().sum() > 0
    assert model.classifier.weight.grad is None


def test_what_was_loaded_is_given_back_before_the_first_loss():
    _, t = _train(2)
    state, other = t.state_dict(), term(own_head=True)
    other.load_state_dict(copy.deepcopy(state))
    back = other.state_dict()
    assert back.keys() == state.keys()
    assert torch.equal(back["head"]["weight"], state["head"]["weight"])
    a, b = (x["optimizer"]["state"][0]["momentum_buffer"] for x in (back, state))
    assert torch.equal(a, b)


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_may_compute_in_another_type(dtype, own_head):
    model = network().to(dtype).train()
    t = term(own_head=own_head)
    for step in range(2):
        t.loss(model, step).backward()
    grad = model.features[0].weight.grad
    assert grad.dtype is dtype
    assert grad.abs().sum() > 0
    if dtype is torch.float64:
        plain = network().train()
        value = term(own_head=own_head).loss(plain, 0)
        again = term(own_head=own_head).loss(network().to(dtype).train(), 0)
        torch.testing.assert_close(again.float(), value, rtol=1e-4, atol=1e-6)
