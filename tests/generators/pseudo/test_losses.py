import math

import pytest
import torch
import torch.nn.functional as F

from regraft.errors import InputError
from regraft.generators.pseudo import SSL_LOSSES, Confidence, ssl_loss

K = 4


class Table(torch.nn.Module):
    """Logits by image number, which is the image's one pixel."""

    def __init__(self, seed=0, scale=3.0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.logits = torch.nn.Parameter(torch.randn(20, K, generator=g) * scale)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.logits[x.flatten(1)[:, 0].long()]


def batch(start, n=10):
    return torch.arange(start, start + n).float().view(n, 1, 1, 1)


WEAK, STRONG = batch(0), batch(10)


def soft(v, t=1.0):
    e = [math.exp(x / t) for x in v]
    return [x / sum(e) for x in e]


def ce(target, v):
    return -sum(t * math.log(q) for t, q in zip(target, soft(v), strict=True))


def slow(name, logits, temperature, threshold):
    """The definitions, image by image."""
    total = 0.0
    for i in range(10):
        w, s = logits[i].tolist(), logits[10 + i].tolist()

        p = soft(w)
        if max(p) <= threshold:
            continue
        hard = [float(x == max(p)) for x in p]
        sharp = soft(w, temperature)

        values = {
            "uda": ce(sharp, s),
            "fixmatch": ce(hard, s),
            "pseudo_label": ce(hard, w),
            "soft_pseudo_label": ce(sharp, w),
            "entropy": ce(soft(w), w),
            "consistency": sum((a - b) ** 2 for a, b in zip(soft(s), sharp, strict=True)),
        }
        total += values[name]
    return total / 10


@pytest.mark.parametrize("name", SSL_LOSSES)
@pytest.mark.parametrize("options", [{}, {"threshold": 0.6}])
def test_a_loss_is_its_definition(name, options):
    model, loss = Table(), ssl_loss(name, **options)
    value = loss(model, WEAK, STRONG)
    expected = slow(name, model.logits.detach(), loss.temperature, loss.threshold)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert value.requires_grad


@pytest.mark.parametrize("name", SSL_LOSSES)
def test_targets_carry_no_gradient(name):
    model = Table()
    ssl_loss(name, threshold=0.0)(model, WEAK, STRONG).backward()
    weak, strong = model.logits.grad[:10], model.logits.grad[10:]
    on_weak = name in ("pseudo_label", "soft_pseudo_label", "entropy")
    assert bool(weak.any()) == on_weak
    assert bool(strong.any()) != on_weak


@pytest.mark.parametrize("name", SSL_LOSSES)
def test_a_student_learns_and_the_network_only_answers(name):
    model, student = Table(), Table(seed=1)
    loss = ssl_loss(name, threshold=0.0)(model, WEAK, STRONG, student)
    loss.backward()
    assert student.logits.grad.any()
    assert model.logits.grad is None


def test_without_a_confident_sample_the_loss_is_zero_and_says_so():
    model = Table(scale=0.01)
    for name in ("uda", "fixmatch", "pseudo_label"):
        loss = ssl_loss(name)
        value = loss(model, WEAK, STRONG)
        assert value.item() == 0
        value.backward()
        assert loss.confidence.share == 0
        assert loss.confidence.summary()["images"] == 10


def test_confidence_is_counted_by_class():
    model, loss = Table(), ssl_loss("uda", threshold=0.9)
    for _ in range(2):
        loss(model, WEAK, STRONG)
    p = model.logits[:10].softmax(1)
    likely, passes = p.argmax(1), p.amax(1) > 0.9
    assert loss.confidence.predicted.tolist() == (2 * likely.bincount(minlength=K)).tolist()
    assert loss.confidence.passed.tolist() == (2 * likely[passes].bincount(minlength=K)).tolist()
    summary = loss.confidence.summary()
    assert summary["passed"] == pytest.approx(float(passes.float().mean()))
    by_class = [row["passed"] for row in summary["by_class"]]
    for c in range(K):
        mine = likely == c
        expected = float(passes[mine].float().mean()) if mine.any() else None
        assert by_class[c] == (None if expected is None else pytest.approx(expected))
    other = Confidence()
    other.load_state_dict(loss.confidence.state_dict())
    assert other.summary() == summary


def test_uda_at_a_low_temperature_is_fixmatch():
    model = Table()
    sharp = ssl_loss("uda", temperature=1e-3, threshold=0.5)(model, WEAK, STRONG)
    torch.testing.assert_close(sharp, ssl_loss("fixmatch", threshold=0.5)(model, WEAK, STRONG))
    assert F.cross_entropy(model(STRONG), model(WEAK).argmax(1)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mixmatch"}, "expected one of uda, fixmatch"),
        ({"name": "uda", "temperature": 0.0}, "finite number above 0"),
        ({"name": "uda", "threshold": 1.0}, "from 0 to below 1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ssl_loss(**options)
